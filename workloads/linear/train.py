"""Bag of words and one linear layer: from which package of the standard library is a docstring? `python train.py --epochs 20`

Where machine learning on text began, and what anything deeper has to beat. A text is counted, not read: which of the 4,000 commonest words
it holds, weighted by how rare they are; word order is lost.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

import torch
import torg_job
from docstrings import Docstring, read_docstrings
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

PACKAGES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "turtle",
    "unittest",
    "urllib",
    "xml",
)
WORDS, BATCH, HELD_OUT_EVERY = 4_000, 32, 5
GIVEAWAY = re.compile("|".join(PACKAGES), re.IGNORECASE)  # its own name would tell: it is blotted out


@dataclass(frozen=True)
class Texts:
    """`counts` is N x words, each row of length one; `labels` are positions in PACKAGES."""

    counts: Tensor
    labels: Tensor
    held_out_counts: Tensor
    held_out_labels: Tensor
    vocabulary: list[str]


def main() -> None:
    settings = torg_job.parse_settings(__doc__, epochs=20, seed=0)
    job = torg_job.Job(settings)
    texts = load()
    torch.manual_seed(settings["seed"])
    model = nn.Linear(len(texts.vocabulary), len(PACKAGES))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=1e-3)
    batches = torg_job.Batches(len(texts.labels), BATCH, seed=settings["seed"])
    history: list[dict[str, float]] = []
    job.track(model=model, optimizer=optimizer, batches=batches, history=history)

    for step in job.steps(settings["epochs"] * batches.per_epoch):
        chosen = batches.next()
        loss = functional.cross_entropy(model(texts.counts[chosen]), texts.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        epoch_is_over = step % batches.per_epoch == 0
        if epoch_is_over:
            history.append(
                {"loss": loss.item(), "accuracy": accuracy(model(texts.held_out_counts), texts.held_out_labels)}
            )
            job.report(step, **history[-1])
        job.checkpoint(step, due=epoch_is_over)

    with torch.no_grad():
        logits = model(texts.held_out_counts)
    metrics = {
        "accuracy": accuracy(logits, texts.held_out_labels),
        "majority": torch.bincount(texts.held_out_labels).max().item() / len(texts.held_out_labels),
        "naive_bayes": accuracy(naive_bayes(texts), texts.held_out_labels),
        "held_out": len(texts.held_out_labels),
        "telling_words": telling_words(model, texts.vocabulary),
        "history": history,
    }
    draw(history, metrics, logits, texts.held_out_labels).savefig(job.outputs / "plot.png")
    job.finish(model.state_dict(), metrics)


def load() -> Texts:
    """Every fifth docstring is held out: for every seed the same. The vocabulary is learnt from the others alone."""
    documents = [document for document in read_docstrings(PACKAGES) if len(document.text.split()) >= 6]
    words = [set(words_of(document)) for document in documents]
    held = [index for index in range(len(documents)) if index % HELD_OUT_EVERY == 0]
    kept = [index for index in range(len(documents)) if index % HELD_OUT_EVERY]
    frequency = Counter(word for index in kept for word in words[index])
    vocabulary = sorted(sorted(frequency), key=lambda word: -frequency[word])[:WORDS]
    position = {word: index for index, word in enumerate(vocabulary)}
    rarity = torch.tensor([math.log(len(kept) / frequency[word]) for word in vocabulary])
    counts = torch.zeros(len(documents), len(vocabulary))
    for row, held_words in enumerate(words):
        counts[row, [position[word] for word in sorted(held_words) if word in position]] = 1.0
    counts = functional.normalize(counts * rarity, dim=1)
    labels = torch.tensor([PACKAGES.index(document.package) for document in documents])
    return Texts(counts[kept], labels[kept], counts[held], labels[held], vocabulary)


def words_of(document: Docstring) -> list[str]:
    return re.findall(r"[a-z]{2,}", GIVEAWAY.sub(" ", document.text).lower())


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def naive_bayes(texts: Texts) -> Tensor:
    """The counting rule that needs no training: words are taken as independent, each seen once more than it was."""
    present = functional.one_hot(texts.labels, len(PACKAGES)).float().T @ (texts.counts > 0).float() + 1.0
    word_given_package = (present / present.sum(1, keepdim=True)).log()
    prior = (torch.bincount(texts.labels, minlength=len(PACKAGES)) / len(texts.labels)).log()
    return (texts.held_out_counts > 0).float() @ word_given_package.T + prior


def telling_words(model: nn.Linear, vocabulary: list[str]) -> dict[str, list[str]]:
    """A linear model can be read: the words that speak most for each package."""
    best = model.weight.topk(6, dim=1).indices.tolist()
    return {package: [vocabulary[index] for index in row] for package, row in zip(PACKAGES, best, strict=True)}


def draw(history: list[dict[str, float]], metrics: dict[str, object], logits: Tensor, labels: Tensor) -> Figure:
    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    curve, table = figure.subplots(1, 2, width_ratios=(1, 1.1))
    curve.plot(range(1, len(history) + 1), [row["accuracy"] for row in history], label="bag of words, linear")
    for name, style in (("naive_bayes", "--"), ("majority", ":")):
        curve.axhline(metrics[name], linestyle=style, color="grey", label=name.replace("_", " "))
    curve.set(xlabel="epoch", ylabel="held-out accuracy", ylim=(0, 1))
    curve.legend(loc="lower right")
    confusion = torch.zeros(len(PACKAGES), len(PACKAGES))
    confusion.index_put_((labels, logits.argmax(1)), torch.ones(len(labels)), accumulate=True)
    table.imshow((confusion / confusion.sum(1, keepdim=True)).numpy(), cmap="Blues", vmin=0, vmax=1)
    table.set_xticks(range(len(PACKAGES)), PACKAGES, rotation=60, ha="right", fontsize=7)
    table.set_yticks(range(len(PACKAGES)), PACKAGES, fontsize=7)
    table.set(xlabel="predicted", ylabel="package")
    return figure


if __name__ == "__main__":
    main()
