"""`torg account`, `dispute`, `disputes`, `report-abuse`: what an account may do, and what it brings before the operator."""

from __future__ import annotations

import click

from torg.cli.groups import Group
from torg.cli.present import coin, duration, size, table
from torg.cli.session import JOB, Session, asking, command, on_interrupt, resolve

_REASON = click.option("--reason", required=True, metavar="TEXT", help="What went wrong, for a person to read.")


@click.group(cls=Group)
def account() -> None:
    """Who you are at the marketplace, what of your quotas is used, and how to leave."""


@account.command()
@command
async def show(session: Session) -> None:
    """Your account, and how much of its quotas is used."""
    async with session.client() as client:
        market = await client.market()
        view = await client.account()
    money = coin(market)

    def figure(amount: int | None, unit: str) -> str:
        if amount is None:
            return "no limit"
        if unit == "bytes":
            return size(amount)
        return money.text(amount) if unit == "base_units" else str(amount)

    rows = [
        (
            quota.name,
            figure(quota.used, quota.unit),
            figure(quota.limit, quota.unit),
            "" if quota.frees_at_ms is None else f"in {duration(max(0, quota.frees_at_ms - session.now_ms()))}",
        )
        for quota in view.quotas
    ]
    banned = f"\nbanned: {view.banned}" if view.banned is not None else ""
    text = f"account {view.account}\n{table(('quota', 'used', 'limit', 'some is free again'), rows)}{banned}"
    session.show(view.wire(), text)


@account.command(name="delete-data")
@click.option("--yes", is_flag=True, help="Do not ask.")
@command
async def delete_data(session: Session, yes: bool) -> None:
    """Erase your specs, files, logs, events and names from the marketplace. Receipts and ledger stay, under your public key; so does
    the journal of this computer. Jobs must be over."""
    if not yes:
        with asking():
            click.confirm("outputs that you have not pulled are lost; go on?", abort=True, err=True)
    async with session.client() as client:
        with on_interrupt(
            "interrupted: some of it may be erased already; the rest goes with:  torg account delete-data"
        ):
            view = await client.erase()
    session.show(view.wire(), f"erased: {view.jobs} jobs' specs and logs, {view.blobs} blobs, {view.rows} rows")


@click.command()
@JOB
@_REASON
@command
async def dispute(session: Session, job_id: str, reason: str) -> None:
    """Object to what a finished JOB cost: once per job, within the marketplace's window. A person decides."""
    async with session.client() as client:
        job_id = await resolve(client, job_id)
        with on_interrupt("interrupted: it may have arrived, see  torg disputes"):
            view = await client.dispute(job_id, reason)
    session.show(view.wire(), f"{view.dispute_id} about {view.job_id} is {view.state}")
    session.hint("the decision:  torg disputes")


@click.command()
@command
async def disputes(session: Session) -> None:
    """Your disputes and their decisions, newest first."""
    async with session.client() as client:
        market = await client.market()
        found = await client.disputes()
    money = coin(market)
    rows = [
        (
            item.dispute_id,
            item.job_id,
            item.state,
            money.text(item.refunded) if item.state == "decided" else "",
            item.note or item.reason,
        )
        for item in found
    ]
    text = table(("dispute", "job", "state", "given back", "note"), rows) if rows else "no disputes"
    session.show([item.wire() for item in found], text)


@click.command()
@click.argument("subject", metavar="JOB|NODE")
@_REASON
@command
async def report_abuse(session: Session, subject: str, reason: str) -> None:
    """Tell the operator of a job or a node that does harm."""
    async with session.client() as client:
        subject = await resolve(client, subject)
        with on_interrupt("interrupted: it may have arrived; the same report again is safe"):
            view = await client.report_abuse(subject, reason)
    session.show(view.wire(), f"{view.report_id} about {view.subject}: the operator will read it")
