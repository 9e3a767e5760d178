"""Networks that are cut between a marketplace's processes and its nodes, both ways and one way, while jobs run: nothing is lost, nothing
goes on that has begun elsewhere, nothing is paid twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.support.chaos import assert_all_is_well, submit_through_it
from tests.support.faults import CUT_S
from tests.support.networks import unplugged
from tests.support.partitions import PartitionedMarket, partitioned_market
from tests.support.small_market import WAIT_FOR_GO, let_go, running_market
from tests.support.waiting import eventually
from torg.client import AsyncClient

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.sandbox,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def not_started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PartitionedMarket]:
    with partitioned_market(tmp_path_factory.mktemp("partitions")) as market:
        yield market


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def market(not_started: PartitionedMarket) -> AsyncIterator[PartitionedMarket]:
    async with running_market(not_started.folder, market=not_started):
        yield not_started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(market: PartitionedMarket) -> AsyncIterator[AsyncClient]:
    async with market.client() as client:
        yield client


COUNTS = "import time\nfor n in range(40):\n    print(n, flush=True)\n    time.sleep(0.2)"
# Its first attempt does not end by itself, so that only the fence ends it.
HANGS_AT_FIRST = f"""
import os, time
print('at work', flush=True)
if os.environ['TORG_ATTEMPT'] == '1': time.sleep(600)
{WAIT_FOR_GO}
"""


async def _started(
    market: PartitionedMarket, client: AsyncClient, name: str, script: str, grace: str
) -> tuple[str, str]:
    """A running job, and the node where it is."""
    job_id = await submit_through_it(client, name, command=["python", "-c", script], lease_grace=grace)

    async def runs() -> bool:
        return await market.node_of(job_id) is not None

    await eventually(runs)
    return job_id, await market.node_of(job_id) or ""


async def _leases(market: PartitionedMarket, job_id: str) -> list[tuple[str, int]]:
    leases = await market.ask("SELECT state, amount FROM leases WHERE job_id = $1 ORDER BY attempt", job_id)
    return [(lease["state"], lease["amount"]) for lease in leases]


@pytest.mark.parametrize("which", ["neither", "node", "marketplace"])
async def test_a_short_cut_costs_no_lease_whoever_still_hears(
    which: str, market: PartitionedMarket, client: AsyncClient
) -> None:
    job_id, node = await _started(market, client, f"short-{which}", COUNTS, "2m")
    pairs = {"node": [(node, "api")], "marketplace": [("api", node)], "neither": [(node, "api"), ("api", node)]}
    with market.unheard(*pairs[which]):
        await asyncio.sleep(CUT_S)
    await assert_all_is_well(market, {job_id})

    assert [state for state, _ in await _leases(market, job_id)] == ["verified"]
    assert (await client.logs(job_id)).split() == [str(n) for n in range(40)]


async def test_what_outlasts_its_grace_begins_elsewhere_and_ends_where_it_was(
    market: PartitionedMarket, client: AsyncClient
) -> None:
    """The first node works on in the dark; when it is back, its fence is stale: its container goes, it is paid nothing."""
    assert market.middle is not None
    job_id, first = await _started(market, client, "long", HANGS_AT_FIRST, "10s")

    async def runs_elsewhere() -> bool:
        return await market.node_of(job_id) not in {None, first}

    async def has_its_container() -> bool:
        return len(market.containers(second)) == 1

    with unplugged(market.middle, market.places[first]):
        await eventually(runs_elsewhere)
        second = await market.node_of(job_id) or ""
        await eventually(has_its_container)
        assert len(market.containers(first)) == 1
        assert [state for state, _ in await _leases(market, job_id)] == ["lost", "running"]
        let_go(market.folder / second)

    async def gone() -> bool:
        return market.containers(first) == []

    await eventually(gone)
    await assert_all_is_well(market, {job_id})
    (_, unpaid), (state, paid) = await _leases(market, job_id)
    assert (unpaid, state) == (0, "verified")
    assert paid > 0
    assert market.containers(second) == []


async def test_leaders_that_are_cut_off_from_the_database_are_replaced(
    market: PartitionedMarket, client: AsyncClient
) -> None:
    leaders = {role: await market.until_led(role) for role in ("matcher", "worker")}
    jobs = {await submit_through_it(client, "leaders-before")}
    with market.cut("postgres", *leaders.values()):
        for role, leader in leaders.items():
            await market.until_led(role, by_another_than=leader)
        jobs.add(await submit_through_it(client, "leaders-during"))
        await assert_all_is_well(market, jobs)
    await assert_all_is_well(market, {*jobs, await submit_through_it(client, "leaders-after")})


async def test_without_the_bus_everything_comes_late(market: PartitionedMarket, client: AsyncClient) -> None:
    jobs = {await submit_through_it(client, "bus-before")}
    with market.cut("nats", *market.roles()):
        jobs |= {await submit_through_it(client, f"bus-during-{number}") for number in range(2)}
        await assert_all_is_well(market, jobs)
    await assert_all_is_well(market, {*jobs, await submit_through_it(client, "bus-after")})


async def test_an_api_without_its_database_makes_everybody_wait(market: PartitionedMarket, client: AsyncClient) -> None:
    job_id, _ = await _started(market, client, "api-before", COUNTS, "2m")

    async def cut() -> None:
        with market.cut("api", "postgres"):
            await asyncio.sleep(CUT_S)

    async with asyncio.TaskGroup() as together:
        together.create_task(cut())
        during = together.create_task(submit_through_it(client, "api-during"))
    await assert_all_is_well(market, {job_id, during.result()})
    assert len(await _leases(market, job_id)) == 1


async def test_in_the_end_the_chain_has_paid_what_the_receipts_say(market: PartitionedMarket) -> None:
    await market.assert_paid_by_the_receipts()
