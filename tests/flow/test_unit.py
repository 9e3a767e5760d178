"""The unit of work: what is queued leaves after the commit, or not at all."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
from sqlalchemy import event, inspect, select, text
from sqlalchemy.exc import DBAPIError

from tests.support.actors import join, make_client, spec
from tests.support.market import World, open_world
from tests.support.postgres import Postgres
from torg_marketplace.flow.blobs import may_read_blob, note_upload
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage import ledger
from torg_marketplace.storage.engine import Sessions, create_engine
from torg_marketplace.storage.models import BlobUploadRow, JobRow, NodeEventRow
from torg_marketplace.storage.money_models import HoldRow, VaultRow
from torg_marketplace.storage.moves import MovedMeanwhile, move_job
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import Unavailable
from torg_protocol.ids import LeaseId
from torg_protocol.messages import Abandon
from torg_protocol.states import IllegalMove, JobState

DIGEST = sha256_digest(b"blob")
ABANDON = Abandon(lease_id=LeaseId("lease_x"))


async def uploads(world: World) -> int:
    async with world.market.reading() as unit:
        return len((await unit.session.scalars(select(BlobUploadRow))).all())


async def test_messages_and_wakes_leave_after_the_commit(world: World) -> None:
    node = await join(world)
    waiter = world.market.wakes.arm("match")
    async with world.market.transaction() as unit:
        unit.send(node.id, ABANDON)
        unit.wake("match")
        assert world.links.unread() == []
    assert await waiter.wait(1)
    assert node.expect(Abandon) == ABANDON


async def test_nothing_leaves_when_it_is_rolled_back(world: World) -> None:
    node = await join(world)
    waiter = world.market.wakes.arm("match")

    async def fail() -> None:
        async with world.market.transaction() as unit:
            await note_upload(unit, node.id, DIGEST, 4)
            unit.send(node.id, ABANDON)
            unit.wake("match")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert not await waiter.wait(0)
    assert node.read() == []
    assert await uploads(world) == 0


async def test_a_savepoint_takes_its_messages_back(world: World) -> None:
    node = await join(world)

    async def fail(unit: Unit) -> None:
        async with unit.savepoint():
            await note_upload(unit, node.id, DIGEST, 4)
            unit.send(node.id, ABANDON)
            raise ZeroDivisionError

    async with world.market.transaction() as unit:
        with pytest.raises(ZeroDivisionError):
            await fail(unit)
    assert node.read() == []
    assert await uploads(world) == 0


async def test_a_transaction_in_a_transaction_is_refused_instead_of_waiting_for_itself(world: World) -> None:
    async with world.market.transaction():
        with pytest.raises(RuntimeError, match="open in this task already"):
            async with world.market.transaction():
                pass
    async with world.market.transaction() as unit:
        assert unit.now_ms == world.clock.now_ms()


async def test_readers_do_not_wait_for_the_writer(world: World) -> None:
    async with world.market.transaction() as unit:
        await note_upload(unit, "somebody", DIGEST, 4)
        await unit.session.flush()
        async with asyncio.timeout(60):
            assert await uploads(world) == 0
    assert await uploads(world) == 1


async def test_writers_wait_for_each_other(world: World) -> None:
    async def add(number: int) -> None:
        async with world.market.transaction() as unit:
            before = len((await unit.session.scalars(select(BlobUploadRow))).all())
            await asyncio.sleep(0)
            await note_upload(unit, f"party{before}", DIGEST, number)

    await asyncio.gather(*(add(number) for number in range(20)))
    assert await uploads(world) == 20


async def test_writers_of_other_processes_wait_too(world: World, tmp_path: Path, database_url: str) -> None:
    """A second engine on the same database stands for a second process."""

    async def add(market: Market, number: int) -> None:
        async with market.transaction() as unit:
            before = len((await unit.session.scalars(select(BlobUploadRow))).all())
            await asyncio.sleep(0.01)
            await note_upload(unit, f"party{before}", DIGEST, number)

    async with open_world(tmp_path, database_url=database_url) as other:
        await asyncio.gather(*(add(each.market, number) for number in range(10) for each in (world, other)))
        assert await uploads(other) == 20


async def test_a_transaction_that_reads_cannot_write_on_postgresql(postgres: Postgres, tmp_path: Path) -> None:
    """SQLite's cannot either: nobody commits for them."""
    async with open_world(tmp_path, database_url=postgres.new_database()) as world, world.market.reading() as unit:
        await note_upload(unit, "somebody", DIGEST, 4)
        with pytest.raises(DBAPIError, match="read-only transaction"):
            await unit.session.flush()


async def test_of_two_deciders_one_wins(world: World) -> None:
    await join(world)
    client = await make_client(world)
    job = await client.submit(spec())
    async with world.market.reading() as unit:
        seen = await unit.session.get_one(JobRow, job.job_id)
    await match_pending(world.market)
    async with world.market.transaction() as unit:
        with pytest.raises(MovedMeanwhile):
            await move_job(unit.session, seen, JobState.EXPIRED, at_ms=0)
    assert (await client.job(job.job_id)).state is JobState.LEASED
    world.links.take_all(next(iter(world.links.connected())))


async def test_moves_that_the_table_does_not_know_are_refused(world: World) -> None:
    await join(world)
    client = await make_client(world)
    job = await client.submit(spec())
    with pytest.raises(IllegalMove):
        async with world.market.transaction() as unit:
            await move_job(unit.session, await unit.session.get_one(JobRow, job.job_id), JobState.SUCCEEDED, at_ms=0)


async def test_who_may_read_a_blob(world: World) -> None:
    node, stranger = await join(world), await join(world, price=10**9)
    client = await make_client(world)
    workspace = world.blobs.put(b"workspace")
    async with world.market.transaction() as unit:
        await note_upload(unit, "uploader", workspace.digest, workspace.size_bytes)
    await client.submit(spec(workspace=workspace.model_dump(mode="json")))

    async def readers() -> list[bool]:
        parties = ("uploader", client.account, node.id, stranger.id)
        async with world.market.reading() as unit:
            return [await may_read_blob(unit, party, workspace.digest) for party in parties]

    assert await readers() == [True, True, False, False]
    await match_pending(world.market)
    await node.accept_and_start()
    assert await readers() == [True, True, True, False]
    await node.finish()
    node.read()
    assert await readers() == [True, True, False, False]


async def test_a_writer_that_has_fallen_silent_is_ended(postgres: Postgres, tmp_path: Path) -> None:
    """A process that was frozen in a transaction would keep everybody else from writing for as long as it is."""
    url = postgres.new_database()
    stuck = create_engine(url, stuck_after_s=0.5)
    try:
        async with open_world(tmp_path, database_url=url) as world, stuck.connect() as connection:
            await connection.execute(text("SELECT 1"))  # from here on it holds the writers' lock
            async with asyncio.timeout(60), world.market.transaction() as unit:
                await note_upload(unit, "somebody", DIGEST, 4)
            with pytest.raises(DBAPIError):
                await connection.execute(text("SELECT 1"))
            await connection.invalidate()
    finally:
        await stuck.dispose()


async def test_a_database_that_is_not_there_is_said_so(world: World, tmp_path: Path) -> None:
    engine = create_engine(f"postgresql+asyncpg://nobody@/nothing?host={tmp_path}")
    away = dataclasses.replace(world.market, sessions=Sessions(engine))
    try:
        for opened in (away.reading, away.transaction):
            with pytest.raises(Unavailable) as gone:
                async with opened() as unit:
                    await unit.session.execute(text("SELECT 1"))
            assert gone.value.code == "database_unavailable"
    finally:
        await engine.dispose()


async def test_rows_are_written_at_the_end_parents_first_and_found_before(world: World) -> None:
    client = await make_client(world)
    async with world.market.transaction() as unit:
        statements = [0]
        event.listen(unit.session.sync_session, "before_flush", lambda *_: statements.append(1))
        hold = HoldRow(job_id="job", vault="new", max_amount=1, billed=0, refunded=0, open=True)
        unit.session.add(hold)  # refers to a vault that is added after it
        unit.session.add(vault_like(await unit.session.get_one(VaultRow, client.vault), "new"))
        assert await unit.session.get(HoldRow, "job") is hold
        assert await unit.session.get(HoldRow, "other") is None
        assert unit.known(HoldRow, "job") is hold
        assert sum(statements) == 0
    async with world.market.reading() as unit:
        assert (await unit.session.get_one(HoldRow, "job")).vault == "new"


async def test_what_a_savepoint_takes_back_is_not_known_any_more(world: World) -> None:
    client = await make_client(world)
    async with world.market.transaction() as unit:
        row = await unit.session.get_one(VaultRow, client.vault)
        with pytest.raises(RuntimeError):
            await add_two_and_fail(unit, row)
        assert unit.known(VaultRow, "written") is None
        assert unit.known(VaultRow, "not written") is None
        assert await unit.session.get(VaultRow, "written") is None
        assert (await unit.session.get_one(VaultRow, client.vault)).address == client.vault


async def add_two_and_fail(unit: Unit, row: VaultRow) -> None:
    async with unit.savepoint():
        unit.session.add(vault_like(row, "written"))
        await unit.session.flush()
        unit.session.add(vault_like(row, "not written"))
        assert {each.address for each in unit.loaded(VaultRow)} == {row.address, "written", "not written"}
        raise RuntimeError("nothing of this stays")


def vault_like(row: VaultRow, address: str) -> VaultRow:
    values = {column.key: getattr(row, column.key) for column in inspect(VaultRow).column_attrs}
    return VaultRow(**values | {"address": address})


async def test_rows_without_objects_are_written_with_the_others_and_queries_find_them(world: World) -> None:
    node = await join(world)
    states = select(NodeEventRow.data).where(NodeEventRow.node_id == node.id).order_by(NodeEventRow.id)

    def write(unit: Unit, number: int) -> None:
        unit.session.write(NodeEventRow, node_id=node.id, at_ms=unit.now_ms, data={"number": number})

    async def undo(unit: Unit) -> None:
        async with unit.savepoint():
            write(unit, 2)
            raise ZeroDivisionError

    async def write_and_fail() -> None:
        async with world.market.transaction() as unit:
            write(unit, 5)
            raise ZeroDivisionError

    async with world.market.transaction() as unit:
        before = len((await unit.session.scalars(states)).all())
        write(unit, 1)
        with pytest.raises(ZeroDivisionError):
            await undo(unit)
        async with unit.savepoint():
            write(unit, 3)
        assert [data["number"] for data in (await unit.session.scalars(states)).all()[before:]] == [1, 3]
        write(unit, 4)
        with unit.session.no_autoflush:
            assert len((await unit.session.scalars(states)).all()) == before + 2
    with pytest.raises(ZeroDivisionError):
        await write_and_fail()
    async with world.market.transaction() as unit:
        assert [data["number"] for data in (await unit.session.scalars(states)).all()[before:]] == [1, 3, 4]


async def test_rows_without_objects_are_found_by_their_keys(world: World) -> None:
    client = await make_client(world)
    async with world.market.transaction() as unit:
        unit.note_absent(HoldRow, "job")
        assert await unit.session.get(HoldRow, "job") is None
        unit.session.write(HoldRow, job_id="job", vault=client.vault, max_amount=2, billed=0, refunded=0, open=True)
        assert not unit.is_settled(HoldRow, "job")
        assert unit.known(HoldRow, "job") is None
        (await unit.session.get_one(HoldRow, "job")).billed = 1
    async with world.market.reading() as unit:
        assert (await unit.session.get_one(HoldRow, "job")).billed == 1


async def test_text_that_is_not_unicode_is_kept_as_it_is(world: World) -> None:
    node = await join(world)
    odd = {"said": "half a pair \ud83d", "whole": "\U0001f600", "large": 2**70, "many": (1, None)}
    async with world.market.transaction() as unit:
        unit.session.write(NodeEventRow, node_id=node.id, at_ms=unit.now_ms, data=odd)
    async with world.market.reading() as unit:
        newest = select(NodeEventRow.data).order_by(NodeEventRow.id.desc()).limit(1)
        assert await unit.session.scalar(newest) == odd | {"many": [1, None]}


async def test_postings_of_a_transaction_are_written_together_and_once(world: World) -> None:
    move = ledger.move("free:v", "held:j", 5)

    async def undo(unit: Unit) -> None:
        async with unit.savepoint():
            unit.post(key="undone", cause="a test", entries=move)
            raise ZeroDivisionError

    async def contradict() -> None:
        async with world.market.transaction() as unit:
            unit.post(key="two", cause="a test", entries=move)
            unit.post(key="one", cause="a test", entries=ledger.move("free:v", "held:j", 3))

    async with world.market.transaction() as unit:
        unit.post(key="deposit", cause="a test", entries=ledger.move("chain:v", "free:v", 9))
        with pytest.raises(ZeroDivisionError):
            await undo(unit)
        for _ in range(2):
            unit.post(key="one", cause="a test", entries=move)
        with pytest.raises(ledger.LedgerError) as other:
            unit.post(key="one", cause="a test", entries=ledger.move("free:v", "held:j", 4))
        assert await ledger.balance(unit.session, "held:j") == 5
    async with world.market.transaction() as unit:
        unit.post(key="one", cause="a test", entries=move)
    with pytest.raises(ledger.LedgerError) as later:
        await contradict()

    assert (other.value.code, later.value.code) == ("key_reused", "key_reused")
    async with world.market.reading() as unit:
        assert await ledger.balance(unit.session, "held:j") == 5
        assert await ledger.problems(unit.session) == []


async def test_what_is_committed_survives_a_crash_whatever_the_server_is_set_to(
    postgres: Postgres, tmp_path: Path
) -> None:
    """The tests' own server says "off"."""
    async with open_world(tmp_path, database_url=postgres.new_database()) as world, world.market.reading() as unit:
        assert await unit.session.scalar(text("SHOW synchronous_commit")) == "on"
