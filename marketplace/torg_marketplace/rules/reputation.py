"""What a node's past leases say of its next: the share that it saw through, as of late, with the benefit of the doubt.

A lease that ended by the node's fault was broken, one that reported was kept; what neither is to blame for (cancelled in the queue,
declined, drained) counts for nothing. Everybody starts with PRIOR_KEPT kept leases. When RECENT leases have been counted, both
counts are halved: what is long ago weighs less and less.
"""

from __future__ import annotations

PRIOR_KEPT = 10
RECENT = 200


def counted(kept: int, broken: int, *, was_kept: bool) -> tuple[int, int]:
    """The counts after one more lease."""
    kept, broken = kept + was_kept, broken + (not was_kept)
    return (kept // 2, (broken + 1) // 2) if kept + broken >= RECENT else (kept, broken)


def reputation_permille(kept: int, broken: int) -> int:
    return 1000 * (kept + PRIOR_KEPT) // (kept + broken + PRIOR_KEPT)
