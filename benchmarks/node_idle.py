"""What an agent costs its owner while it waits, and per short job: python -m benchmarks.node_idle [--quick]

A real market of real processes, the sandbox executor, heartbeats twenty times as frequent as in production (every 500 ms), so the idle share of a core is an
upper bound. Memory is the kernel's: private (what would be free without the agent) and resident. Then 16 short jobs at once on one
node; what a job costs beyond its own run is compared with bare bubblewrap, 16 at once too, in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.report import Figure, conclude
from benchmarks.start_latency import BARE
from scripts.market_processes import call, script
from tests.support.small_market import SmallMarket, submit
from torg.client import AsyncClient
from torg_protocol.states import JobState

JOBS = 16
COMMAND = ["true"]
MAX_PRIVATE_MIB, MAX_RESIDENT_MIB, MAX_CORE_PERCENT = 64.0, 120.0, 1.0
SMALL = {"cpus": "0.1", "memory": "64MiB", "disk": "16MiB"}


async def measure(idle_s: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="torg-node-idle-") as folder:
        market = SmallMarket(Path(folder), heartbeat="500ms")
        try:
            await market.start_localnet()
            await market.start_marketplace()
            init = ["init", "--data", str(market.folder / "node"), "--marketplace", market.url, "--price", "1.00"]
            await call([script("torg-node"), *init, "--executor", "sandbox", "--slots", str(JOBS), "--yes"])
            await market.start_node()
            assert market.node is not None
            pid = market.node.process.pid
            async with market.client() as client:
                found = await idle(pid, idle_s)
                return found | await busy(client) | {"private_after_jobs": memory_mib(pid)["private"]}
        finally:
            await market.stop()


async def idle(pid: int, idle_s: float) -> dict[str, float]:
    await asyncio.sleep(3)  # the start's own work is over
    before, began = cpu_s(pid), time.monotonic()
    await asyncio.sleep(idle_s)
    percent = 100 * (cpu_s(pid) - before) / (time.monotonic() - began)
    return memory_mib(pid) | {"core_percent": percent}


async def busy(client: AsyncClient) -> dict[str, float]:
    await one(client)  # warms image, imports and caches
    began = time.monotonic()
    ended = await asyncio.gather(*(one(client) for _ in range(JOBS)), return_exceptions=True)
    market_s = time.monotonic() - began
    began = time.monotonic()
    await asyncio.gather(*(asyncio.to_thread(bare) for _ in range(JOBS)))
    bare_s = time.monotonic() - began
    whole = [took for took in ended if isinstance(took, float)]
    return {
        "failed": float(JOBS - len(whole)),
        "all_s": market_s,
        "median_s": median(whole) if whole else float("inf"),
        "over_bare_ms_per_job": 1000 * (market_s - bare_s) / JOBS,
    }


async def one(client: AsyncClient) -> float:
    """Seconds from submission to the verdict. Raises AssertionError when it did not succeed."""
    began = time.monotonic()
    job = await submit(client, COMMAND, resources=SMALL)
    ended = await client.wait(job.job_id)
    assert ended.state is JobState.SUCCEEDED, ended.reason
    return time.monotonic() - began


def bare() -> None:
    pid = os.posix_spawnp("bwrap", [*BARE, "--", *COMMAND], os.environ)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> dict[str, float]:
    kib = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    return {"private": (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024, "resident": kib["Rss"] / 1024}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="look at the idle agent for 10 s instead of 60")
    found = asyncio.run(measure(10.0 if parser.parse_args().quick else 60.0))
    figures = [
        Figure("idle_private", found["private"], "MiB", MAX_PRIVATE_MIB),
        Figure("idle_resident", found["resident"], "MiB", MAX_RESIDENT_MIB),
        Figure("idle_core", found["core_percent"], "% of one", MAX_CORE_PERCENT),
        Figure("private_after_jobs", found["private_after_jobs"], "MiB"),
        Figure("jobs_failed", found["failed"], f"of {JOBS} at once", 0.0),
        Figure("jobs_all", found["all_s"], "s, submission of the first to verdict of the last"),
        Figure("job_median", found["median_s"], "s, submission to verdict"),
        Figure("over_bare_per_job", found["over_bare_ms_per_job"], "ms of wall time over bare bubblewrap"),
    ]
    return conclude("node_idle", figures, notes=["Heartbeats every 0.5 s here, every 10 s in production."])


if __name__ == "__main__":
    sys.exit(main())
