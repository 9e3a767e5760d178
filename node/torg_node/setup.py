"""`torg-node init`: a key, what the marketplace is (or only the chain), and a config file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
from pydantic import ValidationError
from solders.pubkey import Pubkey

from torg_chain.network import Network
from torg_chain.rpc import ChainClient
from torg_chain.vault import MINIMUM_GRACE_S, find_config
from torg_chain.wallet import create_keypair, load_keypair
from torg_node.owner_rules import OwnerRules
from torg_node.settings import CONFIG_NAME, Settings, first_problem, write_settings
from torg_node.sweep_plan import SweepPlan
from torg_protocol.api import MarketInfo
from torg_protocol.errors import Conflict, Invalid, Unavailable
from torg_protocol.money import parse_amount

DEFAULT_RENTAL_ADDRESS = "127.0.0.1:8750"
_NOBODY = str(Pubkey.default())


@dataclass(frozen=True, slots=True)
class Market:
    """Whom the node works for. `url` and `key` are empty for direct rentals only."""

    url: str
    key: str
    network: Network
    min_vault_grace_s: int


def initialise(
    data: Path,
    market: Market,
    *,
    price: str,
    payout: str | None,
    slots: int,
    executor: Literal["auto", "docker", "sandbox"],
    max_unpaid: str,
    engine_socket: Path | None = None,
    gpus: tuple[str, ...] = (),
    reservations_path: Path | None = None,
    egress: Literal["none", "allow", "open"] = "none",
    rental_address: str | None = None,
    rental_interval_s: int = 60,
    rules: OwnerRules | None = None,
    spot_price: str | None = None,
    sweep: SweepPlan | None = None,
) -> Settings:
    """Makes the folder, the key (0600) and config.toml. Raises Conflict `node_exists`, Invalid `config_invalid`."""
    check_is_new(data)
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_path = data / "node.json"
    keypair = load_keypair(key_path) if key_path.exists() else create_keypair(key_path)
    network = market.network
    if network.operator_config == _NOBODY:
        own, _ = find_config(network.program_pubkey, keypair.pubkey())
        network = network.model_copy(update={"operator_config": str(own)})
    try:
        settings = Settings(
            data=data,
            marketplace_url=market.url,
            marketplace_key=market.key,
            network=network,
            price_per_gpu_hour=parse_amount(price, network.decimals, field="price"),
            spot_price_per_gpu_hour=None
            if spot_price is None
            else parse_amount(spot_price, network.decimals, field="spot_price"),
            payout_address=payout or str(keypair.pubkey()),
            max_unpaid=parse_amount(max_unpaid, network.decimals, field="max_unpaid"),
            slots=slots,
            executor=executor,
            engine_socket=engine_socket,
            gpus=gpus,
            reservations_path=reservations_path,
            egress=egress,
            min_vault_grace_s=market.min_vault_grace_s,
            rental_address=rental_address,
            rental_interval_s=rental_interval_s,
            rules=rules or OwnerRules(),
            sweep=sweep,
        )
    except ValidationError as error:
        found = first_problem(error)
        field = found.field or "rental_address"
        raise Invalid(f"{field}: {found.message}", code="config_invalid", field=field, value=found.value) from error
    write_settings(settings)
    return settings


def check_is_new(data: Path) -> None:
    """Raises Conflict `node_exists`."""
    if (data / CONFIG_NAME).exists():
        raise Conflict(
            "this folder holds a node already",
            code="node_exists",
            field="data",
            value=str(data),
            hint="choose another folder",
        )


def market_at(url: str) -> Market:
    """Raises Invalid `marketplace_url_invalid`, Unavailable `marketplace_unreachable`."""
    if not url.startswith(("https://", "http://")):
        raise Invalid(
            "not a marketplace's address",
            code="marketplace_url_invalid",
            field="marketplace",
            value=url,
            hint="write it like https://market.example, or http://127.0.0.1:8700 for one on this machine",
        )
    try:
        response = httpx.get(f"{url.rstrip('/')}/v1/market", timeout=10, trust_env=False)
        response.raise_for_status()
        info = MarketInfo.model_validate(response.json())
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, ValidationError) as error:
        raise Unavailable(
            f"no marketplace answers there: {error}",
            code="marketplace_unreachable",
            field="marketplace",
            value=url,
            hint="is the address right?",
        ) from error
    network = Network.model_validate(info.chain.model_dump())
    return Market(url.rstrip("/"), info.marketplace, network, info.min_vault_grace_s)


async def market_of_chain(rpc_url: str, program_id: str, mint: str) -> Market:
    """For a node that is only rented directly, and is its own operator. Raises ChainUnavailable; Invalid for the mint."""
    for field, value in (("program", program_id), ("mint", mint)):
        try:
            Pubkey.from_string(value)
        except ValueError:
            raise Invalid(
                "not an address: base58, 32 bytes", code="address_invalid", field=field, value=value
            ) from None
    async with ChainClient(rpc_url) as chain:
        network = Network(
            rpc_url=rpc_url,
            genesis_hash=await chain.genesis_hash(),
            program_id=program_id,
            mint=mint,
            decimals=await chain.mint_decimals(Pubkey.from_string(mint)),
            operator_config=_NOBODY,
        )
    return Market("", "", network, MINIMUM_GRACE_S)
