"""Both places where blobs may be, a folder and a bucket, behave alike; and what a bucket that fails does to its users. S3 is SIMULATED by moto."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from tests.support.api_server import served_world
from tests.support.s3 import CREDENTIALS, SimulatedS3, running_s3
from torg.blobs import BlobTransfer
from torg.transport import Transport
from torg_host.archive import pack
from torg_marketplace.storage.blobs import StoredBlobs, bucket_blobs, local_blobs
from torg_marketplace.storage.objects import bucket_objects, folder_objects
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import Invalid, NotFound, TooLarge, Unavailable
from torg_protocol.jobspec import BlobRef

MIB = 1 << 20
LARGE = random.Random(7).randbytes(13 * MIB)  # of several ranges, and several parts of an upload


@pytest.fixture(scope="module")
def s3() -> Iterator[SimulatedS3]:
    with running_s3() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(params=["folder", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> StoredBlobs:
    if request.param == "folder":
        return local_blobs(tmp_path, b"secret", max_bytes=1 << 30)
    s3: SimulatedS3 = request.getfixturevalue("s3")
    return bucket_blobs(s3.url(tmp_path.name), s3.endpoint, tmp_path, b"secret", max_bytes=1 << 30)


async def sent(data: bytes, *, piece: int = MIB) -> AsyncIterator[bytes]:
    for offset in range(0, len(data), piece):
        yield data[offset : offset + piece]


def ref(data: bytes) -> BlobRef:
    return BlobRef(digest=sha256_digest(data), size_bytes=len(data))


@pytest.mark.parametrize("data", [b"", b"a few", LARGE], ids=["empty", "small", "large"])
async def test_what_was_sent_comes_back_from_any_byte_on(blobs: StoredBlobs, data: bytes, tmp_path: Path) -> None:
    digest = sha256_digest(data)
    assert await blobs.size(digest) is None
    for _ in range(2):  # safe to repeat
        await blobs.receive(digest, len(data), sent(data))

    assert await blobs.size(digest) == len(data)
    assert await blobs.read(digest) == data
    await blobs.fetch_to(digest, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    for start in {0, len(data) // 3, max(0, len(data) - 1), len(data)}:
        assert b"".join([piece async for piece in blobs.stream(digest, start)]) == data[start:]


async def test_bytes_that_are_not_their_name_leave_nothing(blobs: StoredBlobs) -> None:
    digest = sha256_digest(LARGE)
    with pytest.raises(Invalid) as wrong:
        await blobs.receive(digest, len(LARGE), sent(LARGE[:-1] + b"?"))
    with pytest.raises(TooLarge) as longer:
        await blobs.receive(digest, len(LARGE) - 1, sent(LARGE))

    assert (wrong.value.code, longer.value.code) == ("blob_digest_mismatch", "blob_too_large")
    assert await blobs.size(digest) is None
    with pytest.raises(NotFound) as missing:
        await blobs.read(digest)
    assert (missing.value.code, missing.value.value) == ("blob_missing", digest)


async def test_pieces_become_one_blob(blobs: StoredBlobs) -> None:
    pieces = [LARGE[: 4 * MIB], LARGE[4 * MIB : 9 * MIB], LARGE[9 * MIB :]]
    with pytest.raises(NotFound) as missing:
        await blobs.put_together(ref(LARGE), [ref(piece) for piece in pieces])
    for piece in pieces:
        await blobs.write(piece)
    with pytest.raises(Invalid) as shuffled:
        await blobs.put_together(ref(LARGE), [ref(piece) for piece in reversed(pieces)])
    await blobs.put_together(ref(LARGE), [ref(piece) for piece in pieces])

    assert (missing.value.code, missing.value.value) == ("blob_missing", ref(pieces[0]).digest)
    assert shuffled.value.code == "blob_digest_mismatch"
    assert await blobs.size(ref(LARGE).digest) == len(LARGE)
    assert await blobs.read(ref(LARGE).digest) == LARGE
    assert b"".join([piece async for piece in blobs.stream(ref(LARGE).digest, 5 * MIB)]) == LARGE[5 * MIB :]


async def test_a_reader_that_goes_leaves_nothing_running(blobs: StoredBlobs) -> None:
    digest = await blobs.write(LARGE)
    async with aclosing(blobs.stream(digest)) as pieces:
        async for piece in pieces:
            assert LARGE.startswith(piece)
            break

    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_real_client_moves_a_tree_through_the_real_api(s3: SimulatedS3, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "shard.bin").write_bytes(LARGE)
    packed = pack(tmp_path / "tree", tmp_path / "archive")
    kept = bucket_blobs(s3.url("api"), s3.endpoint, tmp_path / "incoming", b"secret", max_bytes=1 << 30)
    async with served_world(tmp_path, blobs=kept) as served:
        transport = Transport(served.url, served.client.key)
        try:
            await BlobTransfer(transport).store(packed.digest, tmp_path / "archive", pieces=packed.pieces)
            await BlobTransfer(transport).fetch(packed.digest, tmp_path / "out", tmp_path)
        finally:
            await transport.aclose()

    assert (tmp_path / "out").read_bytes() == (tmp_path / "archive").read_bytes()
    assert [name for name in s3.names() if name.startswith("api/lists/")]
    assert not [path for path in (tmp_path / "incoming").rglob("*") if path.is_file()]


@asynccontextmanager
async def broken_s3(answers: list[bytes], after: bytes) -> AsyncIterator[str]:
    """Answers each request by the next of `answers`, then by `after`; its URL. b"" closes the connection without a word."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answers.pop(0) if answers else after)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.usefixtures("s3")
async def test_what_a_bucket_fails_to_do_once_is_done_again() -> None:
    busy = answer("503 Slow Down")
    good = answer("200 OK", b"torg", last_modified="Mon, 01 Jan 2024 00:00:00 GMT", etag='"1"')
    async with broken_s3([busy, b"", busy], good) as endpoint:
        assert await bucket_objects("s3://market/x", endpoint).get("one") == b"torg"


@pytest.mark.usefixtures("s3")
async def test_a_bucket_that_refuses_is_said_to_the_operator_and_503_to_everybody_else(tmp_path: Path) -> None:
    async with broken_s3([], answer("403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>")) as endpoint:
        kept = bucket_blobs("s3://market/x", endpoint, tmp_path / "incoming", b"secret", max_bytes=1 << 30)
        with pytest.raises(Invalid) as at_start:
            await kept.probe()
        async with served_world(tmp_path, blobs=kept) as served, served.wallet() as http:
            asked = {"digest": sha256_digest(b"1234"), "size_bytes": 4}
            url = (await http.post("/v1/blobs", json=asked)).json()["url"]
            refused = await http.put(url, content=b"1234")

    assert (at_start.value.code, at_start.value.field) == ("blob_store_unusable", "--blobs")
    assert (refused.status_code, refused.json()["code"]) == (503, "blob_store_unavailable")
    assert refused.headers["retry-after"]


async def test_a_bucket_that_is_not_there_is_said_at_start(s3: SimulatedS3) -> None:
    with pytest.raises(Invalid) as missing:
        await bucket_objects("s3://no-such-bucket", s3.endpoint).probe()
    await bucket_objects(s3.url("probed"), s3.endpoint).probe()

    assert (missing.value.code, missing.value.value) == ("blob_store_unusable", "s3://no-such-bucket")
    assert not [name for name in s3.names() if name.startswith("probed/")]


@pytest.mark.usefixtures("s3")
async def test_a_service_that_does_not_listen_is_worth_waiting_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused at once
        monkeypatch.setattr("torg_marketplace.storage.objects._RETRIES", {"max_retries": 1})
        with pytest.raises(Unavailable) as gone:
            await bucket_objects("s3://market", f"http://127.0.0.1:{taken.getsockname()[1]}").probe()

    assert gone.value.code == "blob_store_unavailable"


@pytest.mark.parametrize(
    ("url", "endpoint", "code", "field"),
    [
        ("gs://bucket", None, "blobs_invalid", "--blobs"),
        ("s3:///prefix", None, "blobs_invalid", "--blobs"),
        ("/var/blobs", None, "blobs_invalid", "--blobs"),
        ("s3://bucket?x=1", None, "blobs_invalid", "--blobs"),
        ("s3://bucket", "minio:9000", "blobs_endpoint_invalid", "--blobs-endpoint"),
    ],
)
def test_a_wrong_place_is_named(url: str, endpoint: str | None, code: str, field: str) -> None:
    with pytest.raises(Invalid) as wrong:
        bucket_objects(url, endpoint)

    assert (wrong.value.code, wrong.value.field) == (code, field)


async def test_what_is_forgotten_is_gone(blobs: StoredBlobs) -> None:
    digest = await blobs.write(b"kept for a while")
    for _ in range(2):  # safe to repeat
        await blobs.forget(digest)

    assert await blobs.size(digest) is None


async def test_a_full_disk_is_said_to_be_one(tmp_path: Path) -> None:
    objects = folder_objects(tmp_path)
    with pytest.raises(Unavailable) as full, objects._translated("ab/cd"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (full.value.message, full.value.code) == ("the store of blobs is full", "blob_store_unavailable")


def noted_disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is forced to the disk, and what gets a name, in this order."""
    steps: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(descriptor: int) -> None:
        steps.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def noting_replace(file: Path, target: Path) -> Path:
        moved = replace(file, target)
        steps.append((str(file), str(target)))
        return moved

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    return steps


@pytest.mark.parametrize("data", [b"a few", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("how", ["received", "written", "put together"])
async def test_what_is_said_to_be_stored_is_there_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, how: str
) -> None:
    """Checkpoints are called durable and their nodes forget them: bytes before the name, and the name before the answer."""
    blobs = local_blobs(tmp_path, b"secret", max_bytes=1 << 30)
    if how == "put together":
        pieces = (await blobs.write(data[:3]), await blobs.write(data[3:]))
        refs = [BlobRef(digest=pieces[0], size_bytes=3), BlobRef(digest=pieces[1], size_bytes=len(data) - 3)]
    steps = noted_disk(monkeypatch)

    match how:
        case "received":
            await blobs.receive(sha256_digest(data), len(data), sent(data))
        case "written":
            await blobs.write(data)
        case _:
            await blobs.put_together(ref(data), refs)

    (named,) = [number for number, (what, _) in enumerate(steps) if what != "sync"]
    source, target = steps[named]
    assert ("sync", source) in steps[:named]
    assert steps[-1] == ("sync", str(Path(target).parent))
    above = [str(folder) for folder in Path(target).parents[1:4]]  # made for this one
    assert [folder for folder in above if ("sync", folder) in steps]


async def test_what_killed_processes_left_half_written_goes_after_a_day(tmp_path: Path) -> None:
    local_blobs(tmp_path, b"secret", max_bytes=1 << 30)
    young, old = [], []
    for folder in (tmp_path / "incoming", tmp_path / "objects" / ".fresh"):
        young.append(folder / "of a moment ago")
        old.append(folder / "of two days ago")
        for file in (young[-1], old[-1]):
            file.write_bytes(b"half")
        os.utime(old[-1], (0, time.time() - 2 * 86_400))

    local_blobs(tmp_path, b"secret", max_bytes=1 << 30)

    assert all(file.exists() for file in young)
    assert not any(file.exists() for file in old)
