"""What the operator does at the command line about backups, and to see whether a job's history is whole."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from torg_marketplace.app import database_url, open_beside
from torg_marketplace.flow.operate import replay_events
from torg_marketplace.flow.reconcile import reconcile
from torg_marketplace.flow.recover import recover
from torg_marketplace.settings import Settings
from torg_marketplace.storage.backup import back_up, restore

COMMANDS = {
    "backup": "write the database as it is now to a file; safe beside a marketplace that runs",
    "restore": "put a backup in the database's place; stop the marketplace first, and run recover afterwards",
    "recover": "after a restore: book what the chain did since the backup, and compare",
    "replay-events": "a job's states again from its events, compared with what is stored",
}


def add_options(name: str, command: argparse.ArgumentParser) -> None:
    match name:
        case "backup" | "restore":
            command.add_argument("file", type=Path)
        case "replay-events":
            command.add_argument("job", help="job_...")
        case _:
            pass


def options_of(command: str) -> frozenset[str]:
    """Names of its arguments that are no settings of the process."""
    return frozenset({"file", "job"}) if command in COMMANDS else frozenset()


async def run_backup_command(arguments: argparse.Namespace, settings: Settings, say: Callable[[str], None]) -> int:
    """Answers with JSON. 1: books and chain differ after `recover`, or events and states at `replay-events`. Raises TorgError."""
    match arguments.command:
        case "backup":
            await asyncio.to_thread(back_up, database_url(settings), arguments.file)
            say(json.dumps({"backup": str(arguments.file), "bytes": arguments.file.stat().st_size}))
            return 0
        case "restore":
            aside = await asyncio.to_thread(restore, database_url(settings), arguments.file)
            say(json.dumps({"restored": str(arguments.file), "former": None if aside is None else str(aside)}))
            return 0
        case "recover":
            async with open_beside(settings, asks_chain=True) as edge:
                booked = await recover(edge.market)
                differences = await reconcile(edge.market)
            answer = {"booked": [asdict(item) for item in booked], "differences": list(map(str, differences))}
            say(json.dumps(answer, indent=2))
            return 1 if differences else 0
        case _:
            async with open_beside(settings, asks_chain=False) as edge, edge.market.reading() as unit:
                replayed = await replay_events(unit, arguments.job)
            say(json.dumps(replayed, indent=2))
            return 1 if replayed["problems"] else 0
