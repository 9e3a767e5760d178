"""From instructions to signed bytes. What is signed here is stored before it is sent, and resent as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from solders.address_lookup_table_account import AddressLookupTableAccount
from solders.hash import Hash
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.transaction import VersionedTransaction

from torg_chain.errors import TransactionTooLarge

MAX_TRANSACTION_BYTES = 1232


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """`signature` names it on chain; after block height `last_valid_block_height` it can never land any more."""

    raw: bytes
    signature: str
    last_valid_block_height: int


def sign_transaction(
    instructions: Sequence[Instruction],
    signers: Sequence[Keypair],
    blockhash: Hash,
    last_valid_block_height: int,
    *,
    tables: Sequence[AddressLookupTableAccount] = (),
) -> SignedTransaction:
    """A version 0 transaction; the first signer pays. Raises TransactionTooLarge beyond 1,232 bytes.

    `tables`: lookup tables by which accounts are named where they can be; their addresses as they are on chain.
    """
    message = MessageV0.try_compile(signers[0].pubkey(), list(instructions), list(tables), blockhash)
    unique = list({keypair.pubkey(): keypair for keypair in signers}.values())
    transaction = VersionedTransaction(message, unique)
    raw = bytes(transaction)
    if len(raw) > MAX_TRANSACTION_BYTES:
        raise TransactionTooLarge(
            f"the transaction has {len(raw)} bytes; a cluster takes {MAX_TRANSACTION_BYTES}",
            field="instructions",
            value=len(instructions),
        )
    return SignedTransaction(raw, str(transaction.signatures[0]), last_valid_block_height)
