"""What a transaction has read ahead, or counts, and that is no row: each kind a `Note`, kept by what it is of.

_OPEN = Note[int]()                # of an account
unit.noted[_OPEN, account] += 1
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Note(Generic[T]):
    """A kind of note; whoever may read it imports it."""


class Notes:
    def __init__(self) -> None:
        self._kept: dict[tuple[Note[Any], str], Any] = {}

    def __contains__(self, key: tuple[Note[Any], str]) -> bool:
        return key in self._kept

    def __getitem__(self, key: tuple[Note[T], str]) -> T:
        found: T = self._kept[key]
        return found

    def get(self, key: tuple[Note[T], str], default: T) -> T:
        found: T = self._kept.get(key, default)
        return found

    def __setitem__(self, key: tuple[Note[T], str], value: T) -> None:
        self._kept[key] = value

    def copied(self) -> Notes:
        """As they are now, whatever is added to their lists afterwards."""
        copy = Notes()
        copy._kept = {key: list(value) if isinstance(value, list) else value for key, value in self._kept.items()}
        return copy
