"""Who is asking: the key that signed the request (RFC 9421), each signature good once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import Depends, Request

from torg_marketplace.api.context import Edge, edge_of
from torg_protocol.errors import TooLarge
from torg_protocol.httpsig import RequestParts, verify_request
from torg_protocol.ids import AccountId

MAX_BODY_BYTES = 1 << 20


async def signed_account(request: Request) -> AccountId:
    """Raises Unauthorized. Reads the whole (bounded) body, because its digest is signed."""
    body = await read_body(request)
    return verify_party(
        edge_of(request), request.method, request.url.path, request.url.query, dict(request.headers.items()), body
    )


def verify_party(edge: Edge, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> AccountId:
    now_s = edge.market.clock.now_ms() // 1000
    parts = RequestParts(method, headers.get("host", ""), path, f"?{query}", headers, body)
    verified = verify_request(parts, now_s=now_s)
    edge.nonces.use(verified, now_s)
    return AccountId(verified.key)


async def read_body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge(
                "the request body is too large",
                code="body_too_large",
                field="body",
                hint=f"at most {MAX_BODY_BYTES} bytes",
            )
    request._body = bytes(body)  # noqa: SLF001 - what FastAPI parses next is what was verified
    return bytes(body)


Account = Annotated[AccountId, Depends(signed_account)]
