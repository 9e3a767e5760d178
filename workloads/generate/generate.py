"""Continues prompts with a trained language model, most likely symbol by symbol. `python generate.py --prompts 64`

`base.safetensors` is the `transformer` workload's. Beside the texts go fingerprints of the last hidden state (after TOPLOC, arXiv 2501.16007): the
largest 16 of its 64 numbers at three places of each text. Whoever has the model checks with one pass over the finished texts that it
was this model, in this precision, that wrote them. Killed and started again, it goes on behind the last prompts that a checkpoint holds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import bpe
import torch
import torg_job
from language_model import CONTEXT, LanguageModel
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

HERE = Path(__file__).resolve().parent
WIDTH, AT_ONCE = 64, 8
PLACES, LARGEST = (15, 31, 47), 16


def main() -> None:
    lines = (HERE / "prompts.txt").read_text().splitlines()
    settings = torg_job.parse_settings(__doc__, prompts=torg_job.Within(64, most=len(lines)))
    job = torg_job.Job(settings)
    vocabulary = bpe.Vocabulary(json.loads((HERE / "vocabulary.json").read_text()))
    model = LanguageModel(len(vocabulary.symbols), WIDTH).eval()
    model.load_state_dict({name: value.float() for name, value in load_file(HERE / "base.safetensors").items()})
    prompts = [vocabulary.encode(line) for line in lines[: settings["prompts"]]]
    answers = {
        "numbers": torch.zeros(len(prompts), CONTEXT, dtype=torch.int32),
        "places": torch.zeros(len(prompts), len(PLACES), LARGEST, dtype=torch.int32),
        "values": torch.zeros(len(prompts), len(PLACES), LARGEST),
    }
    job.track(answers=answers)
    batches = math.ceil(len(prompts) / AT_ONCE)
    for step in job.steps(batches):
        chosen = slice((step - 1) * AT_ONCE, step * AT_ONCE)
        for name, tensor in write(model, prompts[chosen]).items():
            answers[name][chosen] = tensor
        job.report(step, bits_per_character=bits(model, answers["numbers"][: chosen.stop], prompts, vocabulary))
        job.checkpoint(step, due=True)

    save_file({name: tensor.contiguous() for name, tensor in answers.items()}, job.outputs / "answers.safetensors")
    texts = ["".join(vocabulary.symbols[number] for number in row) for row in answers["numbers"].tolist()]
    (job.outputs / "answers.txt").write_text("\n---\n".join(texts) + "\n", encoding="utf-8")
    at_random = torch.randint(
        len(vocabulary.symbols), answers["numbers"].shape, generator=torch.Generator().manual_seed(0)
    )
    for row, prompt in zip(at_random, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    metrics = {
        "bits_per_character": bits(model, answers["numbers"], prompts, vocabulary),
        "at_random": bits(model, at_random, prompts, vocabulary),
        "symbols": sum(CONTEXT - len(prompt) for prompt in prompts),
    }
    draw(answers["values"]).savefig(job.outputs / "plot.png")
    job.finish(None, metrics)


@torch.no_grad()
def write(model: LanguageModel, prompts: list[list[int]]) -> dict[str, Tensor]:
    """The finished texts, and the fingerprints as they came up while they were written."""
    numbers = torch.zeros(len(prompts), CONTEXT, dtype=torch.int64)
    for row, prompt in zip(numbers, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    seen: list[Tensor] = []
    handle = model.norm.register_forward_hook(lambda _module, _inputs, hidden: seen.append(hidden))
    places, values = [], []
    try:
        for place in range(1, CONTEXT):
            logits = model(numbers[:, :place])[:, -1]
            numbers[:, place] = torch.where(place < lengths, numbers[:, place], logits.argmax(1))
            if place - 1 in PLACES:
                largest = seen[-1][:, -1].float().abs().topk(LARGEST).indices.sort(1).values
                places.append(largest)
                values.append(seen[-1][:, -1].float().gather(1, largest))
            seen.clear()
    finally:
        handle.remove()
    stacked = {"places": torch.stack(places, 1).int(), "values": torch.stack(values, 1)}
    return {"numbers": numbers.int(), **stacked}


@torch.no_grad()
def bits(model: LanguageModel, numbers: Tensor, prompts: list[list[int]], vocabulary: bpe.Vocabulary) -> float:
    """Per character of what follows the prompts, by the model itself."""
    numbers, lengths = numbers.long(), torch.tensor(vocabulary.lengths())
    logits = model(numbers[:, :-1])
    nats = functional.cross_entropy(logits.flatten(0, 1), numbers[:, 1:].flatten(), reduction="none").view(
        len(numbers), -1
    )
    begins = torch.tensor([len(prompt) for prompt in prompts[: len(numbers)]])[:, None]
    written = torch.arange(1, CONTEXT)[None] >= begins
    return nats[written].sum().item() / math.log(2) / lengths[numbers[:, 1:][written]].sum().item()


def draw(values: Tensor) -> Figure:
    figure = Figure(figsize=(9, 3.6), dpi=80, layout="constrained")
    axes = figure.subplots()
    for number, place in enumerate(PLACES):
        axes.plot(values[:, number].abs().mean(0).sort(descending=True).values, marker="o", label=f"symbol {place + 1}")
    axes.set(
        xlabel="rank",
        ylabel="size, mean of all texts",
        title="Fingerprints: the largest numbers of the last hidden state",
    )
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
