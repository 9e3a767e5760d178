"""Waiting for the outside world, for a bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    """Returns when `condition` holds; fails the test when it does not in time."""
    deadline = time.monotonic() + within_s
    for _ in iter(condition, True):
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.01)


async def eventually(condition: Callable[[], Awaitable[bool]], within_s: float = 120.0) -> None:
    """The same for what must be asked of another process."""
    deadline = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.2)
