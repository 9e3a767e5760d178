"""Node and marketplace of neighbouring releases over the real channel: the older side's words are those that were recorded of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from solders.keypair import Keypair
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from tests.support.api_server import served_world
from torg_node.link import Link
from torg_protocol.httpsig import RequestParts, sign_request
from torg_protocol.messages import CHANNEL_PATH, FROM_NODE, Heartbeat, Hello, RefundIssued, Refused, Welcome
from torg_protocol.signing import sign_document
from torg_protocol.versions import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION

OLDER = OLDEST_PROTOCOL_VERSION
RECORDED = Path(__file__).parents[2] / "unit" / "protocol" / "recorded" / f"version-{OLDER}.txt"
NODE = Keypair.from_seed(hashlib.sha256(b"torg: the node of a recorded conversation").digest())


def recorded(way: str, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line[2:]) for line in RECORDED.read_text().splitlines() if line.startswith(way)]
    return [message for message in lines if message["type"] == kind]


# --- an older node at today's marketplace -------------------------------------------------------------------------------


@asynccontextmanager
async def channel(url: str) -> AsyncIterator[Any]:
    authority = url.partition("://")[2]
    parts = RequestParts("GET", authority, CHANNEL_PATH, "?", {}, b"")
    signed = sign_request(NODE, parts, created_s=int(time.time()), nonce=secrets.token_urlsafe(18))
    async with connect(f"ws://{authority}{CHANNEL_PATH}", additional_headers=signed, proxy=None) as connection:
        yield connection


def older_hello(marketplace: str, version: int = OLDER) -> str:
    """Word for word, but for the marketplace that it offers itself to."""
    (hello,) = recorded(">", "hello")
    offer = {**hello["offer"]["offer"], "marketplace": marketplace}
    signed = {"offer": offer, "signature": sign_document(NODE, "offer", offer)}
    return json.dumps({**hello, "protocol_version": version, "offer": signed, "leases": []})


async def test_an_older_node_is_welcomed_in_its_own_version_and_goes_on_talking(tmp_path: Path) -> None:
    async with served_world(tmp_path) as served, channel(served.url) as connection:
        await connection.send(older_hello(served.world.market.public_key))
        async with asyncio.timeout(150):
            welcome = json.loads(await connection.recv())
        (as_recorded,) = recorded("<", "welcome")
        assert welcome.keys() == as_recorded.keys()  # none that it would not know
        assert (welcome["type"], welcome["protocol_version"]) == ("welcome", OLDER)
        for heartbeat in recorded(">", "heartbeat"):
            await connection.send(json.dumps({**heartbeat, "leases": []}))
        await connection.send('{"type": "nonsense"}')
        async with asyncio.timeout(150):  # in order: had a heartbeat been refused, that would come first
            answer = json.loads(await connection.recv())
        assert answer["problem"]["code"] == "message_malformed"


@pytest.mark.parametrize(
    ("version", "code"),
    [(OLDER - 1, "protocol_version_too_old"), (PROTOCOL_VERSION + 1, "protocol_version_unknown")],
    ids=["too-old", "too-new"],
)
async def test_what_is_further_apart_is_refused_with_the_way_out(tmp_path: Path, version: int, code: str) -> None:
    async with served_world(tmp_path) as served, channel(served.url) as connection:
        await connection.send(older_hello(served.world.market.public_key, version))
        async with asyncio.timeout(150):
            refused = json.loads(await connection.recv())
    problem = refused["problem"]
    assert (refused["fatal"], problem["code"], problem["value"]) == (True, code, version)
    assert problem["spoken"] == [OLDER, PROTOCOL_VERSION]
    assert problem["hint"]


# --- today's node at an older marketplace -------------------------------------------------------------------------------


def older_refusal(version: int) -> str:
    """What a marketplace of version 1 said to others, as its source has it."""
    problem = {
        "type": "urn:torg:error:protocol_version_unknown",
        "title": "this marketplace does not speak that version",
        "status": 422,
        "code": "protocol_version_unknown",
        "field": "protocol_version",
        "value": version,
        "hint": "use a node that speaks version 1",
    }
    return Refused(problem=problem, fatal=True).model_dump_json()


async def test_todays_node_steps_down_to_an_older_marketplace_and_says_nothing_that_it_would_not_know() -> None:
    hellos: list[dict[str, Any]] = []
    heard: list[dict[str, Any]] = []
    welcomed: list[Welcome] = []
    refusals: list[Refused] = []

    async def older_marketplace(connection: ServerConnection) -> None:
        hello = json.loads(await connection.recv())
        hellos.append(hello)
        if hello["protocol_version"] != OLDER:
            await connection.send(older_refusal(hello["protocol_version"]))
            await connection.close(1008)
            return
        await connection.send(json.dumps(recorded("<", "welcome")[0]))
        heard.append(json.loads(await connection.recv()))
        await connection.wait_closed()

    def hello(version: int) -> Hello:
        template = FROM_NODE.validate_json(json.dumps(recorded(">", "hello")[0]))
        assert isinstance(template, Hello)
        return template.model_copy(update={"protocol_version": version, "gpus_out": ("GPU-0",)})

    async def on_welcome(welcome: Welcome) -> None:
        welcomed.append(welcome)

    async def on_refused(refused: Refused) -> None:
        refusals.append(refused)

    async def on_message(_: object) -> None:
        raise AssertionError("nothing was sent")

    async with serve(older_marketplace, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        link = Link(f"http://127.0.0.1:{port}", NODE, hello, on_welcome, on_message, on_refused)
        running = asyncio.create_task(link.run())
        try:
            async with asyncio.timeout(150):
                while not link.connected:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            newer_word = RefundIssued.model_construct(type="refund")
            assert await link.send(newer_word)  # of a kind that the older version has not: left unsaid
            assert await link.send(Heartbeat(at_ms=1, gpus_out=("GPU-0",)))
            async with asyncio.timeout(150):
                while not heard:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    assert [item["protocol_version"] for item in hellos] == [PROTOCOL_VERSION, OLDER]
    assert hellos[0].pop("gpus_out") == ["GPU-0"]
    assert all(item.keys() == recorded(">", "hello")[0].keys() for item in hellos)
    assert [item["type"] for item in heard] == ["heartbeat"]
    assert heard[0].keys() == recorded(">", "heartbeat")[0].keys()
    assert [item.protocol_version for item in welcomed] == [OLDER]
    assert refusals == []
