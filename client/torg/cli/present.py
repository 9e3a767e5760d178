"""How values look to people: money with its unit, durations, ages, plain tables. Nothing here is parsed by anybody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torg.cli.terminal import cell
from torg_protocol.errors import Invalid
from torg_protocol.money import format_amount, parse_amount

if TYPE_CHECKING:
    from torg_protocol.api import MarketInfo

_TEST_MINT = "TorgTestUSD11111111111111111111111111111111"


@dataclass(frozen=True, slots=True)
class Coin:
    """The market's token: how its base units are written."""

    decimals: int
    symbol: str

    def text(self, amount: int | None) -> str:
        return "-" if amount is None else f"{format_amount(amount, self.decimals)} {self.symbol}"

    def parse(self, text: str, field: str) -> int:
        """Base units of what the user typed. Raises Invalid amount_invalid, amount_too_precise, amount_too_large."""
        amount = parse_amount(text, self.decimals, field=field)
        if amount == 0:
            raise Invalid("the amount must be more than zero", code="amount_invalid", field=field, value=text)
        return amount


def coin(market: MarketInfo) -> Coin:
    return coin_of(market.chain.mint, market.chain.decimals)


def coin_of(mint: str, decimals: int) -> Coin:
    return Coin(decimals, "tUSD" if mint == _TEST_MINT else f"tokens of {mint[:6]}…")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain columns: readable in a terminal, in a pipe and in a bug report."""
    lines = [[cell(item) for item in line] for line in (headings, *rows)]
    widths = [max(len(item) for item in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(item.ljust(width) for item, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def narrow_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, spare: Sequence[str], cut: str
) -> tuple[str, tuple[str, ...]]:
    """A table that fits: without columns of `spare`, in this order, as far as it must; then with the column `cut` cut short. And what was left out."""
    left_out: list[str] = []
    for name in ("", *spare):
        left_out += [name] if name else []
        kept = [at for at, heading in enumerate(headings) if heading not in left_out]
        shown = [[cell(line[at]) for at in kept] for line in (headings, *rows)]
        over = len(max(table(shown[0], shown[1:]).splitlines(), key=len)) - (width or 0)
        if width is None or over <= 0:
            return table(shown[0], shown[1:]), tuple(left_out)
    at = shown[0].index(cut)
    most = max(6, max(len(line[at]) for line in shown) - over)
    for line in shown:
        line[at] = line[at] if len(line[at]) <= most else line[at][: most - 1] + "…"
    return table(shown[0], shown[1:]), tuple(left_out)


def noted_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, spare: Sequence[str], cut: str
) -> str:
    """Where all of it is too wide, the last column is a line below each that has something there; then as `narrow_table`."""
    whole = table(headings, rows)
    if width is None or max(map(len, whole.splitlines())) <= width:
        return whole
    head, *lines = narrow_table(headings[:-1], [row[:-1] for row in rows], width, spare, cut)[0].splitlines()
    notes = [cell(f"  {row[-1]}")[:width] if row[-1] else None for row in rows]
    return "\n".join([head, *(part for pair in zip(lines, notes, strict=True) for part in pair if part is not None)])


def not_shown(left_out: Sequence[str], width: int | None, everything: str) -> str:
    """What `narrow_table` had no room for, and the command that shows it."""
    return f"not shown in {width} columns: {', '.join(left_out)}\nall of it:  {everything} | cat"


def duration(ms: int | None) -> str:
    if ms is None:
        return "-"
    if ms < 1000:
        return f"{ms} ms"
    if ms < 90_000:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(ms // 1000, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def age(ms: int) -> str:
    """One unit, rounded down: enough for a list."""
    for name, unit_ms in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000)):
        if ms >= unit_ms:
            return f"{ms // unit_ms} {name}"
    return f"{max(0, ms) // 1000} s"


def size(size_bytes: int) -> str:
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def ports_line(ports: Iterable[Mapping[str, Any]]) -> str:
    """`web 8888 ready, 6006 not ready (nobody listens on it)`"""
    said = []
    for port in ports:
        name = f"{port['name']} " if port.get("name") else ""
        why = f" ({port['detail']})" if port.get("detail") else ""
        said.append(f"{name}{port['port']} {'ready' if port['ready'] else 'not ready'}{why}")
    return "ports: " + ", ".join(said)
