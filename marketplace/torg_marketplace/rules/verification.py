"""The judge: whether what was measured passes what the client asked for. Exact decimals, no floats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

from torg_protocol.errors import Invalid
from torg_protocol.ids import Digest
from torg_protocol.jobspec import JobSpec, VerifyMetric
from torg_protocol.usage import VerdictSummary

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class CatalogueFacts:
    """What the catalogue says about a workload."""

    name: str
    workspace_digest: Digest
    metric: str
    target: str
    better: Better
    required_outputs: tuple[str, ...]


def judge(*, metric: str, target: str, better: Better, measured: Mapping[str, str], detail: str = "") -> VerdictSummary:
    """Failed when the metric was not measured: then the outputs could not be read, and `detail` says why."""
    value = _decimal(measured.get(metric))
    if value is None:
        explanation = detail or f"{metric} could not be measured"
        return _verdict("failed", explanation, measured, target)
    passed = value >= Decimal(target) if better == "higher" else value <= Decimal(target)
    relation = "reaches" if passed else "misses"
    return _verdict("passed" if passed else "failed", f"{metric} {value} {relation} {target}", measured, target)


def not_checked(policy: str) -> VerdictSummary:
    return VerdictSummary(policy=policy, result="not_checked")


def inconclusive(target: str, detail: str) -> VerdictSummary:
    return VerdictSummary(policy="metric", result="inconclusive", detail=detail[:2_000], target=target)


def check_metric_policy(spec: JobSpec, verify: VerifyMetric, facts: CatalogueFacts | None) -> None:
    """Raises Invalid unless the marketplace can recompute this metric for this very workload.

    A foreign workspace could write outputs that pass the check without doing the work; a lower target than the catalogue's
    could be met by a model that was never trained.
    """
    if facts is None:
        raise Invalid(
            "no such catalogue workload", code="catalogue_unknown", field="verify.catalogue", value=verify.catalogue
        )
    if spec.workspace is None or spec.workspace.digest != facts.workspace_digest:
        raise Invalid(
            f'only the unchanged workspace of the catalogue workload "{facts.name}" can be verified',
            code="workspace_not_catalogue",
            field="workspace.digest",
            value=spec.workspace.digest if spec.workspace else None,
            hint=f"use the catalogue's workspace {facts.workspace_digest}, or verify: {{policy: none}}",
        )
    if verify.metric != facts.metric:
        raise Invalid(
            "this workload has another metric",
            code="metric_unknown",
            field="verify.metric",
            value=verify.metric,
            hint=f"write {facts.metric}",
        )
    _check_target(verify, facts)
    missing = [path for path in facts.required_outputs if path not in spec.outputs]
    if missing:
        raise Invalid(
            "verification opens outputs that the job does not declare",
            code="outputs_undeclared",
            field="outputs",
            value=", ".join(spec.outputs),
            hint="add " + ", ".join(missing),
        )


def _check_target(verify: VerifyMetric, facts: CatalogueFacts) -> None:
    asked, least = _decimal(verify.target), Decimal(facts.target)
    if asked is None:
        raise Invalid(
            "not a decimal number",
            code="target_invalid",
            field="verify.target",
            value=verify.target,
            hint='like "0.95"',
        )
    if asked < least if facts.better == "higher" else asked > least:
        raise Invalid(
            "the target is weaker than the catalogue's",
            code="target_too_low",
            field="verify.target",
            value=verify.target,
            hint=f"ask for {facts.target} or better",
        )


def _verdict(result: str, detail: str, measured: Mapping[str, str], target: str) -> VerdictSummary:
    return VerdictSummary(policy="metric", result=result, detail=detail[:2_000], measured=dict(measured), target=target)


def _decimal(text: str | None) -> Decimal | None:
    if text is None:
        return None
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
