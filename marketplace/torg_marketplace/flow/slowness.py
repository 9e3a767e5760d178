"""A lease that was measured below the class that it was sold as is given back in proportion, when its money is decided."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from torg_marketplace.flow.prove import record_of
from torg_marketplace.flow.refunds import refund_lease
from torg_marketplace.flow.unit import Unit
from torg_marketplace.rules.slowness import Measured, shortfall
from torg_marketplace.storage.models import LeaseRow, NodeRow
from torg_marketplace.storage.proof_models import HardwareProofRow
from torg_protocol.refunds import RefundCause

_CPU = "cpu"  # the unit of nodes without GPUs, whichever slots a lease has


def sold_as(node: NodeRow, units: Sequence[str]) -> dict[str, int]:
    """What each unit of a lease is established as now, 10^9 operations per second; empty where nothing is proven."""
    record = record_of(node)
    if record.state != "proven":
        return {}
    named = {unit if unit.startswith("gpu:") else _CPU for unit in units}
    return {name: unit.gops for name, unit in record.units.items() if name in named and unit.gops}


async def refund_if_slow(unit: Unit, lease: LeaseRow) -> None:
    """For a lease that was just decided. Safe to repeat."""
    if not lease.sold_as or lease.amount <= 0:
        return
    query = select(HardwareProofRow).where(
        HardwareProofRow.node_id == lease.node_id,
        HardwareProofRow.state == "judged",
        HardwareProofRow.challenged_at_ms >= (lease.started_at_ms or lease.granted_at_ms),
        HardwareProofRow.challenged_at_ms <= (lease.ended_at_ms or unit.now_ms),
    )
    rows = [
        row
        for row in await unit.session.scalars(query)
        if row.finding.get("gops") and row.finding.get("is_final", True)
    ]
    seen = [Measured(row.unit, float(row.finding["gops"]), row.busy) for row in rows]
    tolerance = max((row.tolerance_permille for row in rows), default=1000) / 1000
    found = shortfall(lease.amount, lease.sold_as, seen, tolerance=tolerance)
    if found is None:
        return
    note = (
        f"{found.unit} did {found.measured_gops:,} of {found.sold_gops:,} billion operations/s,"
        f" by {found.proofs} proofs while it was leased"
    )
    await refund_lease(unit, lease.lease_id, found.refund, RefundCause.SLOW_LEASE, note=note)
