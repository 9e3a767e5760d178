"""What one process does of a marketplace: everything, or one role of several.

api       HTTP and the channels of nodes; as many as one wants, behind any balancer
gateway   tunnels to running jobs: both ends of a tunnel come to the same process
matcher   queued jobs to nodes, reference prices; one works, others stand by
worker    liveness, verdicts, captures, webhooks, reconciliation; one works, others stand by
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from torg_marketplace.api.context import Edge
from torg_marketplace.settings import Settings
from torg_marketplace.workers.leader import lead
from torg_marketplace.workers.loops import api_loops, matcher_loops, run_loops, worker_loops
from torg_protocol.errors import Invalid


def check_roles(settings: Settings) -> None:
    """Raises Invalid: processes of one role each share a PostgreSQL and a bus."""
    if settings.role == "all":
        return
    if not (settings.database_url or "").startswith("postgresql"):
        raise Invalid(
            "several processes need PostgreSQL",
            code="role_needs_postgresql",
            field="--role",
            value=settings.role,
            hint="set TORG_MARKETPLACE_DATABASE_URL=postgresql+asyncpg://..., or leave --role out",
        )
    if settings.bus_url is None:
        raise Invalid(
            "several processes need a bus",
            code="role_needs_bus",
            field="--bus-url",
            value=None,
            hint="start a nats-server and give its address, for example nats://127.0.0.1:4222",
        )


@asynccontextmanager
async def working(edge: Edge, settings: Settings) -> AsyncIterator[asyncio.Task[None]]:
    """The loops of this process's role, as a task that ends only by failing."""
    task = asyncio.create_task(_work(edge, settings))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _work(edge: Edge, settings: Settings) -> None:
    market, url = edge.market, settings.database_url or ""
    match settings.role:
        case "all":
            await run_loops(market, [*matcher_loops(), *worker_loops(market), *api_loops(market, edge.pulse)])
        case "api":
            await run_loops(market, api_loops(market, edge.pulse))
        case "matcher":
            await lead(url, "matcher", lambda: run_loops(market, matcher_loops()))
        case "worker":
            await lead(url, "worker", lambda: run_loops(market, worker_loops(market)))
        case _:
            await asyncio.Event().wait()  # the gateway has nothing to do but to serve
