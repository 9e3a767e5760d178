"""When what the node's own key holds goes to a cold wallet, and how much of it. Pure: values in, an amount out.

Written in config.toml as a table:

    [sweep]
    to = "WALLET"           # one whose key is not on this machine; confirmed by: torg-node sweep --confirm WALLET
    keep = 1000000          # base units that stay
    at_least = 50000000     # as soon as so much is above what stays
    every = "7d"            # and whatever is above it, that often
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, model_validator

from torg_chain.wallet import wallet_address
from torg_protocol.quantities import DurationMs

_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000}


def span(ms: int) -> str:
    """As a person writes it: 7d, 36h."""
    return next((f"{ms // size}{unit}" for unit, size in _UNITS_MS.items() if ms % size == 0), f"{ms}ms")


class SweepPlan(BaseModel):
    """Amounts in base units."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    to: Annotated[str, AfterValidator(wallet_address)]
    keep: int = Field(default=0, ge=0)
    at_least: int | None = Field(default=None, gt=0)
    every: Annotated[DurationMs, PlainSerializer(span)] | None = Field(default=None, ge=60_000)

    @model_validator(mode="after")
    def _some_day(self) -> SweepPlan:
        if self.at_least is None and self.every is None:
            raise ValueError('say when: every = "7d", or at_least in base units, or both')
        return self

    def amount_due(self, balance: int, last_at_ms: int | None, now_ms: int) -> int:
        """`last_at_ms`: of the sweep before; one that lies ahead, by a clock that was wrong, counts for nothing."""
        above = max(0, balance - self.keep)
        if self.at_least is not None and above >= self.at_least:
            return above
        waits = last_at_ms is not None and self.every is not None and 0 <= now_ms - last_at_ms < self.every
        return 0 if self.every is None or waits else above
