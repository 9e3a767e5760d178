"""`torg top`: all jobs of one's own that are open, live on one screen, with what ended last below them."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Sequence

import click

from torg.cli.present import Coin, age, coin, duration, table
from torg.cli.session import Session, command
from torg.cli.watch import curve
from torg.client import AsyncClient
from torg_protocol.api import JobView
from torg_protocol.states import JobState
from torg_protocol.tasks import TaskState

_JOBS = 100  # looked at, the newest
_POINTS, _WIDTH = 120, 16  # of the curve of each job


@click.command()
@click.option(
    "--every", "every_s", default=2.0, show_default=True, type=click.FloatRange(min=0.2), help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="Print it once, as without a terminal.")
@command
async def top(session: Session, every_s: float, once: bool) -> None:
    """Your open jobs, live: where each runs, how far it is, what it has cost until now. Ctrl-C leaves it; jobs go on."""
    async with session.client() as client:
        money, history = coin(await client.market()), History()
        jobs = await _newest(client)
        if session.as_json or once or not sys.stdout.isatty():
            shown = [job for job in jobs if job.ended_at_ms is None]
            session.show([job.wire() for job in shown], screen(jobs, history, money, session.now_ms(), 40))
            return
        await _on_screen(session, client, jobs, history, money, every_s)


async def _newest(client: AsyncClient) -> tuple[JobView, ...]:
    return (await client.jobs(limit=_JOBS)).jobs


class History:
    """The newest values of one figure of each job, from one look to the next."""

    def __init__(self) -> None:
        self._values: dict[str, deque[float]] = {}

    def take(self, job: JobView) -> None:
        value = next((item for item in (job.progress or {}).values() if isinstance(item, float)), None)
        if value is not None:
            self._values.setdefault(job.job_id, deque(maxlen=_POINTS)).append(value)

    def curve(self, job: JobView) -> str:
        return curve(list(self._values.get(job.job_id, ())), _WIDTH)


def screen(jobs: Sequence[JobView], history: History, money: Coin, now_ms: int, height: int) -> str:
    """Open jobs, the oldest first, then as many ended ones as fit, the newest first."""
    for job in jobs:
        history.take(job)
    still_open = sorted((job for job in jobs if job.ended_at_ms is None), key=lambda job: job.created_at_ms)
    ended = [job for job in jobs if job.ended_at_ms is not None]
    held = sum(job.max_amount for job in still_open)
    running = sum(job.state is JobState.LEASED for job in still_open)
    head = f"{running} running, {len(still_open) - running} others open, at most {money.text(held)} held"
    shown = still_open + ended[: max(0, height - len(still_open) - 4)]
    if not shown:
        return f"{head}\nno jobs yet"
    rows = [
        (
            job.job_id,
            job.name[:24],
            str(job.state),
            job.leases[-1].node[:8] if job.leases else "-",
            _ran(job, now_ms),
            money.text(_cost(job, now_ms)),
            _note(job, history),
        )
        for job in shown
    ]
    return f"{head}\n{table(('job', 'name', 'state', 'node', 'for', 'cost', 'how far'), rows)}"


def _ran(job: JobView, now_ms: int) -> str:
    """Since its newest start, or how long it has waited, or how long ago it ended."""
    if job.ended_at_ms is not None:
        return f"ended {age(now_ms - job.ended_at_ms)} ago"
    lease = job.leases[-1] if job.leases else None
    if lease is not None and lease.started_at_ms is not None and lease.exited_at_ms is None:
        return duration(max(0, now_ms - lease.started_at_ms))
    return f"waits {duration(max(0, now_ms - job.created_at_ms))}"


def _cost(job: JobView, now_ms: int) -> int:
    """What is final or recorded, and an estimate of what a running attempt has earned beyond it."""
    if job.final_amount is not None:
        return job.final_amount
    known = sum(lease.amount for lease in job.leases)
    lease = job.leases[-1] if job.leases else None
    if lease is None or lease.started_at_ms is None:
        return known
    useful_ms = max(0, (lease.exited_at_ms or now_ms) - lease.started_at_ms - lease.billed_ms)
    per_hour = lease.price_per_gpu_hour * job.spec.resources.billable_gpus
    return min(job.max_amount, known + per_hour * useful_ms // 3_600_000)


def _note(job: JobView, history: History) -> str:
    if job.state is JobState.QUEUED:
        return job.waiting_for or ""
    if job.ended_at_ms is not None:
        return str(job.reason or "")
    tasks = job.leases[-1].tasks if job.leases else ()
    running = ", ".join(task.task for task in tasks if task.state is TaskState.RUNNING)
    progress = job.progress or {}
    step, total = progress.get("step"), progress.get("total_steps")
    parts = [
        f"task {running}" if running else "",
        f"{step}/{total}" if isinstance(step, int) and isinstance(total, int) else _stage(job, step),
        next((f"{name} {value:.4g}" for name, value in progress.items() if isinstance(value, float)), ""),
        history.curve(job),
    ]
    return "  ".join(part for part in parts if part)


def _stage(job: JobView, step: object) -> str:
    """A step without a known number of them; a word is one of the preparation, and says nothing once the job runs."""
    runs = bool(job.leases) and job.leases[-1].started_at_ms is not None
    return "" if step is None or (runs and isinstance(step, str)) else str(step)


async def _on_screen(
    session: Session,
    client: AsyncClient,
    jobs: tuple[JobView, ...],
    history: History,
    money: Coin,
    every_s: float,
) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()

    def picture() -> Text:
        text = screen(jobs, history, money, session.now_ms(), console.height)
        return Text("\n".join(line[: console.width] for line in text.splitlines()), no_wrap=True)

    with Live(picture(), console=console, refresh_per_second=4, screen=True) as live:
        while True:
            await asyncio.sleep(every_s)
            jobs = await _newest(client)
            live.update(picture())
