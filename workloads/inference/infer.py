"""Reads a large batch of handwritten digits with a model that was trained before. `python infer.py --copies 50`

`model.safetensors` is the `cnn` workload's. 360 held-out digits, each in many variations that the model has not seen; one line per image goes
to predictions.csv. Killed and started again, it goes on behind the last batch that a checkpoint holds.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torg_job
from data import load, vary
from matplotlib.figure import Figure
from model import DigitNet
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

HERE = Path(__file__).resolve().parent
REPORTS = 10
COPIES = torg_job.Within(50, most=5_000)  # all predictions are held in memory until they are written


def main() -> None:
    settings = torg_job.parse_settings(__doc__, copies=COPIES, seed=0)
    job = torg_job.Job(settings)
    copies = settings["copies"]
    digits, model = load(), DigitNet().eval()
    weights = {name: value.float() for name, value in load_file(HERE / "model.safetensors").items()}
    model.load_state_dict(weights, strict=False)  # batch counters are no part of it
    chance = torch.Generator().manual_seed(settings["seed"])
    confidence, label = (
        torch.zeros(copies, len(digits.held_out_labels)),
        torch.zeros(copies, len(digits.held_out_labels)),
    )
    job.track(chance=chance, confidence=confidence, label=label)

    began = time.perf_counter()
    for step in job.steps(copies):
        with torch.no_grad():
            chances = torch.softmax(model(vary(digits.held_out_images, chance)), dim=1)
        confidence[step - 1], label[step - 1] = chances.max(1).values, chances.argmax(1)
        is_due = step % max(1, copies // REPORTS) == 0
        if is_due:
            job.report(step, accuracy=accuracy(label[:step], digits.held_out_labels))
        job.checkpoint(step, due=is_due)
    seconds = time.perf_counter() - began

    write_predictions(job.outputs / "predictions.csv", label, confidence)
    draw(label, confidence, digits.held_out_labels).savefig(job.outputs / "plot.png")
    metrics = {
        "accuracy": accuracy(label, digits.held_out_labels),
        "nearest_digit": nearest_digit(digits.images, digits.labels, digits.held_out_images, digits.held_out_labels),
        "images": label.numel(),
    }
    print(f"{(copies - job.resumed_from_step) * label.shape[1] / seconds:,.0f} images per second", flush=True)
    job.finish(None, metrics)


def accuracy(label: Tensor, truth: Tensor) -> float:
    return (label == truth).float().mean().item()


def nearest_digit(images: Tensor, labels: Tensor, held_out_images: Tensor, truth: Tensor) -> float:
    """What the simplest reader makes of one variation: the label of the most similar digit to learn from."""
    varied = vary(held_out_images, torch.Generator().manual_seed(1)).flatten(1)
    nearest = torch.cdist(varied, images.flatten(1)).argmin(1)
    return accuracy(labels[nearest], truth)


def write_predictions(path: Path, label: Tensor, confidence: Tensor) -> None:
    copies, images = label.shape
    rows = [
        f"{image},{copy},{int(label[copy, image])},{confidence[copy, image].item():.4f}\n"
        for copy in range(copies)
        for image in range(images)
    ]
    path.write_text("image,copy,label,confidence\n" + "".join(rows))


def draw(label: Tensor, confidence: Tensor, truth: Tensor) -> Figure:
    figure = Figure(figsize=(9, 3.6), dpi=80, layout="constrained")
    sure, confusion_axes = figure.subplots(1, 2)
    right = label == truth
    bins = [0.05 * number for number in range(21)]
    sure.hist([confidence[right].numpy(), confidence[~right].numpy()], bins=bins, log=True, label=["right", "wrong"])
    sure.set(xlabel="confidence", ylabel="images")
    sure.legend(loc="upper left")
    confusion = torch.zeros(10, 10)
    places = truth.expand_as(label).flatten(), label.long().flatten()
    confusion.index_put_(places, torch.ones(label.numel()), accumulate=True)
    confusion_axes.imshow(functional.normalize(confusion, p=1, dim=1).numpy(), cmap="Blues", vmin=0, vmax=1)
    confusion_axes.set(xlabel="predicted", ylabel="digit", xticks=range(10), yticks=range(10))
    return figure


if __name__ == "__main__":
    main()
