"""Keys on disk: readable by their owner alone, never overwritten, never printed, in the formats of the usual tools."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import traceback
from pathlib import Path

import pytest
from solders.keypair import Keypair

from torg_chain.errors import WalletError
from torg_chain.wallet import (
    create_keypair,
    import_keypair,
    keypair_from_phrase,
    load_keypair,
    parse_secret,
    save_keypair,
)

KEY = Keypair.from_seed(bytes(range(32)))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def secrets_of(keypair: Keypair) -> list[str]:
    """Every form in which a key could leak."""
    numbers = list(bytes(keypair))
    return [str(keypair), keypair.to_json(), bytes(keypair).hex(), str(numbers)[1:60], json.dumps(numbers)[1:60]]


def test_a_new_key_is_readable_by_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        created = create_keypair(tmp_path / "deep" / "key.json")
    finally:
        os.umask(previous)

    assert mode_of(tmp_path / "deep" / "key.json") == 0o600
    assert mode_of(tmp_path / "deep") == 0o700
    assert load_keypair(tmp_path / "deep" / "key.json") == created


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    first = create_keypair(tmp_path / "key.json")

    with pytest.raises(WalletError) as refused:
        create_keypair(tmp_path / "key.json")

    assert refused.value.code == "wallet_exists"
    assert load_keypair(tmp_path / "key.json") == first


def test_a_link_is_not_followed_when_a_key_is_written(tmp_path: Path) -> None:
    (tmp_path / "key.json").symlink_to(tmp_path / "elsewhere.json")

    with pytest.raises(WalletError) as refused:
        create_keypair(tmp_path / "key.json")

    assert refused.value.code == "wallet_exists"
    assert not (tmp_path / "elsewhere.json").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    create_keypair(tmp_path / "key.json")
    (tmp_path / "key.json").chmod(mode)

    with pytest.raises(WalletError) as refused:
        load_keypair(tmp_path / "key.json")

    assert refused.value.code == "wallet_readable_by_others"
    assert f"chmod 600 {tmp_path / 'key.json'}" in str(refused.value.hint)


def test_a_missing_key_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(WalletError) as refused:
        load_keypair(tmp_path / "key.json")

    assert (refused.value.code, refused.value.value) == ("wallet_not_found", str(tmp_path / "key.json"))


def test_the_format_is_that_of_solana_keygen(tmp_path: Path) -> None:
    save_keypair(KEY, tmp_path / "key.json")

    numbers = json.loads((tmp_path / "key.json").read_text())

    assert numbers == [*range(32), *bytes(KEY.pubkey())]


@pytest.mark.parametrize("text", [KEY.to_json(), f"  {json.dumps(list(bytes(KEY)), indent=2)}\n", str(KEY), f"{KEY}\n"])
def test_keys_of_other_tools_are_imported(tmp_path: Path, text: str) -> None:
    (tmp_path / "theirs").write_text(text)  # any mode: it is theirs

    imported = import_keypair(tmp_path / "theirs", tmp_path / "ours.json")

    assert imported == KEY == load_keypair(tmp_path / "ours.json")
    assert mode_of(tmp_path / "ours.json") == 0o600


SPOILED = [*list(bytes(KEY))[:63], (bytes(KEY)[63] + 1) % 256]
BROKEN = [
    b"",
    b"[]",
    b"{",
    json.dumps(list(bytes(KEY))[:63]).encode(),
    json.dumps(SPOILED).encode(),  # the public half is not that of the secret half
    json.dumps([*list(bytes(KEY))[:63], 256]).encode(),
    json.dumps([*list(bytes(KEY))[:63], -1]).encode(),
    json.dumps([str(n) for n in bytes(KEY)]).encode(),
    json.dumps(list(bytes(KEY))).encode()[:-1],
    str(KEY).encode()[:-3],
    str(KEY).encode() + b"l",  # not in the base58 alphabet
    bytes(KEY),  # raw, not text
    b"\xff\xfe" + bytes(KEY),
]


@pytest.mark.parametrize("raw", BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_key_is_refused_and_never_repeated(tmp_path: Path, raw: bytes) -> None:
    """Neither the message, nor the chained exceptions of the libraries below, hold any part of a secret."""
    path = tmp_path / "key.json"
    path.write_bytes(raw)
    path.chmod(0o600)

    for load in (lambda: load_keypair(path), lambda: import_keypair(path, tmp_path / "ours.json")):
        with pytest.raises(WalletError) as refused:
            load()
        shown = "".join(traceback.format_exception(refused.value)) + repr(refused.value)
        assert refused.value.code == "wallet_invalid"
        for secret in (*secrets_of(KEY), repr(bytes(KEY)[:16])[2:-1]):
            assert secret not in shown
    assert not (tmp_path / "ours.json").exists()


def test_a_base58_seed_of_32_bytes_is_refused_rather_than_guessed_at() -> None:
    from solders.pubkey import Pubkey

    with pytest.raises(WalletError) as refused:
        parse_secret(str(Pubkey(bytes(KEY)[:32])), "clipboard")

    assert refused.value.code == "wallet_invalid"


def test_nothing_logs_a_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        created = create_keypair(tmp_path / "key.json")
        load_keypair(tmp_path / "key.json")
        with pytest.raises(WalletError) as refused:
            create_keypair(tmp_path / "key.json")
    out, err = capfd.readouterr()

    for secret in secrets_of(created):
        assert secret not in caplog.text + out + err + repr(refused.value) + str(refused.value)


def test_no_module_formats_a_key() -> None:
    """`str` of a keypair is its secret in base58 (`repr` is not), so no f-string may take one."""
    assert Keypair.from_base58_string(str(KEY)) == KEY
    assert not [secret for secret in secrets_of(KEY) if secret in repr(KEY)]
    formatted = re.compile(
        r"(\{(self\.)?_?(keypair|wallet|secret|admin|capture_key|session_key)(!r)?\}|repr\(\w*key(pair)?\))"
    )
    root = Path(__file__).resolve().parents[3]
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for room in ("chain/torg_chain", "client/torg", "node/torg_node", "marketplace/torg_marketplace")
        for path in (root / room).rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if formatted.search(line)
    ]

    assert found == []


PHRASE = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("m/44'/501'/0'/0'", "HAgk14JpMQLgt6rVgv7cBQFJWFto5Dqxi472uT3DKpqk"),  # what wallet apps show for this phrase
        (None, None),
    ],
)
def test_a_seed_phrase_is_the_wallet_that_others_make_of_it(path: str | None, address: str | None) -> None:
    made = str(keypair_from_phrase(f"  {PHRASE.upper()}\n", derivation_path=path).pubkey())
    assert made == (address or str(Keypair.from_seed_phrase_and_passphrase(PHRASE, "").pubkey()))


def test_paths_and_passphrases_are_other_wallets() -> None:
    keys = [
        keypair_from_phrase(PHRASE),
        keypair_from_phrase(PHRASE, derivation_path="m/44'/501'/1'/0'"),
        keypair_from_phrase(PHRASE, derivation_path=None),
        keypair_from_phrase(PHRASE, passphrase="x"),
    ]
    assert len({str(key.pubkey()) for key in keys}) == 4


@pytest.mark.parametrize("phrase", [PHRASE.replace("about", "abandon"), PHRASE + " about", "correct horse", ""])
def test_a_wrong_phrase_is_refused_and_never_repeated(phrase: str) -> None:
    with pytest.raises(WalletError) as caught:
        keypair_from_phrase(phrase)
    assert caught.value.code == "phrase_invalid"
    assert not set(phrase.split()) & set(str(caught.value).replace(",", " ").split())


@pytest.mark.parametrize("path", ["m/44/501", "44'/501'", "m/44'/501'/0'/x'", ""])
def test_a_wrong_derivation_path_is_refused(path: str) -> None:
    with pytest.raises(WalletError) as caught:
        keypair_from_phrase(PHRASE, derivation_path=path)
    assert caught.value.code == "derivation_path_invalid"
