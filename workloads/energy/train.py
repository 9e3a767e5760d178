"""Forecasts tomorrow's demand for electricity, half hour by half hour: England and Wales, summer of 2000. `python train.py --epochs 60`

A small net reads the last week (336 half hours) and corrects the plainest good guess, "like a week ago", for the 48 half hours to come.
It has to beat that guess and a ridge regression on the same inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torg_job
from matplotlib.figure import Figure
from pmdarima.datasets import load_taylor
from torch import Tensor, nn
from torch.nn import functional

DAY, WEEK, HELD_OUT_DAYS, BATCH = 48, 7 * 48, 14, 64
RIDGE = 10.0


@dataclass(frozen=True)
class Demand:
    """`inputs` are N x (336 + 7): the week before a day and which day it is; `targets` N x 48, its demand less that of a week ago.
    In units of the learning weeks' deviation. Learning days may start at any half hour, held-out days at midnight."""

    inputs: Tensor
    targets: Tensor
    held_out_inputs: Tensor
    held_out_targets: Tensor
    held_out_weekly: Tensor  # what a week ago would say, for the held-out days
    mean: float
    deviation: float


def main() -> None:
    settings = torg_job.parse_settings(__doc__, epochs=60, seed=0)
    job = torg_job.Job(settings)
    demand = load()
    torch.manual_seed(settings["seed"])
    model = nn.Sequential(nn.Linear(WEEK + 7, 128), nn.GELU(), nn.Dropout(0.2), nn.Linear(128, DAY))
    nn.init.zeros_(model[3].weight)  # begins as the weekly guess
    nn.init.zeros_(model[3].bias)
    batches = torg_job.Batches(len(demand.inputs), BATCH, seed=settings["seed"])
    total = settings["epochs"] * batches.per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=total)
    history: list[dict[str, float]] = []
    job.track(model=model, optimizer=optimizer, schedule=schedule, batches=batches, history=history)

    for step in job.steps(total):
        chosen = batches.next()
        model.train()
        loss = functional.l1_loss(model(demand.inputs[chosen]), demand.targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        epoch_is_over = step % batches.per_epoch == 0
        if epoch_is_over:
            history.append({"loss": loss.item(), "mape_percent": mape_percent(demand, corrections(model, demand))})
            job.report(step, **history[-1])
        job.checkpoint(step, due=epoch_is_over)

    predicted = corrections(model, demand)
    metrics = {
        "mape_percent": mape_percent(demand, predicted),
        "ridge_regression": mape_percent(demand, ridge_regression(demand)),
        "like_a_week_ago": mape_percent(demand, torch.zeros_like(predicted)),
        "held_out_days": HELD_OUT_DAYS,
        "history": history,
    }
    draw(history, metrics, demand, predicted).savefig(job.outputs / "plot.png")
    job.finish(model.state_dict(), metrics)


def load() -> Demand:
    """Twelve weeks, of which the last two are held out, as they would be in use: forecast at each midnight for the day to come."""
    megawatts = torch.tensor(load_taylor(), dtype=torch.float64)
    cut = len(megawatts) - HELD_OUT_DAYS * DAY
    mean, deviation = megawatts[:cut].mean().item(), megawatts[:cut].std().item()
    scaled = ((megawatts - mean) / deviation).float()
    starts = torch.arange(WEEK, cut - DAY + 1)
    held_out_starts = torch.arange(cut, len(megawatts), DAY)
    inputs, targets, _ = _examples(scaled, starts)
    held_out_inputs, held_out_targets, weekly = _examples(scaled, held_out_starts)
    return Demand(inputs, targets, held_out_inputs, held_out_targets, weekly, mean, deviation)


def _examples(scaled: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    before = scaled[starts[:, None] + torch.arange(-WEEK, 0)]
    weekly = before[:, :DAY]
    weekday = functional.one_hot(starts // DAY % 7, 7).float()
    return torch.cat([before, weekday], dim=1), scaled[starts[:, None] + torch.arange(DAY)] - weekly, weekly


def corrections(model: nn.Module, demand: Demand) -> Tensor:
    model.eval()
    with torch.no_grad():
        predicted: Tensor = model(demand.held_out_inputs)
    return predicted


def ridge_regression(demand: Demand) -> Tensor:
    inputs = functional.pad(demand.inputs, (0, 1), value=1.0).double()
    penalty = RIDGE * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ demand.targets.double())
    return (functional.pad(demand.held_out_inputs, (0, 1), value=1.0).double() @ weights).float()


def megawatts_of(demand: Demand, corrected: Tensor) -> Tensor:
    return (demand.held_out_weekly + corrected).double() * demand.deviation + demand.mean


def mape_percent(demand: Demand, corrected: Tensor) -> float:
    """Mean absolute error in percent of the true demand, over all held-out half hours."""
    truth, forecast = megawatts_of(demand, demand.held_out_targets), megawatts_of(demand, corrected)
    return ((forecast - truth).abs() / truth).mean().item() * 100


def draw(history: list[dict[str, float]], metrics: dict[str, object], demand: Demand, predicted: Tensor) -> Figure:
    figure = Figure(figsize=(9, 3.6), dpi=80, layout="constrained")
    curve, days = figure.subplots(1, 2, width_ratios=(1, 1.6))
    curve.plot(range(1, len(history) + 1), [row["mape_percent"] for row in history], label="net")
    for name, style in (("ridge_regression", "--"), ("like_a_week_ago", ":")):
        curve.axhline(metrics[name], linestyle=style, color="grey", label=name.replace("_", " "))
    curve.set(xlabel="epoch", ylabel="held-out error, %")
    curve.legend()
    hours = np.arange(HELD_OUT_DAYS * DAY) / 48
    days.plot(hours, megawatts_of(demand, demand.held_out_targets).flatten() / 1e3, color="black", label="measured")
    days.plot(hours, megawatts_of(demand, predicted).flatten() / 1e3, label="forecast at midnight")
    days.set(xlabel="held-out day", ylabel="demand, GW")
    days.legend(loc="lower left")
    return figure


if __name__ == "__main__":
    main()
