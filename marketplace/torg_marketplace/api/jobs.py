"""Quotes and jobs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import PlainTextResponse, StreamingResponse

from torg_chain.errors import ChainUnavailable
from torg_marketplace.api.auth import Account
from torg_marketplace.api.context import Edge, TheEdge
from torg_marketplace.flow.cancel import cancel
from torg_marketplace.flow.quote import quote
from torg_marketplace.flow.receipts import receipts
from torg_marketplace.flow.submit import submit
from torg_marketplace.flow.vaults import refresh_vault
from torg_marketplace.flow.views import events_after, job_log, job_view, jobs_page
from torg_protocol.api import JobPage, JobReceipts, JobView, Quote, QuoteRequest, SubmitRequest
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import Invalid
from torg_protocol.ids import AccountId, JobId
from torg_protocol.jobspec import load_job_spec
from torg_protocol.states import JobState

router = APIRouter(prefix="/v1")
_COMMENT_EVERY_S = 10.0


@router.post("/quotes")
async def post_quote(body: QuoteRequest, account: Account, edge: TheEdge) -> Quote:
    """Whether, where and for how much a job can run; if not, which constraint removes how many nodes."""
    spec = load_job_spec(body.spec)
    async with edge.market.transaction() as unit:
        return await quote(unit, account, spec)


@router.post("/jobs", status_code=201)
async def post_job(
    body: SubmitRequest,
    account: Account,
    edge: TheEdge,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> JobView:
    """Submits a job under a signed cap. The same idempotency key and body give the same job again."""
    with contextlib.suppress(ChainUnavailable):  # what was seen last is finalized: good enough to decide on
        await refresh_vault(edge.market, body.cap.vault)
    return await submit(edge.market, account, body, idempotency_key, sha256_digest(body.model_dump_json().encode()))


@router.get("/jobs")
async def get_jobs(
    account: Account, edge: TheEdge, limit: int = 50, cursor: str | None = None, state: str | None = None
) -> JobPage:
    """Your jobs, newest first."""
    async with edge.market.reading() as unit:
        return await jobs_page(unit, account, state=_state(state), cursor=cursor, limit=limit)


@router.get("/jobs/{job_id}")
async def get_job(job_id: str, account: Account, edge: TheEdge) -> JobView:
    async with edge.market.reading() as unit:
        return await job_view(unit, account, JobId(job_id))


@router.post("/jobs/{job_id}/cancel")
async def post_cancel(job_id: str, account: Account, edge: TheEdge) -> JobView:
    """Stops the job; what was useful until now is billed."""
    async with edge.market.transaction() as unit:
        return await cancel(unit, account, JobId(job_id))


@router.get("/jobs/{job_id}/receipts")
async def get_receipts(job_id: str, account: Account, edge: TheEdge) -> JobReceipts:
    """One receipt per decided attempt."""
    async with edge.market.reading() as unit:
        return await receipts(unit, account, JobId(job_id))


@router.get("/jobs/{job_id}/logs", response_class=PlainTextResponse)
async def get_logs(
    job_id: str, account: Account, edge: TheEdge, stream: str = "stdout", offset: Annotated[int, Query(ge=0)] = 0
) -> str:
    """The live log of all attempts, from a byte offset."""
    async with edge.market.reading() as unit:
        return await job_log(unit, account, JobId(job_id), stream, offset)


@router.get("/jobs/{job_id}/events", response_class=StreamingResponse)
async def get_events(
    job_id: str,
    account: Account,
    edge: TheEdge,
    last_event_id: Annotated[int, Header()] = 0,
    follow: bool = True,
) -> StreamingResponse:
    """Server-sent events of a job; ends by itself when the job is closed, or, with follow=0, at the end of what is there."""
    async with edge.market.reading() as unit:
        await job_view(unit, account, JobId(job_id))
    events = _events(edge, account, JobId(job_id), last_event_id, follow=follow)
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _events(edge: Edge, account: AccountId, job_id: JobId, after: int, *, follow: bool) -> AsyncIterator[str]:
    while True:
        waiter = edge.market.wakes.arm(f"job:{job_id}")
        async with edge.market.reading() as unit:
            events, over = await events_after(unit, account, job_id, after)
        for event in events:
            after = event.id
            yield f"id: {event.id}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"
        if over or (not follow and not events):
            return
        if not events and not await waiter.wait(_COMMENT_EVERY_S):
            yield ": still here\n\n"


def _state(text: str | None) -> JobState | None:
    if text is None:
        return None
    try:
        return JobState(text)
    except ValueError:
        raise Invalid(
            "no such state", code="state_unknown", field="state", value=text, hint=", ".join(JobState)
        ) from None
