"""Refunds by the unit: nothing lost or made, never more than waits, the node bears no more than its share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.rules.refunds import RefundPlan, Waiting, plan_refund, refundable, work_off
from torg_protocol.refunds import BORNE_BY_NODE, RefundCause

AMOUNTS = st.integers(1, 10**12)


def waiting(prefix: str) -> st.SearchStrategy[list[Waiting]]:
    amounts = st.lists(AMOUNTS, max_size=6)
    return amounts.map(
        lambda found: [
            Waiting(f"{prefix}{number}", f"lease{number % 2}", amount) for number, amount in enumerate(found)
        ]
    )


@given(
    cause=st.sampled_from(RefundCause),
    paid=AMOUNTS,
    share=st.integers(0, 1000),
    given_back=st.integers(1, 1000),
    node=waiting("n"),
    fees=waiting("f"),
)
def test_a_plan_adds_up_and_takes_no_more_than_waits(
    cause: RefundCause, paid: int, share: int, given_back: int, node: list[Waiting], fees: list[Waiting]
) -> None:
    amount, to_node = max(1, paid * given_back // 1000), paid * share // 1000
    plan = plan_refund(amount, cause, lease_id="lease0", paid=paid, paid_to_node=to_node, node=node, fees=fees)
    from_node, from_fees = sum(item.amount for item in plan.from_node), sum(item.amount for item in plan.from_fees)
    assert from_node + from_fees + plan.credit == amount
    assert from_node <= (amount * to_node // paid if cause in BORNE_BY_NODE else 0)
    there = {item.payout_id: item.amount for item in (*node, *fees)}
    assert all(0 < item.amount <= there[item.payout_id] for item in (*plan.from_node, *plan.from_fees))
    if plan.credit:
        assert from_fees == sum(item.amount for item in fees), "credit only when no fee is left that waits"


@given(paid=AMOUNTS, parts=st.lists(st.integers(1, 10**12), max_size=5))
def test_never_more_is_given_back_than_was_paid(paid: int, parts: list[int]) -> None:
    done: list[int] = []
    for part in parts:
        if part <= refundable(paid, done):
            done.append(part)
    assert sum(done) <= paid


def test_the_leases_own_payouts_come_first() -> None:
    node = [Waiting("pay_1", "another", 50), Waiting("pay_2", "mine", 30)]
    plan = plan_refund(40, RefundCause.DISPUTE, lease_id="mine", paid=100, paid_to_node=100, node=node, fees=[])
    assert [(item.payout_id, item.amount) for item in plan.from_node] == [("pay_2", 30), ("pay_1", 10)]


def test_our_own_fault_costs_the_node_nothing() -> None:
    node, fees = [Waiting("pay_1", "mine", 98)], [Waiting("pay_2", "mine", 2)]
    plan = plan_refund(
        50, RefundCause.MARKETPLACE_FAULT, lease_id="mine", paid=100, paid_to_node=98, node=node, fees=fees
    )
    assert plan == RefundPlan((), plan.from_fees, 48)
    assert work_off(48, [Waiting("pay_3", "later", 20)])[0].amount == 20
