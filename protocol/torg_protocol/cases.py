"""Bodies of what people bring before the operator of a marketplace: disputes and reports of abuse; and what an account may do."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from torg_protocol.documents import View, Wire
from torg_protocol.ids import AccountId, JobId, NodeId

MAX_REASON = 4_000


class DisputeRequest(Wire):
    """POST /v1/jobs/{id}/dispute: once per job, within the marketplace's window after its end."""

    reason: str = Field(min_length=1, max_length=MAX_REASON)


class DisputeView(View):
    """GET /v1/disputes, for the client and for every node that had the job. `refunded`: base units, once it is decided."""

    dispute_id: str
    job_id: JobId
    client: AccountId
    nodes: tuple[NodeId, ...]
    reason: str
    state: Literal["open", "decided"]
    opened_at_ms: int
    decided_at_ms: int | None = None
    refunded: int = 0
    note: str = ""


class DisputePage(View):
    """GET /v1/disputes, newest first."""

    disputes: tuple[DisputeView, ...]


class AbuseRequest(Wire):
    """POST /v1/abuse-reports. `subject`: a job's id or a node's address."""

    subject: str = Field(min_length=1, max_length=64)
    reason: str = Field(min_length=1, max_length=MAX_REASON)


class AbuseView(View):
    report_id: str
    subject: str
    state: Literal["open", "closed"]
    reported_at_ms: int


class ErasureView(View):
    """DELETE /v1/account/data: how much was erased. Receipts and ledger stay."""

    account: AccountId
    jobs: int
    blobs: int
    rows: int


class QuotaView(View):
    """`limit` None: there is none. `frees_at_ms`: when some of it is free again; None: by your own doing only, or it is not used."""

    name: str
    unit: str
    used: int
    limit: int | None
    frees_at_ms: int | None = None


class AccountView(View):
    """GET /v1/account: who you are here, and how much of what you may do is used."""

    account: AccountId
    banned: str | None = None  # why
    quotas: tuple[QuotaView, ...]
