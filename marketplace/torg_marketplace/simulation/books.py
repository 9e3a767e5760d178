"""What must hold of the books after every step: postings, holds, vaults, payouts and captures. Sentences name what is broken."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

from torg_marketplace.simulation.tables import Tables

_REFUNDS = "SELECT refund_id, cause, job_id FROM refunds"
MOST_PAYEES = 3  # of one capture in the simulated market


def broken_books(tables: Tables) -> list[str]:
    return [*_ledger(tables), *_causes(tables), *_holds(tables), *_vaults(tables), *_payouts(tables)]


def _ledger(tables: Tables) -> Iterator[str]:
    for key, total in tables.all("SELECT posting, SUM(amount) FROM ledger_entries GROUP BY posting HAVING SUM(amount)"):
        yield f"posting {key} adds up to {total}"
    accounts = tables.sums("SELECT account, SUM(amount) FROM ledger_entries GROUP BY account")
    for account, balance in accounts.items():
        if balance < 0 and not account.startswith(("chain:", "promised:")):
            yield f"{account} is overdrawn by {-balance}"
    earned = "SELECT e.lease_id, e.job_id, e.state, SUM(e.node_amount + e.fee_amount) FROM earnings e GROUP BY 1, 2, 3"
    pending: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    for lease_id, job_id, state, amount in tables.all(earned):
        pending[lease_id] += amount if state == "pending" else 0
        taken[job_id] += amount if state != "refunded" else 0
    for lease_id, amount in pending.items():
        if accounts.get(f"pending:{lease_id}", 0) != amount:
            yield f"pending:{lease_id} holds {accounts.get(f'pending:{lease_id}', 0)}, its earnings say {amount}"
    for job_id, most, is_open in tables.all("SELECT job_id, max_amount + refunded, open FROM holds"):
        kept = most - taken[job_id] if is_open else 0
        if accounts.get(f"held:{job_id}", 0) != kept:
            yield f"held:{job_id} holds {accounts.get(f'held:{job_id}', 0)}, its hold says {kept}"
    owed = "SELECT vault, payout_address, SUM(amount) FROM payouts WHERE state != 'finalized' GROUP BY 1, 2"
    owing = {f"payable:{vault}:{address}": amount for vault, address, amount in tables.all(owed)}
    for account in {name for name in accounts if name.startswith("payable:")} | set(owing):
        if accounts.get(account, 0) != owing.get(account, 0):
            yield f"{account} holds {accounts.get(account, 0)}, its payouts say {owing.get(account, 0)}"


def _causes(tables: Tables) -> Iterator[str]:
    """Each posting says why: by its key one knows what it has to say."""
    cause_of = {refund_id: f"refund: {cause} of {job_id}" for refund_id, cause, job_id in tables.all(_REFUNDS)}
    jobs = {lease["lease_id"]: lease["job_id"] for lease in tables.leases}
    for key, cause in tables.all("SELECT key, cause FROM postings"):
        kind, _, rest = key.partition(":")
        subject, _, number = rest.partition(":")
        wanted = {
            "hold": f"job {subject} {'extended' if number else 'admitted'}",
            "release": f"job {subject} ended",
            "earn": "usage countersigned" if number != "0" else "price of verification",
            "payable": "work accepted",
            "refund": f"refund: verification_failed of {jobs.get(subject)}",
            "refunded": cause_of.get(rest.rpartition(":")[0]),
            "deposit": "deposits seen on chain (finalized)",
        }
        if kind == "capture" and cause.startswith("captured by "):
            continue
        if cause != wanted.get(kind):
            yield f"posting {key} was made because: {cause}"


def _holds(tables: Tables) -> Iterator[str]:
    billed: Counter[str] = Counter()
    undecided = {lease["job_id"] for lease in tables.leases if lease["decided_at_ms"] is None}
    for lease in tables.leases:
        billed[lease["job_id"]] += lease["amount"]
    holds = {row[0]: row[1:] for row in tables.all("SELECT job_id, max_amount, billed, open FROM holds")}
    for job in tables.jobs.values():
        most, paid, is_open = holds[job["job_id"]]
        if bool(is_open) == (job["closed_at_ms"] is not None):
            yield f"{job['job_id']} and its hold disagree about its end"
        if paid > most or most != job["max_amount"]:
            yield f"{job['job_id']}: {paid} of a hold of {most} is billed"
        if job["closed_at_ms"] is not None and (paid != billed[job["job_id"]] or job["job_id"] in undecided):
            yield f"{job['job_id']}: its leases say {billed[job['job_id']]}, its hold {paid}"


def _vaults(tables: Tables) -> Iterator[str]:
    open_sums = tables.sums("SELECT vault, SUM(max_amount) FROM holds WHERE open GROUP BY vault")
    final_sums = tables.sums("SELECT vault, SUM(billed - refunded) FROM holds WHERE NOT open GROUP BY vault")
    caps = tables.sums("SELECT vault, MAX(cap) FROM caps GROUP BY vault")
    query = "SELECT address, open_maximum, final_total, chain_settled, chain_balance, blocked, deposits FROM vaults"
    for address, open_maximum, final_total, settled, balance, blocked, deposits in tables.all(query):
        if open_maximum != open_sums.get(address, 0) or final_total != final_sums.get(address, 0):
            yield f"{address}: open {open_maximum}, final {final_total}; its holds say otherwise"
        committed = open_maximum + final_total
        if committed > settled + balance or committed > caps.get(address, 0):
            yield f"{address}: {committed} is committed of {settled + balance}, capped at {caps.get(address, 0)}"
        if blocked is not None:
            yield f"{address} is blocked: {blocked}"
        if deposits != settled + balance:
            yield f"{address}: deposits of {deposits} are booked, the chain had {settled + balance}"
    undecided = "SELECT lease_id FROM commitments JOIN leases USING (lease_id) WHERE released AND decided_at_ms IS NULL"
    for (lease_id,) in tables.all(undecided):
        yield f"the range of {lease_id} is released, and nobody knows yet what it costs"
    narrow = (
        "SELECT c.lease_id, c.upper - c.lower, SUM(p.amount) FROM commitments c JOIN payouts p USING (lease_id) WHERE NOT c.released "
        "AND p.state NOT IN ('finalized', 'refunded', 'lost') GROUP BY c.lease_id HAVING SUM(p.amount) > c.upper - c.lower"
    )
    for lease_id, kept, owed in tables.all(narrow):
        yield f"{kept} are kept for {lease_id}, which is owed {owed}"
    early = (
        "SELECT DISTINCT c.lease_id FROM commitments c JOIN payouts p USING (lease_id) WHERE c.released "
        "AND p.state NOT IN ('finalized', 'refunded', 'lost')"
    )
    for (lease_id,) in tables.all(early):
        yield f"the range of {lease_id} is released, and it is not paid"
    for vault, ranges in itertools.groupby(
        tables.all(
            "SELECT vault, lower, upper, lease_id FROM commitments WHERE NOT released ORDER BY vault, lower, upper"
        ),
        key=lambda row: row[0],
    ):
        for before, after in itertools.pairwise(list(ranges)):
            if before[2] > after[1] and after[1] != after[2]:
                yield f"{vault} is committed twice: to {before[3]} and {after[3]}"


def _payouts(tables: Tables) -> Iterator[str]:
    paid = tables.sums("SELECT lease_id, SUM(amount + refunded) FROM payouts GROUP BY lease_id")
    payable = tables.sums(
        "SELECT lease_id, SUM(node_amount + fee_amount) FROM earnings WHERE state = 'payable' GROUP BY 1"
    )
    if paid != {lease_id: amount for lease_id, amount in payable.items() if amount}:
        yield f"payouts {paid} are not the earnings {payable}"
    for record, addresses in tables.all(
        "SELECT record_digest, COUNT(*) FROM payouts GROUP BY record_digest, payout_address HAVING COUNT(*) > 1"
    ):
        yield f"record {record} is paid {addresses} times to one address"
    for vault, count in tables.all(
        "SELECT vault, COUNT(*) FROM settlements WHERE state IN ('built', 'unknown', 'confirmed') GROUP BY 1 HAVING COUNT(*) > 1"
    ):
        yield f"{vault} has {count} captures in flight"
    kept = (
        "SELECT v.address, v.active_settlement, s.settlement_id FROM vaults v LEFT JOIN settlements s ON s.vault = v.address "
        "AND s.state IN ('built', 'unknown', 'confirmed') WHERE v.active_settlement IS NOT s.settlement_id"
    )
    for vault, kept_for, in_flight in tables.all(kept):
        yield f"{vault} is kept for {kept_for}, in flight is {in_flight}"
    for settlement_id, amount, total in tables.all(
        "SELECT s.settlement_id, s.amount, SUM(p.amount) FROM settlements s JOIN payouts p USING (settlement_id) "
        "WHERE s.state != 'finalized' GROUP BY 1 HAVING s.amount != SUM(p.amount)"
    ):
        yield f"{settlement_id} pays {amount} for payouts of {total}"
    for settlement_id, payees in tables.all("SELECT settlement_id, json_array_length(payees) FROM settlements"):
        if payees > MOST_PAYEES:
            yield f"{settlement_id} pays {payees} at once"
    wrong = (
        "SELECT p.payout_id, p.state, s.state FROM payouts p LEFT JOIN settlements s USING (settlement_id) WHERE "
        "(p.state IN ('pending', 'refunded')) != (s.state IS NULL) OR (p.state = 'finalized' AND s.state != 'finalized') "
        "OR (p.state = 'confirmed' AND s.state != 'confirmed') OR (p.state = 'in_flight' AND s.state NOT IN ('built', 'unknown'))"
    )
    for payout_id, state, settlement in tables.all(wrong):
        yield f"{payout_id} is {state}, its capture {settlement}"
