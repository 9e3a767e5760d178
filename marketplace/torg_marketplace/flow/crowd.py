"""Group commit: pieces of work that wait for their turn at the same time share one transaction.

    answer = await market.shared(lambda unit: on_receipt_signed(unit, node_id, message), stage="receipts")

A transaction has costs of its own: its begin and its end, the turn at the database, a flush. While one runs, everybody else waits, so under load
many are paid for once. Each piece is answered after the commit, as if the transaction had been its own. When one of several raises, nothing of
what they did is kept, and each is done again in a transaction of its own: an error is its author's alone, and a piece must be safe to repeat.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Collection, Coroutine, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torg_marketplace.stages import measured
from torg_protocol.errors import Unavailable

if TYPE_CHECKING:
    from torg_marketplace.flow.unit import Market, Unit

R = TypeVar("R")
_MOST = 32  # in one transaction: what it holds of the database, others wait for


@dataclass(frozen=True, slots=True)
class Reads:
    """Rows that a piece of work will ask for: `load` is called once for the keys of all pieces that name it, and work finds them in the session."""

    load: Callable[[Unit, Collection[Any]], Coroutine[Any, Any, None]]
    keys: Collection[Hashable]


@dataclass(slots=True, eq=False)
class _Piece:
    work: Callable[[Unit], Coroutine[Any, Any, Any]]
    stage: str
    reads: Sequence[Reads]
    alone: bool = False
    done: bool = False
    answer: Any = None
    error: Exception | None = None


class Crowd:
    """One per process. Whose turn it is takes along all who wait behind it; who is cancelled while it waits has not been there."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._waiting: list[_Piece] = []  # in the order in which they came, as the lock serves them
        self._turn = asyncio.Lock()

    @property
    def waiting(self) -> int:
        """Pieces whose turn has not come, or is not over."""
        return len(self._waiting)

    async def run(
        self, market: Market, work: Callable[[Unit], Coroutine[Any, Any, R]], stage: str, reads: Sequence[Reads]
    ) -> R:
        """What `work` returns or raises, after the commit."""
        mine = _Piece(work, stage, reads)
        self._waiting.append(mine)
        try:
            async with self._turn:
                while not mine.done:
                    await _to_its_end(self._transact(market, mine))
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)
        if mine.error is not None:
            raise mine.error
        answer: R = mine.answer
        return answer

    async def _transact(self, market: Market, first: _Piece) -> None:
        """Those who are told to go again alone are not done then."""
        together = [first]
        try:
            async with market.committing() as unit:
                await unit.session.connection()  # the database's turn: who comes before it takes part
                together = self._who_goes_with(first)
                await _read_ahead(unit, together)
                answers = [await measured(each.stage, each.work(unit)) for each in together]
        except Exception as error:
            if len(together) == 1:
                raise
            for each in together:
                if isinstance(error, Unavailable) and error.code == "database_unavailable":
                    each.done, each.error = True, error  # it may be committed all the same: not to be done twice
                else:
                    each.alone = True
            return
        for each, answer in zip(together, answers, strict=True):
            each.done, each.answer = True, answer
        self._waiting = [each for each in self._waiting if not each.done]
        await unit.deliver()

    def _who_goes_with(self, first: _Piece) -> list[_Piece]:
        if first.alone:
            return [first]
        others = (each for each in self._waiting if each is not first and not each.alone and not each.done)
        return [first, *others][: self._most]


async def _read_ahead(unit: Unit, together: Sequence[_Piece]) -> None:
    keys: dict[Callable[[Unit, Collection[Any]], Coroutine[Any, Any, None]], dict[Hashable, None]] = {}
    for each in together:
        for reads in each.reads:
            keys.setdefault(reads.load, {}).update(dict.fromkeys(reads.keys))
    for load, wanted in keys.items():
        if wanted:
            await load(unit, list(wanted))


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Whoever leads for others does not drop their work half-way when it is cancelled itself."""
    task = asyncio.create_task(measured("shared transactions", work), context=contextvars.Context())
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise
