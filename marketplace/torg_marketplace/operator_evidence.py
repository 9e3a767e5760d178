"""What the operator does at the command line about evidence; safe beside a marketplace that runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict

from torg_marketplace.app import open_beside
from torg_marketplace.flow.evidence import list_evidence, replay_evidence, show_evidence
from torg_marketplace.settings import Settings

COMMANDS = {
    "evidence": "what verdicts and proofs of hardware rest on, newest first",
    "evidence-show": "all that is kept of one",
    "evidence-replay": "judge one again from what is kept; exit code 1 when that gives something else",
}


def add_options(name: str, command: argparse.ArgumentParser) -> None:
    if name == "evidence":
        command.add_argument("--about", help="a job, a lease or a node; default: all")
        command.add_argument("--limit", type=int, default=50, help="default: 50")
    else:
        command.add_argument("id", help="check_..., lease_... or proof_...")


def options_of(command: str) -> frozenset[str]:
    """Names of its arguments that are no settings of the process."""
    return frozenset({"about", "limit", "id"}) if command in COMMANDS else frozenset()


async def run_evidence_command(arguments: argparse.Namespace, settings: Settings, say: Callable[[str], None]) -> int:
    """Answers with JSON. Raises TorgError."""
    async with open_beside(settings, asks_chain=False) as edge:
        if arguments.command == "evidence-replay":
            again = await replay_evidence(edge.market, arguments.id)
            say(json.dumps({**asdict(again), "same": again.same}, indent=2))
            return 0 if again.same else 1
        async with edge.market.reading() as unit:
            if arguments.command == "evidence-show":
                say(json.dumps(await show_evidence(unit, arguments.id), indent=2, default=str))
            else:
                say(json.dumps(await list_evidence(unit, about=arguments.about, limit=arguments.limit), indent=2))
    return 0
