"""A receipt and the signature of its node: only that node's, and only over what was issued."""

from __future__ import annotations

import pytest

from tests.support.actors import Node, join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.receipts import on_receipt_signed
from torg_protocol.errors import Invalid, NotFound
from torg_protocol.ids import LeaseId
from torg_protocol.messages import ReceiptSigned
from torg_protocol.usage import verify_receipt


async def test_only_its_node_signs_a_receipt_and_only_as_it_was_issued(world: World) -> None:
    node, other = await join(world), await join(world, price=9_000_000)
    client = await make_client(world)
    job = await client.submit(spec())
    assert await match_pending(world.market) == 1
    await node.accept_and_start()
    world.advance(seconds=60)
    await node.finish()
    node.read()
    (issued,) = node.receipts
    receipt = issued.receipt
    right = ReceiptSigned(lease_id=receipt.lease_id, receipt_digest=receipt.digest, signature=receipt.sign(node.key))

    async def sign(who: Node, message: ReceiptSigned) -> None:
        async with world.market.transaction() as unit:
            await on_receipt_signed(unit, who.id, message)

    raised = receipt.model_copy(update={"amount": receipt.amount + 1})
    for wrong in (
        {"signature": receipt.sign(other.key)},
        {"signature": raised.sign(node.key)},
        {"receipt_digest": raised.digest},
    ):
        with pytest.raises(Invalid) as refused:
            await sign(node, right.model_copy(update=wrong))
        assert refused.value.code == "receipt_signature_invalid"
    for who, message in ((other, right), (node, right.model_copy(update={"lease_id": LeaseId("lease_none")}))):
        with pytest.raises(NotFound) as unknown:
            await sign(who, message)
        assert unknown.value.code == "receipt_unknown"
    assert [each.node_signature for each in await client.receipts(job.job_id)] == [None]

    for _ in range(2):  # safe to repeat
        await sign(node, right)
    (signed,) = await client.receipts(job.job_id)
    assert signed == issued.model_copy(update={"node_signature": right.signature})
    assert verify_receipt(signed, marketplace=world.market.public_key) == []
