"""Wake-ups inside one process. A wake is a hint: losing one delays work until the next poll, and corrupts nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from weakref import WeakValueDictionary

NODE = "node:"  # what is free on it has changed: for the books of other processes


class Wakes:
    """Topics: "match", "verify", "webhooks" and "job:<id>"."""

    def __init__(self) -> None:
        # As long as somebody has a waiter: most jobs that are looked at have ended, and nothing wakes those any more.
        self._events: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        self.others: Callable[[Collection[str]], Awaitable[None]] | None = None  # tells the other processes

    async def wake_all(self, topics: Collection[str]) -> None:
        """Here and in the marketplace's other processes."""
        for topic in topics:
            self.wake(topic)
        if topics and self.others is not None:
            await self.others(topics)

    def wake(self, topic: str) -> None:
        """Wakes everybody who waits for `topic` now, in this process."""
        event = self._events.pop(topic, None)
        if event is not None:
            event.set()

    def arm(self, topic: str) -> Waiter:
        """Arm first, then look at the database, then wait: what happens in between is not missed."""
        event = self._events.get(topic)
        if event is None:
            event = self._events[topic] = asyncio.Event()
        return Waiter(event)


class Waiter:
    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    async def wait(self, timeout_s: float) -> bool:
        """Whether it was woken before the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True
