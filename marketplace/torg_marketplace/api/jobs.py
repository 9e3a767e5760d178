"""Quotes and jobs: submit, follow, cancel, read what came out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Path, Query
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse

from torg_chain.errors import ChainUnavailable
from torg_marketplace.api.auth import Caller, DataReader, JobsReader, JobsWriter
from torg_marketplace.api.context import Edge, TheEdge
from torg_marketplace.api.pages import Cursor, IfNoneMatch, Limit, Wait, answer
from torg_marketplace.api.strict import StrictRoute
from torg_marketplace.flow.api_keys import why_over
from torg_marketplace.flow.cancel import cancel
from torg_marketplace.flow.credit import credit_vault
from torg_marketplace.flow.extend import extend
from torg_marketplace.flow.quote import quote
from torg_marketplace.flow.receipts import receipts
from torg_marketplace.flow.rows import job_of
from torg_marketplace.flow.submit import submit
from torg_marketplace.flow.vaults import refresh_vault
from torg_marketplace.flow.views import JobFilter, events_after, job_log, job_view, jobs_page, removed_after
from torg_marketplace.stages import measured
from torg_marketplace.storage.money_models import VaultRow
from torg_protocol.api import ExtendRequest, JobEvent, JobPage, JobReceipts, JobView, Quote, QuoteRequest, SubmitRequest
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import NotFound
from torg_protocol.ids import JobId
from torg_protocol.jobspec import load_job_spec
from torg_protocol.states import JobState

router = APIRouter(prefix="/v1", tags=["jobs"], route_class=StrictRoute)
MAX_I64 = 2**63 - 1
_COMMENT_EVERY_S = 10.0
_VAULT_FRESH_MS = 15_000  # the watch loop looks every 5 s
_VAULTS_KEPT = 10_000
_LOOK_AGAIN_S = 2.0  # wakes are hints, and other processes may write

JobIdPath = Annotated[str, Path(pattern=r"^job_[0-9a-z]{26}$")]
Moment = Annotated[int | None, Query(ge=0, le=MAX_I64, description="milliseconds since the epoch")]


@router.post("/quotes")
async def post_quote(body: QuoteRequest, caller: JobsWriter, edge: TheEdge) -> Quote:
    """Whether, where and for how much a job can run; if not, which constraint removes how many nodes."""
    spec = load_job_spec(body.spec)
    return await quote(edge.market, caller.account, spec)


@router.post("/jobs", status_code=201)
async def post_job(
    body: SubmitRequest,
    caller: JobsWriter,
    edge: TheEdge,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> JobView:
    """Submits a job: a wallet's under a cap that it signed, an API key's under its credit.

    The same Idempotency-Key and body give the same job again, however often; another body under that key is 409
    `idempotency_key_reused`.
    """
    return await measured("submit", _submit(edge, caller, body, idempotency_key))


async def _submit(edge: Edge, caller: Caller, body: SubmitRequest, idempotency_key: str | None) -> JobView:
    await _look_at_vault(edge, await _paying_vault(edge, body))
    digest = sha256_digest(body.model_dump_json().encode())
    return await submit(edge.market, caller.account, body, idempotency_key, digest, api_key=caller.key_id)


@router.get("/jobs")
async def get_jobs(
    caller: JobsReader,
    edge: TheEdge,
    limit: Limit = 50,
    cursor: Cursor = None,
    state: Annotated[list[JobState] | None, Query(description="repeat it for several")] = None,
    name: Annotated[str | None, Query(max_length=63)] = None,
    vault: Annotated[str | None, Query(max_length=44)] = None,
    since_ms: Moment = None,
    until_ms: Moment = None,
) -> JobPage:
    """Your jobs, newest first."""
    wanted = JobFilter(tuple(state or ()), name, vault, since_ms, until_ms)
    async with edge.market.reading() as unit:
        return await jobs_page(unit, caller.account, wanted=wanted, cursor=cursor, limit=limit)


@router.get("/jobs/{job_id}", response_model=JobView)
async def get_job(
    job_id: JobIdPath, caller: JobsReader, edge: TheEdge, wait: Wait = 0, if_none_match: IfNoneMatch = None
) -> Response:
    """One job. With `wait`, answers when it has changed, or after that long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    while True:
        waiter = edge.market.wakes.arm(f"job:{job_id}")
        left_s = deadline - loop.time()
        async with edge.market.reading() as unit:
            job = await job_of(unit, caller.account, JobId(job_id))
            if if_none_match is not None or left_s <= 0 or job.closed_at_ms is not None:
                response = answer(await job_view(unit, caller.account, JobId(job_id)), if_none_match)
                if if_none_match is None or left_s <= 0 or response.status_code == 200:
                    return response
        await waiter.wait(min(left_s, _LOOK_AGAIN_S))


@router.post("/jobs/{job_id}/cancel")
async def cancel_job(job_id: JobIdPath, caller: JobsWriter, edge: TheEdge) -> JobView:
    """Stops the job; what was useful until now is billed. Safe to repeat while the job is open."""
    async with edge.market.transaction() as unit:
        return await cancel(unit, caller.account, JobId(job_id))


@router.post("/jobs/{job_id}/extend")
async def extend_job(job_id: JobIdPath, body: ExtendRequest, caller: JobsWriter, edge: TheEdge) -> JobView:
    """Lets an open job last longer, under a larger cap, or out of the API key's credit that pays for it. Safe to repeat: `max_duration` is of all attempts together, not what is added."""
    if body.cap is not None:
        await _look_at_vault(edge, body.cap.vault)
    async with edge.market.transaction() as unit:
        return await extend(unit, caller.account, JobId(job_id), body)


@router.get("/jobs/{job_id}/receipts", response_model=JobReceipts)
async def get_receipts(
    job_id: JobIdPath, caller: JobsReader, edge: TheEdge, if_none_match: IfNoneMatch = None
) -> Response:
    """One receipt per decided attempt, signed by node and marketplace."""
    async with edge.market.reading() as unit:
        return answer(await receipts(unit, caller.account, JobId(job_id)), if_none_match)


@router.get("/jobs/{job_id}/logs", response_class=PlainTextResponse)
async def get_logs(
    job_id: JobIdPath,
    caller: JobsReader,
    edge: TheEdge,
    stream: Literal["stdout", "stderr"] = "stdout",
    offset: Annotated[int, Query(ge=0, le=MAX_I64, description="bytes to leave out")] = 0,
    task: Annotated[str | None, Query(max_length=64, description="of a job of several tasks: only this one")] = None,
) -> str:
    """The live log of all attempts, from a byte offset."""
    async with edge.market.reading() as unit:
        return await job_log(unit, caller.account, JobId(job_id), stream, offset, task)


@router.get("/jobs/{job_id}/logs/whole", status_code=307, response_class=RedirectResponse)
async def get_whole_log(
    job_id: JobIdPath,
    caller: JobsReader,
    edge: TheEdge,
    stream: Literal["stdout", "stderr"] = "stdout",
    attempt: Annotated[int | None, Query(ge=1, le=MAX_I64, description="default: the newest that has one")] = None,
    task: Annotated[str | None, Query(max_length=64, description="of a job of several tasks: its last run")] = None,
) -> str:
    """Redirects to the bytes of a whole log (`curl -L`), once the attempt has reported. The live log keeps less, and not for as long."""
    async with edge.market.reading() as unit:
        view = await job_view(unit, caller.account, JobId(job_id))
    blob = view.whole_log(stream, attempt=attempt, task=task)
    return await edge.market.blobs.download_url(blob.digest, edge.market.clock.now_ms())


@router.get("/jobs/{job_id}/outputs/{path:path}", status_code=307, response_class=RedirectResponse)
async def get_output(job_id: JobIdPath, path: str, caller: DataReader, edge: TheEdge) -> str:
    """Redirects to the bytes of one output (`curl -L`). The job must have succeeded."""
    async with edge.market.reading() as unit:
        view = await job_view(unit, caller.account, JobId(job_id))
    for output in view.outputs:
        if output.path == path:
            return await edge.market.blobs.download_url(output.digest, edge.market.clock.now_ms())
    raise NotFound(
        "the job has no such output",
        code="output_unknown",
        field="path",
        value=path,
        hint=f"it is {view.state}; there are: {', '.join(output.path for output in view.outputs) or 'none'}",
    )


@router.get("/jobs/{job_id}/events", response_class=StreamingResponse)
async def get_events(
    job_id: JobIdPath,
    caller: JobsReader,
    edge: TheEdge,
    last_event_id: Annotated[int, Header(ge=0, le=MAX_I64, description="go on after this event")] = 0,
    follow: Annotated[bool, Query(description="false: end at the end of what is there")] = True,
) -> StreamingResponse:
    """Server-sent events of a job. Ends by itself when the job is closed; before that with an event `problem`, if the API key that asked is over."""
    async with edge.market.reading() as unit:
        removed = await removed_after(unit, caller.account, JobId(job_id), last_event_id)
    events = _events(edge, caller, JobId(job_id), last_event_id, removed, follow=follow)
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _events(
    edge: Edge, caller: Caller, job_id: JobId, after: int, removed: JobEvent | None, *, follow: bool
) -> AsyncIterator[str]:
    if removed is not None:
        yield _sent(removed)
    while True:
        waiter = edge.market.wakes.arm(f"job:{job_id}")
        async with edge.market.reading() as unit:
            refusal = await why_over(unit, caller.key_id) if caller.key_id is not None else None
            events, over = await events_after(unit, caller.account, job_id, after)
        if refusal is not None:
            problem = {"id": after, "kind": "problem", **refusal.to_problem()}
            yield f"id: {after}\nevent: problem\ndata: {json.dumps(problem)}\n\n"
            return
        for event in events:
            after = event.id
            yield _sent(event)
        if over or (not follow and not events):
            return
        if not events and not await waiter.wait(_COMMENT_EVERY_S):
            yield ": still here\n\n"


def _sent(event: JobEvent) -> str:
    return f"id: {event.id}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"


async def _look_at_vault(edge: Edge, address: str) -> None:
    """Asks the chain unless somebody did within seconds: what is known is finalized, and a deposit is announced by PUT /v1/vaults."""
    seen_at_ms = edge.vaults_seen_ms.get(address, 0)
    if edge.market.clock.now_ms() - seen_at_ms < _VAULT_FRESH_MS:
        return
    async with edge.market.reading() as unit:
        row = await unit.session.get(VaultRow, address)
        if row is not None and unit.now_ms - row.seen_at_ms < _VAULT_FRESH_MS:
            if len(edge.vaults_seen_ms) > _VAULTS_KEPT:
                edge.vaults_seen_ms.clear()
            edge.vaults_seen_ms[address] = row.seen_at_ms
            return
    with contextlib.suppress(ChainUnavailable):  # what was seen last is good enough to decide on
        await refresh_vault(edge.market, address)


async def _paying_vault(edge: Edge, body: SubmitRequest) -> str:
    if body.cap is not None:
        return body.cap.vault
    async with edge.market.reading() as unit:
        return await credit_vault(unit.session)
