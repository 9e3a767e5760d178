"""Faults by chance: `python -m tests.e2e.run_chaos [--seed N] [--faults N]`. Needs root, PostgreSQL, NATS and bubblewrap.

A market whose processes and nodes have networks of their own is killed, frozen and cut apart, one or two faults at a time, under load. The seed
draws which; it is printed first, and each fault before it happens. After each, and on the chain in the end, everything must
be as tests/support/chaos.py says. What exactly happens within a fault is up to the machine: a seed repeats the faults, not the interleaving.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.faults import CUTS, FAULTS, under_load
from tests.support.partitions import PartitionedMarket, partitioned_market
from tests.support.small_market import running_market


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--faults", type=int, default=20)
    given = parser.parse_args(arguments)
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    print(f"chaos: seed {seed}, {given.faults} faults  (again: --seed {seed} --faults {given.faults})", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="torg-chaos-"))
    try:
        with partitioned_market(folder) as market:
            asyncio.run(_run(market, random.Random(seed), given.faults))
    except BaseException:
        print(f"\nchaos: seed {seed} broke it; what the processes said is in {folder}/*.log", flush=True)
        raise
    shutil.rmtree(folder)
    return 0


async def _run(market: PartitionedMarket, chance: random.Random, faults: int) -> None:
    async with running_market(market.folder, market=market), market.client() as client:
        for number in range(faults):
            drawn = chance.sample([*FAULTS, *CUTS], k=chance.choice([1, 1, 2]))
            names = [fault.__name__.replace("_", " ") for fault in drawn]
            print(f"{number + 1:3}: {', then '.join(names)}", end="", flush=True)
            began = time.monotonic()

            async def happen(drawn: Sequence[object] = drawn) -> None:
                for fault in drawn:
                    await fault(market)  # type: ignore[operator]
                    await asyncio.sleep(chance.uniform(0, 1))

            await under_load(market, client, happen(), f"fault-{number}")
            print(f"   {time.monotonic() - began:.0f} s, all is well", flush=True)
        await market.assert_paid_by_the_receipts()
        print("the chain has paid what the receipts say", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
