"""A quote over loopback HTTP from a live book of 10,000 nodes: python -m benchmarks.quote [--quick]

The marketplace's own server, flows, SQLite database and book; the nodes are rows of 12 classes of GPU, free, as in the benchmark
`matcher`. One wallet asks for jobs of many kinds, one request at a time: its signature is verified, the market explained, the price
promised. The clock goes on, so that the book is compared with the database as often as in a running market. The floor, alternating:
GET /healthz of the same server. Client and server share a process and the event loop that
marketplaces use; the client is a bare socket and signs before the clock starts, which is when the market has loaded its book and its code.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlsplit

import httpx
import uvloop

from benchmarks.matcher import demand, node
from benchmarks.report import Figure, conclude
from tests.support.api_server import ServedWorld, WalletAuth, served_world
from torg_marketplace.storage.models import NodeRow
from torg_protocol.offers import Offer
from torg_protocol.states import NodeState

NODES, QUOTES, QUICK_QUOTES = 10_000, 2_000, 300
MAX_P99_MS = 5.0
_WARM_UP = 20


async def measure(quotes: int) -> tuple[list[float], list[float], int]:
    with tempfile.TemporaryDirectory(prefix="torg-quote-") as folder:
        async with served_world(Path(folder)) as served:
            await _register(served, [node(number, random.Random(number)).offer for number in range(NODES)])
            return await _timed(served, quotes)


async def _register(served: ServedWorld, offers: list[Offer]) -> None:
    async with served.world.market.transaction() as unit:
        for offer in offers:
            unit.session.add(
                NodeRow(
                    node_id=offer.node,
                    state=NodeState.ACTIVE,
                    connected=True,
                    last_seen_ms=unit.now_ms,
                    joined_at_ms=unit.now_ms,
                    offer=offer.wire(),
                    offer_signature="",
                    offer_sequence=offer.sequence,
                )
            )


async def _timed(served: ServedWorld, quotes: int) -> tuple[list[float], list[float], int]:
    chance, auth = random.Random(0), WalletAuth(served.client.key)
    bodies = [json.dumps({"spec": demand(chance).spec.wire()}).encode() for _ in range(256)]
    await _pairs(served, auth, [chance.choice(bodies) for _ in range(_WARM_UP)])
    if (loading := served.world.market.book.compiling) is not None:
        await loading  # for longer than the server keeps an idle connection: what is timed has one of its own
    pairs = await _pairs(served, auth, [chance.choice(bodies) for _ in range(quotes)])
    taken, floor, answers = zip(*pairs, strict=True)
    return list(taken), list(floor), sum(json.loads(answer)["feasible"] for answer in answers)


async def _pairs(served: ServedWorld, auth: WalletAuth, bodies: list[bytes]) -> list[tuple[float, float, bytes]]:
    """For each body: milliseconds of its quote, of a GET /healthz just before, and the quote's answer."""
    address = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    pairs = []
    for body in bodies:
        served.world.clock.time_ms = time.time_ns() // 1_000_000
        quote = httpx.Request(
            "POST", f"{served.url}/v1/quotes", content=body, headers={"content-type": "application/json"}
        )
        signed = next(auth.auth_flow(quote))
        healthz = httpx.Request("GET", f"{served.url}/healthz")
        began = time.perf_counter()
        await _exchange(reader, writer, healthz)
        between = time.perf_counter()
        answer = await _exchange(reader, writer, signed)
        ended = time.perf_counter()
        pairs.append(((ended - between) * 1000, (between - began) * 1000, answer))
    writer.close()
    return pairs


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: httpx.Request) -> bytes:
    head = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1"]
    head += [f"{name}: {value}" for name, value in request.headers.items()]
    writer.write("\r\n".join([*head, "", ""]).encode() + request.content)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(line for line in answer.lower().split("\r\n") if line.startswith("content-length:"))
    content = await reader.readexactly(int(length.partition(":")[2]))
    if not answer.startswith("HTTP/1.1 200"):
        raise RuntimeError(content.decode())
    return content


def p99(times: list[float]) -> float:
    return quantiles(times, n=100)[98]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_QUOTES} quotes instead of {QUOTES:,}")
    taken, floor, feasible = uvloop.run(measure(QUICK_QUOTES if parser.parse_args().quick else QUOTES))
    figures = [
        Figure("p50: quote", median(taken), "ms"),
        Figure("p99: quote", p99(taken), "ms", MAX_P99_MS),
        Figure("p50: GET /healthz", median(floor), "ms"),
        Figure("p99: GET /healthz", p99(floor), "ms"),
        Figure("p50 as a multiple of the floor", median(taken) / median(floor), "x"),
        Figure("feasible", feasible / len(taken), "of all"),
    ]
    return conclude("quote", figures)


if __name__ == "__main__":
    sys.exit(main())
