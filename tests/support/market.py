"""A whole marketplace in memory's reach: real flows, a real database, a clock that stands still, and strict fakes around.

Strict: an evaluation that nobody scripted fails the test, and so does a message to a node that nobody looked at in the end.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from solders.hash import Hash
from solders.keypair import Keypair

from tests.support.money import FakeChain
from torg_chain.network import LOCALNET_MINT, LOCALNET_PROGRAM_ID, Network
from torg_marketplace.flow.unit import Market
from torg_marketplace.ports import CatalogueEntry, EvaluationFailed, Measurement
from torg_marketplace.rules.policy import MarketPolicy
from torg_marketplace.storage.engine import create_engine, create_sessions
from torg_marketplace.storage.registry import metadata
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import NotFound
from torg_protocol.ids import Digest, NodeId
from torg_protocol.jobspec import BlobRef
from torg_protocol.messages import OrderIssued, ToNode

START_MS = 1_800_000_000_000


@dataclass
class FakeClock:
    time_ms: int = START_MS

    def now_ms(self) -> int:
        return self.time_ms

    def advance(self, ms: int) -> None:
        self.time_ms += ms


class SeededRandom:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def keypair(self) -> Keypair:
        return Keypair.from_seed(self._random.randbytes(32))


class RecordingLinks:
    """Messages wait per node until somebody takes them. To a node that is not connected nothing is delivered."""

    def __init__(self) -> None:
        self._inboxes: dict[NodeId, deque[ToNode]] = {}

    def connect(self, node_id: NodeId) -> None:
        self._inboxes[node_id] = deque()

    def disconnect(self, node_id: NodeId) -> None:
        """What was on the way is lost."""
        self._inboxes.pop(node_id, None)

    async def send(self, node_id: NodeId, message: ToNode) -> bool:
        inbox = self._inboxes.get(node_id)
        if inbox is None:
            return False
        inbox.append(message)
        return True

    def connected(self) -> frozenset[NodeId]:
        return frozenset(self._inboxes)

    def take_all(self, node_id: NodeId) -> list[ToNode]:
        inbox = self._inboxes.get(node_id, deque())
        messages = list(inbox)
        inbox.clear()
        return messages

    def unread(self) -> list[tuple[NodeId, str]]:
        """Not counted: orders, which a node keeps and does nothing about; tests of settlement look at them."""
        return [
            (node, type(message).__name__)
            for node, inbox in self._inboxes.items()
            for message in inbox
            if not isinstance(message, OrderIssued)
        ]


class MemoryBlobs:
    def __init__(self) -> None:
        self.stored: dict[Digest, bytes] = {}

    def put(self, data: bytes) -> BlobRef:
        digest = sha256_digest(data)
        self.stored[digest] = data
        return BlobRef(digest=digest, size_bytes=len(data))

    async def size(self, digest: Digest) -> int | None:
        return len(self.stored[digest]) if digest in self.stored else None

    async def upload_url(self, digest: Digest, size_bytes: int, now_ms: int) -> str | None:
        return None if digest in self.stored else f"memory:{digest}:{size_bytes}:{now_ms}"

    async def download_url(self, digest: Digest, now_ms: int) -> str:
        return f"memory:{digest}:{now_ms}"

    async def read(self, digest: Digest) -> bytes:
        if digest not in self.stored:
            raise NotFound("no such blob", code="blob_missing", field="digest", value=digest)
        return self.stored[digest]

    async def fetch_to(self, digest: Digest, path: Path) -> None:
        path.write_bytes(await self.read(digest))

    async def write(self, data: bytes) -> Digest:
        return self.put(data).digest


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

    def entry(self, name: str) -> CatalogueEntry | None:
        return self.entries.get(name)


@dataclass(frozen=True)
class World:
    """The marketplace under test and everything around it."""

    market: Market
    clock: FakeClock
    random: SeededRandom
    links: RecordingLinks
    blobs: MemoryBlobs
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
    """By default on SQLite in `folder`. What the database lacks of tables is made."""
    engine = create_engine(database_url or f"sqlite+aiosqlite:///{folder / 'market.sqlite'}")
    try:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        randomness = SeededRandom(seed)
        clock, links, blobs = FakeClock(), RecordingLinks(), MemoryBlobs()
        evaluator, catalogue, chain = ScriptedEvaluator(), FakeCatalogue(), FakeChain()
        market = Market(
            sessions=create_sessions(engine),
            clock=clock,
            random=randomness,
            identity=randomness.keypair(),
            capture_key=randomness.keypair(),
            network=fake_network(randomness),
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


def fake_network(randomness: SeededRandom) -> Network:
    return Network(
        rpc_url="http://127.0.0.1:1",  # nobody listens: tests of flows never reach a network
        genesis_hash=str(Hash(randomness.bits(256).to_bytes(32, "big"))),
        program_id=LOCALNET_PROGRAM_ID,
        mint=LOCALNET_MINT,
        decimals=6,
        operator_config=str(randomness.keypair().pubkey()),
    )
