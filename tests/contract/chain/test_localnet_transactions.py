"""What the localnet says of transactions: lookup tables, token balances, fees; and that a table makes room for 16 payees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from solana.rpc.commitment import Confirmed
from solders.address_lookup_table_account import AddressLookupTableAccount
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import TransferParams, transfer
from solders.transaction import VersionedTransaction

from tests.support.chain import make_network, make_operator, running_localnet
from torg_chain import instructions as program
from torg_chain import lookup_tables, vault_operations
from torg_chain.errors import TransactionRejected, TransactionTooLarge
from torg_chain.network import Network
from torg_chain.rpc import ChainClient, TransactionStatus
from torg_chain.transactions import SignedTransaction, sign_transaction
from torg_chain.vault import MAX_PAYEES, VaultState, token_account_of
from torg_protocol.vault_messages import CapMessage, sign_message


async def capture_by_order(
    chain: ChainClient,
    network: Network,
    state: VaultState,
    payees: list[Pubkey],
    session: Keypair,
    capture_key: Keypair,
) -> list[Instruction]:
    paid = [(payee, 1) for payee in payees]
    cap = CapMessage(network.chain_id, bytes(state.address), 1_000, await chain.unix_time_s() + 600)
    order = vault_operations.order_of(network, state, paid, bytes(32))
    signed = [
        program.ed25519_verify(key.pubkey(), sign_message(key, message), message.to_bytes())
        for key, message in ((session, cap), (capture_key, order))
    ]
    capture = program.capture(
        network.program_pubkey,
        vault=state.address,
        token_account=state.token_account,
        config=network.operator_pubkey,
        payees=paid,
        expected_settled=state.settled,
        root=bytes(32),
        cap_instruction=0,
        order_instruction=1,
    )
    return [*signed, capture]


async def sign(
    chain: ChainClient, built: list[Instruction], payer: Keypair, tables: list[AddressLookupTableAccount]
) -> SignedTransaction:
    blockhash, last_valid = await chain.latest_blockhash()
    return sign_transaction(built, [payer], blockhash, last_valid, tables=tables)


async def details(chain: ChainClient, signature: str) -> Any:
    """As RPC clients get them, in JSON."""
    found = await chain._rpc.get_transaction(
        Signature.from_string(signature), commitment=Confirmed, max_supported_transaction_version=0
    )
    assert found.value is not None
    return found.value.transaction.meta


async def test_a_lookup_table_makes_room_for_sixteen_payees(tmp_path: Path) -> None:
    client, operator = Keypair(), make_operator()
    async with running_localnet(tmp_path) as localnet, ChainClient(localnet.rpc_url) as chain:
        network = await make_network(chain, operator, localnet.genesis_hash)
        await chain.faucet(client.pubkey(), 1_000)
        nodes = [Keypair().pubkey() for _ in range(MAX_PAYEES)]
        for node in nodes:
            await chain.faucet(node, 5)
        payees = [token_account_of(node, network.mint_pubkey) for node in nodes]
        _, vault = await vault_operations.open_vault(
            chain, network, depositor=client, signer=client.pubkey(), grace_s=3600, deposit=1_000
        )
        state = await chain.existing_vault(vault)
        built = await capture_by_order(chain, network, state, payees, client, operator.capture_key)
        with pytest.raises(TransactionTooLarge):
            await sign(chain, built, client, [])

        table = await lookup_tables.make_table(chain, client, payees)
        landed = await sign(chain, built, client, [table])
        await chain.send_and_confirm(landed, until=TransactionStatus.FINALIZED)

        assert [await chain.token_balance(node, network.mint_pubkey) for node in nodes] == [6] * MAX_PAYEES
        assert (await chain.existing_vault(vault)).settled == MAX_PAYEES
        meta = await details(chain, landed.signature)
        assert set(meta.loaded_addresses.writable) == set(payees)
        before = {one.owner: one.ui_token_amount.amount for one in meta.pre_token_balances}
        after = {one.owner: one.ui_token_amount.amount for one in meta.post_token_balances}
        assert {(before[node], after[node]) for node in nodes} == {("5", "6")}
        assert (before[vault], after[vault]) == ("1000", str(1_000 - MAX_PAYEES))
        # an RPC node that is asked beforehand says what was then charged: three signatures, two of them by the precompile
        message = VersionedTransaction.from_bytes(landed.raw).message
        assert isinstance(message, MessageV0)
        assert (await chain._rpc.get_fee_for_message(message)).value == meta.fee == 15_000

        # what a restart replays is the same, tables included
        await localnet.kill()
        await localnet.start()
        assert (await chain.existing_vault(vault)).settled == MAX_PAYEES
        data = await chain._account_data(table.key, Confirmed)
        assert data is not None
        assert lookup_tables.parse_table(table.key, data).addresses == payees


async def test_a_lookup_table_that_is_not_there_or_too_short(tmp_path: Path) -> None:
    payer, to = Keypair(), Keypair().pubkey()
    async with running_localnet(tmp_path) as localnet, ChainClient(localnet.rpc_url) as chain:
        await chain.faucet(payer.pubkey(), 1)
        moving = [transfer(TransferParams(from_pubkey=payer.pubkey(), to_pubkey=to, lamports=10**7))]
        missing = AddressLookupTableAccount(Keypair().pubkey(), [to])
        with pytest.raises(TransactionRejected, match="AddressLookupTableNotFound"):
            await chain.send((await sign(chain, moving, payer, [missing])).raw)
        real = await lookup_tables.make_table(chain, payer, [Keypair().pubkey()])
        longer = AddressLookupTableAccount(real.key, [*real.addresses, to])
        with pytest.raises(TransactionRejected, match="AddressLookupTable"):
            await chain.send((await sign(chain, moving, payer, [longer])).raw)
        assert await chain.lamports(to) == 0


async def test_a_lookup_tables_rent_comes_back(tmp_path: Path) -> None:
    payer = Keypair()
    async with running_localnet(tmp_path, slot_ms=20) as localnet, ChainClient(localnet.rpc_url) as chain:
        await chain.faucet(payer.pubkey(), 1)
        before = await chain.lamports(payer.pubkey())
        table = await lookup_tables.make_table(chain, payer, [Keypair().pubkey() for _ in range(25)])
        lent = before - await chain.lamports(payer.pubkey())
        assert lent > 25 * 32 * 6_960
        with pytest.raises(TransactionRejected):
            await lookup_tables.close_table(chain, payer, table.key)
        await lookup_tables.deactivate_table(chain, payer, table.key)
        with pytest.raises(TransactionRejected):
            await lookup_tables.close_table(chain, payer, table.key)
        await chain.localnet("torg_advance_slots", [520])

        await lookup_tables.close_table(chain, payer, table.key)

        fees = 5 * 5_000  # created, extended twice, deactivated, closed; what preflight refuses costs nothing
        assert await chain.lamports(payer.pubkey()) == before - fees
        assert await chain.accounts_exist([table.key]) == [False]
