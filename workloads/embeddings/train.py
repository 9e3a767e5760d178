"""Embeddings of text by contrast: which description belongs to which first sentence? `python train.py --epochs 15`

Docstrings of Python's standard library are cut after their first sentence; the halves that belong together shall point the same way
(InfoNCE). Words and their pieces are hashed into one table, so unknown words have a meaning too. To beat: TF-IDF on the same features.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torg_job
from docstrings import read_docstrings
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

BUCKETS, WIDTH, BATCH, HELD_OUT, BLOTTED = 1 << 15, 192, 128, 400, 0.3
SENTENCE_END = re.compile(r"(?<=[.:])\s+")


@dataclass(frozen=True)
class Bags:
    """Texts as bags of hashed features: `features` of all one after the other, `starts` where each text begins."""

    features: Tensor
    starts: Tensor

    def take(self, chosen: Tensor) -> Bags:
        ends = torch.cat([self.starts[1:], torch.tensor([len(self.features)])])
        lengths = ends[chosen] - self.starts[chosen]
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)[:-1]])
        within = torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)
        return Bags(self.features[self.starts[chosen].repeat_interleave(lengths) + within], starts)


@dataclass(frozen=True)
class Pairs:
    """`first` and `rest` of the same row belong together. `rarity` is log inverse document frequency, of the pairs to learn from."""

    first: Bags
    rest: Bags
    held_out_first: Bags
    held_out_rest: Bags
    rarity: Tensor


class Encoder(nn.Module):
    def __init__(self, rarity: Tensor) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(BUCKETS, WIDTH, mode="sum")
        nn.init.normal_(self.table.weight, std=WIDTH**-0.5)
        self.weight = nn.Parameter(rarity / 5)
        self.sharpness = nn.Parameter(torch.tensor(2.7))

    def forward(self, bags: Bags) -> Tensor:
        weights = functional.dropout(self.weight[bags.features], BLOTTED, self.training)  # no word alone may decide
        summed = self.table(bags.features, bags.starts, per_sample_weights=weights)
        return functional.normalize(summed, dim=1)


def main() -> None:
    settings = torg_job.parse_settings(__doc__, epochs=15, seed=0)
    job = torg_job.Job(settings)
    pairs = load()
    torch.manual_seed(settings["seed"])
    model = Encoder(pairs.rarity)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batches = torg_job.Batches(len(pairs.first.starts), BATCH, seed=settings["seed"])
    history: list[dict[str, float]] = []
    job.track(model=model, optimizer=optimizer, batches=batches, history=history)

    for step in job.steps(settings["epochs"] * batches.per_epoch):
        chosen = batches.next()
        model.train()
        similarity = model(pairs.first.take(chosen)) @ model(pairs.rest.take(chosen)).T * model.sharpness.exp()
        own = torch.arange(len(chosen))
        loss = (functional.cross_entropy(similarity, own) + functional.cross_entropy(similarity.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        epoch_is_over = step % batches.per_epoch == 0
        if epoch_is_over:
            history.append({"loss": loss.item(), "recall_at_1": recall(embedded(model, pairs), 1)})
            job.report(step, **history[-1])
        job.checkpoint(step, due=epoch_is_over)

    ours, counted = embedded(model, pairs), counted_words(pairs)
    metrics = {
        "recall_at_1": recall(ours, 1),
        "recall_at_10": recall(ours, 10),
        "tf_idf": recall(counted, 1),
        "tf_idf_at_10": recall(counted, 10),
        "chance": 1 / HELD_OUT,
        "pairs": len(pairs.first.starts),
        "history": history,
    }
    draw(history, metrics, ours, counted).savefig(job.outputs / "plot.png")
    job.finish(model.state_dict(), metrics)


def load() -> Pairs:
    """The order is drawn once and for all, so that the held-out pairs are of all packages and the same for every seed."""
    halves: dict[str, str] = {}
    for document in read_docstrings():
        parts = SENTENCE_END.split(document.text, maxsplit=1)
        if len(parts) == 2 and len(parts[0].split()) >= 4 and len(parts[1].split()) >= 8:
            halves.setdefault(parts[0], parts[1][:600])
    rows = sorted(halves.items(), key=lambda row: zlib.crc32(row[0].encode()))
    first, rest = ([features_of(text) for text in column] for column in zip(*rows, strict=True))
    frequency = torch.zeros(BUCKETS)
    for features in first[HELD_OUT:] + rest[HELD_OUT:]:
        frequency[sorted(set(features))] += 1
    rarity = torch.log((1 + 2 * (len(rows) - HELD_OUT)) / (1 + frequency))
    return Pairs(bags(first[HELD_OUT:]), bags(rest[HELD_OUT:]), bags(first[:HELD_OUT]), bags(rest[:HELD_OUT]), rarity)


def features_of(text: str) -> list[int]:
    """Of each word: itself, and its pieces of four letters."""
    words = re.findall(r"[a-z]+", text.lower())
    pieces = [f"<{word}>"[start : start + 4] for word in words for start in range(len(word) - 1)]
    return [zlib.crc32(item.encode()) % BUCKETS for item in [*words, *pieces]] or [0]


def bags(texts: Sequence[list[int]]) -> Bags:
    lengths = torch.tensor([0] + [len(features) for features in texts[:-1]])
    return Bags(torch.tensor([feature for features in texts for feature in features]), lengths.cumsum(0))


def embedded(model: Encoder, pairs: Pairs) -> Tensor:
    """Similarities, held-out first sentences by held-out rests."""
    model.eval()
    with torch.no_grad():
        return model(pairs.held_out_first) @ model(pairs.held_out_rest).T


def counted_words(pairs: Pairs) -> Tensor:
    def weighted(held_out: Bags) -> Tensor:
        rows = torch.bucketize(torch.arange(len(held_out.features)), held_out.starts, right=True) - 1
        counts = torch.zeros(HELD_OUT, BUCKETS)
        counts.index_put_((rows, held_out.features), torch.ones(len(rows)), accumulate=True)
        return functional.normalize(torch.log1p(counts) * pairs.rarity, dim=1)

    return weighted(pairs.held_out_first) @ weighted(pairs.held_out_rest).T


def recall(similarity: Tensor, best: int) -> float:
    """How often the right one is among the `best` most similar of 400; ties count against it."""
    rank = (similarity >= similarity.diagonal()[:, None]).sum(1)
    return (rank <= best).float().mean().item()


def draw(history: list[dict[str, float]], metrics: dict[str, object], ours: Tensor, counted: Tensor) -> Figure:
    figure = Figure(figsize=(9, 3.6), dpi=80, layout="constrained")
    curve, ranks = figure.subplots(1, 2)
    curve.plot(range(1, len(history) + 1), [row["recall_at_1"] for row in history], label="embeddings")
    curve.axhline(metrics["tf_idf"], linestyle="--", color="grey", label="TF-IDF")
    curve.set(xlabel="epoch", ylabel="recall of 400 at 1", ylim=(0, 1))
    curve.legend(loc="lower right")
    among = [round(math.exp(position * math.log(HELD_OUT) / 30)) for position in range(31)]
    ranks.plot(among, [recall(ours, best) for best in among], label="embeddings")
    ranks.plot(among, [recall(counted, best) for best in among], "--", color="grey", label="TF-IDF")
    ranks.set(xscale="log", xlabel="the right one is among the best", ylabel="share", ylim=(0, 1))
    ranks.legend(loc="lower right")
    return figure


if __name__ == "__main__":
    main()
