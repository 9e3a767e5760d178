"""The catalogue's workloads by name: listed, shown, validated, run; and what is said to a wrong name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from torg.cli.__main__ import cli
from torg.spec_file import read_spec_file
from torg.workloads import names_a_workload, workload_file, workloads
from torg_protocol.errors import Invalid, NotFound


def torg(home: Path, *argv: str) -> Result:
    return CliRunner().invoke(cli, ["--home", str(home), *argv])


def test_a_bare_name_stands_for_the_workloads_job_file() -> None:
    spec_file = read_spec_file(Path("rnn"))

    assert spec_file.check().name == "rnn-co2"
    assert spec_file.workspace == workload_file("rnn").parent


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rnn").write_text("version: 1\ncommand: [own]\n")

    assert not names_a_workload(Path("rnn"))
    assert read_spec_file(Path("rnn")).check().command == ("own",)
    with pytest.raises(Invalid, match="cannot read") as caught:
        read_spec_file(Path("rnm"))
    assert caught.value.code == "spec_not_found"


def test_a_name_that_is_nearly_right_is_suggested() -> None:
    with pytest.raises(NotFound) as caught:
        workload_file("rn")
    assert (caught.value.code, caught.value.hint) == ("workload_unknown", 'did you mean "rnn"?')


def test_examples_lists_them_and_writes_a_file_that_works_anywhere(tmp_path: Path) -> None:
    listed = json.loads(torg(tmp_path, "examples", "--json").stdout)
    written = torg(tmp_path, "examples", "gan", "-w", str(tmp_path / "job.yaml"))

    assert listed.items() >= workloads().items()
    assert written.exit_code == 0
    assert read_spec_file(tmp_path / "job.yaml").workspace == workload_file("gan").parent


@pytest.mark.parametrize(
    ("argv", "code", "field"),
    [
        (["--workload", "nothing"], "workload_unknown", "workload"),
        (["--workload", "rnn", "--gpus", "1"], "option_conflict", "--gpus"),
        (["--workload", "rnn", "--keep", "x"], "option_conflict", "--keep"),
    ],
)
def test_run_says_what_is_wrong(tmp_path: Path, argv: list[str], code: str, field: str) -> None:
    result = torg(tmp_path, "run", "--json", *argv)

    assert result.exit_code == 125
    problem = json.loads(result.stderr)
    assert (problem["code"], problem["field"]) == (code, field)
