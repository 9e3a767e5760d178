"""Signed requests: what is covered, what is refused and by which code, and that an implementation of somebody else's agrees."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from http_message_signatures import HTTPMessageVerifier, HTTPSignatureKeyResolver, algorithms
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature

from torg_protocol.errors import Unauthorized
from torg_protocol.httpsig import MAX_CLOCK_SKEW_S, RequestParts, content_digest, sign_request, verify_request

KEY = Keypair.from_seed(bytes(range(32)))
NOW_S = 1_800_000_000
NONCE = "n0nce_0123456789-abc"


def parts(**changes: Any) -> RequestParts:
    request = RequestParts(
        method="POST",
        authority="market.example:8700",
        path="/v1/jobs",
        query="?wait=5",
        headers={"idempotency-key": "key-1", "accept": "application/json"},
        body=b'{"spec": 1}',
    )
    return replace(request, **changes)


def signed(request: RequestParts | None = None, *, key: Keypair = KEY, created_s: int = NOW_S) -> RequestParts:
    request = request or parts()
    added = sign_request(key, request, created_s=created_s, nonce=NONCE)
    return replace(request, headers={**request.headers, **added})


def code_of(request: RequestParts, *, now_s: int = NOW_S) -> str:
    with pytest.raises(Unauthorized) as refused:
        verify_request(request, now_s=now_s)
    return refused.value.code


def test_what_was_signed_names_key_time_and_nonce() -> None:
    verified = verify_request(signed(), now_s=NOW_S)

    assert (verified.key, verified.created_s, verified.nonce) == (str(KEY.pubkey()), NOW_S, NONCE)


@pytest.mark.parametrize(
    "tampered",
    [
        lambda request: replace(request, method="PUT"),
        lambda request: replace(request, authority="other.example"),
        lambda request: replace(request, path="/v1/jobs/x/cancel"),
        lambda request: replace(request, query="?wait=6"),
        lambda request: replace(request, query=""),
        lambda request: replace(request, headers={**request.headers, "idempotency-key": "key-2"}),
    ],
    ids=["method", "authority", "path", "query", "query taken away", "idempotency key"],
)
def test_nothing_that_is_covered_can_be_changed(tampered: Callable[[RequestParts], RequestParts]) -> None:
    assert code_of(tampered(signed())) == "signature_invalid"


@pytest.mark.parametrize("body", [b'{"spec": 2}', b"", b'{"spec": 1} '])
def test_another_body_is_not_the_one_that_was_signed(body: bytes) -> None:
    assert code_of(replace(signed(), body=body)) == "content_digest_mismatch"


def test_a_digest_that_was_changed_with_the_body_is_still_not_signed() -> None:
    request = signed()
    other = b'{"spec": 2}'
    changed = replace(request, body=other, headers={**request.headers, "content-digest": content_digest(other)})

    assert code_of(changed) == "signature_invalid"


@pytest.mark.parametrize("header", ["content-digest", "idempotency-key"])
def test_a_covered_header_cannot_be_dropped(header: str) -> None:
    request = signed()
    headers = {name: value for name, value in request.headers.items() if name != header}

    assert code_of(replace(request, headers=headers)) == "signature_malformed"


def test_an_idempotency_key_cannot_be_added_afterwards() -> None:
    request = signed(parts(headers={}))
    assert code_of(replace(request, headers={**request.headers, "idempotency-key": "k"})) == "signature_malformed"


@pytest.mark.parametrize(
    ("offset_s", "fresh"),
    [
        (-MAX_CLOCK_SKEW_S, True),
        (MAX_CLOCK_SKEW_S, True),
        (-MAX_CLOCK_SKEW_S - 1, False),
        (MAX_CLOCK_SKEW_S + 1, False),
    ],
)
def test_a_signature_is_good_for_minutes_around_its_time(offset_s: int, *, fresh: bool) -> None:
    request = signed(created_s=NOW_S + offset_s)
    if fresh:
        assert verify_request(request, now_s=NOW_S).created_s == NOW_S + offset_s
    else:
        assert code_of(request) == "signature_stale"


@pytest.mark.parametrize("missing", ["signature", "signature-input"])
def test_an_unsigned_request_is_told_how_to_sign(missing: str) -> None:
    request = signed()
    headers = {name: value for name, value in request.headers.items() if name != missing}

    assert code_of(replace(request, headers=headers)) == "signature_missing"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('alg="ed25519"', 'alg="hmac-sha256"'),
        ('tag="torg"', 'tag="other"'),
        ('"@authority" ', ""),
        (f'nonce="{NONCE}"', 'nonce="short"'),
        ("torg=(", "sig1=("),
        (f'keyid="{KEY.pubkey()}"', 'keyid="0OIl"'),
        (";created=", ";expires=9999999999;created="),
    ],
)
def test_any_other_form_is_malformed(old: str, new: str) -> None:
    request = signed()
    text = request.headers["signature-input"]
    assert old in text

    assert code_of(replace(request, headers={**request.headers, "signature-input": text.replace(old, new)})) == (
        "signature_malformed"
    )


@pytest.mark.parametrize("value", ["torg=:AAAA:", "torg=::", "sig1=:" + "A" * 86 + "==:", "garbage"])
def test_a_signature_that_is_none_is_malformed(value: str) -> None:
    request = signed()
    assert code_of(replace(request, headers={**request.headers, "signature": value})) == "signature_malformed"


def test_another_key_in_the_parameters_does_not_verify() -> None:
    request = signed()
    other = str(Keypair().pubkey())
    text = request.headers["signature-input"].replace(str(KEY.pubkey()), other)

    assert code_of(replace(request, headers={**request.headers, "signature-input": text})) == "signature_invalid"


def test_a_small_order_key_signs_nothing() -> None:
    """The identity point as key, and a signature that lax verifiers take for every message."""
    request = signed()
    small = str(Pubkey(bytes([1]) + bytes(31)))
    text = request.headers["signature-input"].replace(str(KEY.pubkey()), small)
    everything = "torg=:" + "AQ" + "A" * 84 + "==:"

    headers = {**request.headers, "signature-input": text, "signature": everything}
    assert code_of(replace(request, headers=headers)) == "signature_invalid"


def test_the_example_of_the_documents_is_what_we_sign_and_verify() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/reference/http-signatures.md").read_text()
    head, body = page.split("```http\n")[1].split("\n```")[0].split("\n\n")
    first, *lines = head.splitlines()
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    method, path, _ = first.split()
    request = RequestParts(method, headers["host"], path, "?", headers, body.encode())

    verified = verify_request(request, now_s=NOW_S)
    assert (verified.key, verified.created_s) == (str(KEY.pubkey()), NOW_S)
    base = page.split("```text\n")[1].split("\n```")[0]
    signature = base64.b64decode(headers["signature"].removeprefix("torg=:").removesuffix(":"))
    assert Signature.from_bytes(signature).verify(KEY.pubkey(), base.encode())


class _Keys(HTTPSignatureKeyResolver):
    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(bytes(Pubkey.from_string(key_id)))

    def resolve_private_key(self, key_id: str) -> Ed25519PrivateKey:
        raise NotImplementedError(key_id)


@pytest.mark.parametrize("body", [b'{"spec": 1}', b""])
@pytest.mark.parametrize("query", ["?wait=5", ""])
def test_an_independent_implementation_of_rfc_9421_verifies_our_requests(body: bytes, query: str) -> None:
    request = signed(parts(body=body, query=query), created_s=int(time.time()))
    url = f"http://{request.authority}{request.path}{request.query}"
    message = httpx.Request(request.method, url, content=body, headers=dict(request.headers))

    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.ED25519, key_resolver=_Keys())
    results = verifier.verify(message, expect_tag="torg")

    assert [result.label for result in results] == ["torg"]
    assert '"@authority"' in results[0].covered_components
