"""The training as a node runs it: plain files and environment variables, kills at any moment, the same weights in the end."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from tests.support.cnn import CNN, EPOCHS, STEPS_PER_EPOCH, Workspace, catches_sigterm, wait_until
from torg_host.archive import pack
from torg_protocol.jobspec import VerifyMetric, load_job_spec

TOTAL_STEPS = EPOCHS * STEPS_PER_EPOCH
OPTIONS = ("--epochs", str(EPOCHS))


def assert_same_results(resumed: Workspace, uninterrupted: Workspace) -> None:
    """Bit for bit: the weights, the whole final state (optimizer, schedule, random numbers), and the curve over all epochs."""
    for name in ("model.safetensors", "loss.png"):
        assert (resumed.outputs / name).read_bytes() == (uninterrupted.outputs / name).read_bytes(), name
    final = f"step-{TOTAL_STEPS:08d}/state.safetensors"
    assert (resumed.checkpoints / final).read_bytes() == (uninterrupted.checkpoints / final).read_bytes()
    told_apart = {"seconds": 0, "resumed_from_step": 0}
    assert resumed.metrics() | told_apart == uninterrupted.metrics() | told_apart


def test_a_job_learns_reports_and_delivers(uninterrupted: Workspace) -> None:
    metrics = uninterrupted.metrics()
    job = yaml.safe_load((CNN / "job.yaml").read_text())

    assert sorted(path.name for path in uninterrupted.outputs.iterdir()) == sorted(job["outputs"])
    assert metrics["accuracy"] >= 0.95  # 8 epochs; the catalogue's job takes 30
    assert metrics["steps"] == TOTAL_STEPS
    assert metrics["resumed_from_step"] == 0
    assert [row["epoch"] for row in metrics["history"]] == list(range(1, EPOCHS + 1))
    assert metrics["history"][-1]["loss"] < metrics["history"][0]["loss"] / 2
    assert uninterrupted.progress() == [
        {
            "step": row["epoch"] * STEPS_PER_EPOCH,
            "total_steps": TOTAL_STEPS,
            "epoch": row["epoch"],
            "loss": round(row["loss"], 6),
            "accuracy": round(row["accuracy"], 6),
        }
        for row in metrics["history"]
    ]
    assert (uninterrupted.outputs / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_checkpoints_are_the_newest_two_and_hold_no_pickle(uninterrupted: Workspace) -> None:
    names = [f"step-{epochs * STEPS_PER_EPOCH:08d}" for epochs in (EPOCHS - 2, EPOCHS)]

    assert uninterrupted.checkpoint_names() == names
    for name in names:
        files = uninterrupted.checkpoints / name
        assert sorted(path.name for path in files.iterdir()) == ["state.json", "state.safetensors"]
        with safe_open(files / "state.safetensors", framework="np") as state:
            assert {"random.torch", "random.data", "order", "optimizer.0.exp_avg_sq", "model.conv1.weight"} <= set(
                state.keys()
            )


@pytest.mark.slow
def test_killed_twice_and_resumed_the_weights_are_equal_bit_for_bit(
    workspace: Workspace, uninterrupted: Workspace
) -> None:
    every_epoch = (*OPTIONS, "--checkpoint-every-epochs", "1")
    for epochs in (1, 4):
        process = workspace.start(*every_epoch)
        wait_until(lambda: workspace.newest_step() >= epochs * STEPS_PER_EPOCH, "a checkpoint")  # noqa: B023  # used at once
        process.kill()
        process.communicate(timeout=240)
        assert process.returncode == -signal.SIGKILL
        assert not (workspace.outputs / "model.safetensors").exists()
        half_written = workspace.checkpoints / f".step-{TOTAL_STEPS:08d}.tmp"
        half_written.mkdir(exist_ok=True)
        (half_written / "state.json").write_text('{"settings"')
    resumed_from = workspace.newest_step()

    printed = workspace.train(*every_epoch)

    assert f"resumed from step {resumed_from} of {TOTAL_STEPS}" in printed
    assert workspace.metrics()["resumed_from_step"] == resumed_from
    assert workspace.checkpoint_names() == [f"step-{TOTAL_STEPS - STEPS_PER_EPOCH:08d}", f"step-{TOTAL_STEPS:08d}"]
    assert_same_results(workspace, uninterrupted)


def test_sigterm_saves_the_step_and_exits_143_long_before_the_end(
    workspace: Workspace, uninterrupted: Workspace
) -> None:
    never = (*OPTIONS, "--checkpoint-every-epochs", "1000")
    process = workspace.start(*never)
    wait_until(workspace.progress, "the first epoch")
    started = time.monotonic()
    process.terminate()
    out, _ = process.communicate(timeout=240)
    took_s = time.monotonic() - started
    stopped_at = workspace.newest_step()

    assert process.returncode == 143
    assert took_s < 80
    assert STEPS_PER_EPOCH <= stopped_at < TOTAL_STEPS
    assert workspace.checkpoint_names() == [f"step-{stopped_at:08d}"]
    assert f"stopped at step {stopped_at} of {TOTAL_STEPS}" in out

    workspace.train(*never)

    assert workspace.metrics()["resumed_from_step"] == stopped_at
    assert_same_results(workspace, uninterrupted)


def test_sigterm_while_torch_is_imported_ends_at_once(workspace: Workspace) -> None:
    process = workspace.start(*OPTIONS)
    wait_until(lambda: catches_sigterm(process), "a signal handler")
    started = time.monotonic()
    process.terminate()
    process.communicate(timeout=240)

    assert process.returncode == 143
    assert time.monotonic() - started < 80
    assert workspace.checkpoint_names() == []


def test_a_checkpoint_of_other_settings_is_refused(workspace: Workspace, uninterrupted: Workspace) -> None:
    newest = f"step-{TOTAL_STEPS:08d}"
    (workspace.checkpoints / newest).mkdir(parents=True)
    for path in (uninterrupted.checkpoints / newest).iterdir():
        (workspace.checkpoints / newest / path.name).write_bytes(path.read_bytes())

    process = workspace.start(*OPTIONS, "--seed", "1")
    _, error = process.communicate(timeout=240)

    assert process.returncode == 1
    assert "the checkpoint is of a training with {'epochs': 8, 'seed': 0}, not {'epochs': 8, 'seed': 1}" in error
    assert not (workspace.outputs / "model.safetensors").exists()


def test_impossible_options_are_refused_before_anything_is_imported(workspace: Workspace) -> None:
    process = workspace.start("--epochs", "0")
    _, error = process.communicate(timeout=240)

    assert process.returncode == 2
    assert "argument --epochs: 0 is less than 1" in error


def test_the_packed_workspace_is_the_training_and_nothing_else(workspace: Workspace) -> None:
    names = {path.name for path in workspace.directory.iterdir()}

    assert names == {"train.py", "training.py", "model.py", "data.py", "checkpoints.py", "results.py"}


def test_what_a_local_training_leaves_does_not_change_the_packed_digest(tmp_path: Path) -> None:
    used = tmp_path / "used"
    shutil.copytree(CNN, used)
    (used / "outputs").mkdir()
    for name in ("outputs/model.safetensors", "progress.jsonl", "notes.txt"):
        (used / name).write_text("left over")

    assert pack(used, tmp_path / "used.tar.zst") == pack(CNN, tmp_path / "clean.tar.zst")


def test_the_job_file_is_a_valid_spec_with_the_calibrated_target() -> None:
    raw = yaml.safe_load((CNN / "job.yaml").read_text())
    spec = load_job_spec({**raw, "workspace": None})

    assert spec.command == ("python", "train.py", "--epochs", "30")
    assert isinstance(spec.verify, VerifyMetric)
    assert f"Target: **{spec.verify.target}**" in (CNN / "README.md").read_text()
