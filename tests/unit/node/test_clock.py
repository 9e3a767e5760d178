"""Leases are timed on a line that no setting of the host's clock bends."""

from __future__ import annotations

from pathlib import Path

import pytest

from torg_node.clock import SteadyClock, on_line
from torg_node.executors.docker_exit import timed
from torg_node.executors.port import Exit, ExitReason
from torg_node.journal import Journal


class Host:
    def __init__(self) -> None:
        self.wall_ms, self.monotonic_ms = 1_700_000_000_000, 5_000

    def passes(self, ms: int) -> None:
        self.wall_ms += ms
        self.monotonic_ms += ms

    def clock(self, journal: Journal, boot: str = "this boot") -> SteadyClock:
        return SteadyClock(journal, wall_ms=lambda: self.wall_ms, monotonic_ms=lambda: self.monotonic_ms, boot=boot)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


@pytest.mark.parametrize("jump_ms", [3_600_000, -3_600_000])
def test_a_jump_moves_nothing_until_it_is_set_again(journal: Journal, jump_ms: int) -> None:
    host = Host()
    clock = host.clock(journal)
    began = clock.now_ms()
    host.wall_ms += jump_ms
    host.passes(10_000)

    assert clock.now_ms() - began == 10_000
    assert clock.apart_ms == jump_ms
    clock.set()
    assert (clock.now_ms(), clock.apart_ms) == (host.wall_ms, 0)


def test_the_next_agent_goes_on_with_open_leases_and_starts_anew_without_or_after_a_reboot(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host()
    began = host.clock(journal).now_ms()
    host.wall_ms -= 3_600_000
    host.passes(10_000)
    monkeypatch.setattr(journal, "open_leases", lambda: ["one"])

    assert host.clock(journal).now_ms() - began == 10_000
    assert host.clock(journal, "another boot").now_ms() == host.wall_ms
    monkeypatch.setattr(journal, "open_leases", list)
    assert host.clock(journal).now_ms() == host.wall_ms


def _exit(started_at_ms: int, finished_at_ms: int) -> Exit:
    return Exit(ExitReason.EXITED, 0, started_at_ms, finished_at_ms)


def test_an_end_by_another_clock_keeps_its_length_and_a_close_one_stays() -> None:
    moved = on_line(_exit(5_000_000, 5_008_000), started_at_ms=1_000_000)
    assert (moved.started_at_ms, moved.finished_at_ms) == (1_000_000, 1_008_000)
    close = _exit(1_000_300, 1_008_000)
    assert on_line(close, started_at_ms=1_000_000) == close


def test_what_an_engine_tells_by_a_clock_that_was_set_meanwhile_is_as_long_as_it_was_seen_to_be() -> None:
    assert timed(_exit(1_000_000, 1_000_000), ran_ms=8_000).finished_at_ms == 1_008_000
    assert timed(_exit(1_000_000, 4_608_000), ran_ms=8_000).finished_at_ms == 1_008_000
    honest = _exit(1_000_000, 1_008_000)
    assert timed(honest, ran_ms=8_400) == honest
    assert timed(honest, ran_ms=None) == honest
