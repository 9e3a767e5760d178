"""Provers that save work. Each overrides the step where it cheats."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from tests.support.provers import Prover
from torg_host.hardware_proof.arithmetic import Int64s, Words
from torg_protocol.ids import NodeId
from torg_protocol.proofs import ProofChallenge


@dataclass
class PartialChain(Prover):
    """Computes only a share of the rows and makes the others up."""

    share: float = 0.5
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def chain(self, challenge: ProofChallenge) -> Int64s:
        digests = super().chain(challenge)
        for row in self.chance.sample(range(len(digests)), round(len(digests) * (1 - self.share))):
            digests[row] ^= 1
        return digests


@dataclass
class PartialWalk(Prover):
    """Follows only a share of the walks."""

    share: float = 0.5
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def walk(self, challenge: ProofChallenge) -> Words:
        states = super().walk(challenge)
        for lane in self.chance.sample(range(len(states)), round(len(states) * (1 - self.share))):
            states[lane] ^= 1
        return states


class FewerRounds(Prover):
    def chain(self, challenge: ProofChallenge) -> Int64s:
        short = challenge.chain.model_copy(update={"rounds": challenge.chain.rounds - 1})
        return super().chain(challenge.model_copy(update={"chain": short}))


class Precomputed(Prover):
    """Answers with what it computed for a nonce of yesterday."""

    def chain(self, challenge: ProofChallenge) -> Int64s:
        return super().chain(challenge.model_copy(update={"nonce": "22" * 32}))


class AnothersAnswer(Prover):
    """Passes on what an honest node answered to the same nonce."""

    def chain(self, challenge: ProofChallenge) -> Int64s:
        return Prover(NodeId("somebody else")).chain(challenge)

    def walk(self, challenge: ProofChallenge) -> Words:
        return Prover(NodeId("somebody else")).walk(challenge)


class Rounded(Prover):
    """Products with 11 bits of mantissa, as reduced precision gives: wrong in the last bits."""

    def chain(self, challenge: ProofChallenge) -> Int64s:
        arithmetic, task = self.arithmetic, challenge.chain
        factor = arithmetic.factor(challenge.shared_seed("B"), task.width)
        x = arithmetic.entries(challenge.seed("X", self.node), arithmetic.numbers(0, task.rows), task.width)
        for number in range(task.rounds):
            exact = x.astype(np.float32) @ factor
            rounded = (exact.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
            x = _narrow(rounded.astype(np.int32), number)
        return arithmetic.row_digests(x)


class ChangedAfterwards(Prover):
    """Commits to nothing in particular and opens right rows: the opening does not belong to the root."""

    def open(self, challenge: ProofChallenge, blocks: tuple[int, ...]):  # type: ignore[no-untyped-def]
        self.digests = super().chain(challenge)
        return super().open(challenge, blocks)

    def chain(self, challenge: ProofChallenge) -> Int64s:
        return np.zeros(challenge.chain.rows, dtype=np.int64)


def _narrow(y: np.ndarray, number: int) -> np.ndarray:  # type: ignore[type-arg]
    y = y + np.int32(((number * 40503) + 1) & 0xFFFFFF)
    y = y ^ ((y >> np.int32(9)) ^ (y >> np.int32(17)))
    return np.maximum((y & 255) - 128, -127).astype(np.int8)
