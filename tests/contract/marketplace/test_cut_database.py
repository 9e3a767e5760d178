"""A network that is cut between a marketplace and its PostgreSQL, in namespaces: said as such, within the time that was asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from unittest.mock import Mock

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.networks import Place, entered, lost_between, star
from tests.support.postgres import running_postgres
from tests.support.waiting import eventually
from torg_marketplace.storage import engine as storage_engine
from torg_marketplace.storage.engine import READ_ONLY, answering, create_engine
from torg_protocol.errors import Unavailable

pytestmark = [pytest.mark.root, pytest.mark.slow]
GONE_AFTER_S = 4
Cut = tuple[Place, tuple[Place, Place], tuple[Place, Place]]


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[Cut, str]]:
    """What `lost_between` takes for both directions, and the database's URL. The test is at the marketplace's end."""
    with (
        star("marketplace", "postgres", forwards=True) as (middle, marketplace, place),
        running_postgres(place) as postgres,
        entered(marketplace),
    ):
        yield (middle, (marketplace, place), (place, marketplace)), postgres.url_from_afar(postgres.new_database())


@pytest_asyncio.fixture
async def engine(network: tuple[Cut, str]) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(network[1], stuck_after_s=GONE_AFTER_S)
    yield engine
    await engine.dispose()


async def _ask(engine: AsyncEngine, question: str) -> None:
    with answering():
        async with engine.begin() as connection:
            await connection.execute(text(question))


SLEEP = "SELECT pg_sleep(300)"  # in vain: what asked for it is cut off


async def _is_asleep(engine: AsyncEngine) -> bool:
    """Asked on a connection of its own, without the lock that writers take."""
    reading = engine.execution_options(**{READ_ONLY: True})
    async with reading.begin() as connection:
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = :sleep"
        return bool((await connection.execute(text(asleep), {"sleep": SLEEP})).scalar_one())


async def _end_the_sleep(engine: AsyncEngine) -> None:
    """Of the server, which does not know that nobody waits, and holds the writers' lock for it."""
    reading = engine.execution_options(**{READ_ONLY: True})
    async with reading.begin() as connection:
        ended = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE query = :sleep"
        await connection.execute(text(ended), {"sleep": SLEEP})


async def _gets_no_answer(question: Awaitable[None]) -> None:
    with pytest.raises(Unavailable) as caught:
        await asyncio.wait_for(question, 60)
    assert caught.value.code == "database_unavailable"


@pytest.mark.parametrize(
    ("trusted_for_s", "connects_again"), [(3600.0, 0), (0.0, 1)], ids=["sent-at-once", "looked-at-first"]
)
async def test_a_question_that_gets_no_answer_fails_in_time(
    network: tuple[Cut, str],
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
    trusted_for_s: float,
    connects_again: int,
) -> None:
    """Sent before the cut, with the answer lost; sent into it on a connection that lay ready; and with no connection to begin with."""
    monkeypatch.setattr(storage_engine, "_TRUSTED_FOR_S", trusted_for_s)
    connect = Mock(wraps=engine.dialect.connect)
    monkeypatch.setattr(engine.dialect, "connect", connect)
    (middle, *both), _ = network
    waits = asyncio.create_task(_ask(engine, SLEEP))
    await eventually(lambda: _is_asleep(engine))
    assert connect.call_count == 2, "one sleeps, the other lies ready"
    with lost_between(middle, *both):
        began = time.monotonic()
        # At the same time: as soon as one has found its connection dead, the pool trusts no other.
        await asyncio.gather(_gets_no_answer(waits), _gets_no_answer(_ask(engine, "SELECT 1")))
        assert connect.call_count == 2 + connects_again
        await _gets_no_answer(_ask(engine, "SELECT 1"))
        assert connect.call_count == 3 + connects_again
        assert time.monotonic() - began < 60
    await _end_the_sleep(engine)
    await _ask(engine, "SELECT 1")
