"""Where the catalogue's target comes from: what honest models reach under the marketplace's evaluation, and what cheats reach.

`python calibrate.py` prints the table of README.md (about ten minutes on one core). Uses the training and the evaluator as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

import evaluate
import numpy as np
import torch
from data import Digits, load
from safetensors import deserialize
from safetensors.torch import save
from training import Settings, Training

FIRST_SECRET_SEED = 7_000  # the marketplace draws its own


@dataclass(frozen=True)
class Case:
    name: str
    honest: bool
    epochs: int
    choose: Callable[[Digits], Digits] = lambda digits: digits


def first_tenth(digits: Digits) -> Digits:
    return replace(digits, images=digits.images[:144], labels=digits.labels[:144])


def held_out_only(digits: Digits) -> Digits:
    return replace(digits, images=digits.held_out_images, labels=digits.held_out_labels)


CASES = (
    Case("honest, 30 epochs", True, 30),
    Case("honest, 60 epochs", True, 60),
    Case("honest, 90 epochs", True, 90),
    Case("honest, 120 epochs", True, 120),
    Case("honest but short, 8 epochs", True, 8),
    Case("untrained", False, 0),
    Case("1 epoch", False, 1),
    Case("2 epochs", False, 2),
    Case("3 epochs", False, 3),
    Case("10 % of the data, 30 epochs", False, 30, first_tenth),
    Case("10 % of the data, 300 epochs (as many steps as 30 of all)", False, 300, first_tenth),
    Case("trained on the public held-out digits only, 30 epochs", False, 30, held_out_only),
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=3, help="models per case")
    options.add_argument("--evaluations", type=int, default=6, help="of each model, with different secret seeds")
    options.add_argument("--case", action="append", choices=[case.name for case in CASES], help="default: all")
    asked = options.parse_args()
    seeds, cases = range(asked.seeds), [case for case in CASES if not asked.case or case.name in asked.case]
    secret_seeds = range(FIRST_SECRET_SEED, FIRST_SECRET_SEED + asked.evaluations)
    torch.set_num_threads(1)
    digits = load()
    print("| model | clean: lowest | varied: lowest | varied: mean | varied: highest | training, s |")
    print("|---|---|---|---|---|---|")
    for case in cases:
        trained = [train(case, seed, digits) for seed in seeds]
        answers = [evaluate.evaluate(model, secret) for model, _ in trained for secret in secret_seeds]
        varied = [answer["accuracy"] for answer in answers]
        clean = min(answer["clean_accuracy"] for answer in answers)
        seconds = np.mean([seconds for _, seconds in trained])
        name = f"**{case.name}**" if case.honest else case.name
        row = f"{clean:.4f} | {min(varied):.4f} | {np.mean(varied):.4f} | {max(varied):.4f} | {seconds:.1f}"
        print(f"| {name} | {row} |", flush=True)


def train(case: Case, seed: int, digits: Digits) -> tuple[dict[str, evaluate.Floats], float]:
    """The model as the evaluator reads it, and the seconds it took."""
    training = Training(Settings(epochs=max(case.epochs, 1), seed=seed), case.choose(digits))
    if case.epochs:
        training.run(lambda: False)
    tensors = dict(deserialize(save(training.model.weights())))
    model = {name: np.frombuffer(tensors[name]["data"], "<f4").reshape(evaluate.SHAPES[name]) for name in tensors}
    return model, training.seconds


if __name__ == "__main__":
    main()
