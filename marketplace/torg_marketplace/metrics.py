"""Prometheus metrics on loopback, read when they are asked for: what each stage costs, how many nodes are connected here."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from torg_marketplace.stages import STAGES

LOOPBACK = "127.0.0.1"
_NANO = 1e-9


def serve_metrics(
    port: int, connected_nodes: Callable[[], int], fee_payer_lamports: Callable[[], int | None]
) -> tuple[int, Callable[[], None]]:
    """The port that it listens on (`port`, or a free one for 0), and what stops it. Raises OSError when the port is taken."""
    registry = CollectorRegistry()
    registry.register(MarketCollector(connected_nodes, fee_payer_lamports))
    ProcessCollector(registry=registry)
    server, thread = start_http_server(port, addr=LOOPBACK, registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return int(server.server_port), stop


class MarketCollector(Collector):
    def __init__(self, connected_nodes: Callable[[], int], fee_payer_lamports: Callable[[], int | None]) -> None:
        self._connected_nodes = connected_nodes
        self._fee_payer_lamports = fee_payer_lamports

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("torg_connected_nodes", "Nodes with a channel to this process", self._connected_nodes())
        if (lamports := self._fee_payer_lamports()) is not None:  # only the process that watches it knows
            yield GaugeMetricFamily("torg_fee_payer_lamports", "What the key that pays for captures holds", lamports)
        calls = CounterMetricFamily("torg_stage_calls", "Calls of a stage", labels=("stage",))
        failed = CounterMetricFamily("torg_stage_failures", "Calls that raised", labels=("stage",))
        processor = CounterMetricFamily("torg_stage_processor_seconds", "Processor time", labels=("stage",))
        elapsed = CounterMetricFamily("torg_stage_elapsed_seconds", "Time from call to answer", labels=("stage",))
        for stage, spent in list(STAGES.items()):  # a copy: the event loop's thread may add a stage meanwhile
            calls.add_metric([stage], spent.calls)
            failed.add_metric([stage], spent.failed)
            processor.add_metric([stage], spent.processor_ns * _NANO)
            elapsed.add_metric([stage], spent.elapsed_ns * _NANO)
        yield from (calls, failed, processor, elapsed)

    def describe(self) -> Iterator[Metric]:
        return iter(())
