"""A job's proxy against a job that wants elsewhere: what a name resolves to counts, at the moment of connecting and for that connection."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from torg_host.addresses import Address
from torg_node.egress.flow_limit import FlowLimit
from torg_node.egress.proxy import EgressProxy
from torg_node.egress.rules import Destination, EgressRules, Refused, destination, destination_of_url

LOOPBACK = ipaddress.ip_network("127.0.0.1/32")


@dataclass
class Names:
    """A name server of the test. Each name's answers are given out in turn, the last one for ever."""

    answers: dict[str, list[list[str]]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, to: Destination) -> Sequence[Address]:
        self.asked.append(to.name)
        if to.name not in self.answers:
            raise socket.gaierror("unknown")
        left = self.answers[to.name]
        return [ipaddress.ip_address(text) for text in (left.pop(0) if len(left) > 1 else left[0])]


@dataclass
class World:
    """A proxy, an origin on loopback that echoes, and what the job says and hears."""

    proxy_port: int
    origin_port: int
    limit: FlowLimit
    requests: list[bytes]

    async def say(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy_port)
        writer.write(data)
        async with asyncio.timeout(150):
            answer = await reader.read()
        writer.close()
        return answer

    async def connect(self, authority: str) -> bytes:
        return (await self.say(f"CONNECT {authority} HTTP/1.1\r\nHost: x\r\n\r\nhello".encode())).partition(b"\r\n")[0]


@asynccontextmanager
async def proxied(rules: EgressRules, names: Names | None = None, bytes_per_s: int = 0) -> AsyncIterator[World]:
    requests: list[bytes] = []

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.read(65536))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    limit = FlowLimit(bytes_per_s, asyncio.get_running_loop().time)
    proxy = EgressProxy(rules, limit, names or Names({}))
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    async with await asyncio.start_server(origin, "127.0.0.1", 0) as server, await proxy.serve(listener):
        yield World(port, server.sockets[0].getsockname()[1], limit, requests)
        await proxy.close()


async def test_a_listed_name_is_reached_by_the_address_that_was_checked() -> None:
    names = Names({"mirror.example": [["127.0.0.1"]]})
    async with proxied(EgressRules(None, (LOOPBACK,)), names) as world:
        assert (await world.connect(f"MIRROR.example.:{world.origin_port}")).endswith(b"200 Connection established")

        assert world.requests == [b"hello"]
        assert names.asked == ["mirror.example"]
        assert (world.limit.sent_bytes, world.limit.received_bytes) == (5, 40)


async def test_a_name_that_is_not_on_the_list_is_not_even_asked_for() -> None:
    names = Names({"secret-data.evil.example": [["9.9.9.9"]]})
    async with proxied(EgressRules(("pypi.org:443", "*.example.org:443")), names) as world:
        for authority in ("secret-data.evil.example:443", "pypi.org:80", "example.org:443", "notpypi.org:443"):
            assert b" 403 " in await world.connect(authority)

    assert names.asked == []


@pytest.mark.parametrize(
    "authority",
    [
        "127.0.0.1:{port}",
        "169.254.169.254:80",
        "10.0.0.1:80",
        "192.168.1.1:443",
        "100.64.0.1:80",
        "[::1]:{port}",
        "[fd00::1]:80",
        "[fe80::1]:80",
        "[::ffff:127.0.0.1]:{port}",
        "[64:ff9b::7f00:1]:{port}",
        "224.0.0.1:80",
        "0.0.0.0:{port}",
        "localhost:{port}",
        "2130706433:{port}",
        "mail.example:25",
    ],
)
async def test_open_is_the_public_internet_and_nothing_else(authority: str) -> None:
    names = Names(
        {
            "localhost": [["127.0.0.1", "::1"]],
            "2130706433": [["127.0.0.1"]],  # how old resolvers read a number
            "mail.example": [["9.9.9.9"]],
        }
    )
    async with proxied(EgressRules(None), names) as world:
        assert b" 403 " in await world.connect(authority.format(port=world.origin_port))

        assert world.requests == []


async def test_a_name_server_that_changes_its_mind_gains_nothing() -> None:
    """Public when it is checked and private when it is connected to: there is no second look-up."""
    names = Names({"rebind.example": [["127.0.0.1"], ["10.0.0.1"]]})
    async with proxied(EgressRules(None, (LOOPBACK,)), names) as world:
        await world.connect(f"rebind.example:{world.origin_port}")
        second = await world.connect(f"rebind.example:{world.origin_port}")

    assert names.asked == ["rebind.example"] * 2  # once per connection
    assert b" 403 " in second
    assert world.requests == [b"hello"]


async def test_of_mixed_answers_only_public_addresses_are_used() -> None:
    names = Names({"mixed.example": [["10.0.0.1", "::1", "127.0.0.1"]]})
    async with proxied(EgressRules(None, (LOOPBACK,)), names) as world:
        assert b" 200 " in await world.connect(f"mixed.example:{world.origin_port}")


async def test_a_plain_request_goes_to_its_url_with_its_urls_host() -> None:
    names = Names({"mirror.example": [["127.0.0.1"]]})
    async with proxied(EgressRules(None, (LOOPBACK,)), names) as world:
        url = f"http://mirror.example:{world.origin_port}/simple/?q=1"
        head = (
            f"GET {url} HTTP/1.1\r\nHost: intranet.local\r\nProxy-Authorization: x\r\nConnection: keep-alive, X-Hop\r\n"
        )
        answer = await world.say(f"{head}X-Hop: 1\r\nAccept: a/b\r\n\r\n".encode())

    assert answer.endswith(b"ok")
    expected = f"GET /simple/?q=1 HTTP/1.1\r\nHost: mirror.example:{world.origin_port}\r\nAccept: a/b\r\nConnection: close\r\n\r\n"
    assert world.requests == [expected.encode()]


async def test_a_redirect_to_the_metadata_service_is_a_new_request_and_refused() -> None:
    async with proxied(EgressRules(None)) as world:
        answer = await world.say(b"GET http://169.254.169.254/latest/meta-data/ HTTP/1.1\r\nHost: x\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"169.254.169.254:80 is not on the public internet" in answer


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: mirror.example\r\n\r\n",  # not a proxy's request
        b"GET https://mirror.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET ftp://mirror.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT user@mirror.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT mirror.example HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT mirror.example:0 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT mirror.example:99999 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"GET http://mirror.example/ HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    ],
)
async def test_nonsense_is_answered_and_closed(data: bytes) -> None:
    async with proxied(EgressRules(None), Names({"mirror.example": [["9.9.9.9"]]})) as world:
        assert (await world.say(data)).startswith(b"HTTP/1.1 400 ")


async def test_socks_has_the_same_rules() -> None:
    names = Names({"mirror.example": [["127.0.0.1"]], "lan.example": [["192.168.1.1"]]})
    async with proxied(EgressRules(None, (LOOPBACK,)), names) as world:

        async def ask(name: bytes, command: int = 1) -> bytes:
            port = world.origin_port.to_bytes(2)
            return await world.say(b"\x05\x01\x00" + bytes([5, command, 0, 3, len(name)]) + name + port + b"hello")

        assert (await ask(b"mirror.example")).startswith(b"\x05\x00\x05\x00\x00\x01")
        assert (await ask(b"lan.example"))[:4] == b"\x05\x00\x05\x02"  # not allowed
        assert (await ask(b"mirror.example", command=3))[:4] == b"\x05\x00\x05\x07"  # UDP
        assert await world.say(b"\x05\x01\x02") == b"\x05\xff"  # only with a password

    assert world.requests == [b"hello"]


async def test_who_is_away_is_named() -> None:
    async with proxied(EgressRules(None, (LOOPBACK,)), Names({})) as world:
        assert b" 502 " in await world.connect("nobody.example:443")


def test_the_bandwidth_of_a_lease_is_one_bucket() -> None:
    clock = [0.0]
    limit = FlowLimit(1_000_000, lambda: clock[0])

    debts = [limit.debt_after(100_000) for _ in range(10)]

    assert debts[0] <= 0.1  # a burst passes
    assert debts[-1] == pytest.approx(1.0, abs=0.26)  # a megabyte takes a second
    clock[0] += 2
    assert limit.debt_after(1) < 0
    assert FlowLimit(0, lambda: 0.0).debt_after(1 << 40) == 0


@pytest.mark.parametrize(
    "text", ["", ":80", "a:b", "a:1/x", "a b:1", "a%00.example:1", "a:1?x", "[::1:80", "ex ample:1"]
)
def test_odd_destinations(text: str) -> None:
    with pytest.raises(Refused):
        destination(text)


def test_a_url_without_a_port_means_80() -> None:
    assert destination_of_url("http://Example.org") == (Destination("example.org", 80), "/")
