"""The published JSON Schema of job files: of one mind with the model about files that people write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from click.testing import CliRunner

from torg.cli.__main__ import cli
from torg.cli.examples import EXAMPLES, starter
from torg.job_schema import job_schema
from torg.workloads import workload_file, workloads

SCHEMA = jsonschema_rs.Draft202012Validator(job_schema())


def problems(raw: dict[str, Any]) -> list[str]:
    return ["/".join(map(str, error.instance_path)) for error in SCHEMA.iter_errors(raw)]


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_are_valid_by_the_schema(name: str) -> None:
    assert problems(yaml.safe_load(EXAMPLES[name].text)) == []


def test_so_are_the_starter_and_the_catalogue() -> None:
    assert problems(yaml.safe_load(starter("x", 2))) == []
    for name in workloads():
        assert problems(yaml.safe_load(workload_file(name).read_text())) == []


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"comand": ["x"]}, ""),
        ({"limits": {"max_duration": 60}}, "limits/max_duration"),
        ({"tasks": [{"name": "Upper"}]}, "tasks/0/name"),
        ({"tasks": [{"name": "a", "depends_on": [1]}]}, "tasks/0/depends_on/0"),
        ({"inputs": [{"kind": "url", "url": "https://x/y", "path": "/x"}]}, "inputs/0"),
        ({"secrets": {"TOKEN": {"env": "A", "file": "b"}}}, "secrets/TOKEN"),
        ({"volumes": {"UP": {}}}, "volumes"),
    ],
)
def test_what_is_wrong_in_one_field_is_found(fields: dict[str, Any], where: str) -> None:
    assert problems({"version": 1, **fields}) == [where]


def test_short_forms_are_known() -> None:
    task = {"name": "b", "command": ["x"], "depends_on": ["a"], "restart": "on-failure", "results": {"x": "y"}}

    assert problems({"version": 1, "tasks": [task], "secrets": {"A": {"env": "A"}}, "workspace": "."}) == []


def test_the_command_line_prints_it_and_init_tells_editors(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "job.yaml"
    printed = CliRunner().invoke(cli, ["validate", "--schema"])
    written = CliRunner().invoke(cli, ["--home", str(home), "init", str(file)])

    assert json.loads(printed.output) == job_schema()
    assert written.exit_code == 0, written.output
    assert file.read_text().splitlines()[0] == f"# yaml-language-server: $schema={home / 'job.schema.json'}"
    assert json.loads((home / "job.schema.json").read_text()) == job_schema()
    assert CliRunner().invoke(cli, ["validate", str(file)]).exit_code == 0
