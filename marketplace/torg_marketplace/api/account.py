"""What concerns an account itself: what it may do, what was given back to it, what it objects to."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from torg_marketplace.api.auth import JobsReader, JobsWriter, Wallet
from torg_marketplace.api.context import TheEdge
from torg_marketplace.api.jobs import JobIdPath
from torg_marketplace.api.pages import Cursor, Limit
from torg_marketplace.api.strict import StrictRoute
from torg_marketplace.flow.bans import report_abuse
from torg_marketplace.flow.disputes import disputes_of, open_dispute
from torg_marketplace.flow.erase import erase_account
from torg_marketplace.flow.quotas import account_view
from torg_marketplace.flow.refunds import refunds_of
from torg_protocol.cases import (
    AbuseRequest,
    AbuseView,
    AccountView,
    DisputePage,
    DisputeRequest,
    DisputeView,
    ErasureView,
)
from torg_protocol.ids import JobId
from torg_protocol.refunds import RefundPage

router = APIRouter(prefix="/v1", tags=["account"], route_class=StrictRoute)


@router.get("/refunds")
async def get_refunds(
    caller: JobsReader,
    edge: TheEdge,
    job_id: Annotated[str | None, Query(max_length=64)] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> RefundPage:
    """What was given back to you, oldest first, each signed by the marketplace and with the code of its cause."""
    async with edge.market.reading() as unit:
        return await refunds_of(unit, caller.account, job_id=job_id, cursor=cursor, limit=limit)


@router.get("/account")
async def get_account(caller: JobsReader, edge: TheEdge) -> AccountView:
    """Who you are here, and how much of what you may do is used."""
    async with edge.market.reading() as unit:
        return await account_view(unit, caller.account)


@router.post("/jobs/{job_id}/dispute", status_code=201)
async def post_dispute(job_id: JobIdPath, body: DisputeRequest, caller: JobsWriter, edge: TheEdge) -> DisputeView:
    """Objects to what a finished job cost. A person decides; once per job. Safe to repeat."""
    async with edge.market.transaction() as unit:
        return await open_dispute(unit, caller.account, JobId(job_id), body.reason)


@router.get("/disputes")
async def get_disputes(caller: JobsReader, edge: TheEdge) -> DisputePage:
    """Your disputes, or those about jobs that your node ran, newest first, with their decisions."""
    async with edge.market.reading() as unit:
        return await disputes_of(unit, caller.account)


@router.post("/abuse-reports", status_code=201)
async def post_abuse_report(body: AbuseRequest, caller: JobsWriter, edge: TheEdge) -> AbuseView:
    """Tells the operator of a job or a node that does harm. Safe to repeat."""
    async with edge.market.transaction() as unit:
        return await report_abuse(unit, caller.account, body)


@router.delete("/account/data")
async def delete_account_data(caller: Wallet, edge: TheEdge) -> ErasureView:
    """Erases your specs, blobs, logs, events and names; receipts and ledger stay. Jobs must be over. Safe to repeat."""
    return await erase_account(edge.market, caller.account)
