"""Group commit: those who wait together share a transaction, and nothing else."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import IntegrityError

from tests.support.actors import join
from tests.support.market import World
from tests.support.waiting import until
from torg_marketplace.flow.blobs import note_upload
from torg_marketplace.flow.unit import Unit
from torg_marketplace.stages import STAGES
from torg_marketplace.storage.models import BlobUploadRow
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import Conflict
from torg_protocol.ids import LeaseId, NodeId
from torg_protocol.messages import Abandon

SOMEBODY = NodeId("somebody")


class Uploads:
    """Pieces of work that leave a trace each, and remember in which transaction."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.units: dict[str, list[Unit]] = {}

    async def note(self, name: str, *, fail: Exception | None = None, twice: bool = False) -> str:
        async def work(unit: Unit) -> str:
            self.units.setdefault(name, []).append(unit)
            await note_upload(unit, SOMEBODY, sha256_digest(name.encode()), len(name))
            if twice:  # a key that is there already: told only when it is written
                unit.session.add(
                    BlobUploadRow(digest=sha256_digest(name.encode()), account=SOMEBODY, size_bytes=1, at_ms=1)
                )
            if fail is not None:
                raise fail
            return name

        return await self.world.market.shared(work, stage="tests")

    async def stored(self) -> list[int]:
        async with self.world.market.reading() as unit:
            return sorted((await unit.session.scalars(select(BlobUploadRow.size_bytes))).all())


async def test_those_who_wait_share_one_transaction(world: World) -> None:
    uploads, commits = Uploads(world), []
    engine = world.market.sessions.kw["bind"].sync_engine
    async with world.market.writer:  # somebody else's transaction
        pieces = [asyncio.create_task(uploads.note("x" * size)) for size in (1, 2, 3)]
        await until(lambda: world.market.crowd.waiting == 3)
        event.listen(engine, "commit", commits.append)
    assert await asyncio.gather(*pieces) == ["x", "xx", "xxx"]

    assert len(commits) == 1
    assert len({unit for units in uploads.units.values() for unit in units}) == 1
    assert await uploads.stored() == [1, 2, 3]
    assert STAGES["tests"].calls >= 3


async def test_an_error_is_its_authors_alone(world: World) -> None:
    """Of a flow, and of the database at the commit; the others are done once."""
    uploads = Uploads(world)
    async with world.market.writer:
        pieces = [
            asyncio.create_task(piece)
            for piece in (
                uploads.note("x"),
                uploads.note("xx", fail=Conflict("no", code="moved_meanwhile")),
                uploads.note("xxx"),
                uploads.note("xxxx", twice=True),
            )
        ]
        await until(lambda: world.market.crowd.waiting == 4)
    answers = await asyncio.gather(*pieces, return_exceptions=True)

    assert [answers[0], answers[2]] == ["x", "xxx"]
    assert isinstance(answers[1], Conflict)
    assert isinstance(answers[3], IntegrityError)
    assert await uploads.stored() == [1, 3]
    assert len({units[-1] for units in uploads.units.values()}) == 4, "each by itself the second time"
    assert await uploads.note("xxxxx") == "xxxxx"  # and the next is not held up by them


async def test_messages_leave_after_the_common_commit(world: World) -> None:
    nodes = [await join(world) for _ in range(2)]
    seen = []

    async def work(unit: Unit, number: int) -> None:
        unit.send(nodes[number].id, Abandon(lease_id=LeaseId(f"lease_{number}")))
        seen.append(world.links.unread())

    async with world.market.writer:
        pieces = [
            asyncio.create_task(world.market.shared(lambda unit, number=number: work(unit, number), stage="tests"))
            for number in range(2)
        ]
        await until(lambda: world.market.crowd.waiting == 2)
    await asyncio.gather(*pieces)
    assert seen == [[], []]
    assert [node.expect(Abandon).lease_id for node in nodes] == ["lease_0", "lease_1"]


async def test_who_is_cancelled_takes_nobody_along(world: World) -> None:
    """The first one, who leads the others, and one who only waits and has not been there then."""
    uploads = Uploads(world)
    async with world.market.writer:
        first, second, third = (asyncio.create_task(uploads.note("x" * size)) for size in (1, 2, 3))
        await until(lambda: world.market.crowd.waiting == 3)
        first.cancel()
        second.cancel()
        await until(second.done)  # the first one has begun a transaction, which it ends
    answers = await asyncio.gather(first, second, third, return_exceptions=True)

    assert [type(answer) for answer in answers] == [asyncio.CancelledError, asyncio.CancelledError, str]
    assert await uploads.stored() == [1, 3]


async def test_shared_work_inside_a_transaction_is_refused(world: World) -> None:
    """It would wait for itself for ever."""
    async with world.market.transaction() as _:
        with pytest.raises(RuntimeError, match="open in this task already"):
            await Uploads(world).note("x")
