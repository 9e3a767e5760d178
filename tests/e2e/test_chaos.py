"""Processes of a marketplace that are killed or frozen under load, one kind after the other: nothing is lost, leased twice or paid twice.

One market for all cases: each finds it as the one before left it, which is a promise too. The table in docs/explanation/survival.md says what
was seen.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.chaos import RolesMarket, chaos_market
from tests.support.faults import FAULTS, under_load
from tests.support.nats import NatsServer, nats_server
from tests.support.postgres import Postgres, running_postgres
from torg.client import AsyncClient

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.sandbox,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Postgres, NatsServer]]:
    """Not the session's, which others use: these die."""
    with running_postgres() as postgres, nats_server() as nats:
        yield postgres, nats


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def market(
    tmp_path_factory: pytest.TempPathFactory, servers: tuple[Postgres, NatsServer]
) -> AsyncIterator[RolesMarket]:
    async with chaos_market(tmp_path_factory.mktemp("chaos"), *servers) as market:
        yield market


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(market: RolesMarket) -> AsyncIterator[AsyncClient]:
    async with market.client() as client:
        yield client


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_nothing_is_lost_when(
    fault: Callable[[RolesMarket], Coroutine[Any, Any, None]], market: RolesMarket, client: AsyncClient
) -> None:
    await under_load(market, client, fault(market), fault.__name__.replace("_", "-"))


async def test_in_the_end_the_chain_has_paid_what_the_receipts_say(market: RolesMarket) -> None:
    await market.assert_paid_by_the_receipts()
