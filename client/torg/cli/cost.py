"""`torg cost`: what jobs have cost and what open ones may, from the client's own books."""

from __future__ import annotations

from typing import Any

import click

from torg.cli.present import coin_of, duration, noted_table
from torg.cli.session import Session, command
from torg.cli.terminal import columns
from torg.config import pinned
from torg.errors import Unavailable
from torg.journal import JobEntry, Journal
from torg_protocol.open_values import read_openly
from torg_protocol.refunds import RefundView
from torg_protocol.usage import SignedReceipt


@click.command()
@click.option("--vault", "address", metavar="ADDRESS", help="Only jobs under this vault.")
@click.option("--offline", is_flag=True, help="Do not ask the marketplace for receipts that are missing here.")
@command
async def cost(session: Session, address: str | None, offline: bool) -> None:
    """What jobs have cost, and what open ones may. Ended jobs count with their verified receipts; what was given back is beside
    it, with its cause."""
    refunds: tuple[RefundView, ...] = ()
    if not offline:
        await bring_up_to_date(session, address)
        refunds = await _refunds(session)
    pin = pinned(session.config)
    journal = Journal(session.config.journal_path)
    vaults = [entry for entry in journal.all_vaults(pin["marketplace"]) if address in (None, entry.address)]
    jobs = [job for entry in vaults for job in journal.jobs(entry.address)]
    receipts: dict[str, list[SignedReceipt]] = {}
    for stored in journal.receipts():
        receipts.setdefault(stored.job_id, []).append(read_openly(SignedReceipt, stored.body))
    jobs.sort(key=lambda job: job.submitted_at_ms)  # of several vaults; what came last stands above the sums
    found = [_entry(job, receipts.get(str(job.job_id), []), refunds) for job in jobs]
    total = {
        "spent": sum(item["cost"] or 0 for item in found),
        "open_maximum": sum(item["at_most"] for item in found if item["cost"] is None),
        "refunded": sum(item["refunded"] for item in found),
        "billed_ms": sum(item["billed_ms"] for item in found),
        "unbilled_ms": sum(item["unbilled_ms"] for item in found),
    }
    if not found:
        session.show({"jobs": [], **total}, "no jobs yet")
        return
    money = coin_of(pin["chain"]["mint"], pin["chain"]["decimals"])
    rows = [
        (
            item["job_id"] or "(not answered)",
            item["name"],
            str(item["attempts"]),
            duration(item["billed_ms"]),
            duration(item["unbilled_ms"]),
            money.text(item["cost"]) if item["cost"] is not None else f"≤ {money.text(item['at_most'])}",
            f"{money.text(item['refunded'])} ({', '.join(item['refund_causes'])})" if item["refunded"] else "",
        )
        for item in found
    ]
    headings = ("job", "name", "attempts", "billed", "not billed", "cost", "given back")
    text = noted_table(headings, rows, columns(), ("not billed", "attempts", "billed"), "name")
    sums = f"spent {money.text(total['spent'])} for {duration(total['billed_ms'])}"
    sums += f"; {money.text(total['refunded'])} was given back" if total["refunded"] else ""
    sums += f"; {duration(total['unbilled_ms'])} of work was not billed" if total["unbilled_ms"] else ""
    sums += f"; open jobs may cost {money.text(total['open_maximum'])} more" if total["open_maximum"] else ""
    session.show({"jobs": found, **total}, f"{text}\n\n{sums}")


async def bring_up_to_date(session: Session, address: str | None) -> None:
    """Fetches receipts of jobs that have ended since. A marketplace that is away is no reason to show nothing."""
    async with session.client() as client:
        try:
            market = await client.market()
            for entry in client.journal.vaults(market.marketplace):
                if address in (None, entry.address):
                    await (await client.submission(entry.address)).settle_journal()
        except Unavailable as error:
            session.hint(f"torg: {error.message}; this is what was known at the last contact")


async def _refunds(session: Session) -> tuple[RefundView, ...]:
    async with session.client() as client:
        try:
            return await client.refunds()
        except Unavailable:
            return ()  # said already


def _entry(job: JobEntry, receipts: list[SignedReceipt], refunds: tuple[RefundView, ...]) -> dict[str, Any]:
    mine = [item.signed.refund for item in refunds if item.signed.refund.job_id == job.job_id]
    return {
        "job_id": job.job_id,
        "name": job.name,
        "vault": job.vault,
        "submitted_at_ms": job.submitted_at_ms,
        "attempts": len(receipts),
        "billed_ms": sum(signed.receipt.billed_ms for signed in receipts),
        "unbilled_ms": sum(signed.receipt.unbilled_ms for signed in receipts),
        "cost": job.final_amount,
        "verification": sum(signed.receipt.verification_amount for signed in receipts),
        "refunded": sum(refund.amount for refund in mine),
        "refund_causes": sorted({str(refund.cause) for refund in mine}),
        "at_most": job.max_amount,
    }
