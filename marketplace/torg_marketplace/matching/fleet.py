"""The fleet in columns: one row per node, arrays of what it is and what is free, so that thousands are compared at once.

Rows are stable while a node is present and are used again later. `version[row]` rises with every change of what is free or
offered: who caches something about a row compares it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from torg_marketplace.matching.snapshot import WHOLE_MILLI, Demand, NodeSnapshot, units_needed
from torg_protocol.ids import NodeId
from torg_protocol.money import MS_PER_HOUR
from torg_protocol.network import EGRESS_KINDS
from torg_protocol.offers import Offer
from torg_protocol.states import NodeState

Rows = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

MOST = 2**62  # larger amounts and times are as good as this
SANDBOX_WITH_ROOT = (
    "sandbox+root"  # containers there may be root of a user namespace; at no other level, and without GPUs
)
ISOLATION_LEVELS = ("sandbox", "container", "gvisor", SANDBOX_WITH_ROOT)
WITH_ENGINE = len(
    ISOLATION_LEVELS
)  # bits of levels, shifted by so much, are those at which a node runs images of registries
_LEVEL_BITS = {level: 1 << place for place, level in enumerate(ISOLATION_LEVELS)}
_EGRESS_BITS: dict[str, int] = {kind: 1 << place for place, kind in enumerate(EGRESS_KINDS)}
WARM_ITEMS = 16  # images and blobs remembered per node; of more, those whose names sort first

NUMBERS = (  # of a price order's line the first eight, which most searches ask about, fill a line of a processor's cache
    "price",
    "cpu_free",
    "memory_free",
    "disk_free",
    "isolation",
    "region",
    "reputation",
    "unpaid_gpu_ms",
    "max_unpaid",
    "egress",
    "proven_gops",
    "least_gpu_milli",
    "protocol_version",
    "least_vram",  # that all of its GPUs have
    "least_capability",
    "tie",
)


class Fleet:
    def __init__(self, nodes: Iterable[NodeSnapshot] = ()) -> None:
        self.ids: list[NodeId | None] = []
        self.row_of: dict[NodeId, int] = {}
        self.codes: dict[str, int] = {"": 0}  # of classes, regions, isolation levels, clients and warm things
        self.class_names: dict[int, str] = {}
        self._vacant: list[int] = []
        self._in_order: Rows | None = None  # until a node joins or goes
        self._largest: Ints | None = None  # until any offer changes
        self._allocate(rows=16, width=1)
        for node in nodes:
            self.put(node)

    def __len__(self) -> int:
        return len(self.row_of)

    def rows(self) -> Rows:
        """All nodes, in order of their ids: the order never depends on who came first."""
        if self._in_order is None:
            self._in_order = np.array([self.row_of[node_id] for node_id in sorted(self.row_of)], dtype=np.intp)
        return self._in_order

    def largest(self) -> Ints:
        """[class code, (GPUs, CPU, memory, memory of a GPU, compute capability)]: the most that a node of the class has."""
        if self._largest is None:
            rows = np.flatnonzero(self.present)
            found = np.zeros((len(self.codes), 5), dtype=np.int64)
            columns = (self.gpus_total, self.cpu_total, self.memory_total, self.vram[:, 0], self.capability[:, 0])
            for number, column in enumerate(columns):
                np.maximum.at(found[:, number], self.gpu_class[rows], column[rows])
            self._largest = found
        return self._largest

    def code(self, word: str) -> int:
        return self.codes.setdefault(word, len(self.codes))

    def put(self, node: NodeSnapshot) -> int:
        """Adds the node or replaces all that is known of it; returns its row."""
        row = self.row_of.get(node.node_id)
        if row is None:
            row = self._new_row(node.node_id)
        if node.gpus > self.gpu_free.shape[1]:
            self._widen(node.gpus)
        self._write_offer(row, node.offer)
        self._write_use(row, node)
        self.version[row] += 1
        self._largest = None
        return row

    def remove(self, node_id: NodeId) -> None:
        row = self.row_of.pop(node_id)
        self._in_order = self._largest = None
        self.ids[row] = None
        self.present[row] = False
        self.version[row] += 1
        self._vacant.append(row)

    def node_id(self, row: int) -> NodeId:
        node_id = self.ids[row]
        if node_id is None:
            raise KeyError(row)
        return node_id

    def free_gpus(self, row: int, demand: Demand) -> Sequence[int]:
        """Numbers of GPUs that the demand could take on this node, or a part of."""
        free = enumerate(self.gpu_free[row].tolist())  # few: quicker one by one than as an array
        if demand.gpu_milli == WHOLE_MILLI:
            return [gpu for gpu, milli in free if milli == WHOLE_MILLI]
        owner, mine = self.gpu_owner[row].tolist(), (0, self.code(f"client {demand.client}"))
        return [gpu for gpu, milli in free if milli >= demand.gpu_milli and owner[gpu] in mine]

    def has_room(self, row: int, demand: Demand, gpus: Sequence[int]) -> bool:
        """Whether the demand fits on exactly these GPUs now."""
        asked = demand.spec.resources
        return bool(
            len(set(gpus)) == len(gpus) == asked.gpus
            and set(gpus).issubset(self.free_gpus(row, demand))
            and self.cpu_free[row] >= asked.cpus
            and self.memory_free[row] >= asked.memory
            and self.disk_free[row] >= asked.disk
            and (asked.gpus or self.slots_free[row] >= units_needed(asked))
        )

    def take(self, row: int, demand: Demand, gpus: Sequence[int]) -> None:
        self._move(row, demand, gpus, -1)

    def give(self, row: int, demand: Demand, gpus: Sequence[int]) -> None:
        self._move(row, demand, gpus, +1)

    def _move(self, row: int, demand: Demand, gpus: Sequence[int], sign: int) -> None:
        asked = demand.spec.resources
        self.cpu_free[row] += sign * asked.cpus
        self.memory_free[row] += sign * asked.memory
        self.disk_free[row] += sign * asked.disk
        if not asked.gpus:
            self.slots_free[row] += sign * units_needed(asked)
        free = self.gpu_free[row]
        for gpu in gpus:
            free[gpu] += sign * demand.gpu_milli
            if demand.gpu_milli < WHOLE_MILLI:
                whole = free[gpu] == WHOLE_MILLI
                self.gpu_owner[row, gpu] = 0 if whole else self.code(f"client {demand.client}")
        self._count_gpus(row)
        self.version[row] += 1

    def _count_gpus(self, row: int) -> None:
        free: list[int] = self.gpu_free[row].tolist()
        self.gpus_whole[row] = free.count(WHOLE_MILLI)
        self.gpu_most_free[row] = max(0, *free)

    def _new_row(self, node_id: NodeId) -> int:
        if self._vacant:
            row = self._vacant.pop()
            self.ids[row] = node_id
        else:
            row = len(self.ids)
            self.ids.append(node_id)
            if row == len(self.present):
                self._grow()
        self.row_of[node_id] = row
        self._in_order = None
        self.present[row] = True
        self.tie[row] = int.from_bytes(hashlib.blake2b(node_id.encode(), digest_size=7).digest())
        return row

    def _write_offer(self, row: int, offer: Offer) -> None:
        inventory, price = offer.inventory, offer.price_per_gpu_hour
        self.gpu_class[row] = self.code(f"class {inventory.gpu_class.lower()}")
        self.class_names[int(self.gpu_class[row])] = inventory.gpu_class
        self.region[row] = self.code(f"region {offer.region}")
        self.price[row] = min(price, MOST)
        self.max_unpaid[row] = min(offer.max_unpaid, MOST)
        # The longest GPU time whose cost is at most max_unpaid: exact, and without products that overflow.
        self.unpaid_gpu_ms[row] = min(((offer.max_unpaid + 1) * MS_PER_HOUR - 1) // price, MOST) if price else MOST
        self.cpu_total[row], self.memory_total[row] = inventory.cpu_millis, inventory.memory_bytes
        self.disk_total[row], self.slots_total[row] = inventory.disk_bytes, offer.slots
        self.gpus_total[row] = len(inventory.gpus)
        with_root = [SANDBOX_WITH_ROOT] if offer.own_root else []
        levels = isolation_bits([*offer.isolation, *with_root])
        self.isolation[row] = levels if offer.executor == "sandbox" else levels | levels << WITH_ENGINE
        self.egress[row] = egress_bits(offer.egress)
        self.least_gpu_milli[row] = offer.least_gpu_milli
        sizes = sorted((gpu.vram_bytes for gpu in inventory.gpus), reverse=True)
        versions = sorted((version_code(gpu.compute_capability) for gpu in inventory.gpus), reverse=True)
        self.vram[row], self.capability[row] = 0, 0
        self.vram[row, : len(sizes)], self.capability[row, : len(versions)] = sizes, versions
        self.least_vram[row], self.least_capability[row] = min(sizes, default=0), min(versions, default=0)

    def _write_use(self, row: int, node: NodeSnapshot) -> None:
        inventory, used = node.offer.inventory, node.units_in_use
        self.live[row] = node.is_live
        self.accepting[row] = node.state is NodeState.ACTIVE and node.proof.state in ("unproven", "proven")
        self.reputation[row] = node.reputation_permille
        self.proven_gops[row] = min(node.proven_gops, MOST)
        self.protocol_version[row] = node.protocol_version
        self.cpu_free[row] = inventory.cpu_millis - node.cpu_millis_in_use
        self.memory_free[row] = inventory.memory_bytes - node.memory_in_use
        self.disk_free[row] = inventory.disk_bytes - node.disk_in_use
        self.slots_free[row] = sum(f"slot:{number}" not in used for number in range(node.offer.slots))
        self.gpu_free[row], self.gpu_owner[row] = 0, 0
        for number in range(node.gpus):
            self.gpu_free[row, number] = 0 if f"gpu:{number}" in used else WHOLE_MILLI
        self.gpu_free[row, node.gpus_withheld()] = 0
        for share in node.shares:
            self.gpu_free[row, share.gpu] -= share.milli
            self.gpu_owner[row, share.gpu] = self.code(f"client {share.client}")
        self._count_gpus(row)
        self.warm[row] = 0
        for place, item in enumerate(sorted(node.warm)[:WARM_ITEMS]):
            self.warm[row, place] = self.code(f"warm {item}")

    def _allocate(self, rows: int, width: int) -> None:
        def column(dtype: type[np.generic] = np.int64, *shape: int) -> npt.NDArray[np.int64]:
            return np.zeros((rows, *shape), dtype=dtype)

        self.present: Mask = np.zeros(rows, dtype=np.bool_)
        self.live: Mask = np.zeros(rows, dtype=np.bool_)
        self.accepting: Mask = np.zeros(rows, dtype=np.bool_)
        self.numbers = np.asfortranarray(column(np.int64, len(NUMBERS)))
        self._view()
        self.version = column(np.int32)
        self.gpu_class = column(np.int32)
        self.cpu_total, self.memory_total, self.disk_total = column(), column(), column()
        self.slots_total, self.slots_free = column(np.int16), column(np.int16)
        self.gpus_total, self.gpus_whole, self.gpu_most_free = column(np.int16), column(np.int16), column(np.int16)
        self.gpu_free, self.gpu_owner = column(np.int16, width), column(np.int32, width)
        self.vram, self.capability = column(np.int64, width), column(np.int32, width)
        self.warm = column(np.int32, WARM_ITEMS)

    def _view(self) -> None:
        """Each column lies in one piece, for who asks one question of all rows (`explain`). Price orders have copies row by row."""
        views = (self.numbers[:, place] for place in range(len(NUMBERS)))
        self.price, self.cpu_free, self.memory_free, self.disk_free, self.isolation, self.region, *rest = views
        self.reputation, self.unpaid_gpu_ms, self.max_unpaid, self.egress, self.proven_gops, *rest = rest
        self.least_gpu_milli, self.protocol_version, self.least_vram, self.least_capability, self.tie = rest

    def _columns(self) -> list[str]:
        return [name for name, value in vars(self).items() if isinstance(value, np.ndarray) and name not in NUMBERS]

    def _grow(self) -> None:
        for name in self._columns():
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros_like(old)]))  # columns stay in one piece
        self._view()

    def _widen(self, width: int) -> None:
        for name in ("gpu_free", "gpu_owner", "vram", "capability"):
            old = getattr(self, name)
            wider = np.zeros((old.shape[0], width), dtype=old.dtype)
            wider[:, : old.shape[1]] = old
            setattr(self, name, wider)


def isolation_bits(levels: Iterable[str]) -> int:
    """One bit per level; levels that nobody can ask for have none."""
    return sum({_LEVEL_BITS.get(level, 0) for level in levels})


def egress_bits(kinds: Iterable[str]) -> int:
    """One bit per kind of network that a job may ask for; "none" needs nothing and has no bit."""
    return sum({_EGRESS_BITS.get(kind, 0) for kind in kinds})


@lru_cache(maxsize=256)
def version_code(text: str | None) -> int:
    """ "8.9" -> 8009: compares as versions do."""
    parts = [int(part) for part in (text or "0.0").split(".") if part.isdigit()]
    return parts[0] * 1000 + min(parts[1] if len(parts) > 1 else 0, 999) if parts else 0
