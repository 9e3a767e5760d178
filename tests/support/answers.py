"""What a marketplace answers, for tests of clients that are content with any: small, valid, and the same everywhere."""

from __future__ import annotations

from typing import Any

from torg_protocol.api import ChainInfo, JobView, MarketInfo, NodeView
from torg_protocol.ids import AccountId, Digest, JobId, NodeId, VaultAddress
from torg_protocol.jobspec import load_job_spec
from torg_protocol.states import JobState, Liveness, NodeState
from torg_protocol.versions import SPOKEN

_CHAIN = {"rpc_url": "r", "genesis_hash": "g", "program_id": "p", "mint": "m", "decimals": 6, "operator_config": "o"}


def market_info(marketplace: str = "key", **chain: str | int) -> MarketInfo:
    return MarketInfo(
        name="m",
        marketplace=marketplace,
        protocol_versions=SPOKEN,
        chain=ChainInfo.model_validate({**_CHAIN, **chain}),
        heartbeat_ms=1,
        usage_interval_ms=1,
        verification_window_s=1,
        settlement_max_age_s=1,
        min_vault_grace_s=1,
        fee_basis_points=0,
    )


def job_view(job_id: str, state: JobState, **fields: Any) -> JobView:
    spec = load_job_spec({"version": 1, "command": ["x"]})
    given: dict[str, Any] = {"name": "n", "max_amount": 1, "created_at_ms": 1, "spec": spec, **fields}
    return JobView(
        job_id=JobId(job_id),
        state=state,
        client=AccountId("c"),
        vault=VaultAddress("v"),
        spec_digest=Digest(given["spec"].digest),
        **given,
    )


def node_view(node: str, protocol_version: int) -> NodeView:
    return NodeView(
        node=NodeId(node),
        state=NodeState.ACTIVE,
        liveness=Liveness.ALIVE,
        gpu_class="cpu",
        gpus=0,
        cpu_millis=1000,
        memory_bytes=1 << 30,
        disk_bytes=1 << 30,
        price_per_gpu_hour=1,
        slots=1,
        slots_free=1,
        executor="sandbox",
        isolation=("sandbox",),
        protocol_version=protocol_version,
        region="",
        inventory_source="cpu",
    )
