"""Refunds: part of what a lease cost goes back to the client, for a cause that programs can match.

A vault is the client's own, so a refund moves no tokens: what was not captured yet is captured no more, and what was captured already is
credit, which lowers later captures. The marketplace signs each refund; the client keeps it as its proof, the node corrects by it what it is owed.
"""

from __future__ import annotations

import enum
from typing import ClassVar

from pydantic import Field

from torg_protocol.documents import Document, View, Wire
from torg_protocol.ids import AccountId, JobId, LeaseId, NodeId, VaultAddress


class RefundCause(enum.StrEnum):
    """Stable codes. Who bears it is in `BORNE_BY_NODE`."""

    SLOW_LEASE = "slow_lease"  # measured below the class that it was sold as
    VERIFICATION_FAILED = "verification_failed"  # work that did not pass, or that nobody could check
    DISPUTE = "dispute"  # a person has decided
    MARKETPLACE_FAULT = "marketplace_fault"  # credit for our own failure: the node is paid in full
    GOODWILL = "goodwill"  # the operator's own decision, at its own cost


BORNE_BY_NODE = frozenset({RefundCause.SLOW_LEASE, RefundCause.VERIFICATION_FAILED, RefundCause.DISPUTE})


class Refund(Document):
    """Base units. `from_node` + `from_fees` were taken off what waited for its capture; the rest of `amount` is credit of the vault."""

    KIND: ClassVar[str] = "refund"

    refund_id: str
    cause: RefundCause
    marketplace: str
    client: AccountId
    vault: VaultAddress
    job_id: JobId
    lease_id: LeaseId
    node: NodeId
    amount: int = Field(ge=1)
    from_node: int = Field(ge=0)
    from_fees: int = Field(ge=0)
    at_ms: int
    note: str = ""

    @property
    def credit(self) -> int:
        """What no waiting payout covered when it was decided."""
        return self.amount - self.from_node - self.from_fees


class SignedRefund(Wire):
    refund: Refund
    signature: str

    def problems(self, *, marketplace: str) -> list[str]:
        """Why it must not be believed; empty when it holds."""
        refund = self.refund
        found = []
        if refund.marketplace != marketplace:
            found.append(f"issued by {refund.marketplace}, not by {marketplace}")
        if not refund.is_signed_by(marketplace, self.signature):
            found.append("the marketplace's signature does not verify")
        if refund.credit < 0:
            found.append("more was taken off than was given back")
        return found


class RefundView(View):
    """`outstanding`: credit that is left to be worked off now."""

    signed: SignedRefund
    outstanding: int = Field(ge=0)


class RefundPage(View):
    """GET /v1/refunds, oldest first."""

    refunds: tuple[RefundView, ...]
    next_cursor: str | None = None
