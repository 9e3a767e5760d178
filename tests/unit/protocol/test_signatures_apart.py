"""One key signs requests, documents and vault messages: none of them can be read as another (DESIGN, principle 1)."""

from __future__ import annotations

import json
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from solders.keypair import Keypair

from torg_protocol import api, caps, messages, usage
from torg_protocol.canonical import canonical_json
from torg_protocol.documents import Document
from torg_protocol.errors import Invalid
from torg_protocol.signing import document_bytes, sign_document, verify_bytes, verify_document
from torg_protocol.vault_messages import (
    CAP_DOMAIN,
    ORDER_DOMAIN,
    CapMessage,
    OrderMessage,
    sign_message,
    verify_message,
)

KEY = Keypair.from_seed(bytes(range(32)))
ME = str(KEY.pubkey())


def kinds() -> list[str]:
    assert api
    assert messages
    assert usage
    assert caps  # imported so that their documents are known here
    found, waiting = {}, [Document]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            if kind.__module__.startswith("torg_"):  # other tests define some of their own
                found[kind.__module__, kind.__qualname__] = kind.KIND
            waiting.append(kind)
    return list(found.values())


def test_every_kind_of_document_has_a_name_of_its_own() -> None:
    assert len(kinds()) >= 4
    assert len(set(kinds())) == len(kinds())
    assert not any("\n" in kind for kind in kinds())


@pytest.mark.parametrize(("signed_as", "read_as"), list(permutations(["usage", "receipt", "commitment"], 2)))
def test_a_signature_over_one_kind_is_none_over_another(signed_as: str, read_as: str) -> None:
    body = {"amount": 1}
    signature = sign_document(KEY, signed_as, body)

    assert verify_document(ME, signature, signed_as, body)
    assert not verify_document(ME, signature, read_as, body)


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8), max_size=4), st.binary(max_size=200))
def test_no_document_starts_as_a_request_or_a_vault_message_does(body: dict[str, object], rest: bytes) -> None:
    """A request's signature base starts with a quote mark, a vault message with its zero-padded domain."""
    for kind in kinds():
        document = document_bytes(kind, body)
        assert not document.startswith((b'"', CAP_DOMAIN, ORDER_DOMAIN))
    for message in (CAP_DOMAIN + rest, ORDER_DOMAIN + rest):
        assert not message.startswith((b'"', b"torg-doc-v1\n"))


def test_a_cap_is_no_order_and_belongs_to_one_vault_and_one_chain() -> None:
    cap = CapMessage(bytes(32), bytes([1] * 32), 5, 100)
    signature = str(sign_message(KEY, cap))
    order = OrderMessage(bytes(32), bytes([1] * 32), 0, ((bytes([2] * 32), 5),), bytes(32))

    assert verify_message(cap, signature, ME)
    assert not verify_message(order, signature, ME)
    others = [
        CapMessage(bytes([9] * 32), cap.vault, cap.cap, cap.valid_until),
        CapMessage(cap.chain_id, bytes([9] * 32), cap.cap, cap.valid_until),
        CapMessage(cap.chain_id, cap.vault, 6, cap.valid_until),
        CapMessage(cap.chain_id, cap.vault, cap.cap, 101),
    ]
    assert not any(verify_message(other, signature, ME) for other in others)


def test_every_argument_of_an_order_is_signed() -> None:
    payees = ((bytes([2] * 32), 5), (bytes([3] * 32), 6))
    order = OrderMessage(bytes(32), bytes([1] * 32), 0, payees, bytes(32))
    others = [
        OrderMessage(bytes(32), bytes([1] * 32), 1, payees, bytes(32)),
        OrderMessage(bytes(32), bytes([1] * 32), 0, payees[::-1], bytes(32)),
        OrderMessage(bytes(32), bytes([1] * 32), 0, payees[:1], bytes(32)),
        OrderMessage(bytes(32), bytes([1] * 32), 0, ((payees[0][0], 6), (payees[1][0], 5)), bytes(32)),
        OrderMessage(bytes(32), bytes([1] * 32), 0, payees, bytes([1]) + bytes(31)),
    ]
    assert len({order.to_bytes(), *(other.to_bytes() for other in others)}) == len(others) + 1


@pytest.mark.parametrize(("key", "signature"), [("", ""), ("not base58 0OIl", "x"), (ME, "x"), ("x", "1" * 64)])
def test_what_cannot_be_parsed_does_not_verify(key: str, signature: str) -> None:
    assert not verify_bytes(key, signature, b"message")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), _JSON, max_size=4))
def test_one_value_has_one_form_whatever_the_order_of_its_keys(value: dict[str, object]) -> None:
    turned = dict(reversed(list(value.items())))

    assert canonical_json(value) == canonical_json(turned)
    assert json.loads(canonical_json(value)) == value


@pytest.mark.parametrize(
    ("value", "field"), [({"a": 1.0}, "$.a"), ({"a": [1, b"x"]}, "$.a[1]"), ({1: 2}, "$"), ({"a": {"b": {1}}}, "$.a.b")]
)
def test_what_has_no_single_form_is_refused_by_its_place(value: object, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        canonical_json(value)

    assert (refused.value.code, refused.value.field) == ("not_canonical", field)
