"""Blobs over the real API with the real client: in pieces, once, and only for those who had the bytes or were given them."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from solders.keypair import Keypair

from tests.support.actors import TUSD, make_client, spec
from tests.support.api_server import ServedWorld, WalletAuth, served_world
from torg.blobs import BlobTransfer
from torg.transport import Transport
from torg.tree_upload import upload_tree
from torg_host.archive import PackedTree, Sink, pack, pack_into, unpack
from torg_host.uploads import Upload
from torg_marketplace.storage.volume_models import VolumeRow
from torg_protocol.api import BlobUpload
from torg_protocol.canonical import sha256_digest
from torg_protocol.errors import Invalid, NotFound, TorgError, Unavailable
from torg_protocol.jobspec import BlobRef, load_job_spec
from torg_protocol.pieces import digest_of_pieces

MIB = 1 << 20


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedWorld]:
    async with served_world(tmp_path) as opened:
        yield opened


class CountingTransport(Transport):
    """Counts what goes out, and breaks the connection where it is told to."""

    def __init__(self, url: str, key: Keypair) -> None:
        super().__init__(url, key)
        self.sent: list[int] = []
        self.sent_offsets: list[int] = []
        self.sent_digests: list[str] = []
        self.breaks_after: int | None = None

    async def upload(
        self, url: str, source: Path, offset: int, size_bytes: int, on_sent: Callable[[int], None] | None = None
    ) -> None:
        if self.breaks_after is not None and len(self.sent) >= self.breaks_after:
            self.breaks_after = None
            raise Unavailable("the line is cut")
        await super().upload(url, source, offset, size_bytes, on_sent)
        self.sent.append(size_bytes)
        self.sent_offsets.append(offset)

    async def upload_bytes(self, url: str, data: bytes) -> None:
        if self.breaks_after is not None and len(self.sent) >= self.breaks_after:
            self.breaks_after = None
            raise Unavailable("the line is cut")
        await super().upload_bytes(url, data)
        self.sent.append(len(data))
        self.sent_digests.append(sha256_digest(data))


@dataclass
class Party:
    transport: CountingTransport
    progress: list[tuple[int, int]] = field(default_factory=list)

    async def store(self, archive: Path, packed: PackedTree) -> None:
        await self.blobs.store(packed.digest, archive, lambda *at: self.progress.append(at), packed.pieces)

    @property
    def blobs(self) -> BlobTransfer:
        return BlobTransfer(self.transport)


@asynccontextmanager
async def party(served: ServedWorld, key: Keypair) -> AsyncIterator[Party]:
    transport = CountingTransport(served.url, key)
    try:
        yield Party(transport)
    finally:
        await transport.aclose()


def a_tree(root: Path, *, seed: int = 1) -> Path:
    root.mkdir(exist_ok=True)
    for number in range(4):
        (root / f"shard-{number}.bin").write_bytes(random.Random(seed + number).randbytes(5 * MIB))
    return root


async def test_a_tree_is_packed_and_sent_at_once_and_arrives_whole(served: ServedWorld, tmp_path: Path) -> None:
    root = a_tree(tmp_path / "tree")
    expected = pack(root, tmp_path / "archive")
    progress: list[tuple[int, int]] = []
    async with party(served, served.client.key) as client:
        client.transport.breaks_after = 3
        stored = await client.blobs.store_tree(root, lambda *at: progress.append(at))
        first = sum(client.transport.sent)
        (root / "shard-2.bin").write_bytes(b"changed")
        changed = await client.blobs.store_tree(root)

        assert stored == expected
        assert stored.digest.startswith("pieces:")
        assert first == stored.size_bytes  # the piece that broke went once more, and nothing else
        assert sum(client.transport.sent) - first < 5000
        assert progress[-1] == (20 * MIB, 20 * MIB)
        assert progress == sorted(progress)
        for packed in (stored, changed):
            await client.blobs.fetch(packed.digest, tmp_path / f"out-{packed.size_bytes}", tmp_path)
    assert (tmp_path / f"out-{stored.size_bytes}").read_bytes() == (tmp_path / "archive").read_bytes()
    unpack(tmp_path / f"out-{changed.size_bytes}", tmp_path / "copy")
    assert (tmp_path / "copy" / "shard-2.bin").read_bytes() == b"changed"


async def test_an_upload_that_is_given_up_leaves_no_thread_and_goes_on_later(
    served: ServedWorld, tmp_path: Path
) -> None:
    root = a_tree(tmp_path / "tree")
    async with party(served, served.client.key) as client:
        until_some_sent = asyncio.Event()
        running = asyncio.create_task(client.blobs.store_tree(root, lambda *_: until_some_sent.set()))
        await asyncio.wait_for(until_some_sent.wait(), 60)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

        assert not [thread for thread in threading.enumerate() if thread.name.startswith("pack")]
        await client.blobs.store_tree(root)
        assert len(client.transport.sent) == len(set(client.transport.sent_digests))


async def test_a_file_that_vanishes_while_it_is_packed_ends_the_upload(served: ServedWorld, tmp_path: Path) -> None:
    root = a_tree(tmp_path / "tree")

    def vanishing(sink: Sink) -> PackedTree:
        return pack_into(lambda *piece: ((root / "shard-3.bin").unlink(missing_ok=True), sink(*piece))[1], root)

    async with party(served, served.client.key) as client:
        with pytest.raises(TorgError) as refused:
            await upload_tree(client.transport, vanishing, 20 * MIB)

    assert refused.value.code == "archive_changed"


async def test_what_one_may_read_need_not_be_sent_again(served: ServedWorld, tmp_path: Path) -> None:
    """As of a volume that somebody else's node has stored; and of nothing that only its owner may read."""
    root = a_tree(tmp_path / "tree")
    stranger, heir = await make_client(served.world), await make_client(served.world)
    async with party(served, served.client.key) as owner:
        first = await owner.blobs.store_tree(root)
    async with served.world.market.transaction() as unit:
        row = VolumeRow(account=heir.account, name="theirs", digest=first.digest, size_bytes=first.size_bytes)
        row.created_at_ms = row.used_at_ms = unit.now_ms
        unit.session.add(row)
    (root / "shard-2.bin").write_bytes(b"changed")
    second = pack(root, tmp_path / "second")
    body = Upload.of(second.digest, second.size_bytes, second.pieces, first.digest).request()
    missing = {}
    for account in (stranger, heir):
        async with party(served, account.key) as sender:
            answer = await sender.transport.ask(BlobUpload, "POST", "/v1/blobs", body=body)
            missing[account.account] = len(answer.missing)
            await sender.store(tmp_path / "second", second)
            await sender.blobs.fetch(second.digest, tmp_path / "out", tmp_path)
            assert (tmp_path / "out").read_bytes() == (tmp_path / "second").read_bytes()
    assert missing[stranger.account] == len(second.pieces)
    assert 0 < missing[heir.account] < len(second.pieces) // 2


async def test_what_lists_of_pieces_are_refused(served: ServedWorld) -> None:
    data, listed = b"data", {"digest": sha256_digest(b"data"), "size_bytes": 4}
    other = {"digest": sha256_digest(b"more"), "size_bytes": 4}
    pieces = [BlobRef.model_validate(item) for item in (listed, other)]
    name = digest_of_pieces(pieces)
    async with served.wallet() as http:

        async def answer(**body: object) -> tuple[int, str | None]:
            response = await http.post("/v1/blobs", json=body)
            return response.status_code, response.json().get("code")

        for piece, content in ((listed, data), (other, b"more")):
            url = (await http.post("/v1/blobs/pieces", json={"pieces": [piece]})).json()["missing"][0]["url"]
            assert (await http.put(url, content=content[:3])).json()["code"] == "blob_size_mismatch"
            assert (await http.put(url, content=content)).status_code == 204
        assert (await http.post("/v1/blobs/pieces", json={"pieces": [listed, other]})).json() == {"missing": []}

        assert await answer(digest=name, size_bytes=8) == (422, "blob_pieces_missing")
        assert await answer(digest=name, size_bytes=8, pieces=[other, listed]) == (422, "blob_digest_mismatch")
        assert await answer(digest=name, size_bytes=9, pieces=[listed, other]) == (422, "blob_size_mismatch")
        longer = [listed, {**other, "size_bytes": 5}]
        assert await answer(digest=name, size_bytes=9, pieces=longer) == (422, "blob_size_mismatch")
        assert await answer(digest=name, size_bytes=8, pieces=[listed, other]) == (200, None)
        found = (await http.get(f"/v1/blobs/{name}")).json()
        assert (found["size_bytes"], found["pieces"]) == (8, [listed, other])
        assert (await http.get(found["url"])).content == b"datamore"


async def test_a_changed_tree_sends_what_changed_and_arrives_whole(served: ServedWorld, tmp_path: Path) -> None:
    root = a_tree(tmp_path / "tree")
    first = pack(root, tmp_path / "first")
    (root / "shard-2.bin").write_bytes(b"changed")
    second = pack(root, tmp_path / "second")
    async with party(served, served.client.key) as client:
        await client.store(tmp_path / "first", first)
        sent = sum(client.transport.sent)
        await client.store(tmp_path / "second", second)
        await client.store(tmp_path / "second", second)

        assert sent == first.size_bytes
        assert sum(client.transport.sent) - sent < 5000
        assert client.progress[-1] == (second.size_bytes, second.size_bytes)
        for packed in (first, second):
            await client.blobs.fetch(packed.digest, tmp_path / "out", tmp_path)
            assert (tmp_path / "out").stat().st_size == packed.size_bytes
        async with served.wallet() as http:
            url = (await http.get(f"/v1/blobs/{first.digest}")).json()["url"]
            start = first.pieces[1].offset + 7
            rest = await http.get(url, headers={"range": f"bytes={start}-"})
        assert (rest.status_code, rest.content) == (206, (tmp_path / "first").read_bytes()[start:])


async def test_an_upload_goes_on_after_the_last_whole_piece(served: ServedWorld, tmp_path: Path) -> None:
    packed = pack(a_tree(tmp_path / "tree"), tmp_path / "archive")
    async with party(served, served.client.key) as client:
        client.transport.breaks_after = 3
        await client.store(tmp_path / "archive", packed)

        assert len(client.transport.sent) == len(set(client.transport.sent_offsets))  # nothing whole went twice
        await client.blobs.fetch(packed.digest, tmp_path / "out", tmp_path)


async def test_to_know_a_name_is_not_to_have_the_blob(served: ServedWorld, tmp_path: Path) -> None:
    packed = pack(a_tree(tmp_path / "tree"), tmp_path / "archive")
    named = {"digest": packed.digest, "size_bytes": packed.size_bytes}
    other = await make_client(served.world)
    async with party(served, served.client.key) as owner, party(served, other.key) as stranger:
        await owner.store(tmp_path / "archive", packed)

        with pytest.raises(NotFound):
            await stranger.blobs.fetch(packed.digest, tmp_path / "out", tmp_path)
        cap = other.signed_cap(load_job_spec(spec()), 10 * TUSD)
        job = {"spec": spec(workspace=named), "cap": cap.wire()}
        with pytest.raises(Invalid) as refused:
            await stranger.transport.request("POST", "/v1/jobs", body=job, idempotency_key="theirs")
        await stranger.store(tmp_path / "archive", packed)

        assert (refused.value.code, refused.value.field) == ("blob_missing", "workspace.digest")
        assert sum(stranger.transport.sent) == packed.size_bytes  # all of it: that is what shows that they have it
        await stranger.blobs.fetch(packed.digest, tmp_path / "out", tmp_path)


async def test_pieces_that_are_not_the_blob_are_refused(served: ServedWorld, tmp_path: Path) -> None:
    packed = pack(a_tree(tmp_path / "tree"), tmp_path / "archive")
    wrong = sha256_digest(b"something else")
    async with party(served, served.client.key) as client:
        with pytest.raises(Invalid) as refused:
            await client.blobs.store(wrong, tmp_path / "archive", pieces=packed.pieces)

        assert refused.value.code == "blob_digest_mismatch"
        with pytest.raises(NotFound):
            await client.blobs.fetch(wrong, tmp_path / "out", tmp_path)


async def test_an_upload_url_is_of_one_account(served: ServedWorld) -> None:
    digest = sha256_digest(b"data")
    async with served.http(WalletAuth(served.client.key)) as http:
        url = (await http.post("/v1/blobs", json={"digest": digest, "size_bytes": 4})).json()["url"]
        other = await http.put(url.replace(served.client.account, "somebody"), content=b"data")
        assert other.status_code == 403
        with pytest.raises(TorgError):
            async with party(served, served.client.key) as client:
                await client.transport.request("GET", f"/v1/blobs/{digest}")
        assert (await http.put(url, content=b"data")).status_code == 204
        assert (await http.get(f"/v1/blobs/{digest}")).json()["size_bytes"] == 4
