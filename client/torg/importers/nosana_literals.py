"""Literals of a Nosana definition: those whose value the file itself holds are filled in; the others stay for the run.

`global` and `globals` mean the same: their documents write the second, their programs the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torg.importers.nosana_schema import LITERAL, REMOVE_IF_EMPTY
from torg.importers.strict import problem

_VARIABLE = re.compile(r"%%globals?\.variables\.([^%]+)%%")
SPREAD = "__spread__"


def variables_filled_in(
    raw: dict[str, Any], variables: Mapping[str, str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The document with `%%global.variables.X%%` replaced and markers over known values applied, and problems: unknown names."""
    problems: list[dict[str, Any]] = []
    ops = _filled(raw.get("ops"), "ops", variables, problems)
    shared = {key: _filled(value, f"global.{key}", variables, problems) for key, value in raw.get("global", {}).items()}
    return {**raw, "ops": ops, **({"global": shared} if shared else {})}, problems


def literals_left(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path, literal) of what only the run can fill in."""
    if isinstance(value, str):
        yield from ((path, match.group()) for match in LITERAL.finditer(value))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from literals_left(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from literals_left(inner, f"{path}.{number}")


def _filled(value: Any, path: str, variables: Mapping[str, str], problems: list[dict[str, Any]]) -> Any:
    if isinstance(value, str):
        return _text_filled(value, path, variables, problems)
    if isinstance(value, Mapping):
        inner = {
            _filled(key, path, variables, problems): _filled(item, f"{path}.{key}", variables, problems)
            for key, item in value.items()
        }
        return _mapping_spread(inner, path, problems)
    if isinstance(value, list | tuple):
        items = [_filled(item, f"{path}.{number}", variables, problems) for number, item in enumerate(value)]
        return _list_spread(items, path, problems)
    return value


def _text_filled(text: str, path: str, variables: Mapping[str, str], problems: list[dict[str, Any]]) -> str:
    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in variables:
            known = ", ".join(variables) or "none"
            problems.append(
                problem(path, f'there is no variable "{name}"', match.group(), f"global.variables has: {known}")
            )
            return ""
        return variables[name]

    return _VARIABLE.sub(value_of, text)


def _known_json(mapping: Mapping[str, Any], path: str, problems: list[dict[str, Any]]) -> Any:
    """What `__spread__` stands for, once it is no literal any more. None: not known yet."""
    text = mapping.get(SPREAD)
    if not isinstance(text, str) or LITERAL.search(text):
        return None
    try:
        return json.loads(text)
    except ValueError:
        problems.append(problem(f"{path}.{SPREAD}", "not JSON, which is what is spread", text, None))
        return None


def _mapping_spread(mapping: dict[str, Any], path: str, problems: list[dict[str, Any]]) -> dict[str, Any]:
    """A mapping beside other keys takes over what is spread into it; keys that follow win, as in their programs."""
    if SPREAD not in mapping or len(mapping) == 1 or (known := _known_json(mapping, path, problems)) is None:
        return mapping
    if isinstance(known, list):
        known = pairs(known)
    out: dict[str, Any] = {}
    for key, value in mapping.items():
        out.update(known if key == SPREAD and isinstance(known, dict) else {key: value})
    return out


def _list_spread(items: list[Any], path: str, problems: list[dict[str, Any]]) -> list[Any]:
    out: list[Any] = []
    for number, item in enumerate(items):
        known = _known_json(item, f"{path}.{number}", problems) if isinstance(item, dict) and SPREAD in item else None
        out += known if isinstance(known, list) else [item]
    return out


def pairs(items: list[Any]) -> dict[str, str]:
    """`[{key, value}]` as a mapping, the meaning of `__pairs__`."""
    return {
        str(item["key"]): str(item["value"])
        for item in items
        if isinstance(item, dict) and {"key", "value"} <= item.keys()
    }


def without_marker(items: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """`__remove-if-empty__` taken out; None when nothing but it was there."""
    if items is None or REMOVE_IF_EMPTY not in items:
        return items
    return tuple(item for item in items if item != REMOVE_IF_EMPTY) or None
