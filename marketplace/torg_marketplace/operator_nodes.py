"""What the operator does at the command line about nodes, and to look things up; safe beside a marketplace that runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from torg_marketplace.flow.operate import every_node, inspect_anything, newest_slashes, resume_node, suspend_node
from torg_marketplace.flow.slash import cancel_slash
from torg_marketplace.opening import open_beside
from torg_marketplace.settings import Settings
from torg_protocol.ids import NodeId


async def run_command(arguments: argparse.Namespace, settings: Settings, say: Callable[[str], None]) -> int:
    """Answers with JSON. Raises TorgError."""
    async with open_beside(settings, asks_chain=arguments.command == "slash-cancel") as market:
        node_id = NodeId(getattr(arguments, "id", ""))
        answer: dict[str, Any]
        match arguments.command:
            case "nodes":
                async with market.reading() as unit:
                    answer = {"nodes": await every_node(unit)}
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
