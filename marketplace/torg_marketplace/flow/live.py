"""The live book: what quotes and the matcher decide on, in memory and as fresh as the database.

Built from the database at the first use. Afterwards only nodes that changed are read: those that this process touched before
every decision, those that others touched within `book_check_ms`. A decision on a book that is a moment old costs at worst a
grant that is refused: `grant` looks at fresh rows.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import BigInteger, Select, String, bindparam, func, select, type_coerce

from torg_marketplace.flow.book import Book, Fingerprint
from torg_marketplace.flow.rows import demand_of, node_snapshots, registered_since
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.matching import kernel
from torg_marketplace.matching.engine import Engine
from torg_marketplace.matching.snapshot import NodeSnapshot
from torg_marketplace.storage.base import Base
from torg_marketplace.storage.models import JobRow, LeaseRow, NodeRow
from torg_protocol.ids import NodeId
from torg_protocol.states import LIVE_LEASE_STATES

_MIX_FROM_JOBS = 512  # newest jobs that teach a fresh engine what is asked for
_PAGE = 500  # nodes whose fingerprints are read together
_READ_AT_ONCE = 200  # nodes; more are cheaper read all together
_ASKED_LATELY_MS = 60_000


async def live_engine(market: Market, *, but_for_room: bool = False) -> Engine:
    """The engine, told of everything that has been committed here before; or of everything but what is free where, for who only asks which nodes
    there are and what they cost. Call outside of transactions."""
    book = market.book
    book.asked_at_ms = market.clock.now_ms()
    async with book.loading:
        if book.engine is None:
            await _build(market, book)
    await _look_elsewhere(market, book, market.policy.book_check_ms)
    async with book.loading:
        engine = book.engine if book.engine is not None else await _build(market, book)
        touched = book.take_touched(
            but_for_room=but_for_room
        )  # before reading: what is touched meanwhile is read again next time
        try:
            if touched:
                async with market.reading() as unit:
                    book.replace(engine, touched, await _read(unit, touched))
        except BaseException:
            book.touch(touched)
            raise
        return engine


async def keep_fresh(market: Market) -> None:
    """Looks a little before it is time, so that nobody who asks waits for a look at the whole fleet. At a book that is not asked, not at all."""
    book = market.book
    if book.engine is not None and 0 <= market.clock.now_ms() - book.asked_at_ms < _ASKED_LATELY_MS:
        await _look_elsewhere(market, book, market.policy.book_check_ms * 3 // 4)


async def _look_elsewhere(market: Market, book: Book, check_ms: int) -> None:
    """Marks what other processes changed, when it is time. Others go on meanwhile with the book as it is."""
    now_ms, before_ms = market.clock.now_ms(), book.checked_at_ms
    if 0 <= now_ms - before_ms < check_ms:
        return
    book.checked_at_ms = now_ms
    try:
        book.touch(book.changed(await _fingerprints(market)))
    except BaseException:
        book.checked_at_ms = before_ms
        raise


async def _build(market: Market, book: Book) -> Engine:
    now_ms = market.clock.now_ms()
    book.take_touched()
    book.changed(await _fingerprints(market))
    async with market.reading() as unit:
        engine = Engine(market.policy.decimals, await node_snapshots(unit))
        newest = select(JobRow).where(JobRow.generation > 0).order_by(JobRow.job_id.desc()).limit(_MIX_FROM_JOBS)
        for job in reversed((await unit.session.scalars(newest)).all()):
            engine.observe(demand_of(job, unit.now_ms))
    if len(engine.fleet) >= engine.compiled_from:
        book.compiling = asyncio.create_task(asyncio.to_thread(kernel.compile_now))  # until it is done, columns do
    book.engine, book.checked_at_ms = engine, now_ms
    return engine


async def _read(unit: Unit, nodes: set[NodeId]) -> list[NodeSnapshot]:
    if len(nodes) > _READ_AT_ONCE:
        return [node for node in await node_snapshots(unit) if node.node_id in nodes]
    return await node_snapshots(unit, only=nodes)


def _question() -> Select[Any]:
    """Over the table, with the states as texts: rows of the mapped class take twice as long, and there are as many as nodes."""
    nodes = Base.metadata.tables[NodeRow.__tablename__].c
    found = (type_coerce(nodes.state, String), type_coerce(nodes.liveness, String))
    columns = (nodes.node_id, *found, nodes.connected, nodes.offer_sequence, nodes.protocol_version, nodes.claims)
    registered = registered_since(bindparam("since_ms", type_=BigInteger))
    return select(*columns).where(*registered, nodes.node_id > bindparam("after")).order_by(nodes.node_id).limit(_PAGE)


_NODES = _question()
_LIVE_LEASES = (
    select(LeaseRow.node_id, func.count()).where(LeaseRow.state.in_(LIVE_LEASE_STATES)).group_by(LeaseRow.node_id)
)


async def _fingerprints(market: Market) -> dict[NodeId, Fingerprint]:
    """Page by page, so that a large fleet does not hold up who asks for something else."""
    found: dict[NodeId, Fingerprint] = {}
    async with market.reading() as unit:
        leases = (await unit.session.execute(_LIVE_LEASES)).all()
    after = ""
    while True:
        async with market.reading() as unit:
            connection = await unit.session.connection()
            asked = {"after": after, "since_ms": unit.now_ms - unit.policy.forget_node_after_ms}
            page = (await connection.execute(_NODES, asked)).all()
        found.update({NodeId(row[0]): row[1:] for row in page})
        if len(page) < _PAGE:
            break
        after = page[-1][0]
        await asyncio.sleep(0)
    for name, count in leases:
        if (node_id := NodeId(name)) in found:
            found[node_id] = (*found[node_id], count)
    return found
