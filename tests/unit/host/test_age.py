"""Files under age: whoever holds one of the keys opens them, nobody else, and not when a byte is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from solders.keypair import Keypair

from torg_host.age import new_key, seal_file, unseal_file
from torg_protocol.errors import Invalid


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    (tmp_path / "plain").write_bytes(os.urandom(300_000))
    return tmp_path / "plain"


def test_each_recipient_opens_a_file_and_it_looks_different_each_time(plain: Path, tmp_path: Path) -> None:
    wallets, (identity, recipient) = [Keypair(), Keypair()], new_key()
    for name in ("one", "two"):
        seal_file(plain, tmp_path / name, wallets=[str(key.pubkey()) for key in wallets], keys=[recipient])

    assert (tmp_path / "one").read_bytes() != (tmp_path / "two").read_bytes()
    for opener in (*wallets, identity):
        unseal_file(tmp_path / "one", tmp_path / "opened", opener)
        assert (tmp_path / "opened").read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("case", ["stranger", "other key", "cut", "changed", "no key"])
def test_what_cannot_be_opened_leaves_nothing(plain: Path, tmp_path: Path, case: str) -> None:
    identity, recipient = new_key()
    seal_file(plain, sealed := tmp_path / "sealed", keys=[recipient])
    data = bytearray(sealed.read_bytes())
    if case == "cut":
        sealed.write_bytes(data[:-1])
    if case == "changed":
        data[-100_000] ^= 1
        sealed.write_bytes(data)
    opener = {"stranger": Keypair(), "other key": new_key()[0], "no key": ""}.get(case, identity)

    with pytest.raises(Invalid) as refused:
        unseal_file(sealed, tmp_path / "opened", opener)

    assert refused.value.code == "cannot_unseal"
    assert not (tmp_path / "opened").exists()


def test_what_is_no_key_is_refused(plain: Path, tmp_path: Path) -> None:
    for recipients in ({"wallets": ["nobody"]}, {"keys": ["age1" + "q" * 58]}):
        with pytest.raises(Invalid) as refused:
            seal_file(plain, tmp_path / "sealed", **recipients)
        assert refused.value.code == "recipient_invalid"
