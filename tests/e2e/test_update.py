"""A node is updated under a running lease: the new release checks itself beside the old agent, takes over, and the lease goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest

from scripts.market_processes import call, script, start
from tests.support.small_market import WAIT_FOR_GO, let_go, running_market, submit
from torg_protocol.states import JobState

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.slow]
WORK = ["python", "-u", "-c", f"print('up')\n{WAIT_FOR_GO}print('done')"]
NEXT_RELEASE = """
import sys
import torg_protocol.versions
import torg_node
torg_node.__version__ = "99.0.0"
from torg_node.__main__ import main
main()
"""


async def test_the_next_release_checks_itself_takes_over_and_a_broken_one_is_told_before(tmp_path: Path) -> None:
    program = tmp_path / "next_release.py"
    program.write_text(NEXT_RELEASE)
    data = tmp_path / "node"
    async with running_market(tmp_path) as market, market.client() as client:
        job = await submit(client, WORK, lease_grace="60s", limits={"max_duration": "5m"})
        async with asyncio.timeout(150):
            while "up\n" not in await client.logs(job.job_id):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        check = [sys.executable, str(program), "self-check", "--data", str(data), "--json"]
        found = {item["name"]: item for item in json.loads((await call(check))[1])}
        assert market.node is not None
        await market.node.stop()
        argv = [sys.executable, str(program), "start", "--data", str(data)]
        market.node = await start("node", argv, tmp_path / "node.log")
        let_go(data)
        ended = await client.wait(job.job_id)
        said = await client.logs(job.job_id)

        assert {name: item["problem"] for name, item in found.items()} == dict.fromkeys(
            ("key", "journal", "ledger", "protocol", "isolation")
        )
        assert found["journal"]["found"].startswith("1 running leases")
        assert found["protocol"]["found"] == "version 2"
        assert (ended.state, len(ended.leases), said) == (JobState.SUCCEEDED, 1, "up\ndone\n")
        await _broken(data, tmp_path / "broken")


async def _broken(data: Path, broken: Path) -> None:
    """A release that cannot read what is there, and finds no marketplace, says so and changes nothing."""
    broken.mkdir(mode=0o700)
    for name in ("config.toml", "node.json", "wallet.json", "key.json"):
        if (data / name).exists():
            shutil.copy(data / name, broken / name)
    config = broken / "config.toml"
    config.write_text(
        config.read_text().replace(str(data), str(broken)).replace("http://127.0.0.1:", "http://127.0.0.2:")
    )
    journal = broken / "journal.sqlite"
    with contextlib.closing(sqlite3.connect(journal)) as copy:
        with contextlib.closing(sqlite3.connect(data / "journal.sqlite")) as source:
            source.backup(copy)
        copy.execute("UPDATE leases SET grant_json = '{}', done = 0")
        copy.commit()
    before = journal.read_bytes()
    code, text = await call([script("torg-node"), "self-check", "--data", str(broken)], check=False)

    assert code == 1
    assert "do not switch to it" in text
    assert text.count("FAILED") == 2
    assert journal.read_bytes() == before
