"""submit, retry, show, logs, wait, pull, extend, cancel."""

from __future__ import annotations

import asyncio
import secrets
import sys
from pathlib import Path

import click

from torg.cli.present import Coin, coin, duration, narrow_table, not_shown, noted_table, ports_line, size
from torg.cli.session import JOB, Seconds, Session, command, on_interrupt, resolve
from torg.cli.terminal import columns, log_text_for, say
from torg.client import AsyncClient
from torg.errors import Unavailable
from torg_protocol.api import JobView, LeaseView, QueuePlace
from torg_protocol.errors import Invalid, TorgError
from torg_protocol.quantities import parse_duration_ms
from torg_protocol.states import EndReason, JobState, LeaseState
from torg_protocol.task_lines import rank_name

_LAST_LINES = 10
_EXIT_CODES = {
    126: "exit code 126: its command is there and cannot be started; is it executable, and for this kind of processor?",
    127: "exit code 127: its command was not found in the image; is it spelled right, and installed there?",
}

VAULT = click.option("--vault", metavar="ADDRESS", help="Vault to pay from; default: the newest.")
WAIT = click.option(
    "--wait/--detach", default=False, help="Follow the job to its end, or (default) print its id and leave."
)
KEY = click.option(
    "--idempotency-key", metavar="KEY", help="Submit at most once under this key, however often it is tried."
)

ALLOW_DROPPED = click.option(
    "--allow-dropped",
    is_flag=True,
    help="Submit another platform's job file although parts that matter have no counterpart here (torg import FILE lists them).",
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@VAULT
@WAIT
@KEY
@ALLOW_DROPPED
@command
async def submit(
    session: Session, file: Path, vault: str | None, wait: bool, idempotency_key: str | None, allow_dropped: bool
) -> None:
    """Submit a job file (YAML or JSON; "-" reads standard input), ours or another platform's (see torg import).

    With --wait the exit code is the job's own; 125 means that torg itself failed.
    """
    from torg.cli.follow import transfer_bar
    from torg.cli.imports import told
    from torg.spec_file import read_spec_file

    if wait:
        session.passes_exit_code()
    spec_file = told(session, read_spec_file(file), allow_dropped=allow_dropped)
    key = idempotency_key or secrets.token_hex(16)
    async with session.client() as client:
        try:
            with transfer_bar(session) as on_progress:
                job = await client.submit(spec_file, vault=vault, idempotency_key=key, on_progress=on_progress)
        except asyncio.CancelledError:
            say_interrupted(f"torg submit {file}", key)
            raise
        await _submitted(session, client, job, wait=wait)


@click.command()
@JOB
@VAULT
@WAIT
@KEY
@command
async def retry(session: Session, job_id: str, vault: str | None, wait: bool, idempotency_key: str | None) -> None:
    """Submit a job again, as it was: same spec, same workspace (which the store still has), a new quote."""
    if wait:
        session.passes_exit_code()
    key = idempotency_key or secrets.token_hex(16)
    async with session.client() as client:
        job_id = await resolve(client, job_id)
        try:
            job = await client.resubmit(job_id, vault=vault, idempotency_key=key)
        except asyncio.CancelledError:
            say_interrupted(f"torg retry {job_id}", key)
            raise
        await _submitted(session, client, job, wait=wait)


def say_interrupted(again: str, key: str) -> None:
    """Nobody knows here how far it came; the key makes going on safe."""
    say(
        f"\ninterrupted: the job may be there already, see torg ps\ngo on safely:  {again} --idempotency-key {key}",
        err=True,
    )


async def _submitted(session: Session, client: AsyncClient, job: JobView, *, wait: bool) -> None:
    from torg.cli.follow import exit_code_of, follow_job

    if wait:
        sys.exit(exit_code_of(await follow_job(session, client, job)))
    money = coin(await client.market())
    session.show(job.wire(), f"{job.job_id}  {job.name}  {job.state}  (at most {money.text(job.max_amount)})")
    session.hint(f"follow it:  torg logs -f {job.job_id}")


@click.command()
@JOB
@command
async def show(session: Session, job_id: str) -> None:
    """One job: state, cost, attempts, tasks and outputs; of one that waits its place in the queue and why."""
    async with session.client() as client:
        market = await client.market()
        job = await client.job(await resolve(client, job_id))
        why = "" if session.as_json else await _last_words(client, job)
    session.show(job.wire(), job_text(job, coin(market), columns()) + why)


async def _last_words(client: AsyncClient, job: JobView) -> str:
    """Of a job that failed by itself: what its exit code means, and the end of what it wrote on stderr."""
    if job.reason is not EndReason.FAILED_EXIT or not job.leases:
        return ""
    meaning = _EXIT_CODES.get(job.leases[-1].exit_code or 0)
    try:
        lines = (await client.logs(job.job_id, "stderr")).splitlines()[-_LAST_LINES:]
    except TorgError:  # the log may be gone, or nobody's who reads this; the job is shown all the same
        lines = []
    said = f"\nits last words on stderr (all: torg logs --stderr {job.job_id}):" if lines else ""
    return (f"\n{meaning}" if meaning else "") + said + "".join(f"\n  {line}" for line in lines)


def job_text(job: JobView, money: Coin, width: int | None) -> str:
    head = f"{job.job_id}  {job.name}  {job.state}" + (f"  ({job.reason})" if job.reason else "")
    queue = None if job.queue is None else place_in_words(job.queue)
    said = [lease.detail for lease in job.leases[-1:] if lease.detail and lease.detail not in job.detail]
    notes = "".join(f"\n{note}" for note in (job.waiting_for, queue, job.detail, *said) if note)
    cost = (
        f"cost {money.text(job.final_amount)}"
        if job.final_amount is not None
        else f"never more than {money.text(job.max_amount)}"
    )
    attempts = f"\n{_attempts_table(job, money, width)}" if job.leases else "\nno attempt yet"
    tasks = _tasks_table(job.leases[-1], width) if job.leases and job.leases[-1].tasks else ""
    serving = [lease.ports for lease in job.leases if lease.ports and lease.state is LeaseState.RUNNING]
    ports = f"\n{ports_line(port.model_dump() for port in serving[-1])}" if serving else ""
    outputs = "".join(f"\n  {output.path}  {size(output.size_bytes)}" for output in job.outputs)
    return f"{head}{notes}\n{cost}{attempts}{tasks}{ports}" + (
        f"\noutputs (torg pull {job.job_id}):{outputs}" if outputs else ""
    )


def _attempts_table(job: JobView, money: Coin, width: int | None) -> str:
    rows = [
        (
            str(lease.attempt) if job.spec.gang is None else f"{lease.attempt}, {rank_name(lease.rank)}",
            lease.node[:8],
            str(lease.state),
            str(lease.reason or "-") + (f", exit code {lease.exit_code}" if lease.exit_code else ""),
            duration(lease.billed_ms),
            duration(lease.unbilled_ms),
            money.text(lease.amount),
            lease.resumed_from or "-",
        )
        for lease in job.leases
    ]
    headings = ("attempt", "node", "state", "reason", "billed", "not billed", "cost", "resumed from")
    text, left_out = narrow_table(headings, rows, width, ("resumed from", "not billed", "billed"), "reason")
    return f"{text}\n{not_shown(left_out, width, f'torg show {job.job_id}')}" if left_out else text


def place_in_words(queue: QueuePlace) -> str:
    """`place 3 of 7 in the queue; before it: 1 that bids more, 1 of your own`"""
    before = [
        (queue.bid_more, f"{queue.bid_more} that bid more"),
        (queue.waited_longer, f"{queue.waited_longer} that have waited longer"),
        (
            queue.by_turn,
            f"{queue.by_turn} with the same bid, of accounts whose turn it is (you have {queue.own_running} running)",
        ),
        (queue.own, f"{queue.own} of your own"),
    ]
    ahead = ", ".join(words for count, words in before if count)
    return f"place {queue.place} of {queue.waiting} in the queue" + (f"; before it: {ahead}" if ahead else "")


def _tasks_table(lease: LeaseView, width: int | None) -> str:
    rows = [
        (
            task.task,
            str(task.state),
            str(task.run),
            "-" if task.exit_code is None else str(task.exit_code),
            duration(task.ended_at_ms - task.started_at_ms) if task.ended_at_ms and task.started_at_ms else "-",
            task.detail.partition("\n")[0],
        )
        for task in lease.tasks
    ]
    results = "".join(
        f"\n  {task.task}.{key}  {value if isinstance(value, str) else ', '.join(value)}"
        for task in lease.tasks
        for key, value in task.results.items()
    )
    shown = noted_table(("task", "state", "starts", "exit code", "ran", "note"), rows, width, ("starts", "ran"), "task")
    return f"\n\n{shown}" + (f"\nresults:{results}" if results else "")


@click.command()
@JOB
@click.option(
    "-f", "--follow", is_flag=True, help="Both streams, live, until the job ends; its exit code becomes this command's."
)
@click.option("--stderr", "stream", flag_value="stderr", help="Show the error stream instead.")
@click.option("--stdout", "stream", flag_value="stdout", default="stdout", help="Show the output stream (default).")
@click.option("--task", metavar="NAME", help="Of a job of several tasks: only this one, as it wrote it.")
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Save the whole log of the newest attempt that has ended, byte for byte.",
)
@click.option(
    "--attempt", type=click.IntRange(1), help="With -o: the log of this attempt (torg show lists them) instead."
)
@command
async def logs(
    session: Session, job_id: str, follow: bool, stream: str, task: str | None, file: Path | None, attempt: int | None
) -> None:
    """A job's output; -f follows both streams live. Lines of a job of several tasks begin with the task's name."""
    if follow and file:
        raise click.UsageError("--output and --follow do not go together")
    if attempt and not file:
        raise click.UsageError("--attempt goes with --output")
    if follow and task:
        raise click.UsageError("--task and --follow do not go together")
    async with session.client() as client:
        job_id = await resolve(client, job_id)
        if follow:
            from torg.cli.follow import exit_code_of, follow_job

            session.passes_exit_code()
            job = await follow_job(session, client, await client.job(job_id), states=False)
            sys.exit(exit_code_of(job))
        if file is not None:
            await client.save_log(job_id, file, stream, attempt=attempt, task=task)
            session.show({"file": str(file), "size_bytes": file.stat().st_size}, f"{file}  {size(file.stat().st_size)}")
            return
        text = await client.logs(job_id, stream, task=task)
        if not text and not session.as_json:
            job = await client.job(job_id)
            other = "stdout" if stream == "stderr" else "stderr"
            session.hint(
                f"nothing on {stream} (the job is {job.state}); the other stream:  torg logs --{other} {job_id}"
            )
    if session.as_json:
        session.show({"stream": stream, "text": text}, "")
    else:
        filtered = log_text_for(sys.stdout)
        shown = text if filtered is None else filtered.take(text) + filtered.rest()
        click.echo(shown, nl=not text.endswith("\n") and bool(text), color=True)  # not to be stripped


@click.command()
@JOB
@click.option(
    "--timeout",
    "timeout_s",
    type=Seconds(),
    help='Give up after so long, for example "90s" or "5m" (exit code 125); a bare number is seconds.',
)
@command
async def wait(session: Session, job_id: str, timeout_s: float | None) -> None:
    """Wait for a job; its exit code becomes this command's."""
    from torg.cli.follow import exit_code_of, say_it_goes_on

    session.passes_exit_code()
    async with session.client() as client:
        job_id = await resolve(client, job_id)
        await client.job(job_id)
        try:
            async with asyncio.timeout(timeout_s):
                job = await client.wait(job_id)
        except TimeoutError:
            raise Unavailable(
                f"the job has not ended within {timeout_s:g} s",
                code="wait_timeout",
                field="timeout",
                value=timeout_s,
                hint=f"it goes on: torg logs -f {job_id}",
            ) from None
        except asyncio.CancelledError:
            say_it_goes_on(job_id)
            raise
        market = await client.market()
    session.show(job.wire(), job_text(job, coin(market), columns()))
    sys.exit(exit_code_of(job))


@click.command()
@JOB
@click.option(
    "-o",
    "--output",
    "destination",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory to write to; default: one named like the job id, here.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there with other content.")
@command
async def pull(session: Session, job_id: str, destination: Path | None, overwrite: bool) -> None:
    """Download a job's outputs. Run it again after a broken connection: it goes on where it stopped."""
    from torg.cli.follow import pull_results

    async with session.client() as client:
        job_id = await resolve(client, job_id)
        target = destination or Path(job_id)
        files = await pull_results(session, client, job_id, target, overwrite=overwrite)
        if not files:
            state = (await client.job(job_id)).state
            raise Invalid(
                f"this job has no outputs (it is {state})",
                code="no_outputs",
                field="job",
                value=job_id,
                hint="outputs are there when a job has succeeded, and are what its spec lists under `outputs`, "
                "written to $TORG_OUTPUT_DIR",
            )
    session.show({"files": [str(path) for path in files]}, "\n".join(str(path) for path in files))


@click.command()
@JOB
@click.option(
    "--by", "by_text", required=True, metavar="DURATION", help='How much longer in all, for example "30m" or "2h".'
)
@command
async def extend(session: Session, job_id: str, by_text: str) -> None:
    """Let a job last longer than its max_duration. A queued job gets a larger limit; a running one needs checkpoints, and goes on from the
    newest when its time is over."""
    try:
        by_ms = parse_duration_ms(by_text)
    except ValueError as error:
        raise Invalid(str(error), code="duration_invalid", field="--by", value=by_text) from None
    async with session.client() as client:
        job_id = await resolve(client, job_id)
        unknown = f"interrupted: the job may last longer already, see  torg show {job_id}  before you extend it again"
        with on_interrupt(unknown):
            job, market = await client.extend(job_id, by_ms), await client.market()
    most = coin(market).text(job.max_amount)
    session.show(job.wire(), f"{job.job_id}  may last {duration(job.max_duration_ms)} in all, and cost {most} at most")
    if job.state is JobState.LEASED:
        session.hint("its time on this node ends as before; then it goes on from its newest checkpoint")


@click.command()
@JOB
@command
async def cancel(session: Session, job_id: str) -> None:
    """Stop a job; what was useful until now is billed. Safe to repeat."""
    async with session.client() as client:
        job_id = await resolve(client, job_id)
        with on_interrupt(
            f"interrupted: the job may be stopping already; cancelling it again is safe:  torg cancel {job_id}"
        ):
            job = await client.cancel(job_id)
    session.show(job.wire(), f"{job.job_id}  {job.state}")
    session.hint(f"what it cost:  torg show {job_id}")
