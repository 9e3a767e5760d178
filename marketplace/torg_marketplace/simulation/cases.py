"""Disputes of simulated clients, the person who decides them, refunds of the operator's own; and what must hold of all of them after every step."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator

from torg_marketplace.flow.disputes import decide_dispute, open_dispute
from torg_marketplace.flow.refunds import refund_lease
from torg_marketplace.simulation.client import SimulatedClient
from torg_marketplace.simulation.tables import Tables, look
from torg_marketplace.simulation.world import World
from torg_protocol.errors import TorgError
from torg_protocol.ids import JobId
from torg_protocol.refunds import RefundCause, SignedRefund

BORNE_BY_NODES = {"slow_lease", "verification_failed", "dispute"}


async def object_to(world: World, client: SimulatedClient, jobs: list[JobId], chance: random.Random) -> list[str]:
    """The client disputes one of `jobs`, which may be its own, over, paid for, or none of it. Sometimes says it again."""
    if not jobs:
        return []
    job_id, reason = chance.choice(jobs), chance.choice(["slow", "wrong"])
    before = look(world.database)
    job = before.jobs[job_id]
    for _ in range(chance.choice([1, 1, 2])):
        try:
            async with world.market.transaction() as unit:
                view = await open_dispute(unit, client.account, job_id, reason)
        except TorgError:
            continue
        paid = sum(lease["amount"] for lease in before.leases_of_job.get(job_id, []))
        if job["client"] != client.account or job["closed_at_ms"] is None or not paid or view.reason != reason:
            return [
                f"{client.account} may dispute {job_id} of {job['client']}, closed at {job['closed_at_ms']}, for {paid}"
            ]
    return []


async def decide(world: World, chance: random.Random) -> list[str]:
    """A person decides a dispute, or what was decided once more; or gives something back without one, or more than there is."""
    tables = look(world.database)
    disputes = tables.all("SELECT dispute_id, state FROM disputes ORDER BY dispute_id")
    if disputes and chance.random() < 0.5:
        dispute_id, state = chance.choice(disputes)
        return await _decide(world, dispute_id, chance, was_decided=state == "decided")
    leases = [lease for lease in tables.leases if lease["decided_at_ms"] is not None and lease["amount"]]
    known = {lease_id for (lease_id,) in tables.all("SELECT lease_id FROM refunds")}
    if again := [lease for lease in leases if lease["lease_id"] in known and chance.random() < 0.5]:
        leases = again
    return await _give_back(world, tables, chance.choice(leases), chance) if leases else []


async def _decide(world: World, dispute_id: str, chance: random.Random, *, was_decided: bool) -> list[str]:
    share = chance.choice([0, 1, 30, 50, 100])
    try:
        async with world.market.transaction() as unit:
            await decide_dispute(unit, dispute_id, share_percent=share, note="decided by lot")
    except TorgError:
        return [] if was_decided else [f"{dispute_id} cannot be decided with {share} %"]
    return [f"{dispute_id} was decided twice"] if was_decided else []


async def _give_back(world: World, tables: Tables, lease: sqlite3.Row, chance: random.Random) -> list[str]:
    query = "SELECT COALESCE(SUM(amount), 0) FROM refunds WHERE lease_id = ?"
    left = lease["amount"] - tables.all(query, lease["lease_id"])[0][0]
    amount = chance.choice([1, max(1, left // 2), max(1, left), left + 1, lease["amount"]])
    causes = [RefundCause.GOODWILL, RefundCause.MARKETPLACE_FAULT, RefundCause.VERIFICATION_FAILED]
    cause, subject = chance.choice(causes), f"{lease['lease_id']}:{chance.randrange(3)}"
    for _ in range(chance.choice([1, 2])):
        try:
            async with world.market.transaction() as unit:
                await refund_lease(unit, lease["lease_id"], amount, cause, subject=subject)
        except TorgError:
            return []
    return []


def refunds(world: World, tables: Tables) -> Iterator[str]:
    """Nothing goes back that was not paid, nor twice; nodes bear what is theirs; what is not covered yet is credit, in the books as well."""
    given: Counter[str] = Counter()
    uncovered: Counter[str] = Counter()
    of_dispute: Counter[str] = Counter()
    leases = {lease["lease_id"]: lease for lease in tables.leases}
    query = "SELECT refund_id, cause, lease_id, vault, amount, from_node, outstanding, signed FROM refunds"
    for refund_id, cause, lease_id, vault, amount, from_node, outstanding, signed in tables.all(query):
        given[lease_id] += amount
        uncovered[vault] += outstanding
        if cause == "dispute":
            of_dispute[refund_id.split(":")[1]] += amount
        yield from _signed(world, json.loads(signed), (refund_id, lease_id, amount, from_node, outstanding))
        earned = "SELECT COALESCE(SUM(node_amount), 0) FROM earnings WHERE state = 'payable' AND lease_id = ?"
        of_node = tables.all(earned, lease_id)[0][0]
        share = amount * of_node // leases[lease_id]["amount"] if cause in BORNE_BY_NODES else 0
        if from_node > share:
            yield f"{refund_id} takes {from_node} from {leases[lease_id]['node_id']}, which bears {share} of it"
    for lease_id, amount in given.items():
        if amount > leases[lease_id]["amount"]:
            yield f"{amount} of {lease_id} went back, and it cost {leases[lease_id]['amount']}"
    accounts = tables.sums("SELECT account, SUM(amount) FROM ledger_entries GROUP BY account")
    for vault, credit in tables.all("SELECT address, credit FROM vaults"):
        said = (credit, accounts.get(f"credit:{vault}", 0), -accounts.get(f"promised:{vault}", 0))
        if set(said) != {uncovered[vault]}:
            yield f"{vault}: refunds left {uncovered[vault]} uncovered, vault and books say {said}"
    taken = tables.sums("SELECT vault, SUM(refunded) FROM payouts GROUP BY vault")
    covered = tables.sums("SELECT vault, SUM(amount - outstanding) FROM refunds GROUP BY vault")
    for vault in {*taken, *covered}:
        if taken.get(vault, 0) != covered.get(vault, 0):
            yield f"{vault}: {taken.get(vault, 0)} was taken off payouts for refunds of {covered.get(vault, 0)}"
    for dispute_id, refunded in tables.all("SELECT dispute_id, refunded FROM disputes"):
        if refunded != of_dispute[dispute_id]:
            yield f"{dispute_id} says that {refunded} went back, its refunds {of_dispute[dispute_id]}"


def _signed(world: World, signed: dict[str, object], row: tuple[str, str, int, int, int]) -> Iterator[str]:
    """What client and node keep as their proof says what the books say."""
    document = SignedRefund.model_validate(signed)
    refund_id, lease_id, amount, from_node, outstanding = row
    for problem in document.problems(marketplace=world.market.public_key):
        yield f"{refund_id}: {problem}"
    refund = document.refund
    if (refund.refund_id, refund.lease_id, refund.amount, refund.from_node) != (refund_id, lease_id, amount, from_node):
        yield f"{refund_id}: what was signed is not what the books say"
    if not 0 <= outstanding <= refund.credit:
        yield f"{refund_id}: {outstanding} of a credit of {refund.credit} is outstanding"


def given_back(tables: Tables) -> dict[str, int]:
    """By vault: what refunds have kept from being captured."""
    return tables.sums("SELECT vault, SUM(amount - outstanding) FROM refunds GROUP BY vault")
