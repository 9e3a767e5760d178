"""What was promised to the parties, against what is true about them: by the nodes' own knowledge, the clients' books and the chain."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from solders.pubkey import Pubkey

from torg_chain.vault import token_account_of
from torg_marketplace.flow.earnings import FEE_ADDRESS
from torg_marketplace.simulation import agreement
from torg_marketplace.simulation.cases import refunds
from torg_marketplace.simulation.client import SimulatedClient
from torg_marketplace.simulation.keeping import Told
from torg_marketplace.simulation.node import SimulatedNode
from torg_marketplace.simulation.placement import PASSES, deadlines, idle_room, resumes_from_newest
from torg_marketplace.simulation.plan import Kind
from torg_marketplace.simulation.tables import (
    LIVE,
    MS_PER_HOUR,
    Tables,
)
from torg_marketplace.simulation.work import Character
from torg_marketplace.simulation.world import World
from torg_protocol.job_cost import verification_price
from torg_protocol.jobspec import JobSpec
from torg_protocol.quantities import parse_duration_ms
from torg_protocol.usage import SignedReceipt, verify_receipt


@dataclass
class Parties:
    world: World
    nodes: list[SimulatedNode]
    clients: list[SimulatedClient]
    started_ms: int = 0  # when the marketplace last came up
    awake_ms: int = 0  # when it last knew what time it is
    swept_ms: int = 0  # when it last looked at silent nodes
    known_leases: set[str] = field(default_factory=set)
    ended_leases: set[str] = field(default_factory=set)
    decided_leases: set[str] = field(default_factory=set)
    buried_captures: set[str] = field(default_factory=set)
    told: Told = field(default_factory=Told)  # by webhooks
    moments: dict[tuple[str, str], int] = field(default_factory=dict)  # when what happened, as it was first noted
    room_for: Counter[tuple[str, int]] = field(default_factory=Counter)  # passes of the matcher that left a job waiting

    def node(self, node_id: str) -> SimulatedNode:
        return next(node for node in self.nodes if node.id == node_id)

    def silent_ms(self, node: SimulatedNode, lease: sqlite3.Row, now_ms: int) -> int:
        """For how long the node could have been heard, and was not."""
        return now_ms - max(node.last_heard_ms, self.started_ms, int(lease["granted_at_ms"]))


def broken_promises(parties: Parties, tables: Tables, kind: Kind) -> list[str]:
    """`kind`: what the step was, because some things are only one worker's to do."""
    return [
        *_new_leases(parties, tables),
        *_new_ends(parties, tables, kind),
        *_new_decisions(parties, tables),
        *_new_burials(parties, tables),
        *_silence(parties, tables, kind),
        *_bills(parties, tables),
        *_fees(parties, tables),
        *_idle_room(parties, tables, kind),
        *_heard(parties, tables),
        *agreement.moments(parties, tables),
        *agreement.untold(parties, tables),
        *agreement.unheard(parties, tables),
        *agreement.asked_to_end(parties, tables),
        *deadlines(tables),
        *_seals(tables),
        *_chain(parties, tables),
        *_slashes(parties, tables),
        *refunds(parties.world, tables),
        *parties.world.chain.attempts,
    ]


def _new_leases(parties: Parties, tables: Tables) -> Iterator[str]:
    policy, now_ms = parties.world.market.policy, parties.world.clock.time_ms
    for lease in tables.leases:
        if lease["lease_id"] in parties.known_leases:
            continue
        parties.known_leases.add(lease["lease_id"])
        node, job = parties.node(lease["node_id"]), tables.jobs[lease["job_id"]]
        left_ms = [client.leaves_since_ms for client in parties.clients if client.vault == job["vault"]]
        if any(since_ms is not None and since_ms < lease["granted_at_ms"] for since_ms in left_ms):
            yield f"{lease['lease_id']} was granted, and its vault is being closed"
        if node.said_draining:
            yield f"{lease['lease_id']} was granted to {node.id}, which drains"
        if max(parties.swept_ms, 0) - node.last_heard_ms >= policy.unknown_after_ms:
            yield f"{lease['lease_id']} was granted to {node.id}, which is not heard of"
        if node.has_gone:
            yield f"{lease['lease_id']} was granted to {node.id}, which has gone"
        asked = node.offer.spot_price_per_gpu_hour if _is_spot(job) else node.offer.price_per_gpu_hour
        share = Fraction(json.loads(job["spec"])["resources"].get("gpu_fraction", "1"))  # of a GPU
        asked = None if asked is None else int(asked * share)
        if lease["price_per_gpu_hour"] != asked:
            yield f"{lease['lease_id']} pays {lease['price_per_gpu_hour']}, the offer says {asked}"
        if job["queue_deadline_ms"] <= now_ms and job["state"] == "leased" and lease["granted_at_ms"] == now_ms:
            yield f"{lease['lease_id']} was granted after its job's queue deadline"
        yield from _covered(tables, lease)
        grant = tables.all("SELECT json_extract(grant, '$.grant') FROM leases WHERE lease_id = ?", lease["lease_id"])
        if node.protocol_version == 1 and (unknown := list(_unknown_to_version_1(json.loads(grant[0][0])))):
            yield f"{lease['lease_id']} was granted to {node.id}, which cannot read {', '.join(unknown)}"


def _unknown_to_version_1(grant: dict[str, Any]) -> Iterator[str]:
    """By the keys and values that its release would refuse; `torg_protocol.features` says the same from the other side."""
    spec = grant["spec"]
    yield from grant.keys() & {"gang", "volumes"}
    yield from spec.keys() & {"spot", "gang", "registries"}
    yield from spec["resources"].keys() & {"gpu_fraction"}
    yield from (f"volume {name}" for name, volume in spec.get("volumes", {}).items() if volume)
    yield from (f"ports of {task['name']}" for task in spec.get("tasks", []) if "ports" in task)
    yield from (f"until {until}" for until in re.findall(r'"until": "(ready)"', json.dumps(spec)))
    if spec["verify"]["policy"] != "none":
        yield f"what is paid for {spec['verify']['policy']}"
    if '"pieces:' in json.dumps(grant):
        yield "a blob by its pieces"


def _idle_room(parties: Parties, tables: Tables, kind: Kind) -> Iterator[str]:
    """Who could start does not wait for more than a few passes of the matcher."""
    if kind is not Kind.MATCH:
        return
    could_start = idle_room(tables, parties.world.clock.time_ms)
    parties.room_for = Counter({job: parties.room_for[job] + 1 for job in could_start})
    for (job_id, _), passes in parties.room_for.items():
        if passes >= PASSES:
            yield f"{job_id} waits for {tables.jobs[job_id]['waiting_for']}, and there is room for it"


def _heard(parties: Parties, tables: Tables) -> Iterator[str]:
    """Whoever has just said something is alive, connected, and drains when it says so; whose connection has ended is not."""
    query = "SELECT node_id, liveness, connected, state = 'draining' FROM nodes WHERE state IN ('active', 'draining')"
    for node_id, liveness, connected, drains in tables.all(query):
        node = parties.node(node_id)
        if node.has_gone and connected:
            yield f"{node_id} has gone, and counts as connected"
        just_now = node.online and node.last_heard_ms == parties.world.clock.time_ms
        if just_now and (liveness, connected, drains) != ("alive", 1, int(node.said_draining)):
            yield f"{node_id} was heard of, and is {liveness}, connected: {connected}, draining: {drains}"


def _is_spot(job: sqlite3.Row) -> bool:
    return bool(json.loads(job["spec"]).get("spot"))


def _covered(tables: Tables, lease: sqlite3.Row) -> Iterator[str]:
    """The node can capture what it earns: under its grant's cap, in its own range, until after its last moment."""
    query = (
        "SELECT json_extract(grant, '$.grant.cap.cap'), json_extract(grant, '$.grant.cap.valid_until_s'), "
        "json_extract(grant, '$.grant.commitment.committed_before'), json_extract(grant, '$.grant.commitment.committed_after'), "
        "json_extract(grant, '$.grant.resume_from.name') FROM leases WHERE lease_id = ?"
    )
    ((cap, valid_until_s, before, after, resumed),) = tables.all(query, lease["lease_id"])
    if after > cap:
        yield f"{lease['lease_id']} is committed up to {after} under a cap of {cap}"
    spec = JobSpec.model_validate_json(tables.all("SELECT spec FROM jobs WHERE job_id = ?", lease["job_id"])[0][0])
    if after - before != lease["max_amount"] + verification_price(spec, lease["max_amount"]):
        yield f"{lease['lease_id']} may earn {lease['max_amount']} in a range of {after - before}"
    if valid_until_s * 1000 < lease["granted_at_ms"] + lease["max_duration_ms"]:
        yield f"{lease['lease_id']} may outlive its cap"
    yield from resumes_from_newest(tables, lease, resumed)


def _new_ends(parties: Parties, tables: Tables, kind: Kind) -> Iterator[str]:
    now_ms = parties.world.clock.time_ms
    for lease in tables.leases:
        if lease["state"] in LIVE or lease["lease_id"] in parties.ended_leases:
            continue
        parties.ended_leases.add(lease["lease_id"])
        node = parties.node(lease["node_id"])
        by_silence = kind in {Kind.SWEEP, Kind.LONG_SILENCE} and lease["reason"] == "node_lost"
        if by_silence and lease["stop_reason"] is None:
            silent_ms, grace_ms = parties.silent_ms(node, lease, now_ms), _grace_ms(tables, lease)
            if silent_ms < grace_ms:
                yield f"{lease['lease_id']} was given up after {silent_ms} ms of its {grace_ms} ms of grace"
        yield from _still_covered(tables, lease)
        was_silent = parties.silent_ms(node, lease, now_ms) >= _grace_ms(tables, lease)
        if lease["reason"] == "node_lost" and not lease["acknowledged"] and not was_silent:
            yield f"{node.id} is said to have lost {lease['lease_id']}, which it never took"
        if kind is Kind.OUTAGE:
            yield f"{lease['lease_id']} did not survive an outage of the marketplace"
        yield from _believed(parties, tables, lease)


def _still_covered(tables: Tables, lease: sqlite3.Row) -> Iterator[str]:
    """What it earned until its end, with the price of a verdict on it, fits into what is kept for it."""
    query = "SELECT upper - lower FROM commitments WHERE lease_id = ? AND NOT released"
    kept = tables.all(query, lease["lease_id"])
    if lease["decided_at_ms"] is not None or not kept or not lease["amount"]:
        return
    spec = JobSpec.model_validate_json(tables.all("SELECT spec FROM jobs WHERE job_id = ?", lease["job_id"])[0][0])
    if (due := lease["amount"] + verification_price(spec, lease["amount"])) > kept[0][0]:
        yield f"{kept[0][0]} are kept for {lease['lease_id']}, which may be due {due}"


def _believed(parties: Parties, tables: Tables, lease: sqlite3.Row) -> Iterator[str]:
    """What a lease ended for is more than its node's word: somebody asked for it, or it can have happened."""
    name, reason, job = lease["lease_id"], lease["reason"], tables.jobs[lease["job_id"]]
    if reason == lease["stop_reason"]:
        return
    node = parties.node(lease["node_id"])
    lasted_ms = _can_have_run_ms(node, lease, parties.world.clock.time_ms)
    most_ms = (lasted_ms + parties.world.market.policy.usage_skew_ms) * 1.05  # clocks of two machines differ
    most = most_ms * lease["price_per_gpu_hour"] * lease["billable_gpus"] / MS_PER_HOUR
    others = [other for other in tables.leases_of_job[job["job_id"]] if other["attempt"] == lease["attempt"]]
    if reason == "cancelled" and job["cancel_requested_at_ms"] is None:
        yield f"{name} was cancelled by nobody"
    if reason == "max_duration" and most_ms < lease["max_duration_ms"]:
        yield f"{name} ended for its max_duration of {lease['max_duration_ms']} ms after {lasted_ms} ms"
    if reason == "budget" and most < lease["max_amount"] - 1:
        yield f"{name} ended for its budget of {lease['max_amount']}, and can have cost {most:.0f}"
    if reason == "gang_ended" and all(other["reason"] in {None, "completed", "gang_ended"} for other in others):
        yield f"{name} ended with its gang, which goes on"
    if lease["state"] in {"reported", "verified"} and lease["started_at_ms"] is None:
        yield f"{name} is {lease['state']}, and never started"


def _grace_ms(tables: Tables, lease: sqlite3.Row) -> int:
    query = "SELECT json_extract(spec, '$.lease_grace') FROM jobs WHERE job_id = ?"
    return parse_duration_ms(tables.all(query, lease["job_id"])[0][0])


def _silence(parties: Parties, tables: Tables, kind: Kind) -> Iterator[str]:
    """After a sweep nothing is left that time has ended."""
    if kind not in {Kind.SWEEP, Kind.LONG_SILENCE}:
        return
    policy, now_ms = parties.world.market.policy, parties.world.clock.time_ms
    for lease in tables.leases:
        node = parties.node(lease["node_id"])
        if lease["state"] in LIVE and parties.silent_ms(node, lease, now_ms) >= _grace_ms(tables, lease):
            yield f"{lease['lease_id']} outlives its grace: {node.id} is not heard of"
        yield from _outstays(parties, lease, now_ms)
        unanswered = lease["acknowledged"] == 0 and now_ms - max(parties.started_ms, lease["granted_at_ms"])
        if lease["state"] in LIVE and unanswered and unanswered >= policy.accept_within_ms:
            yield f"{lease['lease_id']} waits for an answer for {unanswered} ms"
    for job in tables.jobs.values():
        if job["state"] == "queued" and job["queue_deadline_ms"] <= now_ms:
            yield f"{job['job_id']} is queued beyond its deadline"
    for node_id, liveness in tables.all("SELECT node_id, liveness FROM nodes"):
        silent_ms = now_ms - parties.node(node_id).last_heard_ms
        wanted = (
            "lost" if silent_ms >= policy.lost_after_ms else "unknown" if silent_ms >= policy.unknown_after_ms else ""
        )
        if wanted and liveness != wanted and not (wanted == "unknown" and liveness == "lost"):
            yield f"{node_id} is {liveness} after {silent_ms} ms of silence"
        if not wanted and liveness != "alive" and not _has_lost_one(parties, tables, node_id):
            yield f"{node_id} is {liveness}, and was heard of {silent_ms} ms ago"


def _has_lost_one(parties: Parties, tables: Tables, node_id: str) -> bool:
    """A lease of a short grace, since it was last heard of: it gets no other before it is heard of again."""
    since_ms = parties.node(node_id).last_heard_ms
    query = "SELECT 1 FROM leases WHERE node_id = ? AND (reason = 'node_lost' OR acknowledged = 0) AND ended_at_ms >= ?"
    return bool(tables.all(query, node_id, since_ms))


def _outstays(parties: Parties, lease: sqlite3.Row, now_ms: int) -> Iterator[str]:
    """Each state has its time; what our own outage took of it does not count."""
    policy, up_ms = parties.world.market.policy, max(parties.started_ms, lease["granted_at_ms"])
    if lease["state"] == "preparing" and now_ms - up_ms >= policy.preparing_limit_ms:
        yield f"{lease['lease_id']} prepares for {now_ms - up_ms} ms"
    if lease["state"] == "stopping":
        asked_ms = max(up_ms, lease["stop_requested_at_ms"])
        if now_ms - asked_ms >= policy.stopping_limit_ms:
            yield f"{lease['lease_id']} has been stopping for {now_ms - asked_ms} ms"
    if lease["state"] == "running":
        node = parties.node(lease["node_id"])
        over_ms = now_ms - max(up_ms, lease["started_at_ms"] + lease["max_duration_ms"])
        is_heard = parties.silent_ms(node, lease, now_ms) < policy.unknown_after_ms
        if is_heard and over_ms >= policy.stop_grace_ms + policy.unknown_after_ms:
            yield f"{lease['lease_id']} runs on {over_ms} ms after its end"


def _new_decisions(parties: Parties, tables: Tables) -> Iterator[str]:
    """Each decided lease has one receipt that anybody can check, and says what the books say."""
    for lease in tables.leases:
        if lease["decided_at_ms"] is None or lease["lease_id"] in parties.decided_leases:
            continue
        parties.decided_leases.add(lease["lease_id"])
        rows = tables.all("SELECT signed FROM receipts WHERE lease_id = ?", lease["lease_id"])
        if len(rows) != 1:
            yield f"{lease['lease_id']} has {len(rows)} receipts"
            continue
        signed = SignedReceipt.model_validate_json(rows[0][0])
        for problem in verify_receipt(signed, marketplace=parties.world.market.public_key):
            yield f"{lease['lease_id']}: {problem}"
        receipt, client = signed.receipt, tables.jobs[lease["job_id"]]["client"]
        if (receipt.amount, receipt.billed_ms, receipt.node, receipt.client, receipt.state) != (
            lease["amount"],
            lease["billed_ms"],
            lease["node_id"],
            client,
            lease["state"],
        ):
            yield f"{lease['lease_id']}: its receipt is not about what happened"
        paid = "SELECT COALESCE(SUM(amount + refunded), 0) FROM payouts WHERE lease_id = ?"
        if tables.all(paid, lease["lease_id"])[0][0] != receipt.amount:
            yield f"{lease['lease_id']}: its receipt says {receipt.amount}, its payouts do not"
        yield from _verdict(parties, tables, lease)
        yield from agreement.decided(parties, tables, lease)


def _new_burials(parties: Parties, tables: Tables) -> Iterator[str]:
    """Nobody gives up a capture that may still land."""
    query = "SELECT settlement_id, last_valid_block_height FROM settlements WHERE state = 'dead'"
    for settlement_id, last_valid in tables.all(query):
        if settlement_id not in parties.buried_captures and parties.world.chain.height <= last_valid:
            yield f"{settlement_id} is given up, and may still land"
        parties.buried_captures.add(settlement_id)


def _verdict(parties: Parties, tables: Tables, lease: sqlite3.Row) -> Iterator[str]:
    query = "SELECT json_extract(spec, '$.verify.policy') FROM jobs WHERE job_id = ?"
    measured = tables.all(query, lease["job_id"])[0][0] in {"metric", "replay", "quorum"}
    truth = parties.node(lease["node_id"]).truth.get(lease["lease_id"])
    if not measured or truth is None:
        return
    drawn = '"not_checked"' not in (lease["verdict"] or "")  # a replay is not drawn each time
    if lease["state"] == "verified" and lease["reason"] == "completed" and drawn and not truth.good:
        yield f"{lease['lease_id']} was verified, and its result is wrong"
    if lease["state"] == "rejected" and truth.good and not truth.made_up:
        yield f"{lease['lease_id']} was rejected, and its result is right"


def _bills(parties: Parties, tables: Tables) -> Iterator[str]:
    """Nobody pays for more than happened, and who was honest is paid for what did."""
    policy, now_ms = parties.world.market.policy, parties.world.clock.time_ms
    for lease in tables.leases:
        node = parties.node(lease["node_id"])
        truth = node.truth.get(lease["lease_id"])
        if truth is None or (truth.started_ms is None and lease["billed_ms"]):
            if lease["billed_ms"]:
                yield f"{lease['lease_id']} is billed, and nothing ever ran"
            continue
        if truth.started_ms is None:
            continue
        ran_ms = (truth.ended_ms or now_ms) - truth.started_ms
        if node.character is Character.LIAR:
            ran_ms = _can_have_run_ms(node, lease, now_ms)
        if lease["billed_ms"] > ran_ms + policy.usage_skew_ms:
            yield f"{lease['lease_id']} is billed {lease['billed_ms']} ms, and ran {ran_ms} ms"


def _fees(parties: Parties, tables: Tables) -> Iterator[str]:
    """Of each record the marketplace has its share, rounded down, and the node the rest; of a verification's price the node has nothing."""
    share = parties.world.market.policy.fee_basis_points
    query = "SELECT lease_id, sequence, node_amount, fee_amount FROM earnings"
    for lease_id, sequence, to_node, fee in tables.all(query):
        due = (to_node + fee) * share // 10_000 if sequence else to_node + fee
        if fee != due:
            yield f"of record {sequence} of {lease_id} its node has {to_node}, the marketplace {fee}"


def _can_have_run_ms(node: SimulatedNode, lease: sqlite3.Row, now_ms: int) -> int:
    """By what the marketplace saw. Of the time before a connection that is younger than the grant it has only the node's word."""
    until_ms, truth = int(lease["ended_at_ms"] or now_ms), node.truth.get(lease["lease_id"])
    seen = truth is not None and not truth.reconnected and node.connected_ms <= lease["granted_at_ms"]
    if truth is not None and truth.seen_started_ms is not None and seen:
        return (truth.seen_ended_ms or until_ms) - truth.seen_started_ms
    return until_ms - int(lease["granted_at_ms"])


def _seals(tables: Tables) -> Iterator[str]:
    """What is not paid for yet is not the client's to read."""
    query = (
        "SELECT l.lease_id FROM leases l JOIN jobs j USING (job_id), json_each(l.outputs) o "
        "JOIN blob_uses b ON b.job_id = l.job_id AND b.digest = json_extract(o.value, '$.digest') "
        "WHERE json_extract(j.spec, '$.verify.policy') != 'none' AND b.client_may_read "
        "AND l.state IN ('reported', 'rejected', 'inconclusive')"
    )
    for (lease_id,) in tables.all(query):
        yield f"{lease_id}: the client may read results before the verdict"
    sealed = (
        "SELECT l.lease_id FROM leases l JOIN jobs j USING (job_id), json_each(l.outputs) o "
        "JOIN blob_uses b ON b.job_id = l.job_id AND b.digest = json_extract(o.value, '$.digest') "
        "WHERE j.state = 'succeeded' AND l.state = 'verified' AND l.reason = 'completed' AND l.rank = 0 AND NOT b.client_may_read"
    )
    for (lease_id,) in tables.all(sealed):
        yield f"{lease_id}: the client paid, and may not read the results"
    early = (
        "SELECT DISTINCT l.lease_id FROM payouts p JOIN leases l USING (lease_id) JOIN jobs j USING (job_id) "
        "WHERE json_extract(j.spec, '$.verify.policy') != 'none' AND j.state IN ('queued', 'leased', 'verifying') "
        "AND l.state IN ('released', 'lost', 'revoked')"
    )
    for (lease_id,) in tables.all(early):
        yield f"{lease_id} is paid for a checkpoint before the verdict"
    unseen = (
        "SELECT l.lease_id, l.reason FROM leases l JOIN jobs j USING (job_id) WHERE l.amount > 0 AND j.cancel_requested_at_ms IS NULL "
        "AND json_extract(j.spec, '$.verify.policy') IN ('metric', 'replay') AND j.state IN ('failed', 'expired')"
    )
    undrawn = (
        "SELECT l.lease_id, l.reason FROM leases l JOIN jobs j USING (job_id) WHERE l.amount > 0 AND l.decided_at_ms IS NOT NULL "
        "AND l.state IN ('released', 'lost', 'revoked') AND j.cancel_requested_at_ms IS NULL "
        "AND json_extract(j.spec, '$.verify.policy') = 'replay' "
        "AND json_extract(l.verdict, '$.measured.audit_permille') IS NULL"
    )
    for lease_id, reason in tables.all(undrawn):
        yield f"{lease_id} ({reason}) is paid for checkpoints of which none was drawn to be looked at"
    for lease_id, reason in tables.all(unseen):
        yield f"{lease_id} ({reason}) is paid for work of which nothing was verified"


def _chain(parties: Parties, tables: Tables) -> Iterator[str]:
    """No address is paid twice, or without having earned it."""
    chain, network = parties.world.chain, parties.world.market.network
    earned: Counter[Pubkey] = Counter()
    settled: Counter[Pubkey] = Counter()
    query = "SELECT payout_address, state = 'finalized', SUM(amount) FROM payouts GROUP BY 1, 2"
    for address, final, amount in tables.all(query):
        wallet = chain.fee_owner if address == FEE_ADDRESS else Pubkey.from_string(address)
        account = token_account_of(wallet, network.mint_pubkey)
        earned[account] += amount
        settled[account] += amount if final else 0
    for account in set(earned) | set(chain.paid):
        if not settled[account] <= chain.paid.get(account, 0) <= earned[account]:
            paid = chain.paid.get(account, 0)
            yield f"{account} has {paid}: it earned {earned[account]}, the books say {settled[account]} was paid"


def _slashes(parties: Parties, tables: Tables) -> Iterator[str]:
    """Stake is lost for a failed audit alone: once, by who lied, to the client it was, and never more than is there."""
    chain = parties.world.chain
    query = "SELECT slash_id, lease_id, node_id, evidence_root, amount FROM slashes"
    names = ("slash_id", "lease_id", "node_id", "evidence_root", "amount")
    rows = [dict(zip(names, row, strict=True)) for row in tables.all(query)]
    by_root = {row["evidence_root"]: row for row in rows}
    leases = {lease["lease_id"]: lease for lease in tables.leases}
    for row in rows:
        lease, truth = leases[row["lease_id"]], parties.node(row["node_id"]).truth[row["lease_id"]]
        if row["amount"] > lease["stake"]:
            yield f"{row['slash_id']} takes {row['amount']}, and {lease['stake']} stood behind {row['lease_id']}"
        if lease["state"] != "rejected" or (truth.good and not truth.made_up):
            yield f"{row['slash_id']} takes {row['amount']} of {row['node_id']}, whose work was right"
    for (collateral, root), times in Counter((item[0], item[1]) for item in chain.collaterals.executed).items():
        found = by_root.get(f"sha256:{root.hex()}")
        if found is None or times > 1:
            yield f"{collateral} was slashed {times} times for {root.hex()[:8]}, which the books know as {found}"
    for _, root, amount, beneficiary in chain.collaterals.executed:
        found = by_root[f"sha256:{root.hex()}"]
        job = tables.jobs[leases[found["lease_id"]]["job_id"]]
        if (str(beneficiary), amount) != (job["client"], found["amount"]):
            yield f"{found['slash_id']}: {amount} went to {beneficiary}, {found['amount']} is {job['client']}'s"
    at_stake = (
        "SELECT c.address, (SELECT COALESCE(SUM(amount), 0) FROM slashes s WHERE s.collateral = c.address AND s.state IN "
        "('wanted', 'proposed')) + (SELECT COALESCE(SUM(stake), 0) FROM leases l WHERE l.node_id = c.node_id AND "
        "l.decided_at_ms IS NULL) FROM collaterals c"
    )
    for address, amount in tables.all(at_stake):
        if amount > chain.finalized[address].balance:
            yield f"{amount} of {address} is at stake, which holds {chain.finalized[address].balance}"
