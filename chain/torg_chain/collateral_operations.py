"""What an operator does with the collateral of a node, each as one call: build, sign, send, wait until it is finalized.

A node stakes with `vault_operations.open_vault(kind=VaultKind.COLLATERAL)` and leaves with `start_close` and `finish_close`.
"""

from __future__ import annotations

from solders.keypair import Keypair
from solders.pubkey import Pubkey
from spl.token.instructions import create_idempotent_associated_token_account

from torg_chain import instructions as program
from torg_chain.network import Network
from torg_chain.rpc import ChainClient
from torg_chain.sending import send_instructions
from torg_chain.vault import DISPUTE_DELAY_S, SLASH_MARGIN_S, VaultState
from torg_protocol.errors import Invalid


async def propose_slash(
    chain: ChainClient,
    network: Network,
    *,
    admin: Keypair,
    collateral: Pubkey,
    client_vault: Pubkey,
    amount: int,
    evidence_root: bytes,
) -> None:
    """The first step. The node has DISPUTE_DELAY_S to answer with evidence of its own, and the operator to cancel."""
    proposal = program.propose_slash(
        network.program_pubkey,
        collateral=collateral,
        config=network.operator_pubkey,
        admin=admin.pubkey(),
        mint=network.mint_pubkey,
        client_vault=client_vault,
        amount=amount,
        evidence_root=evidence_root,
    )
    await send_instructions(chain, [proposal], [admin])


async def execute_slash(chain: ChainClient, network: Network, *, admin: Keypair, collateral: VaultState) -> None:
    """The second step, to the associated token account of the wallet that was proposed (made when missing).

    Raises Invalid `no_slash_proposed`; TransactionRejected E_TOO_EARLY, E_TOO_LATE.
    """
    if collateral.slash is None:
        raise Invalid(
            "no slash is proposed", code="no_slash_proposed", field="collateral", value=str(collateral.address)
        )
    beneficiary = collateral.slash.beneficiary
    executing = [
        create_idempotent_associated_token_account(admin.pubkey(), beneficiary, network.mint_pubkey),
        program.execute_slash(
            network.program_pubkey,
            collateral=collateral.address,
            config=network.operator_pubkey,
            admin=admin.pubkey(),
            mint=network.mint_pubkey,
            beneficiary=beneficiary,
        ),
    ]
    await send_instructions(chain, executing, [admin])


async def cancel_slash(chain: ChainClient, network: Network, *, admin: Keypair, collateral: Pubkey) -> None:
    cancelling = program.cancel_slash(
        network.program_pubkey, collateral=collateral, config=network.operator_pubkey, admin=admin.pubkey()
    )
    await send_instructions(chain, [cancelling], [admin])


def can_be_slashed(collateral: VaultState, amount: int, unix_time_s: int) -> bool:
    """Whether a proposal made now would be taken, as far as the collateral itself goes."""
    in_time = not collateral.close_at or unix_time_s + DISPUTE_DELAY_S + SLASH_MARGIN_S <= collateral.close_at
    return in_time and collateral.slash is None and 0 < amount <= collateral.balance
