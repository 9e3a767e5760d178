"""The script behind `make corpora`: what it counts, and that one bad file fails it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import corpora

HELLO = {
    "version": "0.1",
    "type": "container",
    "ops": [{"type": "container/run", "id": "hello", "args": {"image": "ubuntu", "cmd": ["echo", "hello"]}}],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORG_CORPORA", str(tmp_path))
    (tmp_path / "nosana-jobs").mkdir()
    (tmp_path / "nosana-jobs" / "hello.json").write_text(json.dumps(HELLO))
    return tmp_path


def test_a_file_that_is_taken_over_counts_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert corpora.main() == 0
    assert "| nosana | 1 | 1 | 1 | 100.0% |" in capsys.readouterr().out


def test_what_is_lost_is_counted_by_its_values(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ssh = {**HELLO, "ssh": {"public_keys": ["ssh-ed25519 AAAA"]}}  # one of eight values
    (folder / "nosana-jobs" / "hello.json").write_text(json.dumps(ssh))

    assert corpora.main() == 0
    assert "| nosana | 1 | 1 | 0 | 87.5% |" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [{**HELLO, "opps": 1}, {"hello": "world"}])
def test_a_file_that_is_refused_or_unknown_fails_and_is_named(
    folder: Path, bad: object, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "nosana-jobs" / "bad.json").write_text(json.dumps(bad))

    assert corpora.main() == 1
    assert "FAILED nosana-jobs/bad.json" in capsys.readouterr().out


def test_without_corpora_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORG_CORPORA", raising=False)

    assert corpora.main() == 2


def test_a_file_that_is_no_yaml_fails_and_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "nosana-jobs" / "bad.yml").write_text("ops: [{{ template }}\n")

    assert corpora.main() == 1
    assert "FAILED nosana-jobs/bad.yml" in capsys.readouterr().out
