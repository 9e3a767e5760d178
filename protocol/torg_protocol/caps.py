"""What stands between a client, a marketplace and a node about one vault's money, off-chain.

A client signs a *cap*: the most that may ever leave this vault, until a time. The marketplace signs a *commitment* for each
lease: this range of the cap is yours. Two commitments with overlapping ranges are a publishable proof of cheating.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from solders.pubkey import Pubkey

from torg_protocol.documents import Document, Wire
from torg_protocol.ids import Digest, LeaseId, VaultAddress
from torg_protocol.money import MAX_U64
from torg_protocol.vault_messages import CapMessage, OrderMessage, verify_message


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


class SignedCommitment(Wire):
    commitment: Commitment
    signature: str


class OverlapProof(Wire):
    """Two commitments of one operator that promise the same part of one vault to two leases. Anybody can check it, offline.

    A range shrinks to what was earned when its lease ends. So the operator can answer in one way only: with the first lease's final
    usage record, which the node signed, or with its receipt.
    """

    operator: str
    first: SignedCommitment
    second: SignedCommitment

    def problems(self) -> list[str]:
        """Why this proves nothing; empty when it does."""
        first, second = self.first.commitment, self.second.commitment
        signed = ((first, self.first.signature), (second, self.second.signature))
        checks = (
            (
                not all(item.is_signed_by(self.operator, signature) for item, signature in signed),
                "not both commitments are signed by the operator",
            ),
            (first.vault != second.vault, "they are of two vaults"),
            (first.lease_id == second.lease_id, "they are of one lease"),
            (
                max(first.committed_before, second.committed_before)
                >= min(first.committed_after, second.committed_after),
                "their ranges do not overlap",
            ),
        )
        return [text for failed, text in checks if failed]


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


class OrderPayee(Wire):
    token_account: str
    amount: int = Field(ge=0, le=MAX_U64)


class SignedOrder(Wire):
    """One capture that the operator has ordered, and the cap that covers it. Whoever holds it may submit it: it pays these token
    accounts these amounts, once, while the vault's `settled` is `expected_settled` and the cap is valid."""

    vault: VaultAddress
    expected_settled: int = Field(ge=0, le=MAX_U64)
    payees: tuple[OrderPayee, ...]
    root: Digest
    cap: SignedCap
    signer: str  # the operator's capture key
    signature: str

    def message(self, chain_id: bytes) -> OrderMessage:
        """Raises ValueError for addresses that are none."""
        return OrderMessage(
            chain_id=chain_id,
            vault=bytes(Pubkey.from_string(self.vault)),
            expected_settled=self.expected_settled,
            payees=tuple((bytes(Pubkey.from_string(item.token_account)), item.amount) for item in self.payees),
            root=bytes.fromhex(self.root.removeprefix("sha256:")),
        )

    def problems(self, chain_id: bytes) -> list[str]:
        """What is wrong with it by itself; empty when nothing."""
        try:
            message = self.message(chain_id)
            vault = bytes(Pubkey.from_string(self.vault))
        except ValueError:
            return ["an address or the root is malformed"]
        cap = CapMessage(chain_id, vault, self.cap.cap, self.cap.valid_until_s)
        total = self.expected_settled + sum(item.amount for item in self.payees)
        checks = (
            (not verify_message(message, self.signature, self.signer), "the order's signature does not verify"),
            (self.cap.vault != self.vault, "the cap is of another vault"),
            (not verify_message(cap, self.cap.signature, self.cap.signer), "the cap's signature does not verify"),
            (total > self.cap.cap, "the cap does not cover the order"),
        )
        return [text for failed, text in checks if failed]
