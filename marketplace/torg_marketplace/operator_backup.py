"""What the operator does at the command line about the database: its schema, backups, and whether a job's history is whole."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

from torg_marketplace.flow.operate import replay_events
from torg_marketplace.flow.reconcile import reconcile
from torg_marketplace.flow.recover import recover
from torg_marketplace.opening import database_url, open_beside
from torg_marketplace.settings import Settings
from torg_marketplace.storage.backup import back_up, restore
from torg_marketplace.storage.engine import create_engine
from torg_marketplace.storage.schema import migrate


async def run_command(arguments: argparse.Namespace, settings: Settings, say: Callable[[str], None]) -> int:
    """Answers with JSON. 1: books and chain differ after `recover`, or events and states at `replay-events`. Raises TorgError."""
    match arguments.command:
        case "migrate":
            say(json.dumps(await _migrate(settings, arguments.to)))
            return 0
        case "backup":
            with _interruptible() as settled:
                back_up(database_url(settings), arguments.file, settled)
            say(json.dumps({"backup": str(arguments.file), "bytes": arguments.file.stat().st_size}))
            return 0
        case "restore":
            with _interruptible() as settled:
                aside = restore(database_url(settings), arguments.file, settled)
            say(json.dumps({"restored": str(arguments.file), "former": None if aside is None else str(aside)}))
            return 0
        case "recover":
            async with open_beside(settings, asks_chain=True) as market:
                booked = await recover(market)
                differences = await reconcile(market)
            answer = {"booked": [asdict(item) for item in booked], "differences": list(map(str, differences))}
            say(json.dumps(answer, indent=2))
            return 1 if differences else 0
        case _:
            async with open_beside(settings, asks_chain=False) as market, market.reading() as unit:
                replayed = await replay_events(unit, arguments.job)
            say(json.dumps(replayed, indent=2))
            return 1 if replayed["problems"] else 0


@contextmanager
def _interruptible() -> Iterator[Callable[[], object]]:
    """Ctrl-C is a KeyboardInterrupt right where the work is, until what is given is called: then nothing is taken back any more, and it is ignored.
    asyncio's own way would let the work go on to its end, and say that it was interrupted."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGINT, before)


async def _migrate(settings: Settings, revision: str) -> dict[str, str | None]:
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = create_engine(database_url(settings))
    try:
        before, after = await migrate(engine, revision)
    finally:
        await engine.dispose()
    return {"from": before, "to": after}
