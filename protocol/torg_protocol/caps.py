"""What stands between a client, a marketplace and a node about one vault's money, off-chain.

A client signs a *cap*: the most that may ever leave this vault, until a time. The marketplace signs a *commitment* for each
lease: this range of the cap is yours. Two commitments with overlapping ranges are a publishable proof of cheating.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from torg_protocol.documents import Document, Wire
from torg_protocol.ids import LeaseId, VaultAddress
from torg_protocol.money import MAX_U64


class SignedCap(Wire):
    """The vault message of `vault_messages.CapMessage` with its signature, as JSON. `signature` is base58."""

    vault: VaultAddress
    cap: int = Field(ge=0, le=MAX_U64)
    valid_until_s: int = Field(ge=0)
    signer: str
    signature: str


class Commitment(Document):
    """Signed by the operator of the marketplace. Ranges of one vault never overlap while both leases are unsettled."""

    KIND: ClassVar[str] = "commitment"

    vault: VaultAddress
    sequence: int = Field(ge=1)  # per vault, rising by one
    lease_id: LeaseId
    payout_address: str
    committed_before: int = Field(ge=0, le=MAX_U64)
    committed_after: int = Field(ge=0, le=MAX_U64)


class CapStatement(Document):
    """What the marketplace says it has committed of a vault, signed, so that a client can sign its next cap knowingly.

    Comes with 409 `cap_stale`. `needed_cap` is the smallest cap that admits the refused job.
    """

    KIND: ClassVar[str] = "cap-statement"

    vault: VaultAddress
    at_ms: int
    final_total: int  # sum of final amounts of ended jobs, ever
    open_maximum: int  # sum of maxima of open jobs
    newest_cap: int
    needed_cap: int
    chain_settled: int
    chain_balance: int
