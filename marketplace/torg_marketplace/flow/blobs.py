"""Blobs: what must be stored before it may be named, and who may read it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, exists, func, select, update

from torg_marketplace.flow.leaving import in_chunks, is_leaving, leaving
from torg_marketplace.flow.rows import leases_of_job, spec_of
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.inserts import insert_or_update
from torg_marketplace.storage.models import BlobUploadRow, BlobUseRow, JobRow, LeaseRow
from torg_marketplace.storage.volume_models import VolumeRow
from torg_protocol.api import BlobPieces, BlobUpload, BlobUploadRequest, MissingPiece, MissingPieces
from torg_protocol.errors import Invalid
from torg_protocol.ids import Digest, JobId, names_pieces
from torg_protocol.jobspec import BlobRef
from torg_protocol.states import LIVE_LEASE_STATES

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
    enough to have it. What is found stays for `blob_grace_ms` / 2 at least: long enough to be named in a job."""
    size = await market.blobs.size(digest) if await _stays(market, party, digest) else None
    if size is None:
        raise Invalid("this blob is not stored", code="blob_missing", field=field, value=digest, hint="upload it first")
    return size


async def plan_upload(market: Market, account: str, request: BlobUploadRequest) -> BlobUpload:
    """What `account` has still to send of a blob. When all its pieces are there, puts them together."""
    blob = BlobRef(digest=request.digest, size_bytes=request.size_bytes)
    sent = await _sent(market, account, [*request.pieces, blob])
    if request.based_on is not None and await _stays(market, account, request.based_on):
        known = set(await market.blobs.pieces_of(request.based_on))
        sent |= {piece.digest for piece in request.pieces if piece in known}
    if await _stays(market, account, blob.digest) and await market.blobs.size(blob.digest) is not None:
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
    await note_stored(market, account, blob.digest, _IN_PIECES)
    return BlobUpload(digest=blob.digest, url=None)


async def plan_pieces(market: Market, account: str, request: BlobPieces) -> MissingPieces:
    """Which of these pieces `account` has still to send."""
    sent = await _sent(market, account, request.pieces)
    return MissingPieces(missing=await _missing(market, account, request.pieces, sent))


async def _missing(
    market: Market, account: str, pieces: Sequence[BlobRef], sent: Collection[Digest]
) -> tuple[MissingPiece, ...]:
    now_ms = market.clock.now_ms()
    unsent = {piece.digest: piece for piece in pieces if piece.digest not in sent}
    urls = [await market.blobs.upload_url(p.digest, p.size_bytes, account, now_ms) for p in unsent.values()]
    return tuple(MissingPiece(digest=digest, url=url) for digest, url in zip(unsent, urls, strict=True))


async def _sent(market: Market, account: str, blobs: Sequence[BlobRef]) -> set[Digest]:
    """What of these the account has sent, and will find here for a while: it relies on it in a moment. Raises Invalid `blob_size_mismatch` for a
    piece that has another size than is said here."""
    found, old = set[Digest](), list[Digest]()
    async with market.reading() as unit:
        for some in in_chunks(blobs):
            sizes = {blob.digest: blob.size_bytes for blob in some}
            query = select(BlobUploadRow.digest, BlobUploadRow.at_ms, BlobUploadRow.size_bytes)
            query = query.where(BlobUploadRow.account == account, BlobUploadRow.digest.in_(sizes))
            for name, at_ms, size_bytes in await unit.session.execute(query):
                digest = Digest(name)
                if at_ms < _goes_soon(unit):
                    old.append(digest)
                else:
                    found.add(digest)
                if size_bytes not in {sizes[digest], _IN_PIECES}:
                    raise Invalid(
                        "this piece has another size",
                        code="blob_size_mismatch",
                        field="pieces",
                        value=sizes[digest],
                        hint=f"{digest} has {size_bytes} bytes",
                    )
    if old:
        async with market.transaction() as unit:
            found |= await _renew(unit, old, BlobUploadRow.account == account)
    return found


async def _stays(market: Market, party: str, digest: Digest) -> bool:
    """Whether the party may read it, and will be able to for a while: what may be taken away soon (`flow.garbage`) is kept longer, with its pieces,
    whoever sent them. False also for what is just being taken away."""
    async with market.reading() as unit:
        if not await may_read_blob(unit, party, digest):
            return False
        newest_ms = await unit.session.scalar(
            select(func.max(BlobUploadRow.at_ms)).where(BlobUploadRow.digest == digest)
        )
        if newest_ms is None or newest_ms >= _goes_soon(unit):
            return True
    parts = [digest, *(piece.digest for piece in await market.blobs.pieces_of(digest))]
    async with market.transaction() as unit:
        if not await may_read_blob(unit, party, digest) or await leaving(unit, parts):
            return False
        without_row = set(parts) - await _renew(unit, parts)
    return None not in [await market.blobs.size(part) for part in without_row]


def _goes_soon(unit: Unit) -> int:
    """What was sent or asked about before then."""
    return unit.now_ms - unit.policy.blob_grace_ms // 2


async def _renew(unit: Unit, digests: Sequence[Digest], *whose: ColumnElement[bool]) -> set[Digest]:
    """Those of them that somebody has sent, and that are still there."""
    there: set[Digest] = set()
    for some in in_chunks(digests):
        rows = (BlobUploadRow.digest.in_(some), *whose)
        renewed = update(BlobUploadRow).where(*rows).values(at_ms=unit.now_ms)
        await unit.session.execute(renewed.execution_options(synchronize_session=False))
        there |= {Digest(digest) for digest in await unit.session.scalars(select(BlobUploadRow.digest).where(*rows))}
    return there


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
    """Notes who uploaded a blob, once its bytes are there. Safe to repeat. Of what comes from elsewhere `note_stored`."""
    row = await unit.session.get(BlobUploadRow, (digest, account))
    if row is None:
        unit.session.add(BlobUploadRow(digest=digest, account=account, size_bytes=size_bytes, at_ms=unit.now_ms))
    else:
        row.at_ms = unit.now_ms


async def note_stored(market: Market, account: str, digest: Digest, size_bytes: int) -> None:
    """`note_upload` of bytes that were just stored. Raises Unavailable `blob_leaving` when they were being deleted meanwhile."""
    async with market.transaction() as unit:
        if await leaving(unit, [digest]):
            raise is_leaving(digest)
        await _note_uploads(unit, [(digest, account, size_bytes)])
    await _check_there(market, account, digest)


async def _check_there(market: Market, account: str, digest: Digest) -> None:
    """From now on nobody takes it away; but somebody may have, after it was stored and before that was noted."""
    if await market.blobs.size(digest) is None:
        async with market.transaction() as unit:
            mine = delete(BlobUploadRow).where(BlobUploadRow.digest == digest, BlobUploadRow.account == account)
            await unit.session.execute(mine.execution_options(synchronize_session=False))
        raise is_leaving(digest)


@dataclass(eq=False, slots=True)
class _Note:
    upload: tuple[Digest, str, int]
    is_taken: bool | None = None  # None: not asked yet


class UploadNotes:
    """`note_stored` for many uploads at once: those that arrive while a transaction waits for its turn go with it."""

    def __init__(self) -> None:
        self._waiting: list[_Note] = []
        self._turn = asyncio.Lock()

    async def note(self, market: Market, account: str, digest: Digest, size_bytes: int) -> None:
        """Returns once it is committed. Safe to repeat."""
        note = _Note((digest, account, size_bytes))
        self._waiting.append(note)
        async with self._turn:
            if note.is_taken is None:
                await self._take_all(market)
        if not note.is_taken:
            raise is_leaving(digest)
        await _check_there(market, account, digest)

    async def _take_all(self, market: Market) -> None:
        batch, self._waiting = self._waiting, []
        try:
            async with market.transaction() as unit:
                gone = await leaving(unit, [note.upload[0] for note in batch])
                await _note_uploads(unit, [note.upload for note in batch if note.upload[0] not in gone])
        except BaseException:
            self._waiting = batch + self._waiting  # each of them tries by itself
            raise
        for note in batch:
            note.is_taken = note.upload[0] not in gone


async def _note_uploads(unit: Unit, uploads: Sequence[tuple[Digest, str, int]]) -> None:
    """Of what was noted before, it is the newest time that counts."""
    if uploads:
        columns = ("digest", "account", "size_bytes")
        rows = [dict(zip(columns, upload, strict=True)) | {"at_ms": unit.now_ms} for upload in dict.fromkeys(uploads)]
        noted = insert_or_update(BlobUploadRow, unit.session.get_bind().dialect.name, ("at_ms",))
        await unit.session.execute(noted, rows)


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
