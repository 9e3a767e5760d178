"""A whole marketplace in memory's reach: real flows, a real database, a clock that stands still, and strict fakes around.

Strict: an evaluation that nobody scripted fails the test, and so does a message to a node that nobody looked at in the end.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.money import FakeChain
from torg_marketplace.flow.unit import Market
from torg_marketplace.ports import CatalogueEntry, EvaluationFailed, Measurement
from torg_marketplace.rules.policy import MarketPolicy
from torg_marketplace.simulation.world import Blobs, Links, SeededRandomness, VirtualClock, made_up_network
from torg_marketplace.storage.engine import Sessions, create_engine
from torg_marketplace.storage.registry import metadata
from torg_protocol.ids import Digest, NodeId
from torg_protocol.messages import OrderIssued
from torg_protocol.suspensions import NodeSuspended


class RecordingLinks(Links):
    def unread(self) -> list[tuple[NodeId, str]]:
        """Not counted: orders and suspensions, which a node keeps and does nothing about; their own tests look at them."""
        return [
            (node, type(message).__name__)
            for node, inbox in self._inboxes.items()
            for message in inbox
            if not isinstance(message, OrderIssued | NodeSuspended)
        ]


@dataclass
class ScriptedEvaluator:
    """Answers what the test scripted, in order; anything else is an error of the code under test."""

    script: deque[Measurement | EvaluationFailed] = field(default_factory=deque)
    seeds: list[int] = field(default_factory=list)
    files: list[dict[str, Digest]] = field(default_factory=list)

    def will_measure(self, **values: str) -> None:
        self.script.append(Measurement(values=values))

    def will_fail(self, message: str) -> None:
        self.script.append(EvaluationFailed(message))

    async def evaluate(
        self, catalogue: CatalogueEntry, metric: str, files: Mapping[str, Digest], seed: int
    ) -> Measurement:
        if not self.script:
            raise AssertionError(f"nobody scripted an evaluation of {catalogue.name}")
        self.seeds.append(seed)
        self.files.append(dict(files))
        answer = self.script.popleft()
        if isinstance(answer, EvaluationFailed):
            raise answer
        return answer


@dataclass
class FakeCatalogue:
    entries: dict[str, CatalogueEntry] = field(default_factory=dict)

    replays: dict[str, Digest] = field(default_factory=dict)

    def entry(self, name: str) -> CatalogueEntry | None:
        return self.entries.get(name)

    def replayable(self, name: str) -> Digest | None:
        return self.replays.get(name)


@dataclass(frozen=True)
class World:
    """The marketplace under test and everything around it."""

    market: Market
    clock: VirtualClock
    random: SeededRandomness
    links: RecordingLinks
    blobs: Blobs
    evaluator: ScriptedEvaluator
    catalogue: FakeCatalogue
    chain: FakeChain

    def assert_settled_effects(self) -> None:
        assert self.links.unread() == [], "messages to nodes that nobody looked at"
        assert not self.evaluator.script, "scripted evaluations that never happened"

    def advance(self, *, ms: int = 0, seconds: int = 0) -> None:
        self.clock.advance(ms + seconds * 1000)


@asynccontextmanager
async def open_world(
    folder: Path, *, seed: int = 1, policy: MarketPolicy | None = None, database_url: str | None = None
) -> AsyncIterator[World]:
    """By default on SQLite in `folder`. A file that is not there yet gets all tables; a database of PostgreSQL has them."""
    url = database_url or f"sqlite:///{folder / 'market.sqlite'}"
    if url.startswith("sqlite") and not (file := Path(url.removeprefix("sqlite:///"))).exists():
        file.write_bytes(await _with_all_tables())
    engine = create_engine(url)
    try:
        randomness = SeededRandomness(seed)
        clock, links, blobs = VirtualClock(), RecordingLinks(), Blobs()
        evaluator, catalogue, chain = ScriptedEvaluator(), FakeCatalogue(), FakeChain()
        market = Market(
            sessions=Sessions(engine),
            clock=clock,
            random=randomness,
            identity=randomness.keypair(),
            capture_key=randomness.keypair(),
            network=made_up_network(randomness),
            chain=chain,
            blobs=blobs,
            links=links,
            catalogue=catalogue,
            evaluator=evaluator,
            policy=policy or MarketPolicy(),
        )
        yield World(market, clock, randomness, links, blobs, evaluator, catalogue, chain)
    finally:
        await engine.dispose()


_tables: list[bytes] = []


async def _with_all_tables() -> bytes:
    """A database file of SQLite. Made once: a copy costs nothing, and each table that is created waits for the disk."""
    if not _tables:
        with tempfile.TemporaryDirectory(prefix="torg-tables-") as folder:
            file = Path(folder) / "market.sqlite"
            engine = create_engine(f"sqlite:///{file}")
            async with engine.begin() as connection:
                await connection.run_sync(metadata.create_all)
            await engine.dispose()  # the last connection writes what is in the log into the file
            assert [path.name for path in Path(folder).iterdir()] == [file.name]
            _tables.append(file.read_bytes())
    return _tables[0]
