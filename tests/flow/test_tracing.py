"""One trace per job over all its stages, told after the commits that made them true; log lines name what they are about."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.actors import TUSD, join, make_client, spec
from tests.support.market import World
from torg_host import tracing
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.settle import advance_settlements, settle_due
from torg_marketplace.logs import JsonLines, TextLines, about


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    stop = tracing.use(provider)
    yield exporter
    stop()


async def test_a_jobs_stages_are_one_trace_from_submit_to_settle(world: World, spans: InMemorySpanExporter) -> None:
    node, client = await join(world, price=TUSD), await make_client(world)
    jobs = []
    for _ in range(2):
        job = await client.submit(spec(limits={"max_duration": "1h"}))
        jobs.append(job.job_id)
        world.advance(seconds=5)
        await match_pending(world.market)
        await node.accept()
        world.advance(seconds=20)
        await node.start()
        world.advance(seconds=600)
        await node.finish()
        node.read()
    await settle_due(world.market, hurry=True)
    await advance_settlements(world.market)
    await advance_settlements(world.market)
    node.read()
    for job_id in jobs:
        trace_id, root_id = tracing.ids_of(job_id)
        mine = [span for span in spans.get_finished_spans() if span.attributes["torg.job_id"] == job_id]  # type: ignore[index]
        names = [span.name for span in mine]
        assert names == ["submit", "match", "grant", "prepare", "run", "report", "verify", "settle"]
        assert {span.context.trace_id for span in mine} == {trace_id}
        assert {span.parent.span_id for span in mine if span.parent} == {root_id}
        lasted = {span.name: ((span.end_time or 0) - (span.start_time or 0)) / 1e9 for span in mine}
        assert (lasted["match"], lasted["prepare"], lasted["run"]) == (5, 20, 600)
        leases = {(span.attributes or {}).get("torg.lease_id") for span in mine if span.name != "submit"}
        assert len(leases) == 1
    assert tracing.ids_of(jobs[0])[0] != tracing.ids_of(jobs[1])[0]


async def test_what_was_rolled_back_is_not_told(world: World, spans: InMemorySpanExporter) -> None:
    with contextlib.suppress(RuntimeError):
        async with world.market.transaction() as unit:
            unit.trace("submit", "job_x", unit.now_ms)
            raise RuntimeError("on purpose")
    assert spans.get_finished_spans() == ()


async def test_without_a_collector_nothing_is_kept(world: World) -> None:
    async with world.market.transaction() as unit:
        unit.trace("submit", "job_x", unit.now_ms)
        assert unit._spans == []


def test_a_collector_gets_them_over_http() -> None:
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        stop = tracing.export_to(f"http://127.0.0.1:{server.server_port}", "torg-marketplace", "all")
        tracing.emit(tracing.Span("submit", "job_1", 1_000, 2_000))
        stop()  # sends what waits
        server.shutdown()
        thread.join()
    assert [path for path, _ in got] == ["/v1/traces"]
    sent = gzip.decompress(got[0][1]) if got[0][1][:2] == b"\x1f\x8b" else got[0][1]
    assert b"job_1" in sent
    assert not tracing.is_on()


def test_log_lines_name_what_they_are_about() -> None:
    record = logging.LogRecord("torg", logging.WARNING, __file__, 1, "the lease is %s", ("late",), None)
    with about(job_id="job_1"), about(lease_id="lease_1"):
        line = json.loads(JsonLines().format(record))
        words = TextLines().format(record)
    assert (line["message"], line["job_id"], line["lease_id"]) == ("the lease is late", "job_1", "lease_1")
    assert words.endswith("the lease is late [job_id=job_1 lease_id=lease_1]")
    assert TextLines().format(record).endswith("the lease is late")
