"""Verification by fingerprints: drawn as any audit, judged by the catalogue's own bound, and a failed one costs stake."""

from __future__ import annotations

import pytest

from tests.flow.test_slash import STAKE, join_with_stake, slashes
from tests.support.actors import Client, Node, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.verify import verify_pending
from torg_marketplace.ports import CatalogueEntry, Measurement
from torg_protocol.api import JobView
from torg_protocol.errors import Invalid
from torg_protocol.states import JobState, LeaseState

COMMAND = ("python", "generate.py")


def activation_spec(world: World, **changes: object) -> dict[str, object]:
    workspace = world.blobs.put(b"a catalogue workspace")
    world.catalogue.entries["generate"] = CatalogueEntry(
        name="generate",
        workspace_digest=workspace.digest,
        metric="distance",
        target="0.0003",
        better="lower",
        required_outputs=("answers.safetensors",),
        policy="activation",
        command=COMMAND,
    )
    members = {
        "command": list(COMMAND),
        "workspace": workspace.model_dump(mode="json"),
        "verify": {"policy": "activation", "catalogue": "generate"},
        "outputs": ["answers.safetensors"],
    }
    return spec(**members | changes)


async def reported(world: World) -> tuple[Client, Node, JobView]:
    node, client = await join_with_stake(world), await make_client(world)
    job = await client.submit(activation_spec(world))
    await match_pending(world.market)
    await node.accept_and_start()
    world.advance(seconds=20)
    await node.finish(outputs={"answers.safetensors": b"answers"})
    return client, node, job


async def test_texts_of_the_right_model_are_paid(world: World) -> None:
    client, node, job = await reported(world)
    world.evaluator.will_measure(distance="0.000001")
    assert await verify_pending(world.market) == 1
    node.read()
    assert (await client.job(job.job_id)).state == JobState.SUCCEEDED
    (receipt,) = await client.receipts(job.job_id)
    verdict = receipt.receipt.verdict
    assert (verdict.policy, verdict.result, verdict.measured["distance"]) == ("activation", "passed", "0.000001")
    assert verdict.measured["audit_permille"] == "1000"
    assert await slashes(world) == []


@pytest.mark.parametrize(
    "found", [Measurement(values={"distance": "0.0004"}), Measurement(detail="not_safetensors: no header")]
)
async def test_texts_of_another_model_cost_their_node_stake(world: World, found: Measurement) -> None:
    client, node, job = await reported(world)
    world.evaluator.script.append(found)
    assert await verify_pending(world.market) == 1
    node.read()
    view = await client.job(job.job_id)
    assert (view.state, view.leases[0].state) == (JobState.QUEUED, LeaseState.REJECTED)
    (slash,) = await slashes(world)
    assert 0 < slash.amount <= STAKE


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"verify": {"policy": "activation", "catalogue": "cnn"}}, "catalogue_unknown"),
        (
            {"verify": {"policy": "metric", "catalogue": "generate", "metric": "distance", "target": "1"}},
            "catalogue_unknown",
        ),
        ({"command": ["python", "generate.py", "--prompts", "1"]}, "command_not_catalogue"),
        ({"env": {"PYTHONPATH": "/tmp"}}, "command_not_catalogue"),
        ({"workspace": None}, "workspace_not_catalogue"),
        ({"outputs": []}, "outputs_undeclared"),
    ],
)
async def test_what_cannot_be_checked_is_refused_at_submission(
    world: World, changes: dict[str, object], code: str
) -> None:
    node, client = await join_with_stake(world), await make_client(world)
    with pytest.raises(Invalid) as refused:
        await client.submit(activation_spec(world, **changes))
    assert refused.value.code == code
    node.read()
