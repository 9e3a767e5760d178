"""What verification by replay costs: python -m benchmarks.verification [--quick] [--epochs N] [NAME]

A catalogue training with all its checkpoints (default: rnn, 400 epochs, which is still a short job; quick: 20). Commitment: packing and digesting every checkpoint, over the
training. Replay: one segment by the marketplace's own sandbox, everything included, over the whole job in the same sandbox. The share
without what each container start and import takes is printed too: that part does not grow with the job.

A job of 20 epochs takes little longer than its start, so one segment is a fifth of it however cheap replays are. The target is of jobs: the quick form
measures the work of an epoch and a replay on 20, and computes from them their share of the 400 that the full form runs; every epoch is the same work.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.report import Figure, conclude
from tests.support.trained import Trained, train
from tests.support.workload_runs import NAMES
from torg_marketplace.rules.replay import Segment
from torg_marketplace.workers.replayer import SandboxReplayer

MOST_COMMITMENT, MOST_REPLAY = 2.0, 5.0  # percent of the job
EPOCHS, QUICK_EPOCHS = 400, 20
LONGEST_S = 7_200.0  # of the whole job, on a busy machine


async def measure(trained: Trained, looked_at: int) -> tuple[float, list[float], float]:
    """Seconds of the whole job, of each segment replayed, and of a start that does nothing but import and finish."""
    replayer, segments = SandboxReplayer(trained.blobs, timeout_s=LONGEST_S), trained.segments
    whole_s = await timed(replayer, trained, Segment(0, None, None))
    start_s = await timed(replayer, trained, segments[-1])  # from the last checkpoint to the outputs
    step = max((len(segments) - 2) // looked_at, 1)
    return whole_s, [await timed(replayer, trained, segment) for segment in segments[1:-1:step]], start_s


async def timed(replayer: SandboxReplayer, trained: Trained, segment: Segment) -> float:
    began = time.perf_counter()
    found = await replayer.replay(trained.spec, segment, trained.model)
    took_s = time.perf_counter() - began
    if not found.bit_equal:
        raise RuntimeError(f"{segment.words} came out differently: {found}")
    return took_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    parser.add_argument("--epochs", type=int, help=f"default: {EPOCHS}; with --quick {QUICK_EPOCHS}")
    parser.add_argument("name", nargs="?", default="rnn", choices=NAMES)
    arguments = parser.parse_args()
    epochs = arguments.epochs or (QUICK_EPOCHS if arguments.quick else EPOCHS)
    with tempfile.TemporaryDirectory(prefix="torg-verification-") as folder:
        print(f"{arguments.name}, {epochs} epochs ...", flush=True)
        trained = train(arguments.name, ["--epochs", str(epochs)], Path(folder))
        print(f"{len(trained.segments)} segments, replaying some ...", flush=True)
        whole_s, segments_s, start_s = asyncio.run(measure(trained, 2 if arguments.quick else 4))
    one_s = median(segments_s)
    work_s = max(whole_s - start_s, 1e-9)
    bound = None if arguments.quick else MOST_REPLAY
    figures = [
        Figure("the whole job in the sandbox", whole_s, "s"),
        Figure(
            "commitment: packing and digesting all checkpoints", 100 * trained.commit_s / whole_s, "%", MOST_COMMITMENT
        ),
        Figure("replay of one segment, everything included", 100 * one_s / whole_s, "%", bound),
        Figure("replay of one segment without start and imports", 100 * max(one_s - start_s, 0.0) / work_s, "%"),
        Figure("start, imports and evaluation alone", start_s, "s"),
    ]
    if arguments.quick:
        share = 100 * one_s / (start_s + EPOCHS * work_s / epochs)
        figures.append(Figure(f"the same of a job of {EPOCHS} epochs, computed", share, "%", MOST_REPLAY))
    return conclude("verification", figures, notes=[f"{len(trained.segments)} segments of one epoch; all bit for bit."])


if __name__ == "__main__":
    sys.exit(main())
