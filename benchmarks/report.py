"""How every benchmark ends: a table for people, and as the last line `RESULT {json}` for machines.

A target is a bound that a figure must keep; one that it does not keep is printed as missed, and the exit status is 1.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """`bound` with `direction` "most" or "least" is the target; without a bound the figure is for information."""

    name: str
    value: float
    unit: str
    bound: float | None = None
    direction: Literal["most", "least"] = "most"

    @property
    def is_reached(self) -> bool:
        if self.bound is None:
            return True
        return self.value <= self.bound if self.direction == "most" else self.value >= self.bound

    @property
    def target(self) -> str:
        return "" if self.bound is None else f"at {self.direction} {self.bound:g}"


def conclude(benchmark: str, figures: Sequence[Figure], *, notes: Sequence[str] = ()) -> int:
    """Prints table, notes and RESULT line; returns the exit status."""
    table = Table(title=f"{benchmark} ({platform.machine()}, Python {platform.python_version()})", title_justify="left")
    for column in ("figure", "value", "unit", "target", ""):
        table.add_column(column, justify="right" if column == "value" else "left")
    for figure in figures:
        verdict = "" if figure.bound is None else "reached" if figure.is_reached else "MISSED"
        table.add_row(figure.name, f"{figure.value:,.3f}", figure.unit, figure.target, verdict)
    console = Console(width=120)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    ok = all(figure.is_reached for figure in figures)
    result = {
        "benchmark": benchmark,
        "figures": {figure.name: round(figure.value, 6) for figure in figures},
        "targets": {figure.name: figure.target for figure in figures if figure.bound is not None},
        "ok": ok,
    }
    print("RESULT " + json.dumps(result))
    return 0 if ok else 1
