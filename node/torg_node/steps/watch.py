"""Watch: while the container runs, pass on what it says, keep its checkpoints safe, count its useful time, stop it when asked."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from torg_node.executors.errors import ExecutorError
from torg_node.lease import Lease, LeaseEnded
from torg_node.metering import budget_ms
from torg_node.steps.checkpoints import CheckpointKeeper
from torg_node.steps.streams import follow_logs, follow_progress
from torg_node.usage import claim_usage
from torg_protocol.states import EndReason, LeaseState


class Watch:
    name = "watch"

    async def do(self, lease: Lease) -> None:
        """Returns when the container has ended, with `lease.exit` set and everything that it wrote passed on."""
        if lease.handle is None:
            raise LeaseEnded(EndReason.START_FAILED, "there is no container to watch")
        keeper = CheckpointKeeper(lease)
        ended = asyncio.Event()
        during: list[Coroutine[Any, Any, None]] = [
            _stop_when_asked(lease),
            _claim_regularly(lease),
            _stop_at_budget(lease),
        ]
        until_end: list[Coroutine[Any, Any, None]] = [
            follow_logs(lease, ended),
            follow_progress(lease, ended),
            keeper.run(ended),
        ]
        tasks = [asyncio.create_task(work) for work in during]
        followers = [asyncio.create_task(work) for work in until_end]
        try:
            lease.exit = await lease.node.executor.wait(lease.handle)
            ended.set()
            await asyncio.gather(*followers)
        except ExecutorError as error:
            raise LeaseEnded(EndReason.START_FAILED, str(error)) from error
        finally:
            for task in (*tasks, *followers):
                task.cancel()
            await asyncio.gather(*tasks, *followers, return_exceptions=True)

    async def undo(self, lease: Lease) -> None:
        """Nothing of its own is left."""


async def _stop_when_asked(lease: Lease) -> None:
    await lease.stop_requested.wait()
    lease.set_state(LeaseState.STOPPING, lease.stop_reason)
    if lease.handle is not None:
        await lease.node.executor.stop(lease.handle, lease.stop_grace_ms)


async def _claim_regularly(lease: Lease) -> None:
    while True:
        await asyncio.sleep(lease.grant.usage_interval_ms / 1000)
        if lease.handle is not None:
            await claim_usage(lease, lease.handle.started_at_ms, lease.node.now_ms(), final=False)


async def _stop_at_budget(lease: Lease) -> None:
    """Stops when the money is used up."""
    limit_ms = budget_ms(lease.grant)
    if limit_ms is None or lease.handle is None:
        return
    await asyncio.sleep(max(0, lease.handle.started_at_ms + limit_ms - lease.node.now_ms()) / 1000)
    lease.request_stop(EndReason.BUDGET, lease.stop_grace_ms)
