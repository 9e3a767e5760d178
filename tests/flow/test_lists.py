"""Lists have one order, in which what was submitted first stands first (or last), and a walk through their pages meets what was there when it
began once each, whatever is added meanwhile: within one millisecond, and while the clock is an hour back."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from tests.support.actors import Client, join, make_client, spec
from tests.support.market import World, open_world
from torg_marketplace.flow.cursors import cursor_of
from torg_marketplace.flow.queue_place import queue_place
from torg_marketplace.flow.rows import job_row
from torg_marketplace.flow.statements import statement
from torg_marketplace.flow.views import jobs_page
from torg_marketplace.storage import ledger
from torg_marketplace.storage.money_models import EntryRow
from torg_protocol.errors import Invalid
from torg_protocol.ids import Ids, JobId

HOUR_MS = 3_600_000
Clocks = st.sampled_from([0, 0, 0, 1, 7, -HOUR_MS, HOUR_MS])
SETTINGS = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@given(st.lists(st.tuples(Clocks, st.integers(0, 2**64 - 1)), min_size=2, max_size=60))
def test_ids_of_a_process_rise_whatever_its_clock_does(steps: list[tuple[int, int]]) -> None:
    now_ms, ids, made = 1_800_000_000_000, Ids(), list[str]()
    for moved_ms, bits in steps:
        now_ms += moved_ms
        made.append(ids.new("job", now_ms, bits))
    assert made == sorted(set(made))


@SETTINGS
@given(st.lists(Clocks, min_size=3, max_size=8), st.lists(Clocks, max_size=4), st.integers(1, 3))
def test_a_walk_meets_what_was_there_once_each_and_newest_first(
    before: list[int], during: list[int], limit: int
) -> None:
    async def walk(folder: Path) -> None:
        async with open_world(folder) as world:
            await join(world)
            client = await make_client(world)
            there = [await _submitted(world, client, moved_ms) for moved_ms in before]
            added, met, cursor = list(during), list[JobId](), None
            while True:
                async with world.market.reading() as unit:
                    page = await jobs_page(unit, client.account, cursor=cursor, limit=limit)
                met += [job.job_id for job in page.jobs]
                if (cursor := page.next_cursor) is None:
                    break
                if added:
                    await _submitted(world, client, added.pop())
            assert met == there[::-1]

    _in_a_folder(walk)


@SETTINGS
@given(st.lists(st.sampled_from([0, 0, 1]), min_size=2, max_size=7))
def test_the_backlog_takes_an_accounts_jobs_as_they_were_submitted(moves: list[int]) -> None:
    async def submitted(folder: Path) -> None:
        async with open_world(folder) as world:
            await join(world)
            client = await make_client(world)
            jobs = [await _submitted(world, client, moved_ms) for moved_ms in moves]
            async with world.market.reading() as unit:
                places = [await queue_place(unit, await job_row(unit, job_id)) for job_id in jobs]
            assert [place.place for place in places if place is not None] == list(range(1, len(jobs) + 1))

    _in_a_folder(submitted)


async def test_a_higher_bid_stays_first_while_the_clock_is_back(world: World) -> None:
    await join(world, price=1)
    client = await make_client(world)
    low = await _submitted(world, client, 0, max_price_per_hour="1")
    high = await _submitted(world, client, 0, max_price_per_hour="5")
    world.advance(ms=-HOUR_MS)
    async with world.market.reading() as unit:
        places = [await queue_place(unit, await job_row(unit, job_id)) for job_id in (high, low)]
    assert [place.place for place in places if place is not None] == [1, 2]


async def test_a_statements_pages_do_not_shift_within_a_millisecond(world: World) -> None:
    """Postings of one moment stand by key: some that come meanwhile stand before what was told already."""
    await join(world)
    client = await make_client(world)
    for _ in range(4):
        await _submitted(world, client, 0)
    told, cursor = list[JobId | None](), None
    while True:
        async with world.market.reading() as unit:
            until_ms = world.clock.now_ms() + 1
            page = await statement(
                unit, client.account, client.vault, since_ms=0, until_ms=until_ms, cursor=cursor, limit=2
            )
        told += [line.job_id for line in page.lines]
        if (cursor := page.next_cursor) is None:
            break
        await client.cancel(told[-1] or await _submitted(world, client, 0))  # its release is a line of this millisecond
    assert len(told) >= 6
    holds = [job_id for job_id in told if job_id is not None]
    assert max(map(holds.count, holds)) == 2, "a hold and its release, once each"


async def test_a_line_of_another_vault_is_no_cursor(world: World) -> None:
    mine, other = await make_client(world), await make_client(world)
    async with world.market.reading() as unit:
        keys = select(EntryRow.posting).where(EntryRow.account == ledger.free(mine.vault))
        line = cursor_of(str(await unit.session.scalar(keys)))
        await statement(unit, mine.account, mine.vault, since_ms=0, until_ms=2**60, cursor=line, limit=5)
        with pytest.raises(Invalid) as refused:
            await statement(unit, other.account, other.vault, since_ms=0, until_ms=2**60, cursor=line, limit=5)
    assert refused.value.code == "cursor_invalid"


async def _submitted(world: World, client: Client, moved_ms: int, **limits: str) -> JobId:
    world.advance(ms=moved_ms)
    return (await client.submit(spec(limits={"max_duration": "1h", **limits}))).job_id


def _in_a_folder(work: Callable[[Path], Coroutine[None, None, None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(work(Path(folder)))
