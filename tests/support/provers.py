"""Provers in the test's own process, honest and not, and the verifier's side without a marketplace: what a proof is worth is decided by
the same `judge_row` as in production, on a row that is filled in by hand. Times are the test's, so that a machine under load changes nothing.
"""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass, field

import numpy as np

from torg_host.hardware_proof.arithmetic import Int64s, NumpyArithmetic, Words
from torg_host.hardware_proof.chain import prove_chain
from torg_host.hardware_proof.opening import blocks_of, commit, open_blocks
from torg_host.hardware_proof.walk import fill, walk
from torg_marketplace.flow.judge_proof import judge_row
from torg_marketplace.rules.proof import LANES_CHECKED, ROWS_CHECKED, Finding
from torg_marketplace.storage.proof_models import HardwareProofRow
from torg_protocol.ids import Digest, NodeId
from torg_protocol.proofs import ChainTask, OpenedBlock, ProofChallenge, WalkTask

CHAIN = ChainTask(rows=1024, width=64, rounds=4)
SOMEBODY = NodeId("node")
WALK = WalkTask(rows=512, width=64, passes=3, lanes=128, steps=8)


@dataclass
class Prover:
    """Honest. Cheats override a step. What it computes for one challenge is kept between steps."""

    node: NodeId = SOMEBODY
    arithmetic: NumpyArithmetic = field(default_factory=NumpyArithmetic)
    digests: Int64s = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def chain(self, challenge: ProofChallenge) -> Int64s:
        factor = self.arithmetic.factor(challenge.shared_seed("B"), challenge.chain.width)
        return prove_chain(self.arithmetic, challenge.chain, challenge.seed("X", self.node), factor)

    def walk(self, challenge: ProofChallenge) -> Words:
        seed = challenge.seed("space", self.node)
        factor = self.arithmetic.factor(challenge.shared_seed("F"), challenge.walk.width)
        return walk(self.arithmetic, challenge.walk, seed, fill(self.arithmetic, challenge.walk, seed, factor))

    def root(self, challenge: ProofChallenge) -> Digest:
        self.digests = self.chain(challenge)
        return commit(self.digests)

    def lanes(self, challenge: ProofChallenge) -> str:
        return base64.b64encode(self.walk(challenge).tobytes()).decode()

    def open(self, challenge: ProofChallenge, blocks: tuple[int, ...]) -> tuple[OpenedBlock, ...]:
        del challenge
        return open_blocks(self.digests, blocks)


def challenge_of(chance: random.Random, chain: ChainTask = CHAIN, walk_task: WalkTask = WALK) -> ProofChallenge:
    return ProofChallenge(
        proof_id="proof",
        unit="cpu",
        nonce=chance.randbytes(32).hex(),
        matrix_seed="11" * 32,
        chain=chain,
        walk=walk_task,
        answer_within_ms=60_000,
    )


def judged(
    prover: Prover,
    chance: random.Random,
    *,
    challenge: ProofChallenge | None = None,
    gops: float = 1.0,
    established: int = 0,
    walk_ms: int = 200,
    busy: bool = False,
) -> Finding:
    """One proof from nonce to finding, as if the chain had run at `gops` and the walk had taken `walk_ms`."""
    asked = challenge or challenge_of(chance)
    root, lanes = prover.root(asked), prover.lanes(asked)
    rows = sorted(chance.sample(range(asked.chain.rows), ROWS_CHECKED))
    chain_ms = max(int(asked.chain.operations / gops / 1e6), 1)
    row = HardwareProofRow(
        proof_id="proof",
        node_id=prover.node,
        unit="cpu",
        busy=busy,
        established_gops=established,
        tolerance_permille=1300,
        challenge=asked.wire(),
        challenged_at_ms=0,
        chain_at_ms=chain_ms,
        walk_at_ms=chain_ms + walk_ms,
        opened_at_ms=chain_ms + walk_ms + 1,
        root=root,
        lanes=lanes,
        rows=rows,
        lanes_checked=sorted(chance.sample(range(asked.walk.lanes), LANES_CHECKED)),
        opening=[block.wire() for block in prover.open(asked, blocks_of(rows))],
    )
    return judge_row(row)
