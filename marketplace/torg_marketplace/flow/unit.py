"""The unit of work: what every flow is given. One request, one transaction, committed here and nowhere else.

    async with market.transaction() as unit:
        view = await cancel(unit, account, job_id)

Flows queue messages for nodes (`unit.send`) and wake-ups (`unit.wake`); both leave only after the commit and are best effort.
No flow makes a network call inside a transaction: what needs the chain, the evaluator or the blob store takes `market` and
works between two transactions.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from solders.keypair import Keypair
from sqlalchemy import Executable

from torg_host import tracing
from torg_host.tracing import Span
from torg_marketplace.flow.book import Book
from torg_marketplace.flow.crowd import Crowd, Reads
from torg_marketplace.flow.notes import Notes
from torg_marketplace.flow.wakes import NODE, Wakes
from torg_marketplace.ports import BlobStore, Catalogue, ChainPort, Clock, Evaluator, NodeLinks, Randomness, Replayer
from torg_marketplace.rules.policy import MarketPolicy
from torg_marketplace.storage import ledger
from torg_marketplace.storage.base import Base
from torg_marketplace.storage.engine import Sessions, answering
from torg_marketplace.storage.sessions import KeepingAsyncSession
from torg_protocol.ids import Ids, NodeId
from torg_protocol.messages import ToNode
from torg_protocol.money import format_amount

if TYPE_CHECKING:
    from torg_chain.network import Network

R = TypeVar("R", bound=Base)
T = TypeVar("T")

_open_unit: contextvars.ContextVar[bool] = contextvars.ContextVar("torg_open_unit", default=False)


@dataclass(slots=True)
class Vitals:
    """What this process saw last of things outside that it needs."""

    fee_payer_lamports: int | None = None


@dataclass(frozen=True, slots=True)
class Market:
    """Everything that a flow may use, built once by the composition root."""

    sessions: Sessions
    clock: Clock
    random: Randomness
    identity: Keypair  # signs grants, commitments, usage and receipts
    capture_key: Keypair
    network: Network
    chain: ChainPort
    blobs: BlobStore
    links: NodeLinks
    catalogue: Catalogue
    evaluator: Evaluator
    policy: MarketPolicy
    replayer: Replayer | None = None  # None: this marketplace cannot execute segments again
    credit_key: Keypair | None = None  # depositor and signer of the credit vault: pays for jobs of API keys
    ids: Ids = field(default_factory=Ids)
    wakes: Wakes = field(default_factory=Wakes)
    book: Book = field(default_factory=Book)
    vitals: Vitals = field(default_factory=Vitals)
    # One writer at a time: SQLite has one anyway, and a fair queue beats its busy timeout. Held for a transaction's length.
    writer: asyncio.Lock = field(default_factory=asyncio.Lock)
    crowd: Crowd = field(default_factory=Crowd)
    public_key: str = field(init=False)  # of `identity`: every document names it

    def __post_init__(self) -> None:
        object.__setattr__(self, "public_key", str(self.identity.pubkey()))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Unit]:
        """Commits at the end, rolls back on any error; then delivers what was queued. Never nested. Raises Unavailable
        `database_unavailable`; when that is at the end, nobody can tell whether it was committed, so that flows are safe to repeat."""
        async with self.committing() as unit:
            yield unit
        await unit.deliver()

    async def shared(
        self, work: Callable[[Unit], Coroutine[Any, Any, T]], *, stage: str, reads: Sequence[Reads] = ()
    ) -> T:
        """What `work` returns or raises, after the commit of a transaction that others may share (`flow/crowd.py`): for what comes often, and is
        safe to repeat. `stage`: what its processor time is counted under. `reads`: what it will ask for, read with what others ask for."""
        with _exclusive():
            return await self.crowd.run(self, work, stage, reads)

    @asynccontextmanager
    async def committing(self) -> AsyncIterator[Unit]:
        """A transaction that delivers nothing yet: whoever opens it calls `deliver` afterwards."""
        with _exclusive():
            async with self.writer:
                with answering():
                    async with self.sessions() as session, session.begin():
                        unit = Unit(session, self)
                        yield unit
                        await ledger.write_collected(session)
                        await unit.execute_later()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Unit]:
        """A transaction that writes nothing: it waits for no writer and sees one moment of the database, that of its first question. Who asks
        nothing takes no connection."""
        with answering():
            async with self.sessions.reading() as session, session.begin():
                yield Unit(session, self)


class Unit:
    """One transaction. `now_ms` is the same for everything that happens in it."""

    def __init__(self, session: KeepingAsyncSession, market: Market) -> None:
        self.session = session
        self.market = market
        self.now_ms = market.clock.now_ms()
        self.noted = Notes()
        self._outbox: list[tuple[NodeId, ToNode]] = []
        self._wakes: set[str] = set()
        self._touched: set[NodeId] = set()
        self._filled: set[NodeId] = set()  # or emptied
        self._spans: list[Span] = []
        self._later: dict[Executable, list[dict[str, Any]]] = {}

    @property
    def policy(self) -> MarketPolicy:
        return self.market.policy

    def tokens(self, amount: int) -> str:
        """For people: base units as they write them, with the word."""
        return f"{format_amount(amount, self.policy.decimals)} tokens"

    def new_id(self, prefix: str) -> str:
        return self.market.ids.new(prefix, self.now_ms, self.market.random.bits(64))

    def known(self, table: type[R], key: str | tuple[object, ...]) -> R | None:
        """A row that this transaction has loaded or added before, as it stands; None asks for a look into the database."""
        return self.session.sync_session.known(table, key)

    def is_settled(self, table: type[R], key: str | tuple[object, ...]) -> bool:
        """Whether `get` of such a row needs no look into the database: it is known, or known not to be there."""
        return self.known(table, key) is not None or self.session.sync_session.is_absent(table, key)

    def note_absent(self, table: type[R], key: str | tuple[object, ...]) -> None:
        """A row that the database does not hold: asking for it is no question any more. Who adds one finds it all the same."""
        self.session.sync_session.note_absent(table, key)

    def loaded(self, table: type[R]) -> list[R]:
        """Rows that this transaction has read, as they stand."""
        return self.session.sync_session.loaded(table)

    def post(self, *, key: str, cause: str, entries: Sequence[ledger.Entry]) -> None:
        """Once, with the commit. Raises LedgerError."""
        ledger.post_later(self.session, key=key, cause=cause, entries=entries, at_ms=self.now_ms)

    def later(self, statement: Executable, parameters: dict[str, Any]) -> None:
        """Executed before the commit, by one round trip with all others of the same statement. This transaction does not see before what it
        changes."""
        self._later.setdefault(statement, []).append(parameters)

    async def execute_later(self) -> None:
        later, self._later = self._later, {}
        if later:
            await self.session.flush()
            connection = await self.session.connection()  # the session itself takes a list of parameters for rows
            for statement, parameters in later.items():
                await connection.execute(statement, parameters)

    def send(self, node_id: NodeId, message: ToNode) -> None:
        """Sent after the commit, in order, best effort."""
        self._outbox.append((node_id, message))

    def wake(self, topic: str) -> None:
        """Woken after the commit."""
        self._wakes.add(topic)

    def touch(self, node_id: NodeId, *, only_room: bool = False) -> None:
        """What the matcher knows of this node changes with the commit: its offer, state, liveness, or (that alone: `only_room`) what is free on it."""
        (self._filled if only_room else self._touched).add(node_id)

    def trace(
        self, name: str, job_id: str, start_ms: int | None, *, end_ms: int | None = None, **attributes: str
    ) -> None:
        """A stage of a job's life that is over (by default: now), for its trace; told after the commit. Nothing where it did not begin."""
        if tracing.is_on() and start_ms is not None:
            end_ms = self.now_ms if end_ms is None else end_ms
            self._spans.append(Span(name, job_id, start_ms, end_ms, attributes))

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """On an error, what was written, queued and woken inside is undone, and the error goes on. Rows that were loaded
        before are expired then: load them again."""
        queued, woken = len(self._outbox), set(self._wakes)
        spans = len(self._spans)
        postings = dict(ledger.collected(self.session))
        later = {statement: list(parameters) for statement, parameters in self._later.items()}
        noted = self.noted.copied()
        try:
            async with self.session.begin_nested():
                yield
        except BaseException:
            del self._outbox[queued:]
            del self._spans[spans:]
            self.session.info[ledger.COLLECTED] = postings
            self._wakes, self._later, self.noted = woken, later, noted
            raise

    async def deliver(self) -> None:
        for span in self._spans:
            tracing.emit(span)
        self.market.book.touch(self._touched)
        self.market.book.touch(self._filled, only_room=True)
        changed = sorted(self._touched | self._filled)
        await self.market.wakes.wake_all([*sorted(self._wakes), *(f"{NODE}{node_id}" for node_id in changed)])
        for node_id, message in self._outbox:
            await self.market.links.send(node_id, message)


@contextmanager
def _exclusive() -> Iterator[None]:
    """A transaction inside a transaction would wait for itself for ever: refuse it loudly."""
    if _open_unit.get():
        raise RuntimeError("a transaction is open in this task already: pass its unit on")
    token = _open_unit.set(True)
    try:
        yield
    finally:
        _open_unit.reset(token)
