"""Owners who execute others' segments, honestly or not, against the very rules that judge them. Distances are of three kinds here: what they
are for real weights is measured in test_lying_trainers.py."""

from __future__ import annotations

import enum
import random
from collections import Counter
from dataclasses import dataclass, field

from tests.support.replays import FAR, SAME
from torg_marketplace.rules.policy import MarketPolicy
from torg_marketplace.rules.replay import Answer, Ask, Distance, Segment, is_outvoted, next_step, next_step_of_planted
from torg_protocol.usage import VerdictSummary

SEGMENT = Segment(1, None, None)


class Verifier(enum.StrEnum):
    HONEST = "honest"
    LAZY = "lazy"  # hands over anything without executing
    FRIEND = "friend"  # has each lease's weights from whoever ran it, and hands them over as its own
    ACCUSER = "accuser"  # executes, and spoils the answer half of the time

    def distance(self, chance: random.Random, *, lied: bool, planted: bool) -> Distance:
        """Of its answer to what the lease claims; of a planted segment, to what we know."""
        right = FAR if lied and not planted else SAME
        match self:
            case Verifier.HONEST:
                return right
            case Verifier.LAZY:
                return FAR
            case Verifier.FRIEND:
                return FAR if planted else SAME
            case Verifier.ACCUSER:
                return FAR if chance.random() < 0.5 else right


@dataclass
class Tally:
    """Of many audits: leases that lied and were found, honest ones that were blamed, and how often each kind of verifier answered and lost."""

    lied: int = 0
    caught: int = 0
    honest: int = 0
    blamed: int = 0
    ours: int = 0  # segments that we executed ourselves
    answered: Counter[Verifier] = field(default_factory=Counter)
    outvoted: Counter[Verifier] = field(default_factory=Counter)

    def lost(self, kind: Verifier) -> float:
        return self.outvoted[kind] / max(self.answered[kind], 1)


def audits(
    seed: int, count: int, *, crowd: dict[Verifier, float], lying: float = 0.2, unplanted: bool = False
) -> Tally:
    """`crowd`: shares of owners. Each audit asks owners that were not asked for it before. `unplanted`: all looks are at a long segment of
    which everybody knows that nothing is planted there."""
    chance, tally = random.Random(seed), Tally()
    for _ in range(count):
        lied = chance.random() < lying
        verdict = _audit(chance, tally, crowd, lied=lied, owners=MarketPolicy().unplanted_owners if unplanted else 1)
        tally.lied += lied
        tally.honest += not lied
        tally.caught += lied and verdict == "failed"
        tally.blamed += not lied and verdict == "failed"
        if verdict == "passed" and not unplanted and chance.randrange(1000) < MarketPolicy().planted_permille:
            _planted(chance, tally, crowd)
    return tally


def _audit(chance: random.Random, tally: Tally, crowd: dict[Verifier, float], *, lied: bool, owners: int) -> str:
    found, who = list[Answer](), list[Verifier]()
    while not isinstance(step := next_step(SEGMENT, found, owners), VerdictSummary):
        if step is Ask.NODE:
            who.append(_drawn(chance, crowd))
            found.append(Answer(who[-1].distance(chance, lied=lied, planted=False), by_node=True))
        else:
            tally.ours += 1
            found.append(Answer(FAR if lied else SAME, by_node=False))
    _count(tally, who, found, step)
    return step.result


def _planted(chance: random.Random, tally: Tally, crowd: dict[Verifier, float]) -> None:
    tally.ours += 1  # to know the answer
    found, who = list[Answer](), list[Verifier]()
    while not isinstance(step := next_step_of_planted(SEGMENT, found), VerdictSummary):
        who.append(_drawn(chance, crowd))
        found.append(Answer(who[-1].distance(chance, lied=False, planted=True), by_node=True))
    _count(tally, who, found, step)


def _count(tally: Tally, who: list[Verifier], found: list[Answer], verdict: VerdictSummary) -> None:
    for kind, answer in zip(who, found, strict=False):
        tally.answered[kind] += 1
        tally.outvoted[kind] += is_outvoted(answer, verdict)


def _drawn(chance: random.Random, crowd: dict[Verifier, float]) -> Verifier:
    return chance.choices(list(crowd), weights=list(crowd.values()))[0]


def table(count: int) -> list[str]:
    """Rows for the document: crowds with a growing share of each kind of liar."""
    rows = [
        "| verifiers | lies found | honest leases blamed | liar loses, per answer | honest verifier loses | we execute, of audits |"
    ]
    rows.append("|---|---|---|---|---|---|")
    crowds = [{Verifier.HONEST: 1.0}]
    crowds += [{Verifier.HONEST: 1 - share, kind: share} for kind in list(Verifier)[1:] for share in (0.1, 0.3)]
    cases = [(crowd, False) for crowd in crowds]
    cases += [(crowd, True) for crowd in crowds if Verifier.FRIEND in crowd]
    for crowd, unplanted in cases:
        tally = audits(7, count, crowd=crowd, unplanted=unplanted)
        liars = [kind for kind in crowd if kind is not Verifier.HONEST]
        words = ", ".join(f"{share:.0%} {kind}" for kind, share in crowd.items())
        words += ", of a first segment that is long" if unplanted else ""
        lost = f"{tally.lost(liars[0]):.1%}" if liars else ""
        rows.append(
            f"| {words} | {tally.caught / tally.lied:.1%} | {tally.blamed} of {tally.honest:,} | {lost} "
            f"| {tally.outvoted[Verifier.HONEST]} of {tally.answered[Verifier.HONEST]:,} | {tally.ours / count:.1%} |"
        )
    return rows
