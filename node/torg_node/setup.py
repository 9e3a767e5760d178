"""`torg-node init`: a key, what the marketplace is, and a config file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import httpx
from pydantic import ValidationError

from torg_chain.network import Network
from torg_chain.wallet import create_keypair, load_keypair
from torg_node.settings import CONFIG_NAME, Settings, write_settings
from torg_protocol.api import MarketInfo
from torg_protocol.errors import Conflict, Unavailable
from torg_protocol.money import parse_amount


def initialise(
    data: Path,
    marketplace_url: str,
    *,
    price: str,
    payout: str | None,
    slots: int,
    executor: Literal["auto", "docker", "sandbox"],
    max_unpaid: str,
    engine_socket: Path | None = None,
    egress: Literal["none", "allow", "open"] = "none",
) -> Settings:
    """Makes the folder, the key (0600) and config.toml. Raises Conflict `node_exists`, Unavailable `marketplace_unreachable`."""
    if (data / CONFIG_NAME).exists():
        raise Conflict(
            "this folder holds a node already",
            code="node_exists",
            field="data",
            value=str(data),
            hint="choose another folder",
        )
    info = fetch_market(marketplace_url)
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_path = data / "node.json"
    keypair = load_keypair(key_path) if key_path.exists() else create_keypair(key_path)
    settings = Settings(
        data=data,
        marketplace_url=marketplace_url.rstrip("/"),
        marketplace_key=info.marketplace,
        network=Network.model_validate(info.chain.model_dump()),
        price_per_gpu_hour=parse_amount(price, info.chain.decimals, field="price"),
        payout_address=payout or str(keypair.pubkey()),
        max_unpaid=parse_amount(max_unpaid, info.chain.decimals, field="max_unpaid"),
        slots=slots,
        executor=executor,
        engine_socket=engine_socket,
        egress=egress,
        min_vault_grace_s=info.min_vault_grace_s,
    )
    write_settings(settings)
    return settings


def fetch_market(url: str) -> MarketInfo:
    try:
        response = httpx.get(f"{url.rstrip('/')}/v1/market", timeout=10, trust_env=False)
        response.raise_for_status()
        return MarketInfo.model_validate(response.json())
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, ValidationError) as error:
        raise Unavailable(
            f"no marketplace answers there: {error}",
            code="marketplace_unreachable",
            field="marketplace",
            value=url,
            hint="is the address right?",
        ) from error
