"""Who is asking: the wallet that signed the request (RFC 9421), each signature good once, or an API key with its scopes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from torg_marketplace.api.context import Edge, edge_of
from torg_marketplace.flow.api_keys import SECRET_PREFIX, authenticate
from torg_protocol.accounts import Scope
from torg_protocol.errors import Forbidden, Unauthorized
from torg_protocol.httpsig import RequestParts, VerifiedSignature, verify_request
from torg_protocol.ids import AccountId


@dataclass(frozen=True, slots=True)
class Caller:
    """`key_id` None: the account's own wallet signed."""

    account: AccountId
    key_id: str | None = None


class Authenticated:
    """A dependency: the caller, who may do what `scope` names. `scope` None: only a wallet's signature will do.

    Raises Unauthorized, Forbidden (api_key_scope, wallet_needed), RateLimited. Failed attempts count against the address
    that they come from.
    """

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Caller:
        try:
            return await self._caller(request)
        except Unauthorized:
            await _count(request, _address(request))
            raise

    async def _caller(self, request: Request) -> Caller:
        edge = edge_of(request)
        authorization = request.headers.get("authorization")
        if authorization is None:
            headers = dict(request.headers.items())
            body = await request.body()
            signature = verify(edge, request.method, request.url.path, request.url.query, headers, body)
            request.state.quota = await edge.admission.admit(signature=signature, caller=signature.key)
            return Caller(AccountId(signature.key))
        key = await authenticate(edge.market, _bearer(authorization))
        if self.scope is None:
            raise Forbidden(
                "only the account's wallet may do this",
                code="wallet_needed",
                hint="sign the request (RFC 9421) instead of sending an API key",
            )
        if self.scope not in key.scopes:
            raise Forbidden(
                "this API key may not do that",
                code="api_key_scope",
                field="authorization",
                value=", ".join(key.scopes),
                hint=f"use a key with the scope {self.scope}",
            )
        await _count(request, key.key_id)
        return Caller(key.account, key.key_id)


async def dialling_party(connection: HTTPConnection) -> AccountId:
    """Who signed the request that opened a WebSocket. Uses the signature up, and counts nothing. Raises Unauthorized."""
    edge, url = edge_of(connection), connection.url
    signature = verify(edge, "GET", url.path, url.query, dict(connection.headers.items()), b"")
    await edge.admission.admit(signature=signature)
    return AccountId(signature.key)


def verify(
    edge: Edge, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes
) -> VerifiedSignature:
    """Raises Unauthorized. Whether it was used before, only `edge.admission` knows."""
    now_s = edge.market.clock.now_ms() // 1000
    parts = RequestParts(method, headers.get("host", ""), path, f"?{query}", headers, body)
    return verify_request(parts, now_s=now_s)


async def _anybody(request: Request) -> None:
    await _count(request, _address(request))


def _bearer(authorization: str) -> str:
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Unauthorized(
            "the Authorization header is not understood",
            code="api_key_malformed",
            field="authorization",
            hint=f"Authorization: Bearer {SECRET_PREFIX}...",
        )
    return secret.strip()


async def _count(request: Request, caller: str) -> None:
    """Raises RateLimited; else leaves the quota where `limits.Bounds` finds it."""
    request.state.quota = await edge_of(request).admission.admit(caller=caller)


def _address(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client is not None else "unknown"


Anybody = Depends(_anybody)
Wallet = Annotated[Caller, Depends(Authenticated(None))]
JobsReader = Annotated[Caller, Depends(Authenticated(Scope.JOBS_READ))]
JobsWriter = Annotated[Caller, Depends(Authenticated(Scope.JOBS_WRITE))]
DataReader = Annotated[Caller, Depends(Authenticated(Scope.DATA_READ))]
DataWriter = Annotated[Caller, Depends(Authenticated(Scope.DATA_WRITE))]
WebhookOwner = Annotated[Caller, Depends(Authenticated(Scope.WEBHOOKS))]
