"""What verification costs: in the quote, in what is held and committed, in the books, in receipt and statement; nothing for work that fails."""

from __future__ import annotations

from sqlalchemy import select

from tests.support.actors import Client, Node, join, let_pass, make_client
from tests.support.catalogue import metric_spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.statements import statement
from torg_marketplace.flow.verify import verify_pending
from torg_marketplace.storage import ledger
from torg_marketplace.storage.money_models import CommitmentRow, PayoutRow
from torg_protocol.ids import JobId
from torg_protocol.states import JobState
from torg_protocol.usage import verify_receipt

PRICE = 3_600_000  # one base unit per useful millisecond
WEIGHTS = {"model.safetensors": b"weights"}


async def fee_payouts(world: World) -> list[int]:
    async with world.market.reading() as unit:
        assert await ledger.problems(unit.session) == []
        query = select(PayoutRow.amount).where(PayoutRow.payout_address == "fee")
        return sorted(await unit.session.scalars(query))


async def committed(world: World) -> int:
    async with world.market.reading() as unit:
        (row,) = (await unit.session.scalars(select(CommitmentRow))).all()
        return row.upper - row.lower


async def started(world: World, **changes: object) -> tuple[Client, Node, JobId]:
    node, client = await join(world, price=PRICE), await make_client(world)
    job = await client.submit(metric_spec(world, **changes))
    await match_pending(world.market)
    await node.accept_and_start()
    return client, node, job.job_id


async def test_it_is_in_quote_hold_range_books_receipt_and_statement(world: World) -> None:
    node, client = await join(world, price=PRICE), await make_client(world)
    raw = metric_spec(world, limits={"max_duration": "100s"})
    quoted = await client.quote(raw)
    assert (quoted.max_amount, quoted.verification_amount) == (101_000, 1_000)
    job = await client.submit(raw, quote=quoted)
    assert job.max_amount == 101_000
    await match_pending(world.market)
    await node.accept_and_start()
    assert node.lease.grant.max_amount == 100_000, "for useful time"
    assert await committed(world) == 101_000

    world.advance(seconds=60)
    await node.finish(outputs=WEIGHTS)
    world.evaluator.will_measure(accuracy="0.97")
    await verify_pending(world.market)
    node.read()
    view = await client.job(job.job_id)
    assert (view.final_amount, view.leases[0].amount, view.leases[0].verification_amount) == (60_600, 60_600, 600)
    (receipt,) = await client.receipts(job.job_id)
    assert verify_receipt(receipt, marketplace=world.market.public_key) == []
    assert (receipt.receipt.amount, receipt.receipt.verification_amount) == (60_600, 600)
    assert await fee_payouts(world) == [600, 1_200], "the price of verification, and the fee"
    assert await committed(world) == 60_600
    async with world.market.reading() as unit:
        found = await statement(unit, client.account, client.vault, since_ms=0, until_ms=2**60, cursor=None, limit=50)
    (line,) = [line for line in found.lines if line.cause == "price of verification"]
    assert (line.moved.held, line.moved.owed, line.job_id) == (-600, 600, job.job_id)


async def test_the_clients_own_limit_holds_with_it(world: World) -> None:
    client, node, job_id = await started(world, limits={"max_duration": "100s", "max_cost": "0.05"})
    assert node.lease.grant.max_amount == 49_504, "a hundredth of it is kept for verification"
    world.advance(seconds=90)
    await node.finish(outputs=WEIGHTS)
    world.evaluator.will_measure(accuracy="0.97")
    await verify_pending(world.market)
    node.read()
    assert (await client.job(job_id)).final_amount == 49_504 + 495


async def test_work_that_is_not_paid_pays_no_verification_either(world: World) -> None:
    client, node, job_id = await started(world, retry={"max_attempts": 1})
    world.advance(seconds=60)
    await node.finish(outputs=WEIGHTS)
    world.evaluator.will_measure(accuracy="0.5")
    await verify_pending(world.market)
    node.read()
    view = await client.job(job_id)
    assert (view.state, view.final_amount) == (JobState.FAILED, 0)
    assert await fee_payouts(world) == []


async def test_an_earlier_attempt_keeps_what_its_verification_will_cost(world: World) -> None:
    """Its seconds wait for the verdict on a later one, which must not be granted the money for that."""
    first, second = await join(world, price=PRICE), await join(world, price=PRICE + 1)
    client = await make_client(world)
    limits = {"max_duration": "100s", "max_cost": "0.05"}
    job = await client.submit(metric_spec(world, lease_grace="20s", checkpoint={"enabled": True}, limits=limits))
    await match_pending(world.market)
    await first.accept_and_start()
    await let_pass(world, seconds=30, nodes=(first, second))
    await first.checkpoint()
    await let_pass(world, seconds=30, nodes=(second,))
    first.read()
    await match_pending(world.market)
    await second.accept_and_start()
    left = 50_000 - 30_000 - 300
    assert second.lease.grant.max_amount == left * 1000 // 1010
    world.advance(seconds=40)
    await second.finish(outputs=WEIGHTS)
    world.evaluator.will_measure(accuracy="0.97")
    await verify_pending(world.market)
    first.read()
    second.read()
    final = (await client.job(job.job_id)).final_amount
    assert final is not None
    assert 49_990 < final <= 50_000
