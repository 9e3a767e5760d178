"""A sealed job from a laptop to its results: what the marketplace keeps, database and store, is searched for what was in it."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from solders.keypair import Keypair

from scripts.market_processes import call, remove_containers, script, start
from tests.support.searching import files_below, holds, matching
from tests.support.small_market import SmallMarket, run, submit, submit_raw
from tests.support.waiting import eventually
from torg.client import AsyncClient
from torg_host.age import unseal_file
from torg_protocol.errors import Conflict, Infeasible, Invalid, NotFound
from torg_protocol.states import EndReason, JobState

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.sandbox, pytest.mark.root]
NOISE_BYTES = 200_000  # around each mark, so that no compressor takes it apart
WORK = """
import json, os, pathlib, sys
data = pathlib.Path("data.bin").read_bytes()
mark = data[100_000:100_048].decode()
print("out", mark, flush=True)
print("err", mark, file=sys.stderr, flush=True)
pathlib.Path(os.environ["TORG_OUTPUT_DIR"], "result.bin").write_bytes(data)
pathlib.Path("/torg/progress.jsonl").write_text(json.dumps({"step": 1, "mark": mark}) + "\\n")
kept = pathlib.Path(os.environ["TORG_CHECKPOINT_DIR"])
(kept / ".one").mkdir()
(kept / ".one" / "state.bin").write_bytes(data)
(kept / ".one").rename(kept / "one")
print(sorted(os.listdir(os.environ.get("TORG_SECRETS_DIR", "/none")) if os.environ.get("TORG_SECRETS_DIR") else []))
"""
FIELDS = {"outputs": ["result.bin"], "checkpoint": {"enabled": True}}


def a_workspace(folder: Path) -> tuple[Path, bytes]:
    """A folder with one file that holds a mark, and the mark."""
    mark = secrets.token_hex(24).encode()
    folder.mkdir()
    half = NOISE_BYTES // 2
    (folder / "data.bin").write_bytes(os.urandom(half) + mark + os.urandom(half))
    (folder / "train.py").write_text(WORK)
    return folder, mark


def files_that_hold(mark: bytes, market: SmallMarket) -> set[str]:
    """By the kind of place: the database (with its log), the store, or something else of the marketplace."""
    root = market.folder / "marketplace"
    found = [path for path in files_below(root) if holds(path, mark)]
    return {
        "store" if "objects" in path.parts else "database" if ".sqlite" in path.name else path.name for path in found
    }


async def node_of(client: AsyncClient) -> str:
    return (await client.offers())[0].node


async def test_the_search_finds_what_is_not_sealed(market: SmallMarket, client: AsyncClient, tmp_path: Path) -> None:
    workspace, mark = a_workspace(tmp_path / "plain")
    job = await run(client, ["python", "train.py"], workspace=str(workspace), **FIELDS)

    assert job.state is JobState.SUCCEEDED, await client.logs(job.job_id, "stderr")
    assert files_that_hold(mark, market) == {"store", "database"}
    saved = await client.save_log(job.job_id, tmp_path / "log", attempt=1)
    assert saved.read_text() == await client.logs(job.job_id) == f"out {mark.decode()}\n[]\n"
    with pytest.raises(NotFound) as unknown:
        await client.save_log(job.job_id, tmp_path / "none", attempt=2)
    assert (unknown.value.code, (tmp_path / "none").exists()) == ("log_not_stored", False)


async def test_nothing_of_a_sealed_job_can_be_read_at_the_marketplace_and_all_of_it_by_its_client(
    market: SmallMarket, client: AsyncClient, tmp_path: Path
) -> None:
    workspace, mark = a_workspace(tmp_path / "sealed")
    secret = secrets.token_hex(24)
    (tmp_path / "token").write_text(secret)
    job = await run(
        client,
        ["python", "train.py"],
        workspace=str(workspace),
        sealed=True,
        secrets={"TOKEN": {"file": str(tmp_path / "token")}},
        placement={"nodes": [await node_of(client)]},
        **FIELDS,
    )

    assert job.state is JobState.SUCCEEDED, await client.logs(job.job_id, "stderr")
    assert [lease.newest_checkpoint for lease in job.leases] == ["one"]
    assert files_that_hold(mark, market) == files_that_hold(secret.encode(), market) == set()
    assert await client.logs(job.job_id) == f"out {mark.decode()}\n['TOKEN']\n"  # the job's key is no file of it
    assert await client.logs(job.job_id, "stderr") == f"err {mark.decode()}\n"
    (pulled,) = await client.pull(job.job_id, tmp_path / "results")
    assert pulled.read_bytes() == (workspace / "data.bin").read_bytes()
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["result.bin"]
    with pytest.raises(Conflict, match="another file of that name"):
        await client.pull(job.job_id, tmp_path / "results")

    await client._blobs.fetch(job.outputs[0].digest, tmp_path / "as-stored", tmp_path)
    with pytest.raises(Invalid) as closed:
        unseal_file(tmp_path / "as-stored", tmp_path / "opened", Keypair())
    assert closed.value.code == "cannot_unseal"
    assert not (tmp_path / "opened").exists()


async def test_tasks_of_a_sealed_job_share_what_the_marketplace_never_sees(
    market: SmallMarket, client: AsyncClient, tmp_path: Path
) -> None:
    """A result goes from task to task on the node, into a command line too, and nowhere else."""
    workspace, mark = a_workspace(tmp_path / "sealed")
    read = "print('MARK', open('data.bin', 'rb').read()[100_000:100_048].decode(), flush=True)"
    write = "import os, sys; open(os.environ['TORG_OUTPUT_DIR'] + '/result.bin', 'w').write(sys.argv[1] * 9); print(sys.argv[1])"
    tasks = [
        {"name": "read", "command": ["python", "-c", read], "results": {"mark": "MARK (.*)"}},
        {
            "name": "write",
            "command": ["python", "-c", write, "${{ tasks.read.results.mark }}"],
            "depends_on": ["read"],
        },
    ]
    fields = {"tasks": tasks, "workspace": str(workspace), "sealed": True, "outputs": ["result.bin"]}
    fields["placement"] = {"nodes": [await node_of(client)]}
    job = await client.wait((await submit_raw(client, fields)).job_id)

    text = mark.decode()
    assert job.state is JobState.SUCCEEDED, await client.logs(job.job_id, "stderr")
    assert files_that_hold(mark, market) == set()
    assert [(task.task, task.state, task.results) for task in job.leases[0].tasks] == [
        ("read", "succeeded", {}),
        ("write", "succeeded", {}),
    ]
    assert await client.logs(job.job_id, task="write") == f"{text}\n"
    assert await client.logs(job.job_id) == f"read  | MARK {text}\nwrite | {text}\n"
    (pulled,) = await client.pull(job.job_id, tmp_path / "results")
    assert pulled.read_text() == text * 9


async def test_a_sealed_job_goes_to_no_other_node_than_those_it_was_sealed_to(client: AsyncClient) -> None:
    with pytest.raises(Infeasible):
        await run(client, ["true"], sealed=True, placement={"nodes": [str(Keypair().pubkey())]})


async def test_by_the_command_line(market: SmallMarket, client: AsyncClient, tmp_path: Path) -> None:
    workspace, mark = a_workspace(tmp_path / "sealed")
    argv = [script("torg"), "--home", str(client.config.home), "--marketplace", market.url, "run", "--sealed"]
    argv += ["--node", await node_of(client), "--workspace", str(workspace), "--memory", "128MiB", "--disk", "32MiB"]
    argv += ["--keep", "result.bin", "-o", str(tmp_path / "results")]
    code = "import shutil, os; shutil.copy('data.bin', os.environ['TORG_OUTPUT_DIR'] + '/result.bin'); print('done')"
    process = await asyncio.create_subprocess_exec(*argv, "--", "python", "-c", code, stdout=PIPE, stderr=PIPE)
    output, errors = await process.communicate()

    assert (process.returncode, output) == (0, b"done\n"), errors.decode()
    assert mark in (tmp_path / "results" / "result.bin").read_bytes()
    assert files_that_hold(mark, market) == set()


RESUME = """
import os, pathlib, time
kept = pathlib.Path(os.environ["TORG_CHECKPOINT_DIR"])
if (kept / "one").exists():
    print("resumed", (kept / "one" / "state.bin").read_bytes()[100_000:100_048].decode())
else:
    (kept / ".one").mkdir()
    (kept / ".one" / "state.bin").write_bytes(pathlib.Path("data.bin").read_bytes())
    (kept / ".one").rename(kept / "one")
    time.sleep(120)
"""


async def test_another_chosen_node_goes_on_from_a_sealed_checkpoint(
    market: SmallMarket, client: AsyncClient, tmp_path: Path
) -> None:
    workspace, mark = a_workspace(tmp_path / "sealed")
    other = market.folder / "other"
    init = ["init", "--data", str(other), "--marketplace", market.url, "--price", "1.00", "--executor", "sandbox"]
    await call([script("torg-node"), *init, "--yes"])
    second = await start("other", [script("torg-node"), "start", "--data", str(other)], market.folder / "other.log")
    try:
        nodes = {"nodes": [offer.node for offer in await client.offers()]}
        fields = {"sealed": True, "placement": nodes, "checkpoint": {"enabled": True}}
        job = await submit(client, ["python", "-c", RESUME], workspace=str(workspace), **fields)

        async def is_safe() -> bool:
            leases = (await client.job(job.job_id)).leases
            return bool(leases) and leases[0].newest_checkpoint == "one"

        await eventually(is_safe)
        kill_container(market.folder, (await client.job(job.job_id)).leases[0].lease_id)
        job = await client.wait(job.job_id)

        assert [lease.reason for lease in job.leases] == [EndReason.HOST_PROTECTION, EndReason.COMPLETED]
        assert (len({lease.node for lease in job.leases}), job.leases[1].resumed_from) == (2, "one")
        assert await client.logs(job.job_id) == f"resumed {mark.decode()}\n"
        assert files_that_hold(mark, market) == set()
    finally:
        await second.stop()
        await remove_containers(other)


def kill_container(folder: Path, lease_id: str) -> None:
    """As a person with root would do it."""
    (shim,) = matching(folder, f"*/containers/sandbox/{lease_id.replace('_', '-', 1)}/shim.json")
    main = json.loads(shim.read_text())["pid"]
    for child in Path(f"/proc/{main}/task/{main}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
