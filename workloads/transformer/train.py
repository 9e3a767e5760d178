"""A transformer language model of Python's own reference manual. `python train.py --steps 1500`

Learns to predict the next piece of text in the 465,000 characters that `help()` shows for the language's topics; the last tenth is held out.
To beat: the best of classical models here, a 4-gram of characters with Witten-Bell smoothing.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from pydoc_data.topics import topics

import bpe
import language_model
import torch
import torg_job
from matplotlib.figure import Figure
from torch import Tensor

BATCH, RATE, SYMBOLS, ORDER = 16, 4e-3, 512, 4
WIDTHS = torg_job.Within(
    96, most=1024, multiple_of=language_model.HEADS
)  # beyond, a training needs more memory than job.yaml asks for


def main() -> None:
    settings = torg_job.parse_settings(__doc__, steps=1500, width=WIDTHS, seed=0)
    job = torg_job.Job(settings)
    total, quarter = settings["steps"], max(1, settings["steps"] // 10)
    learnt_from, held_out = texts()
    vocabulary = bpe.learn(learnt_from, SYMBOLS)
    device = torg_job.device()
    numbers = torch.tensor(vocabulary.encode(learnt_from), device=device)
    held_out_numbers = torch.tensor(vocabulary.encode(held_out), device=device)
    lengths = torch.tensor(vocabulary.lengths(), device=device)
    torch.manual_seed(settings["seed"])
    model = language_model.LanguageModel(SYMBOLS, settings["width"]).to(device)  # the same first weights everywhere
    optimizer = language_model.optimizer_of(model, RATE)
    chance = torch.Generator().manual_seed(settings["seed"])
    history: list[dict[str, float]] = []
    job.track(model=model, optimizer=optimizer, chance=chance, history=history)

    for step in job.steps(total):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / (0.03 * total)) * (1 - (step - 1) / total)
        loss = language_model.loss_of(model, *language_model.sample(numbers, BATCH, chance))
        language_model.descend(model, optimizer, loss)
        is_due = step % quarter == 0
        if is_due:
            held_out_bits = language_model.bits_per_character(model, held_out_numbers, lengths)
            history.append({"step": step, "loss": loss.item(), "bits_per_character": held_out_bits})
            job.report(step, loss=loss.item(), bits_per_character=held_out_bits)
        job.checkpoint(step, due=is_due)

    metrics = {
        "bits_per_character": language_model.bits_per_character(model, held_out_numbers, lengths),
        "four_gram": four_gram_bits(bpe.plain(learnt_from), bpe.plain(held_out)),
        "symbols": SYMBOLS,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "says": continued(model, vocabulary, "The following", chance),
        "history": history,
    }
    (job.outputs / "vocabulary.json").write_text(json.dumps(vocabulary.merges))
    draw(history, metrics).savefig(job.outputs / "plot.png")
    job.finish(model.state_dict(), metrics)


def texts() -> tuple[str, str]:
    """Nothing of the held-out tenth is seen before the end, by the vocabulary neither."""
    whole = "\n\n".join(topics[name] for name in sorted(topics))
    cut = len(whole) * 9 // 10
    return whole[:cut], whole[cut:]


def four_gram_bits(learnt_from: str, held_out: str) -> float:
    """Bits per character of interpolated n-grams up to four characters of context, on the first 20,000 held-out characters."""
    followers: list[defaultdict[str, Counter[str]]] = [defaultdict(Counter) for _ in range(ORDER + 1)]
    for order, table in enumerate(followers):
        for place in range(order, len(learnt_from)):
            table[learnt_from[place - order : place]][learnt_from[place]] += 1
    seen = [{context: (sum(found.values()), len(found)) for context, found in table.items()} for table in followers]
    bits, text = 0.0, held_out[: 20_000 + ORDER]
    for place in range(ORDER, len(text)):
        chance = 1 / len(bpe.ALPHABET)
        for order, table in enumerate(followers):
            context = text[place - order : place]
            if context in table:
                total, kinds = seen[order][context]
                chance = (table[context][text[place]] + kinds * chance) / (total + kinds)
        bits -= math.log2(chance)
    return bits / (len(text) - ORDER)


@torch.no_grad()
def continued(
    model: language_model.LanguageModel, vocabulary: bpe.Vocabulary, prompt: str, chance: torch.Generator
) -> str:
    numbers: Tensor = torch.tensor([vocabulary.encode(prompt)])
    for _ in range(60):
        seen = numbers[:, -language_model.CONTEXT :].to(model.embedding.weight.device)
        probabilities = torch.softmax(model(seen)[0, -1] / 0.7, dim=0).cpu()
        numbers = torch.cat([numbers, torch.multinomial(probabilities, 1, generator=chance)[None]], dim=1)
    return "".join(vocabulary.symbols[number] for number in numbers[0].tolist())


def draw(history: list[dict[str, float]], metrics: dict[str, object]) -> Figure:
    figure = Figure(figsize=(9, 3.6), dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [row["step"] for row in history],
        [row["bits_per_character"] for row in history],
        marker="o",
        label="transformer",
    )
    axes.axhline(metrics["four_gram"], linestyle="--", color="grey", label="4-gram of characters")
    axes.set(xlabel="step", ylabel="held-out bits per character")
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
