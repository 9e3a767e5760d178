"""Pure decisions of settlement: is a batch due, what goes into it, and what to do with a capture whose fate is in doubt."""

from __future__ import annotations

import enum
from collections.abc import Sequence
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
    ALARM = "alarm"  # the vault's total moved and it was not by this: never guess


@dataclass(frozen=True, slots=True)
class Evidence:
    """`expired`: the finalized block height is beyond the transaction's last valid one. `settled` is the finalized total."""

    fate: Fate
    expired: bool
    settled: int


def next_action(state: SettlementState, expected_settled: int, evidence: Evidence) -> Action:
    """Resend on doubt, rebuild only when the blockhash is dead *and* nothing was settled meanwhile."""
    match evidence.fate:
        case Fate.FINALIZED:
            return Action.FINALIZE
        case Fate.CONFIRMED:
            return Action.WAIT if state is SettlementState.CONFIRMED else Action.CONFIRM
        case Fate.FAILED:
            return Action.BURY if evidence.expired else Action.WAIT
        case Fate.PROCESSED:
            return Action.ROLL_BACK if state is SettlementState.CONFIRMED else Action.WAIT
        case Fate.NOT_FOUND:
            if state is SettlementState.CONFIRMED:
                return Action.ROLL_BACK
            if not evidence.expired:
                return Action.RESEND
            return Action.BURY if evidence.settled == expected_settled else Action.ALARM
