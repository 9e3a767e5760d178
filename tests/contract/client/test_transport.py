"""What is sent again and what never, what broken servers become, and that everything ends in an error of the one tree."""

from __future__ import annotations

import errno
import hashlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import IO
from urllib.parse import parse_qsl

import pytest
from solders.keypair import Keypair

from tests.support.scripted_server import LOSE, Answer, Request, Script, ScriptedServer, as_json, scripted_server
from torg import transport
from torg.blobs import BlobTransfer
from torg.errors import DigestMismatch
from torg.transport import ByteProgress, Transport
from torg_protocol.api import MarketInfo, OfferPage
from torg_protocol.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    RateLimited,
    TorgError,
    Unauthorized,
    Unavailable,
)
from torg_protocol.httpsig import RequestParts, verify_request


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr("torg.blobs._PAUSE_S", 0.001)


class Scripted:
    """A transport, and the server that it talks to."""

    def __init__(self, client: Transport, server: ScriptedServer) -> None:
        self.client, self.server = client, server


async def talking_to(script: Script) -> AsyncIterator[Scripted]:
    async with scripted_server(script) as server:
        client = Transport(server.url, Keypair())
        try:
            yield Scripted(client, server)
        finally:
            await client.aclose()


def times(count: int, first: Answer | str, then: Answer) -> Script:
    """`first` for so many requests, `then` from there on."""
    left = [count]

    def script(request: Request) -> Answer | str:
        left[0] -= 1
        return first if left[0] >= 0 else then

    return script


@pytest.mark.parametrize("trouble", [LOSE, Answer(503), Answer(502, b"<html>"), Answer(504), Answer(429)])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("GET", {}),
        ("PUT", {"body": {}}),
        ("POST", {"body": {}, "idempotency_key": "k"}),
        ("POST", {"body": {}, "safe_to_repeat": True}),
    ],
    ids=["get", "put", "post-with-key", "post-safe"],
)
async def test_what_is_safe_is_sent_again_until_it_is_answered(
    trouble: Answer | str, method: str, options: dict[str, object]
) -> None:
    async for both in talking_to(times(3, trouble, as_json({"fine": True}))):
        assert await both.client.request(method, "/x", **options) == {"fine": True}
        assert len(both.server.seen(method, "/x")) == 4


async def test_every_try_has_the_same_idempotency_key_and_body_and_a_signature_of_its_own() -> None:
    async for both in talking_to(times(2, LOSE, as_json({}))):
        await both.client.request("POST", "/v1/jobs", body={"a": 1}, idempotency_key="key-1")

        requests = both.server.requests
        assert {request.headers["idempotency-key"] for request in requests} == {"key-1"}
        assert {request.body for request in requests} == {b'{"a": 1}'}
        nonces = set()
        for request in requests:
            parts = RequestParts("POST", request.headers["host"], "/v1/jobs", "", request.headers, request.body)
            created = int(request.headers["signature-input"].split("created=")[1].split(";")[0])
            nonces.add(verify_request(parts, now_s=created).nonce)
        assert len(nonces) == 3


@pytest.mark.parametrize(("trouble", "code"), [(LOSE, "marketplace_unreachable"), (Answer(503), "not_a_marketplace")])
async def test_a_post_without_a_key_is_sent_once(trouble: Answer | str, code: str) -> None:
    async for both in talking_to(lambda request: trouble):
        with pytest.raises(Unavailable) as refused:
            await both.client.request("POST", "/x", body={})

        assert refused.value.code == code
        assert len(both.server.requests) == 1


async def test_a_server_that_never_answers_is_given_up_after_five_tries() -> None:
    async for both in talking_to(lambda request: LOSE):
        with pytest.raises(Unavailable) as refused:
            await both.client.request("GET", "/x")

        assert (refused.value.code, refused.value.value) == ("marketplace_unreachable", both.server.url)
        assert "--marketplace" in (refused.value.hint or "")
        assert len(both.server.requests) == 5


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
async def test_a_refusal_is_never_sent_again(status: int) -> None:
    problem = {"type": "urn:torg:error:some_code", "title": "no", "status": status, "code": "some_code", "field": "f"}
    async for both in talking_to(lambda request: as_json(problem, status)):
        with pytest.raises(TorgError) as refused:
            await both.client.request("GET", "/x")

        assert (refused.value.code, refused.value.field, refused.value.status) == ("some_code", "f", _shown(status))
        assert len(both.server.requests) == 1


def _shown(status: int) -> int:
    return 422 if status == 400 else status


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(200, b"<html>hello</html>"), Invalid),
        (Answer(302, b"", {"location": "https://elsewhere.example/"}), Invalid),
        (Answer(404, b"<html>nothing here</html>"), Invalid),
        (Answer(404, b"[1, 2]"), Invalid),
        (Answer(400, b'{"status": "many", "code": 7}'), Invalid),
        (Answer(500, b"oops"), Unavailable),
    ],
)
async def test_another_kind_of_server_is_recognised_as_one(answer: Answer, error: type[TorgError]) -> None:
    async for both in talking_to(lambda request: answer):
        with pytest.raises(error) as refused:
            await both.client.request("GET", "/v1/market")
        assert refused.value.code == "not_a_marketplace"


@pytest.mark.parametrize("answer", [{"name": "x"}, [], 7, None, "text"])
async def test_an_answer_of_another_shape_is_named(answer: object) -> None:
    async for both in talking_to(lambda request: as_json(answer)):
        with pytest.raises(Unavailable) as refused:
            await both.client.ask(MarketInfo, "GET", "/v1/market")
        assert refused.value.code == "answer_malformed"


async def test_pages_follow_their_cursor_to_the_last_one() -> None:
    def page(request: Request) -> Answer:
        cursor = dict(parse_qsl(request.path.partition("?")[2])).get("cursor")
        return as_json({"offers": [], "next_cursor": {None: "b", "b": "c", "c": None}[cursor]})

    async for both in talking_to(page):
        pages = [page.next_cursor async for page in both.client.ask_pages(OfferPage, "/v1/offers")]
        assert pages == ["b", "c", None]


async def test_nobody_at_the_address_is_told_with_the_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen; a port that nobody has may be somebody's a moment later
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        client = Transport(url, Keypair())
        try:
            for call in (client.request("GET", "/x"), client.request("POST", "/x", body={}), client.text("/x")):
                with pytest.raises(Unavailable) as refused:
                    await call
                assert (refused.value.code, refused.value.value) == ("marketplace_unreachable", url)
        finally:
            await client.aclose()


async def test_events_go_on_after_the_last_one_seen_and_gaps_are_told() -> None:
    def event(number: int) -> bytes:
        return f"id: {number}\nevent: log\ndata: {json.dumps({'id': number})}\n\n".encode()

    answers = [
        Answer(200, event(1) + event(2) + b": still here\n\n" + b"x" * 10, cut_after=len(event(1) + event(2))),
        LOSE,
        Answer(503),
        Answer(200, event(3)),
    ]
    gaps: list[str] = []
    async for both in talking_to(lambda request: answers.pop(0)):
        found = [item["id"] async for item in both.client.events("/e", on_gap=gaps.append)]

        assert found == [1, 2, 3]
        assert [request.headers["last-event-id"] for request in both.server.requests] == ["0", "2", "2", "2"]
        assert len(gaps) == 1  # one gap, however often it was tried


async def test_events_of_an_unknown_job_are_an_error_and_not_a_wait() -> None:
    problem = {"title": "no such job", "status": 404, "code": "job_unknown"}
    async for both in talking_to(lambda request: as_json(problem, 404)):
        with pytest.raises(NotFound) as refused:
            _ = [item async for item in both.client.events("/e")]
        assert refused.value.code == "job_unknown"
        assert len(both.server.requests) == 1


async def test_a_stream_that_ends_with_a_problem_ends_in_that_error_and_is_not_asked_for_again() -> None:
    problem = {
        "id": 1,
        "kind": "problem",
        "title": "this API key was revoked",
        "status": 401,
        "code": "api_key_revoked",
    }
    stream = f"id: 1\ndata: {json.dumps({'id': 1})}\n\nid: 1\nevent: problem\ndata: {json.dumps(problem)}\n\n"
    async for both in talking_to(lambda request: Answer(200, stream.encode())):
        events = both.client.events("/e")
        assert (await anext(events))["id"] == 1
        with pytest.raises(Unauthorized) as refused:
            await anext(events)
        assert refused.value.code == "api_key_revoked"
        assert len(both.server.requests) == 1


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long the transport waited each time; it does not."""
    times: list[float] = []

    async def sleep(seconds: float) -> None:
        times.append(seconds)

    monkeypatch.setattr(transport.asyncio, "sleep", sleep)
    return times


def limited(seconds: int) -> Answer:
    problem = {"title": "no more today", "status": 429, "code": "submissions_per_day_reached", "retry_after_s": seconds}
    return replace(as_json(problem, 429), headers={"retry-after": str(seconds)})


async def test_a_server_that_asks_for_patience_is_waited_for(slept: list[float]) -> None:
    async for both in talking_to(times(2, limited(20), as_json({}))):
        await both.client.request("GET", "/x")
    async for both in talking_to(times(1, limited(20), Answer(200, b'id: 1\ndata: {"id": 1}\n\n'))):
        assert [item["id"] async for item in both.client.events("/e")] == [1]
    assert slept == [20, 20, 20]


async def test_a_quota_of_a_day_is_told_at_once(slept: list[float]) -> None:
    """Four times half a minute went by before the refusal was shown."""
    async for both in talking_to(lambda request: limited(40_000)):
        for ask in (both.client.request("POST", "/v1/jobs", idempotency_key="k"), anext(both.client.events("/e"))):
            with pytest.raises(RateLimited) as refused:
                await ask
            assert refused.value.code == "submissions_per_day_reached"
        assert len(both.server.requests) == 2
    assert slept == []


# --- transfers ----------------------------------------------------------------------------------------------------------

DATA = bytes(range(256)) * 4096
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


class BlobServer:
    """Serves one blob; `trouble` answers the first downloads instead."""

    def __init__(self, *trouble: Answer | str, data: bytes = DATA, ranges: bool = True) -> None:
        self.trouble, self.data, self.ranges, self.url = list(trouble), data, ranges, ""
        self.asked: list[str | None] = []

    def __call__(self, request: Request) -> Answer | str:
        if request.path.startswith("/v1/blobs/"):
            host = request.headers["host"]
            return as_json({"digest": DIGEST, "size_bytes": len(DATA), "url": f"http://{host}/bytes"})
        self.asked.append(request.headers.get("range"))
        if self.trouble:
            return self.trouble.pop(0)
        if self.ranges and (wanted := request.headers.get("range")):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            total = len(self.data)
            return Answer(206, self.data[start:], {"content-range": f"bytes {start}-{total - 1}/{total}"})
        return Answer(200, self.data)


async def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    server = BlobServer(Answer(200, DATA, cut_after=300_000))
    progress: list[tuple[int, int]] = []
    async for both in talking_to(server):
        await BlobTransfer(both.client).fetch(
            DIGEST, tmp_path / "out", tmp_path, lambda done, total: progress.append((done, total))
        )

    assert (tmp_path / "out").read_bytes() == DATA
    first, second = server.asked
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 300_000
    assert progress[-1] == (len(DATA), len(DATA))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


async def test_what_an_earlier_command_left_unfinished_is_not_fetched_again(tmp_path: Path) -> None:
    cut = Answer(200, DATA, cut_after=500_000)
    async for both in talking_to(BlobServer(cut, *[LOSE] * 5)):
        with pytest.raises(Unavailable):
            await BlobTransfer(both.client).fetch(DIGEST, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()

    server = BlobServer()
    async for both in talking_to(server):
        await BlobTransfer(both.client).fetch(DIGEST, tmp_path / "out", tmp_path)
    assert (tmp_path / "out").read_bytes() == DATA
    assert server.asked[0] is not None


async def test_a_server_without_ranges_is_read_from_the_start(tmp_path: Path) -> None:
    server = BlobServer(Answer(200, DATA, cut_after=300_000), ranges=False)
    async for both in talking_to(server):
        await BlobTransfer(both.client).fetch(DIGEST, tmp_path / "out", tmp_path)

    assert (tmp_path / "out").read_bytes() == DATA


async def test_a_damaged_part_is_thrown_away_and_fetched_anew(tmp_path: Path) -> None:
    (tmp_path / f".torg-{DIGEST[7:39]}.partial").write_bytes(b"\0" * 1000)
    async for both in talking_to(BlobServer()):
        await BlobTransfer(both.client).fetch(DIGEST, tmp_path / "out", tmp_path)

    assert (tmp_path / "out").read_bytes() == DATA


async def test_bytes_that_are_not_those_named_leave_nothing(tmp_path: Path) -> None:
    async for both in talking_to(BlobServer(data=DATA[:-1] + b"!")):
        with pytest.raises(DigestMismatch) as refused:
            await BlobTransfer(both.client).fetch(DIGEST, tmp_path / "out", tmp_path)

    assert (refused.value.code, refused.value.value) == ("digest_mismatch", DIGEST)
    assert list(tmp_path.iterdir()) == []


async def test_a_server_that_sends_without_end_fills_no_disk(tmp_path: Path) -> None:
    async for both in talking_to(BlobServer(data=DATA + b"x" * (8 << 20))):
        with (tmp_path / "file").open("w+b") as file:
            await both.client.download(both.server.url + "/bytes", file, len(DATA))
        assert (tmp_path / "file").stat().st_size == len(DATA)


async def test_an_expired_url_is_asked_for_again_and_a_forbidden_one_is_not(tmp_path: Path) -> None:
    expired = as_json({"title": "expired", "status": 403, "code": "blob_url_expired"}, 403)
    server = BlobServer(expired)
    async for both in talking_to(server):
        await BlobTransfer(both.client).fetch(DIGEST, tmp_path / "out", tmp_path)
    assert len(server.asked) == 2

    forbidden = BlobServer(as_json({"title": "no", "status": 403, "code": "blob_url_invalid"}, 403))
    async for both in talking_to(forbidden):
        with pytest.raises(Forbidden):
            await BlobTransfer(both.client).fetch(DIGEST, tmp_path / "other", tmp_path)
    assert len(forbidden.asked) == 1


async def test_a_link_planted_at_the_partial_file_is_not_followed(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("mine")
    folder.mkdir()
    (folder / f".torg-{DIGEST[7:39]}.partial").symlink_to(victim)
    async for both in talking_to(BlobServer()):
        with pytest.raises(Conflict) as refused:
            await BlobTransfer(both.client).fetch(DIGEST, folder / "out", folder)

    assert refused.value.code == "output_not_writable"
    assert victim.read_text() == "mine"


async def test_a_full_disk_is_told_with_its_place_and_what_has_arrived_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = Transport.download

    async def full(self: Transport, url: str, file: IO[bytes], size_bytes: int, on_bytes: ByteProgress | None) -> None:
        await download(self, url, file, size_bytes, on_bytes)
        file.truncate(1000)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Transport, "download", full)
    async for both in talking_to(BlobServer()):
        with pytest.raises(OSError, match="No space left") as refused:
            await BlobTransfer(both.client).fetch(DIGEST, tmp_path / "out", tmp_path)
    (kept,) = tmp_path.iterdir()
    assert (refused.value.filename, kept.stat().st_size) == (str(kept), 1000)


async def test_two_downloads_of_one_file_to_one_folder_do_not_mix(tmp_path: Path) -> None:
    import fcntl

    partial = tmp_path / f".torg-{DIGEST[7:39]}.partial"
    with partial.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        async for both in talking_to(BlobServer()):
            with pytest.raises(Conflict) as refused:
                await BlobTransfer(both.client).fetch(DIGEST, tmp_path / "out", tmp_path)
    assert refused.value.code == "transfer_in_progress"


async def test_an_upload_that_breaks_is_sent_again_and_what_the_store_has_is_not(tmp_path: Path) -> None:
    source = tmp_path / "archive"
    source.write_bytes(DATA)
    tries = [0]

    def script(request: Request) -> Answer | str:
        if request.path == "/v1/blobs":
            url = None if tries[0] >= 3 else f"http://{request.headers['host']}/put"
            return as_json({"digest": DIGEST, "url": url})
        tries[0] += 1
        return LOSE if tries[0] < 2 else Answer(204)

    async for both in talking_to(script):
        await BlobTransfer(both.client).store(DIGEST, source)
        assert [request.body for request in both.server.seen("PUT", "/put")] == [DATA, DATA]
        tries[0] = 3
        await BlobTransfer(both.client).store(DIGEST, source)
        assert len(both.server.seen("PUT", "/put")) == 2
