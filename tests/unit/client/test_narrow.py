"""Tables of a terminal of 80 columns: no line is wider, nothing that matters is lost, and what is left out is said."""

from __future__ import annotations

import pytest

from tests.support.answers import job_view
from torg.cli.jobs import job_text
from torg.cli.present import Coin, noted_table
from torg_protocol.api import JobView, LeaseView, TaskView
from torg_protocol.ids import LeaseId, NodeId
from torg_protocol.states import EndReason, JobState, LeaseState
from torg_protocol.tasks import TaskState

MONEY = Coin(6, "tUSD")
JOB = "job_01m8cxz8dk000cd566ynh67881"
COST = ("job", "name", "attempts", "billed", "not billed", "cost", "given back")


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def shown_job() -> JobView:
    task = TaskView(
        task="a-task-with-a-long-name-of-its-own-and-more",
        state=TaskState.FAILED,
        run=3,
        exit_code=137,
        started_at_ms=1,
        ended_at_ms=5_000_000,
        detail="killed: it wanted more memory than the 512 MiB of its task, three times in a row",
    )
    lease = LeaseView(
        lease_id=LeaseId("lease_1"),
        attempt=12,
        node=NodeId("359DyM67768KYmRVYfJqMuFMJLVvgNy1fm1dAaq6jRVc"),
        state=LeaseState.INCONCLUSIVE,
        reason=EndReason.HOST_PROTECTION,
        exit_code=137,
        granted_at_ms=0,
        billed_ms=86_399_000,
        unbilled_ms=86_399_000,
        price_per_gpu_hour=1,
        amount=123_456_789,
        resumed_from="step-000012000",
        tasks=(task,),
    )
    return job_view(JOB, JobState.LEASED, leases=(lease,), name="a-name")


def test_one_job_fits_and_says_what_is_left_out() -> None:
    narrow, whole = job_text(shown_job(), MONEY, 80), job_text(shown_job(), MONEY, None)
    assert widest(narrow) <= 80 < widest(whole)
    assert "host_protection" in narrow
    assert "123.456789 tUSD" in narrow
    assert "killed: it wanted more memory" in narrow
    assert f"not shown in 80 columns: resumed from, not billed, billed\nall of it:  torg show {JOB} | cat" in narrow
    assert "not shown" not in whole


@pytest.mark.parametrize("width", [60, 80, 100, None])
def test_what_was_given_back_stands_below_its_job(width: int | None) -> None:
    rows = [
        (JOB, "a-name-of-average-length", "2", "23 min 5 s", "8 min", "0.300041 tUSD", "0.1 tUSD (marketplace_fault)"),
        (JOB, "other", "1", "5 s", "0 ms", "≤ 12.000041 tUSD", ""),
    ]
    text = noted_table(COST, rows, width, ("not billed", "attempts", "billed"), "name")
    assert width is None or widest(text) <= width
    assert "0.1 tUSD (marketplace_fault)" in text
    assert "0.300041 tUSD" in text
    assert "≤ 12.000041 tUSD" in text
