"""What proofs of hardware come to."""

from __future__ import annotations

import random

import pytest

from tests.support.provers import Prover, judged
from torg_marketplace.rules.proof import (
    MAX_STRIKES,
    Finding,
    ProofRecord,
    UnitRecord,
    class_floor,
    due_again_ms,
    false_claim,
    learned_tolerance,
    remember,
    tasks_for,
)
from torg_marketplace.rules.walk_limit import walk_limit_ms


def after(record: ProofRecord, *found: Finding, busy: bool = False) -> ProofRecord:
    for one in found:
        record = remember(record, "cpu", one, arithmetic="numpy", busy=busy, now_ms=1)
    return record


def right(gops: float, *, result: str = "passed", in_time: bool = True) -> Finding:
    return Finding.model_validate(
        {"result": result, "detail": "", "gops": gops, "memory_bytes": 1 << 20, "walked_in_time": in_time}
    )


FALSE, SILENT = Finding(result="false", detail="wrong"), Finding(result="silent", detail="nothing")


def test_one_slow_moment_of_three_costs_nothing() -> None:
    steady = after(ProofRecord(), right(100), right(101), right(99))
    assert (steady.state, steady.gops) == ("proven", class_floor(100))
    assert after(steady, right(40, result="slow")).gops == steady.gops
    assert after(steady, right(40, result="slow"), right(41, result="slow")).gops == class_floor(41)


def test_a_false_answer_quarantines_and_three_ban() -> None:
    proven = after(ProofRecord(), right(100))
    quarantined = after(proven, FALSE)
    assert (quarantined.state, quarantined.gops, quarantined.memory_bytes) == ("quarantined", 0, 0)
    assert after(quarantined, right(100)).state == "proven"
    banned = after(proven, *[FALSE] * MAX_STRIKES)
    assert banned.state == "banned"
    assert after(banned, right(100)).state == "banned", "a ban is the operator's to lift"


def test_silence_is_not_a_lie_but_proves_nothing() -> None:
    proven = after(ProofRecord(), right(100))
    assert after(proven, SILENT).state == "proven"
    assert after(proven, SILENT, SILENT).state == "unproven"
    assert after(proven, FALSE, SILENT, SILENT).state == "quarantined", "nobody leaves quarantine by silence"


def test_memory_that_is_walked_too_slowly_twice_is_not_proven() -> None:
    proven = after(ProofRecord(), right(100))
    late = right(100, result="slow", in_time=False)
    assert after(proven, late).memory_bytes == 1 << 20
    assert after(proven, late, late).memory_bytes == 0
    assert after(proven, late, late, right(100)).memory_bytes == 1 << 20


def test_a_busy_machine_keeps_its_class() -> None:
    proven = after(ProofRecord(), right(100))
    assert after(proven, right(10), busy=True).gops == proven.gops


def test_the_question_grows_with_the_answer_and_stays_within_bounds() -> None:
    for gops in (0, 10, 200, 5_000, 100_000, 1_000_000):
        chain, walk = tasks_for(gops, 80 << 30)
        assert 500 <= chain.operations / max(gops, 50) / 1e6 <= 4_000, "milliseconds on a unit of that speed"
        assert chain.rows >= 1024
        assert 0.85 * (80 << 30) <= walk.size_bytes <= 0.9 * (80 << 30)
    assert tasks_for(100, 0)[1].size_bytes == 8 << 20


def test_a_walk_without_storage_is_over_the_limit() -> None:
    for gops in (10.0, 100.0, 300.0):
        _, walk = tasks_for(int(gops), 0)
        assert walk.operations_without_storage / gops / 1e6 > 1.5 * walk_limit_ms(walk, gops)


def test_a_name_is_believed_until_its_card_is_far_too_slow() -> None:
    slow, fast = UnitRecord(samples=(90.0,) * 3), UnitRecord(samples=(400_000.0,) * 3)
    assert "claimed" in str(false_claim("NVIDIA H100 80GB HBM3", slow))
    assert false_claim("NVIDIA H100 80GB HBM3", fast) is None
    assert false_claim("NVIDIA H100 80GB HBM3", UnitRecord(samples=(90.0,))) is None, "measured once"
    assert false_claim("cpu", slow) is None


def test_tolerance_is_learned_within_bounds() -> None:
    assert learned_tolerance([]) == learned_tolerance([1.0] * 19) == 1.3
    assert learned_tolerance([1.0] * 200) == pytest.approx(1.15)
    assert learned_tolerance([1.0] * 100 + [9.0] * 100) == pytest.approx(1.6), "cheats cannot widen it without end"


def test_nobody_can_tell_when_the_next_one_comes() -> None:
    settled = ProofRecord(passed=10)
    waits = [due_again_ms(settled, right(1), 3_600_000, random.Random(seed).random()) for seed in range(2_000)]
    assert 3_300_000 < sum(waits) / len(waits) < 3_900_000
    assert min(waits) < 60_000
    assert due_again_ms(settled, FALSE, 3_600_000, 0.5) < 60_000, "a doubt is followed up soon"


def test_an_honest_proof_passes_and_its_numbers_are_kept() -> None:
    found = judged(Prover(), random.Random(1), gops=2.0)
    assert (found.result, found.walked_in_time) == ("passed", True)
    assert found.gops > 0
