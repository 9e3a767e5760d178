"""What the operator decides at the command line about cases: refunds, disputes, bans, reports of abuse. Safe beside a marketplace that runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from torg_marketplace.flow.bans import abuse_reports, ban, bans, check_subject, close_report, lift
from torg_marketplace.flow.disputes import all_disputes, decide_dispute
from torg_marketplace.flow.erase import erase_account
from torg_marketplace.flow.refunds import all_refunds, refund_lease
from torg_marketplace.flow.unit import Market
from torg_marketplace.opening import open_beside
from torg_marketplace.settings import Settings
from torg_marketplace.storage.models import LeaseRow
from torg_protocol.errors import Invalid, NotFound
from torg_protocol.ids import AccountId
from torg_protocol.money import parse_amount
from torg_protocol.refunds import RefundCause


async def run_command(arguments: argparse.Namespace, settings: Settings, say: Callable[[str], None]) -> int:
    """Answers with JSON. Raises TorgError."""
    async with open_beside(settings, asks_chain=False) as market:
        answer = await _COMMANDS[arguments.command](market, arguments)
    say(json.dumps(answer, indent=2, default=str))
    return 0


async def _refund(market: Market, arguments: argparse.Namespace) -> Any:
    async with market.transaction() as unit:
        lease = await unit.session.get(LeaseRow, arguments.lease)
        if lease is None:
            raise NotFound("no such lease", code="lease_unknown", field="lease", value=arguments.lease)
        amount = amount_of(arguments.amount, lease.amount, market.network.decimals)
        signed = await refund_lease(
            unit,
            arguments.lease,
            amount,
            RefundCause(arguments.cause),
            subject=arguments.subject,
            note=arguments.note,
        )
    return {**signed.wire(), "credit": signed.refund.credit}


async def _refunds(market: Market, arguments: argparse.Namespace) -> Any:
    del arguments
    async with market.reading() as unit:
        return [
            {
                "refund_id": row.refund_id,
                "cause": row.cause,
                "job_id": row.job_id,
                "lease_id": row.lease_id,
                "client": row.client,
                "node": row.node_id,
                "amount": row.amount,
                "from_node": row.from_node,
                "from_fees": row.from_fees,
                "outstanding": row.outstanding,
                "at_ms": row.at_ms,
                "note": row.signed["refund"]["note"],
            }
            for row in await all_refunds(unit)
        ]


async def _dispute(market: Market, arguments: argparse.Namespace) -> Any:
    if arguments.action == "list":
        async with market.reading() as unit:
            return [view.wire() for view in await all_disputes(unit)]
    share = (arguments.refund or "").removesuffix("%")
    if not share.isdigit():
        raise Invalid("say how much goes back", code="share_invalid", field="--refund", hint='"40%", or "0%" to reject')
    async with market.transaction() as unit:
        decided = await decide_dispute(unit, _wanted(arguments), share_percent=int(share), note=arguments.note)
    return decided.wire()


async def _abuse(market: Market, arguments: argparse.Namespace) -> Any:
    if arguments.action == "list":
        async with market.reading() as unit:
            return await abuse_reports(unit)
    async with market.transaction() as unit:
        return await close_report(unit, _wanted(arguments), note=arguments.note)


async def _ban(market: Market, arguments: argparse.Namespace) -> Any:
    async with market.transaction() as unit:
        return await ban(unit, arguments.kind, arguments.subject, because=arguments.because)


async def _unban(market: Market, arguments: argparse.Namespace) -> Any:
    async with market.transaction() as unit:
        return await lift(unit, arguments.kind, arguments.subject, because=arguments.because)


async def _bans(market: Market, arguments: argparse.Namespace) -> Any:
    del arguments
    async with market.reading() as unit:
        return await bans(unit)


async def _erase(market: Market, arguments: argparse.Namespace) -> Any:
    check_subject("wallet", arguments.account)  # a mistyped one has nothing either
    return (await erase_account(market, AccountId(arguments.account))).wire()


def _wanted(arguments: argparse.Namespace) -> str:
    if arguments.id is None:
        raise Invalid("say which", code="id_missing", field="id", hint=f"torg-marketplace {arguments.command} list")
    return str(arguments.id)


def amount_of(text: str, price: int, decimals: int, *, field: str = "--amount") -> int:
    """ "40%" of a price, rounded down, or tokens. Raises Invalid share_invalid, amount_invalid, ..."""
    if not text.endswith("%"):
        return parse_amount(text, decimals, field=field)
    share = text[:-1]
    if not share.isdigit() or not 0 < int(share) <= 100:
        raise Invalid("not a share", code="share_invalid", field=field, value=text, hint="1% to 100%, whole percents")
    return price * int(share) // 100


_COMMANDS = {
    "refund": _refund,
    "refunds": _refunds,
    "dispute": _dispute,
    "ban": _ban,
    "unban": _unban,
    "bans": _bans,
    "abuse": _abuse,
    "erase": _erase,
}
