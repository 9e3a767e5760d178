"""Starts and surely stops the real processes of a small market: localnet, marketplace, nodes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 180.0  # several start at once, on a machine that others use too
STOP_TIMEOUT_S = 90.0  # an agent in the middle of a step, on a machine that others use too


class ProcessFailed(Exception):
    """A process did not come up, or a command failed; carries the end of what it wrote."""


@dataclass
class Running:
    """One child in a session of its own, its output in a file."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    ready: dict[str, Any] = field(default_factory=dict)

    async def kill(self) -> None:
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            try:
                await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                os.killpg(self.process.pid, signal.SIGKILL)
                await self.process.wait()


def script(name: str) -> str:
    """The console script of this environment, so that the demo never runs somebody else's."""
    return str(Path(sys.executable).with_name(name))


async def start(name: str, argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None) -> Running:
    """Starts a daemon and waits for the one JSON line that says it is ready. Raises ProcessFailed with its output."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
    running = Running(name, process, log)
    stdout = process.stdout or asyncio.StreamReader()
    try:
        line = await asyncio.wait_for(stdout.readline(), START_TIMEOUT_S)
        running.ready = json.loads(line)
    except (TimeoutError, ValueError) as error:
        await running.kill()
        raise ProcessFailed(f"{name} did not start:\n{tail(log)}") from error
    except asyncio.CancelledError:  # Ctrl-C: nobody knows this process yet who could stop it
        await running.kill()
        raise
    return running


async def call(argv: Sequence[str], *, env: Mapping[str, str] | None = None, check: bool = True) -> tuple[int, str]:
    """Runs a command to its end; returns its exit code and standard output. With `check`, raises ProcessFailed on failure."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if check and process.returncode != 0:
        raise ProcessFailed(f"{' '.join(argv[:4])}... failed ({process.returncode}):\n{out.decode()}{err.decode()}")
    return process.returncode or 0, out.decode() if out else err.decode()


def tail(path: Path, lines: int = 25) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


async def remove_containers(node: Path) -> None:
    """What the next `torg-node start` on this folder would take over or take away: sandboxes, their control groups, job disks.

    For a node that was killed and has no next time. Safe to repeat.
    """
    from torg_host.disk import QuotaDisk
    from torg_node.executors.sandbox import SandboxExecutor

    state_root = node / "containers" / "sandbox"
    if state_root.exists():
        executor = SandboxExecutor(state_root)
        await executor.reap(frozenset())
        await executor.close()
    for disk in (*(node / "leases").glob("*/disk"), *(node / "rentals").glob("*/disk")):
        QuotaDisk(disk, 1).remove()
