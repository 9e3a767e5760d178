"""The API's door, over real HTTP: who is let in, who is not, and that a signature opens it once, also after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from solders.keypair import Keypair

from tests.support.api_server import serving
from tests.support.market import World, open_world
from torg_marketplace.api.context import Edge
from torg_marketplace.api.hub import Hub
from torg_marketplace.api.limits import LocalAdmission, RateLimiter
from torg_marketplace.simulation.world import START_MS
from torg_marketplace.storage.blobs import local_blobs
from torg_marketplace.storage.nonces import NonceStore
from torg_protocol.httpsig import MAX_CLOCK_SKEW_S, RequestParts, sign_request

KEY = Keypair.from_seed(bytes(range(32)))
NOW_S = START_MS // 1000


class Door:
    """A served marketplace, and requests to it that are signed exactly as told."""

    def __init__(self, world: World, url: str, client: httpx.AsyncClient) -> None:
        self.world, self._url, self._client = world, url, client

    def signed(self, method: str, path: str, **how: object) -> httpx.Request:
        body = how.get("body", b"")
        authority = str(how.get("authority", self._url.removeprefix("http://")))
        assert isinstance(body, bytes)
        bare, _, query = path.partition("?")
        parts = RequestParts(method, authority, bare, f"?{query}", {}, body)
        nonce, created_s = str(how.get("nonce", "a-nonce-of-this-test")), int(str(how.get("created_s", NOW_S)))
        headers = sign_request(KEY, parts, created_s=created_s, nonce=nonce)
        return self._client.build_request(method, self._url + path, content=body, headers=headers)

    async def send(self, request: httpx.Request) -> tuple[int, str | None]:
        answer = await self._client.send(request)
        problem = answer.headers["content-type"].startswith("application/problem+json")
        return answer.status_code, answer.json()["code"] if problem else None


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Door]:
    folder.mkdir(exist_ok=True)
    nonces = NonceStore(folder / "nonces.sqlite")
    blobs = local_blobs(folder / "blobs", b"s" * 32, max_bytes=1 << 20)
    async with open_world(folder) as world:
        edge = Edge(world.market, Hub(), blobs, LocalAdmission(nonces, RateLimiter(0)))
        try:
            async with serving(edge) as url, httpx.AsyncClient(trust_env=False, timeout=120) as client:
                yield Door(world, url, client)
        finally:
            nonces.close()


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with served(tmp_path / "market") as door:
        yield door


async def test_a_signed_request_is_let_in_once(door: Door) -> None:
    request = door.signed("GET", "/v1/jobs?limit=5")

    assert await door.send(request) == (200, None)
    assert await door.send(request) == (401, "signature_replayed")
    assert await door.send(door.signed("GET", "/v1/jobs?limit=5", nonce="another-nonce-of-this")) == (200, None)


async def test_a_replay_is_refused_after_a_restart_too(tmp_path: Path) -> None:
    path = "/v1/jobs"
    async with served(tmp_path / "market") as before:
        assert await before.send(before.signed("GET", path)) == (200, None)
    async with served(tmp_path / "market") as after:
        assert await after.send(after.signed("GET", path)) == (401, "signature_replayed")


async def test_an_unsigned_request_is_refused(door: Door) -> None:
    request = door.signed("GET", "/v1/jobs")
    for header in ("signature", "signature-input"):
        del request.headers[header]
    assert await door.send(request) == (401, "signature_missing")


async def test_a_request_for_another_marketplace_is_worth_nothing_here(door: Door) -> None:
    assert await door.send(door.signed("GET", "/v1/jobs", authority="other.example")) == (401, "signature_invalid")


async def test_the_query_is_covered(door: Door) -> None:
    request = door.signed("GET", "/v1/jobs?limit=5")
    request.url = request.url.copy_set_param("limit", "50")
    assert await door.send(request) == (401, "signature_invalid")


@pytest.mark.parametrize("body", [b'{"spec": {"version": 1}}', b""])
async def test_the_body_is_covered_also_when_it_is_taken_away(door: Door, body: bytes) -> None:
    signed = door.signed("POST", "/v1/quotes", body=b'{"spec": {}}')
    headers = {name: value for name, value in signed.headers.items() if name != "content-length"}
    tampered = httpx.Request("POST", signed.url, content=body, headers=headers)

    assert await door.send(tampered) == (401, "content_digest_mismatch")


@pytest.mark.parametrize("offset_s", [-MAX_CLOCK_SKEW_S - 1, MAX_CLOCK_SKEW_S + 1])
async def test_a_stale_signature_is_refused(door: Door, offset_s: int) -> None:
    assert await door.send(door.signed("GET", "/v1/jobs", created_s=NOW_S + offset_s)) == (401, "signature_stale")


async def test_of_many_copies_that_arrive_at_once_one_is_let_in(door: Door) -> None:
    request = door.signed("GET", "/v1/jobs")
    answers = await asyncio.gather(*(door.send(request) for _ in range(20)))

    assert sorted(answers, key=str) == [(200, None), *[(401, "signature_replayed")] * 19]


async def test_a_body_without_end_is_cut_off(door: Door) -> None:
    request = door.signed("POST", "/v1/quotes", body=b" " * ((1 << 20) + 1))
    assert await door.send(request) == (413, "body_too_large")
