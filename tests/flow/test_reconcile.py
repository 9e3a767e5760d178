"""Reconcile: a real difference stops the vault's payouts; one that is only two readings of a moving figure does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from solders.pubkey import Pubkey
from sqlalchemy import select

from tests.support.actors import TUSD, Client, Node, join, make_client, spec
from tests.support.market import World
from tests.support.money import open_vault
from torg_chain.errors import ChainBehind
from torg_chain.vault import VaultState, token_account_of
from torg_marketplace.flow.commitments import commit_lease
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.reconcile import lost_payouts, reconcile, unblock, watch_fee_payer, watch_vaults
from torg_marketplace.flow.settle import advance_settlements, settle_due
from torg_marketplace.flow.settlement_moves import bury
from torg_marketplace.flow.settlement_plan import make_plan
from torg_marketplace.flow.vaults import refresh_vault, vault_row
from torg_marketplace.storage import ledger
from torg_marketplace.storage.money_models import CapRow, PayoutRow, PostingRow, SettlementRow, VaultRow
from torg_protocol.errors import Conflict, NotFound
from torg_protocol.ids import LeaseId
from torg_protocol.messages import OrderIssued
from torg_protocol.states import PayoutState


async def _earn(world: World) -> tuple[Node, Client]:
    """Half a token of work is done, and not captured yet."""
    node = await join(world, price=3 * TUSD)
    client = await make_client(world, deposit=10 * TUSD)
    await client.submit(spec(limits={"max_duration": "1h"}))
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    world.advance(seconds=600)
    await node.exit()
    await node.ok(node.report(outputs={}))
    node.read()
    return node, client


async def _earn_and_send(world: World) -> Client:
    """A capture is sent, and final on chain; the books do not know that yet."""
    _, client = await _earn(world)
    await settle_due(world.market, hurry=True)
    await advance_settlements(world.market)
    return client


async def _blocked(world: World, client: Client) -> str | None:
    async with world.market.reading() as unit:
        return (await unit.session.get_one(VaultRow, client.vault)).blocked


async def test_a_capture_that_comes_to_rest_while_we_look_blocks_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await _earn_and_send(world)
    before = world.chain.vaults[client.vault]
    assert before.settled > 0
    stale = [replace(before, settled=0, balance=before.settled + before.balance)]
    read = world.chain.vault

    async def vault(address: str, *, min_slot: int = 0) -> VaultState | None:
        """The first reading is from just before the capture; the books learn of it before they are read."""
        if stale:
            state = stale.pop()
            await advance_settlements(world.market)
            return state
        return await read(address, min_slot=min_slot)

    monkeypatch.setattr(world.chain, "vault", vault)

    assert await reconcile(world.market) == []
    assert await _blocked(world, client) is None


async def test_money_that_left_without_a_capture_of_ours_blocks_the_vault(world: World) -> None:
    client = await _earn_and_send(world)
    await advance_settlements(world.market)
    state = world.chain.vaults[client.vault]
    world.chain.vaults[client.vault] = replace(state, balance=state.balance - 7)

    (difference,) = await reconcile(world.market)

    assert (difference.what, difference.chain - difference.books) == ("balance", -7)
    assert await _blocked(world, client) == str(difference)
    with pytest.raises(Conflict) as caught:
        await unblock(world.market, client.vault, because="I hope so")
    assert caught.value.code == "vault_differs"

    world.chain.vaults[client.vault] = state  # it was the RPC node
    await unblock(world.market, client.vault, because="the RPC node was behind")
    assert await _blocked(world, client) is None
    assert await reconcile(world.market) == []


async def test_a_payout_that_is_not_in_the_ledger_is_named(world: World) -> None:
    await _earn_and_send(world)
    await advance_settlements(world.market)
    async with world.market.transaction() as unit:
        payout = (await unit.session.scalars(select(PayoutRow).limit(1))).one()
        payout.state = "pending"  # as if it were to be paid a second time
        amount = payout.amount

    (difference,) = await reconcile(world.market)

    assert (difference.what, difference.books, difference.chain) == ("payable against payouts that wait", 0, amount)
    assert await settle_due(world.market, hurry=True) == 0


async def test_deposits_and_closings_by_any_wallet_are_booked_also_after_a_downtime(world: World) -> None:
    await join(world)
    client = await make_client(world, deposit=10 * TUSD)
    world.chain.deposit(client.vault, 5 * TUSD)  # a plain transfer, by whatever tool
    await watch_vaults(world.market)
    async with world.market.reading() as unit:
        assert await ledger.balance(unit.session, ledger.free(client.vault)) == 15 * TUSD

    world.advance(seconds=7 * 86_400)  # nobody was here
    closing = world.chain.vaults[client.vault]
    world.chain.vaults[client.vault] = replace(closing, close_at=world.clock.now_ms() // 1000 + 3_600)
    await watch_vaults(world.market)
    with pytest.raises(Conflict) as caught:
        await client.submit(spec())
    assert caught.value.code == "vault_closing"

    del world.chain.vaults[client.vault]  # taken back
    await watch_vaults(world.market)
    async with world.market.reading() as unit:
        assert await ledger.balance(unit.session, ledger.chain(client.vault)) == 0
        assert await ledger.problems(unit.session) == []
    assert await reconcile(world.market) == []


async def test_an_answer_from_before_a_deposit_takes_nothing_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two who look at once the slower one writes last; and nodes of one RPC address are not equally far."""
    client = await make_client(world, deposit=10 * TUSD)
    before = world.chain.vaults[client.vault]
    world.chain.deposit(client.vault, 5 * TUSD)
    read = world.chain.vault

    async def slow(_: str, **_asked: int) -> VaultState | None:
        monkeypatch.setattr(world.chain, "vault", read)
        await watch_vaults(world.market)
        return before

    monkeypatch.setattr(world.chain, "vault", slow)
    assert (await refresh_vault(world.market, client.vault)).chain_balance == 15 * TUSD
    await watch_vaults(world.market)
    async with world.market.reading() as unit:
        assert await ledger.balance(unit.session, ledger.free(client.vault)) == 15 * TUSD
    assert await reconcile(world.market) == []


async def test_a_node_behind_that_is_asked_twice_stops_no_payouts_and_lets_none_go_on(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Both looks may come to the same node."""
    _, client = await _earn(world)
    world.chain.fall_behind()
    await settle_due(world.market, hurry=True)
    await advance_settlements(world.market)
    await advance_settlements(world.market)

    await watch_vaults(world.market)
    assert await reconcile(world.market) == []

    assert await _blocked(world, client) is None
    assert "is not compared with the chain now: the RPC node is behind" in caplog.text
    with pytest.raises(ChainBehind) as caught:
        await unblock(world.market, client.vault, because="nothing differs, does it?")
    assert caught.value.code == "chain_behind"
    world.chain.behind = None
    assert await reconcile(world.market) == []
    await unblock(world.market, client.vault, because="nothing differs")


async def test_a_deposit_that_a_node_behind_has_not_seen_is_no_withdrawal(world: World) -> None:
    client = await make_client(world, deposit=10 * TUSD)
    world.chain.fall_behind()
    before, world.chain.behind = world.chain.behind, None
    world.chain.deposit(client.vault, 5 * TUSD)
    await watch_vaults(world.market)

    world.chain.behind = before
    assert await reconcile(world.market) == []
    assert await _blocked(world, client) is None


async def test_a_node_behind_does_not_take_a_closing_back(world: World) -> None:
    """Its totals are the same: only the slot of its answer tells that it is old."""
    await join(world)
    client = await make_client(world, deposit=10 * TUSD)
    world.chain.fall_behind()
    before, world.chain.behind = world.chain.behind, None
    closing = replace(world.chain.vaults[client.vault], close_at=world.clock.now_ms() // 1000 + 3_600)
    world.chain.vaults[client.vault], world.chain.height = closing, world.chain.height + 1
    await watch_vaults(world.market)

    world.chain.behind = before
    await watch_vaults(world.market)

    with pytest.raises(Conflict) as caught:
        await client.submit(spec())
    assert caught.value.code == "vault_closing"


async def test_a_vault_is_not_closed_because_a_node_behind_has_not_seen_its_opening(world: World) -> None:
    world.chain.fall_behind()
    before, world.chain.behind, world.chain.height = world.chain.behind, None, world.chain.height + 1
    client = await make_client(world, deposit=10 * TUSD)

    world.chain.behind = before
    await watch_vaults(world.market)

    async with world.market.reading() as unit:
        assert not (await unit.session.get_one(VaultRow, client.vault)).closed
        assert await ledger.balance(unit.session, ledger.free(client.vault)) == 10 * TUSD


async def test_captures_that_a_node_behind_does_not_list_are_waited_for(world: World) -> None:
    """Of two nodes behind one address the one that tells of the vault was further than the one that lists its transactions."""
    client = await _earn_and_send(world)
    async with world.market.transaction() as unit:
        (settlement,) = await unit.session.scalars(select(SettlementRow))
        await bury(unit, settlement.settlement_id, "as if it had never landed")
    world.chain.history_behind = world.chain.height - 1

    await watch_vaults(world.market)
    (difference,) = await reconcile(world.market)
    assert (difference.what, difference.books) == ("captured", 0)
    assert await _blocked(world, client) is None

    world.chain.history_behind = None
    assert await reconcile(world.market) == []
    assert await _blocked(world, client) is None


async def test_a_vault_that_is_opened_while_we_look_for_it_is_not_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await make_client(world, deposit=10 * TUSD)
    other, read = await make_client(world), world.chain.vault
    new = open_vault(
        world.chain, world.market.network, depositor=other.key.pubkey(), signer=client.key.pubkey(), balance=TUSD
    )

    async def not_yet(_: str, **_asked: int) -> VaultState | None:
        monkeypatch.setattr(world.chain, "vault", read)
        await refresh_vault(world.market, new)
        return None

    monkeypatch.setattr(world.chain, "vault", not_yet)
    with pytest.raises(NotFound) as unknown:
        await refresh_vault(world.market, new)
    assert unknown.value.code == "vault_unknown"
    async with world.market.reading() as unit:
        assert not (await unit.session.get_one(VaultRow, new)).closed
        assert await ledger.balance(unit.session, ledger.free(new)) == TUSD


async def test_captures_and_grants_carry_no_cap_of_a_key_that_was_replaced(world: World) -> None:
    """Though it is higher, and lives for longer: the program would refuse it, each time."""
    _, client = await _earn(world)
    new, now_s = world.random.keypair(), world.clock.now_ms() // 1000
    async with world.market.transaction() as unit:
        row = await vault_row(unit, client.vault)
        row.next_signer, row.next_signer_at_s = str(new.pubkey()), now_s
        old = (await unit.session.scalars(select(CapRow).where(CapRow.vault == client.vault))).one()
        values = {"vault": client.vault, "cap": old.cap - 1, "valid_until_s": old.valid_until_s - 1}
        unit.session.add(CapRow(**values, signer=str(new.pubkey()), signature="of the new one"))
    async with world.market.transaction() as unit:
        plan = await make_plan(unit, client.vault)
        ids = {"lease_id": LeaseId("lease_next"), "payout_address": str(new.pubkey())}
        _, _, granted = await commit_lease(unit, vault=client.vault, max_amount=1, **ids)
        await unit.session.rollback()
    assert plan is not None
    assert [plan.cap.signature, granted.signature] == ["of the new one"] * 2


async def test_what_a_closed_vault_still_owed_is_written_off_once_with_its_cause(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    _, client = await _earn(world)
    earned = 500_000

    del world.chain.vaults[client.vault]  # its depositor was faster than any capture
    await watch_vaults(world.market)
    await watch_vaults(world.market)

    assert await lost_payouts(world.market) == {client.vault: earned}
    assert f"{earned} base units were earned and not captured: they are lost" in caplog.text
    assert await settle_due(world.market, hurry=True) == 0
    async with world.market.reading() as unit:
        payouts = (await unit.session.scalars(select(PayoutRow))).all()
        assert {payout.state for payout in payouts} == {PayoutState.LOST}
        assert {payout.note for payout in payouts} == {"the vault was closed before it was captured"}
        postings = (await unit.session.scalars(select(PostingRow.cause).where(PostingRow.key.like("lost:%")))).all()
        assert set(postings) == {"lost: the vault was closed before it was captured"}
        assert len(postings) == len(payouts)
        assert await ledger.balance(unit.session, ledger.chain(client.vault)) == 0
        assert await ledger.problems(unit.session) == []
    assert await reconcile(world.market) == []


async def test_what_was_captured_before_the_closing_is_no_loss_although_nobody_had_booked_it(world: World) -> None:
    client = await _earn_and_send(world)
    del world.chain.vaults[client.vault]
    await watch_vaults(world.market)
    for _ in range(4):
        await advance_settlements(world.market)
    await watch_vaults(world.market)

    assert await lost_payouts(world.market) == {}
    async with world.market.reading() as unit:
        states = {str(state) for state in await unit.session.scalars(select(PayoutRow.state))}
        assert states == {"finalized"}
        assert await ledger.problems(unit.session) == []


async def test_a_capture_that_never_lands_before_the_closing_is_given_up_and_written_off(world: World) -> None:
    world.chain.lose_next = 100
    client = await _earn_and_send(world)
    del world.chain.vaults[client.vault]
    await watch_vaults(world.market)
    await advance_settlements(world.market)
    assert await lost_payouts(world.market) == {}, "it may still have landed before"

    world.chain.height += 10_000
    await advance_settlements(world.market)
    await watch_vaults(world.market)

    assert await lost_payouts(world.market) == {client.vault: 500_000}
    assert await advance_settlements(world.market) == 0, "nothing is in flight any more"
    async with world.market.reading() as unit:
        assert {str(state) for state in await unit.session.scalars(select(PayoutRow.state))} == {"lost"}
        assert await ledger.balance(unit.session, ledger.chain(client.vault)) == 0
        assert await ledger.problems(unit.session) == []


async def test_an_operator_is_told_when_fees_run_out(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await watch_fee_payer(world.market)
    assert caplog.records == []
    world.chain.fee_payer_lamports = world.market.policy.fee_payer_low_lamports - 1
    await watch_fee_payer(world.market)
    assert "without fees nothing is settled" in caplog.text


async def test_a_node_that_was_away_gets_the_orders_that_pay_it_when_it_is_back(world: World) -> None:
    node, _ = await _earn(world)
    await node.disconnect()
    await settle_due(world.market, hurry=True)

    await node.connect()
    (order,) = [message.order for message in node.read() if isinstance(message, OrderIssued)]

    assert order.problems(world.market.network.chain_id) == []
    mine = token_account_of(Pubkey.from_string(node.offer.payout_address), world.market.network.mint_pubkey)
    assert {item.token_account: item.amount for item in order.payees}[str(mine)] == 490_000
    await advance_settlements(world.market)
    await advance_settlements(world.market)
    await node.disconnect()
    await node.connect()
    assert not [message for message in node.read() if isinstance(message, OrderIssued)], "it was landed"
