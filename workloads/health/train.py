"""Tells malignant from benign breast tumours by 30 measurements of cell nuclei: Wisconsin, 569 patients. `python train.py --epochs 20`

A table, a small net, and the question that matters in a clinic: how many malignant tumours are missed at a threshold chosen beforehand?
It is not a medical device. Logistic regression does as well on this table, and is reported beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torg_job
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

HELD_OUT, BATCH, THRESHOLD = 171, 32, 0.3  # below one half: a missed tumour costs more than a second look


@dataclass(frozen=True)
class Patients:
    """Measurements are standardised by those to learn from; label 1 is malignant."""

    measurements: Tensor
    labels: Tensor
    held_out_measurements: Tensor
    held_out_labels: Tensor


def main() -> None:
    settings = torg_job.parse_settings(__doc__, epochs=20, seed=0)
    job = torg_job.Job(settings)
    patients = load()
    torch.manual_seed(settings["seed"])
    model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1))
    batches = torg_job.Batches(len(patients.labels), BATCH, seed=settings["seed"])
    total = settings["epochs"] * batches.per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=3e-2)
    history: list[dict[str, float]] = []
    job.track(model=model, optimizer=optimizer, batches=batches, history=history)

    for step in job.steps(total):
        chosen = batches.next()
        model.train()
        logits = model(patients.measurements[chosen]).squeeze(1)
        loss = functional.binary_cross_entropy_with_logits(logits, patients.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        epoch_is_over = step % batches.per_epoch == 0
        if epoch_is_over:
            history.append({"loss": loss.item(), "auc": auc(patients, risk(model, patients))})
            job.report(step, **history[-1])
        job.checkpoint(step, due=step % (2 * batches.per_epoch) == 0)

    risks = risk(model, patients)
    malignant = patients.held_out_labels == 1
    metrics = {
        "auc": auc(patients, risks),
        "logistic_regression": auc(patients, logistic_regression(patients)),
        "best_single_measurement": best_single_measurement(patients),
        "sensitivity": (risks[malignant] >= THRESHOLD).float().mean().item(),
        "specificity": (risks[~malignant] < THRESHOLD).float().mean().item(),
        "threshold": THRESHOLD,
        "held_out": HELD_OUT,
        "history": history,
    }
    draw(history, metrics, patients, risks).savefig(job.outputs / "plot.png")
    job.finish(model.state_dict(), metrics)


def load() -> Patients:
    measurements, benign = load_breast_cancer(return_X_y=True)
    learn_x, held_x, learn_y, held_y = train_test_split(
        measurements, 1 - benign, test_size=HELD_OUT, stratify=benign, random_state=0
    )
    mean, deviation = learn_x.mean(0), learn_x.std(0)
    return Patients(
        torch.tensor((learn_x - mean) / deviation, dtype=torch.float32),
        torch.tensor(learn_y, dtype=torch.float32),
        torch.tensor((held_x - mean) / deviation, dtype=torch.float32),
        torch.tensor(held_y, dtype=torch.float32),
    )


def risk(model: nn.Module, patients: Patients) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.sigmoid(model(patients.held_out_measurements).squeeze(1))


def auc(patients: Patients, risks: Tensor) -> float:
    """The probability that a malignant tumour is ranked above a benign one."""
    return float(roc_auc_score(patients.held_out_labels, risks))


def logistic_regression(patients: Patients) -> Tensor:
    fitted = LogisticRegression(max_iter=1000).fit(patients.measurements, patients.labels)
    return torch.tensor(fitted.predict_proba(patients.held_out_measurements)[:, 1])


def best_single_measurement(patients: Patients) -> float:
    """The measurement is chosen on the patients to learn from."""
    columns = range(patients.measurements.shape[1])
    best = max(columns, key=lambda column: roc_auc_score(patients.labels, patients.measurements[:, column]))
    return auc(patients, patients.held_out_measurements[:, best])


def draw(history: list[dict[str, float]], metrics: dict[str, object], patients: Patients, risks: Tensor) -> Figure:
    figure = Figure(figsize=(9, 3.6), dpi=80, layout="constrained")
    curve, trade = figure.subplots(1, 2)
    curve.plot(range(1, len(history) + 1), [row["auc"] for row in history], label="net")
    for name, style in (("logistic_regression", "--"), ("best_single_measurement", ":")):
        curve.axhline(metrics[name], linestyle=style, color="grey", label=name.replace("_", " "))
    curve.set(xlabel="epoch", ylabel="held-out area under the ROC curve")
    curve.legend(loc="lower right")
    false_alarms, found, _ = roc_curve(patients.held_out_labels, risks)
    trade.step(false_alarms, found, where="post")
    trade.plot(1 - metrics["specificity"], metrics["sensitivity"], "o", label=f"risk of {THRESHOLD} or more")
    trade.set(xlabel="benign tumours called malignant", ylabel="malignant tumours found")
    trade.legend(loc="lower right")
    return figure


if __name__ == "__main__":
    main()
