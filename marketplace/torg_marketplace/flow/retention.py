"""What is kept how long (docs/reference/what-is-kept.md has all tables). Money, receipts, states and their moves stay for good; what only helps while
people still look goes, in small transactions. Every function here returns how many rows went, and is safe to call at any rate.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sqlalchemy import CursorResult, Delete, delete, exists, func, or_, select, tuple_

from torg_marketplace.flow.sign_in import SESSION_NAMES
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.account_models import ApiKeyRow
from torg_marketplace.storage.data_models import DataRow
from torg_marketplace.storage.events import remove_events
from torg_marketplace.storage.models import (
    ExtensionRow,
    IdempotencyRow,
    JobEventRow,
    JobRow,
    LeaseEventRow,
    LeaseRow,
    NodeEventRow,
)
from torg_marketplace.storage.proof_models import HardwareProofRow
from torg_marketplace.storage.volume_models import JobVolumeRow, VolumeRow
from torg_marketplace.storage.webhook_models import DeliveryRow, WebhookRow
from torg_protocol.event_kinds import WrittenKind

_CHATTER: tuple[WrittenKind, ...] = ("log", "progress", "preparing", "ports")
_JOBS_AT_ONCE = 200  # of one transaction: writers wait for it
_ROWS_AT_ONCE = 1_000
_DAY_MS = 86_400_000
_KEYS_AT_LEAST_MS = 30 * _DAY_MS  # nobody sends a request again after so long
_PROOFS_AT_LEAST_MS = 7 * _DAY_MS


async def forget_history(market: Market) -> int:
    """Of jobs that were closed `keep_history_ms` ago: the live log, progress, and what nodes said about their leases word for word; later also
    which idempotency key each was submitted with. Of a node: its history. The whole log is a blob of the report, the blob store's matter."""
    if not market.policy.keep_history_ms:
        return 0
    return await _all_of(market, _forget_some_history) + await _all_of(market, _forget_some_keys)


async def forget_unused(market: Market) -> int:
    """Names of data and volumes that no job has used for `keep_unused_ms`; their blobs go as garbage does."""
    if not market.policy.keep_unused_ms:
        return 0
    async with market.transaction() as unit:
        before_ms = unit.now_ms - market.policy.keep_unused_ms
        is_used = exists().where(
            JobVolumeRow.account == VolumeRow.account,
            JobVolumeRow.name == VolumeRow.name,
            JobVolumeRow.job_id == JobRow.job_id,
            JobRow.closed_at_ms.is_(None),
        )
        names = await _delete(unit, delete(DataRow).where(DataRow.used_at_ms < before_ms))
        return names + await _delete(unit, delete(VolumeRow).where(VolumeRow.used_at_ms < before_ms, ~is_used))


async def forget_deliveries(market: Market) -> int:
    """Messages to webhooks that arrived or were given up `keep_deliveries_ms` ago, then deleted webhooks that have none left."""
    if not market.policy.keep_deliveries_ms:
        return 0
    return await _all_of(market, _forget_some_deliveries)


async def forget_proofs(market: Market) -> int:
    """Proofs of hardware that were judged `keep_evidence_ms` ago, and with them what they rest on. Not those made while a lease ran that is not
    over for as long: whether it was as fast as it was sold is looked up when it is decided. What a node has proven is in its own row; lies stay, they are why it was banned."""
    return await _all_of(market, _forget_some_proofs)


async def forget_counted(market: Market) -> int:
    """A day later, what was only counted or good for a moment: extensions, ended sessions of wallets."""
    async with market.transaction() as unit:
        before_ms = unit.now_ms - _DAY_MS
        ended = delete(ApiKeyRow).where(
            ApiKeyRow.name.startswith(SESSION_NAMES, autoescape=True),
            ApiKeyRow.spend_cap == 0,
            ApiKeyRow.expires_at_ms < before_ms,
        )
        return await _delete(unit, delete(ExtensionRow).where(ExtensionRow.at_ms < before_ms)) + await _delete(
            unit, ended
        )


FORGETTING = {
    "history": forget_history,
    "unused": forget_unused,
    "deliveries": forget_deliveries,
    "proofs": forget_proofs,
    "counted": forget_counted,
}


async def _all_of(market: Market, forget_some: Callable[[Unit], Awaitable[int]]) -> int:
    """Transaction by transaction, until nothing is left to forget."""
    total = 0
    while True:
        async with market.transaction() as unit:
            deleted = await forget_some(unit)
        if not deleted:
            return total
        total += deleted


async def _forget_some_history(unit: Unit) -> int:
    before_ms = unit.now_ms - unit.policy.keep_history_ms
    is_over = JobRow.closed_at_ms < before_ms
    talked = select(JobEventRow.job_id).join(JobRow, JobRow.job_id == JobEventRow.job_id)
    talked = talked.where(JobEventRow.kind.in_(_CHATTER), is_over).distinct().limit(_JOBS_AT_ONCE)
    jobs = (await unit.session.scalars(talked)).all()
    said = select(LeaseEventRow.lease_id).join(LeaseRow, LeaseRow.lease_id == LeaseEventRow.lease_id)
    said = said.join(JobRow, JobRow.job_id == LeaseRow.job_id).where(is_over).distinct().limit(_JOBS_AT_ONCE)
    leases = (await unit.session.scalars(said)).all()
    deleted = await _delete(unit, delete(NodeEventRow).where(NodeEventRow.at_ms < before_ms))
    if jobs:
        deleted += await remove_events(unit.session, jobs, JobEventRow.kind.in_(_CHATTER))
    if leases:
        deleted += await _delete(unit, delete(LeaseEventRow).where(LeaseEventRow.lease_id.in_(leases)))
    return deleted


async def _forget_some_keys(unit: Unit) -> int:
    before_ms = unit.now_ms - max(unit.policy.keep_history_ms, _KEYS_AT_LEAST_MS)
    key = (IdempotencyRow.account, IdempotencyRow.key)
    old = select(*key).join(JobRow, JobRow.job_id == IdempotencyRow.job_id).limit(_ROWS_AT_ONCE)
    old = old.where(IdempotencyRow.created_at_ms < before_ms, JobRow.closed_at_ms < before_ms)
    keys = [(account, name) for account, name in await unit.session.execute(old)]
    return await _delete(unit, delete(IdempotencyRow).where(tuple_(*key).in_(keys))) if keys else 0


async def _forget_some_deliveries(unit: Unit) -> int:
    before_ms = unit.now_ms - unit.policy.keep_deliveries_ms
    # The next try was put down with each: of what is over it says when that was, to the minute.
    is_over = DeliveryRow.state.in_(("delivered", "failed"))
    over = select(DeliveryRow.delivery_id).where(is_over, DeliveryRow.next_try_at_ms < before_ms)
    found = (await unit.session.scalars(over.limit(_ROWS_AT_ONCE))).all()
    deleted = await _delete(unit, delete(DeliveryRow).where(DeliveryRow.delivery_id.in_(found))) if found else 0
    has_some = exists().where(DeliveryRow.webhook_id == WebhookRow.webhook_id)
    return deleted + await _delete(unit, delete(WebhookRow).where(WebhookRow.deleted_at_ms < before_ms, ~has_some))


async def _forget_some_proofs(unit: Unit) -> int:
    before_ms = unit.now_ms - max(unit.policy.keep_evidence_ms, _PROOFS_AT_LEAST_MS)
    is_needed = exists().where(
        LeaseRow.node_id == HardwareProofRow.node_id,
        LeaseRow.granted_at_ms <= HardwareProofRow.wanted_at_ms,
        or_(LeaseRow.ended_at_ms.is_(None), LeaseRow.ended_at_ms >= before_ms),
    )
    is_lie = func.coalesce(HardwareProofRow.finding["result"].as_string(), "") == "false"
    old = select(HardwareProofRow.proof_id).where(
        HardwareProofRow.state == "judged", HardwareProofRow.due_at_ms < before_ms, ~is_lie, ~is_needed
    )
    proofs = (await unit.session.scalars(old.limit(_ROWS_AT_ONCE))).all()
    if not proofs:
        return 0
    return await _delete(unit, delete(HardwareProofRow).where(HardwareProofRow.proof_id.in_(proofs)))


async def _delete(unit: Unit, statement: Delete) -> int:
    result = await unit.session.execute(statement.execution_options(synchronize_session=False))
    return result.rowcount if isinstance(result, CursorResult) else 0
