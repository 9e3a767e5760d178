"""What the operator does at the command line about evidence; safe beside a marketplace that runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict

from torg_marketplace.flow.evidence import list_evidence, replay_evidence, show_evidence
from torg_marketplace.opening import open_beside
from torg_marketplace.settings import Settings


async def run_command(arguments: argparse.Namespace, settings: Settings, say: Callable[[str], None]) -> int:
    """Answers with JSON. Raises TorgError."""
    async with open_beside(settings, asks_chain=False) as market:
        if arguments.command == "evidence-replay":
            again = await replay_evidence(market, arguments.id)
            say(json.dumps({**asdict(again), "same": again.same}, indent=2))
            return 0 if again.same else 1
        async with market.reading() as unit:
            if arguments.command == "evidence-show":
                say(json.dumps(await show_evidence(unit, arguments.id), indent=2, default=str))
            else:
                say(json.dumps(await list_evidence(unit, about=arguments.about, limit=arguments.limit), indent=2))
    return 0
