"""The compiled search decides as the plain one over columns does, to the last bit of the score."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torg_marketplace.matching import kernel
from torg_marketplace.matching.compiled import KNOWN
from torg_marketplace.matching.constraints import search_constraints
from torg_marketplace.matching.engine import Engine
from torg_marketplace.matching.snapshot import Demand, NodeSnapshot
from torg_protocol.ids import NodeId
from torg_protocol.jobspec import load_job_spec
from torg_protocol.offers import GpuInfo, Inventory, Offer
from torg_protocol.proofs import ProofStatus, UnitProof
from torg_protocol.states import Liveness, NodeState
from torg_protocol.versions import SPOKEN

DECIMALS = 6
IMAGES = ("registry.example/a:1", "registry.example/b:1", "host-python")
PROVEN = ProofStatus(state="proven", units=(UnitProof(unit="gpu:0", gops=100),))
URL_INPUT = {"kind": "url", "path": "/data", "url": "https://models.example/m.bin", "digest": "sha256:" + "1" * 64}
VRAM_GIB = {"cpu": 0, "rtx-4090": 24, "a100": 80}


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    assert kernel.compile_now(), "numba is part of the development environment"


@st.composite
def snapshots(draw: st.DrawFn, number: int) -> NodeSnapshot:
    name = draw(st.sampled_from(sorted(VRAM_GIB)))
    gpus = 0 if name == "cpu" else draw(st.integers(1, 4))
    inventory = Inventory(
        source="simulated",
        gpu_class=name,
        gpus=tuple(
            GpuInfo(
                uuid=f"{slot}",
                model=name,
                vram_bytes=VRAM_GIB[name] << 30,
                compute_capability=draw(st.sampled_from(["8.0", "8.9"])),
            )
            for slot in range(gpus)
        ),
        cpu_millis=draw(st.integers(1, 16)) * 1000,
        memory_bytes=draw(st.integers(1, 64)) << 30,
        disk_bytes=draw(st.sampled_from([10, 100])) << 30,
    )
    offer = Offer(
        node=NodeId(f"node{number}"),
        sequence=1,
        marketplace="m",
        price_per_gpu_hour=draw(st.one_of(st.just(0), st.just(10**6), st.integers(9 * 10**5, 13 * 10**5))),
        slots=draw(st.integers(1, 3)),
        inventory=inventory,
        executor=draw(st.sampled_from(["docker", "sandbox"])),
        isolation=draw(st.sampled_from([("sandbox",), ("sandbox", "container"), ("gvisor",)])),
        payout_address="p",
        max_unpaid=draw(st.sampled_from([10**4, 10**15])),
        region=draw(st.sampled_from(["eu", "us"])),
        egress=draw(st.sampled_from([(), ("open",), ("allow", "open")])),
        own_root=draw(st.booleans()),
        gpu_slices=draw(st.sampled_from([1, 2, 4])),
    )
    return NodeSnapshot(
        offer.node,
        offer,
        draw(st.sampled_from([NodeState.ACTIVE, NodeState.ACTIVE, NodeState.DRAINING])),
        Liveness.ALIVE,
        connected=draw(st.integers(0, 9)) > 0,
        warm=frozenset(draw(st.sets(st.sampled_from(IMAGES)))),
        reputation_permille=draw(st.integers(0, 1000)),
        proof=draw(st.sampled_from([ProofStatus(), PROVEN])),
        protocol_version=draw(st.sampled_from(SPOKEN)),
    )


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    gpus = draw(st.sampled_from([0, 1, 1, 2, 4]))
    resources: dict[str, Any] = {
        "gpus": gpus,
        "cpus": draw(st.integers(1, 6)),
        "memory": f"{draw(st.integers(1, 16))}GiB",
        "disk": draw(st.sampled_from(["1GiB", "50GiB"])),
    }
    if gpus == 1:
        resources["gpu_fraction"] = draw(st.sampled_from([1, 1, 0.5, 0.3]))
    if gpus and draw(st.booleans()):
        resources["gpu_class"] = draw(st.sampled_from(["a100", "a100|rtx-4090"]))
    if gpus and draw(st.booleans()):
        resources["min_vram"] = draw(st.sampled_from(["10GiB", "40GiB"]))
    if gpus and draw(st.booleans()):
        resources["min_compute_capability"] = "8.9"
    spec = load_job_spec(
        {
            "version": 1,
            "command": ["x"],
            "image": draw(st.sampled_from(IMAGES)),
            "isolation": draw(st.sampled_from(["sandbox", "container"])),
            "network": draw(st.sampled_from(["none", "none", "open"])),
            "root": draw(st.sampled_from([False, False, True])),
            "placement": {
                "min_proven_gops": draw(st.sampled_from([0, 0, 50])),
                "nodes": draw(st.sampled_from([[], [], ["node1", "node2"]])),
            },
            "resources": resources,
            "excluded_nodes": draw(st.lists(st.sampled_from(["node0", "node1", "unknown"]), max_size=2)),
            "volumes": draw(st.sampled_from([{}, {}, {"models": "/models"}])),
            "inputs": draw(st.sampled_from([[], [], [URL_INPUT]])),
        }
    )
    return Demand(
        spec,
        client=draw(st.sampled_from(["anna", "ben"])),
        price_limit=draw(st.sampled_from([None, 10**6, 2 * 10**6])),
        amount_limit=draw(st.sampled_from([None, 10**4])),
        regions=frozenset(draw(st.sets(st.sampled_from(["eu", "us"])))),
        min_reputation_permille=draw(st.sampled_from([0, 500])),
    )


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_it_decides_as_the_plain_search_does(data: st.DataObject) -> None:
    nodes = [data.draw(snapshots(number)) for number in range(data.draw(st.integers(1, 10)))]
    plain, compiled = Engine(DECIMALS, nodes), Engine(DECIMALS, nodes)
    plain.compiled_from, compiled.compiled_from = 10**9, 0
    taken = []
    for asked in data.draw(st.lists(demands(), min_size=1, max_size=15)):
        for engine in (plain, compiled):
            engine.observe(asked)
        expected, found = plain.decide(asked), compiled.decide(asked)
        if expected is None or found is None:
            assert expected is found
            continue
        assert (found.node_id, found.gpus, found.score) == (expected.node_id, expected.gpus, expected.score)
        assert found.runner_up is None or found.runner_up[1].total >= found.score.total
        taken.append((found, asked))
        for engine in (plain, compiled):
            engine.take(found.node_id, asked, found.gpus)
        if len(taken) > 6:
            ended, demand = taken.pop(data.draw(st.integers(0, len(taken) - 1)))
            for engine in (plain, compiled):
                engine.give(ended.node_id, demand, ended.gpus)
    # Another type of arguments would be compiled when it comes, for ten seconds and on the event loop.
    assert len(kernel.scan.signatures) == 1  # type: ignore[union-attr] # numba's


def test_every_constraint_of_a_search_is_known_to_it() -> None:
    """A job with a constraint that is not asked in `kernel` is searched for over columns: right, and slow."""
    spec = load_job_spec(
        {
            "version": 1,
            "command": ["x"],
            "image": "alpine",
            "isolation": "container",
            "network": "open",
            "root": True,
            "placement": {"min_proven_gops": 1, "nodes": ["b"]},
            "volumes": ["models:/models"],
            "excluded_nodes": ["a"],
            "resources": {
                "gpus": 1,
                "gpu_fraction": 0.5,
                "gpu_class": "a100",
                "min_vram": "1GiB",
                "min_compute_capability": "8.0",
            },
        }
    )
    demand = Demand(
        spec,
        paused=frozenset({NodeId("c")}),
        price_limit=1,
        client="anna",
        regions=frozenset({"eu"}),
        min_reputation_permille=1,
    )
    for asked in (demand, replace(demand, amount_limit=1)):
        assert {rule.name for rule in search_constraints(asked, DECIMALS)} == KNOWN
