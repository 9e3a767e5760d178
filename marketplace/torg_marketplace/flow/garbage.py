"""Blobs that nobody needs any more leave the store.

Needed is what an account has named or has in a volume, what a job uses that is open, or was closed less than `keep_blobs_ms` ago (0: every job's, for good; `keep_evidence_ms` for what was verified), what
was sent or asked about within `blob_grace_ms`, and the pieces of all that. The rest goes: first who may read it, then the bytes, so that what
is on its way out already counts as not there, and is sent again by who wants it, once it is gone (`flow/leaving.py`). A process that is killed in
between leaves bytes without a reader behind, which the next pass deletes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select, tuple_

from torg_marketplace.flow.leaving import begin_leaving, forget_bytes, forget_left_over
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.data_models import DataRow
from torg_marketplace.storage.models import BlobUploadRow, BlobUseRow, JobRow
from torg_marketplace.storage.volume_models import VolumeRow
from torg_protocol.ids import Digest, hex_of

_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class _Batch:
    last: tuple[str, str]  # digest and account, where the next batch begins
    gone: tuple[Digest, ...]  # what nobody has a claim to any more


async def collect_garbage(market: Market) -> int:
    """Returns how many blobs left. Safe to call at any rate, and beside uploads and submissions."""
    await forget_left_over(market)
    kept_pieces = await _pieces_of_what_is_kept(market)
    total, after = 0, ("", "")
    while (batch := await _forget_some(market, after, kept_pieces)) is not None:
        await forget_bytes(market, batch.gone)
        total, after = total + len(batch.gone), batch.last
    return total


async def _pieces_of_what_is_kept(market: Market) -> set[bytes]:
    """Digests, as 32 bytes each: there may be very many."""
    found: set[bytes] = set()
    waiting: list[Digest] = []
    async for digest in market.blobs.stored_in_pieces():
        waiting.append(digest)
        if len(waiting) == _AT_ONCE:
            found |= await _pieces_of(market, waiting)
            waiting = []
    return found | await _pieces_of(market, waiting)


async def _pieces_of(market: Market, wholes: Sequence[Digest]) -> set[bytes]:
    async with market.reading() as unit:
        is_young = BlobUploadRow.at_ms >= unit.now_ms - unit.policy.blob_grace_ms
        query = select(BlobUploadRow.digest).where(BlobUploadRow.digest.in_(wholes), or_(is_young, _is_used(unit)))
        kept = set(await unit.session.scalars(query))
    lists = [await market.blobs.pieces_of(digest) for digest in wholes if digest in kept]
    return {_short(piece.digest) for pieces in lists for piece in pieces}


async def _forget_some(market: Market, after: tuple[str, str], kept_pieces: set[bytes]) -> _Batch | None:
    """None when there is nothing left to look at."""
    key = (BlobUploadRow.digest, BlobUploadRow.account)
    async with market.transaction() as unit:
        is_old = BlobUploadRow.at_ms < unit.now_ms - unit.policy.blob_grace_ms
        query = select(*key).where(is_old, ~_is_used(unit), tuple_(*key) > after).order_by(*key).limit(_AT_ONCE)
        rows = [(str(digest), str(account)) for digest, account in await unit.session.execute(query)]
        if not rows:
            return None
        due = [row for row in rows if _short(row[0]) not in kept_pieces]
        if due:
            rows_due = delete(BlobUploadRow).where(tuple_(*key).in_(due), is_old)
            await unit.session.execute(rows_due.execution_options(synchronize_session=False))
        digests = {digest for digest, _ in due}
        claimed = await unit.session.scalars(select(BlobUploadRow.digest).where(BlobUploadRow.digest.in_(digests)))
        gone = sorted(digests - set(claimed))
        if gone:
            uses = delete(BlobUseRow).where(BlobUseRow.digest.in_(gone))
            await unit.session.execute(uses.execution_options(synchronize_session=False))
        leaving = tuple(Digest(digest) for digest in gone)
        await begin_leaving(unit, leaving)
    return _Batch(rows[-1], leaving)


def _is_used(unit: Unit) -> ColumnElement[bool]:
    """Of the blob of an upload's row."""
    named = exists().where(DataRow.digest == BlobUploadRow.digest)
    lasts = or_(
        JobRow.closed_at_ms.is_(None),
        JobRow.closed_at_ms >= unit.now_ms - unit.policy.keep_blobs_ms,
        and_(JobRow.closed_at_ms >= unit.now_ms - unit.policy.keep_evidence_ms, _was_looked_at()),
    )
    of_job = and_(BlobUseRow.digest == BlobUploadRow.digest, BlobUseRow.job_id == JobRow.job_id)
    used = exists().where(of_job, lasts) if unit.policy.keep_blobs_ms else exists().where(of_job)
    in_volume = exists().where(VolumeRow.digest == BlobUploadRow.digest)
    return or_(named, in_volume, used)


def _was_looked_at() -> ColumnElement[bool]:
    """Its files are what a verdict rests on: flow/evidence.py."""
    policy = JobRow.spec["verify"]["policy"].as_string()
    return or_(policy.in_(["metric", "replay", "activation", "quorum"]), JobRow.checks_job.is_not(None))


def _short(digest: str) -> bytes:
    return bytes.fromhex(hex_of(digest))
