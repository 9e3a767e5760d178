"""Blobs on their way out. Their rows go first, then the bytes, which takes a while and can fail: until it is done nobody may say that he has stored
one of them anew, for what he stored could be what is deleted. Who sends one meanwhile is told to send it again; who began before it was deleted and
ended afterwards finds it missing, and sends it again too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TypeVar

from sqlalchemy import delete, select

from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.data_models import LeavingBlobRow
from torg_marketplace.storage.inserts import insert_if_new
from torg_protocol.errors import Unavailable
from torg_protocol.ids import Digest

T = TypeVar("T")
_AT_ONCE = 10_000  # what databases take as parameters of one query is about three times that


def in_chunks(of: Sequence[T]) -> Iterator[Sequence[T]]:
    return (of[start : start + _AT_ONCE] for start in range(0, len(of), _AT_ONCE))


async def begin_leaving(unit: Unit, digests: Collection[Digest]) -> None:
    """Of blobs that nobody has a claim to, in the transaction that sees so. `forget_bytes` comes next."""
    if digests:
        rows = [{"digest": digest} for digest in sorted(digests)]
        await unit.session.execute(insert_if_new(LeavingBlobRow, unit.session.get_bind().dialect.name), rows)


async def forget_bytes(market: Market, digests: Collection[Digest]) -> None:
    """Of blobs that are still on their way out: each is asked about again just before it goes. A process that was frozen, or whose machine was
    paused, may find its work done by another, and the blob sent anew since."""
    gone = []
    for digest in sorted(digests):
        async with market.reading() as unit:
            if not await leaving(unit, [digest]):
                continue
        await market.blobs.forget(digest)
        gone.append(digest)
    for some in in_chunks(gone):
        async with market.transaction() as unit:
            rows = delete(LeavingBlobRow).where(LeavingBlobRow.digest.in_(some))
            await unit.session.execute(rows.execution_options(synchronize_session=False))


async def forget_left_over(market: Market) -> None:
    """What a process that was killed has begun."""
    async with market.reading() as unit:
        digests = [Digest(digest) for digest in await unit.session.scalars(select(LeavingBlobRow.digest))]
    if digests:
        await forget_bytes(market, digests)


async def leaving(unit: Unit, digests: Sequence[Digest]) -> set[Digest]:
    """Those of them that are on their way out."""
    found: set[Digest] = set()
    for some in in_chunks(digests):
        query = select(LeavingBlobRow.digest).where(LeavingBlobRow.digest.in_(some))
        found |= {Digest(digest) for digest in await unit.session.scalars(query)}
    return found


def is_leaving(digest: Digest) -> Unavailable:
    return Unavailable(
        "these bytes were just being deleted, because nobody had asked for them for long",
        code="blob_leaving",
        field="digest",
        value=digest,
        hint="ask where to send them, and send them again",
        retry_after_s=1,
    )
