"""The marketplace's own work, each kind a loop: woken by what happened, and looking by itself every so often.

A loop never ends by an error: it says what went wrong and goes on, later and later while it keeps going wrong.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from torg_marketplace.flow.collateral import look_at_collaterals
from torg_marketplace.flow.garbage import collect_garbage
from torg_marketplace.flow.judge_proof import judge_opened
from torg_marketplace.flow.live import keep_fresh
from torg_marketplace.flow.liveness import sweep
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.matching_pulse import BEAT_S, note_matching
from torg_marketplace.flow.prices import publish_prices
from torg_marketplace.flow.prove import advance_windows, open_windows
from torg_marketplace.flow.pulse import Pulse
from torg_marketplace.flow.reconcile import reconcile, watch_fee_payer, watch_vaults
from torg_marketplace.flow.retention import FORGETTING
from torg_marketplace.flow.settle import advance_settlements, settle_due
from torg_marketplace.flow.slash import advance_slashes
from torg_marketplace.flow.unit import Market
from torg_marketplace.flow.verify import verify_pending
from torg_marketplace.stages import measured
from torg_marketplace.workers.webhooks import WebhookSender
from torg_protocol.errors import Unavailable

log = logging.getLogger(__name__)
_LONGEST_BACKOFF_S = 30.0


@dataclass(frozen=True, slots=True)
class Loop:
    name: str
    work: Callable[[Market], Coroutine[Any, Any, object]]
    every_s: float
    topic: str | None = None
    rest_s: float = 0.0  # after each pass: what comes meanwhile is one pass's work


def matcher_loops() -> list[Loop]:
    return [
        Loop("match", match_pending, 1.0, "match", rest_s=0.02),
        Loop("prices", publish_prices, 10.0),
        Loop("say that it works", note_matching, BEAT_S),
    ]


def worker_loops(market: Market) -> list[Loop]:
    pulse_s = min(1.0, market.policy.heartbeat_ms / 1000)
    return [
        Loop("verify", verify_pending, 2.0, "verify"),
        Loop("sweep", sweep, pulse_s),
        Loop("settle", _settle, 0.5),  # not woken: every receipt would, and a capture is due after minutes
        Loop("watch", watch_vaults, 5.0),
        Loop("collateral", look_at_collaterals, 30.0, "collateral"),
        Loop("slash", advance_slashes, 5.0, "slash"),
        Loop("prove", _prove, pulse_s, "proof"),
        Loop("webhooks", WebhookSender().deliver, 1.0, "webhooks"),
        *(Loop(f"forget {what}", forget, 600.0) for what, forget in FORGETTING.items()),
        Loop("collect garbage", collect_garbage, 3_600.0),
        Loop("reconcile", _reconcile, 60.0),
        Loop("fee payer", watch_fee_payer, 60.0),
    ]


def api_loops(market: Market, pulse: Pulse) -> list[Loop]:
    """Of every process that nodes connect to, and that answers quotes."""
    return [
        Loop("heartbeats", pulse.renew, min(1.0, market.policy.heartbeat_ms / 10_000)),
        Loop("live book", keep_fresh, market.policy.book_check_ms / 8_000),
    ]


async def run_loops(market: Market, wanted: Sequence[Loop]) -> None:
    """Until cancelled."""
    async with asyncio.TaskGroup() as group:
        for loop in wanted:
            group.create_task(_run(loop, market), name=loop.name)


async def _run(loop: Loop, market: Market) -> None:
    failures = 0
    while True:
        waiter, asked_s = market.wakes.arm(loop.topic) if loop.topic else None, 0.0
        try:
            await measured(loop.name, loop.work(market))
            failures = 0
        except Unavailable as error:  # the chain, the database, the store of blobs
            failures, asked_s = failures + 1, getattr(error, "retry_after_s", None) or 0.0
            log.warning("%s: %s", loop.name, error.message)
        except Exception:
            failures += 1
            log.exception("%s failed; trying again", loop.name)
        pause_s = max(asked_s, min(loop.every_s * 2**failures, _LONGEST_BACKOFF_S)) if failures else loop.every_s
        if waiter is None or failures:
            await asyncio.sleep(pause_s)
        else:
            await asyncio.sleep(loop.rest_s)
            await waiter.wait(pause_s)


async def _settle(market: Market) -> None:
    await settle_due(market)
    await advance_settlements(market)


async def _prove(market: Market) -> None:
    await open_windows(market)
    await advance_windows(market)
    await judge_opened(market)


async def _reconcile(market: Market) -> None:
    for difference in await reconcile(market):
        log.error("reconcile: %s", difference)
