"""What an export says: every unit once, the fee off record by record, what was not accepted nowhere."""

from __future__ import annotations

import csv
import io
import json

from torg_node.earnings import EarningRow, MonthRow, as_csv, as_json, as_table, by_month


def row(at: str, net: int, state: str = "earned", lease: str = "lease_1") -> EarningRow:
    return EarningRow(at, lease, "job_1", "vault", 1800.0, net + 2, 2, net, state)  # type: ignore[arg-type]


ROWS = [
    row("2026-02-28T23:59:59+00:00", 1_000_000),
    row("2026-03-01T00:00:00+00:00", 2_500_000),
    row("2026-03-02T00:00:00+00:00", 500_000, "undecided", "lease_2"),
    row("2026-03-03T00:00:00+00:00", 9_000_000, "void", "lease_3"),
]


def test_months_hold_what_counts_and_end_at_midnight_utc() -> None:
    february, march = by_month(ROWS)
    assert (february.month, february.net, february.leases) == ("2026-02", 1_000_000, 1)
    assert (march.net, march.undecided, march.leases, march.useful_hours) == (3_000_000, 500_000, 2, 1.0)
    assert march.gross == march.net + march.fee


def test_exports_are_in_tokens_and_hold_every_record() -> None:
    table = list(csv.DictReader(io.StringIO(as_csv(ROWS, 6))))
    assert [line["net"] for line in table] == ["1", "2.5", "0.5", "9"]
    assert [line["state"] for line in table] == ["earned", "earned", "undecided", "void"]
    assert json.loads(as_json(by_month(ROWS), 6))[1]["undecided"] == "0.5"
    assert as_csv([], 6) == as_csv(ROWS, 6).splitlines(keepends=True)[0], (
        "programs that read it know its columns from the first day"
    )
    assert as_csv([], 6, MonthRow).startswith("month,")
    assert as_table([], 6) == "nothing earned yet"
    assert "2026-03" in as_table(by_month(ROWS), 6)
