"""What the command line says to people: quotes, places in the queue, spans of time."""

from __future__ import annotations

from typing import Any

import click
import pytest

from torg.cli.jobs import place_in_words
from torg.cli.present import Coin
from torg.cli.session import Seconds
from torg.cli.specs import quote_text
from torg_protocol.api import QueuePlace, Quote
from torg_protocol.jobspec import load_job_spec


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5", 1.5), ("90s", 90), ("5m", 300), ("5x", None)])
def test_spans_of_time_are_durations_or_seconds(text: str, seconds: float | None) -> None:
    if seconds is None:
        with pytest.raises(click.BadParameter):
            Seconds().convert(text, None, None)
    else:
        assert Seconds().convert(text, None, None) == seconds


def a_quote(**fields: Any) -> Quote:
    said = {"quote_id": "quote_1", "feasible": False, "nodes_considered": 3, "nodes_fitting": 0, "billable_gpus": 1}
    return Quote.model_validate({**said, "expires_at_ms": 1, **fields})


def test_a_quote_that_fits_nowhere_says_what_to_give_up_and_from_which_price() -> None:
    spec, money = load_job_spec({"version": 1, "name": "big", "command": ["x"]}), Coin(6, "tUSD")
    vram = {"constraint": "min_vram", "asked": "80 GiB", "nodes_removed": 3, "best_available": "24 GiB"}
    one = quote_text(
        spec, a_quote(constraints=[{**vram, "nodes_without_it": 2, "cheapest_without_it": 400_000}]), money
    )
    none = quote_text(spec, a_quote(constraints=[vram, {**vram, "constraint": "memory"}]), money)

    assert "without min_vram 80 GiB (there is 24 GiB): on 2 more nodes, from 0.4 tUSD per GPU-hour" in one
    assert "no single change would do" in none


def test_a_gangs_quote_is_of_all_of_its_nodes() -> None:
    spec, money = load_job_spec({"version": 1, "name": "g", "command": ["x"], "gang": {"size": 4}}), Coin(6, "tUSD")
    answer = a_quote(feasible=True, nodes_at_once=4, max_amount=8_000_000)

    shown = quote_text(spec, answer, money)
    assert "on 4 nodes at once" in shown
    assert "never more than     8 tUSD  (held in your vault;" in shown
    assert "(held of your account's credit;" in quote_text(spec, answer, money, on_credit=True), (
        "an API key has no vault"
    )
    assert "that is for 4 nodes together" in shown


def test_a_quote_shows_what_its_class_is_worth() -> None:
    price = {"gpu_class": "rtx-4090", "at_ms": 1, "gpus": 1, "gpus_offered": 2, "gpus_wanted": 1, "best_bid": None}
    spec, money = load_job_spec({"version": 1, "name": "x", "command": ["x"]}), Coin(6, "tUSD")
    shown = [
        quote_text(
            spec,
            a_quote(
                feasible=True, max_amount=1, reference_prices=[{**price, "price_per_gpu_hour": worth, "best_ask": 2}]
            ),
            money,
        )
        for worth in (300_000, None)
    ]

    assert "reference price     0.3 tUSD  (rtx-4090, in the newest minute's auction)" in shown[0]
    assert "none  (rtx-4090: offered from 0.000002 tUSD, nobody waits for it)" in shown[1]


def test_a_place_in_the_queue_is_said_in_words() -> None:
    place = QueuePlace(place=5, waiting=9, bid_more=1, waited_longer=0, by_turn=2, own=1, own_running=4)
    assert place_in_words(place) == (
        "place 5 of 9 in the queue; before it: 1 that bid more, "
        "2 with the same bid, of accounts whose turn it is (you have 4 running), 1 of your own"
    )
    first = place.model_copy(update={"place": 1, "bid_more": 0, "by_turn": 0, "own": 0})
    assert place_in_words(first) == "place 1 of 9 in the queue"
