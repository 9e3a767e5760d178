"""For how long a node that did not want a job, or could not go on with it, is not asked about it again.

What passes by itself (quiet hours, no room, an owner at the machine, a chain that did not answer) is asked about again: after a
minute, and each time it happens again after twice as long, so that a job costs its market a bounded number of grants. What a node
says about the job itself, or about the vault that pays for it, stays as it is. A word that is not known here counts as passing:
nodes may be newer than their marketplace.
"""

from __future__ import annotations

FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 60_000, 16 * 60_000
NO_ANSWER = "no_answer"  # the marketplace's own word for a grant that nobody reacted to

LASTING_CODES = frozenset(
    {
        # of the owner's rules
        "kind_denied",
        "too_long",
        # of the grant
        "grant_wrong_marketplace",
        "grant_signature_invalid",
        "grant_wrong_node",
        "grant_wrong_gpus",
        "grant_wrong_gang",
        "gang_unavailable",
        "secrets_for_others",
        "commitment_signature_invalid",
        "commitment_wrong_lease",
        "commitment_wrong_payee",
        "commitment_too_small",
        "commitment_wrong_vault",
        "commitment_overlaps",
        # of the vault and the cap
        "vault_address_invalid",
        "vault_wrong_operator",
        "vault_wrong_mint",
        "vault_wrong_chain",
        "vault_kind",
        "vault_grace_too_short",
        "cap_signature_invalid",
        "cap_wrong_signer",
    }
)


def pause_ms(code: str, earlier_pauses: int) -> int | None:
    """From now; None: for good. `earlier_pauses`: of this node and this job."""
    if code in LASTING_CODES:
        return None
    return int(min(FIRST_PAUSE_MS << min(earlier_pauses, 16), LONGEST_PAUSE_MS))
