"""The judge: whether what was measured passes what the client asked for. Exact decimals, no floats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

from torg_protocol.errors import Invalid
from torg_protocol.ids import Digest
from torg_protocol.jobspec import JobSpec, VerifyActivation, VerifyMetric
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
    policy: str = "metric"
    command: tuple[str, ...] = ()


def judge(
    *, metric: str, target: str, better: Better, measured: Mapping[str, str], detail: str = "", policy: str = "metric"
) -> VerdictSummary:
    """Failed when the metric was not measured: then the outputs could not be read, and `detail` says why."""
    value = _decimal(measured.get(metric))
    if value is None:
        explanation = detail or f"{metric} could not be measured"
        return _verdict(policy, "failed", explanation, measured, target)
    passed = value >= Decimal(target) if better == "higher" else value <= Decimal(target)
    relation = "reaches" if passed else "misses"
    words = f"{metric} {value} {relation} {target}"
    return _verdict(policy, "passed" if passed else "failed", words, measured, target)


def not_checked(policy: str) -> VerdictSummary:
    return VerdictSummary(policy=policy, result="not_checked")


def not_drawn(policy: str, permille: int, shown: Mapping[str, str]) -> VerdictSummary:
    words = f"not drawn for an audit ({permille / 10:.1f} %)"
    return VerdictSummary(policy=policy, result="not_checked", detail=words, measured=dict(shown))


def inconclusive(policy: str, target: str, detail: str) -> VerdictSummary:
    return VerdictSummary(policy=policy, result="inconclusive", detail=detail[:2_000], target=target)


def check_metric_policy(spec: JobSpec, verify: VerifyMetric, facts: CatalogueFacts | None) -> None:
    """Raises Invalid unless the marketplace can recompute this metric for this very workload.

    A foreign workspace could write outputs that pass the check without doing the work; a lower target than the catalogue's
    could be met by a model that was never trained.
    """
    facts = _known(spec, verify.catalogue, facts, "metric")
    if verify.metric != facts.metric:
        raise Invalid(
            "this workload has another metric",
            code="metric_unknown",
            field="verify.metric",
            value=verify.metric,
            hint=f"write {facts.metric}",
        )
    _check_target(verify, facts)
    _check_outputs(spec, facts)


def check_activation_policy(spec: JobSpec, verify: VerifyActivation, facts: CatalogueFacts | None) -> None:
    """Raises Invalid unless this is a workload whose fingerprints the marketplace can recompute, with its very command."""
    facts = _known(spec, verify.catalogue, facts, "activation")
    if spec.command != facts.command or spec.args or spec.tasks or spec.env.keys() - {"OMP_NUM_THREADS"}:
        raise Invalid(
            "only the catalogue's own command, and no environment but OMP_NUM_THREADS, can be checked",
            code="command_not_catalogue",
            field="command",
            value=" ".join(spec.command),
            hint=f"write {' '.join(facts.command)}",
        )
    _check_outputs(spec, facts)


def _known(spec: JobSpec, catalogue: str, facts: CatalogueFacts | None, policy: str) -> CatalogueFacts:
    if facts is None or facts.policy != policy:
        raise Invalid(
            f"no such catalogue workload for the policy {policy}",
            code="catalogue_unknown",
            field="verify.catalogue",
            value=catalogue,
        )
    if spec.workspace is None or spec.workspace.digest != facts.workspace_digest:
        raise Invalid(
            f'only the unchanged workspace of the catalogue workload "{facts.name}" can be verified',
            code="workspace_not_catalogue",
            field="workspace.digest",
            value=spec.workspace.digest if spec.workspace else None,
            hint=f"use the catalogue's workspace {facts.workspace_digest}, or verify: {{policy: none}}",
        )
    return facts


def _check_outputs(spec: JobSpec, facts: CatalogueFacts) -> None:
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


def _verdict(policy: str, result: str, detail: str, measured: Mapping[str, str], target: str) -> VerdictSummary:
    return VerdictSummary(policy=policy, result=result, detail=detail[:2_000], measured=dict(measured), target=target)


def _decimal(text: str | None) -> Decimal | None:
    if text is None:
        return None
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
