"""Traces: one per job, over every process that has to do with it, by OpenTelemetry; nothing at all without its packages (extra `otel`).

    submit -> match -> grant -> prepare -> run -> report -> verify -> settle       the marketplace's processes
                                node: check_grant, reserve, ..., report            what the node does meanwhile, step by step

A job's trace is known from its id alone, so processes join it without telling each other, also a node that sends its spans to its owner's own
collector. What is traced: ids, states, reasons; nothing that a client said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torg_protocol.errors import Invalid

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

_NS_PER_MS = 1_000_000
_tracer: Tracer | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """One finished stage of a job."""

    name: str
    job_id: str
    start_ms: int
    end_ms: int
    attributes: Mapping[str, str] = field(default_factory=dict)


def is_on() -> bool:
    return _tracer is not None


def ids_of(job_id: str) -> tuple[int, int]:
    """Trace id and the id of the span that all of the job's spans hang below."""
    digest = hashlib.sha256(b"torg trace " + job_id.encode()).digest()
    return int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:24], "big") or 1


def emit(span: Span) -> None:
    if _tracer is None:
        return
    from opentelemetry import trace

    trace_id, parent_id = ids_of(span.job_id)
    parent = trace.SpanContext(
        trace_id, parent_id, is_remote=True, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED)
    )
    context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
    attributes = {f"torg.{name}": value for name, value in {"job_id": span.job_id, **span.attributes}.items()}
    made = _tracer.start_span(span.name, context, attributes=attributes, start_time=span.start_ms * _NS_PER_MS)
    made.end(max(span.end_ms, span.start_ms) * _NS_PER_MS)


def export_to(endpoint: str, service: str, instance: str, *, field: str = "--otlp-endpoint") -> Callable[[], None]:
    """Sends spans to an OTLP collector over HTTP from now on; what it returns sends the rest and stops. Raises Invalid `otel_missing`."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise Invalid(
            "OpenTelemetry is not installed",
            code="otel_missing",
            field=field,
            value=endpoint,
            hint="pip install torg[otel]",
        ) from error
    resource = Resource.create({"service.name": service, "service.instance.id": instance})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    url = endpoint.rstrip("/")
    exporter = OTLPSpanExporter(endpoint=url if url.endswith("/v1/traces") else f"{url}/v1/traces", timeout=2)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return use(provider)


def use(provider: TracerProvider) -> Callable[[], None]:
    """Spans go there from now on; what it returns stops that."""
    global _tracer  # noqa: PLW0603 - one process, one place where spans go
    _tracer = provider.get_tracer("torg")

    def stop() -> None:
        global _tracer  # noqa: PLW0603 - as above
        _tracer = None
        provider.shutdown()

    return stop
