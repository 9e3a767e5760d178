"""A segment is executed again on a node of another owner: an ordinary lease, which the operator's credit vault pays.

The node is drawn among those that could do it, so that nobody can arrange to look at a friend's work by asking little. It gets the
checkpoint where the segment begins and never sees the one where it ended: it cannot say "the same" without having executed it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from sqlalchemy import select

import torg_marketplace.replay_segment as script
from torg_marketplace.flow import vaults
from torg_marketplace.flow.blobs import use_blob
from torg_marketplace.flow.credit import sign_credit_cap
from torg_marketplace.flow.grant import grant
from torg_marketplace.flow.rows import demand_for, job_row, node_row, node_snapshots, offer_of, spec_of
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.matching.constraints import can_run, constraints
from torg_marketplace.rules.leases import latest_lease_end_ms
from torg_marketplace.rules.replay import Segment, longest_replay_ms
from torg_marketplace.storage.audit_models import ReplayAnswerRow, ReplayCheckRow
from torg_marketplace.storage.events import add_job_born
from torg_marketplace.storage.models import JobRow, LeaseRow, NodeRow
from torg_protocol.errors import Conflict, NotFound, Unavailable
from torg_protocol.ids import AccountId, JobId, NodeId
from torg_protocol.job_cost import full_cost
from torg_protocol.jobspec import Checkpoint, JobSpec, Retry, VerifyReplay
from torg_protocol.placement import Placement
from torg_protocol.states import JobState, Liveness, NodeState

log = logging.getLogger(__name__)
_SCRIPT = Path(script.__file__).read_text()
_LOOKED_AT, _TRIED = 16, 3  # nodes, drawn anew each time
_LEASE_GRACE_MS = 60_000
DEAREST_TIMES = 2  # the price of the lease that is looked at


async def ask_a_node(market: Market, check_id: str, segment: Segment, claimed_ms: int) -> bool:
    """A lease on a node that may answer. False: there is none, or nothing to pay it from. `claimed_ms`: what the segment took by the
    word of the node that is looked at."""
    if market.credit_key is None:
        return False
    async with market.reading() as unit:
        check = await unit.session.get_one(ReplayCheckRow, check_id)
        lease = await unit.session.get_one(LeaseRow, check.lease_id)
        spec = replay_spec(spec_of(await job_row(unit, lease.job_id)), segment, claimed_ms)
        nodes = await _who_could(unit, spec, lease, await _owners(unit, check, lease))
    for node_id in nodes[:_TRIED]:
        try:
            async with market.transaction() as unit:
                await _lease(unit, check_id, spec, node_id, segment)
                return True
        except (Conflict, NotFound, Unavailable) as refused:  # it is busy by now, or gone, or the vault is empty
            log.info("check %s: not on %s: %s", check_id, node_id, refused.message)
    return False


def replay_spec(spec: JobSpec, segment: Segment, claimed_ms: int) -> JobSpec:
    """The job that executes a segment of this one."""
    name = segment.end.name if segment.end is not None else ""
    most_ms = longest_replay_ms(claimed_ms)
    policy = VerifyReplay(
        policy="replay", catalogue=spec.verify.catalogue if isinstance(spec.verify, VerifyReplay) else ""
    )
    limits = {"max_duration": most_ms, "queue_timeout": _LEASE_GRACE_MS, "max_cost": None, "max_price_per_hour": None}
    changes = {
        "name": "replay",
        "command": ("python", "-c", _SCRIPT, name, *spec.command),
        "outputs": (script.ANSWER, script.REPORT),
        "checkpoint": Checkpoint(enabled=False),
        "verify": policy,  # its pay waits for the verdict
        "retry": Retry(max_attempts=1),
        "limits": spec.limits.model_copy(update=limits),
        "lease_grace": _LEASE_GRACE_MS,
        "spot": False,
        "placement": Placement(),
        "excluded_nodes": (),
        "secrets": None,
        "registries": {},
        "ports": (),
    }
    return spec.model_copy(update=changes)


async def _owners(unit: Unit, check: ReplayCheckRow, lease: LeaseRow) -> set[str]:
    """Payout addresses whose nodes do not come into question: the owner who is looked at, whoever was asked before, and, of what is planted
    (its answer is known), whoever has seen anything of the same lease."""
    checks = select(ReplayCheckRow.check_id).where(ReplayCheckRow.lease_id == check.lease_id)
    seen = checks if check.known is not None else [check.check_id]
    asked = select(ReplayAnswerRow.payout_address).where(ReplayAnswerRow.check_id.in_(seen))
    return {lease.payout_address, *(await unit.session.scalars(asked))}


async def _who_could(unit: Unit, spec: JobSpec, lease: LeaseRow, owners: Collection[str]) -> list[NodeId]:
    """Some that could start it now, in an order that nobody can foretell."""
    owner = NodeRow.offer["payout_address"].as_string()
    query = select(NodeRow.node_id).where(
        NodeRow.state == NodeState.ACTIVE,
        NodeRow.liveness == Liveness.ALIVE,
        NodeRow.connected,
        NodeRow.node_id != lease.node_id,
        owner.not_in(owners),
    )
    left = sorted(await unit.session.scalars(query))
    count = min(_LOOKED_AT, len(left))
    drawn = [NodeId(left.pop(unit.market.random.bits(64) % len(left))) for _ in range(count)]
    demand = demand_for(spec, unit.market.public_key, DEAREST_TIMES * lease.price_per_gpu_hour, None)
    rules = constraints(demand, unit.policy.decimals)
    fit = {snapshot.node_id for snapshot in await node_snapshots(unit, only=drawn) if can_run(snapshot, rules)}
    return [node_id for node_id in drawn if node_id in fit]


async def _lease(unit: Unit, check_id: str, spec: JobSpec, node_id: NodeId, segment: Segment) -> None:
    check = await unit.session.get_one(ReplayCheckRow, check_id, with_for_update=True)
    lease = await unit.session.get_one(LeaseRow, check.lease_id)
    offer = offer_of(await node_row(unit, node_id))
    price = offer.price_per_gpu_hour
    max_amount = full_cost(spec, price, spec.limits.max_duration)
    lease_end_s = latest_lease_end_ms(spec, unit.now_ms) // 1000
    cap = await sign_credit_cap(unit, max_amount, lease_end_s)
    job = JobRow(
        job_id=JobId(unit.new_id("job")),
        client=cap.signer,
        vault=cap.vault,
        name=spec.name,
        state=JobState.QUEUED,
        spec=spec.wire(),
        spec_digest=spec.digest,
        max_amount=max_amount,
        price_ceiling=price,
        cap=cap.wire(),
        cap_from_ms=unit.now_ms,
        checkpoint=None if segment.start is None else segment.start.wire(),
        checks_job=lease.job_id,
        excluded_nodes=[lease.node_id],
        created_at_ms=unit.now_ms,
        queued_at_ms=unit.now_ms,
        queue_deadline_ms=unit.now_ms + spec.limits.queue_timeout,
    )
    unit.session.add(job)
    add_job_born(unit.session, job, at_ms=unit.now_ms)
    await unit.session.flush()
    await vaults.admit(
        unit,
        job_id=job.id,
        account=AccountId(cap.signer),
        cap=cap,
        max_amount=max_amount,
        lease_end_latest_s=lease_end_s,
    )
    read = [blob.digest for _, blob in spec.blobs()] + ([segment.start.blob.digest] if segment.start else [])
    for digest in read:
        await use_blob(unit, digest, job.id, client_may_read=False)
    (signed,) = await grant(unit, job, [node_id])
    unit.session.add(
        ReplayAnswerRow(
            answer_id=unit.new_id("replay"),
            check_id=check_id,
            job_id=job.job_id,
            lease_id=signed.grant.lease_id,
            node_id=node_id,
            payout_address=offer.payout_address,
            state="open",
            created_at_ms=unit.now_ms,
        )
    )
