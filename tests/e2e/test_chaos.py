"""Processes of a marketplace that are killed or frozen under load, one kind after the other: nothing is lost, leased twice or paid twice.

One market for all cases: each finds it as the one before left it, which is a promise too. The table in docs/explanation/survival.md says what
was seen.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import pytest_asyncio

from tests.support.chaos import RolesMarket, assert_all_is_well, chaos_market, signal_to, submit_through_it
from tests.support.nats import NatsServer, nats_server
from tests.support.postgres import Postgres, running_postgres
from tests.support.waiting import eventually
from torg.client import AsyncClient

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.sandbox,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(400),
]
FROZEN_S = 3


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


async def an_api_is_killed(market: RolesMarket) -> None:
    await market.processes["api"].kill()
    await market.start_process("api")


async def an_api_is_frozen(market: RolesMarket) -> None:
    await _frozen_for_a_while(market, "api")


async def an_api_is_asked_to_end(market: RolesMarket) -> None:
    await market.processes["api"].stop()
    assert market.processes["api"].process.returncode == 0
    await market.start_process("api")


async def the_leading_matcher_is_frozen(market: RolesMarket) -> None:
    """It keeps its connection: only its silence says that it works no more."""
    leader = await market.until_led("matcher")
    signal_to(market.processes[leader], signal.SIGSTOP)
    try:
        await market.until_led("matcher", by_another_than=leader)
    finally:
        signal_to(market.processes[leader], signal.SIGCONT)


async def the_leading_worker_is_killed(market: RolesMarket) -> None:
    leader = await market.until_led("worker")
    await market.processes[leader].kill()
    await market.until_led("worker", by_another_than=leader)
    await market.start_process(leader)


async def the_database_crashes(market: RolesMarket) -> None:
    assert market.postgres is not None
    await asyncio.to_thread(market.postgres.crash)


async def the_bus_is_killed(market: RolesMarket) -> None:
    assert market.nats is not None
    market.nats.kill()
    await asyncio.sleep(1)
    market.nats.start()


async def the_database_is_frozen(market: RolesMarket) -> None:
    """For longer than a leader waits for its answer."""
    assert market.postgres is not None
    market.postgres.send(signal.SIGSTOP)
    await asyncio.sleep(7)
    market.postgres.send(signal.SIGCONT)


async def the_bus_is_frozen(market: RolesMarket) -> None:
    assert market.nats is not None
    market.nats.send(signal.SIGSTOP)
    await asyncio.sleep(FROZEN_S)
    market.nats.send(signal.SIGCONT)


async def the_agent_is_killed(market: RolesMarket) -> None:
    assert market.node is not None
    await market.node.kill()
    await market.start_node()


async def the_agent_is_frozen(market: RolesMarket) -> None:
    signal_to(market.node, signal.SIGSTOP)
    await asyncio.sleep(FROZEN_S)
    signal_to(market.node, signal.SIGCONT)


async def _frozen_for_a_while(market: RolesMarket, name: str) -> None:
    signal_to(market.processes[name], signal.SIGSTOP)
    await asyncio.sleep(FROZEN_S)
    signal_to(market.processes[name], signal.SIGCONT)


FAULTS = [
    an_api_is_killed,
    an_api_is_frozen,
    an_api_is_asked_to_end,
    the_leading_matcher_is_frozen,
    the_leading_worker_is_killed,
    the_database_crashes,
    the_database_is_frozen,
    the_bus_is_killed,
    the_bus_is_frozen,
    the_agent_is_killed,
    the_agent_is_frozen,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_nothing_is_lost_when(
    fault: Callable[[RolesMarket], Awaitable[None]], market: RolesMarket, client: AsyncClient
) -> None:
    name = fault.__name__.replace("_", "-")
    jobs = {await submit_through_it(client, f"{name}-before-{number}") for number in range(3)}
    await eventually(lambda: _some_run(market))
    _, *during = await asyncio.gather(
        fault(market), *(submit_through_it(client, f"{name}-meanwhile-{number}") for number in range(2))
    )
    jobs |= set(during) | {await submit_through_it(client, f"{name}-after")}

    await assert_all_is_well(market, jobs)


async def test_in_the_end_the_chain_has_paid_what_the_receipts_say(market: RolesMarket) -> None:
    await market.assert_paid_by_the_receipts()


async def _some_run(market: RolesMarket) -> bool:
    return bool(await market.ask("SELECT * FROM leases WHERE state = 'running'"))
