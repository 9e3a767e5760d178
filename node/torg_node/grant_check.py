"""Whether to work under a grant: everything that a node can check before it starts, decided purely.

The marketplace's word is believed for nothing that can be checked: its signature, the client's cap, the vault on chain.
"""

from __future__ import annotations

from dataclasses import dataclass

from solders.pubkey import Pubkey

from torg_chain.network import Network
from torg_chain.vault import VaultState
from torg_protocol.ids import NodeId
from torg_protocol.messages import Grant, SignedGrant
from torg_protocol.offers import Offer
from torg_protocol.vault_messages import CapMessage, verify_message

_CLOCK_SKEW_MS = 300_000


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the node knows by itself."""

    node: NodeId
    marketplace: str
    network: Network
    offer: Offer
    min_vault_grace_s: int
    undecided_amount: int
    now_ms: int


def why_not(signed: SignedGrant, facts: NodeFacts) -> str | None:
    """The reason to decline, or None. What the chain says is another question: `why_not_vault`."""
    grant = signed.grant
    checks = (
        (grant.marketplace != facts.marketplace, f"granted by {grant.marketplace}, which is not our marketplace"),
        (not grant.is_signed_by(facts.marketplace, signed.signature), "the grant's signature does not verify"),
        (grant.node != facts.node, "the grant is for another node"),
        (abs(facts.now_ms - grant.granted_at_ms) > _CLOCK_SKEW_MS, "the grant's time is too far from this clock"),
        (grant.price_per_gpu_hour < facts.offer.price_per_gpu_hour, "the price is below the offer"),
        (grant.billable_gpus != grant.spec.resources.billable_gpus, "the grant bills other GPUs than the job asks for"),
        (facts.undecided_amount >= facts.offer.max_unpaid, "enough unpaid work is on this node already"),
    )
    for failed, reason in checks:
        if failed:
            return reason
    return _commitment_problem(grant, facts) or _cap_problem(grant, facts)


def why_not_vault(grant: Grant, vault: VaultState | None, facts: NodeFacts) -> str | None:
    """The reason to decline that lies in the client's vault, read from the chain by this node itself."""
    if vault is None:
        return "the client's vault does not exist on chain"
    network, commitment = facts.network, grant.commitment
    now_s = facts.now_ms // 1000
    checks = (
        (str(vault.config) != network.operator_config, "the vault is under another operator"),
        (str(vault.mint) != network.mint, "the vault holds another token"),
        (vault.chain_id != network.chain_id, "the vault was opened for another chain"),
        (vault.kind != 0, "this is not a client's vault"),
        (vault.close_at != 0, "the vault is being closed"),
        (vault.grace_s < facts.min_vault_grace_s, f"the vault's grace is only {vault.grace_s} s"),
        (str(vault.signer_at(now_s)) != grant.cap.signer, "the cap is not signed by the vault's signer"),
        (vault.settled + vault.balance < commitment.committed_after, "the vault does not hold what was committed"),
    )
    return next((reason for failed, reason in checks if failed), None)


def _commitment_problem(grant: Grant, facts: NodeFacts) -> str | None:
    commitment = grant.commitment
    checks = (
        (
            not commitment.is_signed_by(facts.marketplace, grant.commitment_signature),
            "the commitment's signature does not verify",
        ),
        (commitment.lease_id != grant.lease_id, "the commitment is for another lease"),
        (commitment.payout_address != facts.offer.payout_address, "the commitment pays somebody else"),
        (
            commitment.committed_after - commitment.committed_before < grant.max_amount,
            "the commitment covers less than the grant",
        ),
        (commitment.vault != grant.cap.vault, "the commitment is of another vault than the cap"),
        (commitment.committed_after > grant.cap.cap, "the client's cap does not cover the commitment"),
    )
    return next((reason for failed, reason in checks if failed), None)


def _cap_problem(grant: Grant, facts: NodeFacts) -> str | None:
    cap = grant.cap
    try:
        vault = bytes(Pubkey.from_string(cap.vault))
    except ValueError:
        return "the vault's address is malformed"
    message = CapMessage(facts.network.chain_id, vault, cap.cap, cap.valid_until_s)
    if not verify_message(message, cap.signature, cap.signer):
        return "the cap's signature does not verify"
    if cap.valid_until_s * 1000 < facts.now_ms + grant.max_duration_ms:
        return "the cap expires before the lease may end"
    return None
