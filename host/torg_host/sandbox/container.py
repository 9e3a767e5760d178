"""A started container seen from outside, through its state directory alone: whoever finds the directory can go on with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torg_host import cgroups
from torg_host.sandbox import processes
from torg_host.sandbox.output import STREAMS, segment_name

Reason = Literal["exited", "oom", "max_duration", "stopped", "killed", "disk_full"]

MAX_PIECE_BYTES = 256 << 10
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.2
SHIM_APPEARS_WITHIN_S, SHIM_LEAVES_WITHIN_S = 5.0, 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended. `code` is None when the sandbox itself was killed, 128 + n when signal n ended the program."""

    reason: Reason
    code: int | None
    started_at_ms: int
    finished_at_ms: int
    peak_memory_bytes: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class LogPiece:
    """`at_ms` is when the log was last written to, which is when these bytes came if one reads along."""

    stream: str
    offset: int
    data: bytes
    at_ms: int


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Container:
    """Cheap to make; holds no resources. All methods are safe from any process and at any time."""

    def __init__(self, state_dir: Path, now_ms: Callable[[], int] = _wall_clock_ms) -> None:
        self.state_dir = state_dir
        self._now_ms = now_ms

    @property
    def name(self) -> str:
        return self.state_dir.name

    def exists(self) -> bool:
        """Whether it was started here and not removed; it may have ended."""
        return (self.state_dir / "plan.json").is_file()

    def started_at_ms(self) -> int:
        return int((self.state_dir / "plan.json").stat().st_mtime_ns // 1_000_000)

    async def wait(self) -> Outcome:
        """Returns at its end, at once when it is over. When its shim was killed: reason "killed", and what was left is killed too.

        Raises FileNotFoundError when there is no such container.
        """
        while True:
            if (outcome := self._outcome()) is not None:
                return outcome
            if not self.exists():
                raise FileNotFoundError(self.state_dir)
            descriptor = await self._open_shim()
            if descriptor is None:
                if (outcome := self._outcome()) is not None:
                    return outcome
                return await asyncio.to_thread(self._declare_killed)
            try:
                await _ended(descriptor)
            finally:
                os.close(descriptor)

    async def stop(self, grace_ms: int) -> None:
        """SIGTERM to the program now, SIGKILL to everything after the grace. Returns before that. No-op when it is over."""
        if self._outcome() is not None or not self.exists():
            return
        descriptor = await self._open_shim()
        if descriptor is None:
            return
        try:
            partial = self.state_dir / ".stop.partial"
            partial.write_text(json.dumps({"grace_ms": grace_ms}))
            partial.rename(self.state_dir / "stop.json")
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGUSR1)
        finally:
            os.close(descriptor)

    async def remove(self) -> None:
        """Kills it if it lives and deletes all traces. Safe to repeat."""
        if self.exists():
            shim = await self._open_shim()
            try:
                await self.stop(0)
                await self.wait()
                await _killed_if_late(shim)
            finally:
                if shim is not None:
                    os.close(shim)
        await asyncio.to_thread(shutil.rmtree, self.state_dir, ignore_errors=True)

    async def follow_logs(self, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncIterator[LogPiece]:
        """Both streams from these offsets until it ended and all is read. Where the start was dropped, the first piece's
        offset is higher than asked for."""
        cursors = {"stdout": stdout_from, "stderr": stderr_from}
        pause_s = SHORTEST_PAUSE_S
        while True:
            over = self._is_over()  # before reading: what was written until then is read below
            news = False
            for stream in STREAMS:
                for piece in self._read_news(stream, cursors[stream]):
                    cursors[stream] = piece.offset + len(piece.data)
                    news = True
                    yield piece
            if news:
                pause_s = SHORTEST_PAUSE_S
            elif over:
                return
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, pause_s * 1.5)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _read_json(self, name: str) -> dict[str, Any] | None:
        try:
            value: dict[str, Any] = json.loads((self.state_dir / name).read_text())
        except FileNotFoundError:
            return None
        return value

    def _outcome(self) -> Outcome | None:
        value = self._read_json("exit.json")
        return Outcome(**value) if value is not None else None

    def _is_over(self) -> bool:
        if (self.state_dir / "exit.json").is_file() or not self.exists():
            return True
        shim = self._read_json("shim.json")
        return shim is not None and processes.start_time(shim["pid"]) != shim["start_time"]

    async def _open_shim(self) -> int | None:
        """A pidfd of the living shim. A shim that is just starting is waited for."""
        waited_s = 0.0
        while (shim := self._read_json("shim.json")) is None:
            if waited_s > SHIM_APPEARS_WITHIN_S or not self.exists():
                return None
            await asyncio.sleep(LONGEST_PAUSE_S)
            waited_s += LONGEST_PAUSE_S
        return processes.open_if_same(shim["pid"], shim["start_time"], shim["boot_id"])

    def _declare_killed(self) -> Outcome:
        """The shim died without a word. Bubblewrap died with it; the control group catches what might not have."""
        plan = self._read_json("plan.json")
        if plan is not None and plan["cgroup"] is not None and (hierarchy := cgroups.detect()) is not None:
            cgroups.Cgroup(hierarchy, plan["cgroup"]["name"]).remove()
        if (written := self._outcome()) is not None:
            return written  # it was about to end; its own word counts
        outcome = Outcome("killed", None, self.started_at_ms(), self._now_ms(), None, "its shim was killed")
        partial = self.state_dir / f".exit.json.{os.getpid()}"
        partial.write_text(json.dumps({field: getattr(outcome, field) for field in Outcome.__slots__}))
        partial.rename(self.state_dir / "exit.json")
        return outcome

    def _read_news(self, stream: str, cursor: int) -> Iterator[LogPiece]:
        """At most one piece per segment, so that both streams get their turn."""
        for offset in self._segments(stream, cursor):
            path = self.state_dir / "logs" / segment_name(stream, offset)
            start = max(cursor, offset)
            try:
                with path.open("rb") as file:
                    file.seek(start - offset)
                    data = file.read(MAX_PIECE_BYTES)
                    at_ms = os.fstat(file.fileno()).st_mtime_ns // 1_000_000
            except FileNotFoundError:
                continue  # dropped in this moment; what follows has a higher offset
            if data:
                yield LogPiece(stream, start, data, at_ms)
                cursor = start + len(data)
                if len(data) == MAX_PIECE_BYTES:
                    return

    def _segments(self, stream: str, cursor: int) -> list[int]:
        """Offsets of the segments that may hold bytes from `cursor` on."""
        try:
            names = [path.name for path in (self.state_dir / "logs").iterdir()]
        except FileNotFoundError:
            return []
        offsets = sorted(int(name.partition(".")[2]) for name in names if name.startswith(f"{stream}."))
        before = [offset for offset in offsets if offset <= cursor]
        return before[-1:] + [offset for offset in offsets if offset > cursor]


async def _killed_if_late(shim: int | None) -> None:
    """The shim's last word is written a moment before its end, and a busy machine can make that moment long."""
    if shim is None:
        return
    try:
        async with asyncio.timeout(SHIM_LEAVES_WITHIN_S):
            await _ended(shim)
    except TimeoutError:
        processes.send(shim, signal.SIGKILL)


async def _ended(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(descriptor, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(descriptor)
