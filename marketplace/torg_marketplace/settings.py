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


_POLICY = MarketPolicy()


class Settings(BaseSettings):
    """What has a counterpart in the policy has its default there, and what it means."""

    model_config = SettingsConfigDict(
        env_prefix="TORG_MARKETPLACE_", frozen=True, extra="forbid", validate_default=False
    )

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
    name: str = _POLICY.name
    workloads: Path | None = None
    heartbeat: DurationMs = _POLICY.heartbeat_ms
    settlement_age: DurationMs = _POLICY.settlement_max_age_ms
    usage_interval: DurationMs = _POLICY.usage_interval_ms
    proof_interval: DurationMs = _POLICY.proof_every_ms  # mean; "0s": nobody is asked
    preempt_grace: DurationMs = _POLICY.preempt_grace_ms
    spot_protected: DurationMs = _POLICY.spot_protected_ms
    replay_here_below: DurationMs = _POLICY.replay_here_below_ms
    planted_permille: int = Field(default=_POLICY.planted_permille, ge=0, le=1000)
    unplanted_here_below: DurationMs = _POLICY.unplanted_here_below_ms
    unplanted_owners: int = Field(default=_POLICY.unplanted_owners, ge=1, le=2)
    keep_history: DurationMs = _POLICY.keep_history_ms
    keep_deliveries: DurationMs = _POLICY.keep_deliveries_ms
    keep_blobs: DurationMs = _POLICY.keep_blobs_ms
    keep_unused: DurationMs = _POLICY.keep_unused_ms
    keep_evidence: DurationMs = _POLICY.keep_evidence_ms
    max_kept_bytes: int = Field(default=_POLICY.max_kept_bytes_per_account, ge=0)
    fee_basis_points: int = Field(default=_POLICY.fee_basis_points, ge=0, le=10_000)
    min_vault_grace_s: int = Field(default=_POLICY.min_vault_grace_s, ge=3_600)
    max_blob_bytes: int = 16 << 30
    requests_per_minute: int = Field(default=6_000, ge=0)  # of one account, API key or address; 0: no limit
    max_submissions_per_day: int = Field(default=_POLICY.max_submissions_per_day, ge=0)
    max_spend_per_hour: int = Field(default=_POLICY.max_spend_per_hour, ge=0)
    max_undecided_per_day: int = Field(default=_POLICY.max_undecided_per_day, ge=0)
    dispute_window: DurationMs = _POLICY.dispute_window_ms
    sign_in_domains: tuple[str, ...] = ()  # JSON list; of pages elsewhere that may sign wallets in and call this API
    webhook_networks: tuple[IPvAnyNetwork, ...] = ()  # JSON list; private networks that webhooks may reach
    drain: DurationMs = 0  # from SIGTERM on: not ready any more, and serving still
    role: str = Field(default="all", pattern=f"^(all|{'|'.join(ROLES)})$")  # of this process
    bus_url: str | None = None  # of a NATS server; processes with one role each need it
    metrics_port: int | None = Field(default=None, ge=0, le=65535)  # on loopback; None: no metrics, 0: any free port
    otlp_endpoint: str | None = None  # of an OpenTelemetry collector, over HTTP; None: no traces
    log_format: str = Field(default="text", pattern="^(text|json)$")

    @classmethod
    def read(cls, given: dict[str, Any]) -> Settings:
        """Raises Invalid `setting_invalid` naming the first wrong one."""
        try:
            settings = cls(**given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = "--" + str(first["loc"][0]).replace("_", "-")
            message = first["msg"].removeprefix("Value error, ")
            raise Invalid(
                f"{name}: {message}", code="setting_invalid", field=name, value=str(first["input"])
            ) from error
        settings._check_grace()
        return settings

    def _check_grace(self) -> None:
        """Whoever earns has a vault's grace to be paid, once it begins to close: an interval of usage, a verdict, a settlement."""
        waits_s = (self.usage_interval + self.settlement_age) // 1000 + _POLICY.verification_window_s
        if self.min_vault_grace_s < waits_s:
            raise Invalid(
                "work could end unpaid: vaults may be empty before it is countersigned, verified and captured",
                code="setting_invalid",
                field="TORG_MARKETPLACE_MIN_VAULT_GRACE_S",
                value=self.min_vault_grace_s,
                hint=f"at least {waits_s}: --usage-interval, --settlement-age and {_POLICY.verification_window_s} s for a verdict; or shorten these",
            )

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
            keep_deliveries_ms=self.keep_deliveries,
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
