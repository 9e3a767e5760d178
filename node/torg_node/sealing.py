"""Sealed jobs on the node: their archives are opened with the job's key, and whatever leaves this host is encrypted first.

The node itself can read all of it, as it can of any job: it runs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from torg_node.lease import Lease


def open_sealed(lease: Lease, archive: Path) -> None:
    """Decrypts `archive` in its place. Blocks. Raises Invalid `cannot_unseal`."""
    from torg_host.age import unseal_file  # ciphers, for those who seal

    opened = archive.with_name(f"{archive.name}.open")
    unseal_file(archive, opened, lease.job_key)
    opened.replace(archive)


@asynccontextmanager
async def for_client(lease: Lease, path: Path) -> AsyncIterator[Path]:
    """What goes to the store of a file that the client will read: the file itself or, of a sealed job, a copy that the client's wallet opens."""
    if lease.spec.sealed is None:
        yield path
        return
    async with _sealed(lease, path, wallets=[lease.grant.client]) as sealed:
        yield sealed


@asynccontextmanager
async def for_next_node(lease: Lease, path: Path) -> AsyncIterator[Path]:
    """The same for what the next attempt reads, wherever it runs."""
    if lease.spec.sealed is None:
        yield path
        return
    async with _sealed(lease, path, keys=[lease.spec.sealed.recipient]) as sealed:
        yield sealed


@asynccontextmanager
async def _sealed(
    lease: Lease, path: Path, *, wallets: tuple[str, ...] | list[str] = (), keys: tuple[str, ...] | list[str] = ()
) -> AsyncIterator[Path]:
    from torg_host.age import seal_file

    target = lease.folder / f"{path.name[:100]}.age"  # beside the job's disk, not on it: its quota is the job's
    try:
        await asyncio.to_thread(seal_file, path, target, wallets=wallets, keys=keys)
        yield target
    finally:
        target.unlink(missing_ok=True)
