"""What an account keeps in the store beyond its jobs, named data and volumes: how much it may be, and how long it stays unused."""

from __future__ import annotations

from sqlalchemy import func, select

from torg_marketplace.flow.unit import Unit
from torg_marketplace.storage.data_models import DataRow
from torg_marketplace.storage.volume_models import VolumeRow
from torg_protocol.cases import QuotaView
from torg_protocol.errors import Conflict
from torg_protocol.ids import AccountId


async def kept_bytes(unit: Unit, account: AccountId) -> int:
    """Of all names and of the newest generations of all volumes, as they are stored; what has two names counts twice."""
    named = select(func.coalesce(func.sum(DataRow.size_bytes), 0)).where(DataRow.account == account)
    in_volumes = select(func.coalesce(func.sum(VolumeRow.size_bytes), 0)).where(VolumeRow.account == account)
    return int(await unit.session.scalar(named) or 0) + int(await unit.session.scalar(in_volumes) or 0)


async def check_storage(unit: Unit, account: AccountId, *, added_bytes: int, freed_bytes: int, field: str) -> None:
    """Raises Conflict `storage_quota_reached`. What frees as much as it adds is always taken."""
    limit = unit.policy.max_kept_bytes_per_account
    if not limit or added_bytes <= freed_bytes:
        return
    kept = await kept_bytes(unit, account) - freed_bytes
    if kept + added_bytes > limit:
        raise Conflict(
            f"you keep {kept} of {limit} bytes, and these are {added_bytes} more",
            code="storage_quota_reached",
            field=field,
            value=added_bytes,
            hint="take something away: torg data ls, torg volume ls; or ask the operator for more",
            used_bytes=kept,
            limit_bytes=limit,
        )


async def storage_quota(unit: Unit, account: AccountId) -> QuotaView:
    limit = unit.policy.max_kept_bytes_per_account or None
    return QuotaView(name="kept_bytes", unit="bytes", used=await kept_bytes(unit, account), limit=limit)


def expires_at_ms(unit: Unit, used_at_ms: int, *, in_use: bool = False) -> int | None:
    """When it goes unless it is used before; None: it stays."""
    keep_ms = unit.policy.keep_unused_ms
    return used_at_ms + keep_ms if keep_ms and not in_use else None
