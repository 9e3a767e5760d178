"""A job's money from its cap to the last refund, by the rules that the flows ask, over amounts, prices and times at their limits: no base unit
is made or lost on the way, and nothing ever goes above what was held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tests.support.actors import spec
from torg_marketplace.rules.metering import Meter, payable_ms
from torg_marketplace.rules.money import split_budget, split_fee
from torg_marketplace.rules.pricing import MAX_ACCEPTED_AMOUNT
from torg_marketplace.rules.refunds import Take, Waiting, plan_refund, refundable, work_off
from torg_marketplace.rules.settlement import Due, make_batch
from torg_marketplace.rules.slowness import BUSY_ALLOWANCE, LEAST_PROOFS, Measured, shortfall
from torg_protocol.job_cost import largest_cost, verification_price, work_within
from torg_protocol.jobspec import JobSpec, load_job_spec
from torg_protocol.money import MS_PER_HOUR, cost, format_amount
from torg_protocol.refunds import RefundCause
from torg_protocol.states import Billing

YEARS_MS = 3 * 365 * 86_400_000
ANY_AMOUNT = st.one_of(st.integers(0, 10), st.integers(0, MAX_ACCEPTED_AMOUNT))
ANY_PRICE = st.one_of(st.integers(0, 10), st.sampled_from([MS_PER_HOUR - 1, MS_PER_HOUR, MS_PER_HOUR + 1]), ANY_AMOUNT)
ANY_MS = st.one_of(st.integers(0, 1_000), st.integers(0, YEARS_MS))
VERIFIED = st.sampled_from(
    [
        {},
        {"verify": {"policy": "metric", "catalogue": "cnn", "metric": "accuracy", "target": "0.9"}},
        {"verify": {"policy": "replay", "catalogue": "rnn", "segments": 3}},
        {"verify": {"policy": "activation", "catalogue": "generate"}},
    ]
)


@dataclass(frozen=True)
class _Bill:
    """Of one lease: the amounts of its records, and useful time in all."""

    records: tuple[int, ...]
    useful_ms: int


@st.composite
def bills(draw: st.DrawFn, price: int, gpus: int, max_amount: int, max_duration_ms: int) -> _Bill:
    """Record after record, as a node says how long it ran and what it stored; the last one is final."""
    amounts, seen_ms, recorded_ms = list[int](), 0, 0
    steps = draw(st.lists(st.tuples(ANY_MS, ANY_MS, ANY_MS), max_size=6))
    for number, (passed_ms, claimed_ms, checkpoint_ms) in enumerate(steps, start=1):
        seen_ms += passed_ms
        meter = Meter(
            claimed_ms=claimed_ms,
            seen_ms=seen_ms,
            skew_ms=2_000,
            checkpoint_ms=checkpoint_ms,
            max_duration_ms=max_duration_ms,
            max_amount=max_amount,
            price_per_gpu_hour=price,
            billable_gpus=gpus,
            recorded_ms=recorded_ms,
            recorded_amount=sum(amounts),
        )
        fresh_ms = payable_ms(meter, Billing.FULL if number == len(steps) else Billing.CHECKPOINT)
        if fresh_ms:
            recorded_ms += fresh_ms
            amounts.append(cost(price, gpus, fresh_ms))
    return _Bill(tuple(amounts), recorded_ms)


@given(st.data(), ANY_PRICE, st.integers(1, 64), ANY_AMOUNT, st.integers(1, YEARS_MS))
def test_records_never_cost_more_than_was_held_and_lose_less_than_a_unit_each(
    data: st.DataObject, price: int, gpus: int, max_amount: int, max_duration_ms: int
) -> None:
    bill = data.draw(bills(price, gpus, max_amount, max_duration_ms))

    assert sum(bill.records) <= max_amount
    assert bill.useful_ms <= max_duration_ms
    exact = Fraction(price * gpus * bill.useful_ms, MS_PER_HOUR)
    assert 0 <= exact - sum(bill.records) <= len(bill.records)


@given(st.data(), ANY_AMOUNT, st.lists(ANY_PRICE, min_size=1, max_size=8), VERIFIED, st.integers(0, 10_000))
def test_all_leases_of_an_attempt_with_their_verification_stay_within_what_is_left_of_the_job(
    data: st.DataObject, left: int, prices: list[int], verified: dict[str, object], share: int
) -> None:
    """As a grant shares it: each lease's range holds its part and the price of its verification; what of it is paid is shared once more."""
    job = load_job_spec(spec(**verified))

    parts = split_budget(work_within(job, left), prices)
    assert sum(part + verification_price(job, part) for part in parts) <= left
    paid = [data.draw(st.integers(0, part)) for part in parts]
    shares = [split_fee(amount, share) for amount in paid]
    assert sum(map(sum, shares)) == sum(paid)
    for part, amount in zip(parts, paid, strict=True):
        assert amount + verification_price(job, amount) <= part + verification_price(job, part)


@given(st.integers(0, 9), ANY_AMOUNT, ANY_PRICE, st.integers(1_000, YEARS_MS), VERIFIED)
def test_no_job_holds_more_than_its_client_wrote_however_many_decimals_its_token_has(
    decimals: int, most: int, price: int, duration_ms: int, verified: dict[str, object]
) -> None:
    free = load_job_spec(spec(**verified))
    bound = load_job_spec(spec(limits={"max_cost": format_amount(most, decimals)}, **verified))

    full = largest_cost(free, price, duration_ms, decimals)
    assert largest_cost(bound, price, duration_ms, decimals) == min(full, most)
    work = cost(price, 1, duration_ms)
    assert full == work + verification_price(free, work)


@given(ANY_PRICE, st.lists(st.integers(1, 1000), min_size=1, max_size=8))
def test_shares_of_a_gpu_never_cost_more_than_all_of_it(price: int, fractions: list[int]) -> None:
    def asked(milli: int) -> JobSpec:
        return load_job_spec(spec(resources={"gpus": 1, "gpu_fraction": format_amount(milli, 3)}))

    within = [milli for number, milli in enumerate(fractions) if sum(fractions[: number + 1]) <= 1000]
    parts = [asked(milli).resources.price_of(price) for milli in within]
    assert sum(parts) <= price
    assert all(0 <= Fraction(price * milli, 1000) - part < 1 for milli, part in zip(within, parts, strict=True))


@st.composite
def payments(draw: st.DrawFn) -> tuple[int, int, list[Waiting], list[Waiting]]:
    """What a lease cost, what of it is its node's, and which payouts of node and marketplace still wait, some of them for other work."""
    paid = draw(st.one_of(st.integers(1, 100), st.integers(1, MAX_ACCEPTED_AMOUNT)))
    to_node, fee = split_fee(paid, draw(st.integers(0, 10_000)))
    others = st.lists(st.integers(1, MAX_ACCEPTED_AMOUNT), max_size=3)
    node = [Waiting("n", "mine", to_node)] if to_node and draw(st.booleans()) else []
    fees = [Waiting("f", "mine", fee)] if fee and draw(st.booleans()) else []
    node += [Waiting(f"n{number}", "other", amount) for number, amount in enumerate(draw(others))]
    fees += [Waiting(f"f{number}", "other", amount) for number, amount in enumerate(draw(others))]
    return paid, to_node, node, fees


@given(payments(), st.lists(st.tuples(st.sampled_from(RefundCause), st.integers(1, 1000)), max_size=6))
def test_refund_after_refund_gives_back_no_more_than_was_paid_and_takes_no_more_than_was_earned(
    payment: tuple[int, int, list[Waiting], list[Waiting]], wishes: list[tuple[RefundCause, int]]
) -> None:
    paid, to_node, node, fees = payment
    there = sum(item.amount for item in (*node, *fees))
    given_back, from_node, credit = list[int](), 0, 0
    for cause, permille in wishes:
        amount = min(max(1, paid * permille // 1000), refundable(paid, given_back))
        if not amount:
            continue
        plan = plan_refund(amount, cause, lease_id="mine", paid=paid, paid_to_node=to_node, node=node, fees=fees)
        node, fees = _without(node, plan.from_node), _without(fees, plan.from_fees)
        from_node += sum(item.amount for item in plan.from_node)
        given_back.append(amount)
        credit += plan.credit
    assert sum(given_back) <= paid
    assert from_node <= to_node
    taken = there - sum(item.amount for item in (*node, *fees))
    assert taken + credit == sum(given_back)
    later = [Waiting("later", "next", 7), Waiting("latest", "next", MAX_ACCEPTED_AMOUNT)]
    covered = sum(item.amount for item in work_off(credit, later))
    assert covered == min(credit, sum(item.amount for item in later))


def _without(waiting: list[Waiting], takes: Sequence[Take]) -> list[Waiting]:
    taken = {item.payout_id: item.amount for item in takes}
    left = [Waiting(each.payout_id, each.lease_id, each.amount - taken.get(each.payout_id, 0)) for each in waiting]
    assert all(each.amount >= 0 for each in left)
    return [each for each in left if each.amount]


@given(st.lists(st.integers(1, MAX_ACCEPTED_AMOUNT), max_size=12), st.integers(2, 8), ANY_AMOUNT)
def test_batch_after_batch_pays_each_payout_once_and_never_above_the_cap(
    amounts: list[int], max_payees: int, cap: int
) -> None:
    waiting = [Due(f"p{number}", f"a{number % 5}", amount, number) for number, amount in enumerate(amounts)]
    settled, paid = 0, set[str]()
    while (batch := make_batch(waiting, max_payees=max_payees, at_most=cap - settled)).amount:
        assert not paid & set(batch.payout_ids)
        paid |= set(batch.payout_ids)
        settled += batch.amount
        waiting = [due for due in waiting if due.payout_id not in paid]
    assert settled == sum(amount for number, amount in enumerate(amounts) if f"p{number}" in paid) <= cap
    assert all(due.amount > cap - settled for due in waiting), "what is left does not fit any more"


@given(st.integers(1, MAX_ACCEPTED_AMOUNT), st.integers(1, 10**6), st.integers(0, 999), st.booleans())
def test_slowness_gives_back_its_exact_share_rounded_down(price: int, sold: int, permille: int, busy: bool) -> None:
    measured = float(sold * permille // 1000)
    seen = [Measured("gpu:0", measured / BUSY_ALLOWANCE if busy else measured, busy)] * LEAST_PROOFS
    found = shortfall(price, {"gpu:0": sold}, seen, tolerance=1.0)
    if found is None:
        assert price * (sold - measured) < sold, "less than one base unit"
        return
    assert measured - 1 <= found.measured_gops <= measured, "a third, three times"
    exact = Fraction(price * (sold - found.measured_gops), sold)
    assert 0 <= exact - found.refund < 1
    assert found.refund <= price
