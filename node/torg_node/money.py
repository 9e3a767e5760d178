"""What this node is owed and holds in its hands: read from its own journal and from the chain, believed of nobody.

Owed is what the marketplace countersigned, less its fee, until a capture on chain has paid it. Orders that pay this node are
kept; when the marketplace does not land them in time, or the client's vault is closing, this node does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from solders.keypair import Keypair
from solders.pubkey import Pubkey

from torg_chain.errors import ChainUnavailable, VaultNotFound
from torg_chain.network import Network
from torg_chain.orders import ensure_token_account, land_order
from torg_chain.rpc import ChainClient
from torg_chain.vault import token_account_of
from torg_node.journal import Journal
from torg_node.lease import Lease
from torg_node.settings import Settings
from torg_protocol.caps import SignedOrder
from torg_protocol.errors import TorgError
from torg_protocol.money import cost

log = logging.getLogger(__name__)
CLOSING_MARGIN_S = 1_800  # to report, to be verified, and to be settled
FEE_FACT = "fee_basis_points"  # of the newest welcome
GONE_FACT = "gone "  # and a vault: when it was missed first, then GONE
GONE = "for good"
_GONE_AFTER_MS = 600_000  # an RPC node that lags may not know a vault; none lags for so long


@dataclass(frozen=True, slots=True)
class VaultDebt:
    """Base units. `earned`: this node's share of what was countersigned and not rejected; `captured`: paid to its address on chain.

    Two nodes that are paid to one address see each other's captures: then `owed` may be too small. `is_gone`: its depositor has closed the
    vault, and nothing of it can be captured any more.
    """

    vault: str
    earned: int
    captured: int
    is_gone: bool = False

    @property
    def owed(self) -> int:
        return 0 if self.is_gone else max(0, self.earned - self.captured)

    @property
    def lost(self) -> int:
        return max(0, self.earned - self.captured) if self.is_gone else 0


@dataclass(frozen=True, slots=True)
class Landing:
    """What became of one order. `signature` None: not landed, `detail` says why."""

    vault: str
    amount: int
    signature: str | None
    detail: str = ""


def debts(journal: Journal) -> list[VaultDebt]:
    """By vault. With the fee of today: records of a time with another fee differ by that."""
    captured = journal.captured()
    earned, gone = journal.earned(int(journal.fact(FEE_FACT) or 0)), journal.facts_like(GONE_FACT)
    return [
        VaultDebt(vault, amount, captured.get(vault, 0), gone.get(GONE_FACT + vault) == GONE)
        for vault, amount in sorted(earned.items())
    ]


def exposure(journal: Journal) -> int:
    """Base units that were countersigned to this node and that no capture has paid. What runs just now comes on top."""
    return sum(debt.owed for debt in debts(journal))


def accruing(lease: Lease, now_ms: int) -> int:
    """Base units that a running lease has earned and that are not countersigned yet."""
    if lease.started_at_ms is None:
        return 0
    grant, useful_ms = lease.grant, max(0, now_ms - lease.started_at_ms)
    earned = min(cost(grant.price_per_gpu_hour, grant.billable_gpus, useful_ms), grant.max_amount)
    return max(0, earned - lease.node.journal.countersigned(lease.id))


async def closes_too_soon(chain: ChainClient, vault: str) -> bool:
    """Whether work for this vault from now on might not be captured any more before its depositor may take the rest."""
    state = await chain.vault(vault)
    if state is None:
        return True
    return state.close_at != 0 and await chain.unix_time_s() >= state.close_at - CLOSING_MARGIN_S


async def look_at_captures(chain: ChainClient, settings: Settings, journal: Journal, *, now_ms: int) -> None:
    """Enters what vaults that owe this node have paid since the last look, and which are closed. Safe to repeat. Raises ChainUnavailable."""
    network = settings.network
    mine = str(token_account_of(Pubkey.from_string(settings.payout_address), network.mint_pubkey))
    for debt in debts(journal):
        if not debt.owed:
            continue
        since = journal.captured_until(debt.vault)
        try:
            landed = await chain.landed_captures(network.program_pubkey, debt.vault, from_settled=since)
        except ChainUnavailable as error:
            if error.code == "vault_in_motion":
                continue  # seen when it has come to rest; what others have paid counts now
            raise
        for capture in landed:
            paid = sum(
                amount
                for index, (account, amount) in enumerate(capture.arguments.payees)
                if account == mine and index not in capture.skipped
            )
            until = capture.arguments.expected_settled + capture.paid
            journal.add_capture(capture.signature, debt.vault, until, paid)
        await _note_whether_gone(chain, journal, debt, now_ms)


async def _note_whether_gone(chain: ChainClient, journal: Journal, debt: VaultDebt, now_ms: int) -> None:
    name = GONE_FACT + debt.vault
    missed = journal.fact(name)
    if await chain.account_owner(Pubkey.from_string(debt.vault)) is not None:
        if missed:
            journal.set_fact(name, "")
    elif not missed:
        journal.set_fact(name, str(now_ms))
    elif now_ms - int(missed) >= _GONE_AFTER_MS:
        journal.set_fact(name, GONE)
        log.error(
            "vault %s was closed before all of it was captured: up to %s base units are lost", debt.vault, debt.owed
        )


async def land_orders(
    chain: ChainClient,
    network: Network,
    journal: Journal,
    *,
    payout: Pubkey,
    fee_payer: Keypair,
    older_than_ms: int | None = None,
) -> list[Landing]:
    """Lands the orders that are held; with `older_than_ms`, only those that came before that time, or whose vault is closing.

    An order that was landed meanwhile is dropped without a word. Needs no marketplace; the fee payer needs a little SOL.
    """
    landed, owed = [], {debt.vault: debt.owed for debt in debts(journal)}
    for order, kept_at_ms in journal.orders():
        state = None
        try:
            state = await chain.existing_vault(order.vault)
        except VaultNotFound:
            if owed.get(order.vault):
                why = "its vault is not on the chain any more: what it owes is lost, unless this RPC node is behind"
                landed.append(Landing(order.vault, _share_of(network, order, payout), None, why))
            else:
                journal.drop_order(order)
            continue
        if state.settled > order.expected_settled:
            journal.drop_order(order)
            continue
        if state.settled < order.expected_settled:
            continue  # this RPC node is not as far as the marketplace's was
        if older_than_ms is not None and kept_at_ms > older_than_ms and state.close_at == 0:
            continue
        landed.append(await _land(chain, network, order, payout, fee_payer))
    return landed


async def _land(
    chain: ChainClient, network: Network, order: SignedOrder, payout: Pubkey, fee_payer: Keypair
) -> Landing:
    amount = _share_of(network, order, payout)
    try:
        if await chain.lamports(fee_payer.pubkey()) == 0:
            return Landing(order.vault, amount, None, f"{fee_payer.pubkey()} holds no SOL for the fee: send it 0.01")
        await ensure_token_account(chain, network, payout, fee_payer=fee_payer)
        return Landing(order.vault, amount, await land_order(chain, network, order, fee_payer=fee_payer))
    except TorgError as problem:
        log.warning("the order of vault %s could not be landed: %s", order.vault, problem)
        return Landing(order.vault, amount, None, problem.message)


def _share_of(network: Network, order: SignedOrder, payout: Pubkey) -> int:
    mine = str(token_account_of(payout, network.mint_pubkey))
    return sum(item.amount for item in order.payees if item.token_account == mine)
