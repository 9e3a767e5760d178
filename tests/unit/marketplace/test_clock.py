"""A jump of the host's clock is not followed at once, and in the end it is."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from torg_marketplace.clock import BELIEVED_AFTER_MS, HostClock

HOUR_MS = 3_600_000


@dataclass
class Host:
    boot_ms: int = 5_000
    offset_ms: int = 1_800_000_000_000
    clock: HostClock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = HostClock(wall_ms=lambda: self.boot_ms + self.offset_ms, boot_ms=lambda: self.boot_ms)

    def passes(self, ms: int) -> int:
        """How much later the clock says that it is."""
        before = self.clock.now_ms()
        self.boot_ms += ms
        return self.clock.now_ms() - before


@pytest.mark.parametrize("jump_ms", [HOUR_MS, -HOUR_MS, 5_000, -86_400_000])
def test_a_jump_forth_and_back_is_no_time(jump_ms: int) -> None:
    host = Host()
    for moved_ms in (jump_ms, -jump_ms):
        host.offset_ms += moved_ms
        assert host.passes(BELIEVED_AFTER_MS - 1_000) == BELIEVED_AFTER_MS - 1_000
    assert host.clock.now_ms() == host.boot_ms + host.offset_ms


@pytest.mark.parametrize("jump_ms", [HOUR_MS, -HOUR_MS])
def test_what_lasts_is_believed(jump_ms: int) -> None:
    host = Host()
    host.offset_ms += jump_ms
    assert host.passes(BELIEVED_AFTER_MS - 1) == BELIEVED_AFTER_MS - 1
    assert host.passes(1) == 1 + jump_ms
    assert host.passes(1) == 1


def test_jumps_that_go_on_begin_anew() -> None:
    host = Host()
    for _ in range(4):
        host.offset_ms += 60_000
        assert host.passes(BELIEVED_AFTER_MS // 2) == BELIEVED_AFTER_MS // 2
    assert host.passes(BELIEVED_AFTER_MS // 2) == BELIEVED_AFTER_MS // 2 + 240_000


def test_seconds_are_followed() -> None:
    host = Host()
    for _ in range(100):
        host.offset_ms += 40
        host.passes(1_000)
        assert host.clock.now_ms() == host.boot_ms + host.offset_ms
