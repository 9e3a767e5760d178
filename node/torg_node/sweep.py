"""Tokens that the node's own key holds go to a cold wallet. For nodes without a `payout_address` elsewhere; safe to run by a timer."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable

from solders.keypair import Keypair
from solders.pubkey import Pubkey

from torg_chain.rpc import ChainClient
from torg_chain.vault_operations import send_tokens
from torg_chain.wallet import load_keypair
from torg_node.settings import Settings, load_settings
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.money import format_amount, parse_amount

_FEES_LAMPORTS = 2_100_000  # a token account's rent and a transaction


def sweep_command(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    settings = load_settings(arguments.data)
    decimals = settings.network.decimals
    least = parse_amount(arguments.at_least, decimals, field="at-least")
    amount, signature = asyncio.run(sweep(settings, load_keypair(settings.key_path), arguments.to, least))
    if arguments.json:
        say(json.dumps({"amount": amount, "signature": signature}))
    elif signature is None:
        say(f"nothing swept: {format_amount(amount, decimals)} is there")
    else:
        say(f"{format_amount(amount, decimals)} sent to {arguments.to}: {signature}")
    return 0


async def sweep(settings: Settings, keypair: Keypair, to: str, least: int) -> tuple[int, str | None]:
    """What was sent, and by which finalized transaction; None: what is there is not worth it. Raises Invalid `wallet_invalid`,
    Conflict `fees_missing`, and what the chain raises: then look before trying again, since it may have landed."""
    try:
        target = Pubkey.from_string(to)
    except ValueError:
        raise Invalid("not a wallet's address: base58, 32 bytes", code="wallet_invalid", field="to", value=to) from None
    if target == keypair.pubkey():
        raise Invalid("that is this node's own key", code="wallet_invalid", field="to", value=to)
    async with ChainClient(settings.network.rpc_url) as chain:
        amount = await chain.token_balance(keypair.pubkey(), settings.network.mint_pubkey)
        if amount == 0 or amount < least:
            return amount, None
        lamports = await chain.lamports(keypair.pubkey())
        if lamports < _FEES_LAMPORTS:
            raise Conflict(
                f"the node's key holds {format_amount(lamports, 9)} SOL, too little for a transaction's fees",
                code="fees_missing",
                field="lamports",
                value=lamports,
                hint=f"send {format_amount(_FEES_LAMPORTS, 9)} SOL to {keypair.pubkey()}",
            )
        return amount, await send_tokens(chain, settings.network, owner=keypair, to=target, amount=amount)
