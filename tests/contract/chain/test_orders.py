"""Orders that somebody else than the operator lands, on a real localnet, with the marketplace gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from solders.hash import Hash
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from tests.support.chain import Operator, make_network, make_operator, running_localnet
from torg_chain import vault_operations
from torg_chain.network import Network
from torg_chain.orders import land_order
from torg_chain.rpc import ChainClient
from torg_chain.vault import MAX_PAYEES, MAX_PAYEES_BY_ORDER, VaultState, token_account_of
from torg_protocol.caps import OrderPayee, SignedCap, SignedOrder
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.ids import Digest, VaultAddress
from torg_protocol.vault_messages import CapMessage, sign_message


def signed_order(
    network: Network, state: VaultState, payees: list[Pubkey], *, session: Keypair, capture_key: Keypair, now_s: int
) -> SignedOrder:
    """One unit for each payee."""
    vault, cap = VaultAddress(str(state.address)), 1_000
    cap_message = CapMessage(network.chain_id, bytes(state.address), cap, now_s + 600)
    order = vault_operations.order_of(network, state, [(payee, 1) for payee in payees], bytes(32))
    return SignedOrder(
        vault=vault,
        expected_settled=state.settled,
        payees=tuple(OrderPayee(token_account=str(payee), amount=1) for payee in payees),
        root=Digest("sha256:" + bytes(32).hex()),
        cap=SignedCap(
            vault=vault,
            cap=cap,
            valid_until_s=now_s + 600,
            signer=str(session.pubkey()),
            signature=str(sign_message(session, cap_message)),
        ),
        signer=str(capture_key.pubkey()),
        signature=str(sign_message(capture_key, order)),
    )


async def an_order(
    chain: ChainClient, network: Network, operator: Operator, client: Keypair, stranger: Keypair, nodes: list[Pubkey]
) -> tuple[Pubkey, SignedOrder]:
    """Out of a new vault of the client, which is told too; everybody has what it needs."""
    for party in (client.pubkey(), stranger.pubkey(), *nodes):
        await chain.faucet(party, 1_000)
    _, vault = await vault_operations.open_vault(
        chain, network, depositor=client, signer=client.pubkey(), grace_s=3600, deposit=500
    )
    state, now_s = await chain.existing_vault(vault), await chain.unix_time_s()
    payees = [token_account_of(node, network.mint_pubkey) for node in nodes]
    return vault, signed_order(network, state, payees, session=client, capture_key=operator.capture_key, now_s=now_s)


@pytest.mark.parametrize("count", [1, MAX_PAYEES_BY_ORDER, MAX_PAYEES_BY_ORDER + 1, MAX_PAYEES])
async def test_a_stranger_lands_an_order_of_any_size(tmp_path: Path, count: int) -> None:
    """Also of more payees than a transaction names without a lookup table: the operator, who needs no second message, orders up to 14."""
    client, stranger, operator = Keypair(), Keypair(), make_operator()
    async with running_localnet(tmp_path, slot_ms=20) as localnet, ChainClient(localnet.rpc_url) as chain:
        network = await make_network(chain, operator, localnet.genesis_hash)
        nodes = [Keypair().pubkey() for _ in range(count)]
        vault, order = await an_order(chain, network, operator, client, stranger, nodes)
        payees = [token_account_of(node, network.mint_pubkey) for node in nodes]

        await land_order(chain, network, order, fee_payer=stranger)

        assert [await chain.token_balance(node, network.mint_pubkey) for node in nodes] == [1_001] * count
        with pytest.raises(Conflict, match="moved on"):
            await land_order(chain, network, order, fee_payer=stranger)
        raised = order.model_copy(update={"payees": (OrderPayee(token_account=str(payees[0]), amount=2),)})
        with pytest.raises(Invalid, match="signature does not verify"):
            await land_order(chain, network, raised, fee_payer=stranger)
        assert (await chain.existing_vault(vault)).settled == count


async def test_what_a_machine_that_stood_still_would_send_too_late_is_sent_on_a_new_blockhash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written into a lookup table, and the order: the first blockhash of each is dead when it is to be sent."""
    client, stranger, operator = Keypair(), Keypair(), make_operator()
    async with running_localnet(tmp_path) as localnet, ChainClient(localnet.rpc_url) as chain:
        network = await make_network(chain, operator, localnet.genesis_hash)
        nodes = [Keypair().pubkey() for _ in range(MAX_PAYEES_BY_ORDER + 1)]
        _, order = await an_order(chain, network, operator, client, stranger, nodes)
        asked = []

        async def dies_at_first() -> tuple[Hash, int]:
            found = await ChainClient.latest_blockhash(chain)
            asked.append(found)
            if len(asked) in {2, 4}:  # the table's own is the first
                await chain.localnet("torg_advance_slots", [200])
            return found

        monkeypatch.setattr(chain, "latest_blockhash", dies_at_first)
        await land_order(chain, network, order, fee_payer=stranger)
        assert len(asked) == 5
        assert [await chain.token_balance(node, network.mint_pubkey) for node in nodes] == [1_001] * len(nodes)
