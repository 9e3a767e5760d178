"""Whether anybody matches: the matcher says so every few seconds, and quotes of other processes ask."""

from __future__ import annotations

from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.models import MarketRow

BEAT_S = 5.0
AWAY_AFTER_MS = 15_000  # a fail-over takes some five seconds
_MATCHER = 2  # of the rows of `market`; the first is the worker's (`liveness.py`)
_ASK_EVERY_MS = 5_000


async def note_matching(market: Market) -> None:
    async with market.transaction() as unit:
        await unit.session.merge(MarketRow(id=_MATCHER, awake_at_ms=unit.now_ms))


async def matcher_away_ms(unit: Unit) -> int:
    """For how long nothing has been matched; 0: the matcher works, or nobody has ever said so. May be five seconds old."""
    book = unit.market.book
    if not 0 <= unit.now_ms - book.matcher_asked_at_ms < _ASK_EVERY_MS:
        row = await unit.session.get(MarketRow, _MATCHER)
        book.matcher_seen_ms, book.matcher_asked_at_ms = None if row is None else row.awake_at_ms, unit.now_ms
    if book.matcher_seen_ms is None or unit.now_ms - book.matcher_seen_ms < AWAY_AFTER_MS:
        return 0
    return unit.now_ms - book.matcher_seen_ms
