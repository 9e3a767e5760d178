"""Ports on which a job serves, and how one tells that it does.

    ports:
      - port: 8888
        name: web
        health: {http: /health}

A declared port is ready when its health check has passed: an HTTP status from 200 to 399 (or exactly `expect_status`), or, with
`{tcp: true}` or no `health` at all, an accepted connection. The node asks on the job's own loopback, from inside its network.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from torg_protocol.quantities import DurationMs

MAX_PORTS = 16


class HealthCheck(BaseModel):
    """Exactly one of `http` (a path) and `tcp`. Asked every `every`, given up after `timeout`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    http: str | None = None
    expect_status: int | None = Field(default=None, ge=100, le=599)
    tcp: Literal[True] | None = None
    every: DurationMs = Field(default=10_000, ge=1_000, le=3_600_000)
    timeout: DurationMs = Field(default=5_000, ge=100, le=60_000)

    @field_validator("http")
    @classmethod
    def _path(cls, path: str | None) -> str | None:
        if path is not None and re.fullmatch(r"/[\x21-\x7e]{0,255}", path) is None:
            raise ValueError("a path begins with / and has no spaces, for example /health")
        return path

    @model_validator(mode="after")
    def _one_kind(self) -> HealthCheck:
        if (self.http is None) == (self.tcp is None):
            raise ValueError("write one of http: /path and tcp: true")
        if self.expect_status is not None and self.http is None:
            raise ValueError("expect_status needs http: /path")
        return self


class Port(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    port: int = Field(ge=1, le=65535)
    name: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    health: HealthCheck = HealthCheck(tcp=True)


class PortState(BaseModel):
    """How a declared port stands, as its node last found it. `detail`: why it is not ready."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: int
    name: str | None = None
    task: str | None = Field(default=None, exclude_if=operator.not_)  # of a job of several: whose it is
    ready: bool
    detail: str = Field(default="", max_length=200)


def clashes(ports: Sequence[Port]) -> str | None:
    """What two of them have in common that they must not, in words; None: nothing."""
    columns: dict[str, list[object]] = {
        "port": [port.port for port in ports],
        "name": [port.name for port in ports if port.name is not None],
    }
    for what, values in columns.items():
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            return f"the {what} {twice} is there twice"
    return None
