"""Marketplace and node, each a process of its own, send what they did for a job to a collector: it is one trace."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.small_market import SmallMarket, run, running_market
from tests.support.waiting import until
from torg_host.tracing import ids_of
from torg_protocol.states import JobState

pytestmark = [pytest.mark.sandbox, pytest.mark.root, pytest.mark.timeout(900)]


class Collector:
    """Spans by the service that sent them."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[
            tuple[str, str, str, str, str]
        ] = []  # service, name, trace, the job and lease that it is about

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            (service,) = [
                item.value.string_value for item in resource.resource.attributes if item.key == "service.name"
            ]
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                told = {item.key: item.value.string_value for item in span.attributes}
                about = told.get("torg.job_id", ""), told.get("torg.lease_id", "")
                self.spans.append((service, span.name, span.trace_id.hex(), *about))

    def names(self, service: str) -> list[str]:
        return [name for sender, name, *_ in self.spans if sender == service]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.take(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield collector
        server.shutdown()
        thread.join()


async def test_marketplace_and_node_write_one_trace(tmp_path: Path, collector: Collector) -> None:
    market = SmallMarket(tmp_path, options=("--otlp-endpoint", collector.url))
    async with running_market(tmp_path, market=market), market.client() as client:
        assert market.node is not None
        await market.node.stop()
        config = tmp_path / "node" / "config.toml"
        config.write_text(f'otlp_endpoint = "{collector.url}"\n{config.read_text()}')
        await market.start_node()
        job = await run(client, ["python", "-c", "print('traced')"])
        assert job.state is JobState.SUCCEEDED
        await until(lambda: "settle" in collector.names("torg-marketplace"), within_s=150)
        await market.node.stop()  # what still waits is sent
        assert market.marketplace is not None
        await market.marketplace.stop()
    trace = ids_of(job.job_id)[0].to_bytes(16, "big").hex()
    assert {(trace, job.job_id)} == {span[2:4] for span in collector.spans}
    stages = collector.names("torg-marketplace")
    assert stages == ["submit", "match", "grant", "prepare", "run", "report", "verify", "settle"]
    of_leases = {lease for _, name, _, _, lease in collector.spans if name != "submit"}
    assert of_leases == {lease.lease_id for lease in job.leases}
    steps = collector.names("torg-node")
    assert [steps[0], steps[-1]] == ["node: check the grant", "node: report"]
    assert {"node: start the container", "node: watch"} <= set(steps)
