"""Every workload of the catalogue, shortened: it learns, reports, is killed at some checkpoint, and goes on elsewhere to the same
weights, bit for bit."""

from __future__ import annotations

import importlib
import json
import random
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.workload_runs import NAMES, WORKLOADS, Machine, job_of, target_of
from tests.support.zygote import Zygote
from torg_protocol.jobspec import load_job_spec

WITH_LIBRARY = [name for name in NAMES if name != "cnn"]  # cnn does without, and has tests of its own
ALWAYS = {"metrics.json", "plot.png"}


def quick(name: str) -> list[str]:
    options: list[str] = target_of(name)["quick"]["options"]
    return options


@pytest.fixture(scope="module")
def finished(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Machine]:
    """Runs that nobody disturbed, made when they are asked for. Read only."""
    root = tmp_path_factory.mktemp("finished")

    class Finished(dict[str, Machine]):
        def __missing__(self, name: str) -> Machine:
            machine = Machine(zygote, name, root / name)
            code, _, error = machine.run(*quick(name))
            assert code == 0, error
            self[name] = machine
            return machine

    return Finished()


@pytest.mark.parametrize("name", WITH_LIBRARY)
def test_it_learns_reports_and_delivers(name: str, finished: dict[str, Machine]) -> None:
    machine, target = finished[name], target_of(name)
    metrics, progress = machine.metrics(), machine.progress()

    assert set(job_of(name)["outputs"]) == {path.name for path in machine.outputs.iterdir()} >= ALWAYS
    floor, ceiling = target["quick"].get("least", -np.inf), target["quick"].get("most", np.inf)
    assert floor <= metrics[target["metric"]] <= ceiling
    assert metrics["resumed_from_step"] == 0
    assert len(progress) >= 2
    assert progress[-1]["step"] == progress[-1]["total_steps"]
    assert [line["step"] for line in progress] == sorted({line["step"] for line in progress})
    assert (machine.outputs / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    for file in machine.outputs.glob("*.safetensors"):
        assert all(np.isfinite(tensor.astype(np.float64)).all() for tensor in load_file(file).values())


def test_the_standard_library_of_a_node_is_read_without_what_a_job_cannot_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's sitecustomize.py is a link to /etc, which no sandbox has: embeddings and finetune failed on every such node."""
    monkeypatch.syspath_prepend(str(WORKLOADS / "parts"))
    docstrings = importlib.import_module("docstrings")
    (tmp_path / "sitecustomize.py").symlink_to("/etc/python3/nowhere.py")
    (tmp_path / "json.py").write_text('"""Reads   and writes."""')
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda _: str(tmp_path))
    assert [(item.package, item.text) for item in docstrings.read_docstrings()] == [("json", "Reads and writes.")]


@pytest.mark.parametrize("name", WITH_LIBRARY)
def test_killed_at_some_checkpoint_it_ends_elsewhere_with_the_same_weights(
    name: str, finished: dict[str, Machine], zygote: Zygote, tmp_path: Path
) -> None:
    whole = finished[name]
    written = len({line["step"] for line in whole.progress()})  # each workload writes one with each report, at least
    number = random.Random(name).randint(1, max(1, written - 1))
    here, there = Machine(zygote, name, tmp_path / "here"), Machine(zygote, name, tmp_path / "there")

    code, _, error = here.run(*quick(name), kill_after_checkpoint=number)
    assert code == -signal.SIGKILL, error
    newest = here.checkpoint_names()[-1]
    shutil.copytree(here.checkpoints / newest, there.checkpoints / newest)
    code, out, error = there.run(*quick(name))
    assert code == 0, error

    assert f"resumed from step {int(newest[5:])}" in out
    for path in sorted(whole.outputs.iterdir()):
        if path.name != "metrics.json":
            assert (there.outputs / path.name).read_bytes() == path.read_bytes(), path.name
    told_apart = {"seconds": 0, "resumed_from_step": 0}
    assert there.metrics() | told_apart == whole.metrics() | told_apart
    assert there.metrics()["resumed_from_step"] == int(newest[5:])
    assert_same_state(there.checkpoints, whole.checkpoints)


def assert_same_state(one: Path, other: Path) -> None:
    """Of the last checkpoint: weights, optimizer, random numbers, data order, history."""
    (*_, last) = sorted(path.name for path in one.iterdir())
    assert last == max(path.name for path in other.iterdir())
    assert (one / last / "state.safetensors").read_bytes() == (other / last / "state.safetensors").read_bytes()
    scalars = [json.loads((directory / last / "state.json").read_text()) for directory in (one, other)]
    assert scalars[0] | {"seconds": 0} == scalars[1] | {"seconds": 0}


@pytest.mark.parametrize("name", NAMES)
def test_its_job_is_valid_and_packs_what_its_script_imports(name: str, zygote: Zygote, tmp_path: Path) -> None:
    job, target = job_of(name), target_of(name)
    spec = load_job_spec({**job, "workspace": None})
    packed = {path.name for path in (Machine(zygote, name, tmp_path / name).root / "work").rglob("*")}

    assert spec.checkpoint.enabled
    assert spec.command[0] == "python"
    assert spec.command[1] in packed
    assert packed.isdisjoint({"job.yaml", "README.md", "target.yaml", "evaluate.py", ".torgignore"})
    bound = target.get("least", target.get("most"))
    assert f"Target: **{bound}**" in (WORKLOADS / name / "README.md").read_text()


SETTINGS = {name: sorted(set(re.findall(r"(\w+)=(?:\d+|[A-Z]+\b|torg_job\.Within)", call))) for name in WITH_LIBRARY for call in [
    re.search(r"parse_settings\(__doc__, (.*)\)", (WORKLOADS / name / job_of(name)["command"][1]).read_text())[1]
]}  # fmt: skip


@pytest.mark.parametrize("name", WITH_LIBRARY)
def test_settings_that_count_nothing_are_refused_before_anything_is_made(
    name: str, zygote: Zygote, tmp_path: Path
) -> None:
    """`inference --copies 0` ended with 0 and an accuracy of NaN; `--epochs 0` of others with a traceback of torch."""
    machine = Machine(zygote, name, tmp_path / name)
    assert SETTINGS[name]
    for setting in SETTINGS[name]:
        least = 0 if setting == "seed" else 1
        code, _, error = machine.run(f"--{setting}", str(least - 1))
        assert (code, f"argument --{setting}: {least - 1} is less than {least}" in error) == (2, True), error
    assert not machine.outputs.exists()


@pytest.mark.parametrize(
    ("name", "setting", "value", "why"),
    [
        ("transformer", "width", "33", "33 is not a multiple of 4: try 32 or 36"),
        ("transformer", "width", "2", "2 is not a multiple of 4: try 4"),
        ("transformer", "width", "1023", "1023 is not a multiple of 4: try 1020 or 1024"),
        ("transformer", "width", "4096", "4096 is more than 1024"),
        ("generate", "prompts", "1000", "1000 is more than 64"),
        ("inference", "copies", "1000000", "1000000 is more than 5000"),
        ("linear", "seed", str(2**63), f"{2**63} is more than {2**63 - 1}"),
        ("health", "epochs", "1e3", "'1e3' is not a whole number"),
        ("cnn", "seed", str(2**63), f"{2**63} is more than {2**63 - 1}"),
        ("cnn", "epochs", "1e3", "'1e3' is not a whole number"),
    ],
)
def test_settings_that_a_workload_cannot_do_are_refused_with_what_it_can(
    name: str, setting: str, value: str, why: str, zygote: Zygote, tmp_path: Path
) -> None:
    """A width that its heads cannot share, and a seed beyond torch's, ended in a traceback; of 1,000 prompts 64 were continued, unsaid."""
    machine = Machine(zygote, name, tmp_path / name)
    code, _, error = machine.run(f"--{setting}", value)
    assert (code, f"argument --{setting}: {why}\n" in error) == (2, True), error
    assert not machine.outputs.exists()


def test_a_checkpoint_that_was_asked_for_stays_until_it_is_looked_at(zygote: Zygote, tmp_path: Path) -> None:
    """Two later ones took it away: a marketplace that was frozen for a moment found nothing, and the honest node a liar."""
    machine = Machine(zygote, "health", tmp_path / "health")
    process = machine.start("--epochs", "8", env={"TORG_CHECKPOINT_AT": "step-00000005"})
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    first, *newest = machine.checkpoint_names()
    assert (first, len(newest)) == ("step-00000005", 2)


@pytest.mark.parametrize(
    "asked", ["made-up", "step-7", "step-00000000", "step-00000026", "step-00000053", "step-99999999"]
)
def test_a_checkpoint_that_never_comes_is_said_at_once(asked: str, zygote: Zygote, tmp_path: Path) -> None:
    """Whoever executes a segment again would run to the end of the training, or of its time, for a name that a node has made up."""
    machine = Machine(zygote, "health", tmp_path / "health")
    code, _, error = machine.run("--epochs", "4", kill_after_checkpoint=1)
    assert code == -signal.SIGKILL, error
    assert machine.checkpoint_names() == ["step-00000026"]
    process = machine.start("--epochs", "4", env={"TORG_CHECKPOINT_AT": asked})
    _, error = process.communicate(timeout=240)
    said = f"TORG_CHECKPOINT_AT is '{asked}': from step 26 to step 52 there is none of that name"
    assert (process.returncode, said in error) == (1, True), error
    assert machine.checkpoint_names() == ["step-00000026"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_cannot_be_written_to_is_named_before_the_work_is_done(
    name: str, zygote: Zygote, tmp_path: Path
) -> None:
    machine = Machine(zygote, name, tmp_path / name)
    machine.outputs.parent.mkdir(parents=True, exist_ok=True)
    machine.outputs.write_text("a file")
    code, out, error = machine.run()
    assert (code, out) == (1, "")
    assert f"{machine.outputs} cannot be written to (File exists)" in error
    assert "Traceback" not in error


def test_threads_that_are_no_number_are_refused(zygote: Zygote, tmp_path: Path) -> None:
    process = Machine(zygote, "health", tmp_path / "health").start(env={"OMP_NUM_THREADS": "all"})
    _, error = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "OMP_NUM_THREADS is 'all'" in error


@pytest.mark.parametrize("part", sorted(path.name for path in (WORKLOADS / "parts").glob("[a-z]*.py")))
def test_shared_parts_are_copied_unchanged(part: str) -> None:
    """A workspace must stand alone; so each holds its copy. `python -m workloads.parts` renews them."""
    copies = list(WORKLOADS.glob(f"*/{part}"))
    original = (WORKLOADS / "parts" / part).read_bytes()

    assert [path for path in copies if path.read_bytes() != original] == []
