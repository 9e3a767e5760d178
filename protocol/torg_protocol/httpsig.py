"""HTTP message signatures (RFC 9421), the one profile that Torg speaks, with Content-Digest (RFC 9530).

Covered: method, authority, path, query, and of the headers content-digest and idempotency-key when they are there. Parameters:
created, nonce, keyid (the base58 public key), alg "ed25519", tag "torg". The authority is covered so that a request made for
one marketplace is worth nothing at another; the nonce so that a request is good once (the server remembers nonces for the
time in which `created` is acceptable).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from solders.keypair import Keypair
from solders.signature import Signature

from torg_protocol.errors import Unauthorized
from torg_protocol.signing import verify_bytes

MAX_CLOCK_SKEW_S = 300
LABEL = "torg"
_PARAMETERS = re.compile(
    r"\((?P<components>[^)]*)\);created=(?P<created>\d{1,12});nonce=\"(?P<nonce>[A-Za-z0-9_-]{16,64})\""
    r";keyid=\"(?P<keyid>[1-9A-HJ-NP-Za-km-z]{32,44})\";alg=\"ed25519\";tag=\"torg\""
)
_OPTIONAL_HEADERS = ("content-digest", "idempotency-key")


@dataclass(frozen=True, slots=True)
class RequestParts:
    """What a signature covers. `authority` is the Host in lower case; `query` includes its question mark or is "?"."""

    method: str
    authority: str
    path: str
    query: str
    headers: Mapping[str, str]  # lower-case names
    body: bytes


@dataclass(frozen=True, slots=True)
class VerifiedSignature:
    key: str
    created_s: int
    nonce: str


def sign_request(keypair: Keypair, parts: RequestParts, *, created_s: int, nonce: str) -> dict[str, str]:
    """The headers to add to the request: Content-Digest (when there is a body), Signature-Input, Signature."""
    added: dict[str, str] = {}
    headers = dict(parts.headers)
    if parts.body:
        added["content-digest"] = headers["content-digest"] = content_digest(parts.body)
    components = _components(headers)
    names = " ".join(f'"{name}"' for name in components)
    parameters = f'({names});created={created_s};nonce="{nonce}";keyid="{keypair.pubkey()}";alg="ed25519";tag="torg"'
    signature = keypair.sign_message(_signature_base(parts, headers, components, parameters))
    added["signature-input"] = f"{LABEL}={parameters}"
    added["signature"] = f"{LABEL}=:{base64.b64encode(bytes(signature)).decode()}:"
    return added


def verify_request(parts: RequestParts, *, now_s: int) -> VerifiedSignature:
    """Checks form, freshness, body digest and signature. The caller still has to refuse a nonce that it has seen.

    Raises Unauthorized with code signature_missing, signature_malformed, signature_stale, content_digest_mismatch or
    signature_invalid.
    """
    headers = {name.lower(): value for name, value in parts.headers.items()}
    match, raw_signature = _parse(headers)
    created_s = int(match["created"])
    if abs(now_s - created_s) > MAX_CLOCK_SKEW_S:
        raise Unauthorized(
            "the signature's time is too far from the server's",
            code="signature_stale",
            field="created",
            value=created_s,
            hint=f"server time is {now_s}; set the clock (at most {MAX_CLOCK_SKEW_S} s apart)",
        )
    components = _components(headers)
    if match["components"] != " ".join(f'"{name}"' for name in components):
        raise Unauthorized(
            "the signature does not cover what it must",
            code="signature_malformed",
            field="signature-input",
            value=match["components"],
            hint="cover exactly: " + " ".join(components),
        )
    # Also of an empty body, if a digest was signed: a body that was taken away is not the one that was signed either.
    if (parts.body or "content-digest" in headers) and headers.get("content-digest") != content_digest(parts.body):
        raise Unauthorized(
            "the body is not the one that was signed", code="content_digest_mismatch", field="content-digest"
        )
    base = _signature_base(parts, headers, components, match.group(0))
    if not verify_bytes(match["keyid"], raw_signature, base):
        raise Unauthorized(
            "the signature does not verify", code="signature_invalid", field="signature", value=match["keyid"]
        )
    return VerifiedSignature(match["keyid"], created_s, match["nonce"])


def content_digest(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def _components(headers: Mapping[str, str]) -> list[str]:
    return ["@method", "@authority", "@path", "@query", *(name for name in _OPTIONAL_HEADERS if name in headers)]


def _signature_base(parts: RequestParts, headers: Mapping[str, str], components: list[str], parameters: str) -> bytes:
    derived = {
        "@method": parts.method.upper(),
        "@authority": parts.authority.lower(),
        "@path": parts.path,
        "@query": parts.query or "?",
    }
    lines = [f'"{name}": {derived.get(name) or headers[name].strip()}' for name in components]
    lines.append(f'"@signature-params": {parameters}')
    return "\n".join(lines).encode()


def _parse(headers: Mapping[str, str]) -> tuple[re.Match[str], str]:
    try:
        signature_input, signature = headers["signature-input"], headers["signature"]
    except KeyError:
        raise Unauthorized(
            "this request must be signed (RFC 9421)",
            code="signature_missing",
            field="signature",
            hint="send an API key (Authorization: Bearer torgkey_...), use the torg client or SDK, or sign as docs/reference/http-signatures.md says",
        ) from None
    match = _PARAMETERS.fullmatch(signature_input.removeprefix(f"{LABEL}="))
    encoded = re.fullmatch(rf"{LABEL}=:([A-Za-z0-9+/]{{86}}==):", signature)
    if match is None or encoded is None:
        raise Unauthorized(
            "the signature headers are malformed",
            code="signature_malformed",
            field="signature-input",
            value=signature_input,
        )
    return match, _base58_signature(base64.b64decode(encoded.group(1)))


def _base58_signature(raw: bytes) -> str:
    return str(Signature.from_bytes(raw))
