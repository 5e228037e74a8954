"""Traces by OpenTelemetry (extra ``otel``): from an order to the ledger, from a measurement to the store.

The messages carry W3C trace contexts whoever traces; here they become spans. Without ``observability.otlp`` in the cloud's file
nothing of OpenTelemetry is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from opentelemetry.trace.status import Status, StatusCode

_NAME = "wattmesh-cloud"


class OtelSpans:
    """See :class:`wattmesh_a2a.tracing.Spans`.

    Args:
        provider: Where spans go; made by :func:`exporting_to` in the product.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(_NAME)

    @contextmanager
    def span(
        self, name: str, parent: str | None, links: Sequence[str], attributes: Mapping[str, str | int | float]
    ) -> Iterator[str]:
        """See :class:`wattmesh_a2a.tracing.Spans`."""
        above = _context(parent)
        context = None if above is None else set_span_in_context(NonRecordingSpan(above))
        linked = [Link(one) for one in map(_context, links) if one is not None]
        with self._tracer.start_as_current_span(
            name, context=context, links=linked, attributes=dict(attributes), set_status_on_exception=False
        ) as span:
            own = span.get_span_context()
            try:
                yield f"00-{own.trace_id:032x}-{own.span_id:016x}-01"
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


def _context(traceparent: str | None) -> SpanContext | None:
    parts = (traceparent or "").split("-")
    if len(parts) != 4 or len(parts[1]) != 32 or len(parts[2]) != 16:
        return None
    try:
        trace, span = int(parts[1], 16), int(parts[2], 16)
    except ValueError:
        return None
    made = SpanContext(trace, span, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return made if made.is_valid else None


def exporting_to(url: str) -> OtelSpans:
    """Spans to an OTLP collector (``http://127.0.0.1:4318/v1/traces``), in batches, dropped where it is away."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(resource=Resource.create({"service.name": _NAME}))
    exporter: Any = OTLPSpanExporter(endpoint=url, timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=2048))
    return OtelSpans(provider)
