"""What must hold of quorums after every step of a simulation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torg_marketplace.simulation.tables import Tables


def quorums(tables: Tables) -> Iterator[str]:
    """What is paid of a quorum is what more than half of its replicas made, or how they failed; a succeeded one has as many, and they agree."""
    query = (
        "SELECT j.job_id, j.state, json_extract(j.spec, '$.verify.replicas'), l.state, l.amount, l.reason, "
        "json_extract(l.outputs, '$[0].digest') FROM jobs j JOIN leases l USING (job_id) "
        "WHERE json_extract(j.spec, '$.verify.policy') = 'quorum' AND j.state = 'succeeded' AND l.state IN ('verified', 'rejected') "
        "AND l.reason IN ('completed', 'verification_rejected')"
    )
    agreed: dict[str, Counter[str]] = defaultdict(Counter)
    needed: dict[str, int] = {}
    for job_id, _, replicas, state, amount, _, digest in tables.all(query):
        needed[job_id] = replicas // 2 + 1
        if state == "verified":
            agreed[job_id][digest] += 1
        elif amount:
            yield f"{job_id}: a replica that the others contradict is paid {amount}"
    alike = (
        "SELECT j.job_id, json_extract(j.spec, '$.verify.replicas'), COUNT(DISTINCT l.reason || COALESCE(l.exit_code, '')), COUNT(*) "
        "FROM jobs j JOIN leases l USING (job_id) WHERE json_extract(j.spec, '$.verify.policy') = 'quorum' AND j.state = 'failed' "
        "AND l.state = 'verified' AND j.cancel_requested_at_ms IS NULL GROUP BY j.job_id"
    )
    for job_id, replicas, ends, count in tables.all(alike):
        if ends != 1 or 2 * count <= replicas:
            yield f"{job_id} failed, and {count} of {replicas} replicas are paid for {ends} ways to end"
    twice = (
        "SELECT job_id, node_id FROM leases JOIN jobs USING (job_id) WHERE json_extract(jobs.spec, '$.verify.policy') = 'quorum' "
        "AND leases.reason = 'completed' GROUP BY job_id, node_id HAVING COUNT(*) > 1"
    )
    for job_id, node_id in tables.all(twice):
        yield f"{job_id}: two replicas ran on {node_id}"
    for job_id, least in needed.items():
        if len(agreed[job_id]) != 1 or sum(agreed[job_id].values()) < least:
            yield f"{job_id} succeeded, and its replicas say {dict(agreed[job_id])}"
