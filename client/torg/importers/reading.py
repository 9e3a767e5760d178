"""Reading a foreign document key by key: what is taken, what is dropped and why, and what nobody knows, which is a problem.

For formats whose schema is wide and of which only a part matters here; a key that is neither taken nor dropped by name is refused,
so that nothing vanishes. Problems are collected, and raised together by `Reading.refuse`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torg.importers.strict import problem, refusal
from torg.importers.translation import Drops

_MOST_NAMED = 20  # keys in a hint


@dataclass(slots=True)
class Reading:
    """What one document gives: problems and drops, from all of its parts."""

    title: str
    problems: list[dict[str, Any]] = field(default_factory=list)
    drops: Drops = field(default_factory=Drops)

    def refuse(self) -> None:
        """Raises Invalid (code "spec_invalid") if there was a problem."""
        if self.problems:
            raise refusal(self.title, self.problems)

    def wrong(self, path: str, message: str, value: object = None, hint: str | None = None) -> None:
        shown = value if isinstance(value, str | int | float | bool) else None
        self.problems.append(problem(path or "$", message, shown, hint))


class Part:
    """One mapping of the document. Every getter marks its key as taken; a value of another kind is a problem, and read as absent."""

    def __init__(self, reading: Reading, value: object, path: str = "") -> None:
        self.reading = reading
        self.path = path
        self._taken: set[str] = set()
        if not isinstance(value, Mapping):
            reading.wrong(path, "a mapping is expected", value)
            value = {}
        self.value: Mapping[str, Any] = value

    def at(self, key: str | int) -> str:
        return f"{self.path}.{key}" if self.path else str(key)

    def has(self, key: str) -> bool:
        return self.value.get(key) is not None

    def raw(self, key: str) -> Any:
        self._taken.add(key)
        return self.value.get(key)

    def text(self, key: str, *, needed: bool = False) -> str | None:
        value = self.raw(key)
        if value is None and needed:
            self.reading.wrong(self.at(key), "is missing")
        text: str | None = self._kind(key, value, str, "a text is expected")
        return text

    def whole(self, key: str) -> int | None:
        value = self.raw(key)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        number: int | None = self._kind(key, value, int, "a whole number is expected")
        return number

    def flag(self, key: str) -> bool | None:
        said: bool | None = self._kind(key, self.raw(key), bool, "true or false is expected")
        return said

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of texts; numbers and yes/no in it are read as texts, as YAML's authors mean them."""
        items = self._kind(key, self.raw(key), list, "a list is expected")
        return (
            None
            if items is None
            else tuple(self._scalar(self.at(key), number, item) for number, item in enumerate(items))
        )

    def items(self, key: str) -> list[Any]:
        """Of a list, whatever they are."""
        items: list[Any] = self._kind(key, self.raw(key), list, "a list is expected") or []
        return items

    def part(self, key: str) -> Part:
        """An empty one when the key is absent."""
        value = self.raw(key)
        return Part(self.reading, {} if value is None else value, self.at(key))

    def parts(self, key: str) -> Iterator[Part]:
        """Of a list of mappings."""
        for number, item in enumerate(self._kind(key, self.raw(key), list, "a list is expected") or ()):
            yield Part(self.reading, item, f"{self.at(key)}.{number}")

    def named(self, key: str) -> Iterator[tuple[str, Part]]:
        """Of a mapping of mappings."""
        for name, value in (self._kind(key, self.raw(key), dict, "a mapping is expected") or {}).items():
            yield str(name), Part(self.reading, {} if value is None else value, f"{self.at(key)}.{name}")

    def lose(self, why: str, *keys: str) -> None:
        for key in keys:
            if (value := self.raw(key)) not in (None, [], {}, False, ""):
                self.reading.drops.lose(self.at(key), value, why)

    def remark(self, why: str, *keys: str) -> None:
        for key in keys:
            if (value := self.raw(key)) not in (None, [], {}, ""):
                self.reading.drops.remark(self.at(key), value, why)

    def finish(self) -> None:
        """Every key that was not taken is a problem; those with x- in front are remarks."""
        for key in map(str, self.value):
            if key in self._taken:
                continue
            if key.startswith("x-"):
                self.reading.drops.remark(self.at(key), self.value[key], "an extension")
                continue
            close = difflib.get_close_matches(key, self._taken, n=1)
            known = ", ".join(sorted(self._taken)) if len(self._taken) <= _MOST_NAMED else ""
            hint = f'did you mean "{close[0]}"?' if close else f"known here: {known}" if known else None
            self.reading.wrong(self.at(key), "unknown key", self.value[key], hint)

    def _scalar(self, path: str, number: int, item: object) -> str:
        if isinstance(item, bool):
            return str(item).lower()
        if isinstance(item, str | int | float):
            return str(item)
        self.reading.wrong(f"{path}.{number}", "a text is expected", item)
        return ""

    def _kind(self, key: str, value: Any, kind: type, message: str) -> Any:
        if value is None or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
            return value
        self.reading.wrong(self.at(key), message, value)
        return None


def pairs_of(
    part: Part, key: str, *, bare: str | None = None, shell: Callable[[str], str | None] = lambda _name: None
) -> dict[str, str]:
    """Environment variables: a mapping, or a list of NAME=VALUE. A name without a value has that of `shell`, else `bare`; else it
    is lost."""
    value = part.raw(key)
    if value is None:
        return {}
    out: dict[str, str] = {}
    if isinstance(value, Mapping):
        items: Sequence[tuple[str, Any, str]] = [
            (str(name), one, f"{part.at(key)}.{name}") for name, one in value.items()
        ]
    elif isinstance(value, list):
        items = []
        for number, text in enumerate(value):
            name, equals, rest = str(text).partition("=")
            items.append((name, rest if equals else None, f"{part.at(key)}.{number}"))
    else:
        part.reading.wrong(part.at(key), "a mapping or a list of NAME=VALUE is expected", value)
        return {}
    for name, one, path in items:
        if one is None and (found := shell(name)) is not None:
            out[name] = found
            part.reading.drops.remark(path, name, "its value is that of this shell; it is open to the node")
        elif one is None and bare is not None:
            out[name] = bare
        elif one is None:
            part.reading.drops.lose(
                path,
                name,
                "its value comes from the shell of whoever submits, and is not set here: set it, or write it down",
            )
        else:
            out[name] = str(one).lower() if isinstance(one, bool) else str(one)
    return out
