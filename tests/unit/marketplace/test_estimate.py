"""When room is expected, from what is held and from what leases did."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.matching.estimate import History, Holding, PastLease, openings_ms
from torg_marketplace.matching.fleet import Fleet
from torg_marketplace.matching.snapshot import Demand, NodeSnapshot
from torg_protocol.ids import NodeId
from torg_protocol.jobspec import load_job_spec
from torg_protocol.offers import GpuInfo, Inventory, Offer
from torg_protocol.states import Liveness, NodeState

HOUR_MS = 3_600_000
NODE = NodeId("node")


def full_node(gpus: int) -> Fleet:
    inventory = Inventory(
        source="simulated",
        gpu_class="a100",
        gpus=tuple(GpuInfo(uuid=str(number), model="A100", vram_bytes=80 << 30) for number in range(gpus)),
        cpu_millis=64_000,
        memory_bytes=256 << 30,
        disk_bytes=1 << 40,
    )
    offer = Offer(
        node=NODE,
        sequence=1,
        marketplace="m",
        price_per_gpu_hour=1,
        slots=1,
        inventory=inventory,
        executor="fake",
        isolation=("sandbox",),
        payout_address="p",
        max_unpaid=1,
    )
    used = frozenset(f"gpu:{number}" for number in range(gpus))
    return Fleet([NodeSnapshot(NODE, offer, NodeState.ACTIVE, Liveness.ALIVE, connected=True, units_in_use=used)])


def wanting(gpus: int) -> Demand:
    return Demand(load_job_spec({"version": 1, "command": ["x"], "resources": {"gpus": gpus}}))


def holding(since_ms: int, hours: int, gpus: int = 1) -> Holding:
    return Holding(since_ms, hours * HOUR_MS, gpus, 0, 1_000, 1 << 30, 1 << 30)


def test_a_job_of_several_gpus_waits_for_as_many_leases() -> None:
    held = {NODE: [holding(0, 3), holding(0, 1), holding(0, 2), holding(0, 9)]}
    for gpus, hours in ((1, 1), (2, 2), (3, 3), (4, 9)):
        assert openings_ms(full_node(4), [0], wanting(gpus), held, 0, share=1.0) == [hours * HOUR_MS]


def test_a_node_that_is_too_small_when_empty_never_opens() -> None:
    assert openings_ms(full_node(2), [0], wanting(3), {NODE: [holding(0, 1, 2)]}, 0, share=1.0) == []


def test_a_lease_that_outlived_its_expected_time_may_end_at_any_moment() -> None:
    held = {NODE: [holding(0, 2)]}
    assert openings_ms(full_node(1), [0], wanting(1), held, HOUR_MS, share=0.25) == [HOUR_MS]
    assert openings_ms(full_node(1), [0], wanting(1), held, HOUR_MS, share=1.0) == [2 * HOUR_MS]


@given(st.lists(st.tuples(st.integers(-HOUR_MS, 0), st.integers(1, 5)), min_size=4, max_size=4), st.floats(0, 1))
def test_expected_is_never_after_the_latest(rows: list[tuple[int, int]], share: float) -> None:
    held = {NODE: [holding(since_ms, hours) for since_ms, hours in rows]}
    for gpus in (1, 2, 4):
        expected = openings_ms(full_node(4), [0], wanting(gpus), held, 0, share=share)
        latest = openings_ms(full_node(4), [0], wanting(gpus), held, 0, share=1.0)
        assert 0 <= expected[0] <= latest[0]


def test_history_prefers_the_same_image_and_says_of_how_many() -> None:
    past = [PastLease("a", 10, 50, 100), PastLease("a", 30, 100, 100), PastLease("b", 500, None, 100)]
    history = History(past)

    assert history.usual_share == (0.75, 2)
    assert history.usual_preparation_ms("a") == (20, 2, True)
    assert history.usual_preparation_ms("c") == (30, 3, False)
    assert History().usual_preparation_ms("a") == (None, 0, False)
    assert History().usual_share == (1.0, 0)
