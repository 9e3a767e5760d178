"""`torg ps` as a process against a scripted marketplace: what it prints of jobs in every state, what it loads, and whom it believes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from solders.keypair import Keypair

from tests.support.answers import job_view
from tests.support.scripted_server import ScriptedServer, as_json, scripted_server
from torg.cli import ps
from torg_chain.wallet import save_keypair
from torg_protocol.api import JobPage, JobView, LeaseView, TaskView
from torg_protocol.ids import LeaseId, NodeId
from torg_protocol.states import EndReason, JobState, LeaseState
from torg_protocol.tasks import TaskState

NEEDLESS = {
    "pydantic",
    "sqlite3",
    "yaml",
    "rich",
    "pygments",
    "solana",
    "spl",
    "h2",
    "tarfile",
    "cryptography",
}
CHAIN = {
    "rpc_url": "r",
    "genesis_hash": "g",
    "program_id": "p",
    "mint": "mint-of-it",
    "decimals": 6,
    "operator_config": "o",
}
MARKET = {"name": "m", "marketplace": "key-1", "chain": CHAIN, "a_later_member": 1}
RUN = """
import sys
from torg.cli.__main__ import main
try:
    main()
finally:
    print("loaded", *{name.partition(".")[0] for name, found in sys.modules.items() if found}, file=sys.stderr)
"""


def job(job_id: str, state: JobState, **fields: Any) -> JobView:
    return job_view(job_id, state, **{"name": f"{job_id}-name", "max_amount": 1_500_000, "created_at_ms": 0, **fields})


def lease(*tasks: TaskView) -> LeaseView:
    return LeaseView(
        lease_id=LeaseId("l"), attempt=1, node=NodeId("n"), state=LeaseState.RUNNING, price_per_gpu_hour=1,
        granted_at_ms=1, tasks=tasks,
    )  # fmt: skip


def page(*jobs: JobView, next_cursor: str | None = None) -> Any:
    """As a newer marketplace would send it."""
    raw = JobPage(jobs=jobs, next_cursor=next_cursor).wire()
    for item in [raw, *raw["jobs"], *(lease for job in raw["jobs"] for lease in job["leases"])]:
        item["a_later_member"] = {"of": "a newer release"}
    return raw


async def run_ps(home: Path, url: str, *options: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    if not (home / "wallet.json").exists():
        save_keypair(Keypair(), home / "wallet.json")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN, "--home", str(home), "--marketplace", url, "ps", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@contextlib.asynccontextmanager
async def marketplace(page: Any, market: Any = MARKET) -> AsyncIterator[ScriptedServer]:
    async with scripted_server(lambda asked: as_json(market if asked.path == "/v1/market" else page)) as server:
        yield server


async def test_it_lists_jobs_of_every_kind_with_two_requests_and_none_of_the_models(tmp_path: Path) -> None:
    tasks = (TaskView(task="a", state=TaskState.SUCCEEDED), TaskView(task="b", state=TaskState.RUNNING))
    jobs = [
        job("waits", JobState.QUEUED, waiting_for="a node with 8 GPUs"),
        job("runs", JobState.LEASED, leases=(lease(*tasks),)),
        job("done", JobState.SUCCEEDED, final_amount=1_000_000, reason=EndReason.COMPLETED),
        job("fell", JobState.FAILED, final_amount=0, reason=EndReason.OOM, leases=(lease(), lease())),
    ]
    async with marketplace(page(*jobs, next_cursor="fell")) as server:
        code, out, err = await run_ps(tmp_path, server.url, "--limit", "4")

    assert code == 0, err
    lines = [re.split(r" {2,}", line) for line in out.splitlines()]
    assert lines[0] == ["job", "name", "state", "age", "attempts", "cost", "note"]
    assert [[*line[:3], *line[4:]] for line in lines[1:]] == [
        ["waits", "waits-name", "queued", "0", "≤ 1.5 tokens of mint-o…", "a node with 8 GPUs"],
        ["runs", "runs-name", "leased", "1", "≤ 1.5 tokens of mint-o…", "1 of 2 tasks ended; running: b"],
        ["done", "done-name", "succeeded", "0", "1 tokens of mint-o…"],
        ["fell", "fell-name", "failed", "2", "0 tokens of mint-o…", "oom"],
    ]
    assert "more:  torg ps --cursor fell" in err
    assert sorted(request.path for request in server.requests) == ["/v1/jobs?limit=4", "/v1/market"]
    assert NEEDLESS & set(err[err.index("loaded") :].split()) == set()


async def test_json_passes_on_what_came_and_quiet_prints_ids(tmp_path: Path) -> None:
    answer = page(job("one", JobState.QUEUED), job("two", JobState.QUEUED))
    async with marketplace(answer) as server:
        assert json.loads((await run_ps(tmp_path, server.url, "--json"))[1]) == answer
        assert (await run_ps(tmp_path, server.url, "-q"))[1] == "one\ntwo\n"


@pytest.mark.parametrize("raw", [{"next_cursor": None}, {"jobs": [{}], "next_cursor": None}, [], None])
async def test_an_answer_without_what_was_asked_for_is_not_understood(tmp_path: Path, raw: Any) -> None:
    async with marketplace(raw) as server:
        code, out, err = await run_ps(tmp_path, server.url)

    assert (code, out) == (1, "")
    assert "[answer_malformed]" in err


async def test_another_marketplace_at_the_same_address_is_refused(tmp_path: Path) -> None:
    market = {**MARKET}
    async with marketplace(page(), market) as server:
        assert (await run_ps(tmp_path, server.url))[0] == 0
        assert json.loads((tmp_path / "marketplace.json").read_text()) == {
            server.url: {"marketplace": "key-1", "chain": CHAIN}
        }
        market["marketplace"] = "key-2"
        code, _, err = await run_ps(tmp_path, server.url)

    assert code == 1
    assert "[marketplace_changed]" in err


def test_the_states_of_tasks_are_those_of_the_protocol() -> None:
    assert {state for state in TaskState if not state.has_ended} == ps._TASK_NOT_ENDED
    assert ps._TASK_RUNNING == TaskState.RUNNING


def test_other_commands_keep_http2_which_chains_are_asked_with() -> None:
    """In a process of its own: `main` is what could take it away."""
    code = (
        "import sys\nfrom torg.cli.__main__ import main\nsys.argv = ['torg', 'examples', 'hello']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nimport h2, torg_chain.rpc\nprint('is there')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.endswith("is there\n")
