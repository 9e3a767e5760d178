"""Transactions that are signed and sent in one go. Who stores signed bytes before they are sent, as the settlement worker does, sends those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from solders.hash import Hash
from solders.instruction import Instruction
from solders.keypair import Keypair

from torg_chain.errors import TransactionExpired
from torg_chain.rpc import ChainClient, TransactionStatus
from torg_chain.transactions import SignedTransaction, sign_transaction

FINALIZED = TransactionStatus.FINALIZED
_TRIES = 3


async def send_signed(
    chain: ChainClient, sign: Callable[[Hash, int], SignedTransaction], *, until: TransactionStatus = FINALIZED
) -> SignedTransaction:
    """On a new blockhash once the one before is dead: a machine that stands still for longer than one lives has lost nothing. Raises as
    `ChainClient.send_and_confirm`; TransactionExpired after the third."""
    for left in reversed(range(_TRIES)):
        transaction = sign(*await chain.latest_blockhash())
        try:
            await chain.send_and_confirm(transaction, until=until)
            break
        except TransactionExpired:
            if not left:
                raise
    return transaction


async def send_instructions(
    chain: ChainClient,
    instructions: Sequence[Instruction],
    signers: Sequence[Keypair],
    *,
    until: TransactionStatus = FINALIZED,
) -> SignedTransaction:
    """The first signer pays."""
    return await send_signed(chain, partial(sign_transaction, instructions, signers), until=until)
