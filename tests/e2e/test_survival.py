"""A host in trouble: its disk runs full under a running lease, and it goes down and comes back (the reboot is SIMULATED)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.executors import left_behind
from tests.support.small_market import SmallMarket, run, running_market, submit
from tests.support.waiting import until
from torg.client import AsyncClient
from torg_protocol.states import JobState, LeaseState

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]
COUNT = ["python", "-u", "-c", "import time\nfor n in range(12):\n    print(n)\n    time.sleep(0.5)"]
COUNTED = "".join(f"{n}\n" for n in range(12))


@pytest.fixture
def node_disk(tmp_path: Path) -> Iterator[Path]:
    """The node's data folder on a small disk of its own."""
    folder = tmp_path / "node"
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700m,mode=0700", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)
    assert left_behind(tmp_path, "no token of a job") == []


@pytest.fixture
async def market(tmp_path: Path, node_disk: Path) -> AsyncIterator[SmallMarket]:
    async with running_market(tmp_path) as market:
        yield market


async def test_a_host_whose_disk_is_full_delivers_when_there_is_room_again_and_a_reboot_frees_the_lease(
    market: SmallMarket, node_disk: Path
) -> None:
    async with market.client() as client:
        await _disk_full(client, node_disk)
        await _reboot(market, client, node_disk)


async def _disk_full(client: AsyncClient, disk: Path) -> None:
    job = await submit(client, COUNT, lease_grace="60s")
    await _until_running(client, job.job_id)
    filler = disk / "filler"
    _fill(filler)
    with pytest.raises(OSError, match="No space left"):
        (disk / "one more").write_bytes(bytes(1 << 20))
    (disk / "one more").unlink(missing_ok=True)
    async with asyncio.timeout(150):
        while COUNTED not in await client.logs(job.job_id):  # noqa: ASYNC110 - it ran to its end on a full host
            await asyncio.sleep(0.1)
    await asyncio.sleep(2)  # the agent tries in vain to write down what came of it
    filler.unlink()
    async with asyncio.timeout(150):
        ended = await client.wait(job.job_id)
    assert (ended.state, len(ended.leases)) == (JobState.SUCCEEDED, 1)
    assert (await run(client, ["true"])).state is JobState.SUCCEEDED


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        size = 1 << 20
        while size >= 4096:
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, 2), size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2


async def _reboot(market: SmallMarket, client: AsyncClient, data: Path) -> None:
    forever = ["python", "-u", "-c", "print('1'); import time; time.sleep(600)"]
    job = await submit(client, forever, lease_grace="60s", limits={"max_duration": "5m"})
    await _until_running(client, job.job_id)
    assert market.node is not None
    await market.node.kill()
    lease_id = (await client.job(job.job_id)).leases[0].lease_id
    state = data / "containers" / "sandbox" / lease_id.replace("_", "-", 1)
    shim = json.loads((state / "shim.json").read_text())
    os.kill(shim["pid"], signal.SIGKILL)
    for name in ("shim.json", "program.json"):
        known = json.loads((state / name).read_text())
        (state / name).write_text(json.dumps({**known, "boot_id": "another boot"}))
    await market.start_node()
    async with asyncio.timeout(150):
        while (await client.job(job.job_id)).leases[0].state in {LeaseState.RUNNING, LeaseState.STOPPING}:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    found = await client.job(job.job_id)
    assert (found.state, len(found.leases), found.leases[0].billed_ms) == (JobState.QUEUED, 1, 0)
    await until(lambda: not state.exists())  # the node cleans up after it has reported
    await client.cancel(job.job_id)
    assert (await run(client, ["true"])).state is JobState.SUCCEEDED


async def _until_running(client: AsyncClient, job_id: str) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(150):
            while "1\n" not in await client.logs(job_id):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            return
    raise AssertionError("it does not run")
