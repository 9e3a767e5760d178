"""Settings of one marketplace process: flags, then TORG_MARKETPLACE_* variables, then defaults. Read once, by the composition root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, IPvAnyNetwork, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from torg_marketplace.rules.policy import MarketPolicy
from torg_protocol.errors import Invalid
from torg_protocol.quantities import DurationMs

ROLES = ("api", "matcher", "worker", "gateway")  # `roles.py` says what each does


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TORG_MARKETPLACE_", frozen=True, extra="forbid")

    data: Path
    host: str = "127.0.0.1"
    port: int = Field(default=8700, ge=0, le=65535)  # 0 takes a free one
    public_url: str | None = None  # how nodes and clients reach us, when that is not host and port
    rpc_url: str = "http://127.0.0.1:8899"
    program_id: str | None = None  # default: the localnet's
    mint: str | None = None
    database_url: str | None = None  # default: SQLite in the data folder
    blobs: str | None = None  # s3://bucket/prefix; default: files in the data folder
    blobs_endpoint: str | None = None  # of an S3 service that is not Amazon's
    name: str = "torg"
    workloads: Path | None = None
    heartbeat: DurationMs = Field(default="10s", validate_default=True)
    settlement_age: DurationMs = Field(default="10m", validate_default=True)
    usage_interval: DurationMs = Field(default="10m", validate_default=True)
    proof_interval: DurationMs = Field(default="1h", validate_default=True)  # mean; "0s": nobody is asked
    preempt_grace: DurationMs = Field(default="2m", validate_default=True)  # from a spot job's signal to its kill
    spot_protected: DurationMs = Field(
        default="1m", validate_default=True
    )  # of running, before a spot job may be preempted; doubles with each time that it was
    keep_history: DurationMs = Field(
        default="0s", validate_default=True
    )  # logs and events of closed jobs; 0s: for good
    keep_blobs: DurationMs = Field(default="0s", validate_default=True)  # what closed jobs read and wrote; 0s: for good
    # Segments that took less are replayed by this process; others by nodes, paid out of the credit vault where there is one.
    replay_here_below: DurationMs = Field(default="5s", validate_default=True)
    planted_permille: int = Field(
        default=100, ge=0, le=1000
    )  # of replays by nodes are followed by one whose answer is known
    # Of the first segments of a lease, which cannot be planted: below this by this process, else by nodes of so many owners.
    unplanted_here_below: DurationMs = Field(default="5m", validate_default=True)
    unplanted_owners: int = Field(default=2, ge=1, le=2)
    keep_unused: DurationMs = Field(
        default="0s", validate_default=True
    )  # named data and volumes that no job uses; 0s: for good
    max_kept_bytes: int = Field(default=0, ge=0)  # of one account's named data and volumes; 0: no limit
    keep_evidence: DurationMs = Field(
        default="30d", validate_default=True
    )  # files of jobs whose work was looked at, where others go sooner
    fee_basis_points: int = Field(default=200, ge=0, le=10_000)
    min_vault_grace_s: int = Field(default=3_600, ge=3_600)
    max_blob_bytes: int = 16 << 30
    requests_per_minute: int = Field(default=6_000, ge=0)  # of one account, API key or address; 0: no limit
    max_submissions_per_day: int = Field(default=0, ge=0)  # of one account; 0: no limit
    max_spend_per_hour: int = Field(default=0, ge=0)  # base units, of one account's jobs; 0: no limit
    max_undecided_per_day: int = Field(
        default=20, ge=0
    )  # of one account, unpaid because nothing could be verified; 0: no limit
    dispute_window: DurationMs = Field(default="14d", validate_default=True)  # after a job's end
    sign_in_domains: tuple[str, ...] = ()  # JSON list; of pages elsewhere that may sign wallets in and call this API
    webhook_networks: tuple[IPvAnyNetwork, ...] = ()  # JSON list; private networks that webhooks may reach
    drain: DurationMs = Field(
        default="0s", validate_default=True
    )  # from SIGTERM on: not ready any more, and serving still
    role: str = Field(default="all", pattern=f"^(all|{'|'.join(ROLES)})$")  # of this process
    bus_url: str | None = None  # of a NATS server; processes with one role each need it
    metrics_port: int | None = Field(default=None, ge=0, le=65535)  # on loopback; None: no metrics, 0: any free port
    otlp_endpoint: str | None = None  # of an OpenTelemetry collector, over HTTP; None: no traces
    log_format: str = Field(default="text", pattern="^(text|json)$")

    @classmethod
    def read(cls, given: dict[str, Any]) -> Settings:
        """Raises Invalid `setting_invalid` naming the first wrong one."""
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = "--" + str(first["loc"][0]).replace("_", "-")
            message = first["msg"].removeprefix("Value error, ")
            raise Invalid(
                f"{name}: {message}", code="setting_invalid", field=name, value=str(first["input"])
            ) from error

    def policy(self, decimals: int) -> MarketPolicy:
        return MarketPolicy(
            name=self.name,
            decimals=decimals,
            heartbeat_ms=self.heartbeat,
            unknown_after_ms=3 * self.heartbeat,
            settlement_max_age_ms=self.settlement_age,
            usage_interval_ms=self.usage_interval,
            proof_every_ms=self.proof_interval,
            proof_first_within_ms=max(min(60_000, self.proof_interval // 10), 1),
            fee_basis_points=self.fee_basis_points,
            replay_here_below_ms=self.replay_here_below,
            planted_permille=self.planted_permille,
            unplanted_here_below_ms=self.unplanted_here_below,
            unplanted_owners=self.unplanted_owners,
            preempt_grace_ms=self.preempt_grace,
            spot_protected_ms=self.spot_protected,
            keep_history_ms=self.keep_history,
            keep_blobs_ms=self.keep_blobs,
            keep_unused_ms=self.keep_unused,
            max_kept_bytes_per_account=self.max_kept_bytes,
            keep_evidence_ms=self.keep_evidence,
            max_submissions_per_day=self.max_submissions_per_day,
            max_spend_per_hour=self.max_spend_per_hour,
            max_undecided_per_day=self.max_undecided_per_day,
            dispute_window_ms=self.dispute_window,
            min_vault_grace_s=self.min_vault_grace_s,
            webhook_networks=tuple(str(network) for network in self.webhook_networks),
        )
