"""Evidence of a quorum, under its job's id: what each replica handed over, in their order; and the count made again from the files themselves."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select

from torg_host.archive import digest_of_file
from torg_marketplace.flow.rows import leases_of_job, spec_of, vote_on
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.rules.outcomes import is_own_failure
from torg_marketplace.rules.quorum import verdict_on, vote_of
from torg_marketplace.storage.models import JobRow, LeaseRow
from torg_protocol.errors import Conflict, TorgError
from torg_protocol.ids import Digest
from torg_protocol.states import LeaseState
from torg_protocol.usage import OutputFile

_DECIDED = (LeaseState.VERIFIED, LeaseState.REJECTED, LeaseState.INCONCLUSIVE)


async def list_quorums(unit: Unit, about: str | None, limit: int) -> list[dict[str, Any]]:
    """One for each job of which a replica was decided. `about`: the job, a lease or a node of it; None: everybody's."""
    is_quorum = JobRow.spec["verify"]["policy"].as_string() == "quorum"
    query = select(JobRow).where(is_quorum, JobRow.closed_at_ms.is_not(None))
    query = query.where(JobRow.job_id.in_(select(LeaseRow.job_id).where(LeaseRow.state.in_(_DECIDED))))
    if about is not None:
        mine = select(LeaseRow.job_id).where((LeaseRow.lease_id == about) | (LeaseRow.node_id == about))
        query = query.where((JobRow.job_id == about) | JobRow.job_id.in_(mine))
    jobs = (await unit.session.scalars(query.order_by(JobRow.closed_at_ms.desc()).limit(limit))).all()
    found = []
    for job in jobs:
        leases = await _replicas(unit, job.job_id)
        results = [(lease.verdict or {}).get("result") for lease in leases]
        agree = results.count("passed")
        found.append(
            {
                "id": job.job_id,
                "kind": "quorum",
                "at_ms": job.closed_at_ms,
                "job": job.job_id,
                "node": ", ".join(lease.node_id for lease in leases),
                "result": "passed" if agree else "inconclusive",
                "detail": f"{agree} of {len(leases)} replicas agree, {results.count('failed')} failed; {spec_of(job).replicas} asked for",
            }
        )
    return found


async def is_quorum(unit: Unit, evidence_id: str) -> bool:
    job = await unit.session.get(JobRow, evidence_id)
    return job is not None and spec_of(job).verify.policy == "quorum" and bool(await _replicas(unit, evidence_id))


async def show_quorum(unit: Unit, job_id: str) -> dict[str, Any]:
    job, leases = await unit.session.get_one(JobRow, job_id), await _replicas(unit, job_id)
    columns = (
        "lease_id",
        "node_id",
        "payout_address",
        "state",
        "granted_at_ms",
        "reported_at_ms",
        "amount",
        "outputs",
        "verdict",
    )
    replicas = [{name: getattr(lease, name) for name in columns} | {"vote": vote_on(lease)} for lease in leases]
    return {"job": job_id, "state": job.state, "replicas_asked_for": spec_of(job).replicas, "replicas": replicas}


async def count_again(market: Market, job_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """What was found of each node's replica, and what its files give now. Raises Conflict evidence_gone."""
    async with market.reading() as unit:
        asked_for = spec_of(await unit.session.get_one(JobRow, job_id)).replicas
        leases = await _replicas(unit, job_id)
    failed = [is_own_failure(lease.ended_for) for lease in leases]
    votes = [
        vote_on(lease) if by_itself else vote_of(await _as_stored(market, lease))
        for lease, by_itself in zip(leases, failed, strict=True)
    ]
    failures = {vote for vote, by_itself in zip(votes, failed, strict=True) if by_itself}
    then = {lease.node_id: str((lease.verdict or {}).get("result")) for lease in leases}
    pairs = zip(leases, votes, strict=True)
    return then, {lease.node_id: verdict_on(vote, votes, asked_for, failures).result for lease, vote in pairs}


async def _replicas(unit: Unit, job_id: str) -> Sequence[LeaseRow]:
    """Those that handed something over and were judged by it."""
    leases = await leases_of_job(unit, job_id)
    return [lease for lease in leases if lease.state in _DECIDED and (lease.verdict or {}).get("policy") == "quorum"]


async def _as_stored(market: Market, lease: LeaseRow) -> list[dict[str, Any]]:
    """Its outputs, each with the name that its bytes have."""
    if not lease.outputs:
        raise _gone(lease.lease_id)
    found = []
    with tempfile.TemporaryDirectory(prefix="torg-quorum-") as folder:
        for item in map(OutputFile.model_validate, lease.outputs):
            file = Path(folder) / "output"
            try:
                await market.blobs.fetch_to(item.digest, file)
            except TorgError as error:
                raise _gone(item.digest) from error
            digest = digest_of_file(file, await market.blobs.pieces_of(item.digest))
            found.append(item.model_copy(update={"digest": Digest(digest)}).wire())
    return found


def _gone(what: str) -> Conflict:
    return Conflict(
        "a file of this evidence is not kept any more",
        code="evidence_gone",
        field="digest",
        value=what,
        hint="--keep-evidence says for how long; an account whose data was deleted leaves the conclusion only",
    )
