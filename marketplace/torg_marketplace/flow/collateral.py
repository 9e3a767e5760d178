"""Collateral: what a node has at stake, as the chain shows it, and what of it stands behind one lease.

A node names a vault of kind collateral in its offer; the vault names the node as its session key. So neither can be somebody else's
without the consent of both, and the wallet that staked need not be on the node's machine.
"""

from __future__ import annotations

import logging

from sqlalchemy import delete, func, select

from torg_chain.vault import VaultKind, VaultState
from torg_marketplace.flow.unit import Market, Unit
from torg_marketplace.rules.audit import LEAST_GRACE_S, counted_balance, stake_behind
from torg_marketplace.storage.audit_models import CollateralRow, SlashRow
from torg_marketplace.storage.models import JobRow, LeaseRow
from torg_marketplace.storage.money_models import VaultRow
from torg_protocol.ids import NodeId
from torg_protocol.states import OPEN_SLASH_STATES

log = logging.getLogger(__name__)


async def note_collateral(unit: Unit, node_id: NodeId, address: str | None) -> None:
    """What the node's newest offer names. It counts once the chain was asked: `look_at_collaterals`."""
    await unit.session.execute(delete(CollateralRow).where(CollateralRow.node_id == node_id))
    if address is not None:
        unit.session.add(CollateralRow(node_id=node_id, address=address, problem="not looked up yet"))
        unit.wake("collateral")


async def look_at_collaterals(market: Market) -> int:
    """Brings every named collateral up to date. Safe to repeat. Raises ChainUnavailable."""
    async with market.reading() as unit:
        rows = (await unit.session.execute(select(CollateralRow.node_id, CollateralRow.address))).all()
    if not rows:
        return 0
    now_s = await market.chain.unix_time_s()
    for node_id, address in rows:
        try:
            state = await market.chain.vault(address)
        except ValueError:
            state, problem = None, "not the address of a vault"
        else:
            problem = _problem(market, node_id, state, now_s)
        async with market.transaction() as unit:
            row = await unit.session.get(CollateralRow, node_id)
            if row is None or row.address != address:
                continue  # a newer offer names another
            row.problem, row.seen_at_ms = problem, unit.now_ms
            row.counted = counted_balance(state, now_s) if state is not None and not problem else 0
    return len(rows)


async def put_stake_behind(unit: Unit, lease: LeaseRow, job: JobRow) -> int:
    """What this lease's node loses if the lease fails its audit; kept aside until the lease is decided. Safe to repeat.

    `job`: whose client would get it; of a lease that executes another's segment again, that other's. Nothing for jobs that the operator's own credit pays: the operator may not gain by a slash.
    """
    vault = await unit.session.get_one(VaultRow, job.vault)
    if lease.stake == 0 and vault.depositor == job.client:
        undecided = select(func.count()).where(LeaseRow.node_id == lease.node_id, LeaseRow.decided_at_ms.is_(None))
        free, waiting = await free_stake(unit, lease.node), await unit.session.scalar(undecided) or 0
        lease.stake = stake_behind(free, waiting, lease.amount)
    return lease.stake


async def free_stake(unit: Unit, node_id: NodeId) -> int:
    """Of the node's collateral, what no slash will take and no undecided lease has kept aside. Base units."""
    row = await unit.session.get(CollateralRow, node_id)
    if row is None:
        return 0
    slashes = select(func.sum(SlashRow.amount)).where(
        SlashRow.collateral == row.address, SlashRow.state.in_(OPEN_SLASH_STATES)
    )
    kept = select(func.sum(LeaseRow.stake)).where(LeaseRow.node_id == node_id, LeaseRow.decided_at_ms.is_(None))
    taken = (await unit.session.scalar(slashes) or 0) + (await unit.session.scalar(kept) or 0)
    return max(0, row.counted - int(taken))


def _problem(market: Market, node_id: str, state: VaultState | None, now_s: int) -> str:
    """Why it does not count; empty when it does."""
    network = market.network
    if state is None:
        return "not on chain"
    checks = (
        (state.kind != VaultKind.COLLATERAL, "it is a client's vault"),
        (str(state.config) != network.operator_config, "it is under another operator"),
        (str(state.mint) != network.mint, "it holds another token"),
        (state.chain_id != network.chain_id, "it was opened for another chain"),
        (str(state.signer_at(now_s)) != node_id, "its session key is not this node"),
        (state.grace_s < LEAST_GRACE_S, f"its grace is below {LEAST_GRACE_S} s"),
    )
    return next((words for failed, words in checks if failed), "")
