"""What the flows are given in a simulated market."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from solders.hash import Hash
from solders.keypair import Keypair

from torg_chain.network import LOCALNET_MINT, LOCALNET_PROGRAM_ID, Network
from torg_marketplace.flow.blobs import note_stored, plan_upload
from torg_marketplace.flow.book import Book
from torg_marketplace.flow.crowd import Crowd
from torg_marketplace.flow.pulse import Pulse
from torg_marketplace.flow.unit import Market
from torg_marketplace.flow.wakes import Wakes
from torg_marketplace.ports import CatalogueEntry, EvaluationFailed, Measurement, Planted
from torg_marketplace.rules.policy import MarketPolicy
from torg_marketplace.rules.replay import Distance, Segment
from torg_marketplace.simulation.chain import SimulatedChain
from torg_marketplace.simulation.memory_database import empty_market
from torg_marketplace.simulation.plan import keeps_house
from torg_marketplace.storage.engine import Sessions
from torg_protocol.api import BlobUploadRequest
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import NotFound
from torg_protocol.ids import Digest, NodeId
from torg_protocol.jobspec import BlobRef, JobSpec
from torg_protocol.messages import Abandon, Granted, Stop, ToNode

START_MS = 1_800_000_000_000
_LOST = 0.08
WORKLOAD = "cnn"
GOOD, BAD, UNREADABLE = (
    b"good",
    b"bad",
    b"unreadable",
)  # how a model file begins, which is all that the evaluator looks at
MADE_UP = b"made up"  # how a checkpoint begins that is not what the job makes of what was before


@dataclass
class VirtualClock:
    time_ms: int = START_MS

    def now_ms(self) -> int:
        return self.time_ms

    def advance(self, ms: int) -> None:
        self.time_ms += ms


class SeededRandomness:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def keypair(self) -> Keypair:
        return Keypair.from_seed(self._random.randbytes(32))


class Links:
    """Messages wait per node until it takes them. To a node that is not connected nothing is delivered; with `chance`, some of what is said
    again until the node reacts to it gets lost on the way to others, as between processes of a marketplace."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance
        self._inboxes: dict[NodeId, deque[ToNode]] = {}
        self._said: dict[NodeId, list[ToNode]] = {}  # since the node last read

    def connect(self, node_id: NodeId) -> None:
        self._inboxes[node_id], self._said[node_id] = deque(), []

    def disconnect(self, node_id: NodeId) -> None:
        """What was on the way is lost."""
        self._inboxes.pop(node_id, None)

    async def send(self, node_id: NodeId, message: ToNode) -> bool:
        inbox = self._inboxes.get(node_id)
        if inbox is None:
            return False
        self._said[node_id].append(message)
        if isinstance(message, Granted | Stop | Abandon) and self._chance is not None and self._chance.random() < _LOST:
            return True
        inbox.append(message)
        return True

    def connected(self) -> frozenset[NodeId]:
        return frozenset(self._inboxes)

    def said(self, node_id: NodeId) -> list[ToNode]:
        """Since it last read, also what gets lost."""
        return self._said.get(node_id, [])

    def take_all(self, node_id: NodeId) -> list[ToNode]:
        inbox = self._inboxes.get(node_id, deque())
        self._said[node_id] = []
        messages = list(inbox)
        inbox.clear()
        return messages


class Blobs:
    """What the marketplace has. Parties keep what they sent, and send it again when it was thrown away meanwhile."""

    def __init__(self) -> None:
        self.stored: dict[Digest, bytes] = {}
        self.made: dict[Digest, bytes] = {}
        self.sent_at_ms: dict[tuple[Digest, str], int] = {}

    def put(self, data: bytes) -> BlobRef:
        digest = sha256_digest(data)
        self.stored[digest] = self.made[digest] = data
        return BlobRef(digest=digest, size_bytes=len(data))

    async def size(self, digest: Digest) -> int | None:
        return len(self.stored[digest]) if digest in self.stored else None

    async def upload_url(self, digest: Digest, size_bytes: int, account: str, now_ms: int) -> str:
        return f"memory:{digest}:{size_bytes}:{account}:{now_ms}"

    async def put_together(self, blob: BlobRef, pieces: Sequence[BlobRef]) -> None:
        self.stored[blob.digest] = b"".join([self.stored[piece.digest] for piece in pieces])

    async def sent_by(self, market: Market, account: str, blobs: Sequence[BlobRef]) -> None:
        """As a client of the API does, which asks what is there already; and what the API notes when it takes an upload."""
        now_ms = market.clock.now_ms()
        fresh_ms = now_ms - market.policy.blob_grace_ms // 2
        for blob in blobs:
            sent_ms = self.sent_at_ms.get((blob.digest, account))
            data = self.made.get(blob.digest, self.stored.get(blob.digest))
            is_there = blob.digest in self.stored and sent_ms is not None and sent_ms > fresh_ms
            if data is None or is_there:  # nobody can send what he never had
                continue
            request = BlobUploadRequest(digest=blob.digest, size_bytes=blob.size_bytes)
            if sent_ms is None or (await plan_upload(market, account, request)).url is not None:
                self.stored[blob.digest] = data
                await note_stored(market, account, blob.digest, blob.size_bytes)
            self.sent_at_ms[blob.digest, account] = now_ms

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

    async def stored_in_pieces(self) -> AsyncGenerator[Digest, None]:
        none: tuple[Digest, ...] = ()  # here all are whole
        for digest in none:
            yield digest

    async def pieces_of(self, digest: Digest) -> tuple[BlobRef, ...]:
        del digest
        return ()

    async def forget(self, digest: Digest) -> None:
        self.stored.pop(digest, None)


@dataclass
class SimulatedEvaluator:
    """Measures what the file is, except when its own machine fails."""

    blobs: Blobs
    chance: random.Random
    failing: float = 0.0

    async def evaluate(
        self, catalogue: CatalogueEntry, metric: str, files: Mapping[str, Digest], seed: int
    ) -> Measurement:
        del seed  # of held-back data, which is not simulated
        if self.chance.random() < self.failing:
            raise EvaluationFailed("no sandbox")
        data = await self.blobs.read(files[catalogue.required_outputs[0]])
        if data.startswith(UNREADABLE):
            return Measurement(detail="unreadable")
        return Measurement(values={metric: "0.97" if data.startswith(GOOD) else "0.5"})


_ANOTHER = Distance(None, detail="another model")


@dataclass
class SimulatedReplayer:
    """Executes a segment by looking at what the model is; fails as the evaluator does."""

    evaluator: SimulatedEvaluator

    async def replay(self, spec: JobSpec, segment: Segment, model: Digest | None) -> Distance:
        del spec
        evaluator = self.evaluator
        if evaluator.chance.random() < evaluator.failing:
            raise EvaluationFailed("no sandbox")
        return Distance(0.0, bit_equal=True) if await self._is_right(segment, model) else _ANOTHER

    async def compare(self, segment: Segment, model: Digest | None, answer: Digest) -> Distance:
        """Right answers are alike, and wrong ones like nothing else."""
        blobs = self.evaluator.blobs
        mine = await blobs.read(answer)
        same = mine.startswith(GOOD) and await self._is_right(segment, model)
        if model is not None:
            same = same or mine == await blobs.read(model)
        return Distance(0.0, bit_equal=True) if same else _ANOTHER

    async def _is_right(self, segment: Segment, model: Digest | None) -> bool:
        """`model` None: of a lease that handed its checkpoints over, or of one without a result."""
        blobs = self.evaluator.blobs
        if segment.end is not None and (await blobs.read(segment.end.blob.digest)).startswith(MADE_UP):
            return False
        if model is None:
            return segment.end is not None
        return (await blobs.read(model)).startswith(GOOD)

    async def plant(self, spec: JobSpec, before: Segment, segment: Segment, model: Digest | None, seed: int) -> Planted:
        del spec, before, model
        if segment.start is None:
            raise EvaluationFailed("nothing to alter")
        answer = self.evaluator.blobs.put(GOOD + b" planted %d" % seed)
        return Planted(segment.start, answer.digest)


@dataclass(frozen=True, slots=True)
class Catalogue:
    only: CatalogueEntry

    def entry(self, name: str) -> CatalogueEntry | None:
        return self.only if name == self.only.name else None

    def replayable(self, name: str) -> Digest | None:
        return self.only.workspace_digest if name == self.only.name else None


@dataclass(slots=True)
class World:
    market: Market
    clock: VirtualClock
    randomness: SeededRandomness
    links: Links
    blobs: Blobs
    evaluator: SimulatedEvaluator
    chain: SimulatedChain
    database: sqlite3.Connection  # to read beside the flows
    pulse: Pulse
    workspace: BlobRef
    keeps_volumes: bool  # whether jobs write volumes that outlive them
    keeps_house: bool  # whether what is not needed goes, who listens is told, and clients leave
    shares_gpus: bool  # whether owners let leases of one client share a GPU

    def restart(self) -> None:
        """Another process of the marketplace: it remembers nothing but what the database holds."""
        self.market = replace(self.market, book=Book(), wakes=Wakes(), crowd=Crowd(), writer=asyncio.Lock())
        self.pulse = Pulse()

    def advance(self, ms: int) -> None:
        self.clock.advance(ms)
        self.chain.advance_to(self.clock.time_ms)


def open_world(seed: int, policy: MarketPolicy) -> World:
    engine, database = empty_market()
    randomness, chance = SeededRandomness(seed), random.Random(seed)
    clock, links, blobs = VirtualClock(), Links(random.Random(f"links of {seed}")), Blobs()
    chain = SimulatedChain(chance, START_MS, START_MS)
    workspace = blobs.put(b"the catalogue's workspace")
    evaluator = SimulatedEvaluator(blobs, chance)
    entry = CatalogueEntry(WORKLOAD, workspace.digest, "accuracy", "0.90", required_outputs=("model.safetensors",))
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
        catalogue=Catalogue(entry),
        evaluator=evaluator,
        policy=policy,
        replayer=SimulatedReplayer(evaluator),
    )
    return World(
        market,
        clock,
        randomness,
        links,
        blobs,
        evaluator,
        chain,
        database,
        Pulse(),
        workspace,
        keeps_volumes=seed % 4 == 3 or seed % 28 == 8,  # also in some that keep house
        keeps_house=keeps_house(seed),
        shares_gpus=seed % 4 == 2,
    )


def made_up_network(randomness: SeededRandomness) -> Network:
    return Network(
        rpc_url="http://127.0.0.1:1",  # nobody listens: a simulated market never reaches a network
        genesis_hash=str(Hash(randomness.bits(256).to_bytes(32, "big"))),
        program_id=LOCALNET_PROGRAM_ID,
        mint=LOCALNET_MINT,
        decimals=6,
        operator_config=str(randomness.keypair().pubkey()),
    )
