"""From a signed submission to its acknowledged, durable place in the queue: python -m benchmarks.submit [--quick]

A real marketplace on SQLite (every commit reaches the disk) over loopback HTTP: signature and nonce, cap, catalogue of offers, ledger hold, job
and idempotency rows. One client, one request at a time. The one node was registered and has gone, so that jobs stay queued and
nothing else works meanwhile. The floor in the same run, alternating: GET /healthz of the same server.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from benchmarks.report import Figure, conclude
from tests.support.small_market import TUSD, running_market, submit
from torg.client import AsyncClient
from torg.submission import cap_lifetime_s
from torg_protocol.api import JobView
from torg_protocol.jobspec import load_job_spec

SPEC = {"version": 1, "name": "queued", "command": ["true"], "limits": {"max_duration": "30s", "queue_timeout": "1h"}}
MAX_P50_MS, MAX_P99_MS = 15.0, 60.0


async def measure(rounds: int) -> tuple[list[float], list[float]]:
    with tempfile.TemporaryDirectory(prefix="torg-submit-") as folder:
        async with running_market(Path(folder)) as market, market.client(deposit=15 * TUSD) as client:
            job = await submit(client, ["true"])
            await client.wait(job.job_id)
            if market.node is not None:
                await market.node.stop()
            return await timed(client, rounds)


async def timed(client: AsyncClient, rounds: int) -> tuple[list[float], list[float]]:
    info = await client.market()
    entry = client.journal.vault(info.marketplace, None)
    spec = load_job_spec(SPEC)
    transport = client._transport  # noqa: SLF001 - the SDK asks for a quote and keeps books besides; this is one request
    cap = await client.vaults.sign_cap(entry, 15 * TUSD, int(time.time()) + cap_lifetime_s(spec, info) + 3_600)
    body = {"spec": spec.wire(), "cap": cap.wire()}
    submissions, floor = [], []
    for number in range(rounds + 10):
        began = time.perf_counter()
        await transport.request("GET", "/healthz")
        between = time.perf_counter()
        job = await transport.ask(JobView, "POST", "/v1/jobs", body=body, idempotency_key=f"submit-{number}")
        ended = time.perf_counter()
        if job.state != "queued":
            raise RuntimeError(f"the job is {job.state}")
        if number >= 10:  # the first ones warm connections and caches
            floor.append((between - began) * 1000)
            submissions.append((ended - between) * 1000)
    return submissions, floor


def p99(times: list[float]) -> float:
    return quantiles(times, n=100)[98]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="150 submissions instead of 900")
    submissions, floor = asyncio.run(measure(150 if parser.parse_args().quick else 900))
    figures = [
        Figure("p50: submit to queued", median(submissions), "ms", MAX_P50_MS),
        Figure("p99: submit to queued", p99(submissions), "ms", MAX_P99_MS),
        Figure("p50: GET /healthz", median(floor), "ms"),
        Figure("p99: GET /healthz", p99(floor), "ms"),
        Figure("p50 as a multiple of the floor", median(submissions) / median(floor), "x"),
    ]
    return conclude("submit", figures)


if __name__ == "__main__":
    sys.exit(main())
