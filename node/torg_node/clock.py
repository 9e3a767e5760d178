"""How long things last on this host, whatever is done to its clock.

A lease's useful time, its budget and its deadline are durations. The host's clock jumps: a battery was dead, NTP corrects it, a person sets it. So
leases are timed on a line that starts at the host's time and then goes by the kernel's monotonic clock, which also stops while the host
sleeps and nothing works. The line is kept over restarts of the agent, for the containers that outlive it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

from torg_host.sandbox.processes import boot_id
from torg_node.executors.port import Exit
from torg_node.journal import Journal

CLOCK_FACT = "steady_clock"
_SAME_MS = 2_000  # two clocks that were read one after the other, on a busy host


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class SteadyClock:
    """`now_ms` never jumps while a lease is open. Written down in the journal, under this boot."""

    def __init__(
        self,
        journal: Journal,
        *,
        wall_ms: Callable[[], int] = wall_ms,
        monotonic_ms: Callable[[], int] = monotonic_ms,
        boot: str | None = None,
    ) -> None:
        self._journal, self._wall_ms, self._monotonic_ms = journal, wall_ms, monotonic_ms
        self._boot = boot or boot_id()
        kept = json.loads(journal.fact(CLOCK_FACT) or "{}")
        if kept.get("boot") == self._boot and journal.open_leases():
            self._offset_ms = int(kept["offset_ms"])
        else:
            self.set()

    def now_ms(self) -> int:
        return self._offset_ms + self._monotonic_ms()

    def set(self) -> None:
        """To the host's time, when no lease is measured by it."""
        self._offset_ms = self._wall_ms() - self._monotonic_ms()
        self._journal.set_fact(CLOCK_FACT, json.dumps({"boot": self._boot, "offset_ms": self._offset_ms}))

    @property
    def apart_ms(self) -> int:
        """By how much the host's clock has moved since."""
        return self._wall_ms() - self.now_ms()


def on_line(ended: Exit, started_at_ms: int) -> Exit:
    """An end as another process timed it, by the host's clock, on the line that the lease began on at `started_at_ms`."""
    shift_ms = started_at_ms - ended.started_at_ms
    if abs(shift_ms) <= _SAME_MS:
        return ended
    return replace(ended, started_at_ms=started_at_ms, finished_at_ms=ended.finished_at_ms + shift_ms)
