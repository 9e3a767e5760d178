"""What a marketplace answers, for tests of clients that are content with any: small, valid, and the same everywhere."""

from __future__ import annotations

from typing import Any

from torg_protocol.api import ChainInfo, JobView, MarketInfo
from torg_protocol.ids import AccountId, Digest, JobId, VaultAddress
from torg_protocol.jobspec import load_job_spec
from torg_protocol.states import JobState

_CHAIN = {"rpc_url": "r", "genesis_hash": "g", "program_id": "p", "mint": "m", "decimals": 6, "operator_config": "o"}


def market_info(marketplace: str = "key", **chain: str | int) -> MarketInfo:
    return MarketInfo(
        name="m",
        marketplace=marketplace,
        protocol_versions=(1,),
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
