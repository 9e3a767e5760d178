"""How many requests a caller has left: a bucket of one minute's worth of tokens that fills up steadily, one token a request."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torg_protocol.errors import RateLimited


@dataclass(frozen=True, slots=True)
class Quota:
    """What is left after a request was counted."""

    per_minute: int
    left: int
    full_in_s: int

    def headers(self) -> dict[str, str]:
        """RateLimit-Policy and RateLimit, by draft-ietf-httpapi-ratelimit-headers."""
        return {
            "ratelimit-policy": f'"requests";q={self.per_minute};w=60',
            "ratelimit": f'"requests";r={self.left};t={self.full_in_s}',
        }


def refilled(tokens: float, per_minute: int, passed_s: float) -> float:
    return min(per_minute, tokens + max(0.0, passed_s) * per_minute / 60)


def quota_of(tokens: float, per_minute: int) -> Quota:
    """`tokens`: those that a granted request has left."""
    return Quota(per_minute, int(tokens), math.ceil((per_minute - tokens) * 60 / per_minute))


def refusal(tokens: float, per_minute: int) -> RateLimited:
    """With the seconds until the next request in `data["retry_after_s"]`."""
    wait_s = math.ceil((1 - tokens) * 60 / per_minute)
    return RateLimited(
        f"more than {per_minute} requests a minute",
        hint=f"wait {wait_s} s; follow a job by its events or ?wait= instead of asking again and again",
        retry_after_s=wait_s,
    )
