"""What is kept for the next job: found by digest, bounded by a budget, never taken from under a lease."""

from __future__ import annotations

import os
from pathlib import Path

from torg_node.cache import Cache, remove, trim, warm_names
from torg_node.executors.port import LoadedImage
from torg_protocol.canonical import sha256_digest
from torg_protocol.ids import Digest

MIB = 1 << 20
forgotten: list[str] = []


async def forget(reference: str, only_if: str | None = None) -> None:
    forgotten.append(reference)


def blob(folder: Path, cache: Cache, text: str, *, age_s: int, size: int = MIB) -> Digest:
    source = folder / text
    source.write_bytes(text.encode().ljust(size, b"."))
    digest = sha256_digest(source.read_bytes())
    cache.keep_blob(digest, source)
    kept = folder / "cache" / "blobs" / digest.removeprefix("sha256:")
    if kept.exists():
        now = kept.stat().st_mtime
        os.utime(kept, (now - age_s, now - age_s))
    return digest


def image(cache: Cache, text: str, size: int, engine_image: str | None = None) -> Digest:
    digest = sha256_digest(text.encode())
    staging = cache.new_image(digest)
    (staging / "file").write_bytes(bytes(size))
    cache.keep_image(digest, staging, LoadedImage("sha256:image", engine_image))
    return digest


def test_a_kept_blob_is_there_for_the_next_lease_and_survives_its_eviction(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 10 * MIB)
    digest = blob(tmp_path, cache, "one", age_s=100)

    assert cache.take_blob(digest, tmp_path / "lease")
    assert not cache.take_blob(sha256_digest(b"another"), tmp_path / "other")
    (entry,) = Cache(tmp_path / "cache", 0).entries()  # another process
    cache.remove(entry)
    cache.remove(entry)
    assert cache.entries() == []
    assert (tmp_path / "lease").stat().st_size == MIB


async def test_the_least_lately_used_goes_first_and_what_a_lease_uses_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 3 * MIB)
    oldest, older, newer = (blob(tmp_path, cache, f"{age}", age_s=age) for age in (300, 200, 100))
    assert cache.over_budget(()) == []
    newest = image(cache, "image", MIB)

    assert [entry.digest for entry in cache.over_budget({oldest})] == [older]
    assert [entry.digest for entry in await trim(cache, forget, {oldest}, 2 * MIB)] == [older, newer]
    assert {entry.digest for entry in cache.entries()} == {oldest, newest}
    assert await trim(cache, forget, {oldest, newest}, 0) == []


def test_using_counts(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 10 * MIB)
    old, new = (blob(tmp_path, cache, f"{age}", age_s=age) for age in (200, 100))

    cache.take_blob(old, tmp_path / "lease")

    assert [entry.digest for entry in cache.entries()] == [old, new]
    assert warm_names(cache) == (old, new)


def test_without_a_budget_or_beyond_it_nothing_is_kept(tmp_path: Path) -> None:
    blob(tmp_path, Cache(tmp_path / "cache", 0), "one", age_s=0)
    blob(tmp_path, Cache(tmp_path / "cache", MIB), "two", age_s=0, size=2 * MIB)

    assert Cache(tmp_path / "cache", 0).entries() == []


async def test_an_image_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 10 * MIB)
    digest = sha256_digest(b"image")
    (cache.new_image(digest) / "half").write_bytes(b"x")

    assert cache.image(digest) is None
    assert cache.entries() == []
    image(cache, "image", MIB, engine_image="sha256:engine")
    folder = cache.image(digest)
    assert folder is not None
    assert sorted(path.name for path in folder.iterdir()) == ["about.json", "file"]
    image(cache, "image", MIB)  # a second lease that made it at the same time
    (entry,) = cache.entries()
    assert MIB <= entry.size_bytes < 2 * MIB
    assert warm_names(cache) == (f"blob:{digest}",)

    await remove(cache, forget, entry)
    assert forgotten == ["sha256:engine"]
    assert cache.image(digest) is None
