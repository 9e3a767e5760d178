"""A gang is not kept out by jobs that need one node each, however many come; and they are not kept out either, where they end before it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.marketplace.test_matching import DECIMALS, TUSD, demand, node
from torg_marketplace.matching.backlog import Backlog, Waiting
from torg_marketplace.matching.engine import Engine
from torg_marketplace.matching.gangs import decide_all
from torg_marketplace.matching.preempt import Host, Plan, Room, SpotLease, plan_all
from torg_marketplace.matching.reservation import PREPARING_MS, Busy, Place, Reservation, reserve
from torg_marketplace.matching.snapshot import Demand
from torg_protocol.ids import NodeId
from torg_protocol.jobspec import Gang

MINUTE_MS = 60_000
NOTHING, ONE = Room(0, 0, 0, 0), Room(1, 1_000, 1, 1)
NOW_MS = 1_000_000


def place(name: str, *until_min: int, price: int = 1, region: str = "", free: Room = NOTHING) -> Place:
    leases = tuple(Busy(ONE, NOW_MS + minutes * MINUTE_MS) for minutes in until_min)
    return Place(NodeId(name), price, region, free, leases)


def kept(gang: Gang, *places: Place, before: Reservation | None = None) -> Reservation | None:
    return reserve("gang", gang, ONE, places, before, NOW_MS)


def test_the_nodes_where_it_starts_soonest_are_kept() -> None:
    found = kept(Gang(size=2), place("a", 9), place("b", free=ONE, price=5), place("c", 4), place("d", 30))
    assert found == Reservation("gang", frozenset({NodeId("b"), NodeId("c")}), NOW_MS + 4 * MINUTE_MS, NOW_MS)


def test_in_one_region_when_it_is_asked_for() -> None:
    places = [place("a", free=ONE, region="north"), place("b", 3, region="south"), place("c", 5, region="south")]
    found = kept(Gang(size=2, same_region=True), *places)
    assert found is not None
    assert found.nodes == {"b", "c"}
    assert kept(Gang(size=3, same_region=True), *places) is None


def test_its_moment_does_not_move_away() -> None:
    promised = Reservation("gang", frozenset({NodeId("a"), NodeId("b")}), NOW_MS + MINUTE_MS, NOW_MS - 5_000)
    late = kept(Gang(size=2), place("a", 10), place("b", 10), before=promised)
    assert late is not None
    assert late.start_ms == promised.start_ms
    other = kept(Gang(size=2), place("a", 10), place("b", 10), before=replace(promised, job_id="another"))
    assert other is not None
    assert other.start_ms == NOW_MS + 10 * MINUTE_MS


def test_who_ends_before_it_may_use_the_kept_nodes() -> None:
    held = Reservation("gang", frozenset({NodeId("a")}), NOW_MS + 10 * MINUTE_MS + PREPARING_MS, NOW_MS)
    short, long = (demand(limits={"max_duration": limit}) for limit in ("10m", "11m"))
    assert held.outside(short, NOW_MS).excluded == frozenset()
    assert held.outside(long, NOW_MS).excluded == {"a"}


class Market:
    """One slot on each of `count` nodes, a minute per step, and always two small jobs that wait. `keeps`: whether nodes are kept."""

    def __init__(self, count: int, seed: int, longest_min: int, *, keeps: bool) -> None:
        self.engine = Engine(DECIMALS, [node(f"n{number}", slots=1) for number in range(count)])
        self.backlog, self.chance = Backlog(), random.Random(seed)
        self.longest_min, self.keeps = longest_min, keeps
        self.now_ms, self.jobs = NOW_MS, 0
        self.queue: list[Waiting] = []
        self.running: dict[NodeId, tuple[Demand, int, int]] = {}  # node -> what, when it ends, when at the latest
        self.held: Reservation | None = None

    def small(self) -> Waiting:
        self.jobs += 1
        minutes = self.chance.randint(1, self.longest_min)
        asked = demand(limits={"max_duration": f"{minutes}m"})
        return Waiting(f"small{self.jobs}", TUSD, self.now_ms, f"account{self.jobs}", demand=asked)

    def step(self) -> set[str]:
        """Who started."""
        for node_id, (what, ends_ms, _) in list(self.running.items()):
            if ends_ms <= self.now_ms:
                self.engine.give(node_id, what, ())
                del self.running[node_id]
        self.queue += [self.small() for _ in range(2 - sum(job.demand.spec.gang is None for job in self.queue))]
        started = self.match()
        self.queue = [job for job in self.queue if job.job_id not in started]
        self.now_ms += MINUTE_MS
        return started

    def match(self) -> set[str]:
        started: set[str] = set()
        held: Reservation | None = None
        for job in self.backlog.turns(self.queue, self.now_ms, {}):
            asked = job.demand if held is None else held.outside(job.demand, self.now_ms)
            if chosen := decide_all(self.engine, asked):
                started.add(job.job_id)
                for each in chosen:
                    self.start(each.node_id, job.demand)
                continue
            self.backlog.failed(job)
            if self.keeps and held is None and (gang := job.demand.spec.gang) is not None:
                held = reserve(job.job_id, gang, ONE, self.places(), self.held, self.now_ms)
        self.held = held
        return started

    def start(self, node_id: NodeId, what: Demand) -> None:
        self.engine.take(node_id, what, ())
        latest_ms = self.now_ms + what.max_duration_ms
        runs_ms = self.chance.randint(1, what.max_duration_ms // MINUTE_MS) * MINUTE_MS
        self.running[node_id] = (what, self.now_ms + runs_ms, latest_ms)

    def places(self) -> list[Place]:
        names = [self.engine.fleet.node_id(int(row)) for row in self.engine.fleet.rows()]
        return [
            Place(name, 1, "", NOTHING, (Busy(ONE, self.running[name][2]),))
            if name in self.running
            else Place(name, 1, "", ONE, ())
            for name in names
        ]


def waited_min(market: Market, size: int, patience_min: int) -> int | None:
    """How long a gang waits that comes to a busy market; None: for longer than that."""
    for _ in range(20):
        market.step()
    asked = demand(gang={"size": size}, limits={"max_duration": "5m"})
    market.queue.append(Waiting("gang", TUSD, market.now_ms, "its client", demand=asked))
    for minutes in range(patience_min):
        if "gang" in market.step():
            return minutes
    return None


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10_000), st.integers(5, 40), st.data())
def test_a_gang_that_fits_starts_within_a_bound(count: int, seed: int, longest_min: int, data: st.DataObject) -> None:
    """The longest that anybody may run, for those that wait already, and once more for those that ran."""
    size = data.draw(st.integers(2, count))
    bound_min = 2 * longest_min + PREPARING_MS // MINUTE_MS + 2
    waited = waited_min(Market(count, seed, longest_min, keeps=True), size, bound_min)
    assert waited is not None, f"it waited for more than {bound_min} minutes"


def test_without_kept_nodes_it_would_wait_for_ever() -> None:
    assert waited_min(Market(6, 1, 20, keeps=False), 6, 600) is None


@pytest.mark.parametrize(("same_region", "expected"), [(False, ("free", "one")), (True, ("one", "two"))])
def test_spot_leases_make_room_for_all_of_a_gang_or_for_none(same_region: bool, expected: tuple[str, ...]) -> None:
    hosts = [
        Host("free", 9, ONE, (), region="north"),
        Host("one", 1, NOTHING, (SpotLease("x", ONE, 5),), region="south"),
        Host("two", 1, NOTHING, (SpotLease("y", ONE, 7),), region="south"),
    ]
    found = plan_all(hosts, ONE, Gang(size=2, same_region=same_region))
    assert tuple(plan.node_id for plan in found) == expected
    assert found[-1] == (Plan("two", ("y",), 7) if same_region else Plan("one", ("x",), 5))
    assert plan_all(hosts, ONE, Gang(size=4)) == ()
