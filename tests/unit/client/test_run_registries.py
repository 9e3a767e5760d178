"""`torg run --registry`: names of secrets and variables go into the job, and nothing that may be a password is repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from torg.cli.__main__ import cli
from torg.cli.run import _registry


@pytest.mark.parametrize("written", ["hunter2", "plain-password", "me:hunter2", "MY_USER:hunter2", "p@ss word", ""])
def test_what_is_no_variable_here_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setenv("MY_USER", "me")
    argv = ["run", "--json", "--image", "ghcr.io/a/b", "--no-workspace", "--registry", f"ghcr.io={written}", "--", "x"]
    result = CliRunner().invoke(cli, ["--home", str(tmp_path), *argv])

    assert result.exit_code == 125
    problem = json.loads(result.stderr)
    assert (problem["code"], problem["field"], problem["value"]) == ("registry_invalid", "--registry", "ghcr.io")
    assert not [word for word in ("hunter2", "plain-password", "p@ss") if word in result.stderr]


def test_secrets_of_the_job_and_variables_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "t")

    assert _registry("ghcr.io=MY_TOKEN", ()) == ("ghcr.io", {"token": "MY_TOKEN"})
    assert _registry("r:5000=user:pass", {"user", "pass"}) == ("r:5000", {"username": "user", "password": "pass"})
