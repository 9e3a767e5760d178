"""`torg watch`: one job, live, on one screen: attempts, figures with their curves, the newest output."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections import deque
from typing import Any

import click

from torg.cli.follow import exit_code_of, follow_job, say_it_goes_on, state_line
from torg.cli.present import Coin, age, coin, ports_line
from torg.cli.session import JOB, Session, command, resolve
from torg.cli.terminal import plain, say
from torg.client import AsyncClient
from torg_protocol.api import JobEvent, JobView
from torg_protocol.task_lines import TaskLines

_BARS = "▁▂▃▄▅▆▇█"
_POINTS = 600  # kept per curve
_LINES = 200


@click.command()
@JOB
@command
async def watch(session: Session, job_id: str) -> None:
    """A job live: state, figures, newest output. Without a terminal: one line per event, like logs -f.

    The exit code is the job's own. Ctrl-C leaves the job running.
    """
    session.passes_exit_code()
    async with session.client() as client:
        job = await client.job(await resolve(client, job_id))
        if session.as_json or not sys.stdout.isatty():
            job = await follow_job(session, client, job)
        else:
            try:
                job = await _on_screen(session, client, job)
            except asyncio.CancelledError:
                say_it_goes_on(job.job_id)
                raise
    sys.exit(exit_code_of(job))


class Story:
    """What has been seen of a job so far, as far as a screen shows it."""

    def __init__(self, job: JobView) -> None:
        self.job = job
        self.states: deque[str] = deque(maxlen=8)
        self.curves: dict[str, deque[float]] = {}
        self.step: tuple[int, int] | None = None
        self.output: deque[str] = deque(maxlen=_LINES)
        self._tasks = TaskLines(max((len(task.name) for task in job.spec.tasks), default=0))
        self.standing = {task.name: "waiting" for task in job.spec.tasks}
        self._rest = ""

    def take(self, event: JobEvent) -> None:
        data = event.data
        match event.kind:
            case "progress":
                self._progress(data)
            case "log":
                text = str(data.get("text", ""))
                if "task" in data:
                    text = self._tasks.take(data["task"], data["stream"], text)
                *whole, self._rest = (self._rest + text).split("\n")
                self.output.extend(printable(line) for line in whole)
            case "job" | "lease" | "checkpoint" | "volume":
                self.states.append(state_line(event))
            case "task":
                self.standing[data["task"]] = str(data["state"])
                self.states.append(state_line(event))
            case "preparing":
                if not data.get("done_bytes"):
                    self.states.append(f"· preparing: {data.get('step', '')}")
            case "ports":
                self.states.append(f"· {ports_line(data['ports'])}")
            case "receipt" | "removed":
                pass

    def _progress(self, data: dict[str, Any]) -> None:
        step, total = data.get("step"), data.get("total_steps")
        if isinstance(step, int) and isinstance(total, int):
            self.step = (step, total)
        for name, value in data.items():
            if isinstance(value, float):
                self.curves.setdefault(name, deque(maxlen=_POINTS)).append(value)


def curve(values: list[float], width: int) -> str:
    """A line of blocks; more values than columns are averaged, so that the shape stays."""
    if not values:
        return ""
    if len(values) > width:
        edges = [number * len(values) // width for number in range(width + 1)]
        values = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(edges)]
    low, high = min(values), max(values)
    if high == low:
        return _BARS[0] * len(values)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values)


def printable(line: str) -> str:
    """A job's output may hold anything; what would move the cursor is left out, and only the last state of a line is kept."""
    return "".join(letter for letter in line.rstrip("\r").rpartition("\r")[2] if letter.isprintable() or letter == "\t")


def screen(story: Story, money: Coin, now_ms: int, width: int, height: int) -> str:
    job = story.job
    lines = [
        f"{job.name}  {job.job_id}  {job.state}  {age(now_ms - job.created_at_ms)}  at most {money.text(job.max_amount)}"
    ]
    lines += ["", *story.states]
    if story.standing:
        lines += ["", "  ".join(f"{name} {state}" for name, state in story.standing.items())]
    if story.step is not None:
        done, total = story.step
        filled = round(min(1.0, done / max(1, total)) * 30)
        lines += ["", f"step {done}/{total}  [{'#' * filled}{'.' * (30 - filled)}]"]
    for name, values in story.curves.items():
        lines.append(f"{name:>12.12} {values[-1]:>10.4g}  {curve(list(values), max(10, width - 28))}")
    left = height - len(lines) - 3
    if left > 0 and story.output:
        lines += ["", *list(story.output)[-left:]]
    return "\n".join(plain(line)[:width] for line in lines)


async def _on_screen(session: Session, client: AsyncClient, job: JobView) -> JobView:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console, money, story = Console(), coin(await client.market()), Story(job)

    def picture() -> Text:
        return Text(screen(story, money, session.now_ms(), console.width, console.height), no_wrap=True)

    with Live(picture(), console=console, refresh_per_second=8, screen=True) as live:
        async for event in client.follow(job.job_id, on_gap=lambda why: story.states.append(f"· no answer: {why}")):
            story.take(event)
            if event.kind == "job":
                story.job = story.job.model_copy(update={"state": event.data.get("state", story.job.state)})
            live.update(picture())
    ended = await client.wait(job.job_id)
    story.job = ended
    say(screen(story, money, session.now_ms(), console.width, console.height))
    return ended
