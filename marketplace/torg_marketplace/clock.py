"""The host's time, as far as it can be believed.

A host's clock is set while a marketplace runs: by a person, by NTP after a start without a battery, by a hypervisor, and often back again. Grace,
deadlines, quotes and bills are durations, and must not end or begin anew by it. So a jump is not followed at once: time goes on evenly, by
the kernel's clock since the boot, and only a jump that lasts is believed. What then has to be put right, `flow/liveness.py` does. A process
that starts believes what it finds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

BELIEVED_AFTER_MS = 600_000
_SAME_MS = 2_000  # two clocks that were read one after the other on a busy host, or NTP that slews
log = logging.getLogger(__name__)


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def boot_ms() -> int:
    """Since the boot, with the time that the host slept."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class HostClock:
    """`ports.Clock`. Within seconds it follows the host's clock, beyond that after ten minutes."""

    def __init__(self, *, wall_ms: Callable[[], int] = wall_ms, boot_ms: Callable[[], int] = boot_ms) -> None:
        self._wall_ms, self._boot_ms = wall_ms, boot_ms
        self._offset_ms = wall_ms() - boot_ms()
        self._jump_ms, self._jumped_at_ms = 0, 0  # since the boot; of no jump: 0

    def now_ms(self) -> int:
        boot_ms = self._boot_ms()
        apart_ms = self._wall_ms() - (boot_ms + self._offset_ms)
        if abs(apart_ms) <= _SAME_MS:
            self._follow(apart_ms)
        elif self._jump_ms == 0 or abs(apart_ms - self._jump_ms) > _SAME_MS:
            log.warning("the host's clock jumped by %d s; believed if that lasts for ten minutes", apart_ms // 1000)
            self._jump_ms, self._jumped_at_ms = apart_ms, boot_ms
        elif boot_ms - self._jumped_at_ms >= BELIEVED_AFTER_MS:
            log.warning("the host's clock was set by %d s, and is believed now", apart_ms // 1000)
            self._follow(apart_ms)
        return boot_ms + self._offset_ms

    def _follow(self, apart_ms: int) -> None:
        self._offset_ms += apart_ms
        self._jump_ms = 0
