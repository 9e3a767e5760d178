"""Closing a vault at once: the depositor's transaction with the operator's agreement in it, each signing on its own machine.

Both build the transaction's message from the blockhash that the depositor names. Nobody signs bytes that somebody else made.
"""

from __future__ import annotations

from solders.hash import Hash
from solders.keypair import Keypair
from solders.message import MessageV0, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction
from spl.token.instructions import create_idempotent_associated_token_account

from torg_chain import instructions as program
from torg_chain.errors import TransactionRejected
from torg_chain.network import Network
from torg_chain.transactions import SignedTransaction


def closing_message(network: Network, *, vault: Pubkey, depositor: Pubkey, admin: Pubkey, blockhash: Hash) -> MessageV0:
    """Everything that is left, and all rent, to the depositor, who pays the fee. Nothing else is in it."""
    instructions = [
        create_idempotent_associated_token_account(depositor, depositor, network.mint_pubkey),
        program.finish_close(
            network.program_pubkey,
            vault=vault,
            depositor=depositor,
            mint=network.mint_pubkey,
            agreed_by=(network.operator_pubkey, admin),
        ),
    ]
    return MessageV0.try_compile(depositor, instructions, [], blockhash)


def agree(message: MessageV0, admin: Keypair) -> str:
    """The operator's signature. From then on, until the blockhash is dead, the depositor can close the vault."""
    return str(admin.sign_message(to_bytes_versioned(message)))


def assemble(
    message: MessageV0, *, depositor: Keypair, admin: Pubkey, agreement: str, last_valid_block_height: int
) -> SignedTransaction:
    """Both signatures in one transaction. Raises TransactionRejected when the agreement does not verify."""
    raw = to_bytes_versioned(message)
    try:
        consent = Signature.from_string(agreement)
    except ValueError:
        consent = Signature.default()
    if not consent.verify(admin, raw):
        raise TransactionRejected("the operator's agreement to the closing does not verify")
    signatures = {depositor.pubkey(): depositor.sign_message(raw), admin: consent}
    signers = list(message.account_keys)[: message.header.num_required_signatures]
    transaction = VersionedTransaction.populate(message, [signatures[key] for key in signers])
    return SignedTransaction(bytes(transaction), str(transaction.signatures[0]), last_valid_block_height)
