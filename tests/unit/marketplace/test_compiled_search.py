"""The compiled search decides as the plain one over columns does, to the last bit of the score."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torg_marketplace.matching import constraints, kernel
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


def rarely(usual: Any, *unusual: Any) -> st.SearchStrategy[Any]:
    """Jobs ask twenty questions: were each answer as likely as the other, no node would have them all, and nothing would be compared."""
    return st.sampled_from([*[usual] * (9 * len(unusual)), *unusual])


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
        executor=draw(rarely("docker", "sandbox")),
        isolation=draw(st.sampled_from([("sandbox", "container"), ("sandbox",), ("gvisor",)])),
        payout_address="p",
        max_unpaid=draw(rarely(10**15, 10**4)),
        region=draw(st.sampled_from(["eu", "us"])),
        egress=draw(st.sampled_from([(), ("open",), ("allow", "open")])),
        own_root=draw(st.booleans()),
        gpu_slices=draw(st.sampled_from([1, 2, 4])),
    )
    return NodeSnapshot(
        offer.node,
        offer,
        draw(rarely(NodeState.ACTIVE, NodeState.DRAINING)),
        Liveness.ALIVE,
        connected=draw(st.integers(0, 9)) > 0,
        warm=frozenset(draw(st.sets(st.sampled_from(IMAGES)))),
        reputation_permille=draw(st.integers(0, 1000)),
        proof=draw(st.sampled_from([ProofStatus(), PROVEN])),
        protocol_version=draw(rarely(max(SPOKEN), *SPOKEN)),
    )


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    gpus = draw(st.sampled_from([0, 1, 1, 2, 4]))
    resources: dict[str, Any] = {
        "gpus": gpus,
        "cpus": draw(st.integers(1, 6)),
        "memory": f"{draw(st.integers(1, 16))}GiB",
        "disk": draw(rarely("1GiB", "50GiB")),
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
            "isolation": draw(rarely("sandbox", "container")),
            "network": draw(rarely("none", "open")),
            "root": draw(rarely(False, True)),
            "placement": {
                "min_proven_gops": draw(rarely(0, 50)),
                "nodes": draw(rarely([], ["node1", "node2"])),
            },
            "resources": resources,
            "excluded_nodes": draw(st.lists(st.sampled_from(["node0", "node1", "unknown"]), max_size=2)),
            "volumes": draw(rarely({}, {"models": "/models"})),
            "inputs": draw(rarely([], [URL_INPUT])),
        }
    )
    return Demand(
        spec,
        client=draw(st.sampled_from(["anna", "ben"])),
        price_limit=draw(st.sampled_from([None, 11 * 10**5, 2 * 10**6])),
        amount_limit=draw(st.sampled_from([None, 10**4])),
        regions=frozenset(draw(rarely((), ("eu",), ("us", "asia"), ("eu", "us")))),
        min_reputation_permille=draw(rarely(0, 500)),
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


def test_it_asks_every_constraint() -> None:
    """By the source, so that a new one is noticed whatever it is about. What stands here is asked by `kernel._passes`."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(constraints))) if isinstance(node, ast.Call)]
    made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Constraint"]
    of_search = [call for call in made if not any(word.arg == "in_search" for word in call.keywords)]
    assert {ast.literal_eval(call.args[0]) for call in of_search} == {
        "gpu_fraction",
        "min_vram",
        "min_compute_capability",
        "isolation",
        "image",
        "root",
        "network",
        "region",
        "max_unpaid",
        "reputation",
        "min_proven_gops",
        "protocol_version",
        "nodes",
        "excluded_nodes",
        "declined",
    }
