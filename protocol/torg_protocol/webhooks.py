"""Webhooks: bodies of their part of the REST API, what is delivered, and its signature (the Standard Webhooks form).

A delivery has three headers: `webhook-id`, the same in every try, so that a receiver can tell repeats; `webhook-timestamp`, seconds;
`webhook-signature`, "v1," and the base64 of HMAC-SHA256 over "{id}.{timestamp}.{body}" by the bytes that the secret encodes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from torg_protocol.api import JobEvent
from torg_protocol.documents import View, Wire
from torg_protocol.errors import Unauthorized
from torg_protocol.ids import JobId

WebhookKind = Literal["job", "lease", "preparing", "checkpoint", "receipt"]
DEFAULT_KINDS: tuple[WebhookKind, ...] = ("job", "receipt")
SECRET_PREFIX = "whsec_"  # noqa: S105 - what secrets begin with
TOLERANCE_S = 300


class WebhookRequest(Wire):
    """POST /v1/webhooks. `kinds`: which events of the account's jobs; "job" are their changes of state."""

    url: str = Field(pattern=r"^https?://[^\s/?#@]+(/[^\s#]*)?$", max_length=2048)
    kinds: tuple[WebhookKind, ...] = Field(default=DEFAULT_KINDS, min_length=1, max_length=5)


class WebhookView(View):
    webhook_id: str
    url: str
    kinds: tuple[WebhookKind, ...]
    created_at_ms: int


class NewWebhook(View):
    webhook: WebhookView
    secret: str  # whsec_ and base64


class WebhookPage(View):
    """GET /v1/webhooks"""

    webhooks: tuple[WebhookView, ...]
    next_cursor: str | None = None


class DeliveryView(View):
    """`state`: pending (next try at `next_try_at_ms`), delivered (answered 2xx), failed (given up; replay it)."""

    delivery_id: str
    job_id: JobId
    event_id: int
    state: Literal["pending", "delivered", "failed"]
    tries: int
    next_try_at_ms: int | None = None
    answer: str = ""  # to the newest try


class DeliveryPage(View):
    """GET /v1/webhooks/{id}/deliveries, newest first."""

    deliveries: tuple[DeliveryView, ...]
    next_cursor: str | None = None


class ReplayRequest(Wire):
    """POST /v1/webhooks/{id}/replay. No ids: all that failed."""

    delivery_ids: tuple[str, ...] = Field(default=(), max_length=200)


class Replayed(View):
    deliveries: int


class WebhookPayload(View):
    """The body of a delivery. `type` is "job." and the event's kind."""

    type: str
    job_id: JobId
    event: JobEvent


def sign_webhook(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def verify_webhook(secret: str, headers: Mapping[str, str], body: bytes, *, now_s: int) -> WebhookPayload:
    """What a receiver does. Raises Unauthorized `webhook_signature_invalid`, `webhook_stale` (more than five minutes off)."""
    given = {name.lower(): value for name, value in headers.items()}
    timestamp = given.get("webhook-timestamp", "")
    if not (timestamp.isascii() and timestamp.isdigit()) or abs(now_s - int(timestamp[:15])) > TOLERANCE_S:
        raise Unauthorized("not a delivery of now", code="webhook_stale", field="webhook-timestamp", value=timestamp)
    try:
        wanted = sign_webhook(secret, given.get("webhook-id", ""), int(timestamp), body)
    except binascii.Error as error:
        raise Unauthorized("not a webhook secret", code="webhook_secret_invalid", field="secret") from error
    signatures = given.get("webhook-signature", "").split(" ")
    if not any(hmac.compare_digest(wanted.encode(), signature.encode()) for signature in signatures):
        raise Unauthorized(
            "not signed by this webhook's secret", code="webhook_signature_invalid", field="webhook-signature"
        )
    return WebhookPayload.model_validate_json(body)
