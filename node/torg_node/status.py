"""What the owner sees: connection, leases, earnings; read from the journal, so it works while the agent runs and when it does not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torg_node.allocation import Capacity
from torg_node.journal import Journal
from torg_node.money import VaultDebt, debts, exposure
from torg_node.proving import kept_status, proof_lines
from torg_node.rental.book import RentalBook
from torg_node.reservation import Reservations
from torg_node.settings import Settings
from torg_node.standing import kept_suspensions, standing_lines
from torg_node.sweep_command import summary
from torg_protocol.money import format_amount
from torg_protocol.proofs import ProofStatus
from torg_protocol.suspensions import Suspension
from torg_protocol.usage import SignedReceipt


@dataclass(frozen=True, slots=True)
class LeaseLine:
    lease_id: str
    job_id: str
    state: str
    reason: str | None
    earned: int


@dataclass(frozen=True, slots=True)
class RentalLine:
    """A direct rental. `cap`: what the client has authorised; `captured`: what the chain has paid of it."""

    rental_id: str
    state: str
    end: str | None
    cap: int
    captured: int


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """Amounts in base units. `earned_decided`: receipts in hand; `earned_undecided`: countersigned, verdict to come.

    `exposure`: worked for, and paid by no capture on chain yet; at `max_unpaid` the node stops. `orders`: captures that it
    holds and may land itself.
    """

    node: str
    marketplace: str
    agent_pid: int | None
    is_paused: bool
    earned_decided: int
    earned_undecided: int
    exposure: int
    max_unpaid: int
    debts: tuple[VaultDebt, ...]
    orders: int
    leases: tuple[LeaseLine, ...]
    hardware: ProofStatus | None = None  # what the marketplace established by proofs
    out_of_service: Mapping[str, str] = field(default_factory=dict)  # reason by GPU
    resting: tuple[str, ...] = ()  # of those: who is expected back by itself
    rentals: tuple[RentalLine, ...] = ()
    sweep: str | None = None  # in words; None: no plan, and nothing was ever swept
    suspensions: tuple[Suspension, ...] = ()  # why the marketplace gives it no new leases, as it said last

    def as_json(self) -> dict[str, Any]:
        hardware = self.hardware.wire() if self.hardware else None
        return {**asdict(self), "hardware": hardware, "suspensions": [each.wire() for each in self.suspensions]}

    def as_text(self, decimals: int) -> str:
        running = f"running (process {self.agent_pid})" if self.agent_pid else "not running"
        running += ", paused by its owner (torg-node resume)" if self.is_paused else ""
        lines = [
            f"node {self.node}: {running}",
            f"  marketplace  {self.marketplace or 'none: rented directly only'}",
            *(f"  suspended    {line}" for line in standing_lines(self.suspensions)),
            (
                f"  earned       {format_amount(self.earned_decided, decimals)} by receipts,"
                f" {format_amount(self.earned_undecided, decimals)} waiting for a verdict"
            ),
            (
                f"  exposure     {format_amount(self.exposure, decimals)} not paid on chain yet; at"
                f" {format_amount(self.max_unpaid, decimals)} this node stops working"
            ),
        ]
        lines += [
            f"    vault {debt.vault} owes {format_amount(debt.owed, decimals)}"
            if debt.owed
            else f"    vault {debt.vault} was closed before it had paid all: {format_amount(debt.lost, decimals)} are lost"
            for debt in self.debts
        ]
        lines += [f"  hardware     {line}" for line in proof_lines(self.hardware)]
        lines += [
            f"  out of service  {uuid}: {reason}{' (back by itself when it stays cool)' if uuid in self.resting else ''}"
            for uuid, reason in self.out_of_service.items()
        ]
        if self.sweep:
            lines.append(f"  sweep        {self.sweep}")
        if self.orders:
            lines.append(f"  orders       {self.orders} held, landed without the marketplace by: torg-node settle")
        lines += [
            f"  {lease.lease_id}  {lease.state}{f' ({lease.reason})' if lease.reason else ''}  {format_amount(lease.earned, decimals)}"
            for lease in self.leases
        ]
        lines += [
            f"  {rental.rental_id}  {rental.state}{f' ({rental.end})' if rental.end else ''}"
            f"  {format_amount(rental.captured, decimals)} captured of {format_amount(rental.cap, decimals)} authorised"
            for rental in self.rentals
        ]
        return "\n".join(lines)


def _for_time(signed: SignedReceipt) -> int:
    """Without what its client paid for verification, which is not the node's."""
    return signed.receipt.amount - signed.receipt.verification_amount


def read_status(settings: Settings, node: str) -> NodeStatus:
    out_of_service, resting = _out_of_service(settings)
    journal = Journal(settings.journal_path)
    try:
        entries = journal.recent_leases(20)
        decided = sum(_for_time(entry.receipt) for entry in entries if entry.receipt)
        return NodeStatus(
            node=node,
            marketplace=settings.marketplace_url,
            agent_pid=_live_pid(journal.fact("agent_pid")),
            is_paused=journal.is_paused,
            earned_decided=decided,
            earned_undecided=journal.undecided_amount(),
            exposure=exposure(journal),
            max_unpaid=settings.max_unpaid,
            debts=tuple(debt for debt in debts(journal) if debt.owed or debt.lost),
            orders=len(journal.orders()),
            hardware=kept_status(journal),
            out_of_service=out_of_service,
            resting=resting,
            leases=tuple(
                LeaseLine(
                    entry.signed.grant.lease_id,
                    entry.signed.grant.job_id,
                    entry.state,
                    entry.reason,
                    _for_time(entry.receipt) if entry.receipt else journal.countersigned(entry.signed.grant.lease_id),
                )
                for entry in entries
            ),
            rentals=_rentals(settings),
            sweep=summary(settings, journal),
            suspensions=kept_suspensions(journal),
        )
    finally:
        journal.close()


def _out_of_service(settings: Settings) -> tuple[dict[str, str], tuple[str, ...]]:
    ledger = Reservations(settings.host_ledger_path, "", Capacity((), (), 0, 0, 0, 0))
    try:
        return ledger.cordons(), tuple(sorted(ledger.expected_back()))
    finally:
        ledger.close()


def _rentals(settings: Settings) -> tuple[RentalLine, ...]:
    book = RentalBook(settings.journal_path)
    try:
        return tuple(RentalLine(item.id, item.state, item.end, item.cap.cap, item.captured) for item in book.all()[:20])
    finally:
        book.close()


def _live_pid(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        os.kill(int(text), 0)
    except (ProcessLookupError, ValueError):
        return None
    except PermissionError:
        return int(text)
    return int(text)
