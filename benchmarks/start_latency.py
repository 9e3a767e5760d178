"""From a lease's grant to the first line of its output, with a warm image: python -m benchmarks.start_latency [--quick]

A real market of real processes and the sandbox executor; the times are the marketplace's own, as its events show them, so the way to
the node and back counts. The peer is bare bubblewrap on the same machine in the same run, alternating with the jobs: the same command
in fresh namespaces over the host's read-only system, timed from the call to its first byte.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from benchmarks.report import Figure, conclude
from tests.support.small_market import running_market, submit
from torg.client import AsyncClient
from torg_protocol.api import JobEvent

COMMAND = ["echo", "ready"]
BARE = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
BARE += ["--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"]
BARE += ["--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev"]
STEPS = {
    "preparing": "accepted by the node",
    "running": "container started",
    "log": "first line is with the marketplace",
}
MAX_OVER_BARE_MS = 60.0


async def measure(rounds: int) -> tuple[list[dict[str, int]], list[float]]:
    jobs, bare = [], []
    with tempfile.TemporaryDirectory(prefix="torg-start-latency-") as folder:
        async with running_market(Path(folder)) as market, market.client() as client:
            await one_job(client)  # warms image, imports and caches
            for _ in range(rounds):
                bare.append(await asyncio.to_thread(bare_ms))
                jobs.append(await one_job(client))
    return jobs, bare


async def one_job(client: AsyncClient) -> dict[str, int]:
    """Milliseconds from the grant to each step."""
    job = await submit(client, COMMAND)
    at_ms: dict[str, int] = {}
    async for event in client.follow(job.job_id):
        at_ms.setdefault(step_of(event), event.at_ms)
    return {step: at_ms[step] - at_ms["granted"] for step in STEPS}


def step_of(event: JobEvent) -> str:
    return str(event.data["state"]) if event.kind == "lease" else event.kind


def bare_ms() -> float:
    began = time.perf_counter()
    with subprocess.Popen([*BARE, *COMMAND], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        took_ms = (time.perf_counter() - began) * 1000
    if first != b"ready\n":
        raise RuntimeError(f"bare bubblewrap did not run the command: {first!r}")
    return took_ms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="15 jobs instead of 60")
    jobs, bare = asyncio.run(measure(15 if parser.parse_args().quick else 60))
    figures = []
    for step, meaning in STEPS.items():
        times = [job[step] for job in jobs]
        figures += [Figure(f"p50: {meaning}", median(times), "ms"), Figure(f"p95: {meaning}", p95(times), "ms")]
    figures += [Figure("p50: bare bubblewrap", median(bare), "ms"), Figure("p95: bare bubblewrap", p95(bare), "ms")]
    over = median(job["log"] - alone for job, alone in zip(jobs, bare, strict=True))
    figures.append(Figure("p50: first line over bare bubblewrap", over, "ms", MAX_OVER_BARE_MS))
    return conclude("start_latency", figures, notes=["Docker's share is not measured by this run."])


def p95(values: list[int] | list[float]) -> float:
    return quantiles(values, n=20)[-1]


if __name__ == "__main__":
    sys.exit(main())
