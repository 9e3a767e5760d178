"""A job's life from its events: every move must follow from the one before, be legal, and end where the database says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torg_protocol.states import JOB_MOVES, LEASE_MOVES, JobState, LeaseState


@dataclass(frozen=True, slots=True)
class Move:
    """`before` None: it began there. `subject`: the id of the job or of one of its leases."""

    subject: str
    before: str | None
    after: str
    at_ms: int


def replayed(moves: Sequence[Move], stored: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The timeline with how long each state lasted (None: it still is), and what is wrong with it."""
    timeline: list[dict[str, Any]] = []
    newest: dict[str, dict[str, Any]] = {}
    problems = []
    for move in moves:
        last = newest.get(move.subject)
        state = None if last is None else last["state"]
        if move.before != state:
            problems.append(f"{move.subject} moved from {move.before} to {move.after}, and was {state}")
        elif move.before is not None and not _is_legal(move):
            problems.append(f"{move.subject} moved from {move.before} to {move.after}, which is no legal move")
        if last is not None:
            last["lasted_ms"] = move.at_ms - last["at_ms"]
        newest[move.subject] = {"subject": move.subject, "state": move.after, "at_ms": move.at_ms, "lasted_ms": None}
        timeline.append(newest[move.subject])
    for subject, state in stored.items():
        told = newest[subject]["state"] if subject in newest else None
        if told != state:
            problems.append(f"{subject} is {state} in the database, {told} by its events")
    return timeline, problems


def _is_legal(move: Move) -> bool:
    if move.subject.startswith("job_"):
        return JobState(move.after) in JOB_MOVES[JobState(str(move.before))]
    return LeaseState(move.after) in LEASE_MOVES[LeaseState(str(move.before))]
