"""What the owner wants of this node beside its price: hours of peace, which kinds of jobs, how long. Pure: values in, a verdict out.

Written in config.toml as a table:

    [rules]
    quiet_hours = ["22:00-07:00", "sat,sun 12:00-14:00"]   # this host's own time
    only_when_idle = true
    deny = ["network"]
    max_duration = "6h"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from torg_protocol.jobspec import JobSpec
from torg_protocol.quantities import DurationMs

JobKind = Literal["cpu", "gpu", "host-python", "image", "network", "service", "tasks"]
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(r"(?:([a-z,]+)\s+)?(\d\d):(\d\d)-(\d\d):(\d\d)")
_MINUTES_OF_DAY = 24 * 60
_FAR_AHEAD = timedelta(days=8)  # every window of a week begins within


@dataclass(frozen=True, slots=True)
class Window:
    """Minutes of the day on these days (0 is Monday). One that ends at or before its beginning ends on the next day."""

    days: frozenset[int]
    from_minute: int
    to_minute: int

    @property
    def length(self) -> timedelta:
        return timedelta(minutes=(self.to_minute - self.from_minute - 1) % _MINUTES_OF_DAY + 1)

    def __str__(self) -> str:
        days = "" if len(self.days) == len(_DAYS) else ",".join(_DAYS[day] for day in sorted(self.days)) + " "
        return f"{days}{_clock(self.from_minute)}-{_clock(self.to_minute)}"


def parse_window(text: object) -> object:
    if not isinstance(text, str):
        return text
    match = _WINDOW.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f'"{text}" is not a span of time; write "22:00-07:00" or "sat,sun 09:00-12:00"')
    names, *numbers = match.groups()
    from_hour, from_minute, to_hour, to_minute = map(int, numbers)
    unknown = sorted(set(names.split(",")) - set(_DAYS)) if names else []
    if unknown or from_hour > 23 or from_minute > 59 or to_minute > 59 or (to_hour, to_minute) > (24, 0):
        raise ValueError(f'"{text}": days are {", ".join(_DAYS)}, times are 00:00 to 24:00')
    days = frozenset(_DAYS.index(name) for name in names.split(",")) if names else frozenset(range(len(_DAYS)))
    return Window(days, from_hour * 60 + from_minute, (to_hour * 60 + to_minute) % _MINUTES_OF_DAY)


WindowText = Annotated[Window, BeforeValidator(parse_window), PlainSerializer(str)]


class OwnerRules(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    quiet_hours: tuple[WindowText, ...] = Field(default=(), max_length=64)
    only_when_idle: bool = False
    allow: tuple[JobKind, ...] = ()  # empty: every kind that is not denied
    deny: tuple[JobKind, ...] = ()
    max_duration: DurationMs | None = Field(default=None, ge=1_000)

    @model_validator(mode="after")
    def _apart(self) -> OwnerRules:
        if both := sorted(set(self.allow) & set(self.deny)):
            raise ValueError(f"{', '.join(both)}: both allowed and denied")
        return self

    def quiet_until(self, now: datetime) -> datetime | None:
        """The end of the quiet hours in which `now` lies; None: it lies in none. Windows that touch are one."""
        end: datetime | None = None
        moment = now
        while (found := _end_of_window_at(self.quiet_hours, moment)) is not None and found - now < _FAR_AHEAD:
            end = moment = found
        return end

    def next_quiet(self, now: datetime) -> datetime | None:
        """When the next quiet hours begin; None when there are none."""
        begins = [begin for window in self.quiet_hours for begin in _begins(window, now) if begin > now]
        return min(begins, default=None)


def kinds_of(spec: JobSpec) -> frozenset[JobKind]:
    found: set[JobKind] = {"gpu" if spec.resources.gpus else "cpu"}
    found.add("host-python" if spec.image == "host-python" else "image")
    if spec.network != "none":
        found.add("network")
    if spec.declared_ports:
        found.add("service")
    if spec.tasks:
        found.add("tasks")
    return frozenset(found)


def why_not(rules: OwnerRules, spec: JobSpec, max_duration_ms: int, now: datetime) -> tuple[str, str] | None:
    """(code, reason) why the owner does not want this lease now; None: welcome."""
    kinds = kinds_of(spec)
    if denied := sorted(kinds & set(rules.deny)):
        return "kind_denied", f"its owner takes no jobs of kind {', '.join(denied)}"
    if rules.allow and not kinds & set(rules.allow):
        return "kind_denied", f"its owner takes only jobs of kind {', '.join(rules.allow)}"
    if rules.max_duration is not None and max_duration_ms > rules.max_duration:
        return "too_long", f"its owner takes jobs of at most {rules.max_duration // 1000} s"
    if (until := rules.quiet_until(now)) is not None:
        return "quiet_hours", f"quiet hours until {until:%a %H:%M}"
    begins = rules.next_quiet(now)
    if begins is not None and now + timedelta(milliseconds=max_duration_ms) > begins:
        return "quiet_hours", f"it could last into the quiet hours, which begin on {begins:%a %H:%M}"
    return None


def _end_of_window_at(windows: Sequence[Window], moment: datetime) -> datetime | None:
    ends = [
        begin + window.length
        for window in windows
        for begin in _begins(window, moment)
        if begin <= moment < begin + window.length
    ]
    return max(ends, default=None)


def _begins(window: Window, around: datetime) -> list[datetime]:
    """From the day before to eight days ahead."""
    midnight = around.replace(hour=0, minute=0, second=0, microsecond=0)
    days = (midnight + timedelta(days=offset) for offset in range(-1, _FAR_AHEAD.days + 1))
    return [day + timedelta(minutes=window.from_minute) for day in days if day.weekday() in window.days]


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
