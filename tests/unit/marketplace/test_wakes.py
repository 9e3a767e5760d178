"""Who waits is woken; who has gone is forgotten."""

from __future__ import annotations

import asyncio
import gc

from torg_marketplace.flow.wakes import Wakes


async def test_everybody_who_waits_is_woken_also_by_what_came_before_the_wait() -> None:
    wakes = Wakes()
    waiters = [wakes.arm("job:a"), wakes.arm("job:a")]
    other = wakes.arm("job:b")
    wakes.wake("job:a")
    assert await asyncio.gather(*(waiter.wait(60) for waiter in waiters)) == [True, True]
    assert not await other.wait(0)
    assert not await wakes.arm("job:a").wait(0), "it was for those who waited then"


async def test_nothing_is_kept_of_whom_nobody_waits_for() -> None:
    """A job that has ended is looked at and never moves again; and any name may be asked for."""
    wakes = Wakes()
    kept = wakes.arm("job:kept")
    for number in range(100):
        await wakes.arm(f"job:{number}").wait(0)
    await asyncio.sleep(0)  # timers of the last wait
    gc.collect()
    assert list(wakes._events) == ["job:kept"]
    wakes.wake("job:kept")
    assert await kept.wait(60)
