"""Whole jobs per second, from submission to the ledger, without containers: python -m benchmarks.end_to_end [--quick] [--database sqlite]

A real `torg-marketplace serve` beside a localnet, over loopback, as it runs everywhere: every job is a signed HTTP submission that holds its
maximum under a cap, is matched, granted, accepted, started, exited, its usage countersigned, reported, decided, billed, receipted, and posted as
payable; the receipt is signed by the node. Wallets submit in open loop; nodes are connections that speak the agent's protocol and "run" each job
for 200 ms. Everything, this generator and PostgreSQL too, shares the machine's cores. Three parts: as fast as it goes; 90 % of that (at least)
in open loop, which has to hold; 80 % of the target, where submissions have to be answered quickly. In the end every job must have succeeded
and the books must add up. PostgreSQL runs without fsync; SQLite as the marketplace opens it, where every commit waits for the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import aiohttp
from solders.keypair import Keypair
from sqlalchemy import func, select

from benchmarks.load.markets import LoadMarket, RolesLoadMarket
from benchmarks.load.nodes import LoadNode, join_all, leave_all
from benchmarks.load.processors import processor_s, stages
from benchmarks.load.queues import Peer, measure_peers
from benchmarks.load.submissions import Load, Payer, Submitter, closed_loop, open_loop, wait_until
from benchmarks.report import Figure, conclude
from tests.support.nats import nats_server
from tests.support.postgres import Postgres, running_postgres
from tests.support.small_market import TUSD, SmallMarket, running_market
from torg.submission import cap_lifetime_s
from torg_marketplace.storage import ledger
from torg_marketplace.storage.engine import Sessions, create_engine
from torg_marketplace.storage.models import JobRow
from torg_protocol.jobspec import load_job_spec
from torg_protocol.states import JobState

SPEC = {
    "version": 1,
    "name": "load",
    "command": ["true"],
    "resources": {"cpus": 0.5, "memory": "64MiB", "disk": "16MiB"},
    "limits": {"max_duration": "30s", "queue_timeout": "10m"},
}
WALLETS, NODES, SLOTS, RUN_S = 8, 20, 8, 0.2
LEAST_SQLITE, LEAST_POSTGRESQL = 40.0, 60.0
MAX_P99_MS = 100.0
IN_FLIGHT = 64


@dataclass
class Outcome:
    per_second: float  # settled in the open-loop part
    capacity: float
    p50_ms: float
    p99_ms: float
    processor_ms: dict[str, float]  # per job, by process
    stages_ms: dict[str, float]  # per job, of the marketplace's process


async def measure(market: LoadMarket, least: float, server_pid: int | None, seconds: float) -> Outcome:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running_market(market.folder, market=market))
        if market.marketplace is None or market.localnet is None:
            raise RuntimeError("the market did not start")
        payers = [await _payer(market) for _ in range(WALLETS)]
        load = Load()
        nodes = [
            LoadNode(market.url, market.marketplace.ready["marketplace"], SLOTS, RUN_S, load.on_receipt)
            for _ in range(NODES)
        ]
        stack.push_async_callback(leave_all, nodes)
        await join_all(nodes)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        submitter = Submitter(market.url, payers, SPEC, http)
        pids = market.pids | ({"database server": server_pid} if server_pid is not None else {})

        await closed_loop(submitter, load, in_flight=IN_FLIGHT, seconds=min(5.0, seconds / 4))  # warms up
        capacity = await closed_loop(submitter, warm := _fresh(load), in_flight=IN_FLIGHT, seconds=seconds / 3)
        await _all_settled(warm)

        before = {name: processor_s(pid) for name, pid in pids.items()}
        stages_before, own = stages(market.marketplace.ready["metrics_port"]), time.process_time()
        sustained = _fresh(load)
        began = time.perf_counter()
        await open_loop(submitter, sustained, per_second=max(1.0, 0.9 * capacity), seconds=seconds)
        settled = sustained.settled_between(began, began + seconds)
        await _all_settled(sustained)
        jobs = len(sustained.asked_at)
        processor = {name: (processor_s(pid) - before[name]) * 1000 / jobs for name, pid in pids.items()}
        processor["load generator"] = (time.process_time() - own) * 1000 / jobs
        spent = stages(market.marketplace.ready["metrics_port"])
        by_stage = {
            name: (processor_s - stages_before.get(name, (0, 0.0))[1]) * 1000 / jobs
            for name, (_, processor_s) in spent.items()
        }

        calm = _fresh(load)
        await open_loop(submitter, calm, per_second=0.8 * least, seconds=seconds / 2)
        await _all_settled(calm)
        errors = [*load.errors, *(refusal for node in nodes for refusal in node.refusals)]
        if errors:
            raise RuntimeError(f"{len(errors)} errors, the first: {errors[0]}")
        await market.marketplace.stop()
        file = market.folder / "marketplace" / "marketplace.sqlite"
        await _audit(market.database_url or f"sqlite:///{file}", len(load.settled_at))
    return Outcome(
        per_second=settled / seconds,
        capacity=capacity,
        p50_ms=median(calm.latencies_ms),
        p99_ms=quantiles(calm.latencies_ms, n=100)[98],
        processor_ms=processor,
        stages_ms=by_stage,
    )


OPTIONS = ("--metrics-port", "0", "--heartbeat", "10s", "--settlement-age", "10m")


def _fresh(load: Load) -> Load:
    """A part of its own, whose receipts come to the same place."""
    return Load(settled_at=load.settled_at, errors=load.errors)


async def _payer(market: SmallMarket) -> Payer:
    async with market.client(deposit=15 * TUSD) as client:
        info = await client.market()
        entry = client.journal.vault(info.marketplace, None)
        if entry is None:
            raise RuntimeError("the vault is not in the journal")
        lifetime_s = cap_lifetime_s(load_job_spec(SPEC), info) + 7_200
        cap = await client.vaults.sign_cap(entry, 15 * TUSD, int(time.time()) + lifetime_s)
        return Payer(client.keypair or Keypair(), cap)


async def _all_settled(load: Load) -> None:
    if not await wait_until(lambda: load.unsettled == 0, within_s=120):
        raise RuntimeError(f"{load.unsettled} of {len(load.asked_at)} jobs were not settled")


async def _audit(url: str, settled: int) -> None:
    """Every job succeeded, and the books add up."""
    engine = create_engine(url)
    try:
        async with Sessions(engine)() as session:
            rows = await session.execute(select(JobRow.state, func.count()).group_by(JobRow.state))
            found = {row[0]: int(row[1]) for row in rows.all()}
            if found != {JobState.SUCCEEDED: settled}:
                raise RuntimeError(f"{settled} receipts, but jobs are {found}")
            if problems := await ledger.problems(session):
                raise RuntimeError(f"the books do not add up: {problems}")
    finally:
        await engine.dispose()


def figures_of(name: str, outcome: Outcome, least: float, *, targets: bool = True) -> list[Figure]:
    figures = [
        Figure(f"{name}: sustained, open loop", outcome.per_second, "jobs/s", least if targets else None, "least"),
        Figure(f"{name}: capacity, closed loop", outcome.capacity, "jobs/s"),
        Figure(f"{name}: p50 submit at {0.8 * least:g}/s", outcome.p50_ms, "ms"),
        Figure(f"{name}: p99 submit at {0.8 * least:g}/s", outcome.p99_ms, "ms", MAX_P99_MS if targets else None),
    ]
    figures += [
        Figure(f"{name}: processor, {process}", value, "ms/job") for process, value in outcome.processor_ms.items()
    ]
    figures += [
        Figure(f"{name}: stage {stage}", value, "ms/job")
        for stage, value in sorted(outcome.stages_ms.items(), key=lambda item: -item[1])
        if value >= 0.01
    ]
    return figures


def peer_figures(peers: list[Peer], jobs_per_second: float) -> list[Figure]:
    figures = []
    for peer in peers:
        figures.append(Figure(f"PostgreSQL: {peer.name}, enqueue and dequeue", peer.per_second, "per second"))
        figures.append(Figure(f"PostgreSQL: whole jobs against {peer.name}", jobs_per_second / peer.per_second, "x"))
    return figures


def on_postgresql(server: Postgres, bus_url: str, seconds: float) -> list[Figure]:
    """All roles in one process, which the targets are for; each role in its own, which uses several cores; and what queues alone do."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="torg-end-to-end-") as folder:
        market = LoadMarket(Path(folder), server.new_database(), slot_ms=400, options=OPTIONS)
        outcome = asyncio.run(measure(market, LEAST_POSTGRESQL, server.pid, seconds))
        figures += figures_of("PostgreSQL", outcome, LEAST_POSTGRESQL)
    with tempfile.TemporaryDirectory(prefix="torg-end-to-end-") as folder:
        roles = RolesLoadMarket(Path(folder), server.new_database(), slot_ms=400, options=OPTIONS, bus_url=bus_url)
        apart = asyncio.run(measure(roles, LEAST_POSTGRESQL, server.pid, seconds))
        figures += figures_of("PostgreSQL, roles apart", apart, LEAST_POSTGRESQL, targets=False)
    return figures + peer_figures(asyncio.run(measure_peers(server)), outcome.capacity)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="15 seconds instead of 60")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], help="only that one")
    arguments = parser.parse_args()
    seconds = 15.0 if arguments.quick else 60.0
    figures: list[Figure] = []
    if arguments.database != "postgresql":
        with tempfile.TemporaryDirectory(prefix="torg-end-to-end-") as folder:
            market = LoadMarket(Path(folder), slot_ms=400, options=OPTIONS)
            figures += figures_of("SQLite", asyncio.run(measure(market, LEAST_SQLITE, None, seconds)), LEAST_SQLITE)
    if arguments.database != "sqlite":
        with running_postgres() as server, nats_server() as bus:
            figures += on_postgresql(server, bus.url, seconds)
    return conclude("end_to_end", figures)


if __name__ == "__main__":
    sys.exit(main())
