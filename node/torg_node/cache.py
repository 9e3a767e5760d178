"""What this node keeps for the next job: fetched inputs and images, each under its digest, the least lately used going first.

Everything here can be fetched again; nothing is kept beyond the budget. Contents were checked against their digests before they came
in, and jobs never see this folder, only copies or read-only mounts. Safe for several processes: entries appear and vanish by renaming.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torg_host.durable_files import sync
from torg_host.sandbox.watch import used_bytes
from torg_node.executors.port import LoadedImage, PreparedImage
from torg_node.journal import Journal
from torg_node.rental.book import RentalBook
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import TorgError
from torg_protocol.ids import Digest, is_digest
from torg_protocol.jobspec import JobSpec
from torg_protocol.registries import ImageName
from torg_protocol.tasks import BLOB_IMAGE

log = logging.getLogger(__name__)
Kind = Literal["blob", "image", "pulled"]
_ABOUT = "about.json"
_WARM_ITEMS = 16


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """`pulled`: an image that this node had its engine pull from a registry; its size is the engine's word, layers that images have in common
    count in each."""

    kind: Kind
    digest: Digest  # of a pulled one that is not complete (any more) empty
    size_bytes: int
    used_at_ms: int
    engine_image: str | None = (
        None  # an image that lies in the container engine: its id there, of a pulled one its name
    )
    engine_id: str | None = None  # of a pulled one, what that name stood for
    is_private: bool = False  # of a pulled one: with somebody's credentials

    @property
    def is_complete(self) -> bool:
        """Whether its pull has ended, as far as the books know."""
        return self.kind != "pulled" or self.engine_id is not None

    def is_among(self, names: Collection[str]) -> bool:
        return self.digest in names or (self.kind == "pulled" and self.engine_image in names)


class Cache:
    def __init__(self, root: Path, budget_bytes: int) -> None:
        """`budget_bytes`: 0 keeps nothing."""
        self._root, self._budget_bytes = root, budget_bytes
        self._marking = threading.Lock()
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
        sync(source)  # or the next job would be given what a power cut has left of it
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

    # --- images of registries, which lie in the engine ------------------------------------------------------------------

    def expect_pulled(self, name: str, *, private: bool = False) -> None:
        """Before the pull: should this agent be killed meanwhile, the image is in the books. `private`: with a job's credentials."""
        self._write_pulled(name, {"digest": "", "size_bytes": 0, "engine_id": None, "private": private})

    def keep_pulled(self, name: str, image: PreparedImage, *, private: bool = False) -> None:
        if private:
            self._mark_private(image.reference)  # before the books say that it is complete
        about = {"digest": image.digest, "size_bytes": image.size_bytes, "engine_id": image.reference}
        self._write_pulled(name, {**about, "private": private})

    def is_private(self, image: PreparedImage) -> bool:
        """Whether it was, or is just being, pulled with somebody's credentials. Stays so under every other name, and when the books have
        forgotten it: the engine may have it still."""
        if self._private(image.reference).exists():
            return True
        known = {ImageName.parse(name) for name in image.names}
        return any(ImageName.parse(str(entry.engine_image)) in known for entry in self._coming_private())

    def private_marks(self) -> dict[str, int]:
        """Engine ids of images that were pulled with credentials, and when they were marked, in ns. Marks of older releases name none."""
        found = {}
        for mark in self._private("").parent.glob("[0-9a-f]*"):
            with contextlib.suppress(FileNotFoundError):
                found[mark.read_text()] = mark.stat().st_mtime_ns
        found.pop("", None)
        return found

    def drop_private_mark(self, engine_id: str, marked_ns: int) -> bool:
        """Of an image that the engine was seen not to have. False when it was marked anew since, or such an image is just coming."""
        mark = self._private(engine_id)
        with self._marking:
            if any(self._coming_private()) or not mark.exists() or mark.stat().st_mtime_ns != marked_ns:
                return False
            mark.unlink()
        return True

    def _coming_private(self) -> Iterator[CacheEntry]:
        return (entry for entry in self._of_kind("pulled") if entry.is_private and not entry.is_complete)

    def _mark_private(self, engine_id: str) -> None:
        mark = self._private(engine_id)
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = mark.parent / f".{mark.name}.{time.monotonic_ns()}"
        with self._marking:
            staged.write_text(engine_id)
            staged.replace(mark)

    def use_pulled(self, name: str) -> None:
        """Counts as a use. What the owner has pulled himself is not in the books, and stays out of them."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._pulled(name))

    def drop_expected(self, name: str) -> None:
        """After a pull that failed; what another lease has pulled meanwhile stays in the books."""
        with contextlib.suppress(FileNotFoundError):
            if not _entry("pulled", Digest(""), self._pulled(name)).is_complete:
                self.drop_pulled(name)

    def drop_pulled(self, name: str) -> None:
        self._pulled(name).unlink(missing_ok=True)

    def _write_pulled(self, name: str, about: Mapping[str, object]) -> None:
        place = self._pulled(name)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = place.with_suffix(f".{time.monotonic_ns()}")
        staged.write_text(json.dumps({"name": name, **about}))
        staged.replace(place)

    def _private(self, engine_id: str) -> Path:
        return self._root / "private" / sha256_digest(engine_id.encode()).removeprefix("sha256:")

    def _pulled(self, name: str) -> Path:
        return self._root / "pulled" / sha256_digest(name.encode()).removeprefix("sha256:")

    # --- all ----------------------------------------------------------------------------------------------------------

    def entries(self) -> list[CacheEntry]:
        """The latest used first."""
        found = [entry for kind in ("blob", "image", "pulled") for entry in self._of_kind(kind)]
        return sorted(found, key=lambda entry: (-entry.used_at_ms, entry.digest))

    def remove(self, entry: CacheEntry) -> None:
        """Safe to repeat. An image of the engine is to be removed there first."""
        if entry.kind == "pulled":
            self.drop_pulled(entry.engine_image or "")
            return
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

    def over_budget(self, in_use: Collection[str], budget_bytes: int | None = None) -> list[CacheEntry]:
        """What has to go, the least lately used first, so that the rest fits; and what a killed agent was pulling. Never what a lease uses."""
        most = self._budget_bytes if budget_bytes is None else budget_bytes
        entries = self.entries()
        too_much, doomed = sum(entry.size_bytes for entry in entries) - most, []
        for entry in reversed(entries):
            if (too_much > 0 or not entry.is_complete) and not entry.is_among(in_use):
                doomed.append(entry)
                too_much -= entry.size_bytes
        return doomed

    def _of_kind(self, kind: Kind) -> list[CacheEntry]:
        folder, found = self._root / (kind if kind == "pulled" else f"{kind}s"), []
        for place in folder.iterdir() if folder.is_dir() else ():
            digest = place.name if ":" in place.name else f"sha256:{place.name}"
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
    if kind == "pulled":
        about, used_ns = json.loads(place.read_text()), place.stat().st_mtime_ns
        of_engine = about["name"], about["engine_id"], bool(about.get("private"))  # of an older release: no
        return CacheEntry(kind, Digest(about["digest"]), int(about["size_bytes"]), used_ns // 1_000_000, *of_engine)
    about, used_ns = json.loads((place / _ABOUT).read_text()), (place / _ABOUT).stat().st_mtime_ns
    return CacheEntry(kind, digest, int(about["size_bytes"]), used_ns // 1_000_000, about.get("engine_image"))


class ForgetImage(Protocol):
    """`Executor.forget_image`"""

    def __call__(self, reference: str, only_if: str | None = None) -> Awaitable[None]: ...


async def trim(
    cache: Cache, forget_image: ForgetImage, in_use: Collection[str], budget_bytes: int | None = None
) -> list[CacheEntry]:
    """Removes what is too much; says what went. What the engine does not let go (somebody's container uses it) stays, and the rest goes on."""
    gone = []
    for entry in await asyncio.to_thread(cache.over_budget, in_use, budget_bytes):
        try:
            await remove(cache, forget_image, entry)
        except TorgError as error:
            log.info("the cache keeps %s for now: %s", entry.engine_image, error.message)
        else:
            gone.append(entry)
    return gone


async def forget_private_marks(cache: Cache, must_pull: Callable[[str], Awaitable[bool]]) -> list[str]:
    """Those of images that the engine has no more. `must_pull`: `Executor.must_pull`. By the agent alone, whose pulls it knows of."""
    gone = []
    for engine_id, marked_ns in (await asyncio.to_thread(cache.private_marks)).items():
        if await must_pull(engine_id) and await asyncio.to_thread(cache.drop_private_mark, engine_id, marked_ns):
            gone.append(engine_id)
    return gone


async def remove(cache: Cache, forget_image: ForgetImage, entry: CacheEntry) -> None:
    if entry.engine_image is not None:
        await forget_image(entry.engine_image, entry.engine_id)
    await asyncio.to_thread(cache.remove, entry)


def names_in_use(journal_path: Path) -> frozenset[str]:
    """Digests and images of what open leases and live rentals run or read."""
    with contextlib.closing(Journal(journal_path)) as journal, contextlib.closing(RentalBook(journal_path)) as rentals:
        leased = [entry.signed.grant.spec for entry in journal.open_leases()]
        rented = [entry.terms.spec for entry in rentals.live()]
    return frozenset(name for spec in (*leased, *rented) for name in _names_of(spec))


def _names_of(spec: JobSpec) -> list[str]:
    return [*spec.images, *spec.image_archives, *(blob.digest for _, blob in spec.blobs())]


def warm_names(cache: Cache) -> tuple[str, ...]:
    """As jobs name them, the latest used first. Everybody reads it: nothing of what was pulled with somebody's credentials."""
    names = {"image": f"{BLOB_IMAGE}%s", "blob": "%s"}
    return tuple(
        str(entry.engine_image) if entry.kind == "pulled" else names[entry.kind] % entry.digest
        for entry in cache.entries()[:_WARM_ITEMS]
        if entry.is_complete and not entry.is_private
    )
