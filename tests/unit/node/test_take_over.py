"""What an agent does first, on a host where the one before it, or its journal, is gone; and what it says of GPUs that are too hot."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from torg_node.agent import Agent
from torg_node.allocation import Capacity, Claim, NoRoom
from torg_node.hardware.sensors import Fitness
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


async def test_a_gpu_that_gets_too_hot_is_told_at_once_and_so_is_its_way_back(tmp_path: Path) -> None:
    """The next heartbeat would come by itself within ten seconds: long enough to be given a lease for that GPU."""
    two = Capacity((*HAS.gpus, GpuInfo(uuid="g1", model="SIMULATED", vram_bytes=1)), (), 2000, 10, 10, slots=1)
    ledger = Reservations(tmp_path / "host.sqlite", "node-a", two)
    looks = iter([Fitness(hot={"g1": "slows itself down by heat"}), Fitness(), Fitness(back=frozenset({"g1"}))])
    heard: list[tuple[str, ...]] = []

    class Stopped(Exception):
        pass

    def look(resting: frozenset[str]) -> Fitness:
        if wake.is_set():
            heard.append(agent._gpus_out)
            wake.clear()
        if (found := next(looks, None)) is None:
            raise Stopped
        return found

    wake = asyncio.Event()
    agent = SimpleNamespace(
        _node=SimpleNamespace(reservations=ledger),
        _settings=SimpleNamespace(heat_rest_after_s=0),
        _sensors=SimpleNamespace(look=look),
        _heartbeats=wake,
        _gpus_out=(),
    )
    with pytest.raises(Stopped):
        await Agent._watch_gpus(cast("Agent", agent))
    ledger.close()

    assert heard == [("g1",), ()]
