"""The owner comes first: what of a node's work is asked to end, and when it takes work again. SIMULATED: the GPU's process list."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from torg_node.executors.port import Handle
from torg_node.journal import Journal
from torg_node.owner import DRAIN_FACT, OwnerWatch, foreign_processes, local_time
from torg_node.owner_rules import OwnerRules
from torg_protocol.errors import Invalid
from torg_protocol.states import EndReason

NOON_MS = 1_772_452_800_000


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite")
    yield journal
    journal.close()


class Running:
    """As much of a lease as is looked at."""

    def __init__(self, ref: str) -> None:
        self.id, self.exit, self.stop_grace_ms = f"lease_{ref}", None, 30_000
        self.handle = Handle("docker", ref, ref, 0)
        self.stop_reason: EndReason | None = None

    def request_stop(self, reason: EndReason, grace_ms: int) -> None:
        assert grace_ms == self.stop_grace_ms
        self.stop_reason = reason


def watch(journal: Journal, rules: OwnerRules, leases: list[Running], **parts: Any) -> tuple[OwnerWatch, list[str]]:
    changes: list[str] = []
    given = {"gpu_pids": None, "now_ms": lambda: NOON_MS, **parts}
    watching = OwnerWatch(rules, journal, lambda: leases, on_change=lambda: changes.append("changed"), **given)  # type: ignore[arg-type,return-value]
    return watching, changes


async def test_a_drain_ends_what_runs_and_resume_takes_work_again(journal: Journal) -> None:
    lease = Running("a")
    watching, changes = watch(journal, OwnerRules(), [lease])
    await watching.look()
    assert (watching.reason, lease.stop_reason, changes) == (None, None, [])

    journal.set_fact(DRAIN_FACT, "yes")
    await watching.look()
    await watching.look()
    assert watching.reason == "its owner drains it"
    assert (lease.stop_reason, changes) == (EndReason.DRAINED, ["changed"])

    journal.set_fact(DRAIN_FACT, "no")
    await watching.look()
    assert (watching.reason, changes) == (None, ["changed", "changed"])


async def test_quiet_hours_end_leases_that_were_taken_before_the_owner_wrote_them(journal: Journal) -> None:
    now = local_time(NOON_MS)
    window = f"{now:%H:%M}-{now.replace(minute=59):%H:%M}"
    lease = Running("a")
    watching, _ = watch(journal, OwnerRules(quiet_hours=[window]), [lease])  # type: ignore[arg-type]
    await watching.look()
    assert lease.stop_reason is EndReason.DRAINED
    assert "quiet hours until" in (watching.reason or "")


async def test_the_owners_own_process_on_the_gpu_comes_first_and_leases_come_back_a_minute_after(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc = _fake_proc(tmp_path, {10: ("python", "/docker/aaa"), 20: ("game", "/user.slice")})
    monkeypatch.setattr("torg_node.owner.foreign_processes", lambda pids, own: foreign_processes(pids, own, proc))
    on_gpu, clock = {10}, SimpleNamespace(now_ms=NOON_MS)
    lease = Running("aaa")
    rules = OwnerRules(only_when_idle=True)
    watching, _ = watch(journal, rules, [lease], gpu_pids=lambda: set(on_gpu), now_ms=lambda: clock.now_ms)

    await watching.look()
    assert watching.reason is None  # the lease's own process is nobody else's

    on_gpu.add(20)
    await watching.look()
    assert watching.reason == "its owner uses the GPU (game)"
    assert lease.stop_reason is EndReason.DRAINED

    on_gpu.discard(20)
    clock.now_ms += 59_000
    await watching.look()
    assert watching.reason is not None
    clock.now_ms += 2_000
    await watching.look()
    assert watching.reason is None


async def test_it_looks_again_within_seconds(journal: Journal) -> None:
    lease = Running("a")
    watching, _ = watch(journal, OwnerRules(), [lease])
    running = asyncio.create_task(watching.run())
    try:
        journal.set_fact(DRAIN_FACT, "yes")
        async with asyncio.timeout(150):
            while lease.stop_reason is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        running.cancel()


def test_idle_mode_without_a_gpu_that_tells_is_refused(journal: Journal) -> None:
    with pytest.raises(Invalid) as refused:
        watch(journal, OwnerRules(only_when_idle=True), [])
    assert (refused.value.code, refused.value.field) == ("idle_unknown", "rules.only_when_idle")


def test_a_process_that_has_just_gone_is_nobodys(tmp_path: Path) -> None:
    proc = _fake_proc(tmp_path, {10: ("ours", "/docker/aaa")})
    assert foreign_processes({10, 99}, ["aaa"], proc) == []
    assert foreign_processes({10, 99}, [""], proc) == ["ours"]  # a container without a name owns nothing


def _fake_proc(root: Path, processes: dict[int, tuple[str, str]]) -> Path:
    for pid, (name, group) in processes.items():
        folder = root / "proc" / str(pid)
        folder.mkdir(parents=True)
        (folder / "comm").write_text(f"{name}\n")
        (folder / "cgroup").write_text(f"0::{group}\n")
    return root / "proc"
