"""What JSON columns take: what Python's own writer takes, and nothing that only pydantic's does."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from torg_marketplace.storage.json_text import from_text, to_text
from torg_protocol.states import Liveness, NodeState


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {"a": [1, {"b": (value,)}]}], ids=["bare", "deep"])
@pytest.mark.parametrize(
    "value",
    [b"bytes", date(2026, 1, 2), datetime(2026, 1, 2, tzinfo=UTC), timedelta(1), {1}, Decimal(1), Path("/"), 1j],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_json_is_refused(value: object, wrap: Callable[[object], object]) -> None:
    with pytest.raises(TypeError):
        to_text(wrap(value))


def test_keys_that_are_no_json_are_refused() -> None:
    with pytest.raises(TypeError):
        to_text({"a": {date(2026, 1, 2): 1}})


def test_what_python_writes_is_written() -> None:
    ordered = OrderedDict(a=[Liveness.ALIVE])
    fine = {"state": NodeState.ACTIVE, "many": ({}, [], [[1.5, None]], True), "ordered": ordered, "large": 2**70}
    assert from_text(to_text(fine)) == json.loads(json.dumps(fine))
