"""Volumes: what becomes of what a job wrote, and who waits for whom. Pure."""

from __future__ import annotations

from torg_protocol.states import EndReason

# The containers ended in order, or were stopped with grace because the client or its money wanted so: what they left is the next generation.
MAKES_GENERATION = frozenset({EndReason.COMPLETED, EndReason.CANCELLED, EndReason.MAX_DURATION, EndReason.BUDGET})
# They were stopped with grace, and the job goes on elsewhere: the next attempt begins with what they left.
GOES_ON_FROM_END = frozenset(
    {
        EndReason.MAX_DURATION,  # of a job that was extended
        EndReason.DRAINED,
        EndReason.PREEMPTED,
        EndReason.HOST_PROTECTION,
        EndReason.EXPOSURE_LIMIT,
        EndReason.GANG_ENDED,
    }
)


def waits_for(name: str, *, job_id: str, read_only: bool, generation: int, writer: str | None) -> str | None:
    """Why a job cannot begin with this volume now, in words; None: it can."""
    if writer == job_id:
        return None
    if not read_only and writer is not None:
        return f'volume "{name}" is written by {writer}; this job is next when that one is over'
    if read_only and generation == 0:
        by = (
            f"; {writer} writes it" if writer is not None else "; a job that writes it, or torg volume put, comes first"
        )
        return f'nothing is in volume "{name}" yet{by}'
    return None
