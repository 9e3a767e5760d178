"""How jobs end, with real processes, real containers and real payment: one market for all of these."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sqlite3
import tarfile
from pathlib import Path

import pytest
import zstandard

from scripts.market_processes import call, script
from tests.support.image_files import BUSYBOX, busybox, write_image
from tests.support.searching import matching
from tests.support.small_market import SmallMarket, run, submit, submit_raw
from torg.client import AsyncClient
from torg.errors import Conflict, Invalid
from torg_protocol.errors import Infeasible
from torg_protocol.jobspec import load_job_spec
from torg_protocol.states import EndReason, JobState, LeaseState
from torg_protocol.usage import verify_receipt

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.sandbox, pytest.mark.root]


async def test_a_job_runs_and_its_outputs_logs_and_receipt_come_back(client: AsyncClient, tmp_path: Path) -> None:
    code = "import os; open(os.environ['TORG_OUTPUT_DIR'] + '/answer.txt', 'w').write('42'); print('grüße', flush=True)"
    job = await run(client, ["python", "-c", code], outputs=["answer.txt"])

    assert (job.state, job.leases[0].exit_code) == (JobState.SUCCEEDED, 0)
    assert [path.read_text() for path in await client.pull(job.job_id, tmp_path)] == ["42"]
    assert await client.logs(job.job_id) == "grüße\n"
    (receipt,) = await client.receipts(job.job_id)
    assert verify_receipt(receipt) == []
    assert receipt.receipt.isolation == "sandbox"
    assert job.final_amount == receipt.receipt.amount > 0


@pytest.mark.parametrize(
    ("command", "fields", "reason", "exit_code"),
    [
        (["python", "-c", "raise SystemExit(3)"], {}, EndReason.FAILED_EXIT, 3),
        (["python", "-c", "x = bytearray(400 << 20); x[::4096] = b'x' * len(x[::4096])"], {}, EndReason.OOM, None),
        (
            ["python", "-c", "import time; time.sleep(60)"],
            {"limits": {"max_duration": "1s"}},
            EndReason.MAX_DURATION,
            None,
        ),
        (["python", "-c", "print('no output')"], {"outputs": ["model.bin"]}, EndReason.OUTPUT_MISSING, 0),
    ],
    ids=["exit-1", "oom", "never-ends", "output-missing"],
)
async def test_a_jobs_own_failure_is_final_named_and_billed(
    client: AsyncClient, command: list[str], fields: dict[str, object], reason: EndReason, exit_code: int | None
) -> None:
    job = await run(client, command, **fields)

    assert (job.state, job.reason, len(job.leases)) == (JobState.FAILED, reason, 1)
    if exit_code is not None:
        assert job.leases[0].exit_code == exit_code
    assert job.leases[0].billed_ms > 0


async def test_a_writer_without_bound_stops_at_its_own_disk(client: AsyncClient) -> None:
    code = "f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20))"
    job = await run(client, ["python", "-c", code])

    assert job.state is JobState.FAILED
    assert job.reason in {EndReason.DISK_FULL, EndReason.FAILED_EXIT}
    assert "No space left on device" in await client.logs(job.job_id, "stderr")


async def test_a_network_that_no_node_lends_is_said_before_anything_is_held(client: AsyncClient) -> None:
    with pytest.raises(Infeasible) as refused:
        await submit(client, ["true"], network="open")

    assert "network: asked open, removed 1 of 1 nodes; best available: none" in str(refused.value)


async def test_an_image_that_no_node_could_pull_is_said_before_anything_is_held(client: AsyncClient) -> None:
    with pytest.raises(Infeasible) as refused:
        await submit(client, ["true"], image="no-such-image:1")

    assert "no node here has a container engine, and so none can pull no-such-image:1" in str(refused.value)


@pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox is not installed (Debian: busybox-static)")
async def test_an_image_comes_along_as_a_file_and_the_receipt_names_it(
    client: AsyncClient, market: SmallMarket, tmp_path: Path
) -> None:
    digest = write_image(tmp_path / "image.tar", [busybox(("etc/motd", b"of this very image"))])
    jobs = [await run(client, ["cat", "/etc/motd"], image=f"file:{tmp_path / 'image.tar'}") for _ in range(2)]

    assert [(job.state, await client.logs(job.job_id)) for job in jobs] == [
        (JobState.SUCCEEDED, "of this very image")
    ] * 2
    (receipt,) = await client.receipts(jobs[1].job_id)
    assert (receipt.receipt.image, receipt.receipt.image_digest) == (jobs[0].spec.image, digest)
    kept = json.loads(
        (await call([script("torg-node"), "cache", "ls", "--json", "--data", str(market.folder / "node")]))[1]
    )
    assert [entry["digest"] for entry in kept if entry["kind"] == "image"] == [jobs[0].spec.image.removeprefix("blob:")]

    write_image(tmp_path / "bad.tar", [busybox()], diff_ids=["sha256:" + "0" * 64])
    bad = await run(client, ["true"], image=f"file:{tmp_path / 'bad.tar'}")
    assert (bad.state, bad.reason, bad.final_amount) == (JobState.FAILED, EndReason.INPUT_INVALID, 0)


@pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox is not installed (Debian: busybox-static)")
async def test_an_image_that_wants_to_be_root_is_it_where_the_node_found_that_safe(
    client: AsyncClient, market: SmallMarket, tmp_path: Path
) -> None:
    applets = [(f"bin/{name}", "-> busybox") for name in ("chown", "stat", "dd", "env", "mkdir")]
    write_image(tmp_path / "image.tar", [busybox(*applets)], config={"Env": ["PATH=/bin"]})
    image = f"file:{tmp_path / 'image.tar'}"
    script_ = "id -u; echo new > /etc/motd; chown 33:33 /etc/motd; stat -c %u /etc/motd; cat /etc/motd; pwd; echo x > $TORG_OUTPUT_DIR/r"
    (offer,) = await client.offers()
    assert offer.own_root

    job = await run(client, ["sh", "-c", script_], image=image, root=True, outputs=["r"])
    assert (await client.logs(job.job_id), job.state) == ("0\n33\nnew\n/work\n", JobState.SUCCEEDED)
    as_nobody = await run(client, ["sh", "-c", "id -u; echo new > /etc/motd"], image=image)
    assert (as_nobody.state, (await client.logs(as_nobody.job_id)).splitlines()[0]) == (JobState.FAILED, "65534")

    shared = {"volumes": [{"volume": "v", "path": "/shared"}]}
    tasks = [
        {"name": "a", "command": ["sh", "-c", "id -u > /shared/id; chown 5 /shared/id"], **shared},
        {
            "name": "b",
            "depends_on": [{"task": "a", "until": "succeeded"}],
            "command": ["sh", "-c", "test $(cat /shared/id) = 0 && test $(stat -c %u /shared/id) = 5"],
            **shared,
        },
    ]
    job = await submit_raw(client, {"image": image, "root": True, "tasks": tasks, "volumes": {"v": {}}})
    job = await client.wait(job.job_id)
    assert job.state is JobState.SUCCEEDED
    full = await run(client, ["dd", "if=/dev/zero", "of=/etc/fill", "bs=1024k"], image=image, root=True, resources={"disk": "32MiB"})  # fmt: skip
    assert (full.state, full.reason) == (JobState.FAILED, EndReason.DISK_FULL)


async def test_a_workspace_is_fetched_once_and_kept_within_the_owners_budget(
    client: AsyncClient, market: SmallMarket, tmp_path: Path
) -> None:
    node = ["--data", str(market.folder / "node")]
    (tmp_path / "data.txt").write_text("kept for the next job")
    read = ["python", "-c", "print(open('data.txt').read())"]
    first = await run(client, read, workspace=str(tmp_path))
    assert first.spec.workspace is not None
    digest = first.spec.workspace.digest
    listed = json.loads((await call([script("torg-node"), "cache", "ls", "--json", *node]))[1])
    assert digest in [entry["digest"] for entry in listed]
    kept = market.folder / "node" / "cache" / "blobs" / digest.removeprefix("sha256:")
    used_ns = kept.stat().st_mtime_ns

    second = await run(client, read, workspace=str(tmp_path))
    assert (second.state, await client.logs(second.job_id)) == (JobState.SUCCEEDED, "kept for the next job\n")
    assert kept.stat().st_mtime_ns > used_ns  # from the cache

    assert (await call([script("torg-node"), "cache", "rm", digest[:20], *node]))[1].startswith("removed 1, ")
    code, said = await call([script("torg-node"), "cache", "rm", digest, *node], check=False)
    assert (code, "nothing of that digest or name is kept" in said) == (1, True)
    await call([script("torg-node"), "cache", "prune", *node])
    assert not list((market.folder / "node" / "cache" / "blobs").iterdir())


async def test_a_workspace_that_climbs_out_is_refused_and_costs_nothing(
    client: AsyncClient, market: SmallMarket, tmp_path: Path
) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        info = tarfile.TarInfo("../../../../tmp/torg-escaped")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"gotya"))
    archive = tmp_path / "evil.tar.zst"
    archive.write_bytes(zstandard.compress(plain.getvalue()))
    from torg_host.archive import sha256_file

    digest = sha256_file(archive)
    await client._blobs.store(digest, archive)
    job = await _submit_wire(client, {"workspace": {"digest": digest, "size_bytes": archive.stat().st_size}})

    assert (job.state, job.reason, job.final_amount) == (JobState.FAILED, EndReason.INPUT_INVALID, 0)
    assert not Path("/tmp/torg-escaped").exists()
    assert not matching(market.folder, "**/torg-escaped")


async def _submit_wire(client: AsyncClient, fields: dict[str, object]) -> object:
    """Submits a spec that no honest client would make."""
    from torg.spec_file import SpecFile

    class Crafted(SpecFile):
        def with_workspace(self, digest: str | None, size_bytes: int):  # type: ignore[no-untyped-def]  # test double of one method
            del digest, size_bytes
            return load_job_spec({**self.raw, **fields})

    raw = {
        "version": 1,
        "command": ["true"],
        "resources": {"memory": "128MiB", "disk": "32MiB"},
        "limits": {"max_duration": "1m"},
    }
    job = await client.submit(Crafted(raw, None))
    return await client.wait(job.job_id)


async def test_what_nobody_can_run_is_refused_with_the_constraint_that_kills_it(client: AsyncClient) -> None:
    with pytest.raises(Infeasible) as gpus:
        await submit(client, ["true"], resources={"gpus": 8, "min_vram": "80GiB"})
    assert gpus.value.data["constraints"][0]["nodes_removed"] == 1
    assert "gpu" in gpus.value.data["constraints"][0]["constraint"]

    with pytest.raises(Infeasible) as price:
        await submit(client, ["true"], limits={"max_price_per_hour": "0.01", "max_duration": "1m"})
    assert "price" in price.value.data["constraints"][0]["constraint"]
    assert price.value.data["constraints"][0]["best_available"] is not None


async def test_a_vault_that_cannot_cover_the_job_refuses_it_and_says_how_much_is_missing(market: SmallMarket) -> None:
    async with market.client(deposit=100) as poor:
        with pytest.raises(Conflict) as refused:
            await submit(poor, ["true"], limits={"max_duration": "1h"})

        assert refused.value.code == "vault_underfunded"
        assert refused.value.data["missing"] == 1_000_000 - 100
        # Refused jobs leave nothing behind: a small one still fits, under a cap that covers only it.
        assert poor.journal.cap(await _only_vault(poor)) == 0


async def _only_vault(client: AsyncClient) -> str:
    return client.journal.vault((await client.market()).marketplace).address


async def test_a_running_job_is_cancelled_and_only_what_was_useful_is_billed(client: AsyncClient) -> None:
    job = await submit(client, ["python", "-c", "import time; time.sleep(600)"], limits={"max_duration": "10m"})
    await _until(client, job.job_id, LeaseState.RUNNING)
    await asyncio.sleep(0.5)
    await client.cancel(job.job_id)
    ended = await client.wait(job.job_id)

    assert (ended.state, ended.reason) == (JobState.CANCELLED, EndReason.CANCELLED)
    assert 0 < ended.leases[0].billed_ms < 30_000
    assert (await client.cancel(job.job_id)).state is JobState.CANCELLED  # safe to repeat


async def test_reconciling_beside_a_running_market_changes_nothing_of_it(
    market: SmallMarket, client: AsyncClient
) -> None:
    job = await submit(client, ["python", "-c", "import time; time.sleep(600)"], limits={"max_duration": "10m"})
    await _until(client, job.job_id, LeaseState.RUNNING)
    argv = ["reconcile", "--data", str(market.folder / "marketplace"), "--rpc-url", market.rpc_url]
    for _ in range(
        5
    ):  # a fresh grace is for leases of a market that was down, or that a busy machine held up for a second
        before = _graces(market)
        _, out = await call([script("torg-marketplace"), *argv])
        assert out.splitlines()[-1].startswith("0 differences;")
        if _graces(market) == before:
            break
    else:
        raise AssertionError("reconciling gave the lease a fresh grace, each time")
    await client.cancel(job.job_id)
    await client.wait(job.job_id)


def _graces(market: SmallMarket) -> list[tuple[str, int]]:
    with contextlib.closing(sqlite3.connect(market.folder / "marketplace/marketplace.sqlite")) as database:
        return database.execute("SELECT lease_id, grace_from_ms FROM leases ORDER BY lease_id").fetchall()


async def test_what_has_ended_cannot_be_cancelled(client: AsyncClient) -> None:
    job = await run(client, ["true"])

    with pytest.raises(Conflict) as refused:
        await client.cancel(job.job_id)
    assert refused.value.code == "job_ended"


async def test_a_malformed_spec_is_refused_by_the_server_too(client: AsyncClient) -> None:
    with pytest.raises(Invalid) as refused:
        await client._transport.request(
            "POST", "/v1/quotes", body={"spec": {"version": 1, "command": ["x"], "limits": {"max_duration": 5}}}
        )

    assert (refused.value.code, refused.value.field) == ("spec_invalid", "limits.max_duration")
    assert "15m" in refused.value.message


async def test_the_cli_runs_a_command_and_passes_its_exit_code_on(client: AsyncClient) -> None:
    from scripts.market_processes import call, script

    home, url = client.config.home, client.config.marketplace_url
    argv = [
        script("torg"),
        "--home",
        str(home),
        "--marketplace",
        url,
        "run",
        "--no-workspace",
        "--memory",
        "128MiB",
        "--disk",
        "32MiB",
    ]
    code, out = await call(
        [*argv, "--max-duration", "1m", "--", "python", "-c", "print('hi'); raise SystemExit(7)"], check=False
    )
    assert (code, out) == (7, "hi\n")

    _, listed = await call([script("torg"), "--home", str(home), "--marketplace", url, "ps", "--json"])
    assert json.loads(listed)["jobs"][0]["reason"] == "failed_exit"


async def test_a_paused_node_takes_no_job_until_its_owner_resumes(client: AsyncClient, market: SmallMarket) -> None:
    data = ["--data", str(market.folder / "node")]
    _, paused = await call([script("torg-node"), "pause", *data])
    try:
        async with asyncio.timeout(150):
            while (await client.offers())[0].state != "draining":  # noqa: ASYNC110  the market has no event for it
                await asyncio.sleep(0.1)
        with pytest.raises(Infeasible) as refused:
            await submit(client, ["true"])
        _, status = await call([script("torg-node"), "status", *data])
    finally:
        _, resumed = await call([script("torg-node"), "resume", *data])

    assert paused == "paused; 0 running leases go on to their end\n"
    assert "paused" in status
    assert resumed == "takes leases\n"
    assert refused.value.data["constraints"][0]["constraint"] == "accepting"
    async with asyncio.timeout(150):
        while (await client.offers())[0].state != "active":  # noqa: ASYNC110  as above
            await asyncio.sleep(0.1)
    assert (await run(client, ["true"])).state is JobState.SUCCEEDED


async def test_the_cli_says_what_a_queued_job_waits_for(client: AsyncClient) -> None:
    busy = await submit(client, ["python", "-c", "import time; time.sleep(600)"], limits={"max_duration": "10m"})
    await _until(client, busy.job_id, LeaseState.RUNNING)
    argv = [script("torg"), "--home", str(client.config.home), "--marketplace", client.config.marketplace_url]
    argv += ["run", "--no-workspace", "--memory", "128MiB", "--disk", "32MiB", "--max-duration", "1m", "--", "true"]
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(150):
            assert process.stderr is not None
            async for line in process.stderr:
                if line.startswith("· waiting: ".encode()):
                    break
            await client.cancel(busy.job_id)
            await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert b"slot" in line or b"busy" in line
    assert process.returncode == 0


async def test_a_running_job_is_extended_and_goes_on_from_its_checkpoint(client: AsyncClient) -> None:
    """It never ends by itself until it finds what it wrote at the end of its time."""
    code = (
        "import os, pathlib, time\n"
        "folder = pathlib.Path(os.environ['TORG_CHECKPOINT_DIR'])\n"
        "if (folder / 'one').exists():\n    raise SystemExit(0)\n"
        "(folder / '.one').mkdir(); (folder / '.one' / 'state').write_text('half'); (folder / '.one').rename(folder / 'one')\n"
        "time.sleep(600)\n"
    )
    job = await submit(
        client,
        ["python", "-c", code],
        checkpoint={"enabled": True},
        limits={"max_duration": "20s"},
        retry={"max_attempts": 1},
    )
    await _until(client, job.job_id, LeaseState.RUNNING)
    await client.extend(job.job_id, 60_000)
    done = await client.wait(job.job_id)

    assert (done.state, done.max_duration_ms, done.max_amount) == (JobState.SUCCEEDED, 80_000, 22_222)
    assert [lease.reason for lease in done.leases] == [EndReason.MAX_DURATION, EndReason.COMPLETED]
    assert done.final_amount == sum(lease.amount for lease in done.leases)
    with pytest.raises(Conflict) as too_late:
        await client.extend(job.job_id, 60_000)
    assert too_late.value.code == "job_ended"


async def test_the_cli_says_what_an_extended_job_may_cost(client: AsyncClient) -> None:
    checkpoints = {"checkpoint": {"enabled": True}, "limits": {"max_duration": "10m"}}
    job = await submit(client, ["python", "-c", "import time; time.sleep(600)"], **checkpoints)
    cli = [script("torg"), "--home", str(client.config.home), "--marketplace", client.config.marketplace_url]
    _, said = await call([*cli, "extend", job.job_id, "--by", "2m"])
    await client.cancel(job.job_id)
    await client.wait(job.job_id)

    assert said.startswith(f"{job.job_id}  may last 12 min in all, and cost 0.2 tUSD at most")


async def _until(client: AsyncClient, job_id: str, state: LeaseState) -> None:
    """Follows the job until one of its leases is in `state`."""
    async with asyncio.timeout(150):
        async for event in client.follow(job_id):
            if event.kind == "lease" and event.data["state"] == state:
                return
    raise AssertionError(f"{job_id} ended before a lease was {state}")
