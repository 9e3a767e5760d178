"""The live book: the engine, and what is known to have changed since it looked. `live.py` keeps it up to date.

What this process changes is marked at once (`touch`). What other processes change is found by fingerprints: a node whose
fingerprint differs from the one that the engine was told of is looked at again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from torg_marketplace.matching.backlog import Backlog, Waiting
from torg_marketplace.matching.engine import Engine
from torg_marketplace.matching.estimate import History
from torg_marketplace.matching.reservation import Reservation
from torg_marketplace.matching.snapshot import NodeSnapshot
from torg_protocol.api import ReferencePrice
from torg_protocol.ids import NodeId

# State, liveness, connected, sequence of the offer, version of the protocol, claims (rises with every grant), live leases (falls when one ends; without it
# where there are none): changes with everything that matters of a node.
Fingerprint = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Queued:
    """What a job asks for: as long as its generation is this one, and until a node may be asked again that had declined it."""

    generation: int
    until_ms: int | None
    job: Waiting

    def holds(self, generation: int, now_ms: int) -> bool:
        return self.generation == generation and (self.until_ms is None or now_ms < self.until_ms)


class Book:
    """One per process. Holds nothing that the database does not hold: it may be thrown away at any moment."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.backlog = Backlog()
        self.waiting: dict[str, Queued] = {}  # by job
        self.notes: dict[str, str] = {}  # job -> what it was last told that it waits for
        self.explained: dict[Hashable, tuple[int, str]] = {}  # wish -> when and what that was worked out
        self.reservation: Reservation | None = None  # nodes that are kept for the gang that is first
        self.allowed_at_ms: dict[tuple[str, str], int] = {}  # kind and subject -> when no ban of it was found
        self.history: History | None = None  # what leases did lately
        self.reference_prices: tuple[ReferencePrice, ...] | None = None  # of the newest minute; None: to be read
        self.matcher_seen_ms: int | None = None  # when the matcher last said that it works
        self.matcher_asked_at_ms = 0
        self.asked_at_ms = self.checked_at_ms = self.history_at_ms = self.reference_at_ms = 0
        self.loading = asyncio.Lock()
        self.compiling: asyncio.Task[bool] | None = None  # of the search, for a large fleet
        self._known: dict[NodeId, Fingerprint] = {}
        self._touched: set[NodeId] = set()
        self._filled: set[NodeId] = set()  # or emptied

    def touch(self, nodes: Iterable[NodeId], *, only_room: bool = False) -> None:
        """These changed; what is known of them is read again before the next decision. `only_room`: only what is free on them did."""
        (self._filled if only_room else self._touched).update(nodes)

    def take_touched(self, *, but_for_room: bool = False) -> set[NodeId]:
        """Those to be read again; of which only room has changed, they are left for who asks where there is some."""
        touched, self._touched = self._touched, set()
        if not but_for_room:
            touched |= self._filled
        self._filled -= touched
        return touched

    def changed(self, found: Mapping[NodeId, Fingerprint]) -> set[NodeId]:
        """Nodes that are new, gone, or not as they were; from now on they are known as `found`."""
        same = found == self._known  # the usual case, and the quickest to tell
        differ = set() if same else {node_id for node_id, _ in found.items() ^ self._known.items()}
        self._known = dict(found)
        return differ

    def replace(self, engine: Engine, asked: Iterable[NodeId], found: Iterable[NodeSnapshot]) -> None:
        """Tells the engine what was read of the nodes that were asked about; those not found are gone."""
        snapshots = {node.node_id: node for node in found}
        for node_id in sorted(asked):
            if node_id in snapshots:
                engine.put(snapshots[node_id])
            elif node_id in engine.fleet.row_of:
                engine.remove(node_id)
