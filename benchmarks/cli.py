"""How long the command line takes, as whole processes: python -m benchmarks.cli [--quick]

`torg --help` and `torg ps` (against a marketplace on loopback, with jobs to list), alternating with the peer of the same run: a bare
interpreter that does nothing. Medians, of the wall clock from fork to exit; processor time besides, which a busy machine changes less.
Modules are compiled before, as an installer leaves them, also where the environment says that Python shall write no bytecode.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.report import Figure, conclude
from scripts.market_processes import script
from tests.support.small_market import SmallMarket, submit

HELP_MOST_MS, PS_MOST_MS = 200.0, 350.0
JOBS = 20  # in the list


async def measure(rounds: int) -> dict[str, list[tuple[float, float]]]:
    with tempfile.TemporaryDirectory(prefix="torg-cli-") as folder:
        market = SmallMarket(Path(folder))
        try:
            await market.start_localnet()
            await market.start_marketplace()
            await market.start_node()
            async with market.client() as client:
                for _ in range(JOBS):
                    await submit(client, ["true"])
                torg = [script("torg"), "--home", str(client.config.home), "--marketplace", market.url]
                commands = {"python": [sys.executable, "-c", "pass"], "help": [*torg, "--help"], "ps": [*torg, "ps"]}
                for job in (await client.jobs(limit=JOBS)).jobs:
                    await client.wait(job.job_id)
                return await asyncio.to_thread(_timed, commands, rounds)
        finally:
            await market.stop()


def _timed(commands: dict[str, list[str]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of each, by the clock and of the processor, in turn, after one round that counts for nothing."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for number in range(rounds + 1):
        for name, argv in commands.items():
            used, begun = _processor_ms(), time.perf_counter()
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=env)
            if number:
                found[name].append(((time.perf_counter() - begun) * 1000, _processor_ms() - used))
    return found


def _processor_ms() -> float:
    """Of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1000


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 5 if parser.parse_args(argv).quick else 31
    found = asyncio.run(measure(rounds))
    times = {name: median(wall for wall, _ in values) for name, values in found.items()}
    processor = {name: median(used for _, used in values) for name, values in found.items()}
    figures = [
        Figure("torg --help, median", times["help"], "ms", HELP_MOST_MS),
        Figure("torg ps, median", times["ps"], "ms", PS_MOST_MS),
        Figure("bare interpreter, median", times["python"], "ms"),
        Figure("torg --help, processor", processor["help"], "ms"),
        Figure("torg ps, processor", processor["ps"], "ms"),
        Figure("torg --help over bare interpreter", times["help"] / times["python"], "x"),
        Figure("torg ps over bare interpreter", times["ps"] / times["python"], "x"),
    ]
    return conclude("cli", figures, notes=[f"{rounds} rounds; {JOBS} jobs in the list"])


if __name__ == "__main__":
    sys.exit(main())
