"""How much one caller may ask: a token bucket per account, API key or (for who is nobody) address; bounded bodies.

Counted here by a marketplace that is one process, and in PostgreSQL (storage/shared_admission.py) by one that may be several. Every
counted answer carries RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers): how many requests a minute, how many are
left, in how many seconds the bucket is full again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from torg_marketplace.api.problems import problem_of
from torg_marketplace.rules.limits import Quota, quota_of, refilled, refusal
from torg_marketplace.storage.nonces import NonceStore
from torg_protocol.errors import TooLarge
from torg_protocol.httpsig import VerifiedSignature

MAX_BODY_BYTES = 1 << 20
_MAX_OF_LISTS = 4 << 20  # names and sizes of all pieces of a blob
_CALLERS_KEPT = 50_000


class RateLimiter:
    """`per_minute` 0: nobody is limited."""

    def __init__(self, per_minute: int, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._monotonic_s = monotonic_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller -> tokens left, at which second

    def take(self, caller: str) -> Quota | None:
        """Raises RateLimited, with the seconds until the next request in `data["retry_after_s"]`."""
        if not self._per_minute:
            return None
        now_s = self._monotonic_s()
        tokens, since_s = self._buckets.pop(caller, (float(self._per_minute), now_s))
        tokens = refilled(tokens, self._per_minute, now_s - since_s)
        if tokens < 1:
            self._buckets[caller] = (tokens, now_s)
            raise refusal(tokens, self._per_minute)
        self._buckets[caller] = (tokens - 1, now_s)
        if len(self._buckets) > _CALLERS_KEPT:
            self._buckets.popitem(last=False)  # who has not asked for longest has most likely a full bucket anyway
        return quota_of(tokens - 1, self._per_minute)


class LocalAdmission:
    """Of a marketplace that is one process. Implements the Admission port."""

    def __init__(self, nonces: NonceStore, limiter: RateLimiter) -> None:
        self._nonces, self._limiter = nonces, limiter

    async def admit(self, *, signature: VerifiedSignature | None = None, caller: str | None = None) -> Quota | None:
        if signature is not None:
            self._nonces.use(signature)
        return self._limiter.take(caller) if caller is not None else None


class Bounds:
    """ASGI middleware around the whole API: refuses bodies over a MiB (lists of pieces: four) before they are read (bytes of blobs are bounded by
    their signed URLs), and adds the quota that a handler has counted to the head of its answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})

        async def send_with_quota(message: Message) -> None:
            quota = scope["state"].get("quota")
            if message["type"] == "http.response.start" and quota is not None:
                MutableHeaders(scope=message).update(quota.headers())
            await send(message)

        if not scope["path"].startswith("/blobs/"):
            try:
                receive = await _bounded(receive, _MAX_OF_LISTS if scope["path"] == "/v1/blobs" else MAX_BODY_BYTES)
            except TooLarge as error:
                await problem_of(error)(scope, receive, send)
                return
        await self._app(scope, receive, send_with_quota)


async def _bounded(receive: Receive, most: int) -> Receive:
    """Reads the whole body; what it returns hands it out again, and after it whatever else comes (the disconnect)."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            raise TooLarge(
                "the request body is too large",
                code="body_too_large",
                field="body",
                hint=f"at most {most} bytes; upload data as blobs",
            )
    handed_out = False

    async def replay() -> Message:
        nonlocal handed_out
        if handed_out:
            return await receive()
        handed_out = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return replay
