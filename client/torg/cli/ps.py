"""ps: jobs in one line each.

The list is read as what it is, JSON: the models of all that a job can be take longer to load than all the rest of this command. Members that
this torg does not know are nobody's concern here; one that is missing makes an answer that it does not understand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import click

from torg.cli.present import Coin, age, coin_of, noted_table
from torg.cli.session import Session, command
from torg.cli.terminal import columns, say
from torg.config import pin_or_check
from torg_protocol.states import JobState

# Of TaskState, which loads with all that a task can be. A test compares.
_TASK_RUNNING, _TASK_NOT_ENDED = "running", frozenset({"waiting", "running", "restarting"})


@click.command()
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 200), help="Jobs on one page.")
@click.option("--state", type=click.Choice([str(state) for state in JobState]), help="Only jobs in this state.")
@click.option("--cursor", metavar="JOB", help="Continue where a page ended.")
@click.option("-q", "--quiet", is_flag=True, help="Only job ids, one per line.")
@command
async def ps(session: Session, limit: int, state: str | None, cursor: str | None, quiet: bool) -> None:
    """List jobs, newest first."""
    query = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {}) | ({"state": state} if state else {})
    async with session.transport() as transport:
        market, page = await asyncio.gather(
            transport.read(Market.of, "GET", "/v1/market"), transport.read(Page.of, "GET", "/v1/jobs", query=query)
        )
    pin_or_check(session.config, market.raw)
    if quiet and not session.as_json:
        say("".join(f"{job.job_id}\n" for job in page.jobs), nl=False)
        return
    if not page.jobs:
        session.show(page.raw, "no jobs" + (f" in state {state}" if state else " yet"))
        session.hint("start one:  torg init, then torg submit job.yaml --wait")
        return
    now_ms = session.now_ms()
    session.show(page.raw, listing(page.jobs, market.coin, now_ms, columns()))
    if page.next_cursor:
        session.hint(f"more:  torg ps --cursor {page.next_cursor}")


def listing(jobs: Sequence[Line], money: Coin, now_ms: int, width: int | None) -> str:
    """One line per job; where that is too wide, what is to be noted stands below its job."""
    headings = ("job", "name", "state", "age", "attempts", "cost", "note")
    rows = [job.row(now_ms, money) for job in jobs]
    return noted_table(headings, rows, width, ("attempts",), "name")


@dataclass(frozen=True, slots=True)
class Market:
    raw: Mapping[str, Any]
    coin: Coin

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        return cls(raw, coin_of(str(raw["chain"]["mint"]), int(raw["chain"]["decimals"])))


@dataclass(frozen=True, slots=True)
class Line:
    """One job. Amounts in base units."""

    job_id: str
    name: str
    state: str
    created_at_ms: int
    attempts: int
    final_amount: int | None
    max_amount: int
    note: str

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        final = raw["final_amount"]
        return cls(
            str(raw["job_id"]),
            str(raw["name"]),
            str(raw["state"]),
            int(raw["created_at_ms"]),
            len(raw["leases"]),
            None if final is None else int(final),
            int(raw["max_amount"]),
            _note(raw),
        )

    def row(self, now_ms: int, money: Coin) -> tuple[str, ...]:
        """With what it cost, or while it is open what it may cost at most."""
        cost = money.text(self.final_amount) if self.final_amount is not None else f"≤ {money.text(self.max_amount)}"
        return self.job_id, self.name, self.state, age(now_ms - self.created_at_ms), str(self.attempts), cost, self.note


@dataclass(frozen=True, slots=True)
class Page:
    raw: Mapping[str, Any]
    jobs: tuple[Line, ...]
    next_cursor: str | None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        return cls(raw, tuple(Line.of(job) for job in raw["jobs"]), raw["next_cursor"])


def _note(job: Mapping[str, Any]) -> str:
    reason = job["reason"] if job["state"] != JobState.SUCCEEDED else None
    return str(job["waiting_for"] or job["detail"] or reason or _tasks_note(job))


def _tasks_note(job: Mapping[str, Any]) -> str:
    """Of a job of several tasks that runs: how far it is."""
    tasks = job["leases"][-1]["tasks"] if job["leases"] and job["state"] == JobState.LEASED else ()
    ended = sum(task["state"] not in _TASK_NOT_ENDED for task in tasks)
    running = ", ".join(task["task"] for task in tasks if task["state"] == _TASK_RUNNING)
    return f"{ended} of {len(tasks)} tasks ended" + (f"; running: {running}" if running else "") if tasks else ""
