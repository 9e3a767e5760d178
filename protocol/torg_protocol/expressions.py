"""`${{ ... }}` in a task: what is known only when it starts. Pure.

    ${{ tasks.NAME.results.KEY }}    what an earlier task printed (see torg_protocol.results)
    ${{ job.id }}  ${{ job.attempt }}  ${{ node.id }}  ${{ client.id }}

The form is that of CI files and not `${...}`, which belongs to the shell. In a list, an element that is one expression becomes as many
elements as the result has values; inside of a longer text they are joined by a space.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Value = str | Sequence[str]
_EXPRESSION = re.compile(r"\$\{\{\s*([^{}]*?)\s*\}\}")
RESULT_NAME = r"[A-Za-z_][A-Za-z0-9_-]{0,62}"
_RESULT = re.compile(rf"tasks\.(?P<task>[a-z0-9][a-z0-9._-]*)\.results\.(?P<key>{RESULT_NAME})")
FACTS = ("job.id", "job.attempt", "node.id", "client.id")


class Unresolved(ValueError):
    """An expression has no value: its task did not print it."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`task` and `key` of a result, or only `fact`."""

    text: str
    task: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        return self.text


def references(text: str) -> list[Reference]:
    """Raises ValueError for an expression that can never have a value."""
    return [_reference(match.group(1)) for match in _EXPRESSION.finditer(text)]


def fill_in(text: str, facts: Mapping[str, str], results: Mapping[str, Mapping[str, Value]]) -> str:
    """Raises Unresolved."""
    return _EXPRESSION.sub(lambda match: _joined(_value(_reference(match.group(1)), facts, results)), text)


def fill_in_list(
    items: Sequence[str], facts: Mapping[str, str], results: Mapping[str, Mapping[str, Value]]
) -> tuple[str, ...]:
    """Raises Unresolved. A list that stands alone in its element is spliced in."""
    filled: list[str] = []
    for item in items:
        whole = _EXPRESSION.fullmatch(item)
        value = _value(_reference(whole.group(1)), facts, results) if whole else fill_in(item, facts, results)
        filled += [value] if isinstance(value, str) else list(value)
    return tuple(filled)


def _reference(inside: str) -> Reference:
    if inside in FACTS:
        return Reference(inside)
    match = _RESULT.fullmatch(inside)
    if match is None:
        raise ValueError(f'"${{{{ {inside} }}}}" is none of: tasks.NAME.results.KEY, {", ".join(FACTS)}')
    return Reference(inside, match["task"], match["key"])


def _value(reference: Reference, facts: Mapping[str, str], results: Mapping[str, Mapping[str, Value]]) -> Value:
    if reference.task is None:
        return facts[reference.text]
    found = results.get(reference.task, {}).get(reference.key or "")
    if found is None or (not isinstance(found, str) and not found):
        raise Unresolved(f"{reference} has no value: the task did not print it")
    return found


def _joined(value: Value) -> str:
    return value if isinstance(value, str) else " ".join(value)
