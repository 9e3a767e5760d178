"""Evidence: what verdicts rest on, listed, shown whole, and judged again from what is kept. Of four kinds:

check_...   a segment that was executed again: where it began, what was claimed, what each who executed it handed over
job_...     a quorum: what each replica handed over (flow/quorum_evidence.py)
lease_...   a model or texts that we measured: the files, and the seed that was drawn
proof_...   a proof of hardware: nonces, commitments, openings and times

Files stay as long as the store keeps them (`--keep-blobs`, and of what was looked at `--keep-evidence`), or until their client has its data
deleted; what was concluded stays for good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import inspect as inspection
from sqlalchemy import select

from torg_marketplace.flow.judge_proof import replay as replay_proof
from torg_marketplace.flow.quorum_evidence import count_again, is_quorum, list_quorums, show_quorum
from torg_marketplace.flow.replay_checks import ANSWERED, answers_of, distance_of, measure, segment_of
from torg_marketplace.flow.rows import job_row, spec_of
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.ports import EvaluationFailed
from torg_marketplace.rules.verification import judge
from torg_marketplace.storage.audit_models import ReplayAnswerRow, ReplayCheckRow
from torg_marketplace.storage.base import Base
from torg_marketplace.storage.models import JobRow, LeaseRow
from torg_marketplace.storage.proof_models import HardwareProofRow
from torg_protocol.errors import Conflict, NotFound
from torg_protocol.ids import Digest
from torg_protocol.jobspec import VerifyActivation, VerifyMetric
from torg_protocol.usage import OutputFile, VerdictSummary

SEED = "seed"  # in a verdict's `measured`: with it anybody measures again


@dataclass(frozen=True, slots=True)
class Again:
    """What was found then, and what the evidence gives now."""

    then: Any
    now: Any

    @property
    def same(self) -> bool:
        return bool(self.then == self.now)


async def list_evidence(unit: Unit, *, about: str | None, limit: int) -> list[dict[str, Any]]:
    """Newest first. `about`: a job, a lease or a node (who did the work, or executed it again); None: everybody's."""
    found = await _checks(unit, about, limit) + await _verdicts(unit, about, limit) + await _proofs(unit, about, limit)
    found += await list_quorums(unit, about, limit)
    return sorted(found, key=lambda item: (-int(item["at_ms"]), str(item["id"])))[:limit]


async def show_evidence(unit: Unit, evidence_id: str) -> dict[str, Any]:
    """All that is kept of one. Raises NotFound evidence_unknown."""
    if (check := await unit.session.get(ReplayCheckRow, evidence_id)) is not None:
        rows = await answers_of(unit, evidence_id)
        return {"check": _columns(check), "answers": [_columns(row) for row in rows]}
    if (proof := await unit.session.get(HardwareProofRow, evidence_id)) is not None:
        return {"proof": _columns(proof)}
    if await is_quorum(unit, evidence_id):
        return await show_quorum(unit, evidence_id)
    lease = await _measured_lease(unit, evidence_id)
    return {"lease": lease.lease_id, "verdict": lease.verdict, "outputs": lease.outputs}


async def replay_evidence(market: Market, evidence_id: str) -> Again:
    """Judges again, from the files. A segment is executed again here, too, which may take minutes. Raises NotFound evidence_unknown; Conflict
    evidence_gone (its files were deleted), evidence_unfinished; EvaluationFailed."""
    async with market.reading() as unit:
        check = await unit.session.get(ReplayCheckRow, evidence_id)
        proof = await unit.session.get(HardwareProofRow, evidence_id)
        counts = await is_quorum(unit, evidence_id)
    if counts:
        return Again(*await count_again(market, evidence_id))
    if proof is not None:
        then, now = await replay_proof(market, evidence_id)
        return Again(then.model_dump(mode="json"), now.model_dump(mode="json"))
    return await (_measure_again(market, evidence_id) if check is None else _replay_check(market, check))


async def _replay_check(market: Market, check: ReplayCheckRow) -> Again:
    async with market.reading() as unit:
        rows = [row for row in await answers_of(unit, check.check_id) if row.state == ANSWERED]
        lease = await unit.session.get_one(LeaseRow, check.lease_id)
        spec = spec_of(await job_row(unit, lease.job_id))
    if not check.verdict:
        raise Conflict("it is not decided yet", code="evidence_unfinished", field="id", value=check.check_id)
    if market.replayer is None:
        raise EvaluationFailed("segments cannot be compared here: install torch")
    claimed = check.known or (check.end or {}).get("blob", {}).get("digest") or check.model
    await _check_kept(market, [str(row.answer) for row in rows if row.node_id] + [str(claimed)])
    then, now = dict[str, bool](), dict[str, bool]()
    for row in rows:
        by = row.node_id or "ourselves"
        then[by] = distance_of(row).passes
        if row.node_id is not None:
            now[by] = (await measure(market.replayer, check, Digest(str(row.answer)))).passes
        elif check.known is None:
            model = Digest(check.model) if check.model else None
            now[by] = (await market.replayer.replay(spec, segment_of(check), model)).passes
    return Again(then, now)


async def _measure_again(market: Market, lease_id: str) -> Again:
    async with market.reading() as unit:
        lease = await _measured_lease(unit, lease_id)
        policy = spec_of(await job_row(unit, lease.job_id)).verify
    then = VerdictSummary.model_validate(lease.verdict)
    if not isinstance(policy, VerifyMetric | VerifyActivation) or SEED not in then.measured:
        raise NotFound("nothing was measured there", code="evidence_unknown", field="id", value=lease_id)
    entry = market.catalogue.entry(policy.catalogue)
    if entry is None:
        raise EvaluationFailed(f"{policy.catalogue} is not in the catalogue any more")
    files = {item.path: item.digest for item in map(OutputFile.model_validate, lease.outputs)}
    await _check_kept(market, list(files.values()))
    metric, target = (
        (policy.metric, policy.target) if isinstance(policy, VerifyMetric) else (entry.metric, entry.target)
    )
    seen = await market.evaluator.evaluate(entry, metric, files, int(then.measured[SEED]))
    now = judge(metric=metric, target=target, better=entry.better, measured=seen.values, detail=seen.detail)
    return Again(
        {"result": then.result, metric: then.measured.get(metric)},
        {"result": now.result, metric: now.measured.get(metric)},
    )


async def _check_kept(market: Market, digests: list[str]) -> None:
    for digest in digests:
        if await market.blobs.size(Digest(digest)) is None:
            raise Conflict(
                "a file of this evidence is not kept any more",
                code="evidence_gone",
                field="digest",
                value=digest,
                hint="--keep-evidence says for how long; an account whose data was deleted leaves the conclusion only",
            )


async def _measured_lease(unit: Unit, lease_id: str) -> LeaseRow:
    lease = await unit.session.get(LeaseRow, lease_id)
    if lease is None or lease.verdict is None:
        raise NotFound(
            "no such evidence",
            code="evidence_unknown",
            field="id",
            value=lease_id,
            hint="torg-marketplace evidence shows what there is",
        )
    return lease


async def _checks(unit: Unit, about: str | None, limit: int) -> list[dict[str, Any]]:
    query = select(ReplayCheckRow, LeaseRow).join(LeaseRow, LeaseRow.lease_id == ReplayCheckRow.lease_id)
    if about is not None:
        answered = select(ReplayAnswerRow.check_id).where(ReplayAnswerRow.node_id == about)
        is_about = (LeaseRow.job_id == about) | (LeaseRow.lease_id == about) | (LeaseRow.node_id == about)
        query = query.where(is_about | ReplayCheckRow.check_id.in_(answered))
    rows = (await unit.session.execute(query.order_by(ReplayCheckRow.created_at_ms.desc()).limit(limit))).all()
    return [
        {
            "id": check.check_id,
            "kind": f"replay, {check.purpose}",
            "at_ms": check.created_at_ms,
            "job": lease.job_id,
            "node": lease.node_id,
            "result": check.verdict or "open",
            "detail": check.detail,
        }
        for check, lease in rows
    ]


async def _verdicts(unit: Unit, about: str | None, limit: int) -> list[dict[str, Any]]:
    """Of what we measured ourselves; a replay's are its checks."""
    policy = JobRow.spec["verify"]["policy"].as_string()
    query = select(LeaseRow, policy).join(JobRow, JobRow.job_id == LeaseRow.job_id)
    query = query.where(LeaseRow.decided_at_ms.is_not(None), policy.in_(["metric", "activation"]))
    if about is not None:
        query = query.where((LeaseRow.job_id == about) | (LeaseRow.lease_id == about) | (LeaseRow.node_id == about))
    rows = (await unit.session.execute(query.order_by(LeaseRow.decided_at_ms.desc()).limit(limit))).all()
    return [
        {
            "id": lease.lease_id,
            "kind": kind,
            "at_ms": lease.decided_at_ms,
            "job": lease.job_id,
            "node": lease.node_id,
            "result": (lease.verdict or {}).get("result"),
            "detail": (lease.verdict or {}).get("detail", ""),
        }
        for lease, kind in rows
    ]


async def _proofs(unit: Unit, about: str | None, limit: int) -> list[dict[str, Any]]:
    query = select(HardwareProofRow)
    if about is not None:
        query = query.where(HardwareProofRow.node_id == about)
    rows = (await unit.session.scalars(query.order_by(HardwareProofRow.wanted_at_ms.desc()).limit(limit))).all()
    return [
        {
            "id": row.proof_id,
            "kind": f"hardware, {row.unit}",
            "at_ms": row.wanted_at_ms,
            "job": None,
            "node": row.node_id,
            "result": row.finding.get("result", row.state),
            "detail": row.finding.get("detail", ""),
        }
        for row in rows
    ]


def _columns(row: Base) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in inspection(row).mapper.column_attrs}
