"""Cuts results out of a task's kept log. Patterns come from strangers: each has a second, and then gives no value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import regex

from torg_protocol.results import MAX_VALUE_CHARS, MAX_VALUES, Result, ResultValue

_TIMEOUT_S = 1.0  # of one pattern
_LOG_BYTES = 4 << 20  # the end of each stream
_ALL_CHARS = 64 << 10  # of all values of a task; they travel in one message


def results_of(wanted: Mapping[str, Result], streams: Mapping[str, Path]) -> tuple[dict[str, ResultValue], list[str]]:
    """The values by key, and in words what went wrong with others. Slow: call it in a thread."""
    values: dict[str, ResultValue] = {}
    problems: list[str] = []
    texts = {name: _end_of(path) for name, path in streams.items()}
    left = _ALL_CHARS
    for key, result in wanted.items():
        try:
            found = _found(result, "".join(texts[name] for name in result.streams))
        except TimeoutError:
            problems.append(f"result {key}: its pattern takes longer than {_TIMEOUT_S:g} s")
            continue
        left -= sum(map(len, found))
        if left < 0:
            problems.append(f"result {key}: more than {_ALL_CHARS} characters in all")
            break
        if found:
            values[key] = found[0] if len(found) == 1 else tuple(found)
    return values, problems


def _found(result: Result, text: str) -> list[str]:
    pattern = regex.compile(result.regex, regex.MULTILINE)
    matches: list[str] = []
    for match in pattern.finditer(text, timeout=_TIMEOUT_S, concurrent=True):
        value = match.group(1) if pattern.groups else match.group()
        if value is not None:
            matches.append(value[:MAX_VALUE_CHARS])
        if len(matches) == MAX_VALUES:
            break
    return matches


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
