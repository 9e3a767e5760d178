"""API keys: made once, shown once, kept as a hash; what they may do and until when."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass

from sqlalchemy import select, update

from torg_marketplace.flow.cursors import id_in
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.storage.account_models import ApiKeyRow
from torg_protocol.accounts import ApiKeyPage, ApiKeyRequest, ApiKeyView, NewApiKey, Scope
from torg_protocol.errors import Conflict, NotFound, Unauthorized
from torg_protocol.ids import AccountId

SECRET_PREFIX = "torgkey_"  # noqa: S105 - what a secret begins with, so that scanners recognise one
MAX_KEYS_PER_ACCOUNT = 100
_NOTE_USE_EVERY_MS = 60_000


@dataclass(frozen=True, slots=True)
class KeyIdentity:
    key_id: str
    account: AccountId
    scopes: frozenset[Scope]


async def create_api_key(unit: Unit, account: AccountId, request: ApiKeyRequest) -> NewApiKey:
    """Raises Conflict `key_name_taken` (a lost answer is found out by it: revoke that key and make another), `too_many_keys`."""
    living = [
        row for row in await _rows(unit, account) if row.revoked_at_ms is None and row.expires_at_ms > unit.now_ms
    ]
    if any(row.name == request.name for row in living):
        raise Conflict(
            "you have a key of this name",
            code="key_name_taken",
            field="name",
            value=request.name,
            hint="revoke it first",
        )
    if len(living) >= MAX_KEYS_PER_ACCOUNT:
        raise Conflict(f"you have {len(living)} keys", code="too_many_keys", hint="revoke some")
    key_id = unit.new_id("key")
    random = base64.urlsafe_b64encode(unit.market.random.bits(256).to_bytes(32, "big")).rstrip(b"=").decode()
    secret = f"{SECRET_PREFIX}{key_id.removeprefix('key_')}_{random}"
    row = ApiKeyRow(
        key_id=key_id,
        account=account,
        name=request.name,
        secret_sha256=_hash(secret),
        scopes=sorted(set(request.scopes)),
        spend_cap=request.spend_cap,
        created_at_ms=unit.now_ms,
        expires_at_ms=unit.now_ms + request.expires_in_s * 1000,
    )
    unit.session.add(row)
    await unit.session.flush()
    return NewApiKey(key=_view(row), secret=secret)


async def authenticate(market: Market, secret: str) -> KeyIdentity:
    """Raises Unauthorized (api_key_unknown, api_key_revoked, api_key_expired)."""
    key_id = "key_" + secret.removeprefix(SECRET_PREFIX).partition("_")[0]
    async with market.reading() as unit:
        row = await unit.session.get(ApiKeyRow, key_id) if len(key_id) <= 64 and key_id.isascii() else None
        now_ms = unit.now_ms
    if row is None or not hmac.compare_digest(row.secret_sha256, _hash(secret)):
        hint = "is it whole? it begins with torgkey_ and is shown once, when it is made; make another if it is lost"
        raise Unauthorized("no such API key", code="api_key_unknown", field="authorization", hint=hint)
    if (refusal := _refusal(row, now_ms)) is not None:
        raise refusal
    if row.last_used_at_ms is None or now_ms - row.last_used_at_ms > _NOTE_USE_EVERY_MS:
        async with market.transaction() as unit:
            used = update(ApiKeyRow).where(ApiKeyRow.key_id == row.key_id).values(last_used_at_ms=now_ms)
            await unit.session.execute(used)
    return KeyIdentity(row.key_id, AccountId(row.account), frozenset(Scope(scope) for scope in row.scopes))


async def why_over(unit: Unit, key_id: str) -> Unauthorized | None:
    """Of a key that was good: whether it still is. For what lasts longer than a request."""
    return _refusal(await unit.session.get_one(ApiKeyRow, key_id), unit.now_ms)


def _refusal(row: ApiKeyRow, now_ms: int) -> Unauthorized | None:
    if row.revoked_at_ms is not None:
        return _over(row, "was revoked", "api_key_revoked")
    return _over(row, "has expired", "api_key_expired") if row.expires_at_ms <= now_ms else None


def _over(row: ApiKeyRow, how: str, code: str) -> Unauthorized:
    hint = (
        "make another: POST /v1/keys with the account's wallet, or ask who gave it to you (torg-marketplace key-create)"
    )
    return Unauthorized(f"this API key {how}", code=code, field="authorization", value=row.key_id, hint=hint)


async def api_key_page(unit: Unit, account: AccountId, *, cursor: str | None, limit: int) -> ApiKeyPage:
    """Oldest first, the revoked and expired ones too."""
    query = select(ApiKeyRow).where(ApiKeyRow.account == account).order_by(ApiKeyRow.key_id).limit(limit + 1)
    if cursor is not None:
        query = query.where(ApiKeyRow.key_id > id_in(cursor, "key"))
    rows = (await unit.session.scalars(query)).all()
    page = rows[:limit]
    return ApiKeyPage(
        keys=tuple(_view(row) for row in page), next_cursor=page[-1].key_id if len(rows) > limit else None
    )


async def revoke_api_key(unit: Unit, account: AccountId | None, key_id: str) -> ApiKeyView:
    """Ends it now; its running jobs go on. Safe to repeat. `account` None: the operator. Raises NotFound `key_unknown`."""
    row = await unit.session.get(ApiKeyRow, key_id)
    if row is None or account not in {None, row.account}:
        raise NotFound("no such API key of yours", code="key_unknown", field="key_id", value=key_id)
    if row.revoked_at_ms is None:
        row.revoked_at_ms = unit.now_ms
        await unit.session.flush()
    return _view(row)


async def _rows(unit: Unit, account: AccountId) -> list[ApiKeyRow]:
    return list(await unit.session.scalars(select(ApiKeyRow).where(ApiKeyRow.account == account)))


def _view(row: ApiKeyRow) -> ApiKeyView:
    return ApiKeyView(
        key_id=row.key_id,
        account=AccountId(row.account),
        name=row.name,
        scopes=tuple(Scope(scope) for scope in row.scopes),
        spend_cap=row.spend_cap,
        spent=row.spent,
        held=row.held,
        created_at_ms=row.created_at_ms,
        expires_at_ms=row.expires_at_ms,
        revoked_at_ms=row.revoked_at_ms,
        last_used_at_ms=row.last_used_at_ms,
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
