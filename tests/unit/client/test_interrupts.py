"""Ctrl-C in the middle of commands, as real processes: exit code 130, at once, with a sentence of what holds now and no traceback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from solders.keypair import Keypair

from tests.support.scripted_server import HANG, Answer, Request, as_json, scripted_server
from tests.support.waiting import until
from torg_chain.wallet import save_keypair
from torg_protocol.api import ChainInfo, JobView, MarketInfo
from torg_protocol.data import DataView
from torg_protocol.ids import AccountId, Digest, JobId, VaultAddress
from torg_protocol.jobspec import load_job_spec
from torg_protocol.states import JobState
from torg_protocol.usage import OutputFile
from torg_protocol.volumes import VolumeView

JOB = JobId("job_01m8btcfmygenkw2tanbedqfe4")
BLOB = Digest("sha256:" + "a" * 64)
SPEC = load_job_spec({"version": 1, "command": ["x"]})
VIEW = JobView(
    job_id=JOB,
    name="n",
    state=JobState.LEASED,
    client=AccountId("c"),
    vault=VaultAddress("v"),
    spec=SPEC,
    spec_digest=Digest(SPEC.digest),
    max_amount=1,
    max_duration_ms=60_000,
    created_at_ms=1,
    outputs=(OutputFile(path="model.bin", digest=BLOB, size_bytes=1 << 20),),
)
MARKET = MarketInfo(
    name="m",
    marketplace="key",
    protocol_versions=(1,),
    chain=ChainInfo(rpc_url="r", genesis_hash="g", program_id="p", mint="m", decimals=6, operator_config="o"),
    heartbeat_ms=1,
    usage_interval_ms=1,
    verification_window_s=1,
    settlement_max_age_s=1,
    min_vault_grace_s=1,
    fee_basis_points=0,
)
ANSWERS = {
    "/v1/market": MARKET,
    f"/v1/jobs/{JOB}": VIEW,
    "/v1/data/set": DataView(name="set", digest=BLOB, size_bytes=1 << 20, named_at_ms=1),
    "/v1/volumes/set": VolumeView(
        name="set", generation=1, digest=BLOB, size_bytes=1 << 20, created_at_ms=1, stored_at_ms=1, used_at_ms=1
    ),
}


@pytest.mark.parametrize(
    ("command", "hangs_at", "told"),
    [
        (f"extend {JOB} --by 1h", f"/v1/jobs/{JOB}/extend", f"the job may last longer already, see  torg show {JOB}"),
        (f"cancel {JOB}", f"/v1/jobs/{JOB}/cancel", f"cancelling it again is safe:  torg cancel {JOB}"),
        (f"pull {JOB} -o out", f"/v1/blobs/{BLOB}", f"what has arrived is kept; go on:  torg pull {JOB} -o out"),
        ("data get set", f"/v1/blobs/{BLOB}", "what has arrived is kept; go on:  torg data get set -o set"),
        ("volume get set", f"/v1/blobs/{BLOB}", "what has arrived is kept; go on:  torg volume get set -o set"),
        ("account show", "/v1/account", ""),
        ("account delete-data --yes", "/v1/account/data", "some of it may be erased already"),
        ("report-abuse node --reason x", "/v1/abuse-reports", "it may have arrived"),
        ("ps", "/v1/jobs", ""),
    ],
)
async def test_it_ends_at_once_and_says_what_holds(tmp_path: Path, command: str, hangs_at: str, told: str) -> None:
    reached = asyncio.Event()

    def script(request: Request) -> Answer | str:
        path = request.path.partition("?")[0]
        if path != hangs_at:
            return as_json(ANSWERS[path].wire())
        reached.set()
        return HANG

    async with scripted_server(script) as server, torg(tmp_path, server.url, *command.split()) as process:
        async with asyncio.timeout(60):
            await reached.wait()
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()

    assert (process.returncode, out) == (130, b""), err.decode()
    assert told in err.decode()
    assert "Traceback" not in err.decode()
    assert not (tmp_path / "set").exists()
    assert list(tmp_path.rglob("model.bin")) == []


async def test_a_question_is_left_by_one_ctrl_c(tmp_path: Path) -> None:
    """An event loop waits for the answer before it ends anything."""
    async with torg(tmp_path, "http://127.0.0.1:9", "account", "delete-data") as process:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            await process.stderr.readuntil(b"go on?")
            await until(
                lambda: Path(f"/proc/{process.pid}/syscall").read_text().startswith("0 0x0 ")
            )  # reads its input
            process.send_signal(signal.SIGINT)
            await process.wait()

    assert process.returncode == 130


@contextlib.asynccontextmanager
async def torg(folder: Path, url: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """With an API key, so that no vault is needed to extend."""
    save_keypair(Keypair(), folder / "home" / "wallet.json")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "torg.cli.__main__", "--home", str(folder / "home"), "--marketplace", url, *arguments),
        cwd=folder,
        env={**os.environ, "TORG_API_KEY": "torg_key"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
