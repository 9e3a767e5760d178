"""Whether to work under a grant: everything that a node can check before it starts, decided purely.

The marketplace's word is believed for nothing that can be checked: its signature, the client's cap, the vault on chain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from solders.pubkey import Pubkey

from torg_chain.network import Network
from torg_chain.vault import VaultState
from torg_protocol.caps import OverlapProof, SignedCommitment
from torg_protocol.ids import NodeId
from torg_protocol.messages import Grant, SignedGrant
from torg_protocol.money import format_amount
from torg_protocol.offers import Offer
from torg_protocol.vault_messages import CapMessage, verify_message

_CLOCK_SKEW_MS = 300_000


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the node knows by itself. `exposure`: base units that it has worked for and that no capture has paid."""

    node: NodeId
    marketplace: str
    network: Network
    offer: Offer
    min_vault_grace_s: int
    exposure: int
    now_ms: int

    def tokens(self, amount: int) -> str:
        return f"{format_amount(amount, self.network.decimals)} tokens"


@dataclass(frozen=True, slots=True)
class Refusal:
    """`code` is stable; it travels to the marketplace with the words."""

    code: str
    detail: str


def why_not(signed: SignedGrant, facts: NodeFacts) -> Refusal | None:
    """The reason to decline, or None. What the chain says is another question: `why_not_vault`."""
    grant = signed.grant
    checks = (
        (grant.marketplace != facts.marketplace, "grant_wrong_marketplace", f"granted by {grant.marketplace}"),
        (
            not grant.is_signed_by(facts.marketplace, signed.signature),
            "grant_signature_invalid",
            "the grant's signature does not verify",
        ),
        (grant.node != facts.node, "grant_wrong_node", "the grant is for another node"),
        (
            (gang := grant.gang) is not None and gang.nodes[gang.rank : gang.rank + 1] != (facts.node,),
            "grant_wrong_gang",
            "this node is not where the grant says in its gang",
        ),
        (
            abs(facts.now_ms - grant.granted_at_ms) > _CLOCK_SKEW_MS,
            "grant_wrong_time",
            "the grant's time is too far from this clock",
        ),
        (
            grant.billable_gpus != grant.spec.resources.billable_gpus,
            "grant_wrong_gpus",
            "the grant bills other GPUs than the job asks for",
        ),
        (
            (wanted := grant.spec.egress_wanted) != "none" and wanted not in facts.offer.egress,
            "egress_not_offered",
            f'the job wants network "{wanted}", which this node does not lend',
        ),
        (
            grant.spec.root and not facts.offer.own_root,
            "root_not_offered",
            "the job wants to be root in its container, which this node does not give",
        ),
        (
            grant.spec.secrets is not None and facts.node not in grant.spec.secrets.nodes,
            "secrets_for_others",
            "the job's secrets are not sealed to this node",
        ),
        (
            facts.exposure >= facts.offer.max_unpaid,
            "exposure_limit",
            f"{facts.tokens(facts.exposure)} are owed to this node, which takes no more from {facts.tokens(facts.offer.max_unpaid)} on",
        ),
    )
    return (
        _first(checks)
        or _offer_problem(grant, facts.offer)
        or _commitment_problem(grant, facts)
        or _cap_problem(grant, facts)
    )


def why_not_vault(grant: Grant, vault: VaultState | None, facts: NodeFacts) -> Refusal | None:
    """The reason to decline that lies in the client's vault, read from the chain by this node itself."""
    if vault is None:
        return Refusal("vault_unknown", "the client's vault does not exist on chain")
    network, commitment = facts.network, grant.commitment
    now_s = facts.now_ms // 1000
    return _first(
        (
            (
                str(vault.config) != network.operator_config,
                "vault_wrong_operator",
                "the vault is under another operator",
            ),
            (str(vault.mint) != network.mint, "vault_wrong_mint", "the vault holds another token"),
            (vault.chain_id != network.chain_id, "vault_wrong_chain", "the vault was opened for another chain"),
            (vault.kind != 0, "vault_kind", "this is not a client's vault"),
            (vault.close_at != 0, "vault_closing", "the vault is being closed"),
            (
                vault.grace_s < facts.min_vault_grace_s,
                "vault_grace_too_short",
                f"the vault's grace is only {vault.grace_s} s",
            ),
            (
                str(vault.signer_at(now_s)) != grant.cap.signer,
                "cap_wrong_signer",
                "the cap is not signed by the vault's signer",
            ),
            (
                vault.settled + vault.balance < commitment.committed_after,
                "vault_underfunded",
                "the vault does not hold what was committed",
            ),
        )
    )


def overlap_with(signed: SignedGrant, earlier: Iterable[SignedGrant]) -> OverlapProof | None:
    """Two signed promises of one range: the new grant's against those of leases that run on this node."""
    new = SignedCommitment(commitment=signed.grant.commitment, signature=signed.grant.commitment_signature)
    for other in earlier:
        old = SignedCommitment(commitment=other.grant.commitment, signature=other.grant.commitment_signature)
        proof = OverlapProof(operator=signed.grant.marketplace, first=old, second=new)
        if not proof.problems():
            return proof
    return None


def _offer_problem(grant: Grant, offer: Offer) -> Refusal | None:
    """What of it is not for sale here, or not at this price."""
    price = offer.price_of(grant.spec)
    return _first(
        (
            (price is None, "spot_not_offered", "this node takes no spot jobs"),
            (grant.price_per_gpu_hour < (price or 0), "grant_price_too_low", "the price is below the offer"),
            (
                grant.spec.resources.gpu_fraction < offer.least_gpu_milli,
                "gpu_fraction_not_offered",
                "the job wants a part of a GPU that this node does not cut",
            ),
        )
    )


def _commitment_problem(grant: Grant, facts: NodeFacts) -> Refusal | None:
    commitment = grant.commitment
    return _first(
        (
            (
                not commitment.is_signed_by(facts.marketplace, grant.commitment_signature),
                "commitment_signature_invalid",
                "the commitment's signature does not verify",
            ),
            (
                commitment.lease_id != grant.lease_id,
                "commitment_wrong_lease",
                "the commitment is for another lease",
            ),
            (
                commitment.payout_address != facts.offer.payout_address,
                "commitment_wrong_payee",
                "the commitment pays somebody else",
            ),
            (
                commitment.committed_after - commitment.committed_before < grant.max_amount,
                "commitment_too_small",
                "the commitment covers less than the grant",
            ),
            (
                commitment.vault != grant.cap.vault,
                "commitment_wrong_vault",
                "the commitment is of another vault than the cap",
            ),
            (
                commitment.committed_after > grant.cap.cap,
                "cap_too_low",
                "the client's cap does not cover the commitment",
            ),
        )
    )


def _cap_problem(grant: Grant, facts: NodeFacts) -> Refusal | None:
    cap = grant.cap
    try:
        vault = bytes(Pubkey.from_string(cap.vault))
    except ValueError:
        return Refusal("vault_address_invalid", "the vault's address is malformed")
    message = CapMessage(facts.network.chain_id, vault, cap.cap, cap.valid_until_s)
    if not verify_message(message, cap.signature, cap.signer):
        return Refusal("cap_signature_invalid", "the cap's signature does not verify")
    if cap.valid_until_s * 1000 < facts.now_ms + grant.max_duration_ms:
        return Refusal("cap_expires_too_soon", "the cap expires before the lease may end")
    return None


def _first(checks: Iterable[tuple[bool, str, str]]) -> Refusal | None:
    return next((Refusal(code, detail) for failed, code, detail in checks if failed), None)
