"""A statement says all that the ledger says of a vault, and its figures add up."""

from __future__ import annotations

import pytest

from tests.support.actors import TUSD, Client, join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.settle import advance_settlements, settle_due
from torg_marketplace.flow.statements import statement
from torg_protocol.api import Statement, StatementFigures
from torg_protocol.errors import NotFound

MINUTE_MS = 60_000


async def of(
    world: World,
    client: Client,
    *,
    since_ms: int = 0,
    until_ms: int | None = None,
    cursor: str | None = None,
    limit: int = 200,
) -> Statement:
    until = world.clock.now_ms() + 1 if until_ms is None else until_ms
    async with world.market.reading() as unit:
        return await statement(
            unit, client.account, client.vault, since_ms=since_ms, until_ms=until, cursor=cursor, limit=limit
        )


def added(figures: StatementFigures, others: list[StatementFigures]) -> StatementFigures:
    return StatementFigures.model_validate(
        {
            name: getattr(figures, name) + sum(getattr(other, name) for other in others)
            for name in StatementFigures.model_fields
        }
    )


async def test_every_movement_has_its_cause_and_the_balances_follow(world: World) -> None:
    node = await join(world, price=3 * TUSD)
    client = await make_client(world, deposit=10 * TUSD)
    await make_client(world, deposit=5 * TUSD)  # somebody else's money appears nowhere
    world.advance(seconds=1)
    job = await client.submit(spec(limits={"max_duration": "1h"}))
    submitted_ms = world.clock.now_ms()
    world.advance(seconds=1)
    await match_pending(world.market)
    await node.accept_and_start()
    world.advance(ms=20 * MINUTE_MS)
    await node.finish()
    await settle_due(world.market, hurry=True)
    await advance_settlements(world.market)
    await advance_settlements(world.market)
    node.read()

    told = await of(world, client)
    assert [(line.cause.split()[0], line.job_id) for line in told.lines] == [
        ("deposits", None),
        ("job", job.job_id),  # admitted
        ("usage", job.job_id),
        ("work", job.job_id),  # accepted: from pending to payable
        ("job", job.job_id),  # ended
        ("captured", None),
    ]
    assert told.lines[2].lease_id == told.lines[3].lease_id is not None
    assert told.opening == StatementFigures(free=0, held=0, owed=0, in_vault=0)
    assert told.closing == StatementFigures(free=9 * TUSD, held=0, owed=0, in_vault=9 * TUSD)
    assert added(told.opening, [line.moved for line in told.lines]) == told.closing
    for figures in (told.opening, told.closing, *(line.moved for line in told.lines)):
        assert figures.free + figures.held + figures.owed == figures.in_vault

    held = await of(world, client, until_ms=submitted_ms + 1)
    assert held.closing == StatementFigures(free=7 * TUSD, held=3 * TUSD, owed=0, in_vault=10 * TUSD)
    since = await of(world, client, since_ms=submitted_ms + 1)
    assert (since.opening, since.closing) == (held.closing, told.closing)
    assert held.lines + since.lines == told.lines


async def test_pages_are_the_whole(world: World) -> None:
    await join(world)
    client = await make_client(world)
    for number in range(3):
        await client.submit(spec(name=f"job{number}"))
    whole, pages, cursor = await of(world, client), [], None
    while True:
        page = await of(world, client, cursor=cursor, limit=1)
        pages.append(page)
        if (cursor := page.next_cursor) is None:
            break
    assert len(pages) == 4
    assert tuple(line for page in pages for line in page.lines) == whole.lines
    assert {page.closing.held for page in pages} == {whole.closing.held}


async def test_a_vault_of_somebody_else_is_unknown(world: World) -> None:
    mine, other = await make_client(world), await make_client(world)
    async with world.market.reading() as unit:
        with pytest.raises(NotFound) as refused:
            await statement(unit, mine.account, other.vault, since_ms=0, until_ms=1, cursor=None, limit=1)
    assert refused.value.code == "vault_unknown"
