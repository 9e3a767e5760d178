"""What commands ask the marketplace for: each thing once."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from solders.keypair import Keypair

from tests.support.answers import job_view, market_info, node_view
from tests.support.scripted_server import Answer, Request, as_json, scripted_server
from torg_chain.wallet import save_keypair
from torg_protocol.api import JobPage, OfferPage, ReferencePrices
from torg_protocol.cases import AccountView, DisputePage
from torg_protocol.data import DataPage
from torg_protocol.ids import AccountId, Digest, JobId
from torg_protocol.states import JobState
from torg_protocol.usage import OutputFile
from torg_protocol.volumes import VolumePage

JOB = JobId("job_01m8btcfmygenkw2tanbedqfe4")
DONE = job_view(JOB, JobState.SUCCEEDED, final_amount=1, ended_at_ms=2)
ANSWERS: dict[str, Any] = {
    "/v1/market": market_info(),
    "/v1/jobs": JobPage(jobs=(DONE,)),
    f"/v1/jobs/{JOB}": DONE,
    "/v1/data": DataPage(data=(), total_bytes=0),
    "/v1/volumes": VolumePage(volumes=(), total_bytes=0),
    "/v1/offers": OfferPage(offers=()),
    "/v1/prices": ReferencePrices(prices=()),
    "/v1/account": AccountView(account=AccountId("c"), quotas=()),
    "/v1/disputes": DisputePage(disputes=()),
}


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("ps", ["/v1/jobs", "/v1/market"]),
        ("top --once", ["/v1/jobs", "/v1/market"]),
        (f"show {JOB}", [f"/v1/jobs/{JOB}", "/v1/market"]),
        (f"cancel {JOB}", [f"/v1/jobs/{JOB}/cancel"]),
        (f"logs {JOB}", [f"/v1/jobs/{JOB}/logs"]),
        ("data ls", ["/v1/data"]),
        ("volume ls", ["/v1/volumes"]),
        ("offers", ["/v1/market", "/v1/offers", "/v1/prices"]),
        ("account show", ["/v1/account", "/v1/market"]),
        ("disputes", ["/v1/disputes", "/v1/market"]),
    ],
)
async def test_a_command_asks_for_each_thing_once(tmp_path: Path, command: str, asked: list[str]) -> None:
    save_keypair(Keypair(), tmp_path / "wallet.json")

    def script(request: Request) -> Answer:
        path = request.path.partition("?")[0]
        if path.endswith("/logs"):
            return Answer(body=b"line\n")
        return as_json(ANSWERS[path.removesuffix("/cancel")].wire())

    async with scripted_server(script) as server:
        code, said = await torg(tmp_path, server.url, *command.split())

    assert code == 0, said
    assert sorted(request.path.partition("?")[0] for request in server.requests) == asked


async def test_outputs_that_are_there_already_take_one_question(tmp_path: Path) -> None:
    save_keypair(Keypair(), tmp_path / "wallet.json")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_bytes(b"")
    empty = Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    job = DONE.model_copy(update={"outputs": (OutputFile(path="a.txt", digest=empty, size_bytes=0),)})
    async with scripted_server(lambda _: as_json(job.wire())) as server:
        code, said = await torg(tmp_path, server.url, "pull", JOB, "-o", str(tmp_path / "out"))

    assert code == 0, said
    assert [request.path for request in server.requests] == [f"/v1/jobs/{JOB}"]


async def test_offers_say_which_nodes_are_a_release_behind(tmp_path: Path) -> None:
    answers = ANSWERS | {"/v1/offers": OfferPage(offers=(node_view("1" * 32, 1), node_view("2" * 32, 2)))}
    async with scripted_server(lambda request: as_json(answers[request.path.partition("?")[0]].wire())) as server:
        code, said = await torg(tmp_path, server.url, "offers")

    assert code == 0, said
    assert "ready, protocol 1" in next(line for line in said.splitlines() if line.startswith("11111111"))
    assert "protocol" not in next(line for line in said.splitlines() if line.startswith("22222222"))


async def test_offers_say_which_gpus_are_free_and_which_are_out(tmp_path: Path) -> None:
    kept = node_view("1" * 32, 2).model_copy(update={"gpus": 2, "gpus_free": 1, "gpus_out": 1, "slots_free": 0})
    older = node_view("2" * 32, 2).model_copy(update={"gpus": 2})
    answers = ANSWERS | {"/v1/offers": OfferPage(offers=(kept, older))}
    async with scripted_server(lambda request: as_json(answers[request.path.partition("?")[0]].wire())) as server:
        code, said = await torg(tmp_path, server.url, "offers")
        _, two_free = await torg(tmp_path, server.url, "offers", "--free", "--gpus", "2")

    assert code == 0, said
    line = next(line for line in said.splitlines() if line.startswith("11111111"))
    assert "1/2 GPUs, 0/1" in line
    assert "ready, 1 out" in line
    assert "torg-node doctor on that machine" in said
    assert "11111111" not in two_free
    assert "22222222" in two_free


async def torg(home: Path, url: str, *arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "torg.cli.__main__", "--home", str(home), "--marketplace", url, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()
