"""What a lease's GPUs consumed, by the cards' own counters: read when its container starts and when it ends.

Of the processors the host's whole counters, see `hardware.rapl`. Nothing where a card does not count, where a unit is a slice of a card or the
lease shares it (the counter is the card's), or where a counter was reset meanwhile.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

from torg_node.hardware.rapl import CpuEnergy
from torg_node.lease import Lease

_FILE, _CPU_FILE = "energy.json", "cpu_energy.json"


async def note_energy(lease: Lease) -> None:
    """At the start of a lease's first container. Safe to repeat: the first reading counts."""
    uuids, path, cpus = lease.assignment.gpu_uuids, lease.folder / _FILE, lease.folder / _CPU_FILE
    if not cpus.exists() and (energy := await asyncio.to_thread(lease.node.cpu_energy)) is not None:
        cpus.write_text(json.dumps(asdict(energy)))
    if uuids and not lease.spec.resources.is_share and not path.exists():
        path.write_text(json.dumps(await asyncio.to_thread(lease.node.gpu_energy_mj, uuids)))


async def cpu_energy_used_mj(lease: Lease) -> int | None:
    """Millijoules of the host's processors since then; None where that cannot be told, or not over a restart of the agent."""
    try:
        before = CpuEnergy(**json.loads((lease.folder / _CPU_FILE).read_text()))
    except (OSError, ValueError):
        return None
    after = await asyncio.to_thread(lease.node.cpu_energy)
    return after.used_mj - before.used_mj if after is not None and after.epoch == before.epoch else None


async def energy_used_mj(lease: Lease) -> int | None:
    """Millijoules of all its GPUs together since then; None when that cannot be told."""
    uuids = lease.assignment.gpu_uuids
    try:
        before: dict[str, int] = json.loads((lease.folder / _FILE).read_text())
    except (OSError, ValueError):
        return None
    return difference_mj(uuids, before, await asyncio.to_thread(lease.node.gpu_energy_mj, uuids))


def difference_mj(uuids: tuple[str, ...], before: dict[str, int], after: dict[str, int]) -> int | None:
    if not uuids or any(uuid not in before or after.get(uuid, -1) < before[uuid] for uuid in uuids):
        return None
    return sum(after[uuid] - before[uuid] for uuid in uuids)
