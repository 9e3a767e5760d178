"""What the owner stakes behind the node's work: audits become rarer with it, and a failed one takes of it. `torg-node stake`, `unstake`.

The collateral is opened by any wallet of the owner's, which need not stay on this machine, and names the node as its session key.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from solders.pubkey import Pubkey

from torg_chain.rpc import ChainClient
from torg_chain.vault import VaultKind, VaultState
from torg_chain.vault_operations import check_wallet_has, deposit, finish_close, open_vault, start_close
from torg_chain.wallet import load_keypair
from torg_node.journal import Journal
from torg_node.settings import Settings, load_settings
from torg_protocol.errors import Conflict
from torg_protocol.money import format_amount, parse_amount

COLLATERAL_FACT = "collateral"
GRACE_S = 7 * 86_400  # from unstake until the owner has it back; a slash needs 27 hours of it


def stake_command(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    settings = load_settings(arguments.data)
    decimals = settings.network.decimals
    journal = Journal(settings.journal_path)
    try:
        if arguments.command == "stake":
            amount = parse_amount(arguments.amount, decimals, field="amount")
            state = asyncio.run(stake(settings, journal, arguments.wallet or settings.key_path, amount))
            words = (
                f"{format_amount(state.balance, decimals)} at stake in {state.address}; restart the node to offer it"
            )
        else:
            state = asyncio.run(unstake(settings, journal, arguments.wallet or settings.key_path))
            words = (
                "the rest is back" if state.balance == 0 else f"closing: run this again after {_moment(state.close_at)}"
            )
    finally:
        journal.close()
    if arguments.json:
        say(json.dumps({"collateral": str(state.address), "balance": state.balance, "close_at_s": state.close_at}))
    else:
        say(words)
    return 0


def _moment(at_s: int) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M} UTC"


async def stake(settings: Settings, journal: Journal, wallet: Path, amount: int) -> VaultState:
    """Opens the collateral, or adds to it. Noted before anything is sent, so that nothing is lost when this is cut off; safe to
    repeat then. Raises Conflict `wallet_underfunded`, `wallet_without_sol`, and what the chain raises."""
    owner, node = load_keypair(wallet), load_keypair(settings.key_path).pubkey()
    async with ChainClient(settings.network.rpc_url) as chain:
        known = journal.fact(COLLATERAL_FACT)
        state = await chain.vault(known) if known else None
        opens = VaultKind.COLLATERAL if state is None or state.close_at else None
        await check_wallet_has(chain, settings.network, owner.pubkey(), amount, opens=opens)
        if state is None or state.close_at:
            _, address = await open_vault(
                chain,
                settings.network,
                depositor=owner,
                signer=node,
                grace_s=GRACE_S,
                deposit=amount,
                kind=VaultKind.COLLATERAL,
                before_sending=lambda _, vault: journal.set_fact(COLLATERAL_FACT, str(vault)),
            )
        else:
            address = state.address
            await deposit(chain, settings.network, depositor=owner, vault=address, amount=amount)
        return await chain.existing_vault(address)


async def unstake(settings: Settings, journal: Journal, wallet: Path) -> VaultState:
    """Asks for the rest, and takes it once the grace is over. Raises Conflict `nothing_staked`, and what the chain raises."""
    owner, known = load_keypair(wallet), journal.fact(COLLATERAL_FACT)
    if not known:
        raise Conflict("this node has nothing at stake", code="nothing_staked", hint="torg-node stake AMOUNT")
    async with ChainClient(settings.network.rpc_url) as chain:
        state = await chain.vault(known)
        if state is None:
            raise Conflict(
                "what was to be staked never came to be",
                code="nothing_staked",
                field="vault",
                value=known,
                hint="if `torg-node stake` was only now, wait a minute; else: torg-node stake AMOUNT",
            )
        if not state.close_at:
            await start_close(chain, settings.network, depositor=owner, vault=state.address)
            return await chain.existing_vault(known)
        if await chain.unix_time_s() < state.close_at:
            return state
        await finish_close(chain, settings.network, depositor=owner, vault=Pubkey.from_string(known))
        journal.set_fact(COLLATERAL_FACT, "")
        return replace(state, balance=0)
