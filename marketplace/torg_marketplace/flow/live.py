"""The live book: what quotes and the matcher decide on, in memory and as fresh as the database.

Built from the database at the first use. Afterwards only nodes that changed are read: those that this process touched before
every decision, those that others touched within `book_check_ms`. A decision on a book that is a moment old costs at worst a
grant that is refused: `grant` looks at fresh rows.
"""

from __future__ import annotations

import asyncio

from sqlalchemy import func, select

from torg_marketplace.flow.book import Book, Fingerprint
from torg_marketplace.flow.rows import demand_of, is_registered, node_snapshots
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.matching import kernel
from torg_marketplace.matching.engine import Engine
from torg_marketplace.matching.snapshot import NodeSnapshot
from torg_marketplace.storage.models import JobRow, LeaseRow, NodeRow
from torg_protocol.ids import NodeId
from torg_protocol.states import LIVE_LEASE_STATES

_MIX_FROM_JOBS = 512  # newest jobs that teach a fresh engine what is asked for
_READ_AT_ONCE = 200  # nodes; more are cheaper read all together


async def live_engine(market: Market) -> Engine:
    """The engine, told of everything that has been committed here before. Call outside of transactions."""
    book = market.book
    async with book.loading:
        now_ms = market.clock.now_ms()
        touched = book.take_touched()  # before reading: what is touched meanwhile is read again next time
        try:
            if book.engine is None:
                return await _build(market, book, now_ms)
            if not 0 <= now_ms - book.checked_at_ms < market.policy.book_check_ms:
                async with market.reading() as unit:
                    touched |= book.changed(await _fingerprints(unit))
                book.checked_at_ms = now_ms
            if touched:
                async with market.reading() as unit:
                    book.replace(book.engine, touched, await _read(unit, touched))
        except BaseException:
            book.touch(touched)
            raise
        return book.engine


async def _build(market: Market, book: Book, now_ms: int) -> Engine:
    async with market.reading() as unit:
        book.changed(await _fingerprints(unit))
        engine = Engine(market.policy.decimals, await node_snapshots(unit))
        newest = select(JobRow).where(JobRow.generation > 0).order_by(JobRow.job_id.desc()).limit(_MIX_FROM_JOBS)
        for job in reversed((await unit.session.scalars(newest)).all()):
            engine.observe(demand_of(job))
    if len(engine.fleet) >= engine.compiled_from:
        book.compiling = asyncio.create_task(asyncio.to_thread(kernel.compile_now))  # until it is done, columns do
    book.engine, book.checked_at_ms = engine, now_ms
    return engine


async def _read(unit: Unit, nodes: set[NodeId]) -> list[NodeSnapshot]:
    if len(nodes) > _READ_AT_ONCE:
        return [node for node in await node_snapshots(unit) if node.node_id in nodes]
    return await node_snapshots(unit, only=nodes)


async def _fingerprints(unit: Unit) -> dict[NodeId, Fingerprint]:
    live = (
        select(LeaseRow.node_id, func.count()).where(LeaseRow.state.in_(LIVE_LEASE_STATES)).group_by(LeaseRow.node_id)
    )
    leases = {row[0]: int(row[1]) for row in (await unit.session.execute(live)).all()}
    columns = (
        NodeRow.node_id,
        NodeRow.state,
        NodeRow.liveness,
        NodeRow.connected,
        NodeRow.offer_sequence,
        NodeRow.claims,
    )
    rows = await unit.session.execute(select(*columns).where(*is_registered(unit)))
    return {NodeId(row[0]): Fingerprint(*row[1:], leases=leases.get(row[0], 0)) for row in rows.all()}
