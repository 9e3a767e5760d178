"""What an agent does first, on a host where the one before it, or its journal, is gone."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from torg_node.agent import Agent
from torg_node.allocation import Capacity, Claim, NoRoom
from torg_node.reservation import Reservations
from torg_protocol.ids import LeaseId
from torg_protocol.offers import GpuInfo

HAS = Capacity((GpuInfo(uuid="g0", model="SIMULATED", vram_bytes=1),), (), 2000, 10, 10, slots=1)
CLAIM = Claim("anna", 1, 500, 1, 1)


async def test_a_gpu_is_free_for_another_node_only_when_the_container_that_used_it_is_gone(tmp_path: Path) -> None:
    """The journal was lost, so nothing knows the lease whose container still runs."""
    own, other = (Reservations(tmp_path / "host.sqlite", node, HAS) for node in ("node-a", "node-b"))
    own.reserve(LeaseId("lease_lost"), CLAIM)
    got_meanwhile = []

    async def reap(keep: frozenset[str]) -> tuple[str, ...]:
        assert keep == frozenset()
        with contextlib.suppress(NoRoom):
            got_meanwhile.append(other.reserve(LeaseId("lease_new"), CLAIM))
        return ("lease-lost",)

    agent = SimpleNamespace(
        _journal=SimpleNamespace(open_leases=list),
        _executor=SimpleNamespace(reap=reap),
        _node=SimpleNamespace(reservations=own),
        _settings=SimpleNamespace(data=tmp_path),
        _containers_of=frozenset,
        rental=None,
    )
    await Agent._take_over(cast("Agent", agent))

    assert got_meanwhile == []
    assert other.reserve(LeaseId("lease_new"), CLAIM).gpu_uuids == ("g0",)
    own.close()
    other.close()
