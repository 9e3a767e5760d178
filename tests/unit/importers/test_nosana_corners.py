"""Nosana job definitions that are odd and valid, or wrong in a way that is only seen after the translation: each with its line and their names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.importers.test_nosana import definition, lost, op, problems, translated
from torg.spec_file import read_spec_file
from torg_protocol.errors import Invalid
from torg_protocol.jobspec import load_job_spec


def in_group(*depends_on: str) -> dict[str, Any]:
    return {"group": "g", "depends_on": [*depends_on]}


@pytest.mark.parametrize(
    ("ops", "field", "circle"),
    [
        ([op("a", execution=in_group("a"))], "ops.0.execution.depends_on.0", "a -> a"),
        (
            [op("a", execution=in_group("b")), op("b", execution=in_group("a"))],
            "ops.0.execution.depends_on.0",
            "a -> b -> a",
        ),
        (
            [
                op("z", execution=in_group("a")),
                op("a", execution=in_group("b")),
                op("b", execution=in_group("c")),
                op("c", execution=in_group("a")),
            ],
            "ops.1.execution.depends_on.0",
            "a -> b -> c -> a",
        ),
    ],
)
def test_operations_that_wait_for_themselves_are_told_once_and_where(
    ops: list[dict[str, Any]], field: str, circle: str
) -> None:
    assert problems(definition(*ops)) == {field: (f"waits for itself: {circle}", "take one of these out")}


@pytest.mark.parametrize(
    "env",
    [
        {"__spread__": "%%global.variables.E%%", "X": "1"},
        {"__pairs__": "%%global.variables.E%%", "X": "1"},
        {"__spread__": {"__pairs__": "%%global.variables.E%%"}, "X": "1"},
        {"__spread__": {"A": "1"}, "X": "1"},
        {"__pairs__": [{"key": "A", "value": "1"}], "X": "1"},
    ],
)
def test_variables_by_markers_are_filled_in(env: dict[str, Any]) -> None:
    known = {"E": '[{"key": "A", "value": "1"}]'}
    spec = load_job_spec(translated(definition(op(env=env), **{"global": {"variables": known}})).spec)
    assert spec.env == {"A": "1", "X": "1"}


@pytest.mark.parametrize("marker", ["__spread__", "__pairs__"])
def test_variables_that_only_the_run_knows_are_lost_and_do_not_become_one_of_that_name(marker: str) -> None:
    raw = definition(op("a", results={"e": "(?<=env: ).*"}), op("b", env={marker: "%%ops.a.results.e%%", "X": "1"}))
    assert lost(raw) == [f"ops.1.args.env.{marker}"]
    assert load_job_spec(translated(raw).spec).tasks[1].env == {"X": "1"}


def test_words_that_turn_out_empty_are_removed_where_the_marker_says_so() -> None:
    raw = definition(op(cmd=["__remove-if-empty__", "%%global.variables.C%%"]), **{"global": {"variables": {"C": ""}}})
    assert load_job_spec(translated(raw).spec).args == ()


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -1, 0, "24GB", "nan", 10**400])
def test_advice_about_memory_that_is_no_amount_is_told_and_asks_for_nothing(amount: object) -> None:
    raw = definition(op(gpu=True), meta={"system_requirements": {"vram_total_mb": amount}})
    translation = translated(raw)
    assert load_job_spec(translation.spec).resources.min_vram is None
    assert "meta.system_requirements" in [item.path for item in translation.dropped]


def test_an_expression_of_ours_that_was_a_text_there_is_told() -> None:
    assert lost(definition(op("a", cmd="echo ${{ job.id }}", restart_policy="always"))) == ["ops.0.args.cmd"]


WRONG: list[tuple[str, str, dict[str, Any]]] = [
    ("ops.0.args.volumes.0.dest", "data/rel", {"volumes": [{"name": "v", "dest": "data/rel"}]}),
    (
        "ops.0.args.restart_policy.restart_tries",
        "1000000",
        {"restart_policy": {"policy": "on-failure", "restart_tries": 1_000_000}},
    ),
    (
        "ops.0.args.resources.1.repo",
        "not a repo",
        {
            "resources": [
                {
                    "type": "S3",
                    "url": "https://files.example/x",
                    "target": "/a",
                },  # lost, which moves what comes after it
                {"type": "HF", "repo": "not a repo", "target": "/b"},
            ]
        },
    ),
    (
        "ops.0.args.resources.0.target",
        '"target": "rel"',
        {"resources": [{"type": "HF", "repo": "a/b", "target": "rel"}]},
    ),
    (
        "ops.0.args.expose.1.health_checks.0.path",
        "no-slash",
        {
            "expose": [
                "8000-8003",
                {
                    "port": 80,
                    "health_checks": [{"type": "http", "path": "no-slash", "method": "GET", "expected_status": 200}],
                },
            ]
        },
    ),
]


@pytest.mark.parametrize(("field", "at", "args"), WRONG, ids=[field for field, *_ in WRONG])
def test_what_no_job_here_can_have_is_told_by_their_name_and_line(
    field: str, at: str, args: dict[str, Any], tmp_path: Path
) -> None:
    volume = {"type": "container/create-volume", "id": "make", "args": {"name": "v"}}
    text = json.dumps(definition(op(**args), volume), indent=1)
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(Invalid) as refused:
        read_spec_file(tmp_path / "job.json").check()
    (only,) = refused.value.data["problems"]
    assert only["field"] == field
    assert at in text.splitlines()[only["line"] - 1]


def test_what_several_operations_have_from_one_place_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(definition(op("a"), op("b"), **{"global": {"work_dir": "rel"}})))
    with pytest.raises(Invalid) as refused:
        read_spec_file(tmp_path / "job.json").check()
    assert [item["field"] for item in refused.value.data["problems"]] == ["global.work_dir"]


def test_more_operations_than_a_job_has_tasks_are_told_by_their_name(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(definition(*(op(f"op{number}") for number in range(80)))))
    with pytest.raises(Invalid) as refused:
        read_spec_file(tmp_path / "job.json").check()
    (only,) = refused.value.data["problems"]
    assert (only["field"], only["message"]) == ("ops", "at most 64 items, not 80")
