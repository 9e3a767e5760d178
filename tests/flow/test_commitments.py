"""Commitments: which range of a vault a lease gets, and by which cap; many at once ask together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event

from tests.support.actors import Client, join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.caps import remember_cap
from torg_marketplace.flow.commitments import commit_lease
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.unit import Unit
from torg_protocol.caps import SignedCap
from torg_protocol.ids import LeaseId, VaultAddress
from torg_protocol.jobspec import load_job_spec


def cap_of(world: World, client: Client, cap: int, lives_s: int, signer: str = "") -> SignedCap:
    until_s = world.clock.now_ms() // 1000 + lives_s
    return SignedCap(
        vault=VaultAddress(client.vault), cap=cap, valid_until_s=until_s, signer=signer or client.account, signature="s"
    )


async def committed(unit: Unit, client: Client, name: str, amount: int) -> tuple[int, int, int]:
    """The range, and the cap above it."""
    made, _, cap = await commit_lease(
        unit, vault=client.vault, lease_id=LeaseId(name), payout_address="p", max_amount=amount
    )
    return made.committed_before, made.committed_after, cap.cap


async def test_the_cap_that_lives_longest_carries_a_range(world: World) -> None:
    client = await make_client(world)
    async with world.market.transaction() as unit:
        for cap, lives_s in ((900, 100), (500, 200), (600, 200), (100, 300)):
            remember_cap(unit, cap_of(world, client, cap, lives_s))
        assert await committed(unit, client, "a", 100) == (0, 100, 100)  # seen before it is written
        assert await committed(unit, client, "b", 100) == (100, 200, 500)  # of two that live as long, the lower
    async with world.market.transaction() as unit:
        assert await committed(unit, client, "c", 300) == (200, 500, 500)
        assert await committed(unit, client, "d", 400) == (500, 900, 900)


async def test_a_cap_behind_many_that_are_too_low_is_found(world: World) -> None:
    client = await make_client(world)
    async with world.market.transaction() as unit:
        for number in range(40):
            remember_cap(unit, cap_of(world, client, 1 + number, 1_000 + number))
            remember_cap(unit, cap_of(world, client, 1_000 + number, 2_000, signer="a key that was replaced"))
        remember_cap(unit, cap_of(world, client, 500, 100))
    async with world.market.transaction() as unit:
        assert await committed(unit, client, "a", 200) == (0, 200, 500)


async def test_more_at_once_ask_no_more_questions(world: World) -> None:
    """Submissions that share a transaction, and grants that do."""
    nodes = [await join(world, slots=8, memory_gib=64) for _ in range(2)]
    clients = [await make_client(world) for _ in range(2)]
    asked: dict[int, tuple[int, int]] = {}
    await at_once(world, clients, 1)  # what is asked once in a process's life
    await match_pending(world.market)
    for jobs in (2, 5):
        with counted(world) as submitting:
            await at_once(world, clients, jobs)
        with counted(world) as matching:
            assert await match_pending(world.market) == 2 * jobs
        asked[jobs] = len(submitting), len(matching)
    for node in nodes:
        node.read()

    assert asked[2] == asked[5], asked


async def at_once(world: World, clients: list[Client], jobs: int) -> None:
    """So many of each client, which wait for one turn."""
    raw = spec(resources={"cpus": 1, "memory": "1GiB", "disk": "1GiB"})
    caps = [[client.signed_cap(load_job_spec(raw), 10**6) for _ in range(jobs)] for client in clients]
    async with world.market.writer:
        tasks = [
            asyncio.create_task(client.submit(raw, key=f"{cap.cap}", cap=cap))
            for client, of_client in zip(clients, caps, strict=True)
            for cap in of_client
        ]
        async with asyncio.timeout(60):
            while world.market.crowd.waiting < len(tasks):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)


@contextmanager
def counted(world: World) -> Iterator[list[str]]:
    engine, statements = world.market.sessions.kw["bind"].sync_engine, list[str]()

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)
