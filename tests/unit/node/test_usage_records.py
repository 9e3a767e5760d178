"""What a node claims, record after record; and what of it is still to be had."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.node.test_grant_check import NOW_MS, STATE, grant
from torg_chain.rpc import ChainClient
from torg_node.lease import Lease
from torg_node.metering import budget_ms, next_record
from torg_node.money import CLOSING_MARGIN_S, accruing, closes_too_soon
from torg_protocol.money import cost
from torg_protocol.usage import SignedUsage

PAUSES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3)), min_size=1, max_size=8)


@given(PAUSES)
def test_records_follow_each_other_and_add_up_to_the_time_that_passed(pauses: list[tuple[int, int]]) -> None:
    """Also when the marketplace signs less than was claimed: the rest is claimed again."""
    lease, signed, now_ms = grant().grant, list[SignedUsage](), NOW_MS
    for passed_ms, kept in pauses:
        now_ms += passed_ms
        record = next_record(lease, signed, started_at_ms=NOW_MS, until_ms=now_ms, final=False)
        assert record.problems() == []
        assert record.sequence == len(signed) + 1
        assert not signed or record.start_ms == signed[-1].record.end_ms
        useful_ms = record.useful_ms * kept // 3
        amount = cost(record.price_per_gpu_hour, record.billable_gpus, useful_ms)
        clipped = record.model_copy(update={"useful_ms": useful_ms, "amount": amount})
        signed.append(SignedUsage(record=clipped, node_signature=None, marketplace_signature="s"))
        assert sum(item.record.useful_ms for item in signed) <= now_ms - NOW_MS


def test_what_was_all_signed_is_claimed_once() -> None:
    lease, signed = grant().grant, list[SignedUsage]()
    for until_ms in (NOW_MS + 600_000, NOW_MS + 600_000, NOW_MS + 1_500_000):
        record = next_record(lease, signed, started_at_ms=NOW_MS, until_ms=until_ms, final=False)
        signed.append(SignedUsage(record=record, node_signature=None, marketplace_signature="s"))
    assert [item.record.useful_ms for item in signed] == [600_000, 0, 900_000]


@given(st.integers(1, 10**6), st.integers(1, 8), st.integers(0, 10**7))
def test_a_budget_lasts_as_long_as_it_pays_for(price: int, gpus: int, amount: int) -> None:
    lease = grant(price_per_gpu_hour=price, billable_gpus=gpus, max_amount=amount).grant
    most_ms = budget_ms(lease)
    if most_ms is None:
        assert cost(price, gpus, lease.max_duration_ms) <= amount
    else:
        one_more_ms = 2 * (3_600_000 // (price * gpus) + 1)
        assert cost(price, gpus, most_ms) <= amount < cost(price, gpus, most_ms + one_more_ms)


@pytest.mark.parametrize(
    ("ran_ms", "signed", "more"),
    [(1_800_000, 0, 500), (1_800_000, 300, 200), (1_800_000, 600, 0), (9_000_000, 0, 1_000)],
)
def test_what_a_running_lease_has_earned_beyond_what_is_signed(ran_ms: int, signed: int, more: int) -> None:
    journal = SimpleNamespace(countersigned=lambda _: signed)
    running = SimpleNamespace(
        grant=grant().grant, id="lease_1", started_at_ms=NOW_MS, node=SimpleNamespace(journal=journal)
    )
    assert accruing(cast("Lease", running), NOW_MS + ran_ms) == more
    running.started_at_ms = None
    assert accruing(cast("Lease", running), NOW_MS + ran_ms) == 0


@pytest.mark.parametrize(
    ("close_at_s", "too_soon"), [(0, False), (10_000 + CLOSING_MARGIN_S + 1, False), (10_000 + CLOSING_MARGIN_S, True)]
)
async def test_no_work_is_begun_that_cannot_be_captured_before_a_vault_closes(close_at_s: int, too_soon: bool) -> None:
    class Chain:
        async def vault(self, _: str) -> Any:
            return replace(STATE, close_at=close_at_s)

        async def unix_time_s(self) -> int:
            return 10_000

    assert await closes_too_soon(cast("ChainClient", Chain()), "vault") is too_soon
