"""Which tasks start, stop and restart, and how their job ends: a whole run played through on values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torg_node.executors.port import Exit, ExitReason
from torg_node.task_rules import decide, exit_of_job, is_ending, pause_ms, state_after
from torg_protocol.tasks import Task, TaskState

W, R, RE = TaskState.WAITING, TaskState.RUNNING, TaskState.RESTARTING
S, F, X = TaskState.SUCCEEDED, TaskState.FAILED, TaskState.STOPPED


def task(name: str, **fields: Any) -> Task:
    return Task.model_validate({"name": name, "command": ["x"], **fields})


def ended(code: int | None = 0, reason: ExitReason = ExitReason.EXITED, at_ms: int = 10, detail: str = "") -> Exit:
    return Exit(reason, code, 0, at_ms, 1 << 20, detail)


def names(tasks: tuple[Task, ...]) -> list[str]:
    return [item.name for item in tasks]


CHAIN = (task("a"), task("b", depends_on=["a"]), task("c", depends_on=[{"task": "b", "until": "started"}]))


@pytest.mark.parametrize(
    ("states", "start"),
    [("WWW", "a"), ("RWW", ""), ("SWW", "b"), ("SRW", "c"), ("SSW", "c")],
)
def test_a_task_starts_when_what_it_depends_on_allows(states: str, start: str) -> None:
    standing = dict(zip("abc", ({"W": W, "R": R, "S": S}[letter] for letter in states), strict=True))

    assert names(decide(CHAIN, standing, must_end=False).start) == list(start)


def test_groups_wait_for_the_one_before_and_background_tasks_hold_nothing_up() -> None:
    tasks = (
        task("server", group="one", background=True),
        task("a", group="one"),
        task("b", group="two"),
    )

    assert names(decide(tasks, {"server": W, "a": W, "b": W}, must_end=False).start) == ["server", "a"]
    assert names(decide(tasks, {"server": R, "a": R, "b": W}, must_end=False).start) == []
    assert names(decide(tasks, {"server": R, "a": S, "b": W}, must_end=False).start) == ["b"]
    over = decide(tasks, {"server": R, "a": S, "b": S}, must_end=False)
    assert (names(over.stop), over.over) == (["server"], False)
    assert decide(tasks, {"server": X, "a": S, "b": S}, must_end=False).over


def test_who_waits_for_ready_starts_when_the_other_ones_ports_are_or_when_it_is_done() -> None:
    tasks = (
        task("db", ports=[{"port": 5432}], background=True),
        task("app", depends_on=[{"task": "db", "until": "ready"}]),
    )

    assert names(decide(tasks, {"db": W, "app": W}, must_end=False).start) == ["db"]
    assert names(decide(tasks, {"db": R, "app": W}, must_end=False).start) == []
    assert names(decide(tasks, {"db": R, "app": W}, must_end=False, ready={"db"}).start) == ["app"]
    assert names(decide(tasks, {"db": S, "app": W}, must_end=False).start) == ["app"]


def test_a_failure_stops_the_others_and_skips_those_that_wait_unless_it_is_allowed() -> None:
    tasks = (task("a"), task("b"), task("c", depends_on=["a"]))
    failed = decide(tasks, {"a": F, "b": R, "c": W}, must_end=False)
    assert (names(failed.stop), names(failed.skip), failed.over) == (["b"], ["c"], False)

    allowed = (task("a", may_fail=True), *tasks[1:])
    assert names(decide(allowed, {"a": F, "b": R, "c": W}, must_end=False).start) == ["c"]


def test_a_lease_that_must_end_starts_nothing() -> None:
    decision = decide(CHAIN, {"a": S, "b": RE, "c": W}, must_end=True)

    assert (names(decision.start), names(decision.skip), decision.over) == ([], ["b", "c"], True)


@pytest.mark.parametrize(
    ("restart", "code", "run", "expected"),
    [
        ("never", 0, 1, S),
        ("never", 1, 1, F),
        ("on-failure", 0, 1, S),
        ("on-failure", 1, 3, RE),
        ("on-failure", 1, 4, F),
        ("always", 0, 99, RE),
    ],
)
def test_restart_policies(restart: str, code: int, run: int, expected: TaskState) -> None:
    assert state_after(task("a", restart=restart), ended(code), run, ending=False) is expected


def test_what_ends_while_the_job_ends_has_not_failed() -> None:
    assert state_after(task("a"), ended(143), 1, ending=True) is X
    assert state_after(task("a"), ended(0), 1, ending=True) is S
    assert state_after(task("a", background=True), ended(0), 1, ending=True) is X


def test_pauses_double_up_to_half_a_minute() -> None:
    assert [pause_ms(run) for run in (1, 2, 3, 7, 1000)] == [500, 1000, 2000, 30_000, 30_000]


def job_exit(
    tasks: tuple[Task, ...], states: dict[str, TaskState], last: dict[str, Exit], *, late: bool = False
) -> Exit:
    return exit_of_job(tasks, states, last, started_at_ms=0, ended_at_ms=99, time_is_up=late)


def test_the_first_failure_is_the_jobs() -> None:
    tasks = (task("a"), task("b"))
    found = job_exit(tasks, {"a": F, "b": F}, {"a": ended(3, at_ms=20), "b": ended(4, at_ms=10)})

    assert (found.reason, found.code, found.finished_at_ms, found.detail) == (
        ExitReason.EXITED,
        4,
        20,
        "task b: exit code 4",
    )


@pytest.mark.parametrize(
    ("states", "last", "late", "reason"),
    [
        ({"a": S, "b": S}, {"a": ended(), "b": ended()}, False, ExitReason.EXITED),
        ({"a": S, "b": S}, {"a": ended(), "b": ended()}, True, ExitReason.MAX_DURATION),
        ({"a": S, "b": X}, {"a": ended(), "b": ended(143)}, False, ExitReason.STOPPED),
        ({"a": F, "b": X}, {"a": ended(None, ExitReason.OOM), "b": ended(143)}, False, ExitReason.OOM),
        ({"a": F, "b": F}, {"a": ended(1), "b": ended(None, ExitReason.KILLED)}, False, ExitReason.KILLED),
    ],
)
def test_how_a_job_ends(states: dict[str, TaskState], last: dict[str, Exit], late: bool, reason: ExitReason) -> None:
    assert job_exit((task("a"), task("b")), states, last, late=late).reason is reason


def test_a_stopped_background_task_and_an_allowed_failure_do_not_keep_a_job_from_succeeding() -> None:
    tasks = (task("a"), task("b", background=True), task("c", may_fail=True))
    found = job_exit(tasks, {"a": S, "b": X, "c": F}, {"a": ended(), "b": ended(137), "c": ended(1)})

    assert (found.reason, found.code) == (ExitReason.EXITED, 0)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Task, ...]:
    tasks: list[Task] = []
    for number in range(draw(st.integers(1, 6))):
        earlier = [other for other in tasks if not other.background]
        waits = draw(st.lists(st.sampled_from(earlier), unique_by=lambda item: item.name)) if earlier else []
        tasks.append(
            task(
                f"t{number}",
                group=tasks[-1].group if tasks and draw(st.booleans()) else f"g{number}",
                depends_on=[
                    {"task": item.name, "until": draw(st.sampled_from(["started", "succeeded"]))} for item in waits
                ],
                may_fail=draw(st.booleans()),
                background=number > 0 and draw(st.booleans()),
                restart=draw(st.sampled_from(["never", "on-failure"])),
            )
        )
    last = [item for item in tasks if item.group == tasks[-1].group]
    if all(item.background for item in last):
        tasks.append(task("last", group=tasks[-1].group))
    return tuple(tasks)


@settings(max_examples=300, deadline=None)
@given(jobs(), st.data())
def test_every_job_comes_to_an_end_and_nothing_runs_twice_at_once(tasks: tuple[Task, ...], data: st.DataObject) -> None:
    states = dict.fromkeys((item.name for item in tasks), W)
    runs = dict.fromkeys(states, 0)
    last: dict[str, Exit] = {}
    for now_ms in range(1, 400):
        decision = decide(tasks, states, must_end=False)
        for item in decision.skip:
            states[item.name] = TaskState.SKIPPED if runs[item.name] == 0 else X
        if decision.over:
            break
        for item in decision.start:
            assert states[item.name] is W
            states[item.name], runs[item.name] = R, 1
        running = [item for item in tasks if states[item.name] is R]
        pausing = [item for item in tasks if states[item.name] is RE]
        if not running and not pausing:
            assert decision.start or decision.skip, f"stuck: {states}"
            continue
        item = data.draw(st.sampled_from(running + pausing))
        if states[item.name] is RE:
            states[item.name], runs[item.name] = R, runs[item.name] + 1
            continue
        last[item.name] = ended(data.draw(st.sampled_from([0, 0, 1])), at_ms=now_ms)
        ending = is_ending(tasks, states, must_end=False)
        states[item.name] = state_after(item, last[item.name], runs[item.name], ending=ending)
    else:
        raise AssertionError(f"no end: {states}")
    found = exit_of_job(tasks, states, last, started_at_ms=0, ended_at_ms=400, time_is_up=False)
    failed = any(states[item.name] is F and not item.may_fail for item in tasks)
    assert (found.reason, found.code) == (ExitReason.EXITED, 1 if failed else 0)
    assert all(states[item.name] not in {W, R, RE} for item in tasks)
