"""What the owner wants while the agent runs: quiet hours, a drain, the GPU for themselves. It asks for no work then, and ends what runs.

The owner's own use of a GPU is a process on it that belongs to no container of this node's leases; NVML names the processes, /proc their
control groups. Without NVML there is no telling, and `only_when_idle` is refused at start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path

from torg_node.journal import Journal
from torg_node.lease import Lease
from torg_node.owner_rules import OwnerRules
from torg_protocol.errors import Invalid
from torg_protocol.states import EndReason

log = logging.getLogger(__name__)
DRAIN_FACT = "drain"
_LOOK_EVERY_S = 1.0
_IDLE_AGAIN_AFTER_S = 60.0  # a game that loads a level lets go of the GPU for a moment


class OwnerWatch:
    """`running` are this node's leases with a container; `gpu_pids` the processes on its GPUs, None where nobody can tell (blocks for
    milliseconds); `on_change` is called when whether it takes work has changed."""

    def __init__(
        self,
        rules: OwnerRules,
        journal: Journal,
        running: Callable[[], Collection[Lease]],
        gpu_pids: Callable[[], set[int]] | None,
        now_ms: Callable[[], int],
        on_change: Callable[[], None],
    ) -> None:
        if rules.only_when_idle and gpu_pids is None:
            raise Invalid(
                "only_when_idle needs a GPU whose driver tells who uses it (NVIDIA, NVML)",
                code="idle_unknown",
                field="rules.only_when_idle",
                value=True,
                hint="take it out of config.toml, or use quiet_hours",
            )
        self._rules, self._journal, self._running, self._gpu_pids = rules, journal, running, gpu_pids
        self._now_ms, self._on_change = now_ms, on_change
        self._busy_until_ms = 0
        self.reason: str | None = None  # why no work is wanted now

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def look(self) -> None:
        reason = await self._find_reason()
        if reason is not None:
            for lease in self._running():
                if lease.stop_reason is None and lease.exit is None:
                    log.warning("%s: it ends, with its grace: %s", lease.id, reason)
                    lease.request_stop(EndReason.DRAINED, lease.stop_grace_ms)
        if (reason is None) is not (self.reason is None):
            log.info("this node takes %s", "leases again" if reason is None else f"no leases: {reason}")
            self.reason = reason
            self._on_change()
        self.reason = reason

    async def _find_reason(self) -> str | None:
        if self._journal.fact(DRAIN_FACT) == "yes":
            return "its owner drains it"
        if (until := self._rules.quiet_until(local_time(self._now_ms()))) is not None:
            return f"quiet hours until {until:%a %H:%M}"
        if self._rules.only_when_idle and self._gpu_pids is not None:
            pids = await asyncio.to_thread(self._gpu_pids)
            own = [lease.handle.ref for lease in self._running() if lease.handle is not None]
            if foreign := foreign_processes(pids, own):
                self._busy_until_ms = self._now_ms() + round(_IDLE_AGAIN_AFTER_S * 1000)
                return f"its owner uses the GPU ({', '.join(foreign)})"
            if self._now_ms() < self._busy_until_ms:
                return "its owner used the GPU within the last minute"
        return None


def foreign_processes(pids: Iterable[int], own_containers: Collection[str], proc: Path = Path("/proc")) -> list[str]:
    """Names of those that live in no control group of our containers. One that has just gone is nobody's."""
    found = []
    for pid in sorted(pids):
        try:
            groups = (proc / str(pid) / "cgroup").read_text()
            name = (proc / str(pid) / "comm").read_text().strip()
        except OSError:
            continue
        if not any(container and container in groups for container in own_containers):
            found.append(name)
    return found


def local_time(at_ms: int) -> datetime:
    """The owner thinks in this host's own time."""
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).astimezone()
