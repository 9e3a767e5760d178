"""`torg run --gang N`: what a gang cannot be is refused, and who would only pay twice for the same is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.workload_runs import WORKLOADS
from torg.cli.__main__ import cli
from torg.cli.gang_options import LARGEST, alone_together, resized
from torg.spec_file import read_spec_file, spec_from_mapping
from torg.workloads import workload_file
from torg_protocol.errors import Invalid
from torg_protocol.jobspec import Gang

PYTHON = ("--", "python", "train.py")


@pytest.mark.parametrize(
    ("options", "code", "field", "value"),
    [
        (["--gang", "1", *PYTHON], "gang_size_invalid", "--gang", 1),
        (["--gang", "0", *PYTHON], "gang_size_invalid", "--gang", 0),
        (["--gang", "-3", *PYTHON], "gang_size_invalid", "--gang", -3),
        (["--gang", "65", *PYTHON], "gang_size_invalid", "--gang", 65),
        (["--gang", "2", "--spot", *PYTHON], "option_conflict", "--spot", None),
        (["--gang", "2", "--gpus", "1", "--gpu-fraction", "0.5", *PYTHON], "option_conflict", "--gpu-fraction", "0.5"),
        (["--gang", "3", "--node", "a", "--node", "b", *PYTHON], "option_conflict", "--gang", 3),
        (["--gang", "2", "--workload", "rnn"], "option_conflict", "--gang", 2),
        (["--gang", "1", "--workload", "distributed"], "gang_size_invalid", "--gang", 1),
        (["--gang", "2", str(WORKLOADS / "rnn/job.yaml")], "option_conflict", "--gang", "2"),
    ],
)
def test_what_a_gang_cannot_be(tmp_path: Path, options: list[str], code: str, field: str, value: object) -> None:
    result = CliRunner().invoke(cli, ["--home", str(tmp_path), "run", "--json", *options])

    assert result.exit_code == 125
    problem = json.loads(result.stderr)
    assert (problem["code"], problem["field"], problem.get("value")) == (code, field, value)
    assert problem["hint"]


def test_the_limit_is_the_one_of_the_job() -> None:
    assert Gang(size=LARGEST).size == LARGEST
    with pytest.raises(ValueError, match="less than or equal"):
        Gang(size=LARGEST + 1)


def test_a_workload_on_more_nodes_may_cost_more() -> None:
    spec_file = read_spec_file(workload_file("distributed"))
    four = spec_from_mapping(resized(spec_file.raw, "distributed", 4), base=Path.cwd()).check()

    assert (four.nodes_at_once, four.limits.max_cost) == (4, "1.40")
    with pytest.raises(Invalid, match="trains on one node"):
        resized(read_spec_file(workload_file("rnn")).raw, "rnn", 4)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["python", "alone.py", "--epochs", "3"], "alone.py"),
        (["python", "-m", "package.alone"], "alone.py"),
        (["python", "-c", "print(1)"], "the command"),
        (["python", "shared.py"], None),
        (["torchrun", "alone.py"], None),
        (["python", "-m", "torch.distributed.run", "alone.py"], None),
        (["python", "-m", "package.shared"], None),
        (["sh", "-c", "echo $TORG_RANK"], None),
        (["/opt/solver", "--input", "case.dat"], None),
        (["python", "/image/alone.py"], None),
    ],
)
def test_who_would_do_the_same_everywhere_is_told(tmp_path: Path, argv: list[str], said: str | None) -> None:
    (tmp_path / "package").mkdir()
    for folder in (tmp_path, tmp_path / "package"):
        (folder / "alone.py").write_text("import torch\ntorch.manual_seed(0)\n")
        (folder / "shared.py").write_text("import torch.distributed as dist\ndist.init_process_group('gloo')\n")

    hint = alone_together(argv, tmp_path)
    assert (hint is None) if said is None else (hint is not None and hint.startswith(f"{said} mentions neither"))
