"""What a depositor or an operator does with vaults, each as one call: build, sign, send, wait.

The settlement worker does not use the sending ones: it stores signed bytes before it sends them (`build_capture`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from solders.compute_budget import set_compute_unit_limit, set_compute_unit_price
from solders.hash import Hash
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature
from spl.token import models as token_models
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import create_idempotent_associated_token_account, transfer_checked

from torg_chain import instructions as program
from torg_chain.network import Network
from torg_chain.rpc import ChainClient
from torg_chain.sending import send_instructions
from torg_chain.transactions import SignedTransaction, sign_transaction
from torg_chain.vault import (
    CONFIG_SIZE,
    VaultKind,
    VaultState,
    find_config,
    find_vault,
    size_of,
    token_account_of,
)
from torg_protocol.errors import Conflict
from torg_protocol.money import format_amount
from torg_protocol.vault_messages import CapMessage, OrderMessage

_FEES_LAMPORTS = 10_000  # of an opening or a deposit, with some to spare
_TOKEN_ACCOUNT_BYTES, _SOL_DECIMALS = 165, 9


@dataclass(frozen=True, slots=True)
class PriorityFee:
    """`units` is a limit and what is paid for, used or not; the price is in micro-lamports for each."""

    units: int
    micro_lamports_per_unit: int

    def instructions(self) -> list[Instruction]:
        return [set_compute_unit_limit(self.units), set_compute_unit_price(self.micro_lamports_per_unit)]


async def ensure_operator_config(
    chain: ChainClient, program_id: Pubkey, *, admin: Keypair, capture_key: Pubkey, fee_owner: Pubkey
) -> Pubkey:
    """The operator's config account, created when it is not there. Safe to repeat; an existing one keeps its capture key."""
    address, _ = find_config(program_id, admin.pubkey())
    if await chain.operator_config(address) is None:
        rent = await chain.rent(CONFIG_SIZE)
        await send_instructions(
            chain, [program.init_config(program_id, admin.pubkey(), capture_key, fee_owner, rent)], [admin]
        )
    return address


async def check_wallet_has(
    chain: ChainClient, network: Network, owner: Pubkey, amount: int, *, opens: VaultKind | None = None
) -> None:
    """Before a deposit, since a chain that refuses says only a number. `opens`: the vault that is made with it, and its rent paid. Raises Conflict
    `wallet_underfunded`, `wallet_without_sol`."""
    has = await chain.token_balance(owner, network.mint_pubkey)
    if has < amount:
        raise Conflict(
            f"the wallet {owner} holds {format_amount(has, network.decimals)} of the market's token, and {format_amount(amount, network.decimals)} is to go into the vault",
            code="wallet_underfunded",
            field="amount",
            value=format_amount(amount, network.decimals),
            hint="less, or send tokens to that address first; on a localnet torg wallet faucet",
        )
    needed = _FEES_LAMPORTS
    if opens is not None:
        needed += await chain.rent(size_of(opens)) + await chain.rent(_TOKEN_ACCOUNT_BYTES)
    if (lamports := await chain.lamports(owner)) < needed:
        raise Conflict(
            f"the wallet {owner} holds {format_amount(lamports, _SOL_DECIMALS)} SOL, and fees and rent take {format_amount(needed, _SOL_DECIMALS)}",
            code="wallet_without_sol",
            field="wallet",
            value=str(owner),
            hint="send SOL to that address first; the rent comes back when the vault is closed",
        )


async def open_vault(
    chain: ChainClient,
    network: Network,
    *,
    depositor: Keypair,
    signer: Pubkey,
    grace_s: int,
    deposit: int,
    kind: VaultKind = VaultKind.CLIENT,
    before_sending: Callable[[int, Pubkey], None] | None = None,
    salt_age_slots: int = 0,
) -> tuple[int, Pubkey]:
    """Opens a vault and deposits, in one transaction; returns its salt and address once that is finalized.

    `before_sending` is told both first: the place to write down where the money will be. No vault closes before its salt is
    SALT_WINDOW_SLOTS old: one that is to be closed soon takes a salt that has an age already, and has that much less time to land.
    """
    salt = max(0, await chain.slot() - salt_age_slots)
    owner = depositor.pubkey()
    vault, _ = find_vault(network.program_pubkey, owner, network.operator_pubkey, salt)
    if before_sending is not None:
        before_sending(salt, vault)
    opening = [
        create_idempotent_associated_token_account(owner, vault, network.mint_pubkey),
        program.open_vault(
            network.program_pubkey,
            depositor=owner,
            config=network.operator_pubkey,
            mint=network.mint_pubkey,
            salt=salt,
            grace_s=grace_s,
            signer=signer,
            chain_id=network.chain_id,
            rent_lamports=await chain.rent(size_of(kind)),
            kind=kind,
        ),
    ]
    if deposit:
        opening.append(transfer_instruction(network, depositor.pubkey(), vault, deposit))
    await send_instructions(chain, opening, [depositor])
    return salt, vault


async def deposit(chain: ChainClient, network: Network, *, depositor: Keypair, vault: Pubkey, amount: int) -> None:
    """A plain token transfer, counted by the marketplace when it is finalized, which this waits for."""
    await send_instructions(chain, [transfer_instruction(network, depositor.pubkey(), vault, amount)], [depositor])


async def start_close(chain: ChainClient, network: Network, *, depositor: Keypair, vault: Pubkey) -> None:
    await send_instructions(
        chain, [program.start_close(network.program_pubkey, vault, depositor.pubkey())], [depositor]
    )


async def cancel_close(chain: ChainClient, network: Network, *, depositor: Keypair, vault: Pubkey) -> None:
    await send_instructions(
        chain, [program.cancel_close(network.program_pubkey, vault, depositor.pubkey())], [depositor]
    )


async def finish_close(
    chain: ChainClient, network: Network, *, depositor: Keypair, vault: Pubkey, agreed_by: Keypair | None = None
) -> None:
    """Everything that is left, and all rent, to the depositor. `agreed_by`: the operator's admin, to skip the grace."""
    owner = depositor.pubkey()
    agreement = None if agreed_by is None else (network.operator_pubkey, agreed_by.pubkey())
    closing = [
        create_idempotent_associated_token_account(owner, owner, network.mint_pubkey),
        program.finish_close(
            network.program_pubkey, vault=vault, depositor=owner, mint=network.mint_pubkey, agreed_by=agreement
        ),
    ]
    await send_instructions(chain, closing, [depositor, *([agreed_by] if agreed_by else [])])


async def rotate_signer(
    chain: ChainClient, network: Network, *, depositor: Keypair, vault: Pubkey, signer: Pubkey
) -> None:
    """Another session key. Its caps count after the vault's grace, the old key's until then."""
    rotation = program.rotate_signer(network.program_pubkey, vault, depositor.pubkey(), signer)
    await send_instructions(chain, [rotation], [depositor])


async def rescue(chain: ChainClient, network: Network, *, depositor: Keypair, salt: int) -> None:
    """What was sent to the address of a vault after it was closed, or before it was ever opened, back to its depositor."""
    owner = depositor.pubkey()
    rescuing = [
        create_idempotent_associated_token_account(owner, owner, network.mint_pubkey),
        program.rescue(
            network.program_pubkey,
            depositor=owner,
            config=network.operator_pubkey,
            mint=network.mint_pubkey,
            salt=salt,
        ),
    ]
    await send_instructions(chain, rescuing, [depositor])


async def set_capture_key(chain: ChainClient, network: Network, *, admin: Keypair, capture_key: Pubkey) -> None:
    """At once: orders that the old key signed are worth nothing from then on."""
    change = program.set_capture_key(network.program_pubkey, network.operator_pubkey, admin.pubkey(), capture_key)
    await send_instructions(chain, [change], [admin])


def build_capture(
    network: Network,
    vault: VaultState,
    *,
    payees: Sequence[tuple[Pubkey, int]],
    cap: CapMessage,
    cap_signer: Pubkey,
    cap_signature: Signature,
    root: bytes,
    capture_key: Keypair,
    fee_payer: Keypair,
    blockhash: Hash,
    last_valid_block_height: int,
    expected_settled: int | None = None,
    create_accounts_of: Sequence[Pubkey] = (),
    priority_fee: PriorityFee | None = None,
) -> SignedTransaction:
    """One capture, signed and not sent. `payees`: *wallets* and amounts, paid to their associated token accounts.

    `create_accounts_of`: wallets whose token account does not exist yet; the fee payer pays their rent.
    """
    accounts = [(token_account_of(wallet, network.mint_pubkey), amount) for wallet, amount in payees]
    before: list[Instruction] = priority_fee.instructions() if priority_fee is not None else []
    before += [
        create_idempotent_associated_token_account(fee_payer.pubkey(), wallet, network.mint_pubkey)
        for wallet in create_accounts_of
    ]
    before.append(program.ed25519_verify(cap_signer, cap_signature, cap.to_bytes()))
    capture = program.capture(
        network.program_pubkey,
        vault=vault.address,
        token_account=vault.token_account,
        config=network.operator_pubkey,
        payees=accounts,
        expected_settled=vault.settled if expected_settled is None else expected_settled,
        root=root,
        cap_instruction=len(before) - 1,
        capture_key=capture_key.pubkey(),
    )
    return sign_transaction([*before, capture], [fee_payer, capture_key], blockhash, last_valid_block_height)


def order_of(network: Network, vault: VaultState, payees: Sequence[tuple[Pubkey, int]], root: bytes) -> OrderMessage:
    """The operator's order for a capture that somebody else may submit. `payees`: token accounts and amounts."""
    return OrderMessage(
        chain_id=network.chain_id,
        vault=bytes(vault.address),
        expected_settled=vault.settled,
        payees=tuple((bytes(key), amount) for key, amount in payees),
        root=root,
    )


def transfer_instruction(network: Network, owner: Pubkey, to_owner: Pubkey, amount: int) -> Instruction:
    """Between the associated token accounts of two wallets; the recipient's must be there."""
    return transfer_checked(
        token_models.TransferCheckedParams(
            program_id=TOKEN_PROGRAM_ID,
            source=token_account_of(owner, network.mint_pubkey),
            mint=network.mint_pubkey,
            dest=token_account_of(to_owner, network.mint_pubkey),
            owner=owner,
            amount=amount,
            decimals=network.decimals,
        )
    )


__all__ = [
    "build_capture",
    "cancel_close",
    "deposit",
    "ensure_operator_config",
    "finish_close",
    "open_vault",
    "order_of",
    "rescue",
    "rotate_signer",
    "set_capture_key",
    "start_close",
    "transfer_instruction",
]
