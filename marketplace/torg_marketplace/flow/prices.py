"""Reference prices: once a minute, per class, from the live book and the backlog; kept for `_KEEP_MS`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import delete, func, select

from torg_marketplace.flow.live import live_engine
from torg_marketplace.flow.rows import demand_of
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.matching.auction import Quantity, clear
from torg_marketplace.matching.constraints import constraints, passing
from torg_marketplace.matching.engine import Engine
from torg_marketplace.storage.models import JobRow, ReferencePriceRow
from torg_protocol.api import ReferencePrice
from torg_protocol.states import JobState

EVERY_MS = 60_000
_LOOK_AGAIN_MS = 1_000
_KEEP_MS = 7 * 86_400_000
_JOBS_LOOKED_AT = 1_000  # waiting ones, the highest bids
MAX_PRICES = 1_000  # in one answer


async def publish_prices(market: Market) -> int:
    """Clears the auction of the minute that has begun, once: whoever is later finds it done. Returns the number of classes."""
    engine = await live_engine(market)
    async with market.transaction() as unit:
        minute_ms = unit.now_ms // EVERY_MS * EVERY_MS
        newest = await unit.session.scalar(select(func.max(ReferencePriceRow.at_ms)))
        if newest is not None and newest >= minute_ms:
            return 0
        asks, bids = _asks(engine), await _bids(unit, engine)
        for name in sorted(asks.keys() | bids.keys()):
            cleared = clear(asks[name], bids[name])
            unit.session.add(
                ReferencePriceRow(
                    gpu_class=name,
                    at_ms=minute_ms,
                    price_per_gpu_hour=cleared.price,
                    gpus=cleared.gpus,
                    best_bid=cleared.best_bid,
                    best_ask=cleared.best_ask,
                    gpus_offered=cleared.gpus_offered,
                    gpus_wanted=cleared.gpus_wanted,
                )
            )
        await unit.session.execute(delete(ReferencePriceRow).where(ReferencePriceRow.at_ms < minute_ms - _KEEP_MS))
    market.book.reference_prices = None
    return len(asks.keys() | bids.keys())


async def prices(
    unit: Unit, *, gpu_class: str | None = None, since_ms: int | None = None
) -> tuple[ReferencePrice, ...]:
    """Newest first. Without `since_ms` only the newest minute; else at most MAX_PRICES rows since then."""
    row = ReferencePriceRow
    since = select(func.max(row.at_ms)).scalar_subquery() if since_ms is None else since_ms
    query = select(row).where(row.at_ms >= since).order_by(row.at_ms.desc(), row.gpu_class).limit(MAX_PRICES)
    if gpu_class is not None:
        query = query.where(row.gpu_class == gpu_class)
    return tuple(
        ReferencePrice(
            gpu_class=item.gpu_class,
            at_ms=item.at_ms,
            price_per_gpu_hour=item.price_per_gpu_hour,
            gpus=item.gpus,
            best_bid=item.best_bid,
            best_ask=item.best_ask,
            gpus_offered=item.gpus_offered,
            gpus_wanted=item.gpus_wanted,
        )
        for item in await unit.session.scalars(query)
    )


async def newest_prices(unit: Unit) -> tuple[ReferencePrice, ...]:
    """`prices` of the newest minute. Every quote asks: it is looked for again when that minute is over, once a second."""
    book = unit.market.book
    known = book.reference_prices
    lasts_until_ms = max(book.reference_at_ms + _LOOK_AGAIN_MS, known[0].at_ms + EVERY_MS if known else 0)
    if known is None or not book.reference_at_ms <= unit.now_ms < lasts_until_ms:
        known = book.reference_prices = await prices(unit)
        book.reference_at_ms = unit.now_ms
    return known


def _asks(engine: Engine) -> dict[str, list[Quantity]]:
    """What is free on nodes that take jobs. A node without GPUs sells slots."""
    fleet, found = engine.fleet, defaultdict[str, list[Quantity]](list)
    for row in fleet.rows().tolist():
        if fleet.live[row] and fleet.accepting[row]:
            free = fleet.gpus_whole[row] if fleet.gpus_total[row] else fleet.slots_free[row]
            found[fleet.class_names[int(fleet.gpu_class[row])]].append(Quantity(int(fleet.price[row]), int(free)))
    return found


async def _bids(unit: Unit, engine: Engine) -> dict[str, list[Quantity]]:
    """A waiting job bids in the class of the cheapest node that fits it: that is where it would go. Spot jobs are another market, and parts of a GPU
    are not on offer here."""
    fleet, found = engine.fleet, defaultdict[str, list[Quantity]](list)
    query = select(JobRow).where(JobRow.state == JobState.QUEUED).order_by(JobRow.price_ceiling.desc(), JobRow.job_id)
    waiting: Sequence[JobRow] = (await unit.session.scalars(query.limit(_JOBS_LOOKED_AT))).all()
    for job in waiting:
        demand = demand_of(job, unit.now_ms)
        if demand.spec.spot or demand.spec.resources.is_share:
            continue
        lasting = [rule for rule in constraints(demand, unit.policy.decimals) if rule.permanent]
        rows = passing(fleet, fleet.rows(), lasting)
        if rows.size:
            cheapest = rows[fleet.price[rows].argmin()]
            name = fleet.class_names[int(fleet.gpu_class[cheapest])]
            found[name].append(Quantity(job.price_ceiling, demand.spec.resources.billable_gpus))
    return found
