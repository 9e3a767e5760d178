"""A grant that comes while an earlier container is still on its way out waits for its room; where nobody leaves it is declined at once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from torg_node.allocation import Capacity, Claim
from torg_node.lease import Declined, Lease
from torg_node.reservation import Reservations
from torg_node.steps import check_grant

CLAIM = Claim(client="c", gpus=0, cpu_millis=1000, memory_bytes=1 << 20, disk_bytes=1 << 20)


class Journal:
    """Of one other lease, which has said what it is told. `on_look`: called each time somebody asks."""

    def __init__(self, said: str | None, on_look: Any = lambda: None) -> None:
        self._said, self._on_look = said, on_look

    def open_leases(self) -> list[Any]:
        self._on_look()
        return [SimpleNamespace(signed=SimpleNamespace(grant=SimpleNamespace(lease_id="earlier")))]

    def has_said(self, lease_id: str, kinds: list[str]) -> bool:
        return lease_id == "earlier" and self._said in kinds


@pytest.fixture
def reservations(tmp_path: Path) -> Reservations:
    capacity = Capacity(gpus=(), cpus=(), slots=1, cpu_millis=4000, memory_bytes=1 << 30, disk_bytes=1 << 30)
    reservations = Reservations(tmp_path / "reservations.sqlite", "node", capacity)
    reservations.reserve(cast("Any", "earlier"), CLAIM)
    return reservations


def lease(reservations: Reservations, journal: Journal) -> Lease:
    node = SimpleNamespace(reservations=reservations, journal=journal)
    return cast("Lease", SimpleNamespace(id="later", claim=CLAIM, node=node))


async def test_it_takes_the_room_of_a_lease_that_has_reported_once_that_is_gone(reservations: Reservations) -> None:
    looks = []

    def leave_at_the_second_look() -> None:
        looks.append(1)
        if len(looks) == 2:
            reservations.release(cast("Any", "earlier"))

    await check_grant._reserve(lease(reservations, Journal("reported", leave_at_the_second_look)))

    assert [held.lease_id for held in reservations.held()] == ["later"]


async def test_it_is_declined_at_once_where_the_other_lease_still_works(reservations: Reservations) -> None:
    with pytest.raises(Declined, match="slots are taken"):
        await check_grant._reserve(lease(reservations, Journal("started")))


async def test_it_does_not_wait_for_ever(reservations: Reservations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_grant, "_LEAVING_WITHIN_S", 0.2)

    with pytest.raises(Declined, match="slots are taken"):
        await check_grant._reserve(lease(reservations, Journal("reported")))
