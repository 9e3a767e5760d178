"""What a finished training leaves behind: model.safetensors, metrics.json and loss.png."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save
from training import EpochResult, Training


def write_results(directory: Path, training: Training, resumed_from_step: int) -> None:
    (directory / "model.safetensors").write_bytes(save(training.model.weights()))
    last = training.history[-1]
    metrics = {
        "accuracy": last.accuracy,
        "loss": last.held_out_loss,
        "epochs": training.settings.epochs,
        "steps": training.step,
        "seconds": round(training.seconds, 3),  # of training in all attempts, as far as they were not lost
        "seed": training.settings.seed,
        "resumed_from_step": resumed_from_step,
        "history": [asdict(result) for result in training.history],
    }
    (directory / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    draw_curve(directory / "loss.png", training.history)
    print(f"accuracy {last.accuracy:.4f} on held-out digits after {training.seconds:.1f} s of training", flush=True)


def draw_curve(path: Path, history: list[EpochResult]) -> None:
    """Over all epochs, those before a resume included."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("MPLCONFIGDIR", cache)  # the home directory may be missing or read-only
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
        losses = figure.add_subplot()
        epochs = [result.epoch for result in history]
        losses.plot(epochs, [result.loss for result in history], label="training loss (varied images)")
        losses.plot(epochs, [result.held_out_loss for result in history], label="held-out loss")
        losses.set(xlabel="epoch", ylabel="cross entropy", ylim=(0, None))
        accuracies = losses.twinx()
        accuracies.plot(epochs, [result.accuracy for result in history], color="tab:green", label="held-out accuracy")
        accuracies.set(ylabel="accuracy", ylim=(0, 1.02))
        figure.legend(loc="outside lower center", ncols=3)
        figure.savefig(path, backend="agg")
