"""Collect outputs: every regular file below the output folder becomes a blob, checked by digest on arrival."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from torg_node.lease import Lease
from torg_node.sealing import for_client
from torg_protocol.errors import TorgError
from torg_protocol.output_names import output_name_problem
from torg_protocol.usage import OutputFile

MAX_FILES = 10_000
_NAMED = 5  # of what was left out


class CollectOutputs:
    name = "collect outputs"

    async def do(self, lease: Lease) -> None:
        """Links and other odd files are left out: they may point at this host. So are names that no client would write, and what is too many; the
        report says so, and names the declared ones that are missing."""
        folder = lease.files / "output"
        lease.outputs, lease.left_out = [], []
        if not lease.hands_over:
            return
        found, lease.left_out = await asyncio.to_thread(_regular_files, folder)
        for path in found:
            relative = path.relative_to(folder).as_posix()
            try:
                async with for_client(lease, path) as kept:
                    blob = await lease.node.blobs.store(kept)
            except (OSError, TorgError):
                continue  # vanished, or refused for good: missing, then
            lease.outputs.append(OutputFile(path=relative, digest=blob.digest, size_bytes=blob.size_bytes))

    async def undo(self, lease: Lease) -> None:
        """What is in the store is the client's."""


def left_out_in_words(left_out: list[str]) -> str:
    """For people, at most a few of them; empty when nothing was."""
    more = len(left_out) - _NAMED
    shown = left_out[:_NAMED] + ([f"and {more} more"] if more > 0 else [])
    return f"not among the outputs: {', '.join(shown)}" if left_out else ""


def _regular_files(folder: Path) -> tuple[list[Path], list[str]]:
    found: list[Path] = []
    left_out: list[str] = []
    for root, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        left_out += [f"{name!r} (a link)" for name in folders if (Path(root) / name).is_symlink()]
        for name in sorted(files):
            path = Path(root) / name
            if (why := _why_none(path, path.relative_to(folder).as_posix())) is not None:
                left_out.append(f"{name!r} ({why})")
            elif len(found) < MAX_FILES:
                found.append(path)
            else:
                left_out.append(f"{name!r} (more than {MAX_FILES} files)")
    return found, left_out


def _why_none(path: Path, relative: str) -> str | None:
    if path.is_symlink():
        return "a link"
    return output_name_problem(relative) if path.is_file() else "no regular file"
