"""A workspace on its way to the store, from packing to the store's last check: python -m benchmarks.upload [--quick]

A real marketplace process on loopback; the client packs and sends as `torg run` does. The peer in the same run, before and after: `cp` of the
same files and a sha256 over each copy, which is the least that could be called a checked transfer. Then one file of the tree changes, and
the tree goes again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from solders.keypair import Keypair

from benchmarks.report import Figure, conclude
from tests.support.small_market import SmallMarket
from torg.client import AsyncClient
from torg.config import ClientConfig
from torg_chain.wallet import save_keypair
from torg_host.archive import sha256_file

MIB = 1 << 20
FILE_BYTES = 8 * MIB
MIN_OF_COPY, MAX_SECOND_SHARE = 0.6, 0.02


def write_tree(root: Path, size_mib: int) -> None:
    """Bytes that do not compress, in files of 8 MiB and a hundred small ones."""
    root.mkdir()
    for number in range(size_mib * MIB // FILE_BYTES):
        (root / f"shard-{number:03}.bin").write_bytes(os.urandom(FILE_BYTES))
    for number in range(100):
        (root / f"module{number:02}.py").write_bytes(os.urandom(2000))


def copy_and_hash(tree: Path, copy: Path) -> float:
    """Leaves nothing behind. The first copy is not counted: memory that a virtual machine never touched costs more than all the rest, and
    after this one both sides find it touched."""
    copy.mkdir()
    began = time.perf_counter()
    for source in tree.iterdir():
        shutil.copyfile(source, copy / source.name)
        sha256_file(copy / source.name)
    seconds = time.perf_counter() - began
    shutil.rmtree(copy)
    return seconds


async def send(client: AsyncClient, root: Path) -> tuple[float, int, int]:
    """Seconds, bytes of the archive, and bytes that went over the wire."""
    transport = client._transport  # noqa: SLF001 - where bytes leave the client
    put, sent = transport.upload_bytes, 0

    async def counting(url: str, data: bytes) -> None:
        nonlocal sent
        sent += len(data)
        await put(url, data)

    transport.upload_bytes = counting  # type: ignore[method-assign]  # for this benchmark alone
    began = time.perf_counter()
    packed = await client._blobs.store_tree(root)  # noqa: SLF001 - as submit does
    seconds = time.perf_counter() - began
    transport.upload_bytes = put  # type: ignore[method-assign]  # as it was
    return seconds, packed.size_bytes, sent


async def one_round(url: str, scratch: Path, size_mib: int) -> tuple[float, float, float]:
    """The speed against the copy's, the share of a second upload, and MiB/s."""
    write_tree(scratch / "tree", size_mib)
    save_keypair(Keypair(), scratch / "home" / "wallet.json")
    copy_and_hash(scratch / "tree", scratch / "warm-up")
    before = copy_and_hash(scratch / "tree", scratch / "copy")
    async with AsyncClient(ClientConfig(scratch / "home", url)) as client:
        seconds, size_bytes, sent = await send(client, scratch / "tree")
        if sent != size_bytes:
            raise RuntimeError(f"{sent} bytes went over the wire, of {size_bytes}")
        after = copy_and_hash(scratch / "tree", scratch / "copy")
        (scratch / "tree" / "module07.py").write_bytes(b"changed")
        _, total, again = await send(client, scratch / "tree")
    return (before + after) / 2 / seconds, again / total, size_bytes / MIB / seconds


async def measure(size_mib: int, rounds: int) -> list[Figure]:
    ratios, shares, speeds = [], [], []
    with tempfile.TemporaryDirectory(prefix="torg-upload-") as folder:
        # The heartbeat is production's: tests' own has the marketplace look after its nodes twenty times as often.
        market = SmallMarket(Path(folder), options=("--heartbeat", "10s"))
        try:
            await market.start_localnet()
            await market.start_marketplace()
            for number in range(rounds):
                scratch = Path(folder) / f"round-{number}"
                scratch.mkdir()
                ratio, share, speed = await one_round(market.url, scratch, size_mib)
                ratios.append(ratio)
                shares.append(share)
                speeds.append(speed)
                shutil.rmtree(scratch)
        finally:
            await market.stop()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        Figure("speed, as a part of cp + sha256", median(ratios), "x", MIN_OF_COPY, "least"),
        Figure("pack, send and check", median(speeds), "MiB/s"),
        Figure("one file of the tree changed: bytes sent again", max(shares), "of all", MAX_SECOND_SHARE),
        Figure("peak memory of the client", peak_mib, "MiB"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one upload of 256 MiB instead of three of 1 GiB")
    quick = parser.parse_args().quick
    return conclude("upload", asyncio.run(measure(256 if quick else 1024, 1 if quick else 3)))


if __name__ == "__main__":
    sys.exit(main())
