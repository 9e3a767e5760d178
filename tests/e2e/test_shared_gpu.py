"""Real processes and a real container engine share one SIMULATED GPU among one client's jobs. What is made up: NVML, the engine's nvidia hook
(which would mount the devices) and nvidia-smi inside of the image, which believes what the engine was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import simulated_nvml
from tests.support.docker_market import DockerMarket
from tests.support.engine import load_image, small_image
from tests.support.gpu_engine import SMI, engine_with_simulated_gpus
from tests.support.small_market import TUSD, submit
from torg.client import AsyncClient
from torg_node.executors.docker_archive import File
from torg_protocol.api import JobView
from torg_protocol.errors import Infeasible
from torg_protocol.states import JobState, LeaseState

pytestmark = [pytest.mark.engine, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]
IMAGE = "simulated-cuda"
_HALF = {"gpus": 1, "gpu_fraction": "0.5", "memory": "64MiB", "disk": "32MiB"}
_UNTIL_TOLD = ["sh", "-c", "nvidia-smi -L; sleep 600"]


@pytest.fixture
def engine_with_hook(tmp_path: Path) -> Iterator[Path]:
    with engine_with_simulated_gpus(tmp_path) as socket:
        yield socket


async def test_two_jobs_of_one_client_share_the_gpu_go_on_when_it_is_hot_and_a_strangers_waits(
    engine_with_hook: Path, tmp_path: Path
) -> None:
    (tmp_path / "nvml").mkdir()
    hot = tmp_path / "hot"
    environment = {
        "LD_LIBRARY_PATH": str(simulated_nvml.build(tmp_path / "nvml")),
        "TORG_SIMULATED_GPUS": "1",
        "TORG_SIMULATED_HOT": str(hot),
    }
    await load_image(
        engine_with_hook, small_image(f"{IMAGE}:latest", files=[File("bin/nvidia-smi", SMI.encode(), 0o755)])
    )
    market = DockerMarket(tmp_path / "market", engine=engine_with_hook, images=[IMAGE], gpu_slices=2)
    market.node_settings = {"heat_rest_after_s": 1, "heat_back_after_s": 2}
    try:
        await market.start_localnet()
        await market.start_marketplace()
        await market.start_node(environment)
        async with market.client() as anna, market.client() as bert:
            mine = [await _submit(anna, name) for name in ("first", "second")]
            for job in mine:
                await _until(anna, job, LeaseState.RUNNING)
            hot.write_text("0")
            refused = await _refused(bert)
            meanwhile = [await anna.job(job.job_id) for job in mine]
            hot.write_text("")
            strange = await _submitted(bert, "stranger")
            waiting = await _waits(bert, strange)
            for job in mine:
                await anna.cancel(job.job_id)
            ended = [await anna.wait(job.job_id) for job in mine]
            await _until(bert, strange, LeaseState.RUNNING)
            await bert.cancel(strange.job_id)
            ended.append(await bert.wait(strange.job_id))
            receipts = [
                (await who.receipts(job.job_id))[0].receipt for who, job in zip((anna, anna, bert), ended, strict=True)
            ]
            said = await anna.logs(mine[1].job_id)
    finally:
        await market.stop()

    assert said == "GPU 0: SIMULATED GPU (UUID: GPU-SIMULATED-0)\n"
    assert (waiting.state, waiting.waiting_for) == (JobState.QUEUED, "all 1 fitting node(s) are busy")
    assert "accepting: asked active" in str(refused), "its only GPU rests, so the node asks for no work"
    assert [job.leases[-1].state for job in meanwhile] == [LeaseState.RUNNING] * 2
    assert {receipt.gpu_uuids for receipt in receipts} == {("GPU-SIMULATED-0",)}
    for receipt in receipts:
        assert receipt.price_per_gpu_hour == TUSD // 2, "half of what the node asks"
        assert receipt.amount == receipt.price_per_gpu_hour * receipt.billed_ms // 3_600_000


async def _submit(client: AsyncClient, name: str) -> JobView:
    return await submit(client, _UNTIL_TOLD, name=name, image=f"{IMAGE}:latest", resources=_HALF, isolation="container")


async def _refused(client: AsyncClient) -> Infeasible:
    """Once no node takes such a job."""
    async with asyncio.timeout(150):
        while True:
            job = await _try(client, "early")
            if isinstance(job, Infeasible):
                return job
            await client.cancel(job.job_id)
            await client.wait(job.job_id)


async def _submitted(client: AsyncClient, name: str) -> JobView:
    """Once a node takes such a job."""
    async with asyncio.timeout(150):
        while True:
            job = await _try(client, name)
            if isinstance(job, JobView):
                return job
            await asyncio.sleep(0.2)


async def _try(client: AsyncClient, name: str) -> JobView | Infeasible:
    try:
        return await _submit(client, name)
    except Infeasible as problem:
        return problem


async def _until(client: AsyncClient, job: JobView, state: LeaseState) -> JobView:
    async with asyncio.timeout(150):
        while not (job.leases and job.leases[-1].state is state):
            assert job.state in {JobState.QUEUED, JobState.LEASED}, job
            await asyncio.sleep(0.2)
            job = await client.job(job.job_id)
    return job


async def _waits(client: AsyncClient, job: JobView) -> JobView:
    async with asyncio.timeout(150):
        while job.waiting_for is None:
            await asyncio.sleep(0.2)
            job = await client.job(job.job_id)
    return job
