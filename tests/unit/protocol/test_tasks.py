"""Jobs of several tasks: what a file may say, what is wrong between tasks, who gets how much of the node."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torg_protocol.errors import Invalid
from torg_protocol.expressions import Unresolved, fill_in, fill_in_list
from torg_protocol.jobspec import JobSpec, load_job_spec
from torg_protocol.tasks import Dependency, Task, groups_of, shares_of


def spec(*tasks: dict[str, Any], **fields: Any) -> JobSpec:
    return load_job_spec({"version": 1, "tasks": [{"command": ["x"], **task} for task in tasks], **fields})


def problems(*tasks: dict[str, Any], **fields: Any) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as refused:
        spec(*tasks, **fields)
    assert refused.value.code == "spec_invalid"
    return [(item["field"], item["message"]) for item in refused.value.data["problems"]]


def test_the_digest_of_a_spec_with_one_command_is_what_it_was_before_there_were_tasks() -> None:
    one = load_job_spec({"version": 1, "command": ["true"]})

    assert not {"tasks", "volumes"} & one.wire().keys()
    assert one.digest == "sha256:1ffdf09e7dcf3c1e675891244d0f564ba005adca793f1da5b1e440733848c222"
    assert load_job_spec(one.wire()) == one


def test_the_canonical_form_of_tasks_reads_back_as_the_same_spec() -> None:
    full = spec(
        {"name": "a", "restart": "on-failure", "timeout": "5s", "memory": "64MiB", "cpus": "0.5"},
        {"name": "b", "depends_on": ["a"], "volumes": [{"volume": "data", "path": "/data/"}]},
        volumes={"data": {}},
    )

    assert full.tasks[1].depends_on == (Dependency(task="a", until="succeeded"),)
    assert full.tasks[1].volumes[0].path == "/data"
    assert load_job_spec(full.wire()) == full
    assert load_job_spec(full.wire()).digest == full.digest


def test_images_are_named_once_each() -> None:
    assert spec({"name": "a"}, {"name": "b", "image": "other"}, {"name": "c"}).images == ("host-python", "other")
    assert load_job_spec({"version": 1, "command": ["x"], "image": "one"}).images == ("one",)


@pytest.mark.parametrize(
    ("tasks", "fields", "expected"),
    [
        ([{"name": "a"}, {"name": "a"}], {}, ("tasks.1.name", 'another task is called "a" too')),
        ([{"name": "a", "depends_on": ["b"]}], {}, ("tasks.0.depends_on.0", '"b" is no other task of this job')),
        ([{"name": "a", "depends_on": ["a"]}], {}, ("tasks.0.depends_on.0", '"a" is no other task of this job')),
        (
            [{"name": "a", "group": "one", "depends_on": ["b"]}, {"name": "b", "group": "two"}],
            {},
            ("tasks.0.depends_on.0", '"b" is of a later group'),
        ),
        (
            [{"name": "a"}, {"name": "b", "depends_on": [{"task": "a", "until": "ready"}]}],
            {},
            ("tasks.1.depends_on.0", '"a" declares no ports that could be ready; write until: started'),
        ),
        (
            [{"name": "a", "ports": [{"port": 1}, {"port": 1}]}],
            {},
            ("tasks.0.ports", "the port 1 is there twice"),
        ),
        (
            [{"name": name, "ports": [{"port": port} for port in range(1, 10)]} for name in "ab"],
            {},
            ("tasks", "more than 16 ports in all"),
        ),
        (
            [{"name": "a", "background": True}, {"name": "b", "depends_on": ["a"]}],
            {},
            ("tasks.1.depends_on.0", '"a" runs in the background until the job ends; write until: started'),
        ),
        (
            [
                {"name": "a", "depends_on": ["c"]},
                {"name": "b", "depends_on": ["a"]},
                {"name": "c", "depends_on": ["b"]},
            ],
            {},
            ("tasks", "these wait for each other: a -> c -> b -> a"),
        ),
        (
            [{"name": "a", "background": True}],
            {},
            ("tasks", "those of the last group all run in the background: nothing there would end the job"),
        ),
        (
            [{"name": "a", "volumes": [{"volume": "v", "path": "/v"}]}],
            {},
            ("tasks.0.volumes.0.volume", '"v" is not among the job\'s volumes'),
        ),
        (
            [{"name": "a", "volumes": [{"volume": "v", "path": "/output/v"}]}],
            {"volumes": {"v": {}}},
            ("tasks.0", "volumes: /output/v is in a folder that every task of the job sees already"),
        ),
        ([{"name": "a"}], {"command": ["x"]}, ("tasks", "there is a command too; a job has one or the other")),
        (
            [{"name": "a", "memory": "900MiB"}, {"name": "b", "memory": "900MiB"}],
            {},
            (
                "tasks.0.memory",
                "the job's memory does not leave it 16MiB beside those that may run at the same time; raise resources.memory",
            ),
        ),
        (
            [{"name": "a", "results": {"x": "("}}],
            {},
            ("tasks.0.results.x", "not a pattern: missing ) at position 1"),
        ),
        ([{"name": "a", "args": ["${{ tasks.b }}"]}], {}, ("tasks.0", None)),
        (
            [
                {"name": "a", "results": {"x": "y"}},
                {"name": "b", "depends_on": ["a"], "args": ["${{ tasks.a.results.z }}"]},
            ],
            {},
            ("tasks.1", "tasks.a.results.z: no task gives this result"),
        ),
        (
            [{"name": "a", "results": {"x": "y"}}, {"name": "b", "env": {"X": "-${{ tasks.a.results.x }}"}}],
            {},
            ("tasks.1", "tasks.a.results.x is not there yet when b starts; write depends_on: [a]"),
        ),
        ([{"name": "a", "depend_on": []}], {}, ("tasks.0.depend_on", "unknown key")),
        ([{"name": "a", "restart": {"policy": "sometimes"}}], {}, ("tasks.0.restart.policy", None)),
    ],
)
def test_what_is_wrong_is_named_where_it_stands(
    tasks: list[dict[str, Any]], fields: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    found = problems(*tasks, **fields)[0]

    assert found[0] == expected[0]
    assert expected[1] is None or found[1] == expected[1]


def test_a_close_name_is_suggested_inside_of_tasks_too() -> None:
    with pytest.raises(Invalid) as refused:
        spec({"name": "a", "depend_on": ["b"]})

    assert refused.value.hint == 'did you mean "depends_on"?'


def test_groups_run_in_the_order_in_which_the_file_names_them() -> None:
    tasks = spec({"name": "a", "group": "x"}, {"name": "b", "group": "y"}, {"name": "c", "group": "x"}).tasks

    assert [[task.name for task in group] for group in groups_of(tasks)] == [["a", "c"], ["b"]]


def test_tasks_that_wait_for_each_other_have_the_whole_machine_each() -> None:
    chain = spec({"name": "a"}, {"name": "b", "depends_on": ["a"]}, {"name": "c", "depends_on": ["b"]}).tasks
    beside = spec({"name": "a"}, {"name": "b", "depends_on": [{"task": "a", "until": "started"}]}).tasks

    assert shares_of(chain, 1000, 1 << 30) == dict.fromkeys("abc", (1000, 1 << 30))
    assert shares_of(beside, 1000, 1 << 30) == dict.fromkeys("ab", (500, 1 << 29))


def test_who_asks_gets_it_and_the_others_share_what_is_left() -> None:
    tasks = spec({"name": "a", "memory": "512MiB"}, {"name": "b"}, {"name": "c"}).tasks

    assert [share[1] >> 20 for share in shares_of(tasks, 1000, 1 << 30).values()] == [512, 256, 256]


def test_a_background_task_takes_its_part_from_later_groups_too() -> None:
    tasks = spec(
        {"name": "server", "group": "one", "background": True},
        {"name": "a", "group": "one"},
        {"name": "b", "group": "two"},
    ).tasks

    assert shares_of(tasks, 1200, 1200 << 20) == {
        "server": (400, 400 << 20),
        "a": (600, 600 << 20),
        "b": (600, 600 << 20),
    }


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Task, ...]:
    tasks = []
    for number in range(draw(st.integers(1, 6))):
        asks = draw(st.one_of(st.none(), st.integers(1, 10)))
        waits = draw(st.lists(st.sampled_from(range(number)), unique=True)) if number else []
        tasks.append(
            Task.model_validate(
                {
                    "name": f"t{number}",
                    "command": ["x"],
                    "group": draw(st.sampled_from("ab")) if not tasks else tasks[-1].group,
                    "cpus": asks and f"0.{asks:03d}",
                    "depends_on": [
                        {"task": f"t{other}", "until": draw(st.sampled_from(["started", "succeeded"]))}
                        for other in waits
                    ],
                }
            )
        )
    return tuple(tasks)


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_whatever_runs_at_the_same_time_fits_into_the_job(tasks: tuple[Task, ...]) -> None:
    """Every set of tasks of which none waits for the end of another, by brute force."""
    shares = shares_of(tasks, 1000, 1 << 30)
    waits = {task.name: {item.task for item in task.depends_on if item.until == "succeeded"} for task in tasks}
    for _ in tasks:
        for task in tasks:
            waits[task.name] |= {far for near in waits[task.name] for far in waits[near]}
    for chosen in range(1, 1 << len(tasks)):
        names = [task.name for number, task in enumerate(tasks) if chosen >> number & 1]
        if all(one not in waits[other] for one in names for other in names):
            assert sum(shares[name][0] for name in names) <= 1000
            assert sum(shares[name][1] for name in names) <= 1 << 30


def test_expressions_stand_for_values_and_lists_are_spliced_in() -> None:
    results = {"a": {"one": "1", "many": ("x", "y z")}}
    facts = {"job.id": "job_1", "job.attempt": "2", "node.id": "n", "client.id": "c"}

    assert fill_in_list(
        ["-n", "${{ tasks.a.results.many }}", "${{job.id}}/${{ tasks.a.results.one }}"], facts, results
    ) == (
        "-n",
        "x",
        "y z",
        "job_1/1",
    )
    assert fill_in("$HOME ${NOT} ${{ tasks.a.results.many }}", facts, results) == "$HOME ${NOT} x y z"
    with pytest.raises(Unresolved, match=r"tasks\.a\.results\.two has no value"):
        fill_in("${{ tasks.a.results.two }}", facts, results)
