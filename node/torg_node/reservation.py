"""This host's ledger of reservations: who holds which GPU, core, memory and disk. The one authority over them here.

A file of its own, beside no journal: several nodes of one host (one per marketplace) name the same file (`reservations_path`), and
whoever comes second is told so and declines, without penalty. A reservation outlives the agent, as the container does that it is
for; a restarted agent finds the same GPUs for the same lease.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from torg_node.allocation import Assignment, Capacity, Claim, Held, allocate, may_keep
from torg_node.durable import exclusively, open_durable
from torg_protocol.ids import LeaseId

_SCHEMA = """
CREATE TABLE IF NOT EXISTS reservations (
    lease_id TEXT PRIMARY KEY, node TEXT NOT NULL, claim_json TEXT NOT NULL, assignment_json TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cordons (gpu_uuid TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS resting (gpu_uuid TEXT PRIMARY KEY, reason TEXT NOT NULL);
"""


class Reservations:
    """Every method is one durable transaction, exclusive among all nodes that share the file."""

    def __init__(self, path: Path, node: str, capacity: Capacity) -> None:
        self.capacity, self._node = capacity, node
        self._db = open_durable(path, _SCHEMA)

    def close(self) -> None:
        self._db.close()

    def reserve(self, lease_id: LeaseId, claim: Claim) -> Assignment:
        """Raises NoRoom. Reserving again for the same lease gives the same, whatever happened in between."""
        with exclusively(self._db):
            standing = self._held()
            for item in standing:
                if item.lease_id == lease_id:
                    return item.assignment
            assignment = allocate(claim, self.capacity, standing, node=self._node, cordoned=self._cordons())
            self._add(lease_id, claim, assignment)
            return assignment

    def adopt(self, lease_id: LeaseId, claim: Claim, gpu_uuids: tuple[str, ...]) -> bool:
        """For a lease whose container runs with these GPUs already: this file may be new, when its owner has named another one, and a new choice
        would be of other GPUs than the container has. Which cores it is pinned to is not known any more. False: somebody else has
        one of the GPUs meanwhile, and nothing is reserved."""
        with exclusively(self._db):
            standing = self._held()
            if any(item.lease_id == lease_id for item in standing):
                return True
            if not may_keep(claim, gpu_uuids, self.capacity, standing):
                return False
            self._add(lease_id, claim, Assignment(gpu_uuids))
            return True

    def check_room(self, claim: Claim) -> None:
        """Raises NoRoom when `reserve` would, now."""
        allocate(claim, self.capacity, self._held(), node=self._node, cordoned=self._cordons())

    def release(self, lease_id: LeaseId) -> None:
        """Safe to repeat. Never touches another node's."""
        self._db.execute("DELETE FROM reservations WHERE lease_id = ? AND node = ?", (lease_id, self._node))

    def keep_only(self, lease_ids: Collection[LeaseId]) -> tuple[str, ...]:
        """At start: drops what this node reserved for leases that its journal has ended. Returns them."""
        with exclusively(self._db):
            stale = tuple(
                item.lease_id for item in self._held() if item.node == self._node and item.lease_id not in lease_ids
            )
            for lease_id in stale:
                self._db.execute("DELETE FROM reservations WHERE lease_id = ?", (lease_id,))
        return stale

    def assignment(self, lease_id: LeaseId) -> Assignment:
        """Nothing, for a lease that holds nothing."""
        row = self._db.execute("SELECT assignment_json FROM reservations WHERE lease_id = ?", (lease_id,)).fetchone()
        return Assignment() if row is None else _assignment(row[0])

    def held(self) -> tuple[Held, ...]:
        """All nodes' reservations on this host."""
        return tuple(self._held())

    def leases_on(self, gpu_uuid: str) -> tuple[LeaseId, ...]:
        """This node's leases that use the GPU, or a slice of it."""
        slices = {gpu.uuid for gpu in self.capacity.gpus if gpu.mig_parent == gpu_uuid}
        return tuple(
            LeaseId(item.lease_id)
            for item in self._held()
            if item.node == self._node and {gpu_uuid, *slices} & set(item.assignment.gpu_uuids)
        )

    # --- GPUs out of service ----------------------------------------------------------------------------------------

    def cordon(self, gpu_uuid: str, reason: str) -> bool:
        """No new lease gets it, on any node of this host, until `uncordon`. The first reason stays. True when it is news."""
        cursor = self._db.execute("INSERT OR IGNORE INTO cordons VALUES (?, ?)", (gpu_uuid, reason))
        return cursor.rowcount == 1

    def uncordon(self, gpu_uuid: str) -> bool:
        """By its owner, whatever the reason was. False when it was in service."""
        with exclusively(self._db):
            broken = self._db.execute("DELETE FROM cordons WHERE gpu_uuid = ?", (gpu_uuid,)).rowcount
            resting = self._db.execute("DELETE FROM resting WHERE gpu_uuid = ?", (gpu_uuid,)).rowcount
        return broken + resting > 0

    def rest(self, gpu_uuid: str, reason: str) -> bool:
        """A cordon that is expected to pass: `back` lifts it, and leases that run there go on. True when it is news."""
        cursor = self._db.execute("INSERT OR IGNORE INTO resting VALUES (?, ?)", (gpu_uuid, reason))
        return cursor.rowcount == 1

    def back(self, gpu_uuid: str) -> bool:
        """Lifts what `rest` set, never a `cordon`. False when there was none."""
        return self._db.execute("DELETE FROM resting WHERE gpu_uuid = ?", (gpu_uuid,)).rowcount == 1

    def resting(self) -> dict[str, str]:
        """Reason by GPU uuid, of those that rest, broken or not."""
        return dict(self._db.execute("SELECT gpu_uuid, reason FROM resting"))

    def expected_back(self) -> frozenset[str]:
        """Of the GPUs without new leases those that nothing is wrong with but heat."""
        return frozenset(
            row[0]
            for row in self._db.execute(
                "SELECT gpu_uuid FROM resting WHERE gpu_uuid NOT IN (SELECT gpu_uuid FROM cordons)"
            )
        )

    def cordons(self) -> dict[str, str]:
        """Reason by GPU uuid, of all that get no new lease: what broke, else what rests."""
        return self._cordons()

    def gpus_out(self) -> tuple[str, ...]:
        """Of this node's GPUs and MIG slices those that get no new lease: a slice rests with its card."""
        cordoned = self._cordons().keys()
        return tuple(gpu.uuid for gpu in self.capacity.gpus if {gpu.uuid, gpu.mig_parent} & cordoned)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _add(self, lease_id: LeaseId, claim: Claim, assignment: Assignment) -> None:
        row = (lease_id, self._node, json.dumps(asdict(claim)), json.dumps(asdict(assignment)))
        self._db.execute("INSERT INTO reservations VALUES (?, ?, ?, ?)", row)

    def _held(self) -> list[Held]:
        rows = self._db.execute("SELECT lease_id, node, claim_json, assignment_json FROM reservations ORDER BY rowid")
        return [Held(row[0], row[1], Claim(**json.loads(row[2])), _assignment(row[3])) for row in rows]

    def _cordons(self) -> dict[str, str]:
        return self.resting() | dict(self._db.execute("SELECT gpu_uuid, reason FROM cordons"))


def _assignment(text: str) -> Assignment:
    return Assignment(**{name: tuple(value) for name, value in json.loads(text).items()})
