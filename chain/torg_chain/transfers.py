"""Tokens from one wallet to another, as bytes that can be stored before they are sent: what that costs, and who can be paid at all."""

from __future__ import annotations

from dataclasses import dataclass

from solana.rpc.commitment import Confirmed
from solders.compute_budget import set_compute_unit_limit, set_compute_unit_price
from solders.hash import Hash
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.system_program import ID as SYSTEM_PROGRAM_ID
from spl.memo.constants import MEMO_PROGRAM_ID
from spl.memo.instructions import create_memo
from spl.memo.models import MemoParams
from spl.token.instructions import create_idempotent_associated_token_account

from torg_chain.network import Network
from torg_chain.rpc import ChainClient
from torg_chain.transactions import SignedTransaction, sign_transaction
from torg_chain.vault import token_account_of
from torg_chain.vault_operations import transfer_instruction
from torg_protocol.errors import Invalid

_SIGNATURE_LAMPORTS = 5_000
_COMPUTE_UNITS = 80_000  # an account made, a checked transfer and a memo take less than half of it
_PRIORITY_FEE_CEILING_LAMPORTS = 50_000
_TOKEN_ACCOUNT_BYTES = 165


@dataclass(frozen=True, slots=True)
class TransferCost:
    """Lamports, from the sender. `rent`: of the recipient's token account, 0 where there is one. `kept`: what a cluster wants to stay on
    an account that pays and is not emptied; spent by nobody."""

    fee: int
    rent: int
    kept: int
    micro_lamports_per_unit: int

    @property
    def needed(self) -> int:
        return self.fee + self.rent + self.kept


async def transfer_cost(chain: ChainClient, network: Network, *, owner: Pubkey, to: Pubkey) -> TransferCost:
    """As of now; what others pay for a place in a block changes. Raises ChainUnavailable."""
    accounts = [token_account_of(wallet, network.mint_pubkey) for wallet in (owner, to)]
    ceiling = _PRIORITY_FEE_CEILING_LAMPORTS * 1_000_000 // _COMPUTE_UNITS
    price = min(await chain.priority_fee(accounts), ceiling)
    (_, has_account) = await chain.accounts_exist(accounts)
    return TransferCost(
        fee=_SIGNATURE_LAMPORTS - (-price * _COMPUTE_UNITS // 1_000_000),
        rent=0 if has_account else await chain.rent(_TOKEN_ACCOUNT_BYTES),
        kept=await chain.rent(0),
        micro_lamports_per_unit=price,
    )


def build_transfer(
    network: Network,
    *,
    owner: Keypair,
    to: Pubkey,
    amount: int,
    memo: str,
    micro_lamports_per_unit: int,
    blockhash: Hash,
    last_valid_block_height: int,
) -> SignedTransaction:
    """Signed and not sent. Makes the recipient's token account where there is none, at the owner's cost."""
    payer = owner.pubkey()
    instructions = [
        set_compute_unit_limit(_COMPUTE_UNITS),
        set_compute_unit_price(micro_lamports_per_unit),
        create_idempotent_associated_token_account(payer, to, network.mint_pubkey),
        transfer_instruction(network, payer, to, amount),
        create_memo(MemoParams(program_id=MEMO_PROGRAM_ID, signer=payer, message=memo.encode())),
    ]
    return sign_transaction(instructions, [owner], blockhash, last_valid_block_height)


async def check_payable(chain: ChainClient, address: Pubkey, *, field: str) -> None:
    """Refuses what is no wallet: tokens sent to a token account's or a program's own address are lost. An address that the chain has
    never seen is one, and so is a multisig's vault. Raises Invalid `wallet_invalid`, ChainUnavailable."""
    owner = await chain.account_owner(address, Confirmed)
    if owner is None or owner == SYSTEM_PROGRAM_ID:
        return
    raise Invalid(
        f"that is no wallet: it belongs to the program {owner}",
        code="wallet_invalid",
        field=field,
        value=str(address),
        hint="name the wallet, not its token account; for a multisig, its vault",
    )
