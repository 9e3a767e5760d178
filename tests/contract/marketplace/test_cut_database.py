"""A network that is cut between a marketplace and its PostgreSQL, in namespaces: said as such, within the time that was asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.networks import Place, entered, lost_between, star
from tests.support.postgres import running_postgres
from torg_marketplace.storage.engine import answering, create_engine
from torg_protocol.errors import Unavailable

pytestmark = [pytest.mark.root, pytest.mark.slow]
GONE_AFTER_S = 2
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


async def test_a_question_that_gets_no_answer_fails_in_time(network: tuple[Cut, str], engine: AsyncEngine) -> None:
    """Sent into the cut; sent before it, with the answer lost; and with no connection to begin with."""
    (middle, *both), _ = network
    await _ask(engine, "SELECT 1")
    waits = asyncio.create_task(_ask(engine, "SELECT pg_sleep(1)"))
    await asyncio.sleep(0.3)
    with lost_between(middle, *both):
        began = time.monotonic()
        for question in (waits, _ask(engine, "SELECT 1")):
            with pytest.raises(Unavailable) as caught:
                await asyncio.wait_for(question, 60)
            assert caught.value.code == "database_unavailable"
        assert time.monotonic() - began < 60
    await _ask(engine, "SELECT 1")
