"""A marketplace in processes of one role each, under load, in which something is killed, stopped or cut off; and what must hold afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import asyncpg

from scripts.market_processes import Running, call, script, start
from tests.support.jumping_clock import JumpingClock
from tests.support.nats import NatsServer
from tests.support.networks import Place
from tests.support.ports import own_port
from tests.support.postgres import Postgres
from tests.support.small_market import SmallMarket, running_market, spec_of_small_job
from tests.support.waiting import eventually
from torg.client import AsyncClient
from torg.errors import TorgError
from torg_marketplace.storage import ledger
from torg_marketplace.storage.engine import Sessions, create_engine

OPTIONS = ("--heartbeat", "1s", "--settlement-age", "2s", "--proof-interval", "0s")
PROCESSES = {
    "api": "api",  # one, so that the node and the client miss it
    "matcher 1": "matcher",
    "matcher 2": "matcher",
    "worker 1": "worker",
    "worker 2": "worker",
}


@dataclass
class RolesMarket(SmallMarket):
    nats: NatsServer | None = None
    postgres: Postgres | None = None
    processes: dict[str, Running] = field(default_factory=dict)
    clock: JumpingClock = field(init=False)  # of the marketplace's processes
    places: Mapping[str, Place] = field(default_factory=dict)  # by a process's name; others are where the test is

    def __post_init__(self) -> None:
        self.clock = JumpingClock.build(self.folder)

    async def start_marketplace(self) -> None:
        await self.start_process("api")  # makes the keys
        await asyncio.gather(*(self.start_process(name) for name in PROCESSES if name != "api"))
        self.marketplace, self.url = self.processes["api"], str(self.processes["api"].ready["url"])

    async def start_process(self, name: str) -> None:
        """Where it was before, if it was there before."""
        argv = [script("torg-marketplace"), "serve", "--data", str(self.folder / "marketplace"), "--role"]
        argv += [PROCESSES[name], "--port", str(self.ports.get(name) or own_port()), "--rpc-url", self.rpc_url]
        argv += ["--bus-url", self.nats.url if self.nats else "", *OPTIONS]
        url = self.database_url or ""
        if (place := self.places.get(name)) is not None and self.postgres is not None:
            argv = place.command(*argv, "--host", place.address)
            url = self.postgres.url_from_afar(url)
        env = {"TORG_MARKETPLACE_DATABASE_URL": url} | self.clock.environment
        running = await start(name, argv, self.folder / f"{name}.log", env=env)
        self.processes[name] = running
        self.ports[name] = int(str(running.ready["url"]).rpartition(":")[2])

    async def stop(self) -> None:
        for running in self.processes.values():
            signal_to(running, signal.SIGCONT)
            await running.stop()
        await super().stop()

    async def leader(self, role: str) -> str | None:
        """Which process holds the role's lock."""
        name = await self.ask(
            "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid)"
            " WHERE locktype = 'advisory' AND granted AND application_name LIKE $1",
            f"torg {role} %",
        )
        pid = int(str(name[0][0]).rpartition(" ")[2]) if name else None
        return next((name for name, running in self.processes.items() if running.process.pid == pid), None)

    async def until_led(self, role: str, *, by_another_than: str | None = None) -> str:
        leaders: list[str] = []  # asked once more, there may be none at that moment

        async def led() -> bool:
            if (leader := await self.leader(role)) not in {None, by_another_than}:
                leaders.append(str(leader))
            return bool(leaders)

        await eventually(led)
        return leaders[0]

    @property
    def agent(self) -> Running:
        """The node's; with several nodes, of one of them."""
        assert self.node is not None
        return self.node

    def roles(self) -> list[str]:
        """Names of the marketplace's own processes."""
        return list(PROCESSES)

    async def assert_paid_by_the_receipts(self) -> None:
        async def paid() -> bool:
            return not await self.ask("SELECT * FROM payouts WHERE state != 'finalized'")

        await eventually(paid, within_s=150)
        (earned,) = await self.ask("SELECT sum(amount)::bigint AS amount FROM leases")
        captured = await self.ask("SELECT amount FROM payouts")
        assert sum(row["amount"] for row in captured) == earned["amount"] > 0
        data = ["--data", str(self.folder / "marketplace"), "--rpc-url", self.rpc_url]
        env = {"TORG_MARKETPLACE_DATABASE_URL": self.database_url or ""}
        code, out = await call([script("torg-marketplace"), "reconcile", *data], env=env, check=False)
        assert (code, out.splitlines()[-1][:14]) == (0, "0 differences;"), out

    async def ask(self, query: str, *values: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect((self.database_url or "").replace("postgresql+asyncpg:", "postgresql:"))
        try:
            return list(await connection.fetch(query, *values))
        finally:
            await connection.close()


def signal_to(running: Running | None, number: signal.Signals) -> None:
    """To the process alone, not to what it started."""
    if running is not None and running.process.returncode is None:
        os.kill(running.process.pid, number)


@asynccontextmanager
async def chaos_market(folder: Path, postgres: Postgres, nats: NatsServer) -> AsyncIterator[RolesMarket]:
    market = RolesMarket(folder, postgres.new_database(), nats=nats, postgres=postgres)
    async with running_market(folder, market=market):
        yield market


async def submit_through_it(client: AsyncClient, name: str, **fields: object) -> str:
    """As people do whose command failed: again, with the same key, until there is an answer. The job's id."""
    command = ["python", "-c", "import time; print('at work', flush=True); time.sleep(0.7)"]
    job = spec_of_small_job(client, {"name": name, "command": command, "lease_grace": "2m", **fields})
    async with asyncio.timeout(150):
        while True:
            try:
                return (await client.submit(job, idempotency_key=name)).job_id
            except TorgError as error:
                if error.status < 500 and error.code != "infeasible":  # while the only node is not connected
                    raise
                await asyncio.sleep(0.3)


async def assert_all_is_well(market: RolesMarket, jobs: set[str]) -> None:
    """By the database: every job has ended as it should, nothing was leased twice or is still held, the books add up."""

    async def over() -> bool:
        open_jobs = await market.ask("SELECT job_id FROM jobs WHERE closed_at_ms IS NULL")
        return not open_jobs

    await eventually(over, within_s=150)
    ended = {name: running.process.returncode for name, running in market.processes.items()}
    assert ended == dict.fromkeys(ended, None), "processes that ended by themselves"
    states = {row["job_id"]: row["state"] for row in await market.ask("SELECT job_id, state FROM jobs")}
    assert {job: states.get(job) for job in jobs} == dict.fromkeys(jobs, "succeeded")
    leases = await market.ask("SELECT * FROM leases ORDER BY job_id, attempt")
    assert all(lease["ended_at_ms"] is not None and lease["decided_at_ms"] is not None for lease in leases)
    for before, after in pairwise(leases):
        assert before["job_id"] != after["job_id"] or before["ended_at_ms"] <= after["granted_at_ms"], "two at once"
    verified = [lease["job_id"] for lease in leases if lease["state"] == "verified"]
    assert sorted(verified) == sorted(states), "each job is paid for one lease"
    assert await market.ask("SELECT * FROM allocations") == []
    assert await market.ask("SELECT * FROM holds WHERE open") == []
    assert len(await market.ask("SELECT * FROM receipts")) == len(leases)
    ranges = await market.ask("SELECT lower, upper FROM commitments WHERE upper > lower ORDER BY vault, lower")
    assert all(before["upper"] <= after["lower"] for before, after in pairwise(ranges)), "promised twice"
    engine = create_engine(market.database_url or "")
    try:
        async with Sessions(engine)() as session:
            assert await ledger.problems(session) == []
    finally:
        await engine.dispose()
