"""What the operator does at the command line about proofs of hardware; safe beside a marketplace that runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from torg_marketplace.flow.judge_proof import lift_ban, proofs_of, replay
from torg_marketplace.opening import open_beside
from torg_marketplace.settings import Settings


async def run_command(arguments: argparse.Namespace, settings: Settings, say: Callable[[str], None]) -> int:
    """`replay` exits with 1 when the kept evidence gives another finding than the one that counted. Raises TorgError."""
    async with open_beside(settings, asks_chain=False) as market:
        match arguments.action:
            case "replay":
                then, now = await replay(market, arguments.id)
                found = {"found": then.model_dump(), "replayed": now.model_dump(), "same": then == now}
                say(json.dumps(found, indent=2))
                return 0 if then == now else 1
            case "list":
                say(json.dumps(await proofs_of(market, arguments.id), indent=2))
            case _:
                stays = await lift_ban(market, arguments.id)
                say(f"{arguments.id} is unproven; " + (stays or "it may take work again once it proves its hardware"))
    return 0
