"""`torg import`, and how validate, submit and run treat other platforms' files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from torg.cli.__main__ import cli
from torg_protocol.jobspec import load_job_spec

HELLO = {
    "version": "0.1",
    "type": "container",
    "ops": [{"type": "container/run", "id": "hello", "args": {"image": "ubuntu", "cmd": ["echo", "hello"]}}],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORG_HOME", str(tmp_path / "home"))
    (tmp_path / "hello.json").write_text(json.dumps(HELLO))
    authentication = {"docker": {"username": "u", "password": "p"}}
    args = {**HELLO["ops"][0]["args"], "authentication": authentication}  # type: ignore[index]  # a literal above
    (tmp_path / "login.json").write_text(json.dumps({**HELLO, "ops": [{**HELLO["ops"][0], "args": args}]}))  # type: ignore[dict-item]
    return tmp_path


def torg(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_import_writes_a_job_file_that_is_ours_and_whose_head_says_what_is_missing(folder: Path) -> None:
    done = torg("import", "login.json", "-o", "job.yaml")

    assert done.exit_code == 1  # something was lost
    assert "ops.0.args.authentication" in done.stderr
    text = (folder / "job.yaml").read_text()
    assert "# Lost: ops.0.args.authentication" in text
    assert load_job_spec(yaml.safe_load(text)).args == ("echo", "hello")
    assert torg("validate", "job.yaml").exit_code == 0


def test_import_does_not_replace_a_file_unless_told(folder: Path) -> None:
    (folder / "job.yaml").write_text("mine")

    refused = torg("import", "hello.json", "-o", "job.yaml")

    assert (refused.exit_code, (folder / "job.yaml").read_text()) == (1, "mine")
    assert "[file_exists]" in refused.stderr
    assert torg("import", "hello.json", "-o", "job.yaml", "--force").exit_code == 0


def test_import_as_json_and_of_a_file_that_is_ours(folder: Path) -> None:
    answer = json.loads(torg("import", "hello.json", "--json").stdout)

    assert (answer["format"], answer["spec"]["image"]) == ("nosana", "ubuntu")
    assert [(item["path"], item["changes_meaning"]) for item in answer["dropped"]] == [("network", False)]
    (folder / "job.yaml").write_text("version: 1\ncommand: [true]\n")
    assert "[import_unknown_format]" in torg("import", "job.yaml").stderr


def test_validate_names_the_format(folder: Path) -> None:
    assert torg("validate", "hello.json").stdout == "hello.json: valid Nosana job definition (hello)\n"


@pytest.mark.parametrize("command", ["submit", "run"])
def test_what_lost_meaning_is_refused_before_anything_is_sent(folder: Path, command: str) -> None:
    refused = torg(command, "login.json")

    assert "[import_incomplete]" in refused.stderr
    assert "--allow-dropped" in refused.stderr
    assert "[no_wallet]" in torg(command, "login.json", "--allow-dropped").stderr
    assert "[no_wallet]" in torg(command, "hello.json").stderr


def test_run_of_a_job_file_takes_no_options_that_the_file_decides(folder: Path) -> None:
    assert "[option_conflict]" in torg("run", "--gpus", "1", "hello.json").stderr
