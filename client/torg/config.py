"""Where the client keeps its key, its journal and what it knows of its marketplace.

One directory: $TORG_HOME, or ~/.config/torg. `config.json` names the marketplace and pins its public key and operator config at
first contact, so that a later impostor under the same address is noticed before anything is signed for it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torg_protocol.errors import Forbidden, Invalid, NotFound

DEFAULT_MARKETPLACE = "http://127.0.0.1:8700"
_CHAIN_IDENTITY = ("genesis_hash", "program_id", "mint", "decimals", "operator_config")


@dataclass(frozen=True, slots=True)
class ClientConfig:
    home: Path
    marketplace_url: str
    api_key: str | None = field(default=None, repr=False)  # instead of a wallet: the operator's credit pays

    @property
    def key_path(self) -> Path:
        return self.home / "wallet.json"

    @property
    def session_key_path(self) -> Path:
        """The key that signs caps. It can spend a vault only to the payees of an operator's order, never withdraw."""
        return self.home / "session.json"

    @property
    def journal_path(self) -> Path:
        return self.home / "journal.db"

    @property
    def pin_path(self) -> Path:
        return self.home / "marketplace.json"


def load_config(home: Path | None = None, marketplace_url: str | None = None) -> ClientConfig:
    """Arguments win over the environment (TORG_HOME, TORG_MARKETPLACE), which wins over config.json. An API key comes from
    TORG_API_KEY alone. Raises Invalid `marketplace_url_invalid`, `api_key_in_clear`."""
    home = home or Path(os.environ.get("TORG_HOME") or Path.home() / ".config" / "torg")
    stored = _read_json(home / "config.json")
    url = str(marketplace_url or os.environ.get("TORG_MARKETPLACE") or stored.get("marketplace") or DEFAULT_MARKETPLACE)
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", url):
        raise Invalid(
            "not a marketplace address",
            code="marketplace_url_invalid",
            field="marketplace",
            value=url,
            hint="write it like https://host",
        )
    api_key = os.environ.get("TORG_API_KEY", "").strip() or None
    if api_key is not None and url.startswith("http:") and not _is_loopback(url):
        raise Invalid(
            "an API key would go over the network in clear",
            code="api_key_in_clear",
            field="marketplace",
            value=url,
            hint="use the marketplace's https address",
        )
    return ClientConfig(home, url.rstrip("/"), api_key)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def save_marketplace(config: ClientConfig) -> None:
    path = config.home / "config.json"
    _write_json(path, {**_read_json(path), "marketplace": config.marketplace_url})


def pin_or_check(config: ClientConfig, info: Mapping[str, Any]) -> None:
    """Remembers who answers at this address, or refuses when somebody else does now. `info`: the JSON of /v1/market."""
    pins = _read_json(config.pin_path)
    chain = {name: info["chain"][name] for name in ("rpc_url", *_CHAIN_IDENTITY)}
    identity = {"marketplace": info["marketplace"], "chain": chain}
    seen = pins.get(config.marketplace_url)
    if seen is None:
        _write_json(config.pin_path, {**pins, config.marketplace_url: identity})
    elif _named_by(seen) != _named_by(identity):
        raise Forbidden(
            "the marketplace at this address has changed its identity",
            code="marketplace_changed",
            field="marketplace",
            value=config.marketplace_url,
            hint=f"pinned {seen['marketplace']}, got {identity['marketplace']}; if you know why, remove it from {config.pin_path}",
        )


def pinned(config: ClientConfig) -> dict[str, Any]:
    """What was pinned of the current marketplace: {"marketplace": key, "chain": network}. Raises NotFound `never_connected`."""
    found = _read_json(config.pin_path).get(config.marketplace_url)
    if found is None:
        raise NotFound(
            "this client has never reached that marketplace",
            code="never_connected",
            field="marketplace",
            value=config.marketplace_url,
            hint="check the address",
        )
    return dict(found)


def _named_by(identity: dict[str, Any]) -> list[Any]:
    """An RPC address may change; the program, the mint, the operator and the chain may not."""
    return [identity["marketplace"], *(identity["chain"].get(name) for name in _CHAIN_IDENTITY)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("an object was expected")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Invalid(
            f"cannot read the configuration: {error.strerror}",
            code="config_unreadable",
            field="file",
            value=str(path),
            hint="is it yours? another directory can be named with --home or TORG_HOME",
        ) from error
    except ValueError as error:
        raise Invalid(
            f"the configuration is not JSON: {error}",
            code="config_invalid",
            field="file",
            value=str(path),
            hint="mend it or remove it",
        ) from error
    return found


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all, also when two terminals write at once or the machine stops."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            file.write(json.dumps(value, indent=2) + "\n")
        os.replace(file.name, path)  # noqa: PTH105 - both ends are names here
    except OSError as error:
        raise Invalid(
            f"cannot write the configuration: {error.strerror}",
            code="config_unwritable",
            field="file",
            value=str(path),
            hint="another directory can be named with --home or TORG_HOME",
        ) from error
