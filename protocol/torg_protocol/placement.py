"""Where a job may run and when it is its turn: wishes about nodes that are not about their hardware."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer


class Placement(BaseModel):
    """`nodes`: any of these, by their public keys; empty: whichever. `regions`: any of these, as nodes name theirs; empty: anywhere.
    `min_reliability_percent`: of its leases, what share the node must have seen through. `min_proven_gops`: only nodes each of whose units was proven
    to do so many billion int8 operations per second (1: proven at all). `priority` orders the waiting jobs of one account that bid the same, the
    higher first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: tuple[str, ...] = Field(default=(), max_length=64)
    regions: tuple[str, ...] = Field(default=(), max_length=32)
    min_reliability_percent: int = Field(default=0, ge=0, le=100)
    min_proven_gops: int = Field(default=0, ge=0, le=10**9)
    priority: int = Field(default=0, ge=-100, le=100)

    @field_validator("regions")
    @classmethod
    def _regions(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
        for region in regions:
            if not 1 <= len(region) <= 32 or region != region.strip():
                raise ValueError(f'"{region}" is not a region: 1 to 32 characters, no spaces around')
        return regions

    @model_serializer(mode="wrap")
    def _without_later_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Specs of before keep their digests: what came later is left out while it asks for nothing."""
        fields: dict[str, Any] = serialize(self)
        return {name: value for name, value in fields.items() if value or name not in {"nodes", "min_proven_gops"}}
