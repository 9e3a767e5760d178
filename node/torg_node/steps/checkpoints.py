"""Keeps checkpoints safe: what the job has finished writing goes to the store in the background, the newest first.

A directory in the checkpoint folder whose name does not start with a dot is complete: jobs write under another name and rename. When
the upload is slower than the job, older ones are passed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path

from torg_host.archive import PackedTree, pack
from torg_node.lease import Lease
from torg_node.sealing import for_next_node
from torg_node.steps.volumes import store_volumes
from torg_protocol.errors import TorgError
from torg_protocol.messages import CheckpointRef, CheckpointStored

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_POLL_S = 0.25


class CheckpointKeeper:
    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    async def run(self, ended: asyncio.Event) -> None:
        """Until the container has ended and its last checkpoint is stored."""
        if not self._lease.spec.checkpoint.enabled or not self._lease.hands_over:
            return
        while True:
            last = ended.is_set()
            newest = await asyncio.to_thread(self._newest)
            if newest is not None:
                await self._store(newest)
            elif last:
                return
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S):
                        await ended.wait()

    def _newest(self) -> Path | None:
        """The newest complete directory, unless it was stored already. Newest by the time of its appearance."""
        folder = self._lease.files / "checkpoint"
        try:
            found = [
                item
                for item in folder.iterdir()
                if _NAME.fullmatch(item.name) and item.is_dir() and not item.is_symlink()
            ]
            newest = max(found, key=lambda item: (item.stat().st_ctime_ns, item.name), default=None)
        except OSError:
            return None  # the job is renaming or removing just now
        return None if newest is None or newest.name in self._lease.stored_checkpoints else newest

    async def _store(self, item: Path) -> None:
        lease = self._lease
        archive = lease.folder / "checkpoint.tar.zst"
        try:
            written_at_ms = item.stat().st_ctime_ns // 1_000_000
            packed = await asyncio.to_thread(packed_checkpoint, item, archive)
            async with for_next_node(lease, archive) as kept:  # pieces of what is encrypted are like nothing before
                blob = await lease.node.blobs.store(kept, packed if kept is archive else None)
        except (OSError, TorgError):
            # The job removed it while it was being read: a newer one is there, or will be.
            lease.stored_checkpoints.add(item.name)
            return
        finally:
            archive.unlink(missing_ok=True)
        started_at_ms = written_at_ms if lease.started_at_ms is None else lease.started_at_ms
        checkpoint = CheckpointRef(
            name=item.name, blob=blob, useful_ms=max(0, written_at_ms - started_at_ms), written_at_ms=written_at_ms
        )
        lease.stored_checkpoints.add(item.name)
        lease.node.journal.add_checkpoint(lease.id, item.name)
        await lease.say(CheckpointStored(checkpoint=checkpoint))
        await store_volumes(lease, at_end=False)


def packed_checkpoint(folder: Path, archive: Path) -> PackedTree:
    """Whole: no ignore file of the job's speaks for what it saves. Sockets, pipes and links that lead out are of the moment and are left out."""
    return pack(folder, archive, ignore=False, skip_odd=True)
