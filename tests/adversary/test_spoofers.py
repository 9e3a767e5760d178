"""Cheats are noticed at the rates that the documents state, and honest machines are left alone. Seeds are fixed: nothing here is flaky."""

from __future__ import annotations

from tests.adversary.spoofers import cheats, honest

TRIALS = 20
LEAST = {
    "computes 50% of the rows": 1.0,
    "computes 80% of the rows": 1.0,
    "computes 90% of the rows": 0.95,
    "computes 95% of the rows": 0.85,
    "follows 50% of the walks": 0.98,
    "follows 75% of the walks": 0.9,
    "one round less": 1.0,
    "products in reduced precision": 1.0,
    "precomputed for another nonce": 1.0,
    "passes on another node's answer": 1.0,
    "opens what it did not commit to": 1.0,
    "says itself how long it took": 1.0,
    "a driver that calls a CPU an H100": 1.0,
    "a driver alone, nothing behind it": 1.0,
    "one card behind 2 nodes of one operator": 1.0,
    "one card behind 4 nodes of one operator": 1.0,
    "one card behind 2 strangers, 24 windows": 0.98,
    "0% of the memory is there": 1.0,
    "50% of the memory is there, limit learned of 12 owners, 5 like it": 1.0,
    "90% of the memory is there, limit learned of 12 owners, 2 like it": 0.4,
    "relay to a real card, 1500 ms away": 0.95,
    "a banned cheat under a new wallet": 1.0,
}


def test_cheats_are_noticed_at_the_stated_rates() -> None:
    found = {rate.who: rate.share for rate in cheats(TRIALS)}

    assert LEAST.keys() <= found.keys()
    assert {who: found[who] for who, least in LEAST.items() if found[who] < least} == {}


def test_honest_machines_are_never_struck_and_hardly_ever_lose_their_class() -> None:
    found = {rate.who: rate.share for rate in honest(TRIALS)}

    assert found["honest"] == 0
    assert found["half as fast, honest about it"] == 0
    assert found["works for a client meanwhile, a third as fast"] == 0
    assert found["steady, 5% noise"] == 0
    assert found["walks 15% slower or faster than its class, 5 of 12 of which lie"] == 0
