"""The tree under records and receipts: every leaf proves itself, and nothing else does."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torg_protocol.canonical import sha256_digest
from torg_protocol.ids import Digest
from torg_protocol.merkle import merkle_path, merkle_root, verify_path


def leaves(count: int) -> list[Digest]:
    return [sha256_digest(str(number).encode()) for number in range(count)]


@given(st.integers(1, 70), st.data())
def test_every_leaf_is_found_and_no_other_place_leaf_or_path_is(count: int, data: st.DataObject) -> None:
    tree = leaves(count)
    index = data.draw(st.integers(0, count - 1))
    root, path = merkle_root(tree), merkle_path(tree, index)

    assert verify_path(tree[index], index, count, path, root)
    assert not verify_path(sha256_digest(b"another"), index, count, path, root)
    assert not any(verify_path(tree[index], other, count, path, root) for other in range(count) if other != index)
    assert not verify_path(tree[index], index, count, [*path, root], root)
    if path:
        assert not verify_path(tree[index], index, count, path[:-1], root)


@given(st.integers(2, 40), st.data())
def test_a_root_changes_with_every_leaf_and_with_their_order(count: int, data: st.DataObject) -> None:
    tree = leaves(count)
    index = data.draw(st.integers(0, count - 2))
    swapped = [*tree[:index], tree[index + 1], tree[index], *tree[index + 2 :]]

    assert merkle_root(swapped) != merkle_root(tree)
    assert merkle_root(tree[:-1]) != merkle_root(tree)


def test_an_inner_node_is_no_leaf() -> None:
    """Else one could show a subtree as a record (second preimage)."""
    tree = leaves(4)
    left = Digest(merkle_root(tree[:2]))
    right = Digest(merkle_root(tree[2:]))

    assert merkle_root([left, right]) != merkle_root(tree)


def test_the_empty_tree_and_the_single_leaf_are_those_of_rfc_6962() -> None:
    assert merkle_root([]) == sha256_digest(b"")
    leaf = sha256_digest(b"x")
    assert merkle_root([leaf]) == sha256_digest(b"\0" + hashlib.sha256(b"x").digest())


@pytest.mark.parametrize(("index", "count"), [(-1, 4), (4, 4), (0, 0)])
def test_a_place_outside_of_the_tree_proves_nothing(index: int, count: int) -> None:
    tree = leaves(4)
    assert not verify_path(tree[0], index, count, merkle_path(tree, 0), merkle_root(tree))
