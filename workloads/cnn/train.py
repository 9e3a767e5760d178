"""Trains a convolutional net on handwritten digits: `python train.py --epochs 30`.

Checkpoints go to $TORG_CHECKPOINT_DIR, results to $TORG_OUTPUT_DIR, one JSON line per epoch to $TORG_PROGRESS_FILE. Started
again, it goes on from the newest checkpoint. On SIGTERM it finishes the step, writes a checkpoint and exits with 143.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training import Training

STOPPED = 128 + signal.SIGTERM
LARGEST = 2**63 - 1  # of a seed, for torch
CHECKPOINTS = Path(os.environ.get("TORG_CHECKPOINT_DIR", "checkpoints"))
OUTPUTS = Path(os.environ.get("TORG_OUTPUT_DIR", "outputs"))
PROGRESS = Path(os.environ.get("TORG_PROGRESS_FILE", "progress.jsonl"))


def main() -> int:
    arguments = parse_arguments()
    stop = StopRequest()
    training = prepare(arguments)
    stop.finish_the_step_first()
    resumed_from_step = resume(training)

    finished = training.run(after_each_step(training, stop, arguments.checkpoint_every_epochs))
    if not finished:
        print(f"stopped at step {training.step} of {training.total_steps}; a checkpoint is written", flush=True)
        return STOPPED
    from results import write_results

    write_results(OUTPUTS, training, resumed_from_step)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=_at_least(1), default=30)
    parser.add_argument("--seed", type=_at_least(0), default=0, help="same seed, machine and threads: same weights")
    parser.add_argument("--threads", type=_at_least(1), default=1)
    parser.add_argument("--checkpoint-every-epochs", type=_at_least(1), default=5)
    return parser.parse_args()


class StopRequest:
    """SIGTERM. While torch is being imported there is nothing to save, and the process ends at once."""

    def __init__(self) -> None:
        self.noted = False
        signal.signal(signal.SIGTERM, lambda *_: os._exit(STOPPED))

    def finish_the_step_first(self) -> None:
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.noted = True


def prepare(arguments: argparse.Namespace) -> Training:
    import torch
    from data import load
    from training import Settings, Training

    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    return Training(Settings(epochs=arguments.epochs, seed=arguments.seed), load())


def resume(training: Training) -> int:
    """Puts the newest checkpoint back; returns its step, 0 when there is none."""
    import checkpoints

    for directory in (CHECKPOINTS, OUTPUTS, PROGRESS.parent):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
        except OSError as error:
            raise SystemExit(f"{directory} cannot be written to ({error.strerror}): name another") from error
    checkpoint = checkpoints.newest(CHECKPOINTS)
    if checkpoint is None:
        return 0
    try:
        training.restore(checkpoint)
    except ValueError as error:
        raise SystemExit(f"{CHECKPOINTS}: {error}; use the same options again, or another directory") from error
    print(f"resumed from step {checkpoint.step} of {training.total_steps}", flush=True)
    return checkpoint.step


def after_each_step(training: Training, stop: StopRequest, checkpoint_every_epochs: int) -> Callable[[], bool]:
    import checkpoints

    steps_between = checkpoint_every_epochs * training.steps_per_epoch

    def report_and_save() -> bool:
        if training.epoch_is_complete:
            report(training)
        if stop.noted or training.step % steps_between == 0 or training.step == training.total_steps:
            checkpoints.write(CHECKPOINTS, training.checkpoint())
        return stop.noted

    return report_and_save


def report(training: Training) -> None:
    """One line for people, one for programs."""
    result = training.history[-1]
    print(f"epoch {result.epoch:3d}  loss {result.loss:.4f}  accuracy {result.accuracy:.4f}", flush=True)
    line = {
        "step": training.step,
        "total_steps": training.total_steps,
        "epoch": result.epoch,
        "loss": round(result.loss, 6),
        "accuracy": round(result.accuracy, 6),
    }
    with PROGRESS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _at_least(minimum: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is less than {minimum}")
        if value > LARGEST:
            raise argparse.ArgumentTypeError(f"{value} is more than {LARGEST}")
        return value

    return whole_number


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    # Everything is on disk; tearing torch down would take a second that a stopping node does not have.
    os._exit(exit_code)
