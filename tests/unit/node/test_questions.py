"""What a new owner is asked, what is suggested, and that nobody is asked more than five things."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from solders.keypair import Keypair

from torg_chain.network import Network
from torg_node import questions
from torg_node.pricing import Suggestion, break_even, suggest
from torg_node.questions import Answers, Machine, answers_of
from torg_node.setup import Market
from torg_protocol.api import ReferencePrice
from torg_protocol.errors import Invalid, Unavailable

WALLET = str(Keypair().pubkey())
NETWORK = Network(
    rpc_url="http://x", genesis_hash=WALLET, program_id=WALLET, mint=WALLET, decimals=6, operator_config=WALLET
)


def traded(gpu_class: str, at_ms: int, price: int | None) -> ReferencePrice:
    return ReferencePrice(
        gpu_class=gpu_class,
        at_ms=at_ms,
        price_per_gpu_hour=price,
        gpus=1,
        best_bid=None,
        best_ask=None,
        gpus_offered=1,
        gpus_wanted=1,
    )


class Owner:
    """Answers in order, and knows what was asked and said."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked, self.told = list(answers), [], []

    def ask(self, question: str, default: str) -> str:
        self.asked.append(question)
        return self.answers.pop(0) or default

    def say(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def market(monkeypatch: pytest.MonkeyPatch) -> None:
    def market_at(url: str) -> Market:
        if url != "https://market":
            raise Unavailable("no marketplace answers there", code="marketplace_unreachable")
        return Market(url, WALLET, NETWORK, 3600)

    monkeypatch.setattr(questions, "market_at", market_at)
    monkeypatch.setattr(
        questions, "machine_of", lambda slots, watts, gpus: Machine("gpu-x", 2, watts or 600, "as told")
    )
    monkeypatch.setattr(questions, "_market_data", lambda market, gpu_class: ((traded("gpu-x", 5, 900_000),), ()))


def answers(owner: Owner | None, **options: Any) -> Answers:
    names = ("marketplace", "rpc_url", "payout", "price", "kwh_price", "watts", "gpus")
    arguments = argparse.Namespace(**{**dict.fromkeys(names), "slots": 1, **options})
    return answers_of(arguments, owner.ask if owner else None, owner.say if owner else lambda _: None)


def test_five_questions_at_most_with_the_suggestion_and_the_break_even_shown(market: None) -> None:
    owner = Owner("https://market", WALLET, "0.40", "", "22:00-07:00")
    found = answers(owner)

    assert len(owner.asked) == 5
    assert (found.price, found.payout) == ("0.9", WALLET)
    assert [str(window) for window in found.rules.quiet_hours] == ["22:00-07:00"]
    assert any("break-even: 0.12 per hour" in line for line in owner.told)
    assert any("suggested price for gpu-x: 0.9" in line for line in owner.told)


def test_what_is_not_understood_is_asked_again_with_the_reason(market: None) -> None:
    owner = Owner("https://other", "https://market", "my wallet", "", "cheap", "0.40", "free", "1.5", "10-11", "")
    found = answers(owner)

    assert (found.price, found.payout, found.rules.quiet_hours) == ("1.5", None, ())
    assert len([line for line in owner.told if line.startswith("  ")]) == 5


def test_given_options_are_not_asked_for(market: None) -> None:
    owner = Owner("")
    found = answers(owner, marketplace="https://market", payout=WALLET, price="2")
    assert (found.price, len(owner.asked)) == ("2", 1)


def test_without_a_person_the_suggested_price_is_taken_or_the_lack_of_one_is_said(
    market: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answers(None, marketplace="https://market").price == "0.9"
    monkeypatch.setattr(questions, "_market_data", lambda market, gpu_class: ((), ()))
    with pytest.raises(Invalid) as price:
        answers(None, marketplace="https://market")
    with pytest.raises(Invalid) as market_missing:
        answers(None)
    assert (price.value.code, market_missing.value.code) == ("price_unknown", "marketplace_missing")


@pytest.mark.parametrize(
    ("prices", "least", "found"),
    [
        ([traded("a", 1, 5), traded("a", 2, 7), traded("a", 3, None), traded("b", 4, 9)], None, 7),
        ([traded("a", 1, 50)], 100, 120),
        ([traded("a", 1, 500)], 100, 500),
        ([], 100, 120),
        ([], None, None),
    ],
)
def test_the_newest_trade_counts_unless_electricity_costs_more(
    prices: list[ReferencePrice], least: int | None, found: int | None
) -> None:
    suggestion = suggest("a", prices, (), least)
    assert (suggestion.price_per_gpu_hour if isinstance(suggestion, Suggestion) else None) == found


def test_break_even_is_rounded_up_and_shared_by_the_gpus() -> None:
    assert break_even(700, 300_000, 2) == 105_000
    assert break_even(1, 1, 3) == 1
