"""The owner's rules: when there is peace, and which jobs are not wanted."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from torg_node.owner_rules import OwnerRules, kinds_of, why_not
from torg_protocol.jobspec import JobSpec, load_job_spec

MONDAY = datetime(2026, 3, 2)  # noqa: DTZ001 - the host's own time
HOUR_MS = 3_600_000


def spec(**fields: Any) -> JobSpec:
    return load_job_spec({"version": 1, "command": ["true"], **fields})


def at(day: int, clock: str) -> datetime:
    hour, minute = map(int, clock.split(":"))
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("windows", "now", "until"),
    [
        (["22:00-07:00"], at(0, "21:59"), None),
        (["22:00-07:00"], at(0, "22:00"), at(1, "07:00")),
        (["22:00-07:00"], at(0, "06:59"), at(0, "07:00")),
        (["22:00-07:00"], at(0, "07:00"), None),
        (["sat,sun 09:00-12:00"], at(4, "10:00"), None),
        (["sat,sun 09:00-12:00"], at(5, "10:00"), at(5, "12:00")),
        (["sun 20:00-04:00"], at(7, "03:00"), at(7, "04:00")),  # Monday's small hours are Sunday's window
        (["20:00-22:00", "22:00-23:00"], at(0, "21:00"), at(0, "23:00")),
        (["12:00-24:00"], at(0, "13:00"), at(1, "00:00")),
    ],
)
def test_quiet_hours(windows: list[str], now: datetime, until: datetime | None) -> None:
    assert OwnerRules(quiet_hours=windows).quiet_until(now) == until  # type: ignore[arg-type]  # as a config file writes it


def test_hours_that_never_end_are_quiet_all_the_same() -> None:
    assert OwnerRules(quiet_hours=["00:00-00:00"]).quiet_until(at(3, "15:00")) is not None  # type: ignore[arg-type]


@given(
    window=st.tuples(st.integers(0, 1439), st.integers(0, 1439)),
    minute=st.integers(0, 7 * 1440 - 1),
    length=st.integers(1, 3 * 1440),
)
def test_no_lease_that_is_taken_can_run_into_quiet_hours(window: tuple[int, int], minute: int, length: int) -> None:
    begin, end = (f"{part // 60:02d}:{part % 60:02d}" for part in window)
    rules = OwnerRules(quiet_hours=[f"{begin}-{end}"])  # type: ignore[arg-type]
    now = MONDAY + timedelta(minutes=minute)
    if why_not(rules, spec(), length * 60_000, now) is None:
        assert not any(rules.quiet_until(now + timedelta(minutes=later)) for later in range(length))


def test_kinds_say_what_a_job_asks_for() -> None:
    assert kinds_of(spec()) == {"cpu", "host-python"}
    assert kinds_of(spec(image="a/b:1", resources={"gpus": 1}, ports=[{"port": 1}])) == {"gpu", "image", "service"}


@pytest.mark.parametrize(
    ("rules", "fields", "code"),
    [
        ({"deny": ["service"]}, {"ports": [{"port": 1}]}, "kind_denied"),
        ({"deny": ["service"]}, {}, None),
        ({"allow": ["gpu"]}, {}, "kind_denied"),
        ({"allow": ["cpu"]}, {}, None),
        ({"max_duration": "59m"}, {}, "too_long"),
        ({"max_duration": "1h"}, {}, None),
        ({"quiet_hours": ["22:00-07:00"]}, {}, None),
        ({"quiet_hours": ["09:30-10:00"]}, {}, "quiet_hours"),  # begins before the job must have ended
        ({"quiet_hours": ["08:00-09:30"]}, {}, "quiet_hours"),
    ],
)
def test_which_leases_are_not_wanted(rules: dict[str, Any], fields: dict[str, Any], code: str | None) -> None:
    verdict = why_not(OwnerRules(**rules), spec(**fields), HOUR_MS, at(0, "09:00"))
    assert (verdict and verdict[0]) == code


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"quiet_hours": ["22-7"]}, "write"),
        ({"quiet_hours": ["25:00-07:00"]}, "00:00 to 24:00"),
        ({"quiet_hours": ["fry 10:00-11:00"]}, "days are mon"),
        ({"allow": ["gpu"], "deny": ["gpu"]}, "both allowed and denied"),
        ({"deny": ["gaming"]}, "gpu"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(rules: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        OwnerRules(**rules)
