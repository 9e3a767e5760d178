"""Shows a job as it happens: states, transfers, training steps as a bar, logs as they were written."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from torg.cli.session import Session, money
from torg.client import AsyncClient, StageProgress
from torg_protocol.api import JobEvent, JobView
from torg_protocol.states import JobState


def exit_code_of(job: JobView) -> int:
    """The job's own exit code when it has one; 0 only for SUCCEEDED."""
    if job.state is JobState.SUCCEEDED:
        return 0
    codes = [lease.exit_code for lease in job.leases if lease.exit_code]
    return codes[-1] if codes else 1


async def follow_job(session: Session, client: AsyncClient, job: JobView, *, states: bool = True) -> JobView:
    """Prints events until the job has ended, then a closing line. Ctrl-C leaves the job running and says so."""
    view = _Lines(session, states=states)
    try:
        with view:
            async for event in client.follow(job.job_id):
                view.show(event)
    except BaseException:
        click.echo(
            f"\nthe job goes on without you: torg logs -f {job.job_id}   or stop it: torg cancel {job.job_id}", err=True
        )
        raise
    ended = await client.wait(job.job_id)
    market = await client.market()
    if session.as_json:
        click.echo(ended.model_dump_json())
    elif states:
        note = f"  {ended.detail}" if ended.detail else ""
        click.echo(
            f"{ended.job_id}  {ended.state}  cost {money(ended.final_amount, market.chain.decimals)}{note}", err=True
        )
    return ended


class _Lines:
    """One line per fact in a pipe or with --json; on a terminal a progress bar besides."""

    def __init__(self, session: Session, *, states: bool) -> None:
        self._json = session.as_json
        self._states = states
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, event: JobEvent) -> None:
        if self._json:
            click.echo(event.model_dump_json())
            return
        data = event.data
        match event.kind:
            case "log":
                stream = sys.stderr if data.get("stream") == "stderr" else sys.stdout
                stream.write(data.get("text", ""))
                stream.flush()
            case "progress":
                self._progress(data)
            case "job" | "lease" | "checkpoint" | "receipt":
                if self._states:
                    click.echo(_state_line(event), err=True)
            case "preparing":
                if self._states and not data.get("done_bytes"):
                    click.echo(f"· preparing: {data.get('step', '')}", err=True)

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
                TextColumn("{task.completed}/{task.total} {task.description}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=total)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in data.items() if isinstance(value, float))
        self._bar.update(self._task, completed=step, total=total, description=figures)


def _state_line(event: JobEvent) -> str:
    data = event.data
    match event.kind:
        case "checkpoint":
            return f"· checkpoint {data.get('name', '')} is safe"
        case "receipt":
            return "· receipt issued"
        case "lease":
            node = str(data.get("node", ""))[:8]
            reason = f" ({data['reason']})" if data.get("reason") else ""
            return f"· attempt {data.get('attempt', '?')} on {node}: {data.get('to', data.get('state', ''))}{reason}"
        case _:
            return f"· {data.get('to', data.get('state', json.dumps(data)))}"


@contextmanager
def transfer_bar(session: Session) -> Iterator[StageProgress | None]:
    """Progress bars for uploads and downloads, on a terminal only."""
    if session.as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield on_progress
