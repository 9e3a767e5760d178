"""What a lease's GPUs consumed, by the cards' own counters: read when its container starts and when it ends.

Nothing where a card does not count, where a unit is a slice of a card (the counter is the card's), or where a counter was reset meanwhile.
"""

from __future__ import annotations

import asyncio
import json

from torg_node.lease import Lease

_FILE = "energy.json"


async def note_energy(lease: Lease) -> None:
    """At the start of a lease's first container. Safe to repeat: the first reading counts."""
    uuids, path = lease.assignment.gpu_uuids, lease.folder / _FILE
    if not uuids or path.exists():
        return
    path.write_text(json.dumps(await asyncio.to_thread(lease.node.gpu_energy_mj, uuids)))


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
