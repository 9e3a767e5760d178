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


@dataclass(frozen=True, slots=True)
class Parsed:
    """One document of a file, and the line in which it begins."""

    raw: dict[str, Any]
    source: Source
    line: int = 1


def parse_documents(text: str, name: str) -> list[Parsed]:
    """All that YAML's `---` parts, but for empty ones; of JSON always one. Raises Invalid: spec_too_large, spec_not_json, spec_not_yaml, spec_key_twice,
    spec_invalid."""
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
    found = _parse_yaml(text.replace("\t", " ") if is_json else text, name, is_json=is_json)
    if is_json:
        found = [(raw, found[0][1] if found else {}, 1)]
    for document in [document for document, *_ in found] or [None]:
        if not isinstance(document, dict):
            raise Invalid(
                "a job file is a mapping",
                code="spec_invalid",
                field="$",
                value=type(document).__name__,
                hint="start with: version: 1, or let `torg init` write one",
            )
    return [Parsed(document, Source(name, places), line) for document, places, line in found]


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


def _parse_yaml(text: str, name: str, *, is_json: bool) -> list[tuple[Any, dict[str, Place], int]]:
    """Each document with its places and its first line; of JSON only the places are of use."""
    import yaml

    loader: Any = None
    found: list[tuple[Any, dict[str, Place], int]] = []
    try:
        loader = yaml.SafeLoader(text)  # which refuses control characters already
        noted = 0
        while loader.check_node():
            line, node = loader.peek_event().start_mark.line + 1, loader.get_node()
            if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
                continue  # nothing between two `---`, or after the last one
            places: dict[str, Place] = {}
            _walk(node, "", places, _refuse_twice(name), _refuse_too_many(name), _MOST_VALUES - noted)
            noted += len(places)
            found.append((None if is_json else loader.construct_document(node), places, line))
        return found
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if is_json:
            return found  # JSON that YAML cannot read: the problems are named without lines
        mark = getattr(error, "problem_mark", None)
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


def several(name: str, line: int) -> Invalid:
    """What is told of a file that would be more than one job."""
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
    most: int,
) -> None:
    """Notes the place of each key and of each item, at most so many. Aliases are walked through as often as they are used, so that few lines
    may stand for very many values: beyond the bound the file is refused."""
    import yaml

    places.setdefault(path, _place(node))
    if len(places) > most:
        refuse_too_many(places[path])
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _walk(item, f"{path}.{number}" if path else str(number), places, refuse_twice, refuse_too_many, most)
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
            _walk(value, inner, places, refuse_twice, refuse_too_many, most)


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
