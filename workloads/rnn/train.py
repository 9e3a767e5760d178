"""A recurrent net forecasts carbon dioxide: next week's level at Mauna Loa. `python train.py --epochs 20`

The series is differenced; a GRU reads two years of weekly changes and predicts the next one. What it has to beat is a linear
autoregression over a year, and the guess that nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torg_job
from matplotlib.figure import Figure
from numpy.typing import NDArray
from statsmodels.datasets import co2
from torch import Tensor, nn
from torch.nn import functional

HISTORY_WEEKS, HELD_OUT_WEEKS, AUTOREGRESSION_WEEKS, BATCH = 104, 200, 52, 64


@dataclass(frozen=True)
class Series:
    """`level` is ppm of CO2 by week. `windows` are N x 104 standardised changes, `next_changes` what followed each of them; the
    last 200 are held out. Mean and deviation are of the weeks before."""

    level: NDArray[np.float64]
    mean: float
    deviation: float
    windows: Tensor
    next_changes: Tensor


class Forecaster(nn.Module):
    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.gru = nn.GRU(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, windows: Tensor) -> Tensor:
        states, _ = self.gru(windows.unsqueeze(2))
        changes: Tensor = self.head(states[:, -1]).squeeze(1)
        return changes


def main() -> None:
    settings = torg_job.parse_settings(__doc__, epochs=20, seed=0)
    job = torg_job.Job(settings)
    series = load()
    learn_from = len(series.windows) - HELD_OUT_WEEKS
    torch.manual_seed(settings["seed"])
    model = Forecaster()
    batches = torg_job.Batches(learn_from, BATCH, seed=settings["seed"])
    total = settings["epochs"] * batches.per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    history: list[dict[str, float]] = []
    job.track(model=model, optimizer=optimizer, schedule=schedule, batches=batches, history=history)

    for step in job.steps(total):
        chosen = batches.next()
        loss = functional.mse_loss(model(series.windows[chosen]), series.next_changes[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        epoch_is_over = step % batches.per_epoch == 0
        if epoch_is_over:
            history.append({"loss": loss.item(), "rmse": rmse(series, forecast(model, series))})
            job.report(step, **history[-1])
        job.checkpoint(step, due=epoch_is_over)

    predicted = forecast(model, series)
    metrics = {
        "rmse": rmse(series, predicted),
        "autoregression": rmse(series, autoregression(series)),
        "no_change": rmse(series, series.level[-HELD_OUT_WEEKS - 1 : -1]),
        "unit": "ppm",
        "held_out_weeks": HELD_OUT_WEEKS,
        "history": history,
    }
    draw(history, metrics, series, predicted).savefig(job.outputs / "plot.png")
    job.finish(model.state_dict(), metrics)


def load() -> Series:
    """Weekly means since 1958; the weeks without a measurement are filled linearly."""
    level = co2.load_pandas().data["co2"].interpolate().to_numpy(np.float64)
    changes = np.diff(level, prepend=level[0])
    mean, deviation = changes[:-HELD_OUT_WEEKS].mean(), changes[:-HELD_OUT_WEEKS].std()
    scaled = torch.tensor((changes - mean) / deviation, dtype=torch.float32)
    windows = scaled.unfold(0, HISTORY_WEEKS, 1)[:-1].contiguous()
    return Series(level, float(mean), float(deviation), windows, scaled[HISTORY_WEEKS:])


def forecast(model: Forecaster, series: Series) -> NDArray[np.float64]:
    """The level of each held-out week, from the true weeks before it."""
    with torch.no_grad():
        changes = model(series.windows[-HELD_OUT_WEEKS:]).double().numpy() * series.deviation + series.mean
    return series.level[-HELD_OUT_WEEKS - 1 : -1] + changes


def autoregression(series: Series) -> NDArray[np.float64]:
    """Least squares on the last 52 changes, fitted on the weeks before the held-out ones."""
    changes = np.diff(series.level)
    rows = np.lib.stride_tricks.sliding_window_view(changes, AUTOREGRESSION_WEEKS)[:-1]
    inputs = np.column_stack([np.ones(len(rows)), rows])
    outputs = changes[AUTOREGRESSION_WEEKS:]
    weights, *_ = np.linalg.lstsq(inputs[:-HELD_OUT_WEEKS], outputs[:-HELD_OUT_WEEKS], rcond=None)
    predicted: NDArray[np.float64] = series.level[-HELD_OUT_WEEKS - 1 : -1] + inputs[-HELD_OUT_WEEKS:] @ weights
    return predicted


def rmse(series: Series, predicted: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean((predicted - series.level[-HELD_OUT_WEEKS:]) ** 2)))


def draw(
    history: list[dict[str, float]], metrics: dict[str, object], series: Series, predicted: NDArray[np.float64]
) -> Figure:
    figure = Figure(figsize=(9, 3.6), dpi=80, layout="constrained")
    curve, weeks = figure.subplots(1, 2, width_ratios=(1, 1.6))
    curve.plot(range(1, len(history) + 1), [row["rmse"] for row in history], label="GRU")
    for name, style in (("autoregression", "--"), ("no_change", ":")):
        curve.axhline(metrics[name], linestyle=style, color="grey", label=name.replace("_", " "))
    curve.set(xlabel="epoch", ylabel="held-out RMSE, ppm")
    curve.legend()
    weeks.plot(series.level[-HELD_OUT_WEEKS:], color="black", linewidth=1, label="measured")
    weeks.plot(predicted, linewidth=1, label="forecast of the week before")
    weeks.set(xlabel="held-out week", ylabel="CO₂, ppm")
    weeks.legend()
    return figure


if __name__ == "__main__":
    main()
