"""Where the processor's time goes: what each stage of a job's life costs this process, told apart although all share one event loop.

    await measured("submit", submit(...))

A coroutine's steps are timed one by one, by the thread's own processor clock: what runs between them is somebody else's. What a stage inside
another spends is its own alone. What a driver's threads or the database do is not in here.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Coroutine, Generator
from dataclasses import dataclass
from time import perf_counter_ns, thread_time_ns
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Spent:
    """Of one stage since the process began."""

    calls: int = 0
    failed: int = 0
    processor_ns: int = 0
    elapsed_ns: int = 0


STAGES: dict[str, Spent] = {}


class _Step(threading.local):
    """The step in progress: what stages inside it have counted."""

    inner_ns = 0


_step = _Step()


async def measured(stage: str, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises; its time is added to the stage."""
    spent = STAGES.setdefault(stage, Spent())
    began_ns = perf_counter_ns()
    try:
        return await _stepwise(work, spent)
    except BaseException:
        spent.failed += 1
        raise
    finally:
        spent.calls += 1
        spent.elapsed_ns += perf_counter_ns() - began_ns


@types.coroutine
def _stepwise(work: Coroutine[Any, Any, T], spent: Spent) -> Generator[Any, Any, T]:
    value: Any = None
    error: BaseException | None = None
    while True:
        outer_ns, _step.inner_ns = _step.inner_ns, 0
        began_ns = thread_time_ns()
        try:
            waits_for = work.send(value) if error is None else work.throw(error)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            took_ns = thread_time_ns() - began_ns
            spent.processor_ns += took_ns - _step.inner_ns
            _step.inner_ns = outer_ns + took_ns
        value = error = None
        try:
            value = yield waits_for
        except BaseException as raised:  # noqa: BLE001 - also a cancellation is the coroutine's own to handle
            error = raised
