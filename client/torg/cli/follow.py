"""Shows a job as it happens: states, transfers, training steps as a bar, logs as they were written."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click

from torg.cli.present import coin, duration, ports_line, size
from torg.cli.session import Session, on_interrupt
from torg.cli.terminal import cell, log_text_for, say
from torg.client import AsyncClient
from torg.kept import StageProgress
from torg_protocol.api import JobEvent, JobView
from torg_protocol.errors import TorgError
from torg_protocol.states import OPEN_JOB_STATES, JobState
from torg_protocol.task_lines import TaskLines, rank_name

_WAITING_EVERY_S = 2.0


def exit_code_of(job: JobView) -> int:
    """0 only for SUCCEEDED; else the exit code of the job's last attempt (of a gang the first that is not 0, by rank), or 1 when that has
    none (it ran out of time, say)."""
    if job.state is JobState.SUCCEEDED:
        return 0
    last = [lease.exit_code for lease in job.leases if lease.attempt == job.leases[-1].attempt]
    return next((code for code in last if code), 1)


async def follow_job(session: Session, client: AsyncClient, job: JobView, *, states: bool = True) -> JobView:
    """Prints events until the job has ended, then a closing line.

    Ctrl-C on a terminal asks whether to leave the job running or to cancel it; elsewhere it leaves it running and says so.
    """
    view = _Lines(session, job, states=states)
    waiting = asyncio.create_task(_say_what_it_waits_for(client, job.job_id, view))
    try:
        await _follow(session, client, job, view)
    finally:
        waiting.cancel()
    ended = await client.wait(job.job_id)
    await _say_sealed_logs(session, client, ended)
    await _say_end(session, client, ended, states=states)
    return ended


async def _say_sealed_logs(session: Session, client: AsyncClient, job: JobView) -> None:
    """What a sealed job wrote comes encrypted, and at its end."""
    if job.spec.sealed is None or session.as_json:
        return
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        stream.write(await client.logs(job.job_id, name))
        stream.flush()


async def _follow(session: Session, client: AsyncClient, job: JobView, view: _Lines) -> None:
    after = 0
    while True:
        try:
            with view:
                async for event in client.follow(job.job_id, after=after, on_gap=_say_gap):
                    after = event.id
                    view.show(event)
            view.say_rest()
            break
        except asyncio.CancelledError:
            if not _is_interactive(session) or not await _cancel_instead(client, job):
                say_it_goes_on(job.job_id)
                raise
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
        except Exception:
            say_it_goes_on(job.job_id)
            raise


async def _say_what_it_waits_for(client: AsyncClient, job_id: str, view: _Lines) -> None:
    """While the job is queued for longer than a moment: why, each time that the reason changes."""
    said = None
    while view.tells_states:
        await asyncio.sleep(_WAITING_EVERY_S)
        if not view.is_queued:
            continue
        with contextlib.suppress(TorgError):
            reason = (await client.job(job_id)).waiting_for
            if reason not in (None, said):
                said = reason
                say(f"· waiting: {reason}", err=True)


def say_it_goes_on(job_id: str) -> None:
    say(
        f"\nthe job goes on without you:  torg logs -f {job_id}\nstop it:  torg cancel {job_id}",
        err=True,
    )


async def _say_end(session: Session, client: AsyncClient, ended: JobView, *, states: bool) -> None:
    if session.as_json:
        click.echo(ended.model_dump_json())
        return
    if not states:
        return
    money = coin(await client.market())
    billed = sum(lease.billed_ms for lease in ended.leases)
    note = f"  {ended.detail}" if ended.detail else ""
    say(f"{ended.job_id}  {ended.state}  cost {money.text(ended.final_amount)} for {duration(billed)}{note}", err=True)
    if ended.outputs:
        say(f"results:  torg pull {ended.job_id}", err=True)
    elif ended.state is JobState.FAILED:
        say(f"why:  torg show {ended.job_id}    again:  torg retry {ended.job_id}", err=True)


def _is_interactive(session: Session) -> bool:
    return not session.as_json and sys.stdin.isatty() and sys.stderr.isatty()


async def _cancel_instead(client: AsyncClient, job: JobView) -> bool:
    """Asks what Ctrl-C was meant to do. True: the job was told to stop, follow it to its end. A second Ctrl-C means detach."""
    try:
        answer = click.prompt(
            "\nleave the job running, or cancel it?",
            type=click.Choice(["leave", "cancel"]),
            default="leave",
            err=True,
        )
    except (click.Abort, KeyboardInterrupt):
        return False
    if answer == "leave":
        return False
    await client.cancel(job.job_id)
    return True


def _say_gap(reason: str) -> None:
    say(f"· the marketplace does not answer ({reason}); the job goes on, trying again", err=True)


class _Lines:
    """One line per fact in a pipe or with --json; on a terminal a progress bar besides."""

    def __init__(self, session: Session, job: JobView, *, states: bool) -> None:
        self._json = session.as_json
        self._tasks = TaskLines(max((len(task.name) for task in job.spec.tasks), default=0))
        self._states = states
        self.tells_states = states and not session.as_json
        self.is_queued = False
        self._is_over = job.state not in OPEN_JOB_STATES
        self._filters = log_text_for(sys.stdout), log_text_for(sys.stderr)
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def show(self, event: JobEvent) -> None:
        if self._json:
            click.echo(event.model_dump_json())
            return
        data = event.data
        match event.kind:
            case "log":
                self._log(data)
            case "progress":
                self._progress(data)
            case "job" | "lease" | "task" | "checkpoint" | "volume":
                if event.kind == "job":
                    self.is_queued = data.get("state") == JobState.QUEUED
                if self._states:
                    say(state_line(event), err=True)
            case "preparing":
                if self._states and not data.get("done_bytes"):
                    say(f"· preparing: {data.get('step', '')}", err=True)
            case "ports" if self._states:
                say(f"· {ports_line(data['ports'])}", err=True)
            case "removed" if self._is_over:  # of one that runs only old progress, which is shown as a bar
                say(
                    "· the marketplace keeps this job's live log no more; whole, if that is kept: torg logs -o FILE",
                    err=True,
                )

    def _log(self, data: dict[str, Any]) -> None:
        stream = sys.stderr if data.get("stream") == "stderr" else sys.stdout
        text = str(data.get("text", ""))
        source = data.get("task") if "rank" not in data else rank_name(data["rank"])
        self._write(stream, text if source is None else self._tasks.take(source, data["stream"], text))

    def _write(self, stream: TextIO, text: str) -> None:
        """On a terminal without what a stranger's machine could do to it."""
        filtered = self._filters[stream is sys.stderr]
        stream.write(text if filtered is None else filtered.take(text))
        stream.flush()

    def say_rest(self) -> None:
        """What tasks wrote last without an end of line."""
        for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
            self._write(stream, self._tasks.rest(name))
            if (filtered := self._filters[stream is sys.stderr]) is not None:
                stream.write(filtered.rest())
                stream.flush()

    def _progress(self, data: dict[str, Any]) -> None:
        step, total = data.get("step"), data.get("total_steps")
        if not (sys.stderr.isatty() and isinstance(step, int) and isinstance(total, int)):
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("training"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.description}", markup=False),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=total)
        self._bar.update(self._task, completed=step, total=total, description=figures(data))


def figures(data: dict[str, Any]) -> str:
    return cell("  ".join(f"{name} {value:.4g}" for name, value in data.items() if isinstance(value, float)))


def state_line(event: JobEvent) -> str:
    data = event.data
    match event.kind:
        case "checkpoint":
            return f"· checkpoint {data.get('name', '')} is safe"
        case "volume":
            return f"· volume {data.get('name', '')} is stored, {size(int(data.get('size_bytes', 0)))}"
        case "task":
            code = data.get("exit_code")
            note = f" (exit code {code})" if code and data.get("state") != "running" else ""
            detail = str(data.get("detail") or "").splitlines()
            return f"· task {data.get('task')}: {data.get('state')}{note}" + (f": {detail[0]}" if detail else "")
        case "lease":
            rank = f", {rank_name(data['rank'])}" if "rank" in data else ""
            which = f"{data.get('attempt', '?')}{rank} on {str(data.get('node', ''))[:8]}"
            return f"· attempt {which}: {data.get('to', data.get('state', ''))}{_why(data)}"
        case _:
            return f"· {data.get('to', data.get('state', json.dumps(data)))}"


def _why(data: dict[str, Any]) -> str:
    """The reason in brackets and, of what a node says about it, the first line."""
    reason = f" ({data['reason']})" if data.get("reason") else ""
    detail = str(data.get("detail") or "").splitlines()
    return f"{reason}: {detail[0]}" if detail else reason


@contextmanager
def transfer_bar(session: Session) -> Iterator[StageProgress | None]:
    """Progress bars for uploads and downloads, on a terminal only."""
    if session.as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield on_progress


async def pull_results(
    session: Session, client: AsyncClient, job_id: str, target: Path, *, overwrite: bool
) -> list[Path]:
    """Downloads with a bar; Ctrl-C says how to go on."""
    with (
        on_interrupt(f"what has arrived is kept; go on:  torg pull {job_id} -o {target}"),
        transfer_bar(session) as on_progress,
    ):
        return await client.pull(job_id, target, overwrite=overwrite, on_progress=on_progress)
