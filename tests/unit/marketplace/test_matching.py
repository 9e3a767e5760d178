"""Matching is pure: what is chosen always fits, and what is refused is explained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.matching.constraints import can_run, constraints, could_run
from torg_marketplace.matching.engine import MOST_FACTOR, Decision, Engine
from torg_marketplace.matching.explain import explain, fitting
from torg_marketplace.matching.fleet import Fleet
from torg_marketplace.matching.mix import DemandMix
from torg_marketplace.matching.packing import outlook
from torg_marketplace.matching.snapshot import Demand, NodeSnapshot
from torg_marketplace.rules.pricing import price_ceiling
from torg_protocol.ids import Digest, NodeId
from torg_protocol.jobspec import load_job_spec
from torg_protocol.offers import GpuInfo, Inventory, Offer
from torg_protocol.states import Liveness, NodeState
from torg_protocol.versions import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, SPOKEN

DECIMALS = 6
TUSD = 10**DECIMALS


def node(
    name: str, *, price: int = TUSD, gpus: int = 0, vram_gib: int = 24, slots: int = 1, **changes: Any
) -> NodeSnapshot:
    inventory = Inventory(
        source="simulated",
        gpu_class="rtx-4090" if gpus else "cpu",
        gpus=tuple(
            GpuInfo(uuid=f"{name}-{number}", model="x", vram_bytes=vram_gib << 30, compute_capability="8.9")
            for number in range(gpus)
        ),
        cpu_millis=8_000,
        memory_bytes=16 << 30,
        disk_bytes=100 << 30,
    )
    offer = Offer(
        node=NodeId(name),
        sequence=1,
        marketplace="m",
        price_per_gpu_hour=price,
        slots=slots,
        inventory=inventory,
        executor="fake",
        isolation=("sandbox",),
        payout_address="p",
        max_unpaid=10**15,
    )
    snapshot = NodeSnapshot(NodeId(name), offer, NodeState.ACTIVE, Liveness.ALIVE, connected=True)
    return replace(snapshot, **changes)


def demand(**members: Any) -> Demand:
    return Demand(spec=load_job_spec({"version": 1, "command": ["x"]} | members), price_limit=100 * TUSD)


@st.composite
def markets(draw: st.DrawFn) -> list[NodeSnapshot]:
    count = draw(st.integers(0, 8))
    return [
        node(
            f"node{number}",
            price=draw(st.integers(0, 200 * TUSD)),
            gpus=draw(st.integers(0, 8)),
            vram_gib=draw(st.sampled_from([8, 24, 80])),
            slots=draw(st.integers(1, 4)),
            state=draw(st.sampled_from(NodeState)),
            liveness=draw(st.sampled_from(Liveness)),
            connected=draw(st.booleans()),
            units_in_use=frozenset(draw(st.sets(st.sampled_from(["gpu:0", "gpu:1", "slot:0", "slot:1"])))),
            memory_in_use=draw(st.integers(0, 16)) << 30,
            protocol_version=draw(st.sampled_from(SPOKEN)),
        )
        for number in range(count)
    ]


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    resources: dict[str, Any] = {"gpus": draw(st.integers(0, 8)), "memory": f"{draw(st.integers(1, 20))}GiB"}
    if resources["gpus"]:
        resources["min_vram"] = f"{draw(st.sampled_from([4, 24, 48]))}GiB"
    volumes = draw(st.sampled_from([{}, {"models": "/models"}]))
    excluded = draw(st.lists(st.sampled_from(["node0", "node1"])))
    return demand(resources=resources, excluded_nodes=excluded, volumes=volumes)


def decide(nodes: list[NodeSnapshot], asked: Demand) -> Decision | None:
    return Engine(DECIMALS, nodes).decide(asked)


@given(markets(), demands())
def test_what_is_chosen_can_run_and_nothing_better_was_left(nodes: list[NodeSnapshot], asked: Demand) -> None:
    rules = constraints(asked, DECIMALS)
    chosen = decide(nodes, asked)
    able = {item.node_id: item.offer.price_per_gpu_hour for item in nodes if can_run(item, rules)}
    assert (chosen is None) == (not able)
    if chosen is not None:
        assert chosen.node_id in able
        speaks = {item.node_id: item.protocol_version for item in nodes}
        assert not asked.spec.volumes or speaks[chosen.node_id] == PROTOCOL_VERSION
        assert able[chosen.node_id] <= min(able.values()) * MOST_FACTOR


@given(markets(), demands())
def test_the_order_of_nodes_does_not_matter(nodes: list[NodeSnapshot], asked: Demand) -> None:
    assert decide(nodes, asked) == decide(nodes[::-1], asked)


@given(markets(), demands())
def test_an_explanation_adds_up(nodes: list[NodeSnapshot], asked: Demand) -> None:
    fleet, rules = Fleet(nodes), constraints(asked, DECIMALS)
    told = explain(fleet, asked, DECIMALS)
    assert told.considered == len(nodes)
    assert {fleet.node_id(row) for row in told.fitting} == {item.node_id for item in nodes if could_run(item, rules)}
    assert fitting(fleet, asked, DECIMALS).tolist() == told.fitting.tolist()
    assert {fleet.node_id(row) for row in told.free} == {item.node_id for item in nodes if can_run(item, rules)}
    assert set(told.free.tolist()) <= set(told.live.tolist()) <= set(told.fitting.tolist())
    assert all(1 <= failure.nodes_removed <= len(nodes) for failure in told.failures)
    if nodes and not told.free.size:
        assert told.failures
        assert told.hint
    assert told.in_words


def test_the_decisive_constraint_comes_first() -> None:
    nodes = [node("a", gpus=1), node("b", gpus=2), node("c", gpus=2)]
    told = explain(nodes, demand(resources={"gpus": 2, "min_vram": "80GiB"}), DECIMALS)

    assert [(item.constraint, item.nodes_removed, item.best_available) for item in told.failures] == [
        ("min_vram", 3, "24.0 GiB"),
        ("gpus", 1, "2"),
    ]


def test_nodes_that_must_be_updated_first_are_counted_and_named() -> None:
    nodes = [node(f"old{number}", protocol_version=OLDEST_PROTOCOL_VERSION) for number in range(12)]
    told = explain(nodes, demand(volumes=["models:/models"]), DECIMALS)

    assert [(item.constraint, item.asked, item.nodes_removed, item.best_available) for item in told.failures] == [
        ("protocol_version", "2 (named volumes)", 12, "1")
    ]
    assert told.hint == "12 nodes speak protocol 1, which has no named volumes: their owners must update"
    assert told.in_words == told.hint


def test_a_checkpoint_by_pieces_is_for_who_can_read_it() -> None:
    nodes = [node("old", protocol_version=OLDEST_PROTOCOL_VERSION), node("new", price=2 * TUSD)]
    anew = demand(checkpoint={"enabled": True})
    for digest, chosen in (("sha256:", "old"), ("pieces:", "new")):
        decision = decide(nodes, replace(anew, resumes_from=Digest(digest + "1" * 64)))
        assert decision is not None
        assert decision.node_id == chosen


def test_best_available_is_what_the_other_constraints_leave() -> None:
    """The 8-GPU node is too dear: what would fit has two."""
    nodes = [node("dear", gpus=8, price=200 * TUSD), node("fair", gpus=2)]
    told = explain(nodes, demand(resources={"gpus": 4}), DECIMALS)

    assert [(item.constraint, item.best_available) for item in told.failures] == [
        ("gpus", "2"),
        ("max_price_per_hour", "200"),
    ]


def test_packing_prefers_the_node_that_is_filled() -> None:
    nodes = [node("big", gpus=8), node("small", gpus=2)]
    chosen = decide(nodes, demand(resources={"gpus": 2}))
    assert chosen is not None
    assert chosen.node_id == "small"


def test_packing_does_not_beat_a_clearly_better_price() -> None:
    nodes = [node("big", gpus=8, price=TUSD), node("small", gpus=2, price=2 * TUSD)]
    chosen = decide(nodes, demand(resources={"gpus": 2}))
    assert chosen is not None
    assert chosen.node_id == "big"


@pytest.mark.parametrize(
    ("prices", "cap", "attempts", "ceiling"),
    [
        ([], None, 3, None),
        ([5], None, 3, 5),
        ([1, 2, 3, 1000], None, 3, 3),
        ([1, 2, 3], 2, 3, 2),
        ([1, 1, 1], 5, 3, 5),  # what somebody bids is what is held
        ([5, 6], 4, 3, None),
        ([1, 2, 3], None, 1, 1),
        ([1, 1000], None, 3, 1),
        ([1, 1000], 1000, 3, 1000),  # the client said that it would pay this much
        ([0, 5], None, 3, 5),
    ],
)
def test_the_ceiling_leaves_room_for_retries_and_none_for_absurd_offers(
    prices: list[int], cap: int | None, attempts: int, ceiling: int | None
) -> None:
    assert price_ceiling(prices, cap, attempts) == ceiling


def test_a_node_that_lends_no_network_is_told_apart_from_one_that_does() -> None:
    closed, listed, opened = node("closed"), node("listed"), node("opened")
    listed = replace(listed, offer=listed.offer.model_copy(update={"egress": ("allow",)}))
    opened = replace(opened, offer=opened.offer.model_copy(update={"egress": ("allow", "open")}))
    everybody = [closed, listed, opened]
    some_names = {"egress": "allow", "allow": ["pypi.org"]}

    def fitting(network: object) -> list[str]:
        return [item.node_id for item in everybody if could_run(item, constraints(demand(network=network), 6))]

    assert fitting("none") == ["closed", "listed", "opened"]
    assert fitting(some_names) == ["listed", "opened"]
    assert fitting("open") == ["opened"]
    found = explain([closed, listed], demand(network="open"), 6)
    assert found.in_words == "no node satisfies network: asked open; best available: allow"
    assert explain([closed], demand(network=some_names), 6).hint == "network: best available is none, you ask for allow"


def test_a_job_that_wants_to_be_root_runs_where_it_may_at_its_isolation_level() -> None:
    closed, weak, strong = node("closed"), node("weak"), node("strong")
    weak = replace(weak, offer=weak.offer.model_copy(update={"own_root": True}))
    strong = replace(
        strong, offer=strong.offer.model_copy(update={"own_root": True, "isolation": ("sandbox", "container")})
    )
    everybody = [closed, weak, strong]

    def fitting(**members: object) -> list[str]:
        return [item.node_id for item in everybody if could_run(item, constraints(demand(**members), 6))]

    assert fitting() == ["closed", "weak", "strong"]
    assert fitting(root=True) == ["weak", "strong"]
    assert fitting(root=True, isolation="container") == []
    assert (
        explain([closed], demand(root=True), 6).in_words == "no node satisfies root: asked root; best available: none"
    )
    found = explain([closed, strong], demand(root=True, isolation="container"), 6)
    assert found.hint == "root: best available is without, you ask for root with isolation container"


def test_an_image_of_a_registry_needs_a_node_with_a_container_engine() -> None:
    engine, sandbox = node("engine"), node("sandbox")
    engine = replace(engine, offer=engine.offer.model_copy(update={"executor": "docker"}))
    sandbox = replace(sandbox, offer=sandbox.offer.model_copy(update={"executor": "sandbox", "own_root": True}))
    everybody = [engine, sandbox]

    def fitting(image: str) -> list[str]:
        return [item.node_id for item in everybody if could_run(item, constraints(demand(image=image), 6))]

    assert fitting("ubuntu:24.04") == ["engine"]
    assert fitting("host-python") == fitting(f"blob:sha256:{'0' * 64}") == ["engine", "sandbox"]
    tasks = [{"name": "a", "command": ["x"]}, {"name": "b", "image": "alpine"}]
    several = Demand(spec=load_job_spec({"version": 1, "tasks": tasks}), price_limit=100 * TUSD)
    found = explain([sandbox], several, 6)
    assert found.in_words == "no node satisfies image: asked alpine; best available: host-python"
    assert found.hint is not None
    assert "image: file:image.tar" in found.hint


def test_a_job_whose_secrets_are_sealed_runs_on_no_other_node() -> None:
    everybody = [node("a"), node("b"), node("c")]
    sealed = {"names": ["TOKEN"], "nodes": ["a", "b", "gone"], "sealed": "YQ=="}

    def fitting(**members: object) -> list[str]:
        return [item.node_id for item in everybody if could_run(item, constraints(demand(**members), 6))]

    assert fitting(secrets=sealed) == ["a", "b"]
    assert fitting(placement={"nodes": ["b", "c"]}) == ["b", "c"]
    assert fitting(secrets=sealed, placement={"nodes": ["b", "c"]}) == ["b"]
    found = explain(everybody, demand(secrets={**sealed, "nodes": ["gone"]}), 6)
    assert found.failures[0].constraint == "nodes"
    assert found.hint is not None
    assert "submit again" in found.hint


def test_no_room_is_kept_for_what_no_node_here_could_ever_hold() -> None:
    small = [node("small", gpus=2)]
    for nodes, most in ((small, 2), ([*small, node("large", gpus=8)], 8)):
        expected = outlook(DemandMix(), Fleet(nodes))  # one to eight GPUs, as long as nothing has been seen
        assert expected.gpus.max() == most
        assert expected.weights[Fleet(nodes).codes["class rtx-4090"]].sum() == pytest.approx(1)
