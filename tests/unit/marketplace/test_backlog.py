"""Who is tried first when something becomes free, and that everybody is tried at last."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.matching.backlog import AGEING_MS, BACKFILL, Backlog, Place, Waiting, in_order, place_of
from torg_marketplace.matching.snapshot import Demand
from torg_protocol.jobspec import load_job_spec

NOW_MS = 10 * AGEING_MS


def job(
    name: str,
    *,
    bid: int = 100,
    waited_ms: int = 0,
    account: str = "",
    priority: int = 0,
    cpus: int = 1,
    **members: object,
) -> Waiting:
    spec = load_job_spec({"version": 1, "command": ["x"], "resources": {"cpus": cpus}, **members})
    return Waiting(name, bid, NOW_MS - waited_ms, account, priority, spec.spot, demand=Demand(spec))


def names(*jobs: Waiting, running: dict[str, int] | None = None) -> list[str]:
    return [item.job_id for item in in_order(jobs, NOW_MS, running)]


def test_the_higher_bid_goes_first() -> None:
    assert names(job("low", bid=1), job("high", bid=3), job("middle", bid=2)) == ["high", "middle", "low"]


def test_a_low_bid_that_waits_overtakes_a_high_one_that_just_came() -> None:
    old = job("old", bid=100, waited_ms=2 * AGEING_MS + 1)  # counts 300
    assert names(old, job("new", bid=300)) == ["old", "new"]
    assert names(old, job("new", bid=301)) == ["new", "old"]


def test_accounts_with_equal_bids_take_turns_however_many_jobs_one_of_them_has() -> None:
    flood = [job(f"flood{number}", account="a", waited_ms=60_000) for number in range(4)]
    assert names(*flood, job("one", account="b"), job("two", account="b"))[:4] == ["flood0", "one", "flood1", "two"]


def test_what_an_account_has_running_counts_as_ahead() -> None:
    jobs = job("busy", account="a", waited_ms=1000), job("idle", account="b")
    assert names(*jobs) == ["busy", "idle"]
    assert names(*jobs, running={"a": 1}) == ["idle", "busy"]


def test_waiting_makes_up_for_what_is_ahead() -> None:
    jobs = job("busy", account="a", waited_ms=3 * AGEING_MS + 1), job("idle", account="b")
    assert names(*jobs, running={"a": 3}) == ["busy", "idle"]


def test_fair_share_never_overrides_a_higher_bid() -> None:
    assert names(job("rich", bid=101, account="a"), job("poor", account="b"), running={"a": 50}) == ["rich", "poor"]


def test_priorities_order_the_jobs_of_one_account_only() -> None:
    jobs = [
        job("a-old", account="a", waited_ms=9),
        job("a-urgent", account="a", priority=5),
        job("b-old", account="b", waited_ms=5),
    ]
    assert names(*jobs) == ["b-old", "a-urgent", "a-old"]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3 * AGEING_MS), st.sampled_from("abc"), st.integers(-1, 1)),
        max_size=30,
    )
)
def test_everybody_is_in_the_order_once_and_nobody_before_a_higher_claim_of_another_bid(
    rows: list[tuple[int, int, str, int]],
) -> None:
    jobs = [
        job(f"{number:02}", bid=bid, waited_ms=waited, account=account, priority=priority)
        for number, (bid, waited, account, priority) in enumerate(rows)
    ]
    order = list(in_order(jobs, NOW_MS))

    assert sorted(item.job_id for item in order) == [item.job_id for item in jobs]
    for account in "abc":
        for bid in range(4):
            queue = [item for item in order if (item.account, item.bid) == (account, bid)]
            assert queue == sorted(queue, key=lambda item: (-item.priority, item.since_ms, item.job_id))


def pass_over(backlog: Backlog, jobs: list[Waiting], fits: set[str]) -> list[str]:
    """Names that were looked for in one pass; what fits is started and leaves the list."""
    looked = []
    for item in backlog.turns(list(jobs), NOW_MS, {}):
        looked.append(item.job_id)
        if item.job_id in fits:
            jobs.remove(item)
        else:
            backlog.failed(item)
    return looked


def test_one_that_cannot_start_blocks_nobody() -> None:
    jobs = [job("big", bid=9, cpus=64), job("small", bid=1)]
    assert pass_over(Backlog(), jobs, {"small"}) == ["big", "small"]


def test_what_the_same_wish_failed_for_is_not_looked_for_again_in_the_pass() -> None:
    jobs = [job(f"{number}") for number in range(100)]
    assert pass_over(Backlog(), jobs, set()) == ["0"]


def test_another_network_or_other_nodes_are_another_wish() -> None:
    jobs = [job("open", bid=9, network="open"), job("named", bid=8, placement={"nodes": ["a"]}), job("plain", bid=1)]
    assert pass_over(Backlog(), jobs, {"plain"}) == ["open", "named", "plain"]


def test_a_pass_is_bounded_and_everybody_is_looked_for_at_last() -> None:
    jobs = [job(f"{number:03}", bid=1000 - number, cpus=number + 1) for number in range(200)]
    backlog, looked = Backlog(), set()
    for _ in range(200 // BACKFILL + 1):
        turn = pass_over(backlog, jobs, set())
        assert len(turn) == 2 * BACKFILL
        assert turn[:BACKFILL] == [item.job_id for item in islice(jobs, BACKFILL)]  # the head is looked for each time
        looked |= set(turn)

    assert len(looked) == 200


def test_a_place_says_who_stands_before_it_and_why() -> None:
    jobs = [
        job("richer", bid=300, account="x"),
        job("older", bid=90, waited_ms=AGEING_MS, account="y"),
        job("turn", bid=100, account="z"),
        job("mine-first", bid=100, waited_ms=1000, account="me"),
        job("mine", bid=100, account="me"),
        job("later", bid=1, account="w"),
    ]
    running = {"me": 1}

    assert place_of("mine", jobs, NOW_MS, running) == Place(5, 6, bid_more=1, waited_longer=1, by_turn=1, own=1)
    assert place_of("richer", jobs, NOW_MS, running) == Place(1, 6)
    assert place_of("gone", jobs, NOW_MS, running) is None


def test_before_a_spot_job_come_all_that_are_none() -> None:
    jobs = [job("spot", bid=500, account="a", spot=True), job("plain", bid=1, account="b")]

    assert place_of("spot", jobs, NOW_MS, {}) == Place(2, 2, bid_more=1)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.sampled_from("abc")), min_size=1, max_size=12))
def test_places_are_the_order_and_everybody_before_is_counted_once(drawn: list[tuple[int, int, str]]) -> None:
    jobs = [
        job(f"job{number:02}", bid=bid, waited_ms=waited * AGEING_MS, account=account)
        for number, (bid, waited, account) in enumerate(drawn)
    ]
    for number, name in enumerate(names(*jobs)):
        place = place_of(name, jobs, NOW_MS, {})
        assert place is not None
        assert (place.place, place.waiting) == (number + 1, len(jobs))
        assert place.bid_more + place.waited_longer + place.by_turn + place.own == number
