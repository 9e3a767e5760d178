"""What the journal knows of tasks: where each stands, and every container that was started for it.

A run is written down before its container is started, with its handle once it runs, and with its end before the container is removed. So
an agent that was killed finds running containers again, takes ended ones as ended, and starts nothing twice.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torg_node.executors.port import Exit, ExitReason, Handle
from torg_protocol.ids import LeaseId
from torg_protocol.results import ResultValue
from torg_protocol.tasks import TaskState

SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (lease_id TEXT NOT NULL, task TEXT NOT NULL, state TEXT NOT NULL, PRIMARY KEY (lease_id, task)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS task_runs (
    lease_id TEXT NOT NULL, task TEXT NOT NULL, run INTEGER NOT NULL, handle_json TEXT, exit_json TEXT,
    PRIMARY KEY (lease_id, task, run)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS task_results (
    lease_id TEXT NOT NULL, task TEXT NOT NULL, results_json TEXT NOT NULL, PRIMARY KEY (lease_id, task)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One start of a task; runs count from 1. Without a handle: it was meant to start. Without an exit: it runs, or did when the agent
    last looked."""

    task: str
    run: int
    handle: Handle | None
    exit: Exit | None


class TaskJournal:
    """Shares the journal's connection. Every method is one durable statement."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def states(self, lease_id: LeaseId) -> dict[str, TaskState]:
        rows = self._db.execute("SELECT task, state FROM tasks WHERE lease_id = ?", (lease_id,))
        return {str(task): TaskState(state) for task, state in rows}

    def set_state(self, lease_id: LeaseId, task: str, state: TaskState) -> None:
        self._db.execute("INSERT OR REPLACE INTO tasks VALUES (?, ?, ?)", (lease_id, task, state))

    def intend_run(self, lease_id: LeaseId, task: str, run: int) -> None:
        self._db.execute("INSERT INTO task_runs (lease_id, task, run) VALUES (?, ?, ?)", (lease_id, task, run))

    def set_handle(self, lease_id: LeaseId, task: str, run: int, handle: Handle) -> None:
        self._db.execute(
            "UPDATE task_runs SET handle_json = ? WHERE lease_id = ? AND task = ? AND run = ?",
            (json.dumps(asdict(handle)), lease_id, task, run),
        )

    def set_exit(self, lease_id: LeaseId, task: str, run: int, ended: Exit) -> None:
        self._db.execute(
            "UPDATE task_runs SET exit_json = ? WHERE lease_id = ? AND task = ? AND run = ?",
            (json.dumps(asdict(ended)), lease_id, task, run),
        )

    def set_results(self, lease_id: LeaseId, task: str, results: Mapping[str, ResultValue]) -> None:
        """Of its newest run that ended."""
        self._db.execute("INSERT OR REPLACE INTO task_results VALUES (?, ?, ?)", (lease_id, task, json.dumps(results)))

    def results(self, lease_id: LeaseId) -> dict[str, dict[str, ResultValue]]:
        rows = self._db.execute("SELECT task, results_json FROM task_results WHERE lease_id = ?", (lease_id,))
        return {
            str(task): {
                key: value if isinstance(value, str) else tuple(value) for key, value in json.loads(text).items()
            }
            for task, text in rows
        }

    def runs(self, lease_id: LeaseId) -> list[TaskRun]:
        """By task, oldest run first."""
        query = "SELECT task, run, handle_json, exit_json FROM task_runs WHERE lease_id = ? ORDER BY task, run"
        return [
            TaskRun(str(task), int(run), Handle(**json.loads(handle)) if handle else None, _exit(ended))
            for task, run, handle, ended in self._db.execute(query, (lease_id,))
        ]


def _exit(text: str | None) -> Exit | None:
    if text is None:
        return None
    fields = json.loads(text)
    return Exit(**{**fields, "reason": ExitReason(fields["reason"])})
