"""What `torg-node init` asks a person, five questions at most: whom to work for, whom to pay, what electricity costs, the price, quiet hours.

What was given as an option is not asked. With `--yes`, or without a terminal, nothing is: then the price is the suggested one.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import ValidationError
from solders.pubkey import Pubkey

from torg_node.hardware.detect import open_lent
from torg_node.hardware.inventory import take_inventory
from torg_node.owner_rules import OwnerRules
from torg_node.pricing import Suggestion, break_even, suggest
from torg_node.settings import first_problem
from torg_node.setup import Market, market_at, market_of_chain
from torg_protocol.api import NodeView, OfferPage, ReferencePrice, ReferencePrices
from torg_protocol.errors import Invalid, TorgError
from torg_protocol.money import format_amount, parse_amount

_HERE = Path()
T = TypeVar("T")
Ask = Callable[[str, str], str]  # question, default -> answer
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Machine:
    """`watts` None: nobody has said, and no driver tells."""

    gpu_class: str
    units: int  # GPUs, or slots
    watts: int | None
    watts_basis: str


@dataclass(frozen=True, slots=True)
class Answers:
    market: Market
    price: str
    payout: str | None
    rules: OwnerRules


def asker(arguments: argparse.Namespace) -> Ask | None:
    """None: nothing is asked."""
    return None if arguments.yes else terminal_asker()


def terminal_asker() -> Ask | None:
    """None: no person is there. Raises KeyboardInterrupt when the answer is the end of the input."""
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        return None

    def ask(question: str, default: str) -> str:
        print(f"{question} [{default}]: " if default else f"{question}: ", end="", file=sys.stderr, flush=True)  # noqa: T201
        answer = sys.stdin.readline()
        if not answer:
            raise KeyboardInterrupt
        return answer.strip() or default

    return ask


def answers_of(arguments: argparse.Namespace, ask: Ask | None, say: Say) -> Answers:
    """Raises Invalid `marketplace_missing` or `price_unknown` when it may not ask, and what the marketplace raises."""
    market = _market(arguments, ask, say)
    payout = arguments.payout
    if payout is None and ask is not None:
        payout = _repeated(ask, say, "wallet that is paid; best one whose key is not on this machine", "", _wallet)
    price = arguments.price
    if price is None:
        price = _price(arguments, market, machine_of(arguments.slots, arguments.watts, arguments.gpus or ()), ask, say)
    rules = OwnerRules()
    if ask is not None:
        rules = _repeated(ask, say, "quiet hours, like 22:00-07:00 (empty: none)", "", _quiet)
    return Answers(market, price, payout, rules)


def machine_of(slots: int, watts: int | None, wanted: Sequence[str] = ()) -> Machine:
    gpus, units = open_lent(wanted)
    try:
        limit = gpus.power_limit_watts() if gpus is not None else None
    finally:
        if gpus is not None:
            gpus.close()
    inventory = take_inventory(disk_at=_HERE, offered_disk_bytes=1, units=units)
    basis = "as you say" if watts is not None else "the GPUs' power limits; the rest of the machine is not counted"
    return Machine(inventory.gpu_class, len(units) or slots, watts if watts is not None else limit, basis)


def _market(arguments: argparse.Namespace, ask: Ask | None, say: Say) -> Market:
    if arguments.marketplace is not None:
        return market_at(arguments.marketplace)
    if arguments.rpc_url is not None:
        return asyncio.run(market_of_chain(arguments.rpc_url, arguments.program, arguments.mint))
    if ask is None:
        raise Invalid(
            "whom should this node work for?",
            code="marketplace_missing",
            field="marketplace",
            hint="--marketplace URL, or --rpc-url for direct rentals only",
        )
    return _repeated(ask, say, "address of the marketplace", "", market_at)


def _price(arguments: argparse.Namespace, market: Market, machine: Machine, ask: Ask | None, say: Say) -> str:
    decimals = market.network.decimals
    kwh = arguments.kwh_price
    if kwh is None and ask is not None and machine.watts is not None:
        question = (
            f"what a kWh costs you, in the market's tokens (the machine draws {machine.watts} W: {machine.watts_basis})"
        )
        kwh = _repeated(ask, say, question, "0.30", lambda text: format_amount(parse_amount(text, decimals), decimals))
    least = None
    if kwh is not None and machine.watts is not None:
        least = break_even(machine.watts, parse_amount(kwh, decimals, field="kwh-price"), machine.units)
        say(
            f"break-even: {format_amount(least, decimals)} per hour at {machine.watts} W and {kwh} per kWh ({machine.watts_basis})"
        )
    elif kwh is not None:
        say("break-even: not known, since no driver tells how much this machine draws; say it by --watts")
    found = suggest(machine.gpu_class, *_market_data(market, machine.gpu_class), least)
    if found is not None:
        say(
            f"suggested price for {machine.gpu_class}: {format_amount(found.price_per_gpu_hour, decimals)} per hour: {found.basis}"
        )
    if ask is None:
        return _suggested(found, decimals)
    default = format_amount(found.price_per_gpu_hour, decimals) if found is not None else ""
    unit = "GPU" if machine.gpu_class != "cpu" else "slot"
    question = f"price per {unit} and hour, in tokens"
    return _repeated(ask, say, question, default, lambda text: format_amount(parse_amount(text, decimals), decimals))


def _suggested(found: Suggestion | None, decimals: int) -> str:
    if found is None:
        raise Invalid(
            "this market knows no price of such hardware yet, so none can be suggested",
            code="price_unknown",
            field="price",
            hint='say one: --price "0.80"   (or --watts and --kwh-price, for a break-even)',
        )
    return format_amount(found.price_per_gpu_hour, decimals)


def _market_data(market: Market, gpu_class: str) -> tuple[tuple[ReferencePrice, ...], tuple[NodeView, ...]]:
    """What the market published; nothing for direct rentals, or where it does not answer."""
    if not market.url:
        return (), ()
    try:
        with httpx.Client(base_url=market.url, timeout=10, trust_env=False) as http:
            query = {"gpu_class": gpu_class, "since_ms": "0"}
            prices = http.get("/v1/prices", params=query).raise_for_status().json()
            offers = http.get("/v1/offers", params={"limit": "200"}).raise_for_status().json()
        return ReferencePrices.model_validate(prices).prices, OfferPage.model_validate(offers).offers
    except (httpx.HTTPError, ValueError):
        return (), ()


def _repeated(ask: Ask, say: Say, question: str, default: str, understand: Callable[[str], T]) -> T:
    """Until the answer is understood."""
    while True:
        try:
            return understand(ask(question, default))
        except (TorgError, ValueError) as error:
            hint = f"; {error.hint}" if isinstance(error, TorgError) and error.hint else ""
            say(f"  {error.message if isinstance(error, TorgError) else error}{hint}")


def _wallet(text: str) -> str | None:
    if not text:
        return None
    try:
        return str(Pubkey.from_string(text))
    except ValueError:
        raise ValueError("not a wallet's address: base58, 32 bytes (empty: this node's own key)") from None


def _quiet(text: str) -> OwnerRules:
    try:
        return OwnerRules.model_validate({"quiet_hours": [text] if text else []})
    except ValidationError as error:
        raise ValueError(first_problem(error).message) from None
