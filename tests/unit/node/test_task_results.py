"""Results that are cut out of logs, by patterns of strangers."""

from __future__ import annotations

from pathlib import Path

import pytest

from torg_node.task_results import results_of
from torg_protocol.results import Result


def cut(tmp_path: Path, stdout: str, **patterns: str | dict[str, object]) -> tuple[dict[str, object], list[str]]:
    log = tmp_path / "a.1.stdout"
    log.write_text(stdout)
    wanted = {
        key: Result.model_validate({"regex": pattern} if isinstance(pattern, str) else pattern)
        for key, pattern in patterns.items()
    }
    values, problems = results_of(wanted, {"stdout": log, "stderr": tmp_path / "not there"})
    return dict(values), problems


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        (r"loss=(\S+)", "0.5"),
        (r"loss=\S+", "loss=0.5"),
        (r"(?<=step \d+: )\w+", ("a", "b")),  # lookbehind of any length, as JavaScript has it
        (r"^step (\d+)", ("1", "10")),
        (r"nothing", None),
        (r"(x)?loss", None),  # the group takes no part in the match
    ],
)
def test_values(tmp_path: Path, pattern: str, value: object) -> None:
    found, problems = cut(tmp_path, "step 1: a\nstep 10: b\nloss=0.5\n", key=pattern)

    assert found.get("key") == value
    assert problems == []


def test_a_stream_that_is_not_asked_for_does_not_count(tmp_path: Path) -> None:
    assert cut(tmp_path, "x", key={"regex": "x", "streams": ["stderr"]}) == ({}, [])


def test_a_pattern_that_never_ends_is_given_up_and_the_others_count(tmp_path: Path) -> None:
    found, problems = cut(tmp_path, "a" * 60 + "!", slow=r"(a|a)*$", fine="!")

    assert found == {"fine": "!"}
    assert problems == ["result slow: its pattern takes longer than 1 s"]


def test_values_are_bounded(tmp_path: Path) -> None:
    long, _ = cut(tmp_path, "x" * 10_000, key="x+")
    many, problems = cut(tmp_path, "abcdefgh" * 20_000, key=".{100}")

    assert len(str(long["key"])) == 4096
    assert (many, problems) == ({}, ["result key: more than 65536 characters in all"])
