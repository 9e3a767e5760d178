"""Blobs: what must be stored before it may be named, and who may read it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import exists, select, update

from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.models import BlobUploadRow, BlobUseRow, JobRow, LeaseRow
from torg_marketplace.storage.volume_models import VolumeRow
from torg_protocol.api import BlobUpload, BlobUploadRequest, MissingPiece
from torg_protocol.errors import Invalid
from torg_protocol.ids import Digest, JobId
from torg_protocol.jobspec import BlobRef
from torg_protocol.states import LIVE_LEASE_STATES


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
        sent, is_old = await _sent(unit, account, [piece.digest for piece in request.pieces] + [blob.digest])
    if is_old:
        await _renew(market, account, sent)
    if is_known and await market.blobs.size(blob.digest) is not None:
        return BlobUpload(digest=blob.digest, url=None)
    now_ms = market.clock.now_ms()
    if not request.pieces:
        url = await market.blobs.upload_url(blob.digest, blob.size_bytes, account, now_ms)
        return BlobUpload(digest=blob.digest, url=url)
    missing = {piece.digest: piece for piece in request.pieces if piece.digest not in sent}
    if missing:
        urls = [await market.blobs.upload_url(p.digest, p.size_bytes, account, now_ms) for p in missing.values()]
        found = tuple(MissingPiece(digest=digest, url=url) for digest, url in zip(missing, urls, strict=True))
        return BlobUpload(digest=blob.digest, url=None, missing=found)
    await market.blobs.put_together(blob, request.pieces)
    async with market.transaction() as unit:
        await note_upload(unit, account, blob.digest, 0)  # its pieces are counted already
    return BlobUpload(digest=blob.digest, url=None)


async def _sent(unit: Unit, account: str, digests: Sequence[Digest]) -> tuple[frozenset[Digest], bool]:
    """What of these the account has sent; and whether some of it may be taken away soon (`flow.garbage`)."""
    query = select(BlobUploadRow.digest, BlobUploadRow.at_ms)
    query = query.where(BlobUploadRow.account == account, BlobUploadRow.digest.in_(digests))
    rows = (await unit.session.execute(query)).all()
    old_ms = unit.now_ms - unit.policy.blob_grace_ms // 2
    return frozenset(Digest(digest) for digest, _ in rows), any(at_ms < old_ms for _, at_ms in rows)


async def _renew(market: Market, account: str, digests: frozenset[Digest]) -> None:
    """Who is told that the store has something will rely on it in a moment."""
    async with market.transaction() as unit:
        mine = update(BlobUploadRow).where(BlobUploadRow.account == account, BlobUploadRow.digest.in_(digests))
        await unit.session.execute(mine.values(at_ms=unit.now_ms).execution_options(synchronize_session=False))


async def use_blob(unit: Unit, digest: Digest, job_id: JobId, *, client_may_read: bool) -> None:
    """Notes that a job refers to a blob. Doing it again can only open it further."""
    row = await unit.session.get(BlobUseRow, (digest, job_id))
    if row is None:
        unit.session.add(BlobUseRow(digest=digest, job_id=job_id, client_may_read=client_may_read))
    elif client_may_read:
        row.client_may_read = True


async def note_upload(unit: Unit, account: str, digest: Digest, size_bytes: int) -> None:
    """Notes who uploaded a blob (a client or a node), once its bytes are there. Safe to repeat."""
    if await unit.session.get(BlobUploadRow, (digest, account)) is None:
        unit.session.add(BlobUploadRow(digest=digest, account=account, size_bytes=size_bytes, at_ms=unit.now_ms))


async def may_read_blob(unit: Unit, party: str, digest: Digest) -> bool:
    """Its uploader, the client of a job that refers to it, whose volume it is, and a node with a live lease of such a job."""
    uploaded = exists().where(BlobUploadRow.digest == digest, BlobUploadRow.account == party)
    as_client = exists().where(
        BlobUseRow.digest == digest,
        BlobUseRow.client_may_read,
        BlobUseRow.job_id == JobRow.job_id,
        JobRow.client == party,
    )
    as_node = exists().where(
        BlobUseRow.digest == digest,
        BlobUseRow.job_id == LeaseRow.job_id,
        LeaseRow.node_id == party,
        LeaseRow.state.in_(LIVE_LEASE_STATES),
    )
    as_owner = exists().where(VolumeRow.digest == digest, VolumeRow.account == party)
    return bool(await unit.session.scalar(select(uploaded | as_client | as_node | as_owner)))
