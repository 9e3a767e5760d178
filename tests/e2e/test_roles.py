"""A marketplace of six processes on one PostgreSQL and NATS: killing the matcher that leads loses nothing and grants nothing twice."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from benchmarks.end_to_end import SPEC, LoadMarket, _payer
from benchmarks.load.nodes import LoadNode, join_all, leave_all
from benchmarks.load.submissions import Load, Submitter
from scripts.market_processes import Running, script, start
from tests.support.nats import running_nats
from tests.support.postgres import Postgres, postgres
from torg_marketplace.storage import ledger
from torg_marketplace.storage.engine import Sessions, create_engine

__all__ = ["postgres"]
OPTIONS = ("--heartbeat", "5s", "--settlement-age", "10m")
pytestmark = pytest.mark.timeout(900)


@dataclass
class RolesMarket(LoadMarket):
    """`marketplace` is the first API replica, and the last to stop."""

    bus_url: str = ""
    others: dict[str, Running] = field(default_factory=dict)

    async def start_marketplace(self) -> None:
        for name, role in (
            ("api a", "api"),
            ("api b", "api"),
            ("matcher 1", "matcher"),
            ("matcher 2", "matcher"),
            ("worker", "worker"),
        ):
            self.others[name] = await self._start(name, role)
        self.marketplace, self.url = self.others["api a"], str(self.others["api a"].ready["url"])

    async def _start(self, name: str, role: str) -> Running:
        argv = [script("torg-marketplace"), "serve", "--data", str(self.folder / "marketplace"), "--port", "0"]
        argv += ["--rpc-url", self.rpc_url, "--role", role, "--bus-url", self.bus_url, *OPTIONS]
        env = {"TORG_MARKETPLACE_DATABASE_URL": self.database_url or ""}
        return await start(name, argv, self.folder / f"{name}.log", env=env)

    async def stop(self) -> None:
        for running in self.others.values():
            await running.stop()
        await super().stop()


@asynccontextmanager
async def running_roles(folder: Path, database_url: str, bus_url: str) -> AsyncIterator[RolesMarket]:
    market = RolesMarket(folder, database_url, slot_ms=200, bus_url=bus_url)
    try:
        await market.start_localnet()
        await market.start_marketplace()
        yield market
    finally:
        await market.stop()


async def leader(database_url: str, role: str) -> int | None:
    """The process that holds the role's lock."""
    connection = await asyncpg.connect(database_url.replace("postgresql+asyncpg:", "postgresql:"))
    try:
        name = await connection.fetchval(
            "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid)"
            " WHERE locktype = 'advisory' AND granted AND application_name LIKE $1",
            f"torg {role} %",
        )
    finally:
        await connection.close()
    return int(name.rpartition(" ")[2]) if name else None


async def until(what: str, condition: object, *, within_s: float = 150) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not await condition():  # type: ignore[operator]
        assert time.monotonic() - began < within_s, what
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def test_the_leading_matcher_is_killed_under_load(tmp_path: Path, postgres: Postgres) -> None:
    database_url = postgres.new_database()
    with running_nats() as bus_url:
        async with AsyncExitStack() as stack:
            market = await stack.enter_async_context(running_roles(tmp_path, database_url, bus_url))
            load = Load()
            key = str(market.others["api a"].ready["marketplace"])
            nodes = [LoadNode(market.url, key, 4, 0.05, load.on_receipt) for _ in range(2)]
            stack.push_async_callback(leave_all, nodes)
            await join_all(nodes)  # to replica A
            payer = await _payer(market)
            http = await stack.enter_async_context(aiohttp.ClientSession())
            # Submitted to replica B, matched by a process without connections, granted to nodes of replica A.
            submitter = Submitter(str(market.others["api b"].ready["url"]), [payer], SPEC, http)

            async def settled() -> bool:
                return len(load.settled_at) >= len(load.asked_at)

            async def led() -> bool:
                return await leader(database_url, "matcher") is not None

            await until("somebody leads", led)
            for _ in range(10):
                await submitter.submit(load, time.perf_counter())
            await until("ten jobs are settled", settled)
            assert load.errors == []

            first = await leader(database_url, "matcher")
            assert first in {running.process.pid for running in market.others.values()}
            submitting = asyncio.create_task(_submit_all(submitter, load, 30))
            os.kill(first or 0, signal.SIGKILL)

            async def taken_over() -> bool:
                return await leader(database_url, "matcher") not in {None, first}

            took_s = await until("the other matcher leads", taken_over)
            await submitting
            await until("all forty jobs are settled", settled)
            assert load.errors == []
            assert len(load.settled_at) == 40
            assert sum(node.leases for node in nodes) == 40, "each job was granted once"
            await _assert_books(database_url)
            print(f"another matcher led after {took_s:.2f} s")


async def _submit_all(submitter: Submitter, load: Load, count: int) -> None:
    for _ in range(count):
        await submitter.submit(load, time.perf_counter())


async def _assert_books(database_url: str) -> None:
    connection = await asyncpg.connect(database_url.replace("postgresql+asyncpg:", "postgresql:"))
    try:
        jobs = Counter(row["state"] for row in await connection.fetch("SELECT state FROM jobs"))
        leases = Counter(row["job_id"] for row in await connection.fetch("SELECT job_id FROM leases"))
        left = await connection.fetchval("SELECT count(*) FROM allocations")
        ranges = await connection.fetch(
            "SELECT lower, upper FROM commitments WHERE upper > lower ORDER BY vault, lower"
        )
    finally:
        await connection.close()
    assert jobs == {"succeeded": 40}
    assert set(leases.values()) == {1}
    assert left == 0
    assert all(before["upper"] <= after["lower"] for before, after in pairwise(ranges))
    engine = create_engine(database_url)
    try:
        async with Sessions(engine)() as session:
            assert await ledger.problems(session) == []
    finally:
        await engine.dispose()
