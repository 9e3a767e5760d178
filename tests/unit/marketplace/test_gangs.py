"""Gangs, decided purely: which nodes, and what becomes of an attempt of several."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from tests.unit.marketplace.test_matching import DECIMALS, demand, node
from torg_marketplace.matching.engine import Engine
from torg_marketplace.matching.explain import explain, fitting
from torg_marketplace.matching.gangs import decide_all
from torg_marketplace.matching.snapshot import NodeSnapshot
from torg_marketplace.rules.gangs import (
    Company,
    attempt_reason,
    leaver_billing,
    lost_since_checkpoint_ms,
    may_leave,
    member_billing,
)
from torg_marketplace.rules.pricing import price_ceiling
from torg_protocol.states import OUTCOMES, Billing, EndReason, Fault, JobState


def there(name: str, price: int, region: str) -> NodeSnapshot:
    there = node(name, price=price)
    return replace(there, offer=there.offer.model_copy(update={"region": region}))


def test_members_are_on_different_nodes_or_nowhere() -> None:
    engine = Engine(DECIMALS, [node("a", price=1), node("b", price=2), node("c", price=3)])
    assert [each.node_id for each in decide_all(engine, demand(gang={"size": 2}))] == ["a", "b"]
    assert decide_all(engine, demand(gang={"size": 4})) == ()


def test_in_one_region_when_it_is_asked_for() -> None:
    nodes = [there("a", 1, "north"), there("b", 9, "north"), there("c", 2, "south")]
    engine = Engine(DECIMALS, [*nodes, there("d", 3, "south"), there("e", 1, "west")])
    chosen = decide_all(engine, demand(gang={"size": 2, "same_region": True}))
    assert [each.node_id for each in chosen] == ["c", "d"]
    wide = demand(gang={"size": 3, "same_region": True})
    assert decide_all(engine, wide) == ()
    told = explain(engine.fleet, wide, DECIMALS)
    assert (told.failures[0].constraint, told.failures[0].best_available) == ("gang", "2 in one region")
    assert told.fitting.size == fitting(engine.fleet, wide, DECIMALS).size == 0
    two = demand(gang={"size": 2, "same_region": True})
    assert [engine.fleet.node_id(row) for row in fitting(engine.fleet, two, DECIMALS)] == ["a", "b", "c", "d"]


def test_all_members_must_be_under_the_ceiling() -> None:
    assert price_ceiling([1, 2, 3, 100], None, 1, at_once=3) == 3
    assert price_ceiling([1, 2, 3, 100], None, 1, at_once=4) == 100
    assert price_ceiling([1, 2, 3], None, 1, at_once=4) is None
    assert price_ceiling([1, 2, 3], 2, 1, at_once=3) is None


FOLLOWERS = (EndReason.GANG_ENDED, EndReason.COMPLETED, EndReason.FAILED_EXIT)


@pytest.mark.parametrize("reason", [reason for reason in EndReason if OUTCOMES[reason].fault is Fault.NODE])
def test_a_fault_of_a_node_beats_what_follows_from_it(reason: EndReason) -> None:
    for ends in itertools.permutations((reason, *FOLLOWERS)):
        assert attempt_reason(ends) is reason
    for own in FOLLOWERS:
        assert member_billing(own, reason) is Billing.CHECKPOINT


@pytest.mark.parametrize("reason", EndReason)
def test_of_one_lease_alone_it_is_its_own_end(reason: EndReason) -> None:
    assert attempt_reason([reason]) is reason
    assert member_billing(reason, reason) is OUTCOMES[reason].billing


def test_completed_only_when_all_are() -> None:
    for ends in itertools.product(EndReason, repeat=2):
        reason = attempt_reason(ends)
        if OUTCOMES[reason].job in {JobState.VERIFYING, JobState.SUCCEEDED}:
            assert set(ends) == {EndReason.COMPLETED}


def test_nobody_who_could_not_start_is_paid() -> None:
    for own, attempt in itertools.product(EndReason, repeat=2):
        if OUTCOMES[own].billing is Billing.NONE:
            assert member_billing(own, attempt) is Billing.NONE


ALL_THERE = Company(min_size=2, has_started=True, others=3)


@pytest.mark.parametrize("reason", EndReason)
def test_who_may_leave_an_elastic_gang(reason: EndReason) -> None:
    """What sends a job elsewhere, or what a program does that has lost the others; never what ends for all alike."""
    for_all = {
        *(EndReason.COMPLETED, EndReason.GANG_ENDED, EndReason.CANCELLED, EndReason.MAX_DURATION, EndReason.BUDGET),
        *(EndReason.QUEUE_DEADLINE, EndReason.IMAGE_NOT_FOUND, EndReason.INPUT_INVALID, EndReason.OUTPUT_MISSING),
    }
    assert may_leave(1, reason, ALL_THERE) is (reason not in for_all)
    for company in (
        replace(ALL_THERE, min_size=None),
        replace(ALL_THERE, has_started=False),
        replace(ALL_THERE, others=1),
    ):
        assert not may_leave(1, reason, company)
    assert not may_leave(0, reason, ALL_THERE)


@pytest.mark.parametrize(("own", "attempt"), list(itertools.product(EndReason, repeat=2)))
def test_who_left_is_paid_to_the_checkpoint_at_most(own: EndReason, attempt: EndReason) -> None:
    billing = leaver_billing(own, attempt)
    if OUTCOMES[own].billing is Billing.NONE:
        assert billing is Billing.NONE
    elif {own, attempt} <= {EndReason.FAILED_EXIT, EndReason.OOM, EndReason.DISK_FULL}:
        assert billing is Billing.FULL  # the job's own failure, as for all others
    else:
        assert billing is Billing.CHECKPOINT


def test_nothing_is_lost_twice() -> None:
    def lost(now_ms: int, kept_ms: int, before_ms: int | None) -> int:
        return lost_since_checkpoint_ms(now_ms=now_ms, started_ms=100, kept_ms=kept_ms, lost_before_ms=before_ms)

    assert lost(1_000, 0, None) == 900
    assert lost(1_000, 500, None) == 400
    assert lost(1_200, 500, 1_000) == 200  # a second one, with no checkpoint between
    assert lost(1_200, 1_050, 1_000) == 50  # with one
    assert lost(1_000, 2_000, None) == 0  # it was written while the loss was being noticed


def test_the_client_s_will_comes_first() -> None:
    ends = [EndReason.NODE_LOST, EndReason.CANCELLED]
    assert attempt_reason(ends, cancel_requested=True) is EndReason.CANCELLED
    assert attempt_reason(ends) is EndReason.NODE_LOST
