"""A spot job trains until a job at the full price wants its place, and goes on after that where it was: to the same bits."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.small_market import SmallMarket, running_market, submit
from torg.client import AsyncClient
from torg_protocol.states import EndReason, JobState, LeaseState

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(900)]
STEPS = 600
# Gradient descent on one made-up sample a step, slowly until it resumes. At SIGTERM it writes a checkpoint of the step that it has
# reached, and ends.
TRAIN = f"""
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(os.environ["TORG_CHECKPOINT_DIR"])
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
found = sorted(item for item in folder.iterdir() if item.name.startswith("step-"))
step, weight, bias = json.loads((found[-1] / "state.json").read_text()) if found else (0, 0.0, 0.0)
print("from", step, flush=True)
while step < {STEPS}:
    x = ((step * 7919) % 101) / 101.0
    error = weight * x + bias - (3.0 * x - 1.0)
    weight, bias, step = weight - 0.1 * error * x, bias - 0.1 * error, step + 1
    if asked:
        new = folder / f".step-{{step:05}}"
        new.mkdir()
        (new / "state.json").write_text(json.dumps([step, weight, bias]))
        new.rename(folder / f"step-{{step:05}}")
        sys.exit(143)
    if not found:
        time.sleep(float(os.environ.get("PACE_S", "0")))
(pathlib.Path(os.environ["TORG_OUTPUT_DIR"]) / "model.txt").write_text(weight.hex() + " " + bias.hex())
"""


async def test_a_preempted_spot_job_resumes_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    options = ("--spot-protected", "1s", "--preempt-grace", "30s")
    market = SmallMarket(tmp_path, price="1.00", spot_price="0.40", options=options)
    async with running_market(tmp_path, market=market), market.client() as client, market.client() as other:
        (offer,) = await client.offers()
        assert (offer.price_per_gpu_hour, offer.spot_price_per_gpu_hour) == (1_000_000, 400_000)
        cheap = await submit(
            client,
            ["python", "-c", TRAIN],
            spot=True,
            checkpoint={"enabled": True},
            env={"PACE_S": "0.25"},
            outputs=["model.txt"],
            retry={"max_attempts": 1},
            limits={"max_duration": "5m", "queue_timeout": "5m"},
        )
        await _until_it_trains(client, cheap.job_id)
        urgent = await submit(other, ["python", "-c", "print('at once')"], limits={"max_duration": "1m"})
        done, trained = await other.wait(urgent.job_id), await client.wait(cheap.job_id)
        (model,) = await client.pull(cheap.job_id, tmp_path / "results")
        logs = await client.logs(cheap.job_id)

    assert done.state is JobState.SUCCEEDED
    assert done.leases[0].price_per_gpu_hour == 1_000_000
    assert trained.state is JobState.SUCCEEDED, trained.detail
    first, second = trained.leases
    assert (first.state, first.reason, first.newest_checkpoint is not None) == (
        LeaseState.RELEASED,
        EndReason.PREEMPTED,
        True,
    )
    assert first.billed_ms > 0  # up to the checkpoint that it wrote at the signal
    assert {lease.price_per_gpu_hour for lease in trained.leases} == {400_000}
    assert done.leases[0].granted_at_ms < second.granted_at_ms
    started, resumed = logs.splitlines()
    assert (started, resumed) == ("from 0", f"from {int(resumed.removeprefix('from '))}")
    assert resumed != started
    assert model.read_text() == _without_interruption(tmp_path)


def _without_interruption(folder: Path) -> str:
    alone = folder / "alone"
    (alone / "checkpoint").mkdir(parents=True)
    env = {"TORG_CHECKPOINT_DIR": str(alone / "checkpoint"), "TORG_OUTPUT_DIR": str(alone)}
    subprocess.run([sys.executable, "-c", TRAIN], env=env, check=True, capture_output=True)
    return (alone / "model.txt").read_text()


async def _until_it_trains(client: AsyncClient, job_id: str) -> None:
    """Its first line says that it has a handler for the signal. It comes word by word, and not always in one event."""
    said = ""
    async with asyncio.timeout(150):
        async for event in client.follow(job_id):
            said += event.data["text"] if event.kind == "log" else ""
            if "from 0\n" in said:
                return
    raise AssertionError(f"{job_id} ended before it ran")
