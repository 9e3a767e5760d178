"""A secret from its variable on the client's computer into the job, and nowhere else."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import time
from pathlib import Path

import pytest

from scripts.market_processes import call, remove_containers, script, start
from tests.support.searching import files_below, holds, matching, places_that_hold
from tests.support.small_market import SmallMarket, run, submit
from torg.client import AsyncClient
from torg_node.steps.open_secrets import MEMORY
from torg_protocol.states import EndReason, JobState

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.sandbox, pytest.mark.root]
READ = """
import os, pathlib, time
folder = pathlib.Path(os.environ["TORG_SECRETS_DIR"])
for path in sorted(folder.iterdir()):
    print(path.name, len(path.read_bytes()), oct(path.stat().st_mode & 0o777))
print("fs", os.statvfs(folder).f_flag & os.ST_RDONLY)
print("SECRET" in os.environ)
pathlib.Path(os.environ["TORG_OUTPUT_DIR"], "read").write_text(str(sum(path.read_bytes()[0] for path in folder.iterdir())))
while not pathlib.Path("go").exists() and os.environ.get("WAIT"): time.sleep(0.05)
"""


def kept_in_memory() -> list[Path]:
    return [path for path in matching(MEMORY, "torg-*/*") if path.is_dir()]


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> bytes:
    value = f"very-secret-{secrets.token_hex(16)}"
    monkeypatch.setenv("A_TOKEN", value)
    return value.encode()


async def test_the_job_reads_it_and_nothing_else_holds_it_while_it_runs_or_afterwards(
    market: SmallMarket, client: AsyncClient, secret: bytes, tmp_path: Path
) -> None:
    (tmp_path / "key.pem").write_bytes(b"PEM " + secret)
    sources = {"TOKEN": {"env": "A_TOKEN"}, "key.pem": {"file": str(tmp_path / "key.pem")}}
    job = await submit(client, ["python", "-u", "-c", READ], secrets=sources, env={"WAIT": "1"}, outputs=["read"])
    await _until_said(client, job.job_id, "fs")
    (lease,) = (await client.job(job.job_id)).leases

    assert places_that_hold(secret, market.folder) == []
    (kept,) = [path for path in kept_in_memory() if path.name == lease.lease_id]
    assert holds(kept / "TOKEN", secret)  # where it should be, so the search above can find
    assert kept.stat().st_uid == (kept / "TOKEN").stat().st_uid == 65534

    (market.folder / "node" / "leases" / lease.lease_id / "disk" / "files" / "work" / "go").touch()
    job = await client.wait(job.job_id)
    logs = await client.logs(job.job_id)
    assert (job.state, logs.splitlines()) == (
        JobState.SUCCEEDED,
        [f"TOKEN {len(secret)} 0o400", f"key.pem {len(secret) + 4} 0o400", "fs 1", "False"],
    )
    assert places_that_hold(secret, market.folder) == []
    await _until_gone(kept.parent)


async def test_secrets_in_another_job_than_they_were_sealed_for_stay_closed(client: AsyncClient, secret: bytes) -> None:
    first = await run(client, ["python", "-u", "-c", READ], secrets={"TOKEN": {"env": "A_TOKEN"}})
    assert first.spec.secrets is not None
    stolen = first.spec.secrets.model_dump(mode="json")

    job = await run(client, ["sh", "-c", "cat /run/secrets/TOKEN"], secrets=stolen)

    assert (job.state, job.reason) == (JobState.FAILED, EndReason.INPUT_INVALID)
    assert secret.decode() not in await client.logs(job.job_id)


async def test_the_same_key_gives_the_same_job_although_it_is_sealed_anew(client: AsyncClient, secret: bytes) -> None:
    from torg.spec_file import spec_from_mapping

    raw = {
        "version": 1,
        "command": ["true"],
        "resources": {"memory": "128MiB", "disk": "32MiB"},
        "secrets": {"TOKEN": {"env": "A_TOKEN"}},
    }
    file = spec_from_mapping(raw, base=client.config.home)
    jobs = [await client.submit(file, idempotency_key="once") for _ in range(2)]

    assert jobs[0].job_id == jobs[1].job_id
    await client.wait(jobs[0].job_id)


async def test_a_second_node_opens_them_when_the_first_one_fails_and_the_client_is_away(
    market: SmallMarket, client: AsyncClient, secret: bytes
) -> None:
    """They were sealed to both when the job was submitted."""
    other = market.folder / "other"
    init = ["init", "--data", str(other), "--marketplace", market.url, "--price", "1.00", "--executor", "sandbox"]
    await call([script("torg-node"), *init, "--yes"])
    second = await start("other", [script("torg-node"), "start", "--data", str(other)], market.folder / "other.log")
    try:
        job = await submit(
            client, ["python", "-u", "-c", READ], secrets={"TOKEN": {"env": "A_TOKEN"}}, env={"WAIT": "1"}
        )
        assert job.spec.secrets is not None
        assert len(job.spec.secrets.nodes) == 2
        first = await _killed(market.folder, set())
        again = await _killed(market.folder, {first}, kill=False)
        assert again.parts[-4] != first.parts[-4]  # another node's folder
        (go,) = matching(market.folder, f"*/leases/{again.name.replace('-', '_', 1)}/disk/files/work")
        (go / "go").touch()

        job = await client.wait(job.job_id)
        assert job.state is JobState.SUCCEEDED
        assert [lease.reason for lease in job.leases] == [EndReason.HOST_PROTECTION, EndReason.COMPLETED]
        assert f"TOKEN {len(secret)} 0o400" in await client.logs(job.job_id)
    finally:
        await second.stop()
        await remove_containers(other)


async def test_what_an_agent_left_while_it_stopped_the_next_one_sweeps(
    market: SmallMarket, client: AsyncClient, secret: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job ends while no agent is there; and of a lease that the journal has closed already, whole and half-written folders lie there."""
    sources = {"TOKEN": {"env": "A_TOKEN"}}
    job = await submit(client, ["python", "-u", "-c", READ], secrets=sources, env={"WAIT": "1"}, lease_grace="2m")
    await _until_said(client, job.job_id, "fs 1")
    (lease,) = (await client.job(job.job_id)).leases
    (own,) = [path for path in kept_in_memory() if path.name == lease.lease_id]
    assert market.node is not None
    await market.node.stop()
    (market.folder / "node" / "leases" / lease.lease_id / "disk" / "files" / "work" / "go").touch()
    for name in ("lease_closed", ".lease_torn"):
        (own.parent / name).mkdir(mode=0o500)
    (own.parent / "lease_closed" / "TOKEN").write_bytes(secret)
    monkeypatch.delenv("A_TOKEN")  # which the next agent would inherit from this process
    await market.start_node()

    ended = await client.wait(job.job_id)
    await _until_gone(own.parent)
    assert (ended.state, len(ended.leases)) == (JobState.SUCCEEDED, 1)
    assert places_that_hold(secret, market.folder) == []


async def _until_gone(folder: Path) -> None:
    deadline = time.monotonic() + 150
    while folder.exists():
        assert time.monotonic() < deadline, [*folder.iterdir()]
        await asyncio.sleep(0.05)


async def _until_said(client: AsyncClient, job_id: str, text: str) -> None:
    deadline = time.monotonic() + 150
    while text not in await client.logs(job_id):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def _killed(folder: Path, known: set[Path], *, kill: bool = True) -> Path:
    """The folder of the container that runs now and is not `known`, killed as a person with root would do it."""
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        for place in set(matching(folder, "*/containers/sandbox/*")) - known:
            if place.name.startswith("lease") and (place / "shim.json").exists() and b"fs 1" in _printed(place):
                if kill:
                    main = json.loads((place / "shim.json").read_text())["pid"]
                    for child in Path(f"/proc/{main}/task/{main}/children").read_text().split():
                        os.kill(int(child), signal.SIGKILL)
                return place
        await asyncio.sleep(0.1)
    raise AssertionError("no further container came")


def _printed(place: Path) -> bytes:
    return b"".join(path.read_bytes() for path in files_below(place / "logs"))
