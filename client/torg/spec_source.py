"""The text of a job file and where in it each field stands, so that every problem is named with its line.

YAML and JSON. What YAML would let pass in silence is refused: a key that is there twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torg_protocol.errors import Invalid

_LONGEST_FILE = 1 << 20
_MOST_VALUES = 20_000  # keys and items, each alias counted as what it stands for


@dataclass(frozen=True, slots=True)
class Place:
    line: int  # from 1
    column: int  # from 1
    text: str | None  # a scalar as it was written, if it was not in quotes


@dataclass(frozen=True, slots=True)
class Source:
    """`places` by field, written like in problems: `limits.max_duration`, `command.1`."""

    name: str
    places: dict[str, Place] = field(default_factory=dict)

    def place(self, name: str) -> Place | None:
        """Where a field stands, or, for one that is missing, what it is missing in."""
        while name and name != "$":
            if name in self.places:
                return self.places[name]
            name = name.rpartition(".")[0]
        return self.places.get("")

    def explain(self, error: Invalid) -> Invalid:
        """The same refusal, with file and line in every problem."""
        problems = [self._located(problem) for problem in error.data.get("problems", [])]
        problems.sort(key=lambda problem: (problem["line"] or 0, problem["column"] or 0))
        if not problems:
            return error
        first = problems[0]
        where = f"{self.name}, line {first['line']}: " if first["line"] else f"{self.name}: "
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return Invalid(
            f"{where}{first['field']}: {first['message']}{more}",
            code=error.code,
            field=first["field"],
            value=first["value"],
            hint=first["hint"],
            file=self.name,
            problems=problems,
        )

    def _located(self, problem: dict[str, Any]) -> dict[str, Any]:
        place = self.place(problem["field"])
        hint = problem["hint"]
        if place is not None and place.text is not None and (hint or "").startswith("put it in quotes"):
            hint = f'put it in quotes: "{place.text}"'  # as written: `yes`, not what YAML reads it as
        return {
            **problem,
            "hint": hint,
            "line": place.line if place else None,
            "column": place.column if place else None,
        }


def parse_source(text: str, name: str) -> tuple[dict[str, Any], Source]:
    """Raises Invalid: spec_too_large, spec_not_json, spec_not_yaml, spec_key_twice, spec_invalid."""
    if len(text) > _LONGEST_FILE:
        raise Invalid(
            "this is too long for a job file",
            code="spec_too_large",
            field="file",
            value=name,
            hint=f"at most {_LONGEST_FILE} characters; data belongs into the workspace",
        )
    is_json = name.endswith(".json")
    raw = _parse_json(text, name) if is_json else None
    raw_yaml, places = _parse_yaml(text.replace("\t", " ") if is_json else text, name, is_json=is_json)
    raw = raw if is_json else raw_yaml
    if not isinstance(raw, dict):
        raise Invalid(
            "a job file is a mapping",
            code="spec_invalid",
            field="$",
            value=type(raw).__name__,
            hint="start with: version: 1, or let `torg init` write one",
        )
    return raw, Source(name, places)


def _parse_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Invalid(
            "the job file is not JSON",
            code="spec_not_json",
            field="file",
            value=name,
            hint=str(error),
            line=getattr(error, "lineno", None),
            column=getattr(error, "colno", None),
        ) from error


def _parse_yaml(text: str, name: str, *, is_json: bool) -> tuple[Any, dict[str, Place]]:
    import yaml

    loader: Any = None
    places: dict[str, Place] = {}
    try:
        loader = yaml.SafeLoader(text)  # which refuses control characters already
        node = loader.get_single_node()
        if node is None:
            return None, places
        _walk(node, "", places, _refuse_twice(name), _refuse_too_many(name))
        return (None if is_json else loader.construct_document(node)), places
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if is_json:
            return None, places  # JSON that YAML cannot read: the problems are named without lines
        mark = getattr(error, "problem_mark", None)
        if mark and "another document" in str(getattr(error, "problem", "")):
            raise _several(name, mark.line + 1) from error
        raise Invalid(
            "the job file is not YAML" + (f", line {mark.line + 1}" if mark else ""),
            code="spec_not_yaml",
            field="file",
            value=name,
            hint=str(getattr(error, "problem", None) or error).strip(),
            line=mark.line + 1 if mark else None,
            column=mark.column + 1 if mark else None,
        ) from error
    finally:
        if loader is not None:
            loader.dispose()


def _several(name: str, line: int) -> Invalid:
    return Invalid(
        f"{name}, line {line}: a second document begins here (---), and a job file is one job",
        code="spec_several_documents",
        field="file",
        value=name,
        hint="put each into a file of its own and submit them one after the other; or write them as `tasks:` of one job",
        line=line,
        column=1,
    )


def _walk(
    node: Any,
    path: str,
    places: dict[str, Place],
    refuse_twice: Callable[[str, Place, Place], None],
    refuse_too_many: Callable[[Place], None],
) -> None:
    """Notes the place of each key and of each item. Aliases are walked through as often as they are used, so that few lines
    may stand for very many values: beyond a bound the file is refused."""
    import yaml

    places.setdefault(path, _place(node))
    if len(places) > _MOST_VALUES:
        refuse_too_many(places[path])
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _walk(item, f"{path}.{number}" if path else str(number), places, refuse_twice, refuse_too_many)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, Place] = {}
    for key, value in node.value:
        if key.value == "<<":
            continue
        inner = f"{path}.{key.value}" if path else str(key.value)
        place = _place(key, value)
        if (first := seen.get(inner)) is not None:
            refuse_twice(inner, first, place)
        seen[inner] = place
        is_new = inner not in places
        places[inner] = place
        if is_new:
            _walk(value, inner, places, refuse_twice, refuse_too_many)


def _place(node: Any, value: Any = None) -> Place:
    scalar = value if value is not None else node
    plain = getattr(scalar, "style", "") is None and isinstance(scalar.value, str)
    return Place(node.start_mark.line + 1, node.start_mark.column + 1, scalar.value if plain else None)


def _refuse_twice(name: str) -> Callable[[str, Place, Place], None]:
    def refuse(key: str, first: Place, second: Place) -> None:
        raise Invalid(
            f"{name}, line {second.line}: {key} is there twice",
            code="spec_key_twice",
            field=key,
            hint=f"the first is in line {first.line}: keep one of them",
            line=second.line,
            column=second.column,
        )

    return refuse


def _refuse_too_many(name: str) -> Callable[[Place], None]:
    def refuse(place: Place) -> None:
        raise Invalid(
            f"{name}, line {place.line}: this file stands for more than {_MOST_VALUES} values",
            code="spec_too_large",
            field="file",
            value=name,
            hint="write fewer, or fewer aliases (*name) of large parts; data belongs into the workspace",
            line=place.line,
            column=place.column,
        )

    return refuse
