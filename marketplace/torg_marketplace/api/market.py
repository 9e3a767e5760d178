"""The market itself: who runs it, what nodes offer, vaults, health."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from torg_marketplace.api.auth import Anybody, JobsReader
from torg_marketplace.api.context import TheEdge
from torg_marketplace.api.pages import Cursor, Limit
from torg_marketplace.api.strict import StrictRoute
from torg_marketplace.flow.prices import prices
from torg_marketplace.flow.reputation import node_reputation
from torg_marketplace.flow.statements import statement
from torg_marketplace.flow.unit import Market
from torg_marketplace.flow.vaults import refresh_vault, settlement_page, vault_view
from torg_marketplace.flow.views import OfferFilter, node_view, offer_page
from torg_protocol.api import (
    ChainInfo,
    MarketInfo,
    NodeReputation,
    NodeView,
    OfferPage,
    ReferencePrices,
    SettlementPage,
    Statement,
    VaultView,
)
from torg_protocol.ids import NodeId
from torg_protocol.versions import SPOKEN

router = APIRouter(tags=["market"], route_class=StrictRoute)
Address = Annotated[str, Path(pattern=r"^[1-9A-HJ-NP-Za-km-z]{32,44}$", description="base58")]
Text = Annotated[str | None, Query(max_length=64)]
Moment = Annotated[int | None, Query(ge=0, le=2**63 - 1, description="milliseconds since the epoch")]
Count = Annotated[int, Query(ge=0, le=1_000_000)]


@router.get("/v1/market", dependencies=[Anybody])
async def get_market(edge: TheEdge) -> MarketInfo:
    """Public facts: the key that signs, the chain that pays. Pin them."""
    return market_info(edge.market)


def market_info(market: Market) -> MarketInfo:
    policy = market.policy
    return MarketInfo(
        name=policy.name,
        marketplace=market.public_key,
        protocol_versions=SPOKEN,
        chain=ChainInfo.model_validate(market.network.model_dump()),
        heartbeat_ms=policy.heartbeat_ms,
        usage_interval_ms=policy.usage_interval_ms,
        verification_window_s=policy.verification_window_s,
        settlement_max_age_s=policy.settlement_max_age_ms // 1000,
        min_vault_grace_s=policy.min_vault_grace_s,
        fee_basis_points=policy.fee_basis_points,
    )


@router.get("/v1/offers", dependencies=[Anybody])
async def get_offers(
    edge: TheEdge,
    limit: Limit = 50,
    cursor: Cursor = None,
    gpu_class: Text = None,
    region: Text = None,
    isolation: Text = None,
    min_gpus: Count = 0,
    min_slots_free: Count = 0,
    max_price_per_gpu_hour: Annotated[int | None, Query(ge=0, le=2**63 - 1, description="base units")] = None,
) -> OfferPage:
    """What nodes offer now."""
    wanted = OfferFilter(gpu_class, region, isolation, min_gpus, min_slots_free, max_price_per_gpu_hour)
    async with edge.market.reading() as unit:
        return await offer_page(unit, wanted, cursor=cursor, limit=limit)


@router.get("/v1/prices", dependencies=[Anybody])
async def get_prices(edge: TheEdge, gpu_class: Text = None, since_ms: Moment = None) -> ReferencePrices:
    """Reference prices per class of GPU: the newest minute, or all minutes since a moment (the newest 1,000)."""
    async with edge.market.reading() as unit:
        return ReferencePrices(prices=await prices(unit, gpu_class=gpu_class, since_ms=since_ms))


@router.get("/v1/nodes/{node_id}", dependencies=[Anybody])
async def get_node(node_id: Address, edge: TheEdge) -> NodeView:
    """One node and what it offers."""
    async with edge.market.reading() as unit:
        return await node_view(unit, NodeId(node_id))


@router.get("/v1/nodes/{node_id}/reputation", dependencies=[Anybody])
async def get_node_reputation(node_id: Address, edge: TheEdge) -> NodeReputation:
    """What a node's reputation rests on: its newest changes, each with its reason."""
    async with edge.market.reading() as unit:
        return await node_reputation(unit, NodeId(node_id))


@router.put("/v1/vaults/{address}")
async def put_vault(address: Address, caller: JobsReader, edge: TheEdge) -> VaultView:
    """Looks at the chain (finalized) and brings the vault up to date here. Safe to repeat."""
    await refresh_vault(edge.market, address)
    async with edge.market.reading() as unit:
        return await vault_view(unit, caller.account, address)


@router.get("/v1/vaults/{address}")
async def get_vault(address: Address, caller: JobsReader, edge: TheEdge) -> VaultView:
    """A vault of yours, as it was seen last."""
    async with edge.market.reading() as unit:
        return await vault_view(unit, caller.account, address)


@router.get("/v1/vaults/{address}/settlements")
async def get_settlements(
    address: Address, caller: JobsReader, edge: TheEdge, limit: Limit = 50, cursor: Cursor = None
) -> SettlementPage:
    """The captures of a vault, oldest first: which transaction paid whom how much."""
    async with edge.market.reading() as unit:
        return await settlement_page(unit, caller.account, address, cursor=cursor, limit=limit)


@router.get("/v1/vaults/{address}/statement")
async def get_statement(
    address: Address,
    caller: JobsReader,
    edge: TheEdge,
    since_ms: Moment = None,
    until_ms: Moment = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Statement:
    """All that moved of a vault's money, oldest first, each with its cause, between an opening and a closing balance."""
    async with edge.market.reading() as unit:
        until = unit.now_ms + 1 if until_ms is None else until_ms
        return await statement(
            unit, caller.account, address, since_ms=since_ms or 0, until_ms=until, cursor=cursor, limit=limit
        )
