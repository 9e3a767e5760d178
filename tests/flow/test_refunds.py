"""Refunds as a client and a node meet them: before the capture, after it, twice, too much, and while an old order may still land."""

from __future__ import annotations

import pytest

from tests.support.actors import TUSD, Client, Node, join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.api_keys import create_api_key
from torg_marketplace.flow.credit import grant_credit
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.reconcile import reconcile
from torg_marketplace.flow.refunds import refund_lease, refunds_of
from torg_marketplace.flow.settle import advance_settlements, settle_due
from torg_marketplace.flow.settlement_plan import build, make_plan
from torg_marketplace.flow.statements import statement
from torg_marketplace.storage import ledger
from torg_marketplace.storage.account_models import ApiKeyRow, CreditHoldRow, CreditRow
from torg_marketplace.storage.models import LeaseRow
from torg_marketplace.storage.money_models import HoldRow, VaultRow
from torg_protocol.accounts import ApiKeyRequest
from torg_protocol.api import Statement
from torg_protocol.errors import Conflict, Invalid, TorgError, Unavailable
from torg_protocol.ids import LeaseId
from torg_protocol.messages import RefundIssued
from torg_protocol.refunds import RefundCause, SignedRefund

HOUR_S = 3600
FEE = 20_000  # of a job of one token, at 2 %


async def an_hour(world: World, node: Node, client: Client) -> LeaseId:
    """One job of one hour for one token, ended and decided, not captured."""
    await client.submit(spec(limits={"max_duration": "1h"}))
    await match_pending(world.market)
    await node.accept_and_start()
    lease_id = node.lease.grant.lease_id
    world.advance(seconds=HOUR_S)
    await node.finish()
    node.read()
    return lease_id


async def capture(world: World, node: Node) -> None:
    await settle_due(world.market, hurry=True)
    await advance_settlements(world.market)
    await advance_settlements(world.market)
    node.read()  # its orders


async def give_back(
    world: World, lease_id: str, amount: int, cause: RefundCause = RefundCause.DISPUTE, subject: str | None = None
) -> SignedRefund:
    async with world.market.transaction() as unit:
        return await refund_lease(unit, lease_id, amount, cause, subject=subject, note="a test")


async def told(world: World, client: Client) -> Statement:
    async with world.market.reading() as unit:
        until = world.clock.now_ms() + 1
        return await statement(unit, client.account, client.vault, since_ms=0, until_ms=until, cursor=None, limit=200)


async def assert_books_hold(world: World) -> None:
    async with world.market.reading() as unit:
        assert await ledger.problems(unit.session) == []
    assert await reconcile(world.market) == []


async def test_before_the_capture_it_is_simply_not_captured(world: World) -> None:
    node, client = await join(world, price=TUSD), await make_client(world, deposit=10 * TUSD)
    lease_id = await an_hour(world, node, client)
    signed = await give_back(world, lease_id, 400_000)
    assert signed.problems(marketplace=world.market.public_key) == []
    assert (signed.refund.from_node, signed.refund.from_fees, signed.refund.credit) == (392_000, 8_000, 0)
    assert node.expect(RefundIssued).refund == signed
    assert await give_back(world, lease_id, 400_000) == signed  # safe to repeat: nothing moves
    await capture(world, node)
    async with world.market.reading() as unit:
        vault = await unit.session.get_one(VaultRow, client.vault)
        assert (vault.chain_settled, vault.final_total, vault.credit) == (600_000, 600_000, 0)
        page = await refunds_of(unit, client.account)
    assert [(item.signed, item.outstanding) for item in page.refunds] == [(signed, 0)]
    line = next(line for line in (await told(world, client)).lines if line.refund is not None)
    assert (line.refund, line.moved.free, line.moved.owed) == (RefundCause.DISPUTE, 400_000, -400_000)
    await assert_books_hold(world)


async def test_all_of_it_leaves_no_payout_behind(world: World) -> None:
    node, client = await join(world, price=TUSD), await make_client(world)
    lease_id = await an_hour(world, node, client)
    await give_back(world, lease_id, TUSD)
    node.expect(RefundIssued)
    await capture(world, node)
    assert world.chain.sends == []
    async with world.market.reading() as unit:
        assert (await unit.session.get_one(VaultRow, client.vault)).final_total == 0
    await assert_books_hold(world)


async def test_after_the_capture_it_is_credit_that_later_fees_work_off(world: World) -> None:
    node, client = await join(world, price=TUSD), await make_client(world, deposit=10 * TUSD)
    lease_id = await an_hour(world, node, client)
    await capture(world, node)
    signed = await give_back(world, lease_id, FEE + 5_000)
    assert signed.refund.credit == FEE + 5_000
    assert (await told(world, client)).closing.credit == FEE + 5_000
    for left in (5_000, 0):
        await an_hour(world, node, client)
        await capture(world, node)
        assert (await told(world, client)).closing.credit == left
    async with world.market.reading() as unit:
        vault = await unit.session.get_one(VaultRow, client.vault)
    assert vault.chain_settled == 3 * TUSD - FEE - 5_000
    assert vault.final_total == vault.chain_settled
    await assert_books_hold(world)


async def test_after_the_capture_the_nodes_waiting_payouts_of_this_vault_carry_its_share(world: World) -> None:
    node, client = await join(world, price=TUSD), await make_client(world)
    first = await an_hour(world, node, client)
    await capture(world, node)
    await an_hour(world, node, client)
    signed = await give_back(world, first, 500_000)
    assert node.expect(RefundIssued).refund == signed
    assert (signed.refund.from_node, signed.refund.from_fees, signed.refund.credit) == (490_000, 10_000, 0)
    await capture(world, node)
    await assert_books_hold(world)


async def test_our_own_fault_is_paid_from_fees_alone(world: World) -> None:
    node, client = await join(world, price=TUSD), await make_client(world)
    lease_id = await an_hour(world, node, client)
    signed = await give_back(world, lease_id, 100_000, RefundCause.MARKETPLACE_FAULT)
    assert (signed.refund.from_node, signed.refund.from_fees, signed.refund.credit) == (0, FEE, 100_000 - FEE)
    await capture(world, node)
    assert sum(world.chain.paid.values()) == TUSD - FEE, "the node is paid in full"
    await assert_books_hold(world)


async def test_never_more_than_was_paid_and_one_amount_per_subject(world: World) -> None:
    node, client = await join(world, price=TUSD), await make_client(world)
    lease_id = await an_hour(world, node, client)

    async def refused(amount: int, subject: str | None = None, expected: type[TorgError] = Conflict) -> str:
        with pytest.raises(expected) as caught:
            await give_back(world, lease_id, amount, subject=subject)
        return caught.value.code

    await give_back(world, lease_id, 700_000)
    node.expect(RefundIssued)
    assert await refused(300_000) == "refund_repeated"
    assert await refused(300_001, "two") == "refund_too_large"
    assert await refused(0, "three", Invalid) == "refund_amount_invalid"
    await give_back(world, lease_id, 300_000, subject="four")
    node.expect(RefundIssued)
    await assert_books_hold(world)


async def test_a_lease_that_is_not_decided_cannot_be_given_back(world: World) -> None:
    node, client = await join(world), await make_client(world)
    await client.submit(spec())
    await match_pending(world.market)
    await node.accept_and_start()
    with pytest.raises(Conflict) as caught:
        await give_back(world, node.lease.grant.lease_id, 1)
    assert caught.value.code == "refund_too_early"


async def test_what_an_order_pays_that_may_still_land_is_left_alone(world: World) -> None:
    """Its transaction is dead, but whoever holds the order may land it: the payout must stay what the order says."""
    node, client = await join(world, price=TUSD), await make_client(world)
    lease_id = await an_hour(world, node, client)
    world.chain.lose_next = 1
    await settle_due(world.market, hurry=True)
    await advance_settlements(world.market)
    world.chain.expire_blockhashes()
    await advance_settlements(world.market)
    signed = await give_back(world, lease_id, 100_000)
    assert signed.refund.credit == 100_000
    await capture(world, node)
    await assert_books_hold(world)


async def test_a_refund_between_plan_and_order_makes_the_plan_void(world: World) -> None:
    node, client = await join(world, price=TUSD), await make_client(world)
    lease_id = await an_hour(world, node, client)
    async with world.market.reading() as unit:
        plan = await make_plan(unit, client.vault)
    assert plan is not None
    await give_back(world, lease_id, 100_000)
    node.expect(RefundIssued)
    with pytest.raises(Unavailable) as caught:
        await build(world.market, plan)
    assert caught.value.code == "settlement_raced"
    await capture(world, node)
    async with world.market.reading() as unit:
        assert (await unit.session.get_one(VaultRow, client.vault)).chain_settled == 900_000
    await assert_books_hold(world)


async def test_while_the_job_is_open_it_is_held_again_and_released_with_the_rest(world: World) -> None:
    node, client = await join(world, price=TUSD), await make_client(world)
    lease_id = await an_hour(world, node, client)
    await capture(world, node)
    await client.submit(spec(limits={"max_duration": "2h"}, checkpoint={"enabled": True}))
    await match_pending(world.market)
    await node.accept_and_start()
    open_lease = node.lease.grant.lease_id
    world.advance(seconds=HOUR_S)
    await node.checkpoint()
    await node.ok(node.claim())  # the open job's first hour waits for its capture now
    node.read()
    signed = await give_back(world, lease_id, TUSD)
    assert signed.refund.credit == 0
    async with world.market.reading() as unit:
        job_id = (await unit.session.get_one(LeaseRow, open_lease)).job_id
        assert (await unit.session.get_one(HoldRow, job_id)).refunded > 0
    await node.finish()
    node.read()
    await capture(world, node)
    async with world.market.reading() as unit:
        assert await ledger.balance(unit.session, ledger.held(job_id)) == 0
        assert (await unit.session.get_one(VaultRow, client.vault)).final_total == TUSD
    await assert_books_hold(world)


async def test_a_node_that_was_away_is_told_at_its_next_hello(world: World) -> None:
    node, client = await join(world, price=TUSD), await make_client(world)
    lease_id = await an_hour(world, node, client)
    await node.disconnect()
    signed = await give_back(world, lease_id, 100_000)
    world.links.take_all(node.id)
    await node.connect()
    assert [message.refund for message in node.read() if isinstance(message, RefundIssued)] == [signed]


async def test_a_job_of_an_api_key_is_given_back_to_its_account(world: World) -> None:
    node, client = await join(world, price=TUSD), await make_client(world)
    lease_id = await an_hour(world, node, client)
    async with world.market.transaction() as unit:
        await grant_credit(unit, client.account, 5 * TUSD)
        key = (await create_api_key(unit, client.account, ApiKeyRequest(name="ci", spend_cap=5 * TUSD))).key.key_id
        (await unit.session.get_one(ApiKeyRow, key)).spent = TUSD
        credit = await unit.session.get_one(CreditRow, client.account)
        credit.spent = TUSD
        job_id = (await unit.session.get_one(LeaseRow, lease_id)).job_id
        unit.session.add(CreditHoldRow(job_id=job_id, account=client.account, key_id=key, max_amount=TUSD, open=False))
    await give_back(world, lease_id, 250_000)
    node.expect(RefundIssued)
    async with world.market.reading() as unit:
        assert (await unit.session.get_one(CreditRow, client.account)).spent == 750_000
        assert (await unit.session.get_one(ApiKeyRow, key)).spent == 750_000
