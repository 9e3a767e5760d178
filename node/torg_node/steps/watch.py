"""Watch: while the job runs, pass on what it says, keep its checkpoints safe, count its useful time, stop it when asked."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from torg_node.clock import on_line
from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import Exit
from torg_node.lease import Lease, LeaseEnded
from torg_node.metering import budget_ms
from torg_node.steps.checkpoints import CheckpointKeeper
from torg_node.steps.gang import in_gang
from torg_node.steps.ports import PortWatch
from torg_node.steps.streams import follow_logs, follow_progress
from torg_node.usage import claim_usage
from torg_protocol.states import EndReason, LeaseState


class Watch:
    name = "watch"

    async def do(self, lease: Lease) -> None:
        """Returns when the container has ended, with `lease.exit` set and everything that it wrote passed on."""
        handle, executor, ended = lease.handle, lease.node.executor, asyncio.Event()
        if handle is None:
            raise LeaseEnded(EndReason.START_FAILED, "there is no container to watch")

        async def stop() -> None:
            await executor.stop(handle, lease.stop_grace_ms)

        async with in_gang(lease, handle):
            ended_by_host_clock = await watched(
                lease,
                executor.wait(handle),
                stop,
                ended,
                follow_logs(lease, handle, ended),
                PortWatch(lease).run(handle, ended),
            )
        lease.exit = on_line(ended_by_host_clock, handle.started_at_ms)

    async def undo(self, lease: Lease) -> None:
        """Nothing of its own is left."""


async def watched(
    lease: Lease,
    ending: Coroutine[Any, Any, Exit],
    stop: Callable[[], Awaitable[None]],
    ended: asyncio.Event,
    *followers: Coroutine[Any, Any, None],
) -> Exit:
    """How the job ended, once `ending` knows and everything that it wrote is passed on. `stop` is called when the lease is to stop; `ended`
    is set when `ending` returns, and `followers` are waited for after that."""
    during: list[Coroutine[Any, Any, None]] = [
        _stop_when_asked(lease, stop),
        _claim_regularly(lease),
        _stop_at_budget(lease),
    ]
    tasks = [asyncio.create_task(work) for work in during]
    until_end = [*followers, follow_progress(lease, ended), CheckpointKeeper(lease).run(ended)]
    following = [asyncio.create_task(work) for work in until_end]
    try:
        found = await ending
        ended.set()
        await asyncio.gather(*following)
    except ExecutorError as error:
        raise LeaseEnded(EndReason.START_FAILED, str(error)) from error
    finally:
        for task in (*tasks, *following):
            task.cancel()
        await asyncio.gather(*tasks, *following, return_exceptions=True)
    return found


async def _stop_when_asked(lease: Lease, stop: Callable[[], Awaitable[None]]) -> None:
    await lease.stop_requested.wait()
    with contextlib.suppress(sqlite3.OperationalError):  # a full disk keeps nothing from ending
        lease.set_state(LeaseState.STOPPING, lease.stop_reason)
    await stop()


async def _claim_regularly(lease: Lease) -> None:
    while True:
        await asyncio.sleep(lease.grant.usage_interval_ms / 1000)
        if lease.started_at_ms is not None:
            await claim_usage(lease, lease.started_at_ms, lease.node.steady_ms(), final=False)


async def _stop_at_budget(lease: Lease) -> None:
    """Stops when the money is used up."""
    limit_ms = budget_ms(lease.grant)
    if limit_ms is None or lease.started_at_ms is None:
        return
    await asyncio.sleep(max(0, lease.started_at_ms + limit_ms - lease.node.steady_ms()) / 1000)
    lease.request_stop(EndReason.BUDGET, lease.stop_grace_ms)
