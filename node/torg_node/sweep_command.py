"""`torg-node sweep`: what the plan is and what became of it; a sweep now; and the confirmation without which nothing leaves by itself."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from solders.pubkey import Pubkey

from torg_chain.rpc import ChainClient
from torg_chain.transfers import check_payable
from torg_chain.wallet import load_keypair, wallet_address
from torg_node.clock import wall_ms
from torg_node.journal import Journal
from torg_node.questions import Ask, terminal_asker
from torg_node.settings import Settings, first_problem, load_settings
from torg_node.sweep import CONFIRMED_FACT, Prospect, Sweeper, cost_in_words, in_words
from torg_node.sweep_journal import SweepEntry
from torg_node.sweep_plan import SweepPlan, span
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.money import format_amount, parse_amount

Say = Callable[[str], None]
_LETTERS = 6
_SHOWN = 10


def add_sweep_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--now", action="store_true", help="send what is above what stays, now")
    command.add_argument("--dry-run", action="store_true", help="say what would be sent and what it costs")
    command.add_argument("--to", metavar="WALLET", help="another wallet than the one in config.toml, this time")
    command.add_argument("--keep", metavar="TOKENS", help="that stay; default: as config.toml says")
    command.add_argument("--at-least", default="0", metavar="TOKENS", help="send nothing when it would be less")
    command.add_argument(
        "--confirm",
        metavar="WALLET",
        help="the wallet once more: it is to have what this node earns; without it a person is asked",
    )


def add_sweep_plan_options(command: argparse.ArgumentParser) -> None:
    """For `init`."""
    command.add_argument(
        "--sweep-to",
        metavar="WALLET",
        help="where what the node's own key earns goes by itself; one whose key is not on this machine",
    )
    command.add_argument("--sweep-every", default="7d", metavar="TIME", help="how often; default 7d")
    command.add_argument("--sweep-at-least", metavar="TOKENS", help="also as soon as so much is there")
    command.add_argument("--sweep-keep", default="0", metavar="TOKENS", help="that stay")


def plan_of(arguments: argparse.Namespace, decimals: int) -> SweepPlan | None:
    """Raises Invalid `config_invalid` or of the amount, naming the option."""
    if arguments.sweep_to is None:
        return None
    at_least = arguments.sweep_at_least
    fields = {
        "to": arguments.sweep_to,
        "every": arguments.sweep_every,
        "keep": parse_amount(arguments.sweep_keep, decimals, field="sweep-keep"),
        "at_least": None if at_least is None else parse_amount(at_least, decimals, field="sweep-at-least"),
    }
    try:
        return SweepPlan.model_validate(fields)
    except ValidationError as error:
        found = first_problem(error)
        field = f"sweep-{found.field}".replace("_", "-")
        raise Invalid(found.message, code="config_invalid", field=field, value=found.value) from error


def confirm_plan(settings: Settings, plan: SweepPlan) -> None:
    journal = Journal(settings.journal_path)
    journal.set_fact(CONFIRMED_FACT, plan.to)
    journal.close()


@dataclass(frozen=True, slots=True)
class _Target:
    """`is_planned`: it is the wallet of config.toml, so that a confirmation holds for the agent too."""

    to: str
    keep: int
    at_least: int
    is_planned: bool


def sweep_command(arguments: argparse.Namespace, say: Say) -> int:
    settings = load_settings(arguments.data)
    journal = Journal(settings.journal_path)
    try:
        if arguments.now or arguments.dry_run or arguments.confirm or arguments.to:
            return asyncio.run(_act(settings, journal, arguments, say))
        say(json.dumps(as_json(settings, journal)) if arguments.json else as_text(settings, journal))
        return 0
    finally:
        journal.close()


async def _act(settings: Settings, journal: Journal, arguments: argparse.Namespace, say: Say) -> int:
    target, decimals = _target(settings, arguments), settings.network.decimals
    keypair = load_keypair(settings.key_path)
    async with ChainClient(settings.network.rpc_url) as chain:
        sweeper = Sweeper(chain, settings.network, keypair, journal, settings.data, wall_ms)
        if not arguments.now and not arguments.confirm:
            found = await sweeper.prospect(target.to, target.keep, target.at_least)
            say(_prospect_json(found) if arguments.json else _prospect_text(found, decimals, keypair.pubkey()))
            return 0
        await check_payable(chain, Pubkey.from_string(target.to), field="to")
        _confirm(journal, target, arguments.confirm, terminal_asker())
        if not arguments.now:
            said = {"confirmed": target.to}
            say(json.dumps(said) if arguments.json else f"confirmed: {target.to} is to have what this node earns")
            return 0
        entry = await sweeper.now(target.to, target.keep, target.at_least)
    if arguments.json:
        say(json.dumps({"amount": 0, "signature": None, "state": None} if entry is None else _entry_json(entry)))
    else:
        say("nothing to sweep" if entry is None else in_words(entry, decimals))
    return 0 if entry is None or entry.state == "finalized" else 1


def _target(settings: Settings, arguments: argparse.Namespace) -> _Target:
    plan, decimals = settings.sweep, settings.network.decimals
    to = arguments.to or (plan.to if plan else None) or arguments.confirm
    if to is None or (not arguments.now and arguments.confirm and plan is None):
        raise Invalid(
            "no cold wallet is named",
            code="sweep_unset",
            field="sweep.to",
            hint='in config.toml:  [sweep]  to = "WALLET"  every = "7d"   (or once: torg-node sweep --now --to WALLET)',
        )
    try:
        to = wallet_address(to)
    except ValueError as error:
        raise Invalid(str(error), code="wallet_invalid", field="to", value=to) from None
    kept = plan.keep if plan else 0
    if arguments.keep is not None:
        kept = parse_amount(arguments.keep, decimals, field="keep")
    at_least = parse_amount(arguments.at_least, decimals, field="at-least")
    return _Target(to, kept, at_least, is_planned=plan is not None and plan.to == to)


def _confirm(journal: Journal, target: _Target, again: str | None, ask: Ask | None) -> None:
    """A wallet that is not the one confirmed before is named twice. Raises Invalid `confirmation_differs`, Conflict `sweep_unconfirmed`."""
    if again is None and journal.fact(CONFIRMED_FACT) == target.to:
        return
    if again is None and ask is None:
        raise Conflict(
            f"{target.to} was not confirmed as the wallet that is to have what this node earns",
            code="sweep_unconfirmed",
            field="confirm",
            value=target.to,
            hint=f"--confirm {target.to}",
        )
    if again is None and ask is not None:
        nobody = "" if Pubkey.from_string(target.to).is_on_curve() else " (no key signs for it: a multisig's vault?)"
        said = ask(f"all that this node earns to {target.to}{nobody}? Its last {_LETTERS} characters", "")
        again = target.to if said == target.to[-_LETTERS:] else said
    if again != target.to:
        raise Invalid("that is another wallet", code="confirmation_differs", field="confirm", value=again)
    if target.is_planned:
        journal.set_fact(CONFIRMED_FACT, target.to)


def summary(settings: Settings, journal: Journal) -> str | None:
    """One line for status and statements; None: no plan, and nothing was ever swept."""
    decimals, plan = settings.network.decimals, settings.sweep
    count = sum(count for count, _ in journal.sweeps.totals().values())
    amount = sum(amount for _, amount in journal.sweeps.totals().values())
    times = "1 sweep" if count == 1 else f"{count} sweeps"
    swept = f"{format_amount(amount, decimals)} swept in {times}" if count else "nothing swept yet"
    if plan is None:
        return f"{swept}; no plan" if count else None
    if journal.fact(CONFIRMED_FACT) != plan.to:
        return f"{swept}; NOT CONFIRMED: torg-node sweep --confirm {plan.to}"
    return f"{swept}; to {plan.to}, {_when(plan, decimals)}"


def as_text(settings: Settings, journal: Journal) -> str:
    decimals = settings.network.decimals
    line = (
        summary(settings, journal) or 'no cold wallet is named; in config.toml:  [sweep]  to = "WALLET"  every = "7d"'
    )
    entries = [
        f"  {_at(entry.at_ms)}  {in_words(entry, decimals)}" for entry in reversed(journal.sweeps.newest(_SHOWN))
    ]
    return "\n".join([line, *entries])


def as_json(settings: Settings, journal: Journal) -> dict[str, Any]:
    plan = settings.sweep
    return {
        "plan": plan.model_dump(mode="json") if plan else None,
        "is_confirmed": plan is not None and journal.fact(CONFIRMED_FACT) == plan.to,
        "swept": {wallet: amount for wallet, (_, amount) in journal.sweeps.totals().items()},
        "newest": [_entry_json(entry) for entry in journal.sweeps.newest(_SHOWN)],
    }


def _when(plan: SweepPlan, decimals: int) -> str:
    at_least = None if plan.at_least is None else f"as soon as {format_amount(plan.at_least, decimals)} is there"
    every = None if plan.every is None else f"every {span(plan.every)}"
    keeping = f", above {format_amount(plan.keep, decimals)}" if plan.keep else ""
    return " and ".join(part for part in (at_least, every) if part) + keeping


def _prospect_text(found: Prospect, decimals: int, payer: Pubkey) -> str:
    holds = f"{format_amount(found.balance, decimals)} is there, {format_amount(found.keep, decimals)} stays"
    amount = f"{format_amount(found.amount, decimals)} would go to {found.to}" if found.amount else "nothing would go"
    lines = [f"{amount} ({holds}); nothing was sent: --now does it"]
    lines.append(f"  costs  {cost_in_words(found.cost)}; the node's key holds {format_amount(found.lamports, 9)} SOL")
    if found.lamports_missing:
        lines.append(f"  MISSING  {format_amount(found.lamports_missing, 9)} SOL: send it to {payer}")
    return "\n".join(lines)


def _prospect_json(found: Prospect) -> str:
    return json.dumps(
        {
            "to": found.to,
            "amount": found.amount,
            "balance": found.balance,
            "keep": found.keep,
            "fee_lamports": found.cost.fee,
            "rent_lamports": found.cost.rent,
            "lamports": found.lamports,
            "lamports_missing": found.lamports_missing,
        }
    )


def _entry_json(entry: SweepEntry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "to": entry.to,
        "amount": entry.amount,
        "at_ms": entry.at_ms,
        "signature": entry.transaction.signature,
        "state": entry.state,
    }


def _at(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).astimezone().strftime("%d %b %Y %H:%M")
