"""The state machines as data: complete, without dead ends that are none, and the documents show the same."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import pytest

from scripts.states_page import MACHINES, PAGE, page
from torg_protocol.states import (
    LEASE_MOVES,
    LIVE_LEASE_STATES,
    OPEN_JOB_STATES,
    OUTCOMES,
    Billing,
    EndReason,
    Fault,
    IllegalMove,
    JobState,
    LeaseState,
    check_move,
)

Moves = Mapping[enum.StrEnum, frozenset[enum.StrEnum]]


def test_the_page_shows_the_tables() -> None:
    assert PAGE.read_text() == page(), "run: python -m scripts.states_page"


@pytest.mark.parametrize("name", MACHINES)
def test_every_state_is_in_the_table_and_can_be_reached(name: str) -> None:
    moves: Moves = MACHINES[name][1]
    kind = type(next(iter(moves)))
    reached, waiting = set(), [next(iter(moves))]
    while waiting:
        state = waiting.pop()
        if state not in reached:
            reached.add(state)
            waiting.extend(moves[state])

    assert set(moves) == set(kind)
    assert reached == set(kind)
    assert not any(state in following for state, following in moves.items())


@pytest.mark.parametrize("name", MACHINES)
def test_every_move_that_is_not_in_the_table_is_refused(name: str) -> None:
    moves: Moves = MACHINES[name][1]
    for current in moves:
        for to in moves:
            if to in moves[current]:
                check_move(moves, current, to)
            else:
                with pytest.raises(IllegalMove) as refused:
                    check_move(moves, current, to)
                assert (refused.value.code, refused.value.data) == (
                    "illegal_move",
                    {"current": str(current), "to": str(to)},
                )


def test_every_reason_has_an_outcome_that_its_lease_can_take() -> None:
    assert set(OUTCOMES) == set(EndReason)
    for reason, outcome in OUTCOMES.items():
        came_from = {state for state, following in LEASE_MOVES.items() if outcome.lease in following}
        assert came_from & (LIVE_LEASE_STATES | {LeaseState.REPORTED}), reason


def test_no_fault_of_a_node_costs_the_client_more_than_its_checkpoint_or_ends_its_job() -> None:
    for reason, outcome in OUTCOMES.items():
        if outcome.fault is Fault.NODE:
            assert outcome.billing is not Billing.FULL, reason
            assert outcome.job is JobState.QUEUED, reason


def test_a_job_that_is_tried_again_is_billed_for_what_it_can_use_at_most() -> None:
    for reason, outcome in OUTCOMES.items():
        if outcome.job is JobState.QUEUED:
            assert outcome.billing in {Billing.CHECKPOINT, Billing.NONE}, reason


def test_open_jobs_are_those_that_can_still_move() -> None:
    moves: Moves = MACHINES["Job"][1]
    assert {state for state, following in moves.items() if following} == OPEN_JOB_STATES
