"""Volumes by the commands that people type: from one owner's machine to another's, and through a kill."""

from __future__ import annotations

import asyncio
import os
import shutil
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

from scripts.market_processes import remove_containers, script
from tests.support.small_market import SmallMarket, submit, submit_raw
from tests.support.waiting import eventually
from torg.client import AsyncClient
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.states import EndReason, JobState

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.sandbox,
    pytest.mark.root,
    pytest.mark.timeout(900),
]
APPEND_LINE = """
import sys
open("/data/log.txt", "a").write(sys.argv[1] + "\\n")
print(open("/data/log.txt").read(), flush=True)
"""
APPEND = ["python", "-c", APPEND_LINE]


async def torg(client: AsyncClient, *arguments: str, cwd: Path | None = None, exit_code: int = 0) -> str:
    """Output of a command line."""
    home, url = str(client.config.home), client.config.marketplace_url
    process = await asyncio.create_subprocess_exec(
        script("torg"), "--home", home, "--marketplace", url, *arguments, cwd=cwd, stdout=PIPE, stderr=STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == exit_code, output.decode()
    return output.decode()


async def other_owner(market: SmallMarket, client: AsyncClient) -> None:
    """The machine burns, and somebody else lends one."""
    assert market.node is not None
    gone = market.node.ready["node"]
    await market.node.kill()
    await remove_containers(market.folder / "node")
    shutil.rmtree(market.folder / "node")
    await market.start_node()

    async def is_there() -> bool:
        return any(offer.node != gone and offer.liveness == "alive" for offer in await client.offers())

    await eventually(is_there)


async def test_a_volume_follows_its_jobs_to_another_owners_machine(
    market: SmallMarket, client: AsyncClient, tmp_path: Path
) -> None:
    first = await client.wait((await submit(client, [*APPEND, "of A"], volumes=["journal:/data"])).job_id)
    assert first.state is JobState.SUCCEEDED, first.detail
    await other_owner(market, client)
    second = await torg(client, "run", "--no-workspace", "-v", "journal:/data", "--", *APPEND, "of B")
    assert "of A\nof B\n" in second

    await torg(client, "volume", "get", "journal", "-o", "copy", cwd=tmp_path)
    assert (tmp_path / "copy" / "log.txt").read_text() == "of A\nof B\n"
    (listed,) = await client.list_volumes()
    assert (listed.name, listed.generation, listed.writer) == ("journal", 2, None)


async def test_a_job_that_fails_or_dies_leaves_what_was_there(
    market: SmallMarket, client: AsyncClient, tmp_path: Path
) -> None:
    (tmp_path / "seed").mkdir()
    (tmp_path / "seed" / "log.txt").write_text("put\n")
    await client.put_volume("kept", tmp_path / "seed")
    failing = ["python", "-c", APPEND_LINE + "sys.exit(3)", "of a failure"]
    failed = await client.wait((await submit(client, failing, volumes=["kept:/data"])).job_id)
    assert (failed.state, failed.reason) == (JobState.FAILED, EndReason.FAILED_EXIT)
    await client.get_volume("kept", tmp_path / "after the failure")
    await client.get_job_volume(failed.job_id, "kept", tmp_path / "left")
    assert (tmp_path / "after the failure" / "log.txt").read_text() == "put\n"
    assert (tmp_path / "left" / "log.txt").read_text() == "put\nof a failure\n"

    endless = ["python", "-c", APPEND_LINE + "import time; time.sleep(600)", "of the dead"]
    job = await submit(client, endless, volumes=["kept:/data"], lease_grace="5s")

    async def is_running() -> bool:
        return "of the dead" in await client.logs(job.job_id)

    await eventually(is_running)
    await other_owner(market, client)

    async def runs_again() -> bool:
        attempts = len((await client.job(job.job_id)).leases)  # more than two of a machine that is very slow
        return attempts > 1 and (await client.logs(job.job_id)).count("of the dead") == attempts

    await eventually(runs_again)
    assert (await client.logs(job.job_id)).endswith("put\nof the dead\n\n"), "nothing of the dead attempt is there"
    await client.cancel(job.job_id)
    await client.wait(job.job_id)

    async def is_kept() -> bool:
        return (await client.volume("kept")).generation == 2

    await eventually(is_kept)


async def test_readers_cannot_write_and_the_unknown_is_named(client: AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights").write_bytes(os.urandom(1000))
    await torg(client, "volume", "put", "models", "--new", cwd=tmp_path)
    with pytest.raises(Conflict) as moved:
        await client.put_volume("models", tmp_path / "models", generation=0)
    assert moved.value.code == "volume_moved"
    write = "open('/models/weights', 'w')"
    job = await client.wait((await submit(client, ["python", "-c", write], volumes=["models:/models:ro"])).job_id)
    assert (job.state, job.reason) == (JobState.FAILED, EndReason.FAILED_EXIT)
    assert "Read-only file system" in await client.logs(job.job_id, "stderr")
    with pytest.raises(Invalid) as unknown:
        await submit(client, ["true"], volumes=["model:/m:ro"])
    assert (unknown.value.code, unknown.value.hint) == ("volume_unknown", 'did you mean "models"?')
    shown = await torg(client, "volume", "ls")
    assert "models" in shown
    assert "generation:  1" in await torg(client, "volume", "show", "models")
    assert "is gone" in await torg(client, "volume", "rm", "models")
    with pytest.raises(NotFound):
        await client.volume("models")


async def test_tasks_share_a_volume_that_is_kept(client: AsyncClient, tmp_path: Path) -> None:
    tasks = [
        {"name": "write", "command": ["python", "-c", "open('/v/a', 'w').write('1')"]},
        {
            "name": "more",
            "command": ["python", "-c", "open('/w/b', 'w').write(open('/v/a').read())"],
            "depends_on": ["write"],
            "volumes": [{"volume": "shared", "path": "/w"}],
        },
    ]
    volumes = {"shared": {"keep": True, "path": "/v"}}
    job = await client.wait((await submit_raw(client, {"tasks": tasks, "volumes": volumes})).job_id)
    assert job.state is JobState.SUCCEEDED, job.detail
    await client.get_volume("shared", tmp_path / "got")
    assert sorted(path.name for path in (tmp_path / "got").iterdir()) == ["a", "b"]
