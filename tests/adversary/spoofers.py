"""Who tries what, how often, and what counts as noticed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from tests.adversary.cheats import (
    AnothersAnswer,
    ChangedAfterwards,
    FewerRounds,
    PartialChain,
    PartialWalk,
    Precomputed,
    Rounded,
)
from tests.support.provers import Prover, judged
from torg_marketplace.rules.proof import (
    TARGET_MS,
    Evidence,
    Finding,
    ProofRecord,
    class_floor,
    false_claim,
    judge_proof,
    remember,
    tasks_for,
)
from torg_marketplace.rules.walk_limit import WalkSample, learned_share, recomputing_ms, share_of
from torg_protocol.proofs import ProofCommitted

Chance = random.Random
_GOPS = 100.0  # of the pretended machine
_ONE_IN_CLASS_WIDE = 4  # windows, as flow/prove.py draws them


@dataclass(frozen=True, slots=True)
class Rate:
    who: str
    noticed_by: str
    trials: int
    noticed: int
    simulated_times: bool = False

    @property
    def share(self) -> float:
        return self.noticed / self.trials


def cheats(trials: int) -> Iterator[Rate]:
    digest = "wrong digests, in one proof"
    for share in (0.5, 0.8, 0.9, 0.95):
        yield _by_digest(
            f"computes {share:.0%} of the rows", lambda c, s=share: PartialChain(share=s, chance=c), trials
        )
    for share in (0.5, 0.75, 0.9):
        yield _by_digest(f"follows {share:.0%} of the walks", lambda c, s=share: PartialWalk(share=s, chance=c), trials)
    for name, kind in (
        ("one round less", FewerRounds),
        ("products in reduced precision", Rounded),
        ("precomputed for another nonce", Precomputed),
        ("passes on another node's answer", AnothersAnswer),
        ("opens what it did not commit to", ChangedAfterwards),
    ):
        yield _by_digest(name, lambda _, k=kind: k(), max(trials // 10, 5))
    yield _rate("says itself how long it took", "refused: no message has a time", _tells_a_time, trials)
    yield _rate("a driver that calls a CPU an H100", "too slow for the name, third proof", _fake_name, trials, True)
    yield _rate("a driver alone, nothing behind it", "never proven", _nothing_behind, trials)
    for nodes in (2, 4):
        what = f"one card behind {nodes} nodes of one operator"
        yield _rate(
            what, "class falls within 3 windows", lambda c, n=nodes: _shared(c, n, 3, linked=True), trials, True
        )
    for windows in (8, 24):
        what = f"one card behind 2 strangers, {windows} windows"
        found = "class falls by class-wide windows"
        yield _rate(what, found, lambda c, w=windows: _shared(c, 2, w, linked=False), trials, True)
    for stored in (0.0, 0.5, 0.9):
        what = f"{stored:.0%} of the memory is there"
        yield _rate(what, "memory not proven, two proofs", lambda c, s=stored: _over_claims(c, s), trials, True)
    for stored, liars in ((0.5, 5), (0.8, 5), (0.9, 5), (0.9, 2), (0.95, 2)):
        what = f"{stored:.0%} of the memory is there, limit learned of 12 owners, {liars} like it"
        found = "memory not proven, two proofs"
        yield _rate(what, found, lambda c, s=stored, n=liars: _over_claims_in_class(c, s, n), trials, True)
    for delay_ms in (100, 500, 1_500):
        what = f"relay to a real card, {delay_ms} ms away"
        yield _rate(what, "class falls, three proofs", lambda c, d=delay_ms: _relays(c, d), trials, True)
    yield _by_digest("a banned cheat under a new wallet", lambda c: PartialChain(share=0.8, chance=c), trials, digest)


def honest(trials: int) -> Iterator[Rate]:
    """Of the second number of each: class lost although nothing is wrong. Digests are exact: nobody is ever struck."""
    yield _by_digest("honest", lambda _: Prover(), trials, "struck")
    for name, noise, hiccups in (
        ("steady, 5% noise", 0.05, 0.0),
        ("noisy, 15%", 0.15, 0.0),
        ("one proof in ten takes three times as long", 0.05, 0.1),
    ):
        yield _rate(name, "class lost in 10 proofs", lambda c, n=noise, h=hiccups: _loses_class(c, n, h), trials, True)
    what = "walks 15% slower or faster than its class, 5 of 12 of which lie"
    yield _rate(what, "memory not proven within ten proofs", _honest_walk_in_class, trials, True)
    yield _rate("works for a client meanwhile, a third as fast", "class lost", _busy_loses_class, trials, True)
    yield _rate("half as fast, honest about it", "struck or unproven", _slow_but_honest, trials, True)


def _rate(
    who: str, noticed_by: str, trial: Callable[[Chance], bool], trials: int, simulated_times: bool = False
) -> Rate:
    noticed = sum(trial(random.Random(f"{who} {number}")) for number in range(trials))
    return Rate(who, noticed_by, trials, noticed, simulated_times)


def _by_digest(
    who: str, prover: Callable[[Chance], Prover], trials: int, by: str = "wrong digests, in one proof"
) -> Rate:
    def trial(chance: Chance) -> bool:
        return judged(prover(chance), chance).result == "false"

    return _rate(who, by, trial, trials)


def timed(
    gops: float, *, established: int = 0, walk_ms: float = 600, busy: bool = False, learned: float | None = None
) -> Finding:
    """Right digests at this speed."""
    chain, walk = tasks_for(established or int(gops), 0)
    chain_ms = max(int(chain.operations / gops / 1e6), 1)
    evidence = Evidence(
        chain=chain, walk=walk, chain_ms=chain_ms, walk_ms=int(walk_ms), wrong_rows=0, wrong_lanes=0, opened=True, busy=busy
    )  # fmt: skip
    return judge_proof(evidence, established, walk_share=learned)


def _after(record: ProofRecord, found: Finding, *, busy: bool = False) -> ProofRecord:
    return remember(record, "cpu", found, arithmetic="", busy=busy, now_ms=0)


def _joined(chance: Chance, gops: float = _GOPS, noise: float = 0.05) -> ProofRecord:
    record = ProofRecord()
    for _ in range(3):
        record = _after(record, timed(_noisy(chance, gops, noise)))
    return record


def _noisy(chance: Chance, gops: float, noise: float) -> float:
    """Slower than its best by half a normal deviate: nothing is faster than the machine."""
    return gops / (1 + abs(chance.gauss(0, noise)))


def _tells_a_time(_: Chance) -> bool:
    try:
        ProofCommitted.model_validate({"proof_id": "p", "phase": "chain", "root": "sha256:" + "0" * 64, "took_ms": 1})
    except ValidationError:
        return True
    return False


def _fake_name(chance: Chance) -> bool:
    return false_claim("NVIDIA H100 80GB HBM3", _joined(chance, noise=0.3).units["cpu"]) is not None


def _nothing_behind(_: Chance) -> bool:
    silent = Finding(result="silent", detail="")
    return _after(_after(ProofRecord(), silent), silent).state == "unproven"


def _shared(chance: Chance, nodes: int, windows: int, *, linked: bool) -> bool:
    """Whether one of them is sold for less in the end. Strangers meet in class-wide windows only, and until a slow answer is settled."""
    record = _joined(chance)
    full = record.gops
    for _ in range(windows):
        together = linked or record.last == "slow" or chance.randrange(_ONE_IN_CLASS_WIDE) == 0
        gops = _noisy(chance, _GOPS / nodes if together else _GOPS, 0.05)
        record = _after(record, timed(gops, established=record.gops))
        if record.gops < full:
            return True
    return False


def _over_claims(chance: Chance, stored: float) -> bool:
    record = ProofRecord()
    for _ in range(2):
        gops = _noisy(chance, _GOPS, 0.05)
        _, walk = tasks_for(int(gops), 0)
        recomputing_ms = (1 - stored) * walk.operations_without_storage / gops / 1e6
        record = _after(record, timed(gops, walk_ms=600 + recomputing_ms))
    return record.units["cpu"].memory_bytes == 0


def _over_claims_in_class(chance: Chance, stored: float, liars: int) -> bool:
    """Of 12 owners so many teach the limit what they can."""
    learned = _taught(chance, stored, liars)
    found = [_walked(chance, learned, stored) for _ in range(2)]
    return not any(one.walked_in_time for one in found)


def _honest_walk_in_class(chance: Chance) -> bool:
    learned, record = _taught(chance, 0.5, 5), ProofRecord()
    own = 1 + chance.gauss(0, 0.15)
    for _ in range(10):
        record = _after(record, _walked(chance, learned, 1.0, own))
    return record.units["cpu"].memory_bytes == 0


def _taught(chance: Chance, stored_by_liars: float, liars: int) -> float | None:
    """By 12 owners, so many of them liars; machines of a class differ."""
    took_ms = [_walk_ms(chance, 1.0, 1 + chance.gauss(0, 0.15)) for _ in range(12 - liars)]
    took_ms += [_walk_ms(chance, stored_by_liars) for _ in range(liars)]
    _, walk = tasks_for(int(_GOPS), 0)
    return learned_share([WalkSample(str(number), share_of(walk, ms, _GOPS)) for number, ms in enumerate(took_ms)])


def _walk_ms(chance: Chance, stored: float, own: float = 1.0) -> float:
    _, walk = tasks_for(int(_GOPS), 0)
    return 600 * own * (1 + abs(chance.gauss(0, 0.05))) + (1 - stored) * recomputing_ms(walk, _GOPS)


def _walked(chance: Chance, learned: float | None, stored: float, own: float = 1.0) -> Finding:
    return timed(_GOPS, walk_ms=_walk_ms(chance, stored, own), learned=learned)


def _relays(chance: Chance, delay_ms: int) -> bool:
    """The card was measured without the detour before; now each answer takes it."""
    record = _joined(chance)
    full = record.gops
    for _ in range(3):
        seconds = TARGET_MS / 1000
        gops = _noisy(chance, _GOPS, 0.05) * seconds / (seconds + delay_ms / 1000)
        record = _after(record, timed(gops, established=record.gops))
    return record.gops < full


def _loses_class(chance: Chance, noise: float, hiccups: float) -> bool:
    """The speed lies a tenth above its class's lower bound, as an operator would see to."""
    gops = class_floor(_GOPS) * 1.1 * (1 + noise)
    record = _joined(chance, gops, noise)
    full = record.gops
    for _ in range(10):
        slowed = gops / 3 if chance.random() < hiccups else gops
        record = _after(record, timed(_noisy(chance, slowed, noise), established=record.gops))
    return record.gops < full


def _busy_loses_class(chance: Chance) -> bool:
    record = _joined(chance)
    full = record.gops
    for _ in range(10):
        found = timed(_noisy(chance, _GOPS / 3, 0.3), established=record.gops, busy=True)
        record = _after(record, found, busy=True)
    return record.gops < full


def _slow_but_honest(chance: Chance) -> bool:
    record = _joined(chance, _GOPS / 2, 0.1)
    return record.state != "proven" or record.strikes > 0
