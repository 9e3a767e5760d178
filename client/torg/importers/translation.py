"""What a translation is: a job file of ours, what it could not take over, and where each part of it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Dropped:
    """`changes_meaning`: without it the job does something else than its author wrote; otherwise it is a remark."""

    path: str  # in their document, as in problems: "ops.0.args.expose"
    value: object
    why: str
    changes_meaning: bool = True

    def wire(self) -> dict[str, Any]:
        return {"path": self.path, "value": self.value, "why": self.why, "changes_meaning": self.changes_meaning}


@dataclass(frozen=True, slots=True)
class Translation:
    format: str  # "nosana", "compose", "kubernetes", "akash", "dstack"
    title: str  # for people: "Nosana job definition"
    spec: dict[str, Any]  # what a job.yaml of ours would hold
    dropped: tuple[Dropped, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)  # our field -> theirs

    @property
    def lost(self) -> tuple[Dropped, ...]:
        """What changes the job's meaning."""
        return tuple(item for item in self.dropped if item.changes_meaning)

    def origin(self, name: str) -> str:
        """Their name for a field of ours: that of its nearest part that has one, else our own name."""
        rest, inner = name, ""
        while rest:
            if rest in self.origins:
                return self.origins[rest] + inner
            rest, _, last = rest.rpartition(".")
            inner = f".{last}{inner}" if last else inner
        return name


@dataclass(slots=True)
class Drops:
    """Collects while a format's module walks through its document."""

    items: list[Dropped] = field(default_factory=list)

    def lose(self, path: str, value: object, why: str) -> None:
        """Something the job's author asked for and will not get."""
        self.items.append(Dropped(path, value, why))

    def remark(self, path: str, value: object, why: str) -> None:
        self.items.append(Dropped(path, value, why, changes_meaning=False))


def name_of(*candidates: object) -> str:
    """The first candidate that is not empty, made to fit what a job's name may be."""
    import re

    for candidate in candidates:
        fitting = re.sub(r"[^a-z0-9._-]+", "-", str(candidate or "").lower()).strip("-._")[:63]
        if fitting:
            return fitting
    return "job"
