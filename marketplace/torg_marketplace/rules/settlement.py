"""Pure decisions of settlement: is a batch due, what goes into it, and what to do with a capture whose fate is in doubt."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torg_protocol.states import SettlementState


@dataclass(frozen=True, slots=True)
class Due:
    """A payout that waits."""

    payout_id: str
    address: str
    amount: int
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Batch:
    payout_ids: tuple[str, ...]
    payees: tuple[tuple[str, int], ...]  # address and sum, in order of first appearance

    @property
    def amount(self) -> int:
        return sum(amount for _, amount in self.payees)


def is_due(waiting: Sequence[Due], *, now_ms: int, max_age_ms: int, threshold: int, hurry: bool) -> bool:
    if not waiting:
        return False
    total = sum(item.amount for item in waiting)
    oldest = min(item.created_at_ms for item in waiting)
    return hurry or total >= threshold or now_ms - oldest >= max_age_ms


def make_batch(waiting: Sequence[Due], *, max_payees: int, at_most: int) -> Batch:
    """The oldest payouts first, one payee per address, never more than `at_most` base units in all.

    A payout that would go over the limit is left for the next batch; smaller ones behind it may still fit.
    """
    sums: dict[str, int] = {}
    chosen: list[str] = []
    total = 0
    for item in sorted(waiting, key=lambda due: (due.created_at_ms, due.payout_id)):
        fits = total + item.amount <= at_most and (item.address in sums or len(sums) < max_payees)
        if not fits:
            continue
        sums[item.address] = sums.get(item.address, 0) + item.amount
        chosen.append(item.payout_id)
        total += item.amount
    return Batch(tuple(chosen), tuple(sums.items()))


def is_exposed(waiting: Sequence[Due], limits: Mapping[str, int]) -> bool:
    """Whether somebody is owed half of the most that its node wants to be owed: at all of it the node stops working."""
    owed: dict[str, int] = {}
    for item in waiting:
        owed[item.address] = owed.get(item.address, 0) + item.amount
    return any(2 * amount >= limits[address] for address, amount in owed.items() if address in limits)


def capture_units(payees: int, new_accounts: int) -> int:
    """A compute-unit limit that a capture surely keeps, with a token program that takes 60 times what p-token takes."""
    return 40_000 + 12_000 * payees + 30_000 * new_accounts


def priority_price(recent: int, *, attempts: int, units: int, ceiling_lamports: int) -> int:
    """Micro-lamports per compute unit: what recent blocks took, doubled for each attempt that died, never above the ceiling.

    A first attempt on an idle cluster pays nothing; a second one always offers something.
    """
    floor = 1_000 if attempts else 0
    return min(max(recent, floor) << min(attempts, 20), ceiling_lamports * 1_000_000 // units)


class Fate(enum.StrEnum):
    """What the chain says of a signature."""

    NOT_FOUND = "not_found"
    PROCESSED = "processed"
    CONFIRMED = "confirmed"
    FINALIZED = "finalized"
    FAILED = "failed"


class Action(enum.StrEnum):
    WAIT = "wait"
    RESEND = "resend"  # the same bytes
    CONFIRM = "confirm"
    FINALIZE = "finalize"
    ROLL_BACK = "roll_back"  # it was confirmed, and a fork has dropped it
    BURY = "bury"  # provably never landed: payouts wait again
    CATCH_UP = (
        "catch_up"  # the vault's total moved, and not by this transaction: see which order was landed, and by whom
    )


@dataclass(frozen=True, slots=True)
class Evidence:
    """`expired`: the finalized block height is beyond the transaction's last valid one. `settled` is the finalized total. `slot`: that the
    transaction landed in, where it did."""

    fate: Fate
    expired: bool
    settled: int
    slot: int = 0


def next_action(state: SettlementState, expected_settled: int, evidence: Evidence) -> Action:
    """Resend on doubt, rebuild only when the blockhash is dead *and* nothing was settled meanwhile. What was confirmed and is not any more is in
    doubt again first, also where the program refused it the second time."""
    match evidence.fate:
        case Fate.FINALIZED:
            return Action.FINALIZE
        case Fate.CONFIRMED:
            return Action.WAIT if state is SettlementState.CONFIRMED else Action.CONFIRM
        case _ if state is SettlementState.CONFIRMED:
            return Action.ROLL_BACK
        case Fate.FAILED:
            return Action.BURY if evidence.expired else Action.WAIT
        case Fate.PROCESSED:
            return Action.WAIT
        case Fate.NOT_FOUND:
            if not evidence.expired:
                return Action.RESEND
            return Action.BURY if evidence.settled == expected_settled else Action.CATCH_UP
