"""Collect outputs: every regular file below the output folder becomes a blob, checked by digest on arrival."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from torg_node.lease import Lease
from torg_node.sealing import for_client
from torg_protocol.errors import TorgError
from torg_protocol.usage import OutputFile

MAX_FILES = 10_000


class CollectOutputs:
    name = "collect outputs"

    async def do(self, lease: Lease) -> None:
        """Links and other odd files are left out: they may point at this host. What is too many is left out too; the report
        then names the declared ones that are missing."""
        folder = lease.files / "output"
        lease.outputs = []
        if not lease.hands_over:
            return
        for path in await asyncio.to_thread(_regular_files, folder):
            try:
                async with for_client(lease, path) as kept:
                    blob = await lease.node.blobs.store(kept)
            except (OSError, TorgError):
                continue  # vanished, or refused for good: missing, then
            relative = path.relative_to(folder).as_posix()
            lease.outputs.append(OutputFile(path=relative, digest=blob.digest, size_bytes=blob.size_bytes))

    async def undo(self, lease: Lease) -> None:
        """What is in the store is the client's."""


def _regular_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for root, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(files):
            path = Path(root) / name
            if path.is_file() and not path.is_symlink() and len(found) < MAX_FILES:
                found.append(path)
    return found
