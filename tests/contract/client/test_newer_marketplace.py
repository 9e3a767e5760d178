"""The client with a marketplace of a later release: what it says more is left out, and what would be lost by that is not sent on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from solders.keypair import Keypair

from tests.support.answers import job_view
from tests.support.scripted_server import Answer, as_json, scripted_server
from torg.client import AsyncClient
from torg.config import ClientConfig
from torg_protocol.api import JobEvent
from torg_protocol.errors import Unavailable
from torg_protocol.ids import JobId
from torg_protocol.states import JobState

JOB = JobId("job_01m8btcfmygenkw2tanbedqfe4")


def job() -> dict[str, Any]:
    return job_view(JOB, JobState.SUCCEEDED).wire()


async def test_events_of_kinds_that_came_later_are_passed_over(tmp_path: Path) -> None:
    known = JobEvent(id=2, at_ms=1, kind="log", data={"text": "x"})
    sent = [{**known.wire(), "id": 1, "kind": "a_later_kind"}, {**known.wire(), "a_later_member": 1}]
    body = "".join(f"id: {event['id']}\ndata: {json.dumps(event)}\n\n" for event in sent).encode()
    async with (
        scripted_server(lambda _: Answer(200, body, {"content-type": "text/event-stream"})) as server,
        AsyncClient(ClientConfig(tmp_path, server.url), Keypair()) as client,
    ):
        assert [event async for event in client.follow(JOB)] == [known]


async def test_a_job_that_is_not_wholly_understood_is_shown_but_not_submitted_again(tmp_path: Path) -> None:
    answer = job()
    answer["spec"]["a_later_member"] = "that matters"
    async with (
        scripted_server(lambda _: as_json(answer)) as server,
        AsyncClient(ClientConfig(tmp_path, server.url), Keypair()) as client,
    ):
        assert (await client.job(JOB)).spec.command == ("x",)
        with pytest.raises(Unavailable) as refused:
            await client.resubmit(JOB)
        paths = {(request.method, request.path) for request in server.requests}

    assert refused.value.code == "answer_malformed"
    assert "upgrade" in (refused.value.hint or "")
    assert paths == {("GET", f"/v1/jobs/{JOB}")}
