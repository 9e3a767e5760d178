"""From a lease's grant to the first line of its output, with a warm image: python -m benchmarks.start_latency [--quick] [--docker]

A real market of real processes and the sandbox executor (with --docker: that of a private dockerd); the times are the marketplace's own, as its events show them, so the way to
the node and back counts. The peer is bare bubblewrap on the same machine in the same run, alternating with the jobs: the same command
in fresh namespaces over the host's read-only system, timed from the call to its first byte. With --docker it is `docker run` with the limits and
walls that the executor asks for.
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
from tests.support.docker_market import DockerMarket
from tests.support.engine import load_image, run_engine_script, small_image
from tests.support.small_market import SmallMarket, running_market, submit
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
SETTLE_S = 1.0  # what one leaves to be done behind it does not slow the other
MAX_OVER_BARE_MS = 60.0
IMAGE = "torg-benchmark:latest"
DOCKER_RUN = ["run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp:size=16m", "--cap-drop", "ALL"]  # noqa: S108  in the container
DOCKER_RUN += [
    "--security-opt",
    "no-new-privileges",
    "--pids-limit",
    "512",
    "--memory",
    "128m",
    "--memory-swap",
    "128m",
]
DOCKER_RUN += ["--cpus", "1", "--user", "65534:65534", "--init", IMAGE]
MAX_OVER_DOCKER_RUN = 1.25  # times as long


async def measure(rounds: int) -> tuple[list[dict[str, int]], list[float]]:
    with tempfile.TemporaryDirectory(prefix="torg-start-latency-") as folder:
        return await alternate(SmallMarket(Path(folder)), [*BARE, *COMMAND], rounds)


async def measure_docker(rounds: int) -> tuple[list[dict[str, int]], list[float]]:
    with tempfile.TemporaryDirectory(prefix="torg-start-") as folder:
        socket = Path(await asyncio.to_thread(run_engine_script, "start", Path(folder) / "engine"))
        try:
            await load_image(socket, small_image(IMAGE))
            market = DockerMarket(Path(folder) / "market", engine=socket, images=[IMAGE.partition(":")[0]])
            bare = ["docker", "--host", f"unix://{socket}", *DOCKER_RUN, *COMMAND]
            return await alternate(market, bare, rounds, image=IMAGE)
        finally:
            await asyncio.to_thread(run_engine_script, "stop", Path(folder) / "engine")


async def alternate(
    market: SmallMarket, bare: list[str], rounds: int, **fields: object
) -> tuple[list[dict[str, int]], list[float]]:
    jobs, alone = [], []
    async with running_market(market.folder, market=market), market.client() as client:
        await one_job(client, **fields)  # warms image, imports and caches
        for _ in range(rounds):
            await asyncio.sleep(SETTLE_S)
            alone.append(await asyncio.to_thread(bare_ms, bare))
            await asyncio.sleep(SETTLE_S)
            jobs.append(await one_job(client, **fields))
    return jobs, alone


async def one_job(client: AsyncClient, **fields: object) -> dict[str, int]:
    """Milliseconds from the grant to each step."""
    job = await submit(client, COMMAND, **fields)
    at_ms: dict[str, int] = {}
    async for event in client.follow(job.job_id):
        at_ms.setdefault(step_of(event), event.at_ms)
    return {step: at_ms[step] - at_ms["granted"] for step in STEPS}


def step_of(event: JobEvent) -> str:
    return str(event.data["state"]) if event.kind == "lease" else event.kind


def bare_ms(command: list[str]) -> float:
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        took_ms = (time.perf_counter() - began) * 1000
    if first != b"ready\n":
        raise RuntimeError(f"{command[0]} did not run the command: {first!r}")
    return took_ms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="15 jobs instead of 60")
    parser.add_argument("--docker", action="store_true", help="the docker executor beside docker run")
    options = parser.parse_args()
    rounds = 15 if options.quick else 60
    jobs, bare = asyncio.run(measure_docker(rounds) if options.docker else measure(rounds))
    peer = "docker run" if options.docker else "bare bubblewrap"
    figures = []
    for step, meaning in STEPS.items():
        times = [job[step] for job in jobs]
        figures += [Figure(f"p50: {meaning}", median(times), "ms"), Figure(f"p95: {meaning}", p95(times), "ms")]
    figures += [Figure(f"p50: {peer}", median(bare), "ms"), Figure(f"p95: {peer}", p95(bare), "ms")]
    pairs = [(job["log"], alone) for job, alone in zip(jobs, bare, strict=True)]
    if options.docker:
        ratio = median(first / alone for first, alone in pairs)
        figures.append(Figure("p50: first line, times docker run", ratio, "x", MAX_OVER_DOCKER_RUN))
        notes = [
            "A job has a second container beside it, which ends it on time should the agent be dead, and was started before; docker run has none."
        ]
    else:
        over = median(first - alone for first, alone in pairs)
        figures.append(Figure("p50: first line over bare bubblewrap", over, "ms", MAX_OVER_BARE_MS))
        notes = ["The docker executor beside docker run: --docker."]
    return conclude("start_latency", figures, notes=notes)


def p95(values: list[int] | list[float]) -> float:
    return quantiles(values, n=20)[-1]


if __name__ == "__main__":
    sys.exit(main())
