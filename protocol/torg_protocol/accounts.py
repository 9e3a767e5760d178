"""Bodies of the REST API about API keys: what an integrator holds instead of a wallet.

A key acts for an account. Its jobs are paid by the operator's credit vault, as far as the operator has credited the account
and the key's own cap allows: on this one rail the marketplace holds the money.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from torg_protocol.documents import View, Wire
from torg_protocol.ids import AccountId
from torg_protocol.money import MAX_U64


class Scope(StrEnum):
    """What an API key may do. A wallet's signature may do everything."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"  # quote, submit, cancel
    DATA_READ = "data:read"
    DATA_WRITE = "data:write"
    WEBHOOKS = "webhooks"  # read, write, replay


DEFAULT_SCOPES = tuple(Scope)
MAX_KEY_AGE_S = 366 * 86_400


class ApiKeyRequest(Wire):
    """POST /v1/keys, signed by a wallet. `name` is unique among the account's living keys."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    scopes: tuple[Scope, ...] = Field(default=DEFAULT_SCOPES, min_length=1, max_length=len(DEFAULT_SCOPES))
    spend_cap: int = Field(ge=0, le=MAX_U64 // 2, description="base units that the jobs of this key may cost in all")
    expires_in_s: int = Field(default=90 * 86_400, ge=60, le=MAX_KEY_AGE_S)


class ApiKeyView(View):
    key_id: str
    account: AccountId
    name: str
    scopes: tuple[Scope, ...]
    spend_cap: int
    spent: int  # by jobs that have ended
    held: int  # maxima of open jobs
    created_at_ms: int
    expires_at_ms: int
    revoked_at_ms: int | None = None
    last_used_at_ms: int | None = None


class NewApiKey(View):
    """The only time that the secret is shown: the marketplace keeps its hash."""

    key: ApiKeyView
    secret: str


class ApiKeyPage(View):
    """GET /v1/keys"""

    keys: tuple[ApiKeyView, ...]
    next_cursor: str | None = None


class CreditView(View):
    """GET /v1/credit: what the operator has credited the account, and what of it is gone."""

    account: AccountId
    granted: int
    spent: int
    held: int
    available: int
