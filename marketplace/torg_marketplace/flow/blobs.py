"""Blobs: what must be stored before it may be named, and who may read it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeVar

from sqlalchemy import exists, func, select, update

from torg_marketplace.flow.rows import leases_of_job, spec_of
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.inserts import insert_if_new
from torg_marketplace.storage.models import BlobUploadRow, BlobUseRow, JobRow, LeaseRow
from torg_marketplace.storage.volume_models import VolumeRow
from torg_protocol.api import BlobPieces, BlobUpload, BlobUploadRequest, MissingPiece, MissingPieces
from torg_protocol.errors import Invalid
from torg_protocol.ids import Digest, JobId, names_pieces
from torg_protocol.jobspec import BlobRef
from torg_protocol.states import LIVE_LEASE_STATES

T = TypeVar("T")
_ASKED_AT_ONCE = 10_000  # what databases take as parameters of one query is about three times that
_IN_PIECES = 0  # bytes of a blob of which each piece is counted already


async def check_stored(market: Market, party: str, blob: BlobRef, *, field: str) -> None:
    """Raises Invalid `blob_missing` or `blob_size_mismatch`. Asks the store: never inside a transaction."""
    size = await check_readable(market, party, blob.digest, field=field)
    if size != blob.size_bytes:
        raise Invalid(
            "this blob has another size",
            code="blob_size_mismatch",
            field=field,
            value=blob.size_bytes,
            hint=f"{blob.digest} has {size} bytes",
        )


async def check_readable(market: Market, party: str, digest: Digest, *, field: str) -> int:
    """The blob's size. Raises Invalid `blob_missing`. Only what the party may read counts as stored: to know a blob's name must not be
    enough to have it."""
    async with market.reading() as unit:
        size = await market.blobs.size(digest) if await may_read_blob(unit, party, digest) else None
    if size is None:
        raise Invalid("this blob is not stored", code="blob_missing", field=field, value=digest, hint="upload it first")
    return size


async def plan_upload(market: Market, account: str, request: BlobUploadRequest) -> BlobUpload:
    """What `account` has still to send of a blob. When all its pieces are there, puts them together."""
    blob = BlobRef(digest=request.digest, size_bytes=request.size_bytes)
    async with market.reading() as unit:
        is_known = await may_read_blob(unit, account, blob.digest)
        sent, is_old = await _sent(unit, account, [*request.pieces, blob])
        based_on = request.based_on
        if based_on is not None and not await may_read_blob(unit, account, based_on):
            based_on = None
    old = sorted(sent) if is_old else []
    if based_on is not None:
        known = set(await market.blobs.pieces_of(based_on))
        sent |= {piece.digest for piece in request.pieces if piece in known}
    if old or based_on is not None:
        await _renew(market, account, old, based_on)
    if is_known and await market.blobs.size(blob.digest) is not None:
        return BlobUpload(digest=blob.digest, url=None)
    now_ms = market.clock.now_ms()
    if not request.pieces:
        if names_pieces(blob.digest):
            raise Invalid(
                "such a blob is sent by its pieces",
                code="blob_pieces_missing",
                field="pieces",
                hint="name them, in their order; or send it as a whole, named sha256:...",
            )
        url = await market.blobs.upload_url(blob.digest, blob.size_bytes, account, now_ms)
        return BlobUpload(digest=blob.digest, url=url)
    if missing := await _missing(market, account, request.pieces, sent):
        return BlobUpload(digest=blob.digest, url=None, missing=missing)
    await market.blobs.put_together(blob, request.pieces)
    async with market.transaction() as unit:
        await note_upload(unit, account, blob.digest, _IN_PIECES)
    return BlobUpload(digest=blob.digest, url=None)


async def plan_pieces(market: Market, account: str, request: BlobPieces) -> MissingPieces:
    """Which of these pieces `account` has still to send."""
    async with market.reading() as unit:
        sent, is_old = await _sent(unit, account, request.pieces)
    if is_old:
        await _renew(market, account, sorted(sent))
    return MissingPieces(missing=await _missing(market, account, request.pieces, sent))


async def _missing(
    market: Market, account: str, pieces: Sequence[BlobRef], sent: Collection[Digest]
) -> tuple[MissingPiece, ...]:
    now_ms = market.clock.now_ms()
    unsent = {piece.digest: piece for piece in pieces if piece.digest not in sent}
    urls = [await market.blobs.upload_url(p.digest, p.size_bytes, account, now_ms) for p in unsent.values()]
    return tuple(MissingPiece(digest=digest, url=url) for digest, url in zip(unsent, urls, strict=True))


async def _sent(unit: Unit, account: str, blobs: Sequence[BlobRef]) -> tuple[frozenset[Digest], bool]:
    """What of these the account has sent; and whether some of it may be taken away soon (`flow.garbage`). Raises Invalid
    `blob_size_mismatch` for a piece that has another size than is said here."""
    found, is_old = set[Digest](), False
    old_ms = unit.now_ms - unit.policy.blob_grace_ms // 2
    for some in _chunks(blobs):
        sizes = {blob.digest: blob.size_bytes for blob in some}
        query = select(BlobUploadRow.digest, BlobUploadRow.at_ms, BlobUploadRow.size_bytes)
        query = query.where(BlobUploadRow.account == account, BlobUploadRow.digest.in_(sizes))
        for name, at_ms, size_bytes in await unit.session.execute(query):
            digest = Digest(name)
            found.add(digest)
            is_old = is_old or at_ms < old_ms
            if size_bytes not in {sizes[digest], _IN_PIECES}:
                raise Invalid(
                    "this piece has another size",
                    code="blob_size_mismatch",
                    field="pieces",
                    value=sizes[digest],
                    hint=f"{digest} has {size_bytes} bytes",
                )
    return frozenset(found), is_old


async def _renew(market: Market, account: str, digests: Sequence[Digest], based_on: Digest | None = None) -> None:
    """Who is told that the store has something will rely on it in a moment. `based_on`: whoever sent it; its pieces stay as long as it does."""
    async with market.transaction() as unit:
        for some in _chunks(digests):
            mine = update(BlobUploadRow).where(BlobUploadRow.account == account, BlobUploadRow.digest.in_(some))
            await unit.session.execute(mine.values(at_ms=unit.now_ms).execution_options(synchronize_session=False))
        if based_on is not None:
            rows = update(BlobUploadRow).where(BlobUploadRow.digest == based_on).values(at_ms=unit.now_ms)
            await unit.session.execute(rows.execution_options(synchronize_session=False))


def _chunks(of: Sequence[T]) -> Iterator[Sequence[T]]:
    return (of[start : start + _ASKED_AT_ONCE] for start in range(0, len(of), _ASKED_AT_ONCE))


async def use_blob(unit: Unit, digest: Digest, job_id: JobId, *, client_may_read: bool) -> None:
    """Notes that a job refers to a blob. Doing it again can only open it further."""
    row = await unit.session.get(BlobUseRow, (digest, job_id))
    if row is None:
        unit.session.add(BlobUseRow(digest=digest, job_id=job_id, client_may_read=client_may_read))
    elif client_may_read:
        row.client_may_read = True


async def unseal_outputs(unit: Unit, lease: LeaseRow, job: JobRow) -> None:
    """Its client may read what the lease made, now that it is paid for."""
    for output in lease.outputs:
        await use_blob(unit, Digest(output["digest"]), job.id, client_may_read=True)


async def note_upload(unit: Unit, account: str, digest: Digest, size_bytes: int) -> None:
    """Notes who uploaded a blob (a client or a node), once its bytes are there. Safe to repeat."""
    if await unit.session.get(BlobUploadRow, (digest, account)) is None:
        unit.session.add(BlobUploadRow(digest=digest, account=account, size_bytes=size_bytes, at_ms=unit.now_ms))


class UploadNotes:
    """`note_upload` for many uploads at once: those that arrive while a transaction waits for its turn go with it."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Digest, str], int] = {}
        self._turn = asyncio.Lock()

    async def note(self, market: Market, account: str, digest: Digest, size_bytes: int) -> None:
        """Returns once it is committed. Safe to repeat."""
        self._waiting[digest, account] = size_bytes
        async with self._turn:
            if (digest, account) not in self._waiting:
                return
            batch, self._waiting = self._waiting, {}
            try:
                async with market.transaction() as unit:
                    await _note_uploads(unit, batch)
            except BaseException:
                self._waiting = batch | self._waiting  # each of them tries by itself
                raise


async def _note_uploads(unit: Unit, batch: Mapping[tuple[Digest, str], int]) -> None:
    rows = [
        {"digest": digest, "account": account, "size_bytes": size_bytes, "at_ms": unit.now_ms}
        for (digest, account), size_bytes in batch.items()
    ]
    await unit.session.execute(insert_if_new(BlobUploadRow, unit.session.get_bind().dialect.name), rows)


async def may_read_blob(unit: Unit, party: str, digest: Digest) -> bool:
    """Its uploader, the client of a job that refers to it, whose volume it is, and a node with a live lease of such a job; of a quorum only
    what it was given to work on."""
    uploaded = exists().where(BlobUploadRow.digest == digest, BlobUploadRow.account == party)
    as_client = exists().where(
        BlobUseRow.digest == digest,
        BlobUseRow.client_may_read,
        BlobUseRow.job_id == JobRow.job_id,
        JobRow.client == party,
    )
    as_owner = exists().where(VolumeRow.digest == digest, VolumeRow.account == party)
    is_quorum = func.coalesce(JobRow.spec["verify"]["policy"].as_string(), "none") == "quorum"
    leased = (
        BlobUseRow.digest == digest,
        BlobUseRow.job_id == JobRow.job_id,
        LeaseRow.job_id == JobRow.job_id,
        LeaseRow.node_id == party,
        LeaseRow.state.in_(LIVE_LEASE_STATES),
    )
    as_node, as_replica = exists().where(*leased, ~is_quorum), exists().where(*leased, is_quorum)
    query = select(uploaded | as_client | as_node | as_owner, as_replica)
    may, is_replica = (await unit.session.execute(query)).one()
    return bool(may) or (bool(is_replica) and await _is_given_to_replicas(unit, party, digest))


async def _is_given_to_replicas(unit: Unit, node_id: str, digest: Digest) -> bool:
    """And is not what another replica has made: to be told "that is stored already" would tell a guessed answer from a wrong one."""
    query = select(JobRow).join(LeaseRow, LeaseRow.job_id == JobRow.job_id)
    query = query.where(LeaseRow.node_id == node_id, LeaseRow.state.in_(LIVE_LEASE_STATES))
    for job in await unit.session.scalars(query):
        spec = spec_of(job)
        if digest in {blob.digest for _, blob in spec.blobs()} or digest in spec.image_archives:
            return True
        leases = [lease for lease in await leases_of_job(unit, job.job_id) if lease.node_id != node_id]
        made = {item["digest"] for lease in leases for item in [*lease.outputs, *lease.logs.values()]}
        used = await unit.session.get(BlobUseRow, (digest, job.job_id))
        if used is not None and digest not in made:
            return True
    return False
