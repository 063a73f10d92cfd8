"""Recorded spans, as tests look at them; and OpenTelemetry's global providers, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import Span
from opentelemetry.util._once import Once


class Traces:
    """A tracer provider, and the spans that it has recorded."""

    def __init__(self, sampler: Sampler = ALWAYS_ON, *more: SpanProcessor) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        for processor in more:
            self.provider.add_span_processor(processor)

    @contextmanager
    def caller(self, name: str = 'caller') -> Iterator[Span]:
        """Do something within a span of a caller's own."""
        with self.provider.get_tracer('tests').start_as_current_span(name, record_exception=False) as span:
            yield span

    @property
    def ended(self) -> list[ReadableSpan]:
        """The spans of pools so far, in the order in which they ended."""
        return [span for span in self.exporter.get_finished_spans() if scope_of(span).name == 'gcpool']

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.ended]

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.ended if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """Return the only span of this name."""
        found = self.named(name)
        assert len(found) == 1, (name, self.names)
        return found[0]

    def clear(self) -> None:
        self.exporter.clear()


def scope_of(span: ReadableSpan) -> Any:
    return span.instrumentation_scope


def id_of(span: ReadableSpan | Span) -> int:
    return span.get_span_context().span_id  # type: ignore[union-attr]


def trace_of(span: ReadableSpan | Span) -> int:
    return span.get_span_context().trace_id  # type: ignore[union-attr]


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def links_of(span: ReadableSpan) -> dict[Any, int]:
    """By what they lead to: the ids of spans."""
    return {(link.attributes or {})['gcpool.link']: link.context.span_id for link in span.links}


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def status_of(span: ReadableSpan) -> tuple[str, Any]:
    assert not span.status.description  # it could quote a password
    assert not span.events
    return span.status.status_code.name, attributes_of(span).get('error.type')


def errors_of(pool: Any) -> Any:
    return pool._telemetry.telemetry.errors


def forget_tracer_provider() -> None:
    """As the SDK's own tests do."""
    trace._TRACER_PROVIDER_SET_ONCE = Once()
    trace._TRACER_PROVIDER = None


def forget_meter_provider() -> None:
    """As the SDK's own tests do."""
    metrics_internal._METER_PROVIDER_SET_ONCE = Once()
    metrics_internal._METER_PROVIDER = None
    metrics_internal._PROXY_METER_PROVIDER = metrics_internal._ProxyMeterProvider()


@contextmanager
def globals_of_our_own() -> Iterator[None]:
    """Begin, and end, without global providers."""
    forget_tracer_provider()
    forget_meter_provider()
    try:
        assert metrics.get_meter_provider() is metrics_internal._PROXY_METER_PROVIDER
        yield
    finally:
        forget_tracer_provider()
        forget_meter_provider()
