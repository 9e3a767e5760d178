"""The quickstart with curl, as it is written: its blocks run in one shell against real processes."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from scripts.market_processes import call
from tests.support.small_market import running_market

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "curl.md"
pytestmark = [pytest.mark.sandbox, pytest.mark.root]


async def test_the_page_works_as_it_is_written(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    async with running_market(tmp_path) as market:
        (tmp_path / ".torg").mkdir()
        (tmp_path / ".torg" / "marketplace").symlink_to(tmp_path / "marketplace")
        text = "\n".join(blocks).replace("http://127.0.0.1:8700", market.url)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TORG_MARKETPLACE_RPC_URL": market.rpc_url,
            "no_proxy": "*",
        }
        await call(["bash", "-euo", "pipefail", "-c", f"cd {tmp_path}\n{text}"], env=environment)

    job, files, sleeper = (
        json.loads((tmp_path / name).read_text()) for name in ("job.json", "files.json", "sleeper.json")
    )
    assert (job["state"], files["state"], sleeper["state"]) == ("succeeded", "succeeded", "cancelled")
    assert (tmp_path / "squares.txt").read_text() == "0\n1\n4\n9\n16\n"
    assert "hello" in (tmp_path / "files.log").read_text()
    assert '"state":"succeeded"' in (tmp_path / "events.txt").read_text().replace(" ", "")
    assert (tmp_path / "by-key.log").read_text() == "by key\n"
    assert "billed" in (tmp_path / "by-key-receipt.txt").read_text()
    (receipt,) = json.loads((tmp_path / "receipts.json").read_text())["receipts"]
    assert receipt["receipt"]["amount"] == job["final_amount"] > 0
