"""Landing an order that one holds: what a payee does when the operator's own transaction never comes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from solders.address_lookup_table_account import AddressLookupTableAccount
from solders.hash import Hash
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature
from spl.token.instructions import create_idempotent_associated_token_account

from torg_chain import instructions as program
from torg_chain.lookup_tables import make_table
from torg_chain.network import Network
from torg_chain.rpc import ChainClient, TransactionStatus
from torg_chain.sending import send_instructions, send_signed
from torg_chain.transactions import SignedTransaction, sign_transaction
from torg_chain.vault import MAX_PAYEES_BY_ORDER, token_account_of
from torg_protocol.caps import SignedOrder
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.vault_messages import CapMessage


async def land_order(chain: ChainClient, network: Network, order: SignedOrder, *, fee_payer: Keypair) -> str:
    """Submits the order and waits until it is final; returns the transaction's signature. Safe to repeat: it can pay once.

    Raises Invalid `order_invalid` (with what is wrong); Conflict `order_stale` when the vault's total has moved on, which means
    that this order or a later one was landed; VaultNotFound when the vault is closed; TransactionRejected, ChainUnavailable.
    """
    if problems := order.problems(network.chain_id):
        raise Invalid("the order does not hold: " + "; ".join(problems), code="order_invalid", field="order")
    state = await chain.existing_vault(order.vault)
    if state.settled != order.expected_settled:
        raise Conflict(
            "the vault's total has moved on: this order, or another one, was landed",
            code="order_stale",
            field="expected_settled",
            value=order.expected_settled,
            hint=f"settled on chain is {state.settled}",
        )
    tables = await _tables_for(chain, order, fee_payer)
    sign = partial(build_landing, network, state.token_account, order, fee_payer, tables=tables)
    return (await send_signed(chain, sign)).signature


async def _tables_for(chain: ChainClient, order: SignedOrder, fee_payer: Keypair) -> list[AddressLookupTableAccount]:
    """With more than MAX_PAYEES_BY_ORDER payees it needs a lookup table, whose rent the fee payer lends (about 0.0002 SOL a payee)."""
    if len(order.payees) <= MAX_PAYEES_BY_ORDER:
        return []
    return [await make_table(chain, fee_payer, [Pubkey.from_string(item.token_account) for item in order.payees])]


async def ensure_token_account(chain: ChainClient, network: Network, wallet: Pubkey, *, fee_payer: Keypair) -> None:
    """An order skips payees without a token account. Safe to repeat."""
    if (await chain.accounts_exist([token_account_of(wallet, network.mint_pubkey)]))[0]:
        return
    making = create_idempotent_associated_token_account(fee_payer.pubkey(), wallet, network.mint_pubkey)
    await send_instructions(chain, [making], [fee_payer], until=TransactionStatus.CONFIRMED)


def build_landing(
    network: Network,
    token_account: Pubkey,
    order: SignedOrder,
    fee_payer: Keypair,
    blockhash: Hash,
    last_valid: int,
    *,
    tables: Sequence[AddressLookupTableAccount] = (),
) -> SignedTransaction:
    """The capture with both signatures as messages: cap and order, neither of them the submitter's."""
    vault = Pubkey.from_string(order.vault)
    message = order.message(network.chain_id)
    cap = CapMessage(network.chain_id, bytes(vault), order.cap.cap, order.cap.valid_until_s)
    capture = program.capture(
        network.program_pubkey,
        vault=vault,
        token_account=token_account,
        config=network.operator_pubkey,
        payees=[(Pubkey.from_string(item.token_account), item.amount) for item in order.payees],
        expected_settled=order.expected_settled,
        root=message.root,
        cap_instruction=0,
        order_instruction=1,
    )
    signed = [
        program.ed25519_verify(
            Pubkey.from_string(order.cap.signer), Signature.from_string(order.cap.signature), cap.to_bytes()
        ),
        program.ed25519_verify(
            Pubkey.from_string(order.signer), Signature.from_string(order.signature), message.to_bytes()
        ),
    ]
    return sign_transaction([*signed, capture], [fee_payer], blockhash, last_valid, tables=tables)
