"""Which spot leases make room."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.matching.preempt import MOST_LEASES, Host, Plan, Room, SpotLease, is_protected, plan

NOTHING = Room(0, 0, 0, 0)
ONE = Room(1, 1_000, 1, 1)


def lease(name: str, *, units: int = 1, lost: int = 0) -> SpotLease:
    return SpotLease(name, Room(units, 1_000 * units, units, units), lost)


def host(name: str, *leases: SpotLease, free: Room = NOTHING, price: int = 1) -> Host:
    return Host(name, price, free, leases)


def test_the_lease_that_loses_least_goes() -> None:
    found = plan([host("a", lease("dear", lost=9), lease("cheap", lost=2)), host("b", lease("other", lost=5))], ONE)

    assert found == Plan("a", ("cheap",), 2)


def test_one_lease_with_much_to_lose_rather_than_two_with_little() -> None:
    two = Room(2, 2_000, 2, 2)
    found = plan([host("a", lease("x", lost=1), lease("y", lost=1)), host("b", lease("z", units=2, lost=50))], two)

    assert found == Plan("b", ("z",), 50)


def test_what_is_free_counts() -> None:
    assert plan([host("a", lease("x"), free=ONE)], Room(2, 2_000, 2, 2)) == Plan("a", ("x",), 0)


def test_among_equals_the_cheaper_node() -> None:
    assert plan([host("a", lease("x"), price=3), host("b", lease("y"), price=2)], ONE) == Plan("b", ("y",), 0)


@pytest.mark.parametrize("hosts", [[], [host("a")], [host("a", lease("x"))]])
def test_nothing_is_stopped_in_vain(hosts: list[Host]) -> None:
    assert plan(hosts, Room(2, 2_000, 2, 2)) is None


rooms = st.builds(Room, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
leases = st.lists(st.tuples(rooms, st.integers(0, 9)), max_size=6).map(
    lambda found: tuple(SpotLease(f"l{number}", room, lost) for number, (room, lost) in enumerate(found))
)


@given(st.lists(st.tuples(rooms, leases), max_size=3), rooms)
def test_no_other_choice_is_smaller_or_cheaper(nodes: list[tuple[Room, tuple[SpotLease, ...]]], asked: Room) -> None:
    hosts = [Host(f"n{number}", 1, free, found) for number, (free, found) in enumerate(nodes)]
    possible = [
        (count, sum(item.lost for item in chosen))
        for one in hosts
        for count in range(1, MOST_LEASES + 1)
        for chosen in combinations(one.leases, count)
        if sum((item.room for item in chosen), one.free).holds(asked)
    ]

    found = plan(hosts, asked)

    assert (None if found is None else (len(found.lease_ids), found.lost)) == min(possible, default=None)


def test_protection_doubles_with_each_preemption_and_has_a_bound() -> None:
    for preemptions, runs_ms in ((0, 60_000), (1, 120_000), (4, 960_000), (40, 960_000)):
        assert is_protected(1_000, preemptions, 1_000 + runs_ms - 1, 60_000)
        assert not is_protected(1_000, preemptions, 1_000 + runs_ms, 60_000)
    assert not is_protected(None, 3, 10**9, 60_000)
