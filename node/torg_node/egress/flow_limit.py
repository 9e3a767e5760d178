"""Counts what goes through a lease's proxy and keeps it below the owner's rate: one bucket for both directions and all connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_BURST_S = 0.25


class FlowLimit:
    """`bytes_per_s`: 0 means no limit. `now` is a monotonic clock in seconds."""

    def __init__(self, bytes_per_s: int, now: Callable[[], float]) -> None:
        self._rate, self._now = bytes_per_s, now
        self._free_at = now()  # when all that was taken so far is paid for
        self.sent_bytes = self.received_bytes = 0  # as the job sees it

    @property
    def piece_bytes(self) -> int:
        """As much at once as keeps the rate even."""
        return min(64 << 10, max(1 << 10, int(self._rate * _BURST_S))) if self._rate else 64 << 10

    async def take(self, count: int) -> None:
        """Returns when `count` more bytes may pass."""
        pause_s = self.debt_after(count)
        if pause_s > 0:
            await asyncio.sleep(pause_s)

    def debt_after(self, count: int) -> float:
        """Seconds to wait for, after `count` more bytes; a short burst is free."""
        if not self._rate:
            return 0.0
        now = self._now()
        self._free_at = max(self._free_at, now - _BURST_S) + count / self._rate
        return self._free_at - now
