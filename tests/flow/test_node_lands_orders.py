"""The marketplace is gone for good: a node that holds its order is paid all the same, from the real chain, and knows it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from sqlalchemy import select

from tests.support.settlement import SettlingMarket, passing_slots, settling_market
from torg_chain import vault_operations
from torg_marketplace.flow.settle import settle_due
from torg_marketplace.flow.settlement_plan import signed_order
from torg_marketplace.storage.money_models import SettlementRow
from torg_node.journal import Journal
from torg_node.money import debts, exposure, land_orders, look_at_captures
from torg_node.settings import Settings
from torg_protocol.caps import SignedCap, SignedOrder
from torg_protocol.ids import Digest


async def _issued(world: SettlingMarket) -> SignedOrder:
    cap: SignedCap = await world.newest_cap()
    async with world.market.reading() as unit:
        row = (await unit.session.scalars(select(SettlementRow))).one()
    payees = [(account, amount) for account, (_, amount) in zip(row.token_accounts, row.payees, strict=True)]
    return signed_order(world.market, cap, row.expected_settled, payees, Digest(row.root))


async def test_a_node_lands_the_order_that_it_holds_once(tmp_path: Path) -> None:
    async with settling_market(tmp_path) as world:
        wallet = await world.earn(900)
        await settle_due(world.market, hurry=True)  # the marketplace's last deed
        journal, key = Journal(tmp_path / "node.sqlite"), Keypair()
        journal.keep_order(await _issued(world), now_ms=1_000)
        network, payout = world.market.network, Pubkey.from_string(wallet)

        poor = await land_orders(world.chain, network, journal, payout=payout, fee_payer=key)
        assert [(item.signature, "holds no SOL" in item.detail) for item in poor] == [(None, True)]

        await world.chain.faucet(key.pubkey(), 1)
        early = await land_orders(world.chain, network, journal, payout=payout, fee_payer=key, older_than_ms=999)
        assert early == []
        async with passing_slots(world.chain):
            (landed,) = await land_orders(
                world.chain, network, journal, payout=payout, fee_payer=key, older_than_ms=1_000
            )
            assert (landed.amount, landed.signature is not None) == (900, True)
            assert await land_orders(world.chain, network, journal, payout=payout, fee_payer=key) == []
        assert journal.orders() == []
        assert await world.chain.token_balance(payout, network.mint_pubkey) == 900
        await world.settle_all()  # it was not for good, after all
        await world.assert_paid_exactly_once()
        journal.close()


async def test_what_a_closed_vault_owes_is_lost_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with settling_market(tmp_path) as world:
        wallet = await world.earn(900)
        await settle_due(world.market, hurry=True)
        journal, key = Journal(tmp_path / "node.sqlite"), Keypair()
        journal.keep_order(await _issued(world), now_ms=1_000)
        monkeypatch.setattr(journal, "earned", lambda _: {world.vault: 900})
        network, payout = world.market.network, Pubkey.from_string(wallet)
        settings = cast("Settings", SimpleNamespace(network=network, payout_address=wallet))
        async with passing_slots(world.chain):
            vault = Pubkey.from_string(world.vault)
            await vault_operations.start_close(world.chain, network, depositor=world.depositor, vault=vault)
            await world.chain.localnet("torg_advance_slots", [1_600])
            await world.chain.localnet("torg_advance_clock", [30 * 86_400])
            await vault_operations.finish_close(world.chain, network, depositor=world.depositor, vault=vault)

        await look_at_captures(world.chain, settings, journal, now_ms=0)
        (first,) = await land_orders(world.chain, network, journal, payout=payout, fee_payer=key)
        assert (first.amount, first.signature) == (900, None)
        assert "not on the chain any more" in first.detail
        assert exposure(journal) == 900, "one RPC node's word is not enough"
        await look_at_captures(world.chain, settings, journal, now_ms=600_000)
        (debt,) = debts(journal)
        assert (exposure(journal), debt.owed, debt.lost) == (0, 0, 900)
        assert "up to 900 base units are lost" in caplog.text
        assert await land_orders(world.chain, network, journal, payout=payout, fee_payer=key) == []
        assert journal.orders() == []
        journal.close()


async def test_an_order_is_kept_while_the_nodes_own_view_of_the_chain_is_behind(tmp_path: Path) -> None:
    """The marketplace has seen a capture become final, and made the next order; this node's RPC node has not."""
    async with settling_market(tmp_path) as world:
        wallet = await world.earn(900)
        await settle_due(world.market, hurry=True)
        journal, key = Journal(tmp_path / "node.sqlite"), Keypair()
        order = await _issued(world)
        journal.keep_order(order.model_copy(update={"expected_settled": order.expected_settled + 100}), now_ms=1_000)
        network, payout = world.market.network, Pubkey.from_string(wallet)

        assert await land_orders(world.chain, network, journal, payout=payout, fee_payer=key) == []
        assert [held.expected_settled for held, _ in journal.orders()] == [order.expected_settled + 100]
        journal.close()


async def test_an_order_of_a_closing_vault_is_landed_at_once(tmp_path: Path) -> None:
    async with settling_market(tmp_path) as world:
        wallet = await world.earn(900)
        await settle_due(world.market, hurry=True)
        journal, key = Journal(tmp_path / "node.sqlite"), Keypair()
        journal.keep_order(await _issued(world), now_ms=1_000)
        network, payout = world.market.network, Pubkey.from_string(wallet)
        await world.chain.faucet(key.pubkey(), 1)
        async with passing_slots(world.chain):
            await vault_operations.start_close(
                world.chain, network, depositor=world.depositor, vault=Pubkey.from_string(world.vault)
            )
            (landed,) = await land_orders(world.chain, network, journal, payout=payout, fee_payer=key, older_than_ms=0)
        assert landed.signature is not None
        assert await world.chain.token_balance(payout, network.mint_pubkey) == 900
        journal.close()
