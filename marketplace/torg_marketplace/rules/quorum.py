"""Quorum: replicas of one job agree when their outputs are equal, byte for byte. More than half of what was asked for decides.

A replica that fails by itself has an answer too: two of three that exit with the same code are right about the job, and one alone is not believed.

They run one after the other, so that none can copy what another handed over (it is sealed until the verdict), and so that no more run than
are needed: two equal ones of three are enough, and the third costs nobody anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torg_marketplace.rules.outcomes import is_own_failure
from torg_protocol.canonical import digest_of
from torg_protocol.ids import Digest
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.usage import OutputFile, VerdictSummary


def vote_of(
    outputs: Sequence[Mapping[str, Any]], ended_for: EndReason | None = None, exit_code: int | None = None
) -> Digest:
    """The same for the same files, in whatever order they were handed over; of one that failed by itself for the same end, whatever it left behind."""
    if is_own_failure(ended_for):
        return digest_of({"ended": str(ended_for), "code": exit_code if ended_for is EndReason.FAILED_EXIT else None})
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


def verdict_on(
    vote: Digest, votes: Sequence[Digest], replicas: int, failures: Collection[Digest] = ()
) -> VerdictSummary:
    """On the replica that said `vote`. `failures`: the votes that are no results. Where one side has failed, the other is not paid and not
    blamed: a machine may be too slow or too small, and a program may fail by chance; only two results that differ show a wrong one."""
    decided, same = majority(votes, replicas), votes.count(vote)
    words = f"{same} of {len(votes)} replicas {'ended like this' if vote in failures else 'handed over these outputs'}"
    result = "inconclusive" if decided is None else "passed" if vote == decided else "failed"
    if result == "failed" and (vote in failures or decided in failures):
        result = "inconclusive"
    shown = {"agree": str(same), "replicas_run": str(len(votes)), "outputs": vote}
    return VerdictSummary(policy="quorum", result=result, detail=words, measured=shown, target=str(replicas // 2 + 1))
