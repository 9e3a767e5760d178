"""Settlement against a real localnet: killed at every step, with blockhashes that die and forks that take captures back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from sqlalchemy import select

from tests.support.settlement import Killed, Life, SettlingMarket, mortal, passing_slots, settling_market
from torg_chain.orders import ensure_token_account, land_order
from torg_marketplace.flow.reconcile import reconcile, watch_vaults
from torg_marketplace.flow.settle import advance_settlements, settle_due
from torg_marketplace.flow.settlement_plan import signed_order
from torg_marketplace.storage.money_models import SettlementRow, VaultRow
from torg_protocol.caps import SignedOrder
from torg_protocol.ids import Digest

MORE_STEPS_THAN_THERE_ARE = 200


async def _nothing(_: SettlingMarket) -> None:
    """The next process starts at once."""


async def _long_pause(world: SettlingMarket) -> None:
    await world.slots(200)  # every blockhash of before is dead


async def _fork(world: SettlingMarket) -> None:
    await world.reorg(3)  # what was not final is taken back


@pytest.mark.parametrize(
    "meanwhile",
    [_nothing, pytest.param(_long_pause, marks=pytest.mark.slow), pytest.param(_fork, marks=pytest.mark.slow)],
)
async def test_killed_at_every_step_it_pays_exactly_once(
    tmp_path: Path, meanwhile: Callable[[SettlingMarket], Awaitable[None]]
) -> None:
    async with settling_market(tmp_path) as world:
        wallet = await world.earn(100)
        killed_at = []
        for ends_at in range(1, MORE_STEPS_THAN_THERE_ARE):
            life = Life(ends_at)
            try:
                await world.settle_all(mortal(world.market, life))
            except Killed as killed:
                killed_at.append(str(killed))
                await meanwhile(world)
                await world.settle_all()
            else:
                break
            await world.assert_paid_exactly_once()
            await world.earn(100 + ends_at, wallet)  # the next round's
        await world.assert_paid_exactly_once()
        # Every kind of step was one of them.
        assert {"before send", "after send", "before its commit", "after its commit", "after skipped_payees"} <= set(
            killed_at
        )
        assert len(killed_at) > 25


async def test_a_confirmed_capture_that_a_fork_takes_back_is_in_doubt_again_and_lands_once(tmp_path: Path) -> None:
    async with settling_market(tmp_path) as world:
        await world.earn(500)
        await settle_due(world.market, hurry=True)
        await advance_settlements(world.market)  # sent
        await world.slots(1)
        await advance_settlements(world.market)  # confirmed
        assert [state for _, state in await world.unpaid()] == ["confirmed"]

        await world.reorg(3)
        await advance_settlements(world.market)
        assert [state for _, state in await world.unpaid()] == ["in_flight"]

        await world.settle_all()
        await world.assert_paid_exactly_once()


async def test_sixteen_new_nodes_are_paid_in_batches_that_fit(tmp_path: Path) -> None:
    async with settling_market(tmp_path) as world:
        for number in range(16):
            await world.earn(1_000 + number)
        await world.settle_all()
        await world.assert_paid_exactly_once()


async def test_lost_transactions_are_sent_again_the_same_bytes(tmp_path: Path) -> None:
    async with settling_market(tmp_path) as world:
        await world.earn(77)
        await world.chain.localnet("torg_drop", [3])
        await world.settle_all()
        await world.assert_paid_exactly_once()


async def _order(world: SettlingMarket) -> SignedOrder:
    """What a node would have been given with the newest settlement."""
    async with world.market.reading() as unit:
        query = select(SettlementRow).order_by(SettlementRow.created_at_ms.desc(), SettlementRow.settlement_id.desc())
        row = (await unit.session.scalars(query.limit(1))).one()
    payees = [(account, amount) for account, (_, amount) in zip(row.token_accounts, row.payees, strict=True)]
    return signed_order(world.market, await world.newest_cap(), row.expected_settled, payees, Digest(row.root))


async def _land(world: SettlingMarket, order: SignedOrder) -> None:
    stranger = Keypair()
    await world.chain.faucet(stranger.pubkey(), 1)
    async with passing_slots(world.chain):
        for wallet in world.owed:
            await ensure_token_account(
                world.chain, world.market.network, Pubkey.from_string(wallet), fee_payer=stranger
            )
        await land_order(world.chain, world.market.network, order, fee_payer=stranger)


async def test_a_payee_lands_the_order_of_a_marketplace_that_is_away(tmp_path: Path) -> None:
    async with settling_market(tmp_path) as world:
        await world.earn(500)
        await settle_due(world.market, hurry=True)  # stored, and then it died
        await _land(world, await _order(world))
        await world.settle_all()
        await world.assert_paid_exactly_once()


async def test_an_order_that_was_buried_is_landed_while_a_newer_one_waits(tmp_path: Path) -> None:
    async with settling_market(tmp_path) as world:
        first = await world.earn(500)
        await settle_due(world.market, hurry=True)
        await world.chain.localnet("torg_drop", [1])
        await advance_settlements(world.market)  # sent, and lost
        old = await _order(world)
        await world.slots(200)
        await advance_settlements(world.market)  # buried
        await world.earn(70, first)
        await settle_due(world.market, hurry=True)  # a new one over both
        await _land(world, old)

        await world.settle_all()
        await world.assert_paid_exactly_once()
        assert await reconcile(world.market) == []


async def test_an_order_landed_during_a_downtime_is_noticed_by_the_watcher(tmp_path: Path) -> None:
    async with settling_market(tmp_path) as world:
        await world.earn(500)
        await settle_due(world.market, hurry=True)
        order = await _order(world)
        await world.slots(200)
        await advance_settlements(world.market)
        await world.slots(1)
        await advance_settlements(world.market)
        assert [state for _, state in await world.unpaid()] == ["pending"]  # buried, never sent
        await _land(world, order)

        await watch_vaults(world.market)
        await world.assert_paid_exactly_once()


async def test_a_capture_that_is_not_in_the_books_stops_the_vault(tmp_path: Path) -> None:
    async with settling_market(tmp_path) as world:
        wallet = await world.earn(500)
        await settle_due(world.market, hurry=True)
        order = await _order(world)
        foreign = signed_order(
            world.market,
            order.cap,
            order.expected_settled,
            [(item.token_account, item.amount - 1) for item in order.payees],
            order.root,
        )
        await _land(world, foreign)
        await world.slots(200)
        await advance_settlements(world.market)
        await advance_settlements(world.market)

        async with world.market.reading() as unit:
            row = await unit.session.get_one(VaultRow, world.vault)
        assert row.blocked is not None
        assert "captured 499 by an order that is not in the books" in row.blocked
        await settle_due(world.market, hurry=True)
        assert len(await world.unpaid()) == 1, f"{wallet} is still owed, and nothing is guessed"
