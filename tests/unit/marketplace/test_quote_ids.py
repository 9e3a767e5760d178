"""A quote's id is a promise that nobody else can make, change, or use."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

from hypothesis import given
from hypothesis import strategies as st

from torg_marketplace.rules.quotes import quote_id, quote_key, terms_of
from torg_protocol.canonical import sha256_digest
from torg_protocol.ids import AccountId, QuoteId

KEY = quote_key(b"identity")
ALICE, BOB = AccountId("alice"), AccountId("bob")
SPEC, OTHER_SPEC = sha256_digest(b"spec"), sha256_digest(b"other")
U64 = st.integers(0, 2**64 - 1)


def promised() -> QuoteId:
    return quote_id(KEY, ALICE, SPEC, price_ceiling=7, max_amount=8, expires_at_ms=9)


@given(U64, U64, U64)
def test_what_was_promised_is_read_back(ceiling: int, amount: int, expires_at_ms: int) -> None:
    quoted = quote_id(KEY, ALICE, SPEC, price_ceiling=ceiling, max_amount=amount, expires_at_ms=expires_at_ms)
    terms = terms_of(KEY, ALICE, quoted)

    assert terms is not None
    assert (terms.price_ceiling, terms.max_amount, terms.expires_at_ms) == (ceiling, amount, expires_at_ms)
    assert terms.is_for(SPEC)
    assert not terms.is_for(OTHER_SPEC)


def test_it_is_nothing_in_anothers_hands_or_of_another_marketplace() -> None:
    assert terms_of(KEY, BOB, promised()) is None
    assert terms_of(quote_key(b"another identity"), ALICE, promised()) is None


@given(st.integers(0, 55), st.integers(1, 255))
def test_a_changed_bit_makes_it_nothing(place: int, change: int) -> None:
    raw = bytearray(urlsafe_b64decode(promised().removeprefix("quote_") + "="))
    raw[place] ^= change
    assert terms_of(KEY, ALICE, QuoteId("quote_" + urlsafe_b64encode(raw).decode().rstrip("="))) is None


@given(st.text(max_size=100))
def test_any_other_text_is_nothing(text: str) -> None:
    assert terms_of(KEY, ALICE, QuoteId(text)) is None
