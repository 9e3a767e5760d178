"""What a tunnel costs: python -m benchmarks.tunnel [--quick]

A whole market of real processes on this machine; a job in the sandbox that answers on a port; the same port asked straight, by a socket in
the job's network, and through the tunnel: local port, client, gateway, node, container, SSH from client to node. Pairs, in turn.

Added round trip: the difference of the medians, 64 bytes each way, through a local port as `torg port-forward` opens it. Throughput on one
core: bytes moved by the CPU time that the client's and the node's process took for them, the worse direction counts: five processes share
this machine's cores, so bytes by seconds measures the machine. Seconds by the clock and the gateway's own cost are for information.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Figure, conclude
from tests.support.small_market import running_market, submit
from torg.tunnel import PortForwarding, PortPair, open_tunnel
from torg_node.executors.port import Handle
from torg_node.executors.sandbox import SandboxExecutor

MIB = 1 << 20
MOST_ADDED_MS, LEAST_MB_PER_S = 1.0, 100.0
ROUNDS, QUICK_ROUNDS, PINGS, BULK_MIB, QUICK_BULK_MIB = 5, 3, 300, 256, 64
SERVER = f"""
import socket, threading
def serve(c):
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    block, into = bytes({MIB}), bytearray({MIB})
    while line := c.recv(64):
        if line.startswith(b"ping"):
            c.sendall(line)
        elif line.startswith(b"down"):
            for _ in range(int(line[4:])): c.sendall(block)
        else:
            left = int(line[2:]) * {MIB}
            c.sendall(b"go")
            while left: left -= c.recv_into(into)
            c.sendall(b"done")
s = socket.create_server(("127.0.0.1", 8888)); print("up", flush=True)
while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
"""
ROOM = {"memory": "256MiB", "disk": "32MiB", "cpus": 1}
Streams = tuple[Any, Any]  # reader and writer, asyncio's or asyncssh's


@dataclass(frozen=True)
class Cost:
    seconds: float
    cpu_s: dict[str, float]  # by process


async def _ping_ms(streams: Streams) -> float:
    reader, writer = streams
    times = []
    for _ in range(PINGS):
        began = time.perf_counter()
        writer.write(b"ping".ljust(64))
        await reader.readexactly(64)
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


async def _down(streams: Streams, mebibytes: int) -> None:
    reader, writer = streams
    writer.write(b"down%d" % mebibytes)
    left = mebibytes * MIB
    while left:
        left -= len(await reader.read(min(left, MIB)))


async def _up(streams: Streams, mebibytes: int) -> None:
    reader, writer = streams
    writer.write(b"up%d" % mebibytes)
    await reader.readexactly(2)
    block = bytes(MIB)
    for _ in range(mebibytes):
        writer.write(block)
        await writer.drain()
    await reader.readexactly(4)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _cost(pids: dict[str, int], work: Callable[[], Awaitable[None]]) -> Cost:
    before, began = {name: _cpu_s(pid) for name, pid in pids.items()}, time.perf_counter()
    await work()
    return Cost(time.perf_counter() - began, {name: _cpu_s(pid) - before[name] for name, pid in pids.items()})


async def _measure(folder: Path, *, rounds: int, mebibytes: int) -> list[Figure]:
    async with running_market(folder) as market, market.client() as client:
        job = await submit(client, ["python", "-c", SERVER], limits={"max_duration": "10m"}, resources=ROOM)
        async with asyncio.timeout(60):
            while "up" not in await client.logs(job.job_id):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        if market.node is None or market.marketplace is None:
            raise RuntimeError("the market is gone")
        pids = {"client": os.getpid(), "node": market.node.process.pid, "gateway": market.marketplace.process.pid}
        lease = (await client.job(job.job_id)).leases[-1].lease_id.replace("_", "-")
        inside = SandboxExecutor(folder / "node" / "containers" / "sandbox")
        socket = await inside.dial(Handle("sandbox", lease, "", 0), 8888)
        straight = await asyncio.open_connection(sock=socket)
        forwarding = PortForwarding(client, job.job_id, lambda _: None)
        (pair,) = await forwarding.listen([PortPair(8888, 0)])
        running = asyncio.create_task(forwarding.run())
        try:
            forwarded = await asyncio.open_connection("127.0.0.1", pair.local)
            pings = [(await _ping_ms(straight), await _ping_ms(forwarded)) for _ in range(rounds)]
            async with open_tunnel(client, job.job_id) as tunnel:
                line = await tunnel.connect(8888)
                down = [await _cost(pids, lambda: _down(line, mebibytes)) for _ in range(rounds)]
                up = [await _cost(pids, lambda: _up(line, mebibytes)) for _ in range(rounds)]
        finally:
            running.cancel()
            forwarding.close()
            straight[1].close()
            await client.cancel(job.job_id)
            await client.wait(job.job_id)
    return _figures(pings, down, up, mebibytes)


def _figures(pings: list[tuple[float, float]], down: list[Cost], up: list[Cost], mebibytes: int) -> list[Figure]:
    megabytes = mebibytes * MIB / 1e6

    def per_core(name: str) -> float:
        return min(megabytes / statistics.median(cost.cpu_s[name] for cost in way) for way in (down, up))

    added = statistics.median(through - direct for direct, through in pings)
    figures = [
        Figure("added round trip, median", added, "ms", MOST_ADDED_MS),
        Figure("straight round trip, median", statistics.median(direct for direct, _ in pings), "ms"),
        Figure("client, one core, worse way", per_core("client"), "MB/s", LEAST_MB_PER_S, "least"),
        Figure("node, one core, worse way", per_core("node"), "MB/s", LEAST_MB_PER_S, "least"),
        Figure("gateway, one core, worse way", per_core("gateway"), "MB/s"),
    ]
    for name, way in (("from the job", down), ("to the job", up)):
        figures.append(
            Figure(f"by the clock, {name}", megabytes / statistics.median(cost.seconds for cost in way), "MB/s")
        )
    return figures


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rounds, mebibytes = (QUICK_ROUNDS, QUICK_BULK_MIB) if quick else (ROUNDS, BULK_MIB)
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(_measure(Path(folder), rounds=rounds, mebibytes=mebibytes))
    return conclude(
        "tunnel",
        figures,
        notes=[f"{rounds} pairs of {PINGS} pings; {rounds} x {mebibytes} MiB each way; {os.cpu_count()} cores"],
    )


if __name__ == "__main__":
    sys.exit(main())
