"""Objects by name, in a folder or in a bucket that speaks S3: the same operations, and the same errors, over obstore.

A read or a write that fails on the way is tried again, for up to ten seconds; then it is Unavailable `blob_store_unavailable`, which clients
and nodes try again by themselves. What a large object is read by are ranges, each a request of its own: a connection that is cut in the
middle of gigabytes costs one range, and nothing waits for a store that has stopped to talk.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, ObjectStore, S3Store

from torg_host.durable_files import move_for_good
from torg_protocol.errors import Invalid, NotFound, Unavailable

log = logging.getLogger(__name__)
_RANGE_BYTES = 4 << 20  # of one request; the next one is asked for while it is used
_BLOCK_BYTES = 1 << 20
_PROBE = "probe"
_FRESH = ".fresh"  # folder of what is being written; no object's name begins so
_UNFINISHED_FOR_S = 86_400  # far longer than anything is written for
_RETRIES: Any = {
    "max_retries": 10,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
_CLIENT: Any = {"connect_timeout": "5s", "timeout": "60s"}  # of one request: at most a range, or a part of an upload


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


class Objects:
    """Every method raises Unavailable `blob_store_unavailable`; those that read also NotFound `object_missing`."""

    def __init__(self, store: ObjectStore, where: str, folder: Path | None = None) -> None:
        """`folder`: where the objects are files, if they are."""
        self._store: Any = store
        self._folder = folder
        self.where = where

    async def size(self, name: str) -> int | None:
        try:
            with self._translated(name):
                return int((await obstore.head_async(self._store, name))["size"])
        except NotFound:
            return None

    async def put(self, name: str, data: bytes) -> None:
        """All or nothing, and in a folder on the disk: so are the other two."""
        with self._translated(name):
            if self._folder is None:
                await obstore.put_async(self._store, name, data)
            else:
                await asyncio.to_thread(_write, [data], self._folder / _FRESH, self._folder / name)

    async def take(self, name: str, file: Path) -> None:
        """Puts a file that nobody needs afterwards; in a folder it is only renamed. A bucket gets a large one in parts, several at a time."""
        with self._translated(name):
            if self._folder is not None:
                await asyncio.to_thread(_take, file, self._folder / _FRESH, self._folder / name)
                return
            with await asyncio.to_thread(file.open, "rb") as opened:
                await obstore.put_async(self._store, name, opened)

    async def put_checked(self, name: str, data: list[bytes], check: Callable[[], None]) -> None:
        """Puts a small object unless `check`, which is called in a thread, raises."""
        with self._translated(name):
            if self._folder is None:
                await asyncio.to_thread(check)
                await obstore.put_async(self._store, name, b"".join(data))
            else:
                await asyncio.to_thread(_write, data, self._folder / _FRESH, self._folder / name, check)

    async def hash_into(self, name: str, hasher: Hash) -> None:
        """Feeds all bytes of a small object to `hasher`."""
        if self._folder is None:
            await asyncio.to_thread(hasher.update, await self.get(name))
            return
        with self._translated(name):
            await asyncio.to_thread(_read_into, self._folder / name, hasher)

    async def get(self, name: str) -> bytes:
        """Whole: for small objects."""
        with self._translated(name):
            found = await obstore.get_async(self._store, name)
            return bytes(await found.bytes_async())

    async def stream(self, name: str, start: int, size_bytes: int) -> AsyncGenerator[bytes, None]:
        """From `start` on, of an object that has `size_bytes`."""
        offsets = range(start, size_bytes, _RANGE_BYTES)
        following: asyncio.Task[bytes] | None = None
        try:
            for offset in offsets:
                current = following or asyncio.create_task(self._range(name, offset, size_bytes))
                following = None
                data = await current
                if offset + _RANGE_BYTES < size_bytes:
                    following = asyncio.create_task(self._range(name, offset + _RANGE_BYTES, size_bytes))
                yield data
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    async def names(self, prefix: str) -> AsyncGenerator[str, None]:
        """Of all objects below a prefix."""
        with self._translated(prefix):
            async for page in obstore.list(self._store, prefix):
                for entry in page:
                    yield entry["path"]

    async def delete(self, name: str) -> None:
        """Safe to repeat."""
        try:
            with self._translated(name):
                await obstore.delete_async(self._store, name)
        except NotFound:
            pass

    async def probe(self) -> None:
        """Writes, reads and deletes. Raises Invalid `blob_store_unusable` where waiting will not help."""
        try:
            await self.put(_PROBE, b"torg")
            await self.get(_PROBE)
            await self.delete(_PROBE)
        except (NotFound, Unavailable) as error:
            if isinstance(error, Unavailable) and not error.data.get("refused"):
                raise
            raise Invalid(
                f"blobs cannot be kept there: {error.message}",
                code="blob_store_unusable",
                field="--blobs",
                value=self.where,
                hint="the bucket must exist, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY may write to it",
            ) from error

    async def _range(self, name: str, start: int, size_bytes: int) -> bytes:
        with self._translated(name):
            end = min(start + _RANGE_BYTES, size_bytes)
            return bytes(await obstore.get_range_async(self._store, name, start=start, end=end))

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound("no such object", code="object_missing", field="name", value=name) from error
        except (BaseError, OSError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("%s: %s: %s", self.where, name, why)
            refused = isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError)
            is_full = os.strerror(errno.ENOSPC) in why  # the library passes the system's words on, and no number
            says = "refuses this marketplace" if refused else "is full" if is_full else "does not answer"
            when = "when its operator has made room" if is_full else "in a moment"
            raise Unavailable(
                f"the store of blobs {says}",
                code="blob_store_unavailable",
                hint=f"try again {when}; what was stored is safe",
                refused=refused or None,
            ) from error


def _take(file: Path, fresh: Path, target: Path) -> None:
    try:
        move_for_good(file, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with _new_file(fresh) as (_, copied):  # the two are on different file systems
            shutil.copyfile(file, copied)
            move_for_good(copied, target)


def _write(data: list[bytes], fresh: Path, target: Path, check: Callable[[], None] | None = None) -> None:
    """One visit to a thread for all that a piece of an upload needs."""
    if check is not None:
        check()
    with _new_file(fresh) as (descriptor, written):
        with os.fdopen(descriptor, "wb", buffering=0, closefd=False) as file:
            write_all(file, data)
        move_for_good(written, target)


@contextmanager
def _new_file(fresh: Path) -> Iterator[tuple[int, Path]]:
    """Beside the objects, on their file system. Gone afterwards unless it was moved."""
    descriptor, name = tempfile.mkstemp(dir=fresh)
    try:
        yield descriptor, Path(name)
    finally:
        os.close(descriptor)
        Path(name).unlink(missing_ok=True)


def write_all(file: IO[bytes], data: list[bytes]) -> None:
    """To a file without a buffer, which may take less than it is given."""
    for part in data:
        rest = memoryview(part)
        while rest:
            rest = rest[file.write(rest) :]


def _read_into(file: Path, hasher: Hash) -> None:
    with file.open("rb", buffering=0) as opened:
        while data := opened.read(_BLOCK_BYTES):
            hasher.update(data)


def folder_objects(folder: Path) -> Objects:
    (folder / _FRESH).mkdir(parents=True, exist_ok=True)
    forget_unfinished(folder / _FRESH)
    return Objects(LocalStore(folder), str(folder), folder)


def forget_unfinished(folder: Path) -> None:
    """What processes that were killed have left half-written there. Others may write there now: what is young stays."""
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            if file.stat().st_mtime < time.time() - _UNFINISHED_FOR_S:
                file.unlink()


def bucket_objects(url: str, endpoint: str | None) -> Objects:
    """`url`: s3://bucket or s3://bucket/prefix. Credentials and region as the AWS tools find them: AWS_* variables, or the machine's role.
    `endpoint`: of another service that speaks S3 (MinIO, R2, Ceph, ...). Raises Invalid `blobs_invalid`."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise Invalid(
            "not a place for blobs",
            code="blobs_invalid",
            field="--blobs",
            value=url,
            hint="s3://BUCKET or s3://BUCKET/PREFIX; without it, blobs are files in the data folder",
        )
    if endpoint is not None and urlsplit(endpoint).scheme not in {"http", "https"}:
        raise Invalid(
            "not the address of an S3 service",
            code="blobs_endpoint_invalid",
            field="--blobs-endpoint",
            value=endpoint,
            hint="for example https://minio.example:9000",
        )
    more: dict[str, Any] = {"endpoint": endpoint} if endpoint is not None else {}
    client: Any = {**_CLIENT, "allow_http": True} if endpoint is not None else _CLIENT
    store = S3Store(
        parts.netloc, prefix=parts.path.strip("/") or None, client_options=client, retry_config=_RETRIES, **more
    )
    return Objects(store, url)
