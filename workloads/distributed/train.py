"""Trains a convolutional net on handwritten digits on several nodes at once: `python train.py --epochs 12`

Data-parallel: each member of a gang holds the whole net, works out the gradients of its share of each batch, and adds up what all have found
(gloo, over the gang's own network). The batches are those of one node alone, so the result is too, but for the order in which numbers are
added. Without a gang it is that one node.

Under torchrun (elastic.yaml) it goes on when a node is lost: torchrun starts the script again on those that are left, and all begin at
rank 0's newest checkpoint.
"""

from __future__ import annotations

import os
import shutil

import torch
import torch.distributed as dist
import torg_job
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

HELD_OUT, BATCH = 360, 64


def main() -> None:
    settings = torg_job.parse_settings(__doc__, epochs=12, seed=0)
    job = torg_job.Job(settings)
    size = join()
    images, labels, held_out_images, held_out_labels = load()
    torch.manual_seed(settings["seed"])  # the same net everywhere
    model = net()
    batches = torg_job.Batches(len(labels), BATCH, seed=settings["seed"])  # the same order everywhere
    total = settings["epochs"] * batches.per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    history: list[dict[str, float]] = []
    job.track(model=model, optimizer=optimizer, batches=batches, history=history)
    begin_where_rank_0_does(job)

    for step in job.steps(total):
        chosen = batches.next()
        mine = chosen[rank() :: size]
        loss = functional.cross_entropy(model(images[mine]), labels[mine], reduction="sum") / len(chosen)
        optimizer.zero_grad()
        loss.backward()
        loss = add_up(model, loss)
        optimizer.step()
        if step % batches.per_epoch == 0:
            history.append({"loss": loss.item(), "accuracy": accuracy(model, held_out_images, held_out_labels)})
            job.report(step, **history[-1])
        job.checkpoint(step, due=step % batches.per_epoch == 0)

    metrics = {"accuracy": history[-1]["accuracy"], "nodes": size, "held_out": HELD_OUT, "history": history}
    draw(history).savefig(job.outputs / "plot.png")
    job.finish(model.state_dict(), metrics)


def join() -> int:
    """Meets the other members, when there are any; their number."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    return dist.get_world_size() if dist.is_initialized() else 1


def begin_where_rank_0_does(job: torg_job.Job) -> None:
    """Its newest checkpoint replaces whatever the others have: one that was just killed may be a checkpoint behind, a new one has none."""
    if not dist.is_initialized():
        return
    newest = sorted(job.checkpoints.glob("step-*"))[-1:] if rank() == 0 else []
    shared = [{path.name: {file.name: file.read_bytes() for file in path.iterdir()} for path in newest}]
    dist.broadcast_object_list(shared, src=0)
    if rank() == 0:
        return
    for old in job.checkpoints.glob("step-*"):
        shutil.rmtree(old)
    for name, files in shared[0].items():
        (job.checkpoints / name).mkdir()
        for file_name, content in files.items():
            (job.checkpoints / name / file_name).write_bytes(content)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def add_up(model: nn.Module, loss: Tensor) -> Tensor:
    """Gradients and loss of all shares, in one message."""
    if not dist.is_initialized():
        return loss.detach()
    gradients = [parameter.grad for parameter in model.parameters()]
    message = torch.cat([gradient.flatten() for gradient in gradients] + [loss.detach().reshape(1)])
    dist.all_reduce(message)
    start = 0
    for gradient in gradients:
        gradient.copy_(message[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
    return message[-1]


def net() -> nn.Module:
    """Its norms are of each image by itself: of a batch they would differ with the number of nodes."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 2 * 2, 10)),
    )


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images are N x 1 x 8 x 8 in [0, 1], as scikit-learn ships them; 360 are held out."""
    pixels, labels = load_digits(return_X_y=True)
    learn_x, held_x, learn_y, held_y = train_test_split(
        pixels / 16.0, labels, test_size=HELD_OUT, stratify=labels, random_state=0
    )
    learn, held = (torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) for x in (learn_x, held_x))
    return learn, torch.tensor(learn_y), held, torch.tensor(held_y)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def draw(history: list[dict[str, float]]) -> Figure:
    figure = Figure(figsize=(6, 3.6), dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(history) + 1), [1 - row["accuracy"] for row in history], marker="o")
    axes.set(xlabel="epoch", ylabel="held-out digits that are misread", yscale="log")
    return figure


if __name__ == "__main__":
    main()
