"""What the operator does at the command line about nodes, and to look things up; safe beside a marketplace that runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from torg_marketplace.app import open_beside
from torg_marketplace.flow.operate import inspect_anything, newest_slashes, resume_node, suspend_node
from torg_marketplace.flow.slash import cancel_slash
from torg_marketplace.settings import Settings
from torg_protocol.ids import NodeId

COMMANDS = {
    "node-suspend": "give a node no new leases; with --stop also end those that it runs, whose jobs go elsewhere",
    "node-resume": "take that back",
    "slashes": "what is taken of nodes' collaterals after failed audits, newest first",
    "slash-cancel": "take a slash back, within the day before it is executed",
    "inspect": "everything that is known of a job, a lease or a node, with its newest events",
}


def add_options(name: str, command: argparse.ArgumentParser) -> None:
    if name == "slashes":
        return
    of = {"inspect": "job_..., lease_... or a node's address", "slash-cancel": "slash_..."}
    command.add_argument("id", help=of.get(name, "the node's address"))
    if name != "inspect":
        command.add_argument("--because", required=True, help="why; it goes into the node's history")
    if name == "node-suspend":
        command.add_argument(
            "--stop", action="store_true", help="leases end with a checkpoint, their jobs are queued again"
        )


async def run_node_command(arguments: argparse.Namespace, settings: Settings, say: Callable[[str], None]) -> int:
    """Answers with JSON. Raises TorgError."""
    async with open_beside(settings, asks_chain=arguments.command == "slash-cancel") as edge:
        market, node_id = edge.market, NodeId(getattr(arguments, "id", ""))
        answer: dict[str, Any]
        match arguments.command:
            case "slashes":
                async with market.reading() as unit:
                    answer = {"slashes": await newest_slashes(unit)}
            case "slash-cancel":
                await cancel_slash(market, arguments.id, because=arguments.because)
                answer = {"slash": arguments.id, "state": "cancelled"}
            case "node-suspend":
                async with market.transaction() as unit:
                    answer = await suspend_node(unit, node_id, because=arguments.because, stop=arguments.stop)
            case "node-resume":
                async with market.transaction() as unit:
                    answer = await resume_node(unit, node_id, because=arguments.because)
            case _:
                async with market.reading() as unit:
                    answer = await inspect_anything(unit, arguments.id)
    say(json.dumps(answer, indent=2, default=str))
    return 0
