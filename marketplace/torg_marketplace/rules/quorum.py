"""Quorum: replicas of one job agree when their outputs are equal, byte for byte. More than half of what was asked for decides.

They run one after the other, so that none can copy what another handed over (it is sealed until the verdict), and so that no more run than
are needed: two equal ones of three are enough, and the third costs nobody anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torg_protocol.canonical import digest_of
from torg_protocol.ids import Digest
from torg_protocol.states import LeaseState
from torg_protocol.usage import OutputFile, VerdictSummary


def vote_of(outputs: Sequence[Mapping[str, Any]]) -> Digest:
    """The same for the same files, in whatever order they were handed over."""
    files = map(OutputFile.model_validate, outputs)
    return digest_of({"outputs": sorted([item.path, item.digest] for item in files)})


def is_vote(state: str) -> bool:
    """Of a lease: handed over and not decided."""
    return state == LeaseState.REPORTED


def majority(votes: Sequence[Digest], replicas: int) -> Digest | None:
    """What more than half of the replicas say, when so many have said it."""
    vote, count = Counter(votes).most_common(1)[0] if votes else (None, 0)
    return vote if 2 * count > replicas else None


def goes_on(votes: Sequence[Digest], replicas: int) -> bool:
    """Whether another replica could still make, and does not already have, a majority."""
    best = max(Counter(votes).values(), default=0)
    return majority(votes, replicas) is None and 2 * (best + replicas - len(votes)) > replicas


def verdict_on(vote: Digest, votes: Sequence[Digest], replicas: int) -> VerdictSummary:
    """On the replica that said `vote`."""
    decided, same = majority(votes, replicas), votes.count(vote)
    words = f"{same} of {len(votes)} replicas handed over these outputs"
    result = "inconclusive" if decided is None else "passed" if vote == decided else "failed"
    shown = {"agree": str(same), "replicas_run": str(len(votes)), "outputs": vote}
    return VerdictSummary(policy="quorum", result=result, detail=words, measured=shown, target=str(replicas // 2 + 1))
