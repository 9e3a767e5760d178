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
SPREAD, PAIRS = "__spread__", "__pairs__"


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


def _known_json(mapping: Mapping[str, Any], marker: str, path: str, problems: list[dict[str, Any]]) -> Any:
    """What a marker stands for, once it is no literal any more. None: not known yet."""
    text = mapping.get(marker)
    if not isinstance(text, str):
        return text
    if LITERAL.search(text):
        return None
    try:
        return json.loads(text)
    except ValueError:
        problems.append(problem(f"{path}.{marker}", "not JSON, which is what is spread", text, None))
        return None


def _mapping_spread(mapping: dict[str, Any], path: str, problems: list[dict[str, Any]]) -> dict[str, Any]:
    """A mapping takes over what is spread into it; keys that follow win, as in their programs. One that is nothing but a
    spread may stand for items of a list: `_list_spread` decides."""
    out: dict[str, Any] = {}
    for key, value in mapping.items():
        known = None
        if key == PAIRS or (key == SPREAD and _merges(path, mapping)):
            known = _known_json(mapping, key, path, problems)
            known = pairs(known) if isinstance(known, list) else known
        out.update(known if isinstance(known, dict) else {key: value})
    return out


def _merges(path: str, mapping: Mapping[str, Any]) -> bool:
    return len(mapping) > 1 or path.endswith(".env")


def _list_spread(items: list[Any], path: str, problems: list[dict[str, Any]]) -> list[Any]:
    out: list[Any] = []
    for number, item in enumerate(items):
        is_spread = isinstance(item, dict) and SPREAD in item
        known = _known_json(item, SPREAD, f"{path}.{number}", problems) if is_spread else None
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
    """`__remove-if-empty__` taken out; None when there was nothing beside it, or nothing but empty texts."""
    if items is None or REMOVE_IF_EMPTY not in items:
        return items
    left = tuple(item for item in items if item != REMOVE_IF_EMPTY)
    return left if any(left) else None
