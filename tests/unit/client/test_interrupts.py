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

from tests.support.answers import job_view, market_info
from tests.support.scripted_server import HANG, Answer, Request, as_json, scripted_server
from tests.support.waiting import until
from torg_chain.wallet import save_keypair
from torg_protocol.data import DataView
from torg_protocol.ids import Digest, JobId
from torg_protocol.states import JobState
from torg_protocol.usage import OutputFile
from torg_protocol.volumes import VolumeView

JOB = JobId("job_01m8btcfmygenkw2tanbedqfe4")
BLOB = Digest("sha256:" + "a" * 64)
VIEW = job_view(
    JOB,
    JobState.LEASED,
    max_duration_ms=60_000,
    outputs=(OutputFile(path="model.bin", digest=BLOB, size_bytes=1 << 20),),
)
ANSWERS = {
    "/v1/market": market_info(),
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
        async with asyncio.timeout(150):
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
        async with asyncio.timeout(150):
            await process.stderr.readuntil(b"go on?")
            await until(lambda: _reads_input(process.pid))
            process.send_signal(signal.SIGINT)
            await process.wait()

    assert process.returncode == 130


def _reads_input(pid: int) -> bool:
    """In `read` (0 on x86_64, 63 on aarch64) of descriptor 0: a signal that comes just before it is not noticed there."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[:2] in (["0", "0x0"], ["63", "0x0"])


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
