"""A generative adversarial network draws handwritten digits of a class that it is told. `python train.py --steps 6000`

One net invents digits, another tells invented from real ones; each gets better by the other (hinge loss, spectral normalisation). What
the drawings are worth is measured by use: a nearest-neighbour classifier that has seen only invented digits must read real ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torg_job
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.metrics import pairwise_distances
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

NOISE, HIDDEN, BATCH, DRAWN, HELD_OUT = 32, 256, 64, 2000, 360
REPORT_EVERY = 500


@dataclass(frozen=True)
class Digits:
    """Pixels are N x 64 in [-1, 1]."""

    pixels: Tensor
    labels: Tensor
    held_out_pixels: Tensor
    held_out_labels: Tensor


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(NOISE + 10, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.LeakyReLU(0.2),
            nn.Linear(HIDDEN, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.LeakyReLU(0.2),
            nn.Linear(HIDDEN, 64), nn.Tanh(),
        )  # fmt: skip

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        pixels: Tensor = self.layers(_with_class(noise, labels))
        return pixels


class Discriminator(nn.Module):
    """Above 0: takes the digit for a real one of that class."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            spectral_norm(nn.Linear(64 + 10, HIDDEN)), nn.LeakyReLU(0.2), nn.Dropout(0.2),
            spectral_norm(nn.Linear(HIDDEN, HIDDEN)), nn.LeakyReLU(0.2), nn.Dropout(0.2),
            spectral_norm(nn.Linear(HIDDEN, 1)),
        )  # fmt: skip

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        opinion: Tensor = self.layers(_with_class(pixels, labels))
        return opinion


def _with_class(values: Tensor, labels: Tensor) -> Tensor:
    return torch.cat([values, functional.one_hot(labels, 10).float()], dim=1)


def main() -> None:
    settings = torg_job.parse_settings(__doc__, steps=6000, seed=0)
    job = torg_job.Job(settings)
    digits = load()
    torch.manual_seed(settings["seed"])
    generator, discriminator = Generator(), Discriminator()
    betas = (0.5, 0.99)
    generate = torch.optim.Adam(generator.parameters(), 4e-4, betas=betas)
    discriminate = torch.optim.Adam(discriminator.parameters(), 4e-4, betas=betas)
    history: list[dict[str, float]] = []
    job.track(generator=generator, discriminator=discriminator, generate=generate, discriminate=discriminate)
    job.track(history=history)

    for step in job.steps(settings["steps"]):
        generator.train()
        chosen = torch.randint(len(digits.labels), (BATCH,))
        labels = digits.labels[chosen]
        real = digits.pixels[chosen] + 0.02 * torch.randn(BATCH, 64)
        invented = generator(torch.randn(BATCH, NOISE), labels)

        told_apart = functional.relu(1 - discriminator(real, labels)).mean()
        told_apart = told_apart + functional.relu(1 + discriminator(invented.detach(), labels)).mean()
        discriminate.zero_grad()
        told_apart.backward()
        discriminate.step()

        fooled = -discriminator(generator(torch.randn(BATCH, NOISE), labels), labels).mean()
        generate.zero_grad()
        fooled.backward()
        generate.step()

        is_due = step % REPORT_EVERY == 0 or step == settings["steps"]
        if is_due:
            history.append({"step": step, "loss": told_apart.item(), "useful": measure(generator, digits)["useful"]})
            job.report(step, loss=history[-1]["loss"], useful=history[-1]["useful"])
        job.checkpoint(step, due=is_due)

    metrics = {**measure(generator, digits), "history": history}
    draw(history, metrics, generator).savefig(job.outputs / "plot.png")
    job.finish(generator.state_dict(), metrics)


def load() -> Digits:
    pixels, labels = load_digits(return_X_y=True)
    learn_x, held_x, learn_y, held_y = train_test_split(
        pixels / 8.0 - 1.0, labels, test_size=HELD_OUT, stratify=labels, random_state=0
    )
    return Digits(
        torch.tensor(learn_x, dtype=torch.float32),
        torch.tensor(learn_y),
        torch.tensor(held_x, dtype=torch.float32),
        torch.tensor(held_y),
    )


def invent(generator: Generator, count: int) -> tuple[Tensor, Tensor]:
    """Equally many of each class, the same noise each time."""
    generator.eval()
    noise = torch.randn(count, NOISE, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(10).repeat(count // 10)
    with torch.no_grad():
        return generator(noise, labels), labels


def measure(generator: Generator, digits: Digits) -> dict[str, float]:
    """useful: real digits read right by who has seen invented ones only. faithful: invented digits that a classifier of real ones
    takes for what they should be. diversity: mean distance within a class, against that of real digits; 0 were always the same drawing."""
    invented, labels = invent(generator, DRAWN)
    of_invented = KNeighborsClassifier(3).fit(invented, labels)
    of_real = KNeighborsClassifier(3).fit(digits.pixels, digits.labels)
    spread = [
        pairwise_distances(invented[labels == digit][:100]).mean()
        / pairwise_distances(digits.pixels[digits.labels == digit][:100]).mean()
        for digit in range(10)
    ]
    return {
        "useful": of_invented.score(digits.held_out_pixels, digits.held_out_labels),
        "faithful": of_real.score(invented, labels),
        "diversity": float(np.mean(spread)),
        "learnt_from_real_digits": of_real.score(digits.held_out_pixels, digits.held_out_labels),
        "chance": 0.1,
    }


def draw(history: list[dict[str, float]], metrics: dict[str, object], generator: Generator) -> Figure:
    figure = Figure(figsize=(9, 3.6), dpi=80, layout="constrained")
    curve, gallery = figure.subplots(1, 2)
    curve.plot(
        [row["step"] for row in history], [row["useful"] for row in history], label="learnt from invented digits"
    )
    for name, style in (("learnt_from_real_digits", "--"), ("chance", ":")):
        curve.axhline(metrics[name], linestyle=style, color="grey", label=name.replace("_", " "))
    curve.set(xlabel="step", ylabel="real digits read right", ylim=(0, 1))
    curve.legend(loc="lower right")
    invented, _ = invent(generator, 100)
    rows = invented.view(10, 10, 8, 8).permute(0, 2, 1, 3).reshape(80, 80)
    gallery.imshow(rows.numpy(), cmap="gray_r")
    gallery.set_axis_off()
    gallery.set_title("invented: ten of each class, by column")
    return figure


if __name__ == "__main__":
    main()
