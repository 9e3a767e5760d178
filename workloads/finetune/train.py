"""Goes on from a trained language model, on another kind of text. `python train.py --steps 400`

`base.safetensors` was trained on Python's reference manual (workload `transformer`, --width 64 --steps 1000). Here it learns the docstrings
of the standard library. Beside it, on the same batches, a model learns that begins with nothing: is the base worth its bytes?
"""

from __future__ import annotations

import json
from pathlib import Path

import bpe
import language_model
import torch
import torg_job
from docstrings import read_docstrings
from matplotlib.figure import Figure
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
WIDTH, BATCH, HELD_OUT_EVERY, EVALUATED = 64, 16, 10, 30_000
RATES = {"tuned": 1.5e-3, "from_scratch": 4e-3}  # a new model needs the larger one


def main() -> None:
    settings = torg_job.parse_settings(__doc__, steps=400, seed=0)
    job = torg_job.Job(settings)
    total, eighth = settings["steps"], max(1, settings["steps"] // 8)
    vocabulary = bpe.Vocabulary(json.loads((HERE / "vocabulary.json").read_text()))
    numbers, held_out = (torch.tensor(vocabulary.encode(text)) for text in texts())
    held_out, lengths = held_out[:EVALUATED], torch.tensor(vocabulary.lengths())
    torch.manual_seed(settings["seed"])
    models = {name: language_model.LanguageModel(len(vocabulary.symbols), WIDTH) for name in RATES}
    models["tuned"].load_state_dict(
        {name: value.float() for name, value in load_file(HERE / "base.safetensors").items()}
    )
    before = language_model.bits_per_character(models["tuned"], held_out, lengths)
    optimizers = {name: language_model.optimizer_of(model, RATES[name]) for name, model in models.items()}
    chance = torch.Generator().manual_seed(settings["seed"])
    history: list[dict[str, float]] = []
    job.track(**models, **{f"optimizer_{name}": optimizer for name, optimizer in optimizers.items()})
    job.track(chance=chance, history=history)

    for step in job.steps(total):
        inputs, targets = language_model.sample(numbers, BATCH, chance)
        for name, model in models.items():
            for group in optimizers[name].param_groups:
                group["lr"] = RATES[name] * min(1.0, step / (0.05 * total)) * (1 - (step - 1) / total)
            language_model.descend(model, optimizers[name], language_model.loss_of(model, inputs, targets))
        is_due = step % eighth == 0
        if is_due:
            bits = {name: language_model.bits_per_character(model, held_out, lengths) for name, model in models.items()}
            history.append({"step": step, **bits})
            job.report(step, **bits)
        job.checkpoint(step, due=is_due)

    metrics = {
        "bits_per_character": language_model.bits_per_character(models["tuned"], held_out, lengths),
        "from_scratch": language_model.bits_per_character(models["from_scratch"], held_out, lengths),
        "before": before,
        "history": history,
    }
    draw(history, before).savefig(job.outputs / "plot.png")
    job.finish(models["tuned"].state_dict(), metrics)


def texts() -> tuple[str, str]:
    """Every tenth docstring is held out."""
    documents = [document.text for document in read_docstrings()]
    kept = [text for index, text in enumerate(documents) if index % HELD_OUT_EVERY]
    return "\n\n".join(kept), "\n\n".join(documents[::HELD_OUT_EVERY])


def draw(history: list[dict[str, float]], before: float) -> Figure:
    figure = Figure(figsize=(9, 3.6), dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.axhline(before, linestyle=":", color="grey", label="the base as it came")
    for name, label in (("from_scratch", "begun with nothing"), ("tuned", "fine-tuned")):
        axes.plot([row["step"] for row in history], [row[name] for row in history], marker="o", label=label)
    axes.set(xlabel="step", ylabel="held-out bits per character of docstrings")
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
