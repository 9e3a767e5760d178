"""Which marketplace, whose key, and whether the one that answers is still the one that was pinned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.answers import market_info
from torg.config import DEFAULT_MARKETPLACE, ClientConfig, load_config, pin_or_check, pinned, save_marketplace
from torg_protocol.errors import Forbidden, Invalid, NotFound

URL = "https://market.example"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORG_HOME", "TORG_MARKETPLACE"):
        monkeypatch.delenv(name, raising=False)


def market(key: str = "key-1", **chain: str | int) -> dict[str, Any]:
    return market_info(key, **{"rpc_url": "http://rpc", **chain}).wire()


def test_arguments_win_over_the_environment_which_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORG_HOME", str(tmp_path))
    assert load_config() == ClientConfig(tmp_path, DEFAULT_MARKETPLACE)

    save_marketplace(ClientConfig(tmp_path, "https://file.example"))
    assert load_config().marketplace_url == "https://file.example"

    monkeypatch.setenv("TORG_MARKETPLACE", "https://environment.example/")
    assert load_config().marketplace_url == "https://environment.example"
    assert load_config(marketplace_url="https://argument.example").marketplace_url == "https://argument.example"
    assert load_config(home=tmp_path / "other").home == tmp_path / "other"


@pytest.mark.parametrize(
    "url", ["market.example", "ftp://x", "http://", "https:///x", "http://a b", "https://x/?q=1", "7"]
)
def test_what_is_no_address_is_refused_with_an_example(tmp_path: Path, url: str) -> None:
    with pytest.raises(Invalid) as refused:
        load_config(tmp_path, url)

    assert (refused.value.code, refused.value.field, refused.value.value) == (
        "marketplace_url_invalid",
        "marketplace",
        url,
    )
    assert "https://" in (refused.value.hint or "")


@pytest.mark.parametrize("content", ["{", "[1]", '"text"', "null", ""])
def test_a_configuration_that_is_not_one_is_named_and_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)

    with pytest.raises(Invalid) as refused:
        load_config(tmp_path)
    assert (refused.value.code, refused.value.value) == ("config_invalid", str(tmp_path / "config.json"))
    assert (tmp_path / "config.json").read_text() == content


def test_a_directory_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(Invalid) as refused:
        save_marketplace(ClientConfig(tmp_path / "file", URL))
    assert refused.value.code in {"config_unreadable", "config_unwritable"}


def test_choosing_a_marketplace_keeps_what_else_is_in_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"theme": "dark"}')
    save_marketplace(ClientConfig(tmp_path, URL))

    assert json.loads((tmp_path / "config.json").read_text()) == {"theme": "dark", "marketplace": URL}
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_first_contact_pins_and_another_identity_at_the_same_address_is_refused(tmp_path: Path) -> None:
    config = ClientConfig(tmp_path, URL)
    pin_or_check(config, market())
    pin_or_check(config, market())
    assert pinned(config)["marketplace"] == "key-1"

    with pytest.raises(Forbidden) as refused:
        pin_or_check(config, market("key-2"))
    assert (refused.value.code, refused.value.value) == ("marketplace_changed", URL)
    assert "key-2" in (refused.value.hint or "")
    assert pinned(config)["marketplace"] == "key-1"


@pytest.mark.parametrize(
    "change", [{"mint": "x"}, {"program_id": "x"}, {"operator_config": "x"}, {"decimals": 9}, {"genesis_hash": "x"}]
)
def test_where_the_money_is_may_not_change_either(tmp_path: Path, change: dict[str, str]) -> None:
    config = ClientConfig(tmp_path, URL)
    pin_or_check(config, market())

    with pytest.raises(Forbidden) as refused:
        pin_or_check(config, market(**change))
    assert refused.value.code == "marketplace_changed"


def test_another_rpc_node_of_the_same_chain_is_fine_and_other_addresses_have_pins_of_their_own(tmp_path: Path) -> None:
    config, other = ClientConfig(tmp_path, URL), ClientConfig(tmp_path, "https://other.example")
    pin_or_check(config, market())
    pin_or_check(config, market(rpc_url="http://another-rpc"))
    pin_or_check(other, market("key-2"))

    assert (pinned(config)["marketplace"], pinned(other)["marketplace"]) == ("key-1", "key-2")


def test_a_marketplace_that_was_never_reached_has_no_pin(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as refused:
        pinned(ClientConfig(tmp_path, URL))
    assert refused.value.code == "never_connected"
