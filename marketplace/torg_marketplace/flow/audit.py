"""Audit: whether a reported lease is looked at again, drawn after everything of it is stored. See torg_protocol/audits.py and rules/audit.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torg_marketplace.flow.collateral import put_stake_behind
from torg_marketplace.flow.rows import node_row
from torg_marketplace.flow.unit import Unit
from torg_marketplace.rules.audit import Standing, audit_permille
from torg_marketplace.rules.reputation import reputation_permille
from torg_marketplace.storage.models import JobRow, LeaseRow
from torg_protocol.audits import AuditDraw, Dice, commitment_root, is_drawn
from torg_protocol.ids import Digest
from torg_protocol.usage import OutputFile


@dataclass(frozen=True, slots=True)
class Drawn:
    """`shown` goes into the receipt: enough for the node to check that it was drawn fairly (`torg_protocol.audits.check_draw`)."""

    audited: bool
    permille: int
    signature: str
    shown: dict[str, str]

    @property
    def dice(self) -> Dice:
        """Behind the throw that decided whether there is an audit."""
        dice = Dice(self.signature)
        dice.below(1)
        return dice


async def draw_audit(
    unit: Unit, lease: LeaseRow, job: JobRow, checkpoints: Sequence[Digest], *, always: bool = False
) -> Drawn:
    """The same again for the same lease, whatever happened to an earlier try of its verdict. `always`: at the highest rate."""
    node = await node_row(unit, lease.node_id)
    stake = await put_stake_behind(unit, lease, job)
    good_name = reputation_permille(node.leases_kept, node.leases_broken)
    permille = 1000 if always else audit_permille(Standing(node.clean_leases, stake, good_name), lease.amount)
    outputs = [item.digest for item in map(OutputFile.model_validate, lease.outputs)]
    draw = AuditDraw(lease_id=lease.id, committed=commitment_root(checkpoints, outputs))
    signature = draw.sign(unit.market.identity)
    shown = {
        "audit_permille": str(permille),
        "audit_stake": str(stake),
        "audit_committed": draw.committed,
        "audit_draw": signature,
    }
    return Drawn(is_drawn(signature, permille), permille, signature, shown)
