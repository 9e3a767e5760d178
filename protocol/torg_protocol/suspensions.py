"""Why a node gets no new leases although its owner offers it: what its marketplace tells it, for its owner's eyes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from torg_protocol.documents import Wire

_WORDS = {
    "operator": "by the operator of the marketplace",
    "ban": "by a ban of the operator",
    "proof": "by proofs of its hardware that failed",
}


class Suspension(Wire):
    """One cause. `by`: operator, ban, proof; a later release may know more."""

    by: str = Field(max_length=32)
    because: str = Field(max_length=2_000)
    since_ms: int

    def in_words(self) -> str:
        return decision_in_words(self.by, self.because, self.since_ms)


class NodeSuspended(Wire):
    """Marketplace -> node: all causes that stand, oldest first; none: it is not suspended any more. Repeated after each heartbeat that says
    otherwise."""

    type: Literal["suspended"] = "suspended"
    suspensions: tuple[Suspension, ...] = Field(max_length=16)


def decision_in_words(by: str, because: str, since_ms: int) -> str:
    since = datetime.fromtimestamp(since_ms / 1000, UTC)
    return f"since {since:%Y-%m-%d %H:%M:%S} UTC {_WORDS.get(by, f'by {by}')}: {because}"


def in_words(suspensions: Sequence[Suspension]) -> str:
    return "; and ".join(each.in_words() for each in suspensions)
