"""What this node has earned, from its own journal: a row per countersigned usage record, statements by month, and an export.

`net` is the node's share, the marketplace's fee taken off record by record with the fee of today. A record is `undecided` until its lease has a
receipt, `earned` after that, and `void` when the lease's receipt does not hold it (work that was not accepted). A refund that this node bears is a
row of its own, negative, with its cause. What captures have paid is known per vault only.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Literal

from torg_node.journal import Journal
from torg_node.money import FEE_FACT
from torg_protocol.money import format_amount
from torg_protocol.refunds import Refund
from torg_protocol.usage import SignedUsage


@dataclass(frozen=True, slots=True)
class EarningRow:
    """Amounts in base units. `at` is the end of the interval, in UTC."""

    at: str
    lease_id: str
    job_id: str
    vault: str
    useful_s: float
    gross: int
    fee: int
    net: int
    state: Literal["earned", "undecided", "void", "refunded"]
    because: str = ""  # of a refund: the code of its cause, and a note


@dataclass(frozen=True, slots=True)
class MonthRow:
    month: str  # 2026-03
    leases: int
    useful_hours: float
    gross: int
    fee: int
    net: int
    undecided: int  # of net
    refunded: int  # taken off net


def earning_rows(journal: Journal) -> list[EarningRow]:
    """Oldest first."""
    fee_basis_points = int(journal.fact(FEE_FACT) or 0)
    rows = []
    for signed, receipt_json in journal.usage_with_receipts():
        rows.append(_row(signed, _state(signed, receipt_json), fee_basis_points))
    rows += [_refund_row(signed.refund) for signed in journal.refunds()]
    return sorted(rows, key=lambda row: (row.at, row.lease_id))


def by_month(rows: Iterable[EarningRow]) -> list[MonthRow]:
    """Void rows count nowhere."""
    months: dict[str, list[EarningRow]] = {}
    for row in rows:
        if row.state != "void":
            months.setdefault(row.at[:7], []).append(row)
    return [
        MonthRow(
            month,
            leases=len({row.lease_id for row in found if row.state != "refunded"}),
            useful_hours=round(sum(row.useful_s for row in found) / 3600, 3),
            gross=sum(row.gross for row in found),
            fee=sum(row.fee for row in found),
            net=sum(row.net for row in found),
            undecided=sum(row.net for row in found if row.state == "undecided"),
            refunded=-sum(row.net for row in found if row.state == "refunded"),
        )
        for month, found in sorted(months.items())
    ]


def net_since(rows: Iterable[EarningRow], since: datetime) -> int:
    begin = since.astimezone(UTC).isoformat(timespec="seconds")
    return sum(row.net for row in rows if row.state != "void" and row.at >= begin)


def as_csv(rows: Sequence[EarningRow | MonthRow], decimals: int, kind: type[EarningRow | MonthRow] = EarningRow) -> str:
    """Amounts in tokens, as accountants want them: a decimal point, no unit. `kind`: of the rows, whose names stand above them, also where
    there are none yet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(kind))
    for row in rows:
        writer.writerow(_in_tokens(asdict(row), decimals).values())
    return text.getvalue()


def as_json(rows: Sequence[EarningRow | MonthRow], decimals: int) -> str:
    """The same, amounts as decimal strings."""
    return json.dumps([_in_tokens(asdict(row), decimals) for row in rows])


def as_table(months: Sequence[MonthRow], decimals: int) -> str:
    if not months:
        return "nothing earned yet"
    lines = [f"{'month':<9}{'leases':>8}{'hours':>10}{'gross':>16}{'fee':>14}{'net':>16}{'refunded':>14}  undecided"]
    for row in months:
        amounts = [
            format_amount(amount, decimals) for amount in (row.gross, row.fee, row.net, row.refunded, row.undecided)
        ]
        lines.append(
            f"{row.month:<9}{row.leases:>8}{row.useful_hours:>10.2f}{amounts[0]:>16}{amounts[1]:>14}{amounts[2]:>16}{amounts[3]:>14}  {amounts[4]}"
        )
    return "\n".join(lines)


def _row(signed: SignedUsage, state: Literal["earned", "undecided", "void"], fee_basis_points: int) -> EarningRow:
    record = signed.record
    fee = record.amount * fee_basis_points // 10_000
    return EarningRow(
        at=datetime.fromtimestamp(record.end_ms / 1000, tz=UTC).isoformat(timespec="seconds"),
        lease_id=record.lease_id,
        job_id=record.job_id,
        vault=record.vault,
        useful_s=record.useful_ms / 1000,
        gross=record.amount,
        fee=fee,
        net=record.amount - fee,
        state=state,
    )


def _refund_row(refund: Refund) -> EarningRow:
    return EarningRow(
        at=datetime.fromtimestamp(refund.at_ms / 1000, tz=UTC).isoformat(timespec="seconds"),
        lease_id=refund.lease_id,
        job_id=refund.job_id,
        vault=refund.vault,
        useful_s=0.0,
        gross=0,
        fee=0,
        net=-refund.from_node,
        state="refunded",
        because=f"{refund.cause}: {refund.note}" if refund.note else str(refund.cause),
    )


def _state(signed: SignedUsage, receipt_json: str | None) -> Literal["earned", "undecided", "void"]:
    """The journal keeps an empty receipt for a lease that was given to another node."""
    if receipt_json is None:
        return "undecided"
    if not receipt_json:
        return "void"
    accepted = {item["record"]["sequence"] for item in json.loads(receipt_json)["usage"]}
    return "earned" if signed.record.sequence in accepted else "void"


def _in_tokens(fields: dict[str, object], decimals: int) -> dict[str, object]:
    amounts = {"gross", "fee", "net", "undecided", "refunded"}
    return {
        name: format_amount(value, decimals) if name in amounts and isinstance(value, int) else value
        for name, value in fields.items()
    }
