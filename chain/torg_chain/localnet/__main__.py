"""`torg-localnet`: a persistent Solana test cluster on loopback. Prints one JSON line when it is ready; stops on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import time
from pathlib import Path

from aiohttp import web

from torg_chain.localnet.cluster import open_cluster
from torg_chain.localnet.faults import Faults
from torg_chain.localnet.rpc import make_app
from torg_chain.localnet.subscriptions import SubscriptionHub
from torg_chain.network import LOCALNET_MINT, LOCALNET_PROGRAM_ID


def main() -> None:
    parser = argparse.ArgumentParser(prog="torg-localnet", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="where the ledger is kept; the same folder continues it"
    )
    parser.add_argument("--port", type=int, default=8899, help="0 takes a free one")
    parser.add_argument("--slot-ms", type=int, default=400)
    parser.add_argument(
        "--finalize-after-slots", type=int, default=4, help="32 on a real cluster; fewer make tests quick"
    )
    parser.add_argument("--drop", type=_probability, default=0.0, help="lose this share of all transactions, unsaid")
    parser.add_argument(
        "--reorg", type=_probability, default=0.0, help="in this share of slots, a fork takes the newest slots back"
    )
    parser.add_argument("--seed", type=int, default=None, help="of --drop and --reorg")
    asyncio.run(serve(parser.parse_args()))


async def serve(arguments: argparse.Namespace) -> None:
    cluster = open_cluster(arguments.data, finalize_after_slots=arguments.finalize_after_slots)
    faults = Faults(arguments.drop, arguments.reorg, random.Random(arguments.seed))  # noqa: S311 - faults to be repeated, not secrets
    hub = SubscriptionHub(cluster)
    ahead_s = max(0, cluster.unix_time_s - int(time.time()))  # a clock that was advanced stays ahead

    async def tick() -> None:
        nonlocal ahead_s
        while True:
            before = cluster.unix_time_s
            await asyncio.sleep(arguments.slot_ms / 1000)
            ahead_s += max(0, cluster.unix_time_s - before)
            cluster.tick(int(time.time()) + ahead_s)
            faults.at_slot(cluster)
            hub.publish()

    cluster.tick(int(time.time()) + ahead_s)
    runner = web.AppRunner(make_app(cluster, faults, hub), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", arguments.port)
    await site.start()
    ticking = asyncio.create_task(tick())
    port = runner.addresses[0][1]
    ready = {
        "rpc_url": f"http://127.0.0.1:{port}",
        "ws_url": f"ws://127.0.0.1:{port}",
        "genesis_hash": str(cluster.genesis),
        "program_id": LOCALNET_PROGRAM_ID,
        "mint": LOCALNET_MINT,
    }
    print(json.dumps(ready), flush=True)  # noqa: T201 - the one line that says where it listens
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    ticking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ticking
    await runner.cleanup()


def _probability(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a probability: 0 or more, and less than 1")


if __name__ == "__main__":
    main()
