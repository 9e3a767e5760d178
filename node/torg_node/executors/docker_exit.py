"""Why a container ended, decided from what the engine says, what the agent asked for, and what the cgroup showed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from torg_node.executors.port import Exit, ExitReason

SIGKILLED, SIGTERMED = 128 + 9, 128 + 15
_CANNOT_START = (126, 127)  # as shells have it: not executable, not found
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER_MS = 0
CLOCKS_APART_MS = 5_000  # between the engine's and ours, with the engine's delay in saying that it ended


@dataclass(frozen=True, slots=True)
class Ending:
    """Why this executor began to end a container. The first reason stands."""

    reason: ExitReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Witness:
    """What was seen from outside. The engine's own flags miss some of it."""

    max_duration_ms: int
    ending: Ending | None = None  # what this executor itself began, if it did
    oom_kills: int = 0
    peak_memory_bytes: int | None = None
    disk_full: bool = False
    killed_by_others: bool = False


def has_ended(container: Mapping[str, Any]) -> bool:
    """True also for a command that could not be executed at all: such a container stays "created" for ever."""
    return container["State"]["Status"] in {"exited", "dead"} or never_ran(container)


def never_ran(container: Mapping[str, Any]) -> bool:
    """Whether the job's own command was not there or not executable. The engine gives the same codes to failures of the host,
    such as a mount that is not there; only here the runtime names the command."""
    state, config = container["State"], container["Config"]
    command = (config.get("Entrypoint") or config.get("Cmd") or [""])[0]
    return (
        state["Status"] == "created"
        and state["ExitCode"] in _CANNOT_START
        and f'exec: "{command}"' in str(state.get("Error", ""))
    )


def exit_of(container: Mapping[str, Any], witness: Witness) -> Exit:
    """`container`: as the engine shows it once it has ended."""
    state = container["State"]
    code = int(state["ExitCode"])
    started_at_ms, finished_at_ms = engine_time_ms(state["StartedAt"]), engine_time_ms(state["FinishedAt"])
    out_of_memory = bool(state["OOMKilled"]) or witness.oom_kills > 0
    if never_ran(container):
        started_at_ms = finished_at_ms = engine_time_ms(container["Created"])
        reason, detail = ExitReason.EXITED, str(state.get("Error") or "the command could not be executed")
    elif witness.ending is not None:
        reason, detail = witness.ending.reason, witness.ending.detail
    elif code == SIGKILLED and finished_at_ms >= started_at_ms + witness.max_duration_ms:
        reason, detail = ExitReason.MAX_DURATION, f"ran for its longest time of {witness.max_duration_ms} ms"
    elif out_of_memory and code != 0:
        reason, detail = ExitReason.OOM, "killed by the kernel at its own memory limit"
    elif witness.disk_full and code != 0:
        reason, detail = ExitReason.DISK_FULL, "ended with no room left in a folder that it writes to"
    elif witness.killed_by_others:
        reason, detail = ExitReason.KILLED, "ended from outside, and not by this executor"
    else:
        reason, detail = ExitReason.EXITED, ""
    return Exit(
        reason=reason,
        code=code,
        started_at_ms=started_at_ms,
        # Of one that ends at once the engine may learn the end before it notes the start.
        finished_at_ms=max(finished_at_ms, started_at_ms),
        peak_memory_bytes=witness.peak_memory_bytes,
        detail=detail,
    )


def timed(ended: Exit, ran_ms: int | None) -> Exit:
    """The engine tells the host's time, which somebody may have set meanwhile: then what was seen to pass counts."""
    if ran_ms is None or abs(ended.finished_at_ms - ended.started_at_ms - ran_ms) <= CLOCKS_APART_MS:
        return ended
    return replace(ended, finished_at_ms=ended.started_at_ms + max(0, ran_ms))


def engine_time_ms(text: str) -> int:
    """RFC 3339 with nanoseconds to Unix ms; 0 for the engine's "never" (year 1)."""
    return max((datetime.fromisoformat(text) - _EPOCH) // timedelta(milliseconds=1), _NEVER_MS)
