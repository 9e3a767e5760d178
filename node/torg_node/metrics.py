"""Prometheus metrics on loopback. Everything is read from journal and ledger when it is asked for: between two looks they cost nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from torg_node.allocation import Capacity
from torg_node.journal import Journal
from torg_node.money import exposure
from torg_node.reservation import Reservations
from torg_node.settings import Settings

LOOPBACK = "127.0.0.1"


def serve_metrics(
    settings: Settings, node: str, capacity: Capacity, is_connected: Callable[[], bool], port: int
) -> tuple[int, Callable[[], None]]:
    """The port that it listens on (`port`, or a free one for 0), and what stops it. Raises OSError when the port is taken."""
    registry = CollectorRegistry()
    registry.register(NodeCollector(settings, node, capacity, is_connected))
    server, thread = start_http_server(port, addr=LOOPBACK, registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return int(server.server_port), stop


class NodeCollector(Collector):
    """Runs in the server's threads, so it opens the files itself."""

    def __init__(self, settings: Settings, node: str, capacity: Capacity, is_connected: Callable[[], bool]) -> None:
        self._settings, self._node, self._capacity, self._is_connected = settings, node, capacity, is_connected

    def collect(self) -> Iterator[Metric]:
        yield _gauge("connected", "1 while the marketplace is connected", {(): float(self._is_connected())})
        journal = Journal(self._settings.journal_path)
        try:
            yield from _of_journal(journal)
        finally:
            journal.close()
        ledger = Reservations(self._settings.host_ledger_path, self._node, self._capacity)
        try:
            yield from _of_ledger(ledger)
        finally:
            ledger.close()

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not open the files."""
        return iter(())


def _of_journal(journal: Journal) -> Iterator[Metric]:
    states = Counter((str(entry.state),) for entry in journal.open_leases())
    yield _gauge("leases", "Leases that need this host, by state", dict(states), ("state",))
    yield _gauge(
        "undecided_base_units", "Countersigned work that waits for a verdict", {(): journal.undecided_amount()}
    )
    yield _gauge("exposure_base_units", "Work done that is not paid on chain", {(): exposure(journal)})
    yield _gauge(
        "unacknowledged_events", "Said to the marketplace and not yet heard", {(): len(journal.unacknowledged())}
    )


def _of_ledger(ledger: Reservations) -> Iterator[Metric]:
    claims = [item.claim for item in ledger.held()]
    capacity, cordons = ledger.capacity, ledger.cordons()
    gpus = {uuid for item in ledger.held() for uuid in item.assignment.gpu_uuids}
    reserved: dict[tuple[str], float] = {
        ("gpus",): len(gpus),
        ("cpu_millis",): sum(claim.cpu_millis for claim in claims),
        ("memory_bytes",): sum(claim.memory_bytes for claim in claims),
        ("disk_bytes",): sum(claim.disk_bytes for claim in claims),
    }
    total: dict[tuple[str], float] = {
        ("gpus",): len(capacity.gpus),
        ("cpu_millis",): capacity.cpu_millis,
        ("memory_bytes",): capacity.memory_bytes,
        ("disk_bytes",): capacity.disk_bytes,
    }
    yield _gauge("reserved", "Held by leases of all nodes of this host", reserved, ("resource",))
    yield _gauge("capacity", "What this node may hand out", total, ("resource",))
    out = dict.fromkeys(cordons.items(), 1.0)
    yield _gauge("gpu_out_of_service", "GPUs that take no work, with the reason", out, ("gpu", "reason"))


def _gauge(name: str, text: str, values: Mapping[Any, float], labels: tuple[str, ...] = ()) -> Metric:
    """`values`: by the labels' values, in order."""
    family = GaugeMetricFamily(f"torg_node_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
