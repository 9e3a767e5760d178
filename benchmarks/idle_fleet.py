"""What a fleet costs while it waits for work: python -m benchmarks.idle_fleet [--quick]

5,000 connections (500 with --quick) that speak the agent's protocol to one `torg-marketplace serve`, each with a heartbeat every 10 s. After all have joined
and a pause, processor time and memory of that process over a minute; nobody may be thought silent meanwhile. SQLite, every commit waits for the disk.
The target of the processor's share is for the whole fleet; the quick form only shows it.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from sqlalchemy import func, select

from benchmarks.end_to_end import OPTIONS, LoadMarket
from benchmarks.load.nodes import LoadNode, join_all, leave_all
from benchmarks.load.processors import processor_s, resident_bytes, stages
from benchmarks.report import Figure, conclude
from tests.support.small_market import running_market
from torg_marketplace.storage.engine import Sessions, create_engine
from torg_marketplace.storage.models import NodeRow
from torg_protocol.states import Liveness

FLEET, MAX_SHARE_PERCENT, MAX_GIB = 5_000, 50.0, 1.5
SETTLES_S = 15.0  # a heartbeat of everybody, and what joining left to do


async def measure(nodes: int, seconds: float) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="torg-idle-fleet-") as name:
        folder = Path(name)
        market = LoadMarket(folder, slot_ms=400, options=OPTIONS)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(running_market(folder, market=market))
            if market.marketplace is None:
                raise RuntimeError("the market did not start")
            pid, ready = market.marketplace.process.pid, market.marketplace.ready
            empty_gib = resident_bytes(pid) / (1 << 30)
            fleet = [LoadNode(market.url, ready["marketplace"], 1, 1.0, _no_work) for _ in range(nodes)]
            stack.push_async_callback(leave_all, fleet)
            began = time.perf_counter()
            await join_all(fleet)
            joined_s = time.perf_counter() - began
            await asyncio.sleep(SETTLES_S)
            spent, beats = processor_s(pid), stages(ready["metrics_port"])["channel heartbeat"][0]
            began = time.perf_counter()
            await asyncio.sleep(seconds)
            elapsed_s = time.perf_counter() - began
            share = (processor_s(pid) - spent) / elapsed_s * 100
            heard = (stages(ready["metrics_port"])["channel heartbeat"][0] - beats) / elapsed_s
            gib = resident_bytes(pid) / (1 << 30)
            silent = await _not_alive(folder / "marketplace" / "marketplace.sqlite")
    return [
        Figure("processor, of one core", share, "%", MAX_SHARE_PERCENT if nodes == FLEET else None),
        Figure("resident memory", gib, "GiB", MAX_GIB),
        Figure("resident memory without nodes", empty_gib, "GiB"),
        Figure("heartbeats heard", heard, "per second", 0.9 * nodes / 10, "least"),
        Figure("nodes thought silent", silent, "", 0),
        Figure("nodes joined", nodes / joined_s, "per second"),
    ]


def _no_work(job_id: str) -> None:
    raise RuntimeError(f"nobody submitted {job_id}")


async def _not_alive(database: Path) -> int:
    engine = create_engine(f"sqlite:///{database}")
    try:
        async with Sessions(engine)() as session:
            query = select(func.count()).select_from(NodeRow).where(NodeRow.liveness != Liveness.ALIVE)
            return int(await session.scalar(query) or 0)
    finally:
        await engine.dispose()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 nodes, 20 seconds")
    quick = parser.parse_args().quick
    nodes, seconds = (500, 20.0) if quick else (FLEET, 60.0)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the marketplace inherits it
    return conclude("idle_fleet", asyncio.run(measure(nodes, seconds)))


if __name__ == "__main__":
    sys.exit(main())
