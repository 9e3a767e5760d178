"""What the operator does at the command line when books and chain are to be compared, or have differed; safe beside a marketplace that runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict

from torg_marketplace.flow.reconcile import blocked_vaults, lost_payouts, reconcile, unblock, watch_fee_payer
from torg_marketplace.flow.unit import Market
from torg_marketplace.opening import open_beside
from torg_marketplace.settings import Settings
from torg_protocol.money import format_amount


async def run_command(arguments: argparse.Namespace, settings: Settings, say: Callable[[str], None]) -> int:
    """`reconcile` exits with 0 when books and chain agree to the unit. Raises TorgError."""
    async with open_beside(settings, asks_chain=True) as market:
        if arguments.command == "reconcile":
            return await _reconcile(market, say, as_json=arguments.json)
        await unblock(market, arguments.vault, because=arguments.because)
    say(f"payouts of {arguments.vault} go on")
    return 0


async def _reconcile(market: Market, say: Callable[[str], None], *, as_json: bool) -> int:
    differences = await reconcile(market)
    lamports = await watch_fee_payer(market)
    stopped, lost = await blocked_vaults(market), await lost_payouts(market)
    if as_json:
        found = [asdict(item) for item in differences]
        say(json.dumps({"differences": found, "stopped": stopped, "lost": lost, "fee_payer_lamports": lamports}))
    else:
        lines = [str(difference) for difference in differences]
        lines += [f"payouts of {vault} are stopped: {why}" for vault, why in stopped.items()]
        lines += [
            f"{format_amount(amount, market.network.decimals)} tokens were lost when {vault} was closed"
            for vault, amount in lost.items()
        ]
        lines.append(f"{len(differences)} differences; the fee payer holds {format_amount(lamports, 9)} SOL")
        say("\n".join(lines))
    return 1 if differences else 0
