"""Owners who run replicas of a quorum, alone against the others or in league, against the very rules that count them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from torg_marketplace.rules.quorum import goes_on, majority, verdict_on
from torg_protocol.canonical import sha256_digest

RIGHT, AGREED = sha256_digest(b"the result"), sha256_digest(b"what they agreed on")


@dataclass
class Tally:
    """Of many jobs: whose result the client got, and how often an owner of each kind was found to have failed."""

    jobs: int
    results: Counter[str]
    honest_failed: int = 0
    liars_failed: int = 0


def quorums(seed: int, count: int, *, liars: float, in_league: bool, replicas: int = 3) -> Tally:
    """`liars`: share of owners, each drawn by chance. In league they hand over the same; else each what nobody else does."""
    chance, tally = random.Random(seed), Tally(count, Counter())
    for job in range(count):
        votes, lying = [], []
        while goes_on(votes, replicas):
            lying.append(chance.random() < liars)
            own = AGREED if in_league else sha256_digest(f"{job} {len(votes)}".encode())
            votes.append(own if lying[-1] else RIGHT)
        decided = majority(votes, replicas)
        tally.results["none" if decided is None else "right" if decided == RIGHT else "wrong"] += 1
        for vote, lied in zip(votes, lying, strict=True):
            failed = verdict_on(vote, votes, replicas).result == "failed"
            tally.liars_failed += failed and lied
            tally.honest_failed += failed and not lied
    return tally


def table(count: int) -> list[str]:
    """Rows for the document."""
    rows = ["| owners who lie, of three replicas | wrong result | no result | a liar failed | an honest one failed |"]
    rows.append("|---|---|---|---|---|")
    for in_league in (False, True):
        for share in (0.1, 0.3):
            tally = quorums(7, count, liars=share, in_league=in_league)
            words = f"{share:.0%}, {'in league' if in_league else 'each alone'}"
            shares = (tally.results["wrong"], tally.results["none"], tally.liars_failed, tally.honest_failed)
            rows.append(f"| {words} | " + " | ".join(f"{number / count:.1%}" for number in shares) + " |")
    return rows
