"""Lists of several pages, as the SDK goes through them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from solders.keypair import Keypair

from tests.support.answers import job_view
from tests.support.scripted_server import Answer, Request, as_json, scripted_server
from torg.client import AsyncClient
from torg.config import ClientConfig
from torg_protocol.api import JobPage
from torg_protocol.states import JobState

PAGES = {None: (["job_5", "job_4"], "job_4"), "job_4": (["job_3", "job_2"], "job_2"), "job_2": (["job_1"], None)}


async def test_all_pages_are_gone_through_and_no_further_than_is_taken(tmp_path: Path) -> None:
    asked: list[dict[str, list[str]]] = []

    def page(request: Request) -> Answer:
        query = parse_qs(urlsplit(request.path).query)
        asked.append(query)
        names, cursor = PAGES[query.get("cursor", [None])[0]]
        jobs = tuple(job_view(name, JobState.FAILED) for name in names)
        return as_json(JobPage(jobs=jobs, next_cursor=cursor).wire())

    async with (
        scripted_server(page) as server,
        AsyncClient(ClientConfig(tmp_path, server.url), Keypair()) as client,
    ):
        assert [job.job_id async for job in client.all_jobs(state="failed")] == [
            "job_5",
            "job_4",
            "job_3",
            "job_2",
            "job_1",
        ]
        assert [query["state"] for query in asked] == [["failed"]] * 3
        asked.clear()
        async for job in client.all_jobs():
            assert job.job_id == "job_5"
            break
    assert len(asked) == 1
