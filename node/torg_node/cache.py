"""What this node keeps for the next job: fetched inputs and images, each under its digest, the least lately used going first.

Everything here can be fetched again; nothing is kept beyond the budget. Contents were checked against their digests before they came
in, and jobs never see this folder, only copies or read-only mounts. Safe for several processes: entries appear and vanish by renaming.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torg_host.sandbox.watch import used_bytes
from torg_node.executors.port import LoadedImage
from torg_node.journal import Journal
from torg_protocol.ids import Digest, is_digest
from torg_protocol.jobspec import JobSpec
from torg_protocol.tasks import BLOB_IMAGE

Kind = Literal["blob", "image"]
_ABOUT = "about.json"
_WARM_ITEMS = 16


@dataclass(frozen=True, slots=True)
class CacheEntry:
    kind: Kind
    digest: Digest
    size_bytes: int
    used_at_ms: int
    engine_image: str | None = None  # an image that lies in the container engine, by its id there


class Cache:
    def __init__(self, root: Path, budget_bytes: int) -> None:
        """`budget_bytes`: 0 keeps nothing."""
        self._root, self._budget_bytes = root, budget_bytes
        self.loading = asyncio.Lock()  # one image at a time

    # --- blobs --------------------------------------------------------------------------------------------------------

    def take_blob(self, digest: Digest, target: Path) -> bool:
        """Puts the blob at `target` (a hard link: eviction does not disturb it) and counts as a use. False when it is not here."""
        kept = self._place("blob", digest)
        try:
            os.link(kept, target)
            os.utime(kept)
        except FileNotFoundError:
            return False
        return True

    def keep_blob(self, digest: Digest, source: Path) -> None:
        """Keeps a checked file of the same file system, if there is room for it; `source` stays where it is."""
        if source.stat().st_size > self._budget_bytes:
            return
        kept = self._place("blob", digest)
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.link(source, kept)
        except FileExistsError:
            os.utime(kept)

    # --- images -------------------------------------------------------------------------------------------------------

    def image(self, digest: Digest) -> Path | None:
        """The folder of an image that is here; counts as a use."""
        folder = self._place("image", digest)
        try:
            os.utime(folder / _ABOUT)
        except FileNotFoundError:
            return None
        return folder

    def new_image(self, digest: Digest) -> Path:
        """An empty folder in which the image is to be made; `keep_image` makes it visible. What a killed agent left goes."""
        staging = self._root / "partial" / digest.removeprefix("sha256:")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(mode=0o700, parents=True)
        return staging

    def loaded(self, folder: Path) -> LoadedImage:
        """What an executor made of the image in this folder."""
        about = json.loads((folder / _ABOUT).read_text())
        return LoadedImage(about["image_digest"], about["engine_image"])

    def keep_image(self, digest: Digest, staging: Path, loaded: LoadedImage) -> Path:
        """`digest`: of the archive. Kept whatever the budget is, as a lease is about to use it."""
        about = {
            "image_digest": loaded.digest,
            "engine_image": loaded.engine_image,
            "size_bytes": loaded.size_bytes + used_bytes(str(staging)),
        }
        (staging / _ABOUT).write_text(json.dumps(about))
        folder = self._place("image", digest)
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            staging.rename(folder)
        except OSError:  # another lease was faster: its image is the same
            shutil.rmtree(staging, ignore_errors=True)
        return folder

    # --- all ----------------------------------------------------------------------------------------------------------

    def entries(self) -> list[CacheEntry]:
        """The latest used first."""
        found = [entry for kind in ("blob", "image") for entry in self._of_kind(kind)]
        return sorted(found, key=lambda entry: (-entry.used_at_ms, entry.digest))

    def remove(self, entry: CacheEntry) -> None:
        """Safe to repeat. An image of the engine is to be removed there first."""
        place = self._place(entry.kind, entry.digest)
        if entry.kind == "blob":
            place.unlink(missing_ok=True)
            return
        doomed = self._root / "partial" / f"{place.name}.{time.monotonic_ns()}"
        doomed.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            place.rename(doomed)  # at once for everybody who looks; deleting may take a while
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def over_budget(self, in_use: Collection[Digest], budget_bytes: int | None = None) -> list[CacheEntry]:
        """What has to go, the least lately used first, so that the rest fits. Never what a lease uses."""
        most = self._budget_bytes if budget_bytes is None else budget_bytes
        entries = self.entries()
        too_much, doomed = sum(entry.size_bytes for entry in entries) - most, []
        for entry in reversed(entries):
            if too_much <= 0:
                break
            if entry.digest not in in_use:
                doomed.append(entry)
                too_much -= entry.size_bytes
        return doomed

    def _of_kind(self, kind: Kind) -> list[CacheEntry]:
        folder, found = self._root / f"{kind}s", []
        for place in folder.iterdir() if folder.is_dir() else ():
            digest = f"sha256:{place.name}"
            if not is_digest(digest):
                continue
            try:
                found.append(_entry(kind, Digest(digest), place))
            except (FileNotFoundError, ValueError):
                continue  # going just now
        return found

    def _place(self, kind: Kind, digest: Digest) -> Path:
        return self._root / f"{kind}s" / digest.removeprefix("sha256:")


def _entry(kind: Kind, digest: Digest, place: Path) -> CacheEntry:
    if kind == "blob":
        status = place.stat()
        return CacheEntry(kind, digest, status.st_size, status.st_mtime_ns // 1_000_000)
    about, used_ns = json.loads((place / _ABOUT).read_text()), (place / _ABOUT).stat().st_mtime_ns
    return CacheEntry(kind, digest, int(about["size_bytes"]), used_ns // 1_000_000, about.get("engine_image"))


async def trim(
    cache: Cache,
    forget_image: Callable[[str], Awaitable[None]],
    in_use: Collection[Digest],
    budget_bytes: int | None = None,
) -> list[CacheEntry]:
    """Removes what is too much; says what went. `forget_image` takes an image out of the container engine."""
    doomed = await asyncio.to_thread(cache.over_budget, in_use, budget_bytes)
    for entry in doomed:
        await remove(cache, forget_image, entry)
    return doomed


async def remove(cache: Cache, forget_image: Callable[[str], Awaitable[None]], entry: CacheEntry) -> None:
    if entry.engine_image is not None:
        await forget_image(entry.engine_image)
    await asyncio.to_thread(cache.remove, entry)


def digests_in_use(journal: Journal) -> frozenset[Digest]:
    """Of what leases that are open run or read."""
    return frozenset(digest for entry in journal.open_leases() for digest in blobs_of(entry.signed.grant.spec))


def blobs_of(spec: JobSpec) -> list[Digest]:
    return [*spec.image_archives, *(blob.digest for _, blob in spec.blobs())]


def warm_names(cache: Cache) -> tuple[str, ...]:
    """As jobs name them, the latest used first."""
    return tuple(
        f"{BLOB_IMAGE}{entry.digest}" if entry.kind == "image" else entry.digest
        for entry in cache.entries()[:_WARM_ITEMS]
    )
