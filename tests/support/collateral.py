"""A node's collateral in LiteSVM, and the three steps that an operator can take against it."""

from __future__ import annotations

from solders.instruction import Instruction
from solders.pubkey import Pubkey

from tests.support.svm import Landed, Vault, World
from torg_chain import instructions as program
from torg_chain.vault import MINIMUM_COLLATERAL_GRACE_S, VaultKind, token_account_of

STAKE = 1_000_000
EVIDENCE = b"\x0e" * 32


def open_stake(world: World) -> Vault:
    """One token, under the world's operator, with the shortest grace."""
    return world.open_vault(deposit=STAKE, grace_s=MINIMUM_COLLATERAL_GRACE_S, kind=VaultKind.COLLATERAL)


def proposal(world: World, stake: Vault, client: Pubkey, amount: int = 400_000) -> Instruction:
    return program.propose_slash(
        world.program_id,
        collateral=stake.address,
        config=stake.operator.config,
        admin=stake.operator.admin.pubkey(),
        mint=stake.mint,
        client_vault=client,
        amount=amount,
        evidence_root=EVIDENCE,
    )


def execution(world: World, stake: Vault, beneficiary: Pubkey, to: Pubkey | None = None) -> Instruction:
    return program.execute_slash(
        world.program_id,
        collateral=stake.address,
        config=stake.operator.config,
        admin=stake.operator.admin.pubkey(),
        mint=stake.mint,
        beneficiary=beneficiary,
        to=to,
    )


def cancellation(world: World, stake: Vault) -> Instruction:
    admin = stake.operator.admin.pubkey()
    return program.cancel_slash(world.program_id, collateral=stake.address, config=stake.operator.config, admin=admin)


def propose(world: World, stake: Vault, client: Vault, amount: int = 400_000) -> Landed:
    return world.send([proposal(world, stake, client.address, amount)], [stake.operator.admin])


def execute(world: World, stake: Vault, client: Vault, to: Pubkey | None = None) -> Landed:
    return world.send([execution(world, stake, client.depositor.pubkey(), to)], [stake.operator.admin])


def home(client: Vault) -> Pubkey:
    return token_account_of(client.depositor.pubkey(), client.mint)


def steps(world: World, stake: Vault, client: Vault) -> list[Instruction]:
    return [
        proposal(world, stake, client.address),
        execution(world, stake, client.depositor.pubkey()),
        cancellation(world, stake),
    ]
