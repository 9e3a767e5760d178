"""What is done to a marketplace's processes while it works, each an async function of the market; and the load that notices."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from tests.support.chaos import RolesMarket, assert_all_is_well, signal_to, submit_through_it
from tests.support.networks import unplugged
from tests.support.partitions import PartitionedMarket
from tests.support.small_market import spec_of_small_job
from tests.support.waiting import eventually
from torg.client import AsyncClient

FROZEN_S = 3
HOUR_S = 3600
CUT_S = 5  # three heartbeats of a second make a node unknown


async def an_api_is_killed(market: RolesMarket) -> None:
    await market.processes["api"].kill()
    await market.start_process("api")


async def an_api_is_frozen(market: RolesMarket) -> None:
    with _frozen(partial(signal_to, market.processes["api"])):
        await asyncio.sleep(FROZEN_S)


async def an_api_is_asked_to_end(market: RolesMarket) -> None:
    await market.processes["api"].stop()
    assert market.processes["api"].process.returncode == 0
    await market.start_process("api")


async def the_leading_matcher_is_frozen(market: RolesMarket) -> None:
    """It keeps its connection: only its silence says that it works no more."""
    leader = await market.until_led("matcher")
    with _frozen(partial(signal_to, market.processes[leader])):
        await market.until_led("matcher", by_another_than=leader)


async def the_leading_worker_is_killed(market: RolesMarket) -> None:
    leader = await market.until_led("worker")
    await market.processes[leader].kill()
    await market.until_led("worker", by_another_than=leader)
    await market.start_process(leader)


async def the_matchers_are_away(market: RolesMarket) -> None:
    """Nobody matches: jobs are taken and wait, and a quote does not say that one would start."""
    for name in ("matcher 1", "matcher 2"):
        await market.processes[name].kill()
    await eventually(lambda: _nothing_is_being_granted(market))
    granted = await market.ask("SELECT count(*) FROM leases")
    async with market.client() as client:
        job = spec_of_small_job(client, {"command": ["python", "-c", "pass"], "limits": {"max_duration": "1m"}})

        async def quote_is_honest() -> bool:
            quote = await client.quote(job.check())
            assert quote.feasible
            return quote.start is not None and quote.start.room_expected_ms is None

        await eventually(quote_is_honest, within_s=150)
    assert await market.ask("SELECT count(*) FROM leases") == granted
    for name in ("matcher 1", "matcher 2"):
        await market.start_process(name)


async def _nothing_is_being_granted(market: RolesMarket) -> bool:
    """The server may still carry out what a process that is dead by now had asked for."""
    held = "SELECT 1 FROM pg_locks WHERE relation = 'leases'::regclass AND mode = 'RowExclusiveLock'"
    return not await market.ask(held)


async def the_hosts_clock_is_an_hour_ahead_for_a_while(market: RolesMarket) -> None:
    await _set(market, HOUR_S)


async def the_hosts_clock_is_an_hour_back_for_a_while(market: RolesMarket) -> None:
    await _set(market, -HOUR_S)


async def _set(market: RolesMarket, seconds: int) -> None:
    market.clock.move(seconds)
    try:
        await asyncio.sleep(CUT_S)
    finally:
        market.clock.move(0)


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
    with _frozen(market.postgres.send):
        await asyncio.sleep(7)


async def the_bus_is_frozen(market: RolesMarket) -> None:
    assert market.nats is not None
    with _frozen(market.nats.send):
        await asyncio.sleep(FROZEN_S)


async def the_agent_is_killed(market: RolesMarket) -> None:
    await market.agent.kill()
    await market.start_node()


async def the_agent_is_frozen(market: RolesMarket) -> None:
    with _frozen(partial(signal_to, market.agent)):
        await asyncio.sleep(FROZEN_S)


async def a_node_is_cut_off(market: PartitionedMarket) -> None:
    with market.cut("node 1", "api"):
        await asyncio.sleep(CUT_S)


async def a_node_is_not_heard(market: PartitionedMarket) -> None:
    with market.unheard(("node 1", "api")):
        await asyncio.sleep(CUT_S)


async def a_node_hears_nothing(market: PartitionedMarket) -> None:
    with market.unheard(("api", "node 1")):
        await asyncio.sleep(CUT_S)


async def a_node_is_unplugged(market: PartitionedMarket) -> None:
    assert market.middle is not None
    with unplugged(market.middle, market.places["node 1"]):
        await asyncio.sleep(CUT_S)


async def leaders_are_cut_off_from_the_database(market: PartitionedMarket) -> None:
    leaders = {role: await market.until_led(role) for role in ("matcher", "worker")}
    with market.cut("postgres", *leaders.values()):
        for role, leader in leaders.items():
            await market.until_led(role, by_another_than=leader)


async def the_api_is_cut_off_from_the_database(market: PartitionedMarket) -> None:
    with market.cut("api", "postgres"):
        await asyncio.sleep(CUT_S)


async def the_bus_is_cut_off_from_everybody(market: PartitionedMarket) -> None:
    with market.cut("nats", *market.roles()):
        await asyncio.sleep(CUT_S)


@contextlib.contextmanager
def _frozen(send: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Afterwards it goes on, also when the test has failed: what stands still cannot be asked to end."""
    send(signal.SIGSTOP)
    try:
        yield
    finally:
        send(signal.SIGCONT)


FAULTS: list[Callable[[RolesMarket], Coroutine[Any, Any, None]]] = [
    an_api_is_killed,
    an_api_is_frozen,
    an_api_is_asked_to_end,
    the_leading_matcher_is_frozen,
    the_leading_worker_is_killed,
    the_matchers_are_away,
    the_hosts_clock_is_an_hour_ahead_for_a_while,
    the_hosts_clock_is_an_hour_back_for_a_while,
    the_database_crashes,
    the_database_is_frozen,
    the_bus_is_killed,
    the_bus_is_frozen,
    the_agent_is_killed,
    the_agent_is_frozen,
]


CUTS: list[Callable[[PartitionedMarket], Coroutine[Any, Any, None]]] = [
    a_node_is_cut_off,
    a_node_is_not_heard,
    a_node_hears_nothing,
    a_node_is_unplugged,
    leaders_are_cut_off_from_the_database,
    the_api_is_cut_off_from_the_database,
    the_bus_is_cut_off_from_everybody,
]


async def under_load(market: RolesMarket, client: AsyncClient, fault: Coroutine[Any, Any, None], name: str) -> None:
    """Jobs of before, of meanwhile and of afterwards; all of them, and the books, must be well in the end. `name`: another one each time.
    A load that fails ends the fault."""
    jobs = {await submit_through_it(client, f"{name}-before-{number}") for number in range(3)}
    await eventually(lambda: _some_run(market, jobs))
    async with asyncio.TaskGroup() as together:
        together.create_task(fault)
        load = [together.create_task(submit_through_it(client, f"{name}-meanwhile-{number}")) for number in range(2)]
    jobs |= {task.result() for task in load} | {await submit_through_it(client, f"{name}-after")}
    await assert_all_is_well(market, jobs)


async def _some_run(market: RolesMarket, jobs: set[str]) -> bool:
    """Or ran: they are short, and this may look late."""
    began = "SELECT 1 FROM leases WHERE job_id = ANY($1) AND started_at_ms IS NOT NULL"
    return bool(await market.ask(began, list(jobs)))
