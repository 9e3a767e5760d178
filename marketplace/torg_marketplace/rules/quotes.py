"""A quote's id is what was promised, signed: the marketplace keeps no quotes, and any of its processes can honour one.

Base64 of 56 bytes: price ceiling, maximum, expiry (64 bits each, big-endian), the first half of the spec's digest, and half of an HMAC-SHA256
over the account and all of that. The account is not in it: in another's hands it is no quote at all.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass

from torg_protocol.ids import AccountId, Digest, QuoteId, hex_of

_PREFIX = "quote_"
_TERMS = struct.Struct(">QQQ16s")
_MAC_BYTES = 16
_DOMAIN = b"torg quote v1\0"


@dataclass(frozen=True, slots=True)
class QuotedTerms:
    price_ceiling: int
    max_amount: int
    expires_at_ms: int
    spec: bytes  # first half of its digest

    def is_for(self, spec_digest: Digest) -> bool:
        return self.spec == _half_of(spec_digest)


def quote_key(identity: bytes) -> bytes:
    """What all processes of a marketplace sign quotes with, made of the secret that they share anyway."""
    return hashlib.sha256(_DOMAIN + identity).digest()


def quote_id(
    key: bytes, account: AccountId, spec_digest: Digest, *, price_ceiling: int, max_amount: int, expires_at_ms: int
) -> QuoteId:
    terms = _TERMS.pack(price_ceiling, max_amount, expires_at_ms, _half_of(spec_digest))
    return QuoteId(_PREFIX + urlsafe_b64encode(terms + _mac(key, account, terms)).decode().rstrip("="))


def terms_of(key: bytes, account: AccountId, quote: QuoteId) -> QuotedTerms | None:
    """None for what was not promised to this account. Whether it has expired, the caller asks."""
    try:
        raw = urlsafe_b64decode(quote.removeprefix(_PREFIX) + "=")
    except ValueError:
        return None
    terms, mac = raw[: _TERMS.size], raw[_TERMS.size :]
    if len(terms) != _TERMS.size or not hmac.compare_digest(mac, _mac(key, account, terms)):
        return None
    return QuotedTerms(*_TERMS.unpack(terms))


def _mac(key: bytes, account: AccountId, terms: bytes) -> bytes:
    return hmac.digest(key, _DOMAIN + account.encode() + terms, "sha256")[:_MAC_BYTES]


def _half_of(digest: Digest) -> bytes:
    return bytes.fromhex(hex_of(digest))[:16]
