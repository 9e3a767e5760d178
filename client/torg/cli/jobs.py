"""quote, submit, ps, show, logs, wait, pull, cancel, validate."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from torg.cli.follow import exit_code_of, follow_job, transfer_bar
from torg.cli.session import Session, command, duration, money, table
from torg.spec_file import read_spec_file
from torg_protocol.api import JobView, Quote
from torg_protocol.errors import Invalid
from torg_protocol.jobspec import JobSpec

FILE = click.argument("file", type=click.Path(path_type=Path))


@click.command()
@FILE
@command
async def validate(session: Session, file: Path) -> None:
    """Check a job file without submitting it."""
    spec = read_spec_file(file).check()
    session.show({"valid": True, "spec": spec.wire()}, f"{file}: valid ({spec.name})")


@click.command()
@FILE
@command
async def quote(session: Session, file: Path) -> None:
    """Can it run, where, for how much? Nothing is submitted."""
    spec = read_spec_file(file).check()
    async with session.client() as client:
        market = await client.market()
        answer = await client.quote(spec)
    session.show(answer.wire(), quote_text(spec, answer, market.chain.decimals))
    if not answer.feasible:
        sys.exit(1)


def quote_text(spec: JobSpec, answer: Quote, decimals: int) -> str:
    if not answer.feasible:
        rows = [
            (item.constraint, item.asked, str(item.nodes_removed), item.best_available or "-")
            for item in answer.constraints
        ]
        head = f"{spec.name}: no node can run this ({answer.nodes_considered} on the market)"
        hint = f"\nhint: {answer.hint}" if answer.hint else ""
        return f"{head}\n{table(('constraint', 'asked', 'nodes removed', 'best available'), rows)}{hint}"
    low, high = (
        money(price, decimals) for price in (answer.cheapest_price_per_gpu_hour, answer.dearest_price_per_gpu_hour)
    )
    when = "when a node is free" if answer.waiting else "now"
    return (
        f"{spec.name}: can run {when} on {answer.nodes_fitting} of {answer.nodes_considered} nodes\n"
        f"  price per GPU-hour  {low} to {high}, x {answer.billable_gpus}\n"
        f"  never more than     {money(answer.max_amount, decimals)}  (held in your vault, the rest comes back)"
    )


@click.command()
@FILE
@click.option("--vault", help="Vault to pay from; default: the newest.")
@click.option("--wait/--detach", default=False, help="Follow the job to its end.")
@click.option("--idempotency-key", help="Submit at most once under this key.")
@command
async def submit(session: Session, file: Path, vault: str | None, wait: bool, idempotency_key: str | None) -> None:
    """Submit a job file."""
    spec_file = read_spec_file(file)
    async with session.client() as client:
        with transfer_bar(session) as on_progress:
            job = await client.submit(spec_file, vault=vault, idempotency_key=idempotency_key, on_progress=on_progress)
        market = await client.market()
        if not wait:
            text = f"{job.job_id}  {job.name}  {job.state}  (at most {money(job.max_amount, market.chain.decimals)})"
            session.show(job.wire(), f"{text}\nfollow it: torg logs -f {job.job_id}")
            return
        job = await follow_job(session, client, job)
    sys.exit(exit_code_of(job))


@click.command()
@click.option("--limit", default=20, show_default=True)
@click.option("--cursor", help="Continue where a page ended.")
@command
async def ps(session: Session, limit: int, cursor: str | None) -> None:
    """List jobs."""
    async with session.client() as client:
        market = await client.market()
        page = await client.jobs(limit=limit, cursor=cursor)
    decimals = market.chain.decimals
    rows = [
        (
            job.job_id,
            job.name,
            str(job.state),
            str(len(job.leases)),
            money(job.final_amount, decimals),
            job.waiting_for or job.detail or "",
        )
        for job in page.jobs
    ]
    more = f"\nmore: torg ps --cursor {page.next_cursor}" if page.next_cursor else ""
    session.show(page.wire(), table(("job", "name", "state", "attempts", "cost", "note"), rows) + more)


@click.command()
@click.argument("job_id")
@command
async def show(session: Session, job_id: str) -> None:
    """One job with its attempts."""
    async with session.client() as client:
        market = await client.market()
        job = await client.job(job_id)
    session.show(job.wire(), job_text(job, market.chain.decimals))


def job_text(job: JobView, decimals: int) -> str:
    head = f"{job.job_id}  {job.name}  {job.state}" + (f"  ({job.reason})" if job.reason else "")
    rows = [
        (
            str(lease.attempt),
            lease.node[:8],
            str(lease.state),
            str(lease.reason or "-"),
            duration(lease.billed_ms),
            duration(lease.unbilled_ms),
            money(lease.amount, decimals),
            lease.resumed_from or "-",
        )
        for lease in job.leases
    ]
    headings = ("attempt", "node", "state", "reason", "billed", "not billed", "cost", "resumed from")
    outputs = "".join(f"\n  {output.path}  {output.size_bytes} bytes" for output in job.outputs)
    notes = "".join(f"\n{note}" for note in (job.waiting_for, job.detail) if note)
    return f"{head}{notes}\n{table(headings, rows)}" + (f"\noutputs:{outputs}" if outputs else "")


@click.command()
@click.argument("job_id")
@click.option("-f", "--follow", is_flag=True, help="Live, until the job ends.")
@click.option("--stderr", "stream", flag_value="stderr", help="Only the error stream.")
@click.option("--stdout", "stream", flag_value="stdout", default="stdout", help="Only the output stream (the default).")
@command
async def logs(session: Session, job_id: str, follow: bool, stream: str) -> None:
    """A job's output; -f follows it."""
    async with session.client() as client:
        if follow:
            job = await follow_job(session, client, await client.job(job_id), states=False)
            sys.exit(exit_code_of(job))
        text = await client.logs(job_id, stream)
    session.show({"stream": stream, "text": text}, text.rstrip("\n"))


@click.command()
@click.argument("job_id")
@command
async def wait(session: Session, job_id: str) -> None:
    """Wait for a job; its exit code becomes this command's."""
    async with session.client() as client:
        job = await client.wait(job_id)
        market = await client.market()
    session.show(job.wire(), job_text(job, market.chain.decimals))
    sys.exit(exit_code_of(job))


@click.command()
@click.argument("job_id")
@click.option(
    "-o",
    "--output",
    "destination",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory; default: the job id.",
)
@command
async def pull(session: Session, job_id: str, destination: Path | None) -> None:
    """Download a job's outputs."""
    target = destination or Path(job_id)
    async with session.client() as client:
        with transfer_bar(session) as on_progress:
            files = await client.pull(job_id, target, on_progress=on_progress)
    if not files:
        raise Invalid(
            "this job has no outputs",
            code="no_outputs",
            field="job",
            value=job_id,
            hint="jobs write what they want kept to $TORG_OUTPUT_DIR",
        )
    session.show({"files": [str(path) for path in files]}, "\n".join(str(path) for path in files))


@click.command()
@click.argument("job_id")
@command
async def cancel(session: Session, job_id: str) -> None:
    """Stop a job; what was useful until now is billed."""
    async with session.client() as client:
        job = await client.cancel(job_id)
    session.show(json.loads(job.model_dump_json()), f"{job.job_id}  {job.state}")
