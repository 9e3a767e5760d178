"""The market itself: who runs it, what nodes offer, vaults, health."""

from __future__ import annotations

from fastapi import APIRouter

from torg_marketplace.api.auth import Account
from torg_marketplace.api.context import TheEdge
from torg_marketplace.flow.unit import Market
from torg_marketplace.flow.vaults import refresh_vault, settlements, vault_view
from torg_marketplace.flow.views import node_view, node_views
from torg_protocol import PROTOCOL_VERSION
from torg_protocol.api import ChainInfo, MarketInfo, NodeView, SettlementView, VaultView
from torg_protocol.ids import NodeId

router = APIRouter()


@router.get("/v1/market")
async def get_market(edge: TheEdge) -> MarketInfo:
    """Public facts: the key that signs, the chain that pays. Pin them."""
    return market_info(edge.market)


def market_info(market: Market) -> MarketInfo:
    policy = market.policy
    return MarketInfo(
        name=policy.name,
        marketplace=market.public_key,
        protocol_versions=(PROTOCOL_VERSION,),
        chain=ChainInfo.model_validate(market.network.model_dump()),
        heartbeat_ms=policy.heartbeat_ms,
        usage_interval_ms=policy.usage_interval_ms,
        verification_window_s=policy.verification_window_s,
        settlement_max_age_s=policy.settlement_max_age_ms // 1000,
        min_vault_grace_s=policy.min_vault_grace_s,
        fee_basis_points=policy.fee_basis_points,
    )


@router.get("/v1/offers")
async def get_offers(edge: TheEdge) -> tuple[NodeView, ...]:
    """What nodes offer now."""
    async with edge.market.reading() as unit:
        return await node_views(unit)


@router.get("/v1/nodes/{node_id}")
async def get_node(node_id: str, edge: TheEdge) -> NodeView:
    async with edge.market.reading() as unit:
        return await node_view(unit, NodeId(node_id))


@router.put("/v1/vaults/{address}")
async def put_vault(address: str, account: Account, edge: TheEdge) -> VaultView:
    """Looks at the chain (finalized) and brings the vault up to date here. Safe to repeat."""
    await refresh_vault(edge.market, address)
    async with edge.market.reading() as unit:
        return await vault_view(unit, account, address)


@router.get("/v1/vaults/{address}")
async def get_vault(address: str, account: Account, edge: TheEdge) -> VaultView:
    async with edge.market.reading() as unit:
        return await vault_view(unit, account, address)


@router.get("/v1/vaults/{address}/settlements")
async def get_settlements(address: str, account: Account, edge: TheEdge) -> tuple[SettlementView, ...]:
    """The captures of a vault: which transaction paid whom how much."""
    async with edge.market.reading() as unit:
        return await settlements(unit, account, address)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(edge: TheEdge) -> dict[str, str]:
    """The database answers too."""
    async with edge.market.reading() as unit:
        await node_views(unit)
    return {"status": "ready"}
