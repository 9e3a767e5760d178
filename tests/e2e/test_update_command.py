"""`torg-node update` with real agents under a running lease: to a release that works, and back from releases that do not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from scripts.market_processes import ProcessFailed, call
from tests.support.searching import matching
from tests.support.small_market import SmallMarket, running_market, submit
from tests.support.waiting import eventually
from torg.client import AsyncClient
from torg_node.journal import Journal
from torg_protocol.states import JobState

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]
WAIT_FOR_FILE = [
    "python",
    "-u",
    "-c",
    "import os, time\nprint('up')\nwhile not os.path.exists('go'):\n    time.sleep(0.1)\nprint('done')",
]
_MAIN = "import sys\nfrom torg_node.__main__ import main\n"
WORKS = _MAIN + "main()\n"
ENDS_AT_START = _MAIN + "sys.exit('broken') if sys.argv[1] == 'start' else main()\n"
NEVER_CONNECTS = "import time\n" + _MAIN + "time.sleep(600) if sys.argv[1] == 'start' else main()\n"
CANNOT_TAKE_OVER = _MAIN + "sys.exit('FAILED  journal') if sys.argv[1] == 'self-check' else main()\n"


def make_release(folder: Path, program: str) -> Path:
    """A virtual environment with this one's packages, and a torg-node of its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    place = sysconfig.get_path("purelib", vars={"base": str(folder)})
    Path(place, "packages.pth").write_text("\n".join(path for path in sys.path if path))
    script = folder / "bin/torg-node"
    script.write_text(f"#!{folder}/bin/python3\n{program}")
    script.chmod(0o755)
    return folder


def make_restart(folder: Path, data: Path, link: Path) -> Path:
    """In the place of a service manager: ends the agent that runs, starts the one behind the link."""
    script = folder / "restart"
    script.write_text(
        f"#!/bin/sh\nkill $(cat {folder}/pid)\nwhile kill -0 $(cat {folder}/pid) 2>/dev/null; do sleep 0.1; done\n"
        f"setsid {link}/bin/torg-node start --data {data} >>{folder}/agent.log 2>&1 &\necho $! >{folder}/pid\n"
    )
    script.chmod(0o755)
    return script


async def test_an_update_takes_over_and_one_that_is_not_healthy_goes_back_by_itself(tmp_path: Path) -> None:
    data, link = tmp_path / "node", tmp_path / "releases/current"
    link.parent.mkdir()
    old = make_release(tmp_path / "releases/1", WORKS)
    link.symlink_to(old)
    restart = make_restart(tmp_path, data, link)

    async def update(*options: str) -> str:
        command = [str(link / "bin/torg-node"), "update", "--data", str(data), "--restart", str(restart), "--json"]
        return (await call([*command, *options]))[1]

    async with running_market(tmp_path) as market, market.client() as client:
        assert market.node is not None
        job = await submit(client, WAIT_FOR_FILE, lease_grace="120s", limits={"max_duration": "9m"})
        await eventually(lambda: _says(client, job.job_id, "up\n"))
        (tmp_path / "pid").write_text(str(market.node.process.pid))
        try:
            # The agent of the test environment is not one of a release yet: the first update makes it one.
            await _reaped(market, update("--release", str(make_release(tmp_path / "releases/2", WORKS))))
            assert link.resolve().name == "2"
            for number, (program, code, within) in enumerate(
                (
                    (CANNOT_TAKE_OVER, "self_check_failed", "60"),
                    (ENDS_AT_START, "update_rolled_back", "5"),
                    (NEVER_CONNECTS, "update_rolled_back", "5"),
                ),
                start=3,
            ):
                broken = make_release(tmp_path / f"releases/{number}", program)
                with pytest.raises(ProcessFailed, match=code):
                    await update("--release", str(broken), "--within", within)
                assert link.resolve().name == "2"
            assert _release_that_runs(data).name == "2"
            (work,) = matching(data, "leases/*/disk/files/work")
            (work / "go").touch()
            ended = await client.wait(job.job_id)
            said = await client.logs(job.job_id)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)

    assert (ended.state, len(ended.leases), said) == (JobState.SUCCEEDED, 1, "up\ndone\n")


async def _reaped(market: SmallMarket, updating: Coroutine[Any, Any, str]) -> None:
    """The first agent is a child of this test: it is waited for, or it would look alive."""
    assert market.node is not None
    await asyncio.gather(updating, market.node.process.wait())


def _release_that_runs(data: Path) -> Path:
    with contextlib.closing(Journal(data / "journal.sqlite")) as journal:
        return Path(json.loads(journal.fact("agent_ready") or "{}")["release"])


async def _says(client: AsyncClient, job_id: str, text: str) -> bool:
    return text in await client.logs(job_id)
