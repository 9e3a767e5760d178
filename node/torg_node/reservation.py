"""This host's capacity: who uses which GPU, how many slots, how much CPU, memory and disk. The one authority over them here."""

from __future__ import annotations

from dataclasses import dataclass, field

from torg_protocol.ids import LeaseId
from torg_protocol.jobspec import Resources
from torg_protocol.offers import Inventory


@dataclass(frozen=True, slots=True)
class Reservation:
    resources: Resources
    gpu_uuids: tuple[str, ...]


@dataclass
class Reservations:
    """In memory: rebuilt from the journal's open leases at start."""

    inventory: Inventory
    slots: int
    held: dict[LeaseId, Reservation] = field(default_factory=dict)

    def why_not(self, wanted: Resources) -> str | None:
        """The reason why this cannot be reserved now, or None."""
        used = [item.resources for item in self.held.values()]
        if wanted.gpus:
            fitting = self._free_gpus(wanted)
            if len(fitting) < wanted.gpus:
                return f"{wanted.gpus} GPUs asked, {len(fitting)} free that fit"
        elif sum(item.gpus == 0 for item in used) >= self.slots:
            return f"all {self.slots} slots are taken"
        for name, asked, taken, capacity in (
            ("CPU", wanted.cpus, sum(item.cpus for item in used), self.inventory.cpu_millis),
            ("memory", wanted.memory, sum(item.memory for item in used), self.inventory.memory_bytes),
            ("disk", wanted.disk, sum(item.disk for item in used), self.inventory.disk_bytes),
        ):
            if asked > capacity - taken:
                return f"{name}: {asked} asked, {capacity - taken} of {capacity} free"
        return None

    def reserve(self, lease_id: LeaseId, wanted: Resources) -> Reservation | None:
        """None when it does not fit. Reserving again for the same lease gives the same."""
        if lease_id in self.held:
            return self.held[lease_id]
        if self.why_not(wanted) is not None:
            return None
        reservation = Reservation(wanted, tuple(self._free_gpus(wanted)[: wanted.gpus]))
        self.held[lease_id] = reservation
        return reservation

    def release(self, lease_id: LeaseId) -> None:
        self.held.pop(lease_id, None)

    def _free_gpus(self, wanted: Resources) -> list[str]:
        taken = {uuid for item in self.held.values() for uuid in item.gpu_uuids}
        return [
            gpu.uuid
            for gpu in self.inventory.gpus
            if gpu.uuid not in taken and (wanted.min_vram is None or gpu.vram_bytes >= wanted.min_vram)
        ]
