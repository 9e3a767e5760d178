"""The drill: back up, run to settlement, lose the database, restore the old one, recover: paid once, books right."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.actors import TUSD, join, make_client, spec
from tests.support.market import World, open_world
from tests.support.postgres import Postgres, postgres
from tests.support.settlement import SettlingMarket, settling_market
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.reconcile import blocked_vaults, reconcile, watch_vaults
from torg_marketplace.flow.recover import recover
from torg_marketplace.flow.settle import advance_settlements, settle_due
from torg_marketplace.flow.unit import Market
from torg_marketplace.storage import ledger
from torg_marketplace.storage.backup import back_up, restore
from torg_marketplace.storage.money_models import VaultRow
from torg_protocol.errors import Conflict, Invalid, NotFound
from torg_protocol.states import JobState

__all__ = ["postgres"]


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'market.sqlite'}"


@asynccontextmanager
async def on_the_backup(market: Market, folder: Path, backup: Path) -> AsyncIterator[Market]:
    """The same marketplace, its keys and its chain, on the database of the backup."""
    (folder / "restored").mkdir()
    restore(url_of(folder / "restored"), backup)
    async with open_world(folder / "restored") as world:
        kept = {"sessions", "writer", "book", "wakes"}
        values = {
            item.name: getattr(market, item.name) for item in fields(Market) if item.init and item.name not in kept
        }
        yield replace(world.market, **values)


async def test_what_a_real_chain_captured_since_the_backup_is_booked_once(tmp_path: Path) -> None:
    async with settling_market(tmp_path) as before:
        wallet = await before.earn(100)
        await before.settle_all()
        await before.earn(70, wallet)  # waits in the backup
        backup = tmp_path / "monday.backup"
        back_up(url_of(tmp_path), backup)
        await before.earn(30, wallet)  # unknown to it
        await before.earn(5_000)  # so is this one's wallet
        await before.settle_all()
        await before.assert_paid_exactly_once()

        async with on_the_backup(before.market, tmp_path, backup) as market:
            await watch_vaults(market)
            assert before.vault in await blocked_vaults(market), "without recovery it is safe, and stuck"
            await settle_due(market, hurry=True)
            (booked,) = await recover(market)
            assert (booked.paid, booked.known) == (5_100, 70)
            assert await recover(market) == []
            assert await blocked_vaults(market) == {}
            after = SettlingMarket(market, before.chain, before.vault, before.session, before.depositor, before.owed)
            await after.assert_paid_exactly_once()
            await after.earn(40, wallet)  # and it goes on
            await after.settle_all()
            await after.assert_paid_exactly_once()
            assert await reconcile(market) == []


async def test_an_order_that_the_backup_has_is_booked_by_it(tmp_path: Path) -> None:
    async with settling_market(tmp_path) as before:
        await before.earn(100)
        await settle_due(before.market, hurry=True)  # stored, not sent
        backup = tmp_path / "monday.backup"
        back_up(url_of(tmp_path), backup)
        await before.settle_all()
        async with on_the_backup(before.market, tmp_path, backup) as market:
            await recover(market)
            after = SettlingMarket(market, before.chain, before.vault, before.session, before.depositor, before.owed)
            await after.settle_all()
            await after.assert_paid_exactly_once()
            assert await reconcile(market) == []


async def run_to_settlement(world: World) -> None:
    await settle_due(world.market, hurry=True)
    await advance_settlements(world.market)
    await advance_settlements(world.market)


async def test_a_job_that_waited_in_the_backup_and_ran_since_is_not_run_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        node, client = await join(world, price=TUSD), await make_client(world, deposit=10 * TUSD)
        job = await client.submit(spec(limits={"max_duration": "1h"}))
        backup = tmp_path / "monday.backup"
        back_up(url_of(tmp_path), backup)
        await match_pending(world.market)
        await node.accept_and_start()
        world.advance(seconds=3600)
        await node.finish()
        node.read()
        await run_to_settlement(world)
        node.read()
        async with on_the_backup(world.market, tmp_path, backup) as market:
            (booked,) = await recover(market)
            assert (booked.paid, booked.known) == (TUSD, 0)
            restored = replace(client, world=replace(world, market=market))
            again = await restored.job(job.job_id)
            assert again.state is JobState.CANCELLED
            assert "restored from a backup" in again.detail
            async with market.reading() as unit:
                vault = await unit.session.get_one(VaultRow, client.vault)
                assert (vault.chain_settled, vault.final_total, vault.open_maximum) == (TUSD, TUSD, 0)
                assert await ledger.balance(unit.session, ledger.free(client.vault)) == 9 * TUSD
                assert await ledger.problems(unit.session) == []
            assert await reconcile(market) == []


def test_a_backup_is_never_overwritten_and_a_restore_keeps_what_was_there(tmp_path: Path) -> None:
    url, file = url_of(tmp_path), tmp_path / "one.backup"
    with pytest.raises(NotFound) as nothing:
        back_up(url, file)
    assert nothing.value.code == "database_missing"
    for folder, mark in ((tmp_path, "first"),):
        with sqlite3.connect(folder / "market.sqlite") as connection:
            connection.execute("CREATE TABLE vaults (mark TEXT)")
            connection.execute("INSERT INTO vaults VALUES (?)", (mark,))
        connection.close()
    back_up(url, file)
    with pytest.raises(Conflict) as there:
        back_up(url, file)
    assert there.value.code == "backup_exists"
    with sqlite3.connect(tmp_path / "market.sqlite") as connection:
        connection.execute("UPDATE vaults SET mark = 'second'")
    connection.close()
    aside = restore(url, file)
    assert aside is not None
    for path, mark in ((tmp_path / "market.sqlite", "first"), (aside, "second")):
        connection = sqlite3.connect(path)
        assert connection.execute("SELECT mark FROM vaults").fetchone() == (mark,)
        connection.close()
    (tmp_path / "no.backup").write_bytes(b"something else")
    with pytest.raises(Invalid) as unreadable:
        restore(url, tmp_path / "no.backup")
    assert unreadable.value.code == "backup_unreadable"
    with pytest.raises(NotFound) as missing:
        restore(url, tmp_path / "gone.backup")
    assert missing.value.code == "backup_missing"


def test_a_database_that_somebody_works_on_is_not_replaced_and_a_damaged_one_is(tmp_path: Path) -> None:
    url, file, path = url_of(tmp_path), tmp_path / "one.backup", tmp_path / "market.sqlite"
    working = sqlite3.connect(path)
    working.executescript(
        "PRAGMA journal_mode = WAL; CREATE TABLE vaults (mark TEXT); INSERT INTO vaults VALUES ('first')"
    )
    back_up(url, file)
    with pytest.raises(Conflict) as used:
        restore(url, file)
    assert used.value.code == "database_in_use"
    working.execute("UPDATE vaults SET mark = 'second'")
    working.commit()
    working.close()
    assert [item.name for item in tmp_path.glob("*before-restore*")] == []

    path.write_bytes(b"the disk was full, and this is what is left of it" * 100)
    aside = restore(url, file)
    assert aside is not None
    assert aside.read_bytes().startswith(b"the disk was full")
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT mark FROM vaults").fetchone() == ("first",)
    connection.close()


def interrupted() -> None:
    raise KeyboardInterrupt


def test_what_is_interrupted_at_its_last_moment_leaves_everything_as_it_was(tmp_path: Path) -> None:
    url, file, path = url_of(tmp_path), tmp_path / "one.backup", tmp_path / "market.sqlite"
    for mark in ("first", "second"):
        connection = sqlite3.connect(path)
        connection.executescript("CREATE TABLE IF NOT EXISTS vaults (mark TEXT); DELETE FROM vaults")
        connection.execute("INSERT INTO vaults VALUES (?)", (mark,))
        connection.commit()
        connection.close()
        if mark == "first":
            with pytest.raises(KeyboardInterrupt):
                back_up(url, file, interrupted)
            assert [item.name for item in tmp_path.iterdir()] == [path.name]
            back_up(url, file)
    with pytest.raises(KeyboardInterrupt):
        restore(url, file, interrupted)
    assert {item.name for item in tmp_path.iterdir()} == {path.name, file.name}
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT mark FROM vaults").fetchone() == ("second",)
    connection.close()


async def test_ctrl_c_at_a_backup_leaves_no_file_and_says_so(tmp_path: Path, postgres: Postgres) -> None:
    """It waits for a table, and nothing else can end it."""
    url, file = postgres.new_database(), tmp_path / "one.backup"
    async with open_world(tmp_path, database_url=url):
        pass
    before = set(tmp_path.iterdir())
    waits = text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump' AND wait_event_type = 'Lock'"
    )
    engine = create_async_engine(url)
    async with engine.connect() as holder, engine.connect() as asking:
        await asking.execution_options(isolation_level="AUTOCOMMIT")
        await holder.execute(text("LOCK TABLE vaults IN ACCESS EXCLUSIVE MODE"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "torg_marketplace", "backup", "--data", str(tmp_path), str(file)),
            env=os.environ | {"TORG_MARKETPLACE_DATABASE_URL": url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(150):
                while not (await asking.execute(waits)).scalar_one():
                    assert process.returncode is None
                    await asyncio.sleep(0.05)
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to its tool too
                said, complained = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    await engine.dispose()
    assert (process.returncode, said) == (130, b"")
    assert complained.decode() == "torg-marketplace: interrupted: no backup was written\n"
    assert set(tmp_path.iterdir()) == before


async def test_postgresql_by_its_own_tools(tmp_path: Path, postgres: Postgres) -> None:
    url, file = postgres.new_database(), tmp_path / "one.backup"
    async with open_world(tmp_path, database_url=url) as world:
        client = await make_client(world, deposit=3 * TUSD)
    back_up(url, file)
    async with open_world(tmp_path, database_url=url) as world:
        await make_client(world)
        with pytest.raises(Conflict) as beside_a_running_market:
            restore(url, file)
        assert beside_a_running_market.value.code == "database_in_use"
    restore(url, file)
    async with open_world(tmp_path, database_url=url) as world, world.market.reading() as unit:
        vaults = (await unit.session.execute(VaultRow.__table__.select())).all()
        assert [row.address for row in vaults] == [client.vault]
        assert await ledger.balance(unit.session, ledger.free(client.vault)) == 3 * TUSD
