"""JSON columns as text and back: by pydantic's own writer and reader, which take a third to a tenth of the time of Python's.

What is no JSON is refused, as by Python's: pydantic's writer makes text of dates, bytes, sets and more, which nobody could read back as what it was.

Half of a surrogate pair, which they refuse, may stand in what an operating system or another program said; Python writes it as an escape. No
client and no node can send one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from pydantic_core import from_json, to_json

_PLAIN = frozenset({str, int, float, bool, type(None)})


def to_text(value: object) -> str:
    """Raises TypeError for what is no JSON."""
    if not _are_json((value,)):
        return json.dumps(value)
    try:
        return to_json(value).decode()
    except ValueError:
        return json.dumps(value)


def _are_json(values: Iterable[Any]) -> bool:
    """Also False of rarities, which Python's writer then decides about."""
    if _PLAIN.issuperset(map(type, values)):
        return True
    for value in values:
        kind = type(value)
        if kind in _PLAIN:
            continue
        if kind is dict:
            if not (_PLAIN.issuperset(map(type, value)) and _are_json(value.values())):
                return False
        elif kind is list or kind is tuple:
            if not _are_json(value):
                return False
        elif not isinstance(value, StrEnum):
            return False
    return True


def from_text(text: str) -> Any:
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)
