"""What every command needs: the client made from the global options, and one way to print."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import click

from torg.client import AsyncClient
from torg.config import ClientConfig, load_config
from torg_protocol.errors import Invalid, NotFound
from torg_protocol.money import format_amount, parse_amount


class Session:
    """The global options of this invocation."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.as_json: bool = options["json"]
        home = options["home"]
        self.config: ClientConfig = load_config(Path(home) if home else None, options["marketplace"])

    def client(self) -> AbstractAsyncContextManager[AsyncClient]:
        if not self.config.key_path.exists():
            raise NotFound(
                "you have no wallet yet",
                code="no_wallet",
                field="home",
                value=str(self.config.home),
                hint="make one: torg wallet new",
            )
        return AsyncClient(self.config)

    def show(self, value: Any, text: str) -> None:
        """Prints `value` as JSON or `text` for people."""
        click.echo(json.dumps(value) if self.as_json else text)


def command(function: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs an async command. With --json anywhere on the line (also after the command's name) output is JSON."""

    @click.option("--json", "json_here", is_flag=True, help="Machine-readable output.")
    @click.pass_obj
    @functools.wraps(function)
    def run(options: dict[str, Any], /, *args: Any, json_here: bool, **kwargs: Any) -> None:
        session = Session({**options, "json": options["json"] or json_here})
        asyncio.run(function(session, *args, **kwargs))

    return run


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain columns: readable in a terminal, in a pipe and in a bug report."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(headings, *rows, strict=True)]
    lines = [headings, *rows]
    return "\n".join(
        "  ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def money(amount: int | None, decimals: int) -> str:
    return "-" if amount is None else f"{format_amount(amount, decimals)} tUSD"


def parse_money(text: str, decimals: int, field: str) -> int:
    amount = parse_amount(text, decimals, field=field)
    if amount == 0:
        raise Invalid("the amount must be more than zero", code="amount_invalid", field=field, value=text)
    return amount


def duration(ms: int | None) -> str:
    if ms is None:
        return "-"
    seconds = ms / 1000
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} m {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} m"
