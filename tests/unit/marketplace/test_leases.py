"""When time ends a lease, and when a node's word is believed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from torg_marketplace.rules.leases import End, LeaseClock, Ran, StopIt, believed_reason, due, liveness, was_down
from torg_marketplace.rules.policy import MarketPolicy
from torg_marketplace.rules.verification import judge
from torg_protocol.states import EndReason, LeaseState, Liveness

POLICY = MarketPolicy()
RUNNING = LeaseClock(
    state=LeaseState.RUNNING,
    granted_ms=0,
    started_ms=0,
    stop_requested_ms=None,
    stop_reason=None,
    answered=True,
    grace_from_ms=0,
    node_seen_ms=0,
    lease_grace_ms=300_000,
    max_duration_ms=3_600_000,
)
RAN = Ran(
    started=True,
    ran_ms=10_000,
    max_duration_ms=3_600_000,
    amount=10,
    max_amount=3_600,
    asked_to_stop_for=None,
    cancel_requested=False,
)


@pytest.mark.parametrize(
    ("lease", "now_ms", "expected"),
    [
        (RUNNING, 299_999, None),
        (RUNNING, 300_000, EndReason.NODE_LOST),
        (replace(RUNNING, grace_from_ms=100_000), 399_999, None),
        (replace(RUNNING, node_seen_ms=100_000), 399_999, None),
        (replace(RUNNING, state=LeaseState.GRANTED, answered=False), 9_999, None),
        (replace(RUNNING, state=LeaseState.GRANTED, answered=False), 10_000, EndReason.DECLINED),
        (
            replace(RUNNING, state=LeaseState.STOPPING, answered=False, stop_reason=EndReason.CANCELLED),
            10_000,
            EndReason.CANCELLED,
        ),
        (replace(RUNNING, state=LeaseState.PREPARING, node_seen_ms=3_600_000), 3_600_000, EndReason.START_FAILED),
        (
            replace(RUNNING, state=LeaseState.STOPPING, stop_requested_ms=0, node_seen_ms=3_600_000),
            3_600_000,
            EndReason.NODE_LOST,
        ),
    ],
)
def test_what_time_ends(lease: LeaseClock, now_ms: int, expected: EndReason | None) -> None:
    decision = due(lease, now_ms, POLICY)
    assert (decision.reason if isinstance(decision, End) else decision) == expected


def test_a_lease_that_outstays_is_stopped_only_when_its_node_is_heard_of() -> None:
    late_ms = 3_600_000 + 60_000
    assert due(replace(RUNNING, node_seen_ms=late_ms), late_ms, POLICY) == StopIt(EndReason.MAX_DURATION)
    assert due(replace(RUNNING, node_seen_ms=late_ms - 31_000), late_ms, POLICY) is None


@pytest.mark.parametrize(
    ("silent_ms", "expected"),
    [
        (0, Liveness.ALIVE),
        (29_999, Liveness.ALIVE),
        (30_000, Liveness.UNKNOWN),
        (299_999, Liveness.UNKNOWN),
        (300_000, Liveness.LOST),
    ],
)
def test_liveness(silent_ms: int, expected: Liveness) -> None:
    assert liveness(silent_ms, POLICY) is expected


def test_our_own_gap() -> None:
    assert not was_down(0, 29_999, POLICY)
    assert was_down(0, 30_000, POLICY)


@pytest.mark.parametrize(
    ("said", "ran", "believed"),
    [
        (EndReason.COMPLETED, RAN, EndReason.COMPLETED),
        (EndReason.COMPLETED, replace(RAN, started=False), EndReason.START_FAILED),
        (EndReason.FAILED_EXIT, replace(RAN, started=False), EndReason.START_FAILED),
        (EndReason.MAX_DURATION, RAN, EndReason.HOST_PROTECTION),
        (EndReason.MAX_DURATION, replace(RAN, ran_ms=3_600_000), EndReason.MAX_DURATION),
        (EndReason.MAX_DURATION, replace(RAN, asked_to_stop_for=EndReason.MAX_DURATION), EndReason.MAX_DURATION),
        (EndReason.BUDGET, RAN, EndReason.HOST_PROTECTION),
        (EndReason.BUDGET, replace(RAN, amount=3_600), EndReason.BUDGET),
        (EndReason.CANCELLED, RAN, EndReason.HOST_PROTECTION),
        (EndReason.CANCELLED, replace(RAN, cancel_requested=True), EndReason.CANCELLED),
        (EndReason.PREEMPTED, RAN, EndReason.HOST_PROTECTION),
        (EndReason.PREEMPTED, replace(RAN, asked_to_make_room=True), EndReason.PREEMPTED),
        (EndReason.GANG_ENDED, RAN, EndReason.HOST_PROTECTION),
        (EndReason.GANG_ENDED, replace(RAN, gang_ended=True), EndReason.GANG_ENDED),
        (EndReason.DRAINED, RAN, EndReason.DRAINED),
        (EndReason.IMAGE_NOT_FOUND, replace(RAN, started=False), EndReason.IMAGE_NOT_FOUND),
    ],
)
def test_believed_reasons(said: EndReason, ran: Ran, believed: EndReason) -> None:
    assert believed_reason(said, ran) is believed


@pytest.mark.parametrize(
    ("measured", "better", "result"),
    [
        ({"accuracy": "0.95"}, "higher", "passed"),
        ({"accuracy": "0.949999999999999999"}, "higher", "failed"),
        ({"accuracy": "0.96"}, "lower", "failed"),
        ({"accuracy": "0.94"}, "lower", "passed"),
        ({"loss": "0.01"}, "higher", "failed"),
        ({"accuracy": "NaN"}, "higher", "failed"),
        ({"accuracy": "Infinity"}, "higher", "failed"),
        ({"accuracy": "very good"}, "higher", "failed"),
        ({}, "higher", "failed"),
    ],
)
def test_the_judge_is_exact_and_believes_only_numbers(measured: dict[str, str], better: str, result: str) -> None:
    verdict = judge(metric="accuracy", target="0.95", better=better, measured=measured)  # type: ignore[arg-type]  # two literals
    assert verdict.result == result
