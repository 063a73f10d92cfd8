"""What telemetry adds to the idle hit: none, Prometheus, a tracer of the OpenTelemetry SDK. Times are for a thousand
hits of a manager that overrides on_acquire and on_release, the hooks that can have spans.

With ``tracing='all'`` a hit has spans where the caller has one: 'all' is within a span, 'all, no caller' is not.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from . import bodies

HOOKS = ('on_acquire', 'on_release')
UNSEEN: dict[str, Any] = {'registry': None, 'meter_provider': None, 'tracer_provider': None}
SEEN_BY = ['none', 'prometheus', 'meter', 'off', 'lifecycle', 'all, no caller', 'all']


def options(seen_by: str) -> dict[str, Any]:
    """Return the pool's options. Spans are created and ended, but not exported."""
    if seen_by == 'none':
        return UNSEEN
    if seen_by == 'prometheus':
        return UNSEEN | {'registry': CollectorRegistry()}
    if seen_by == 'meter':
        return UNSEEN | {'meter_provider': MeterProvider(metric_readers=[InMemoryMetricReader()])}
    tracing, _, _ = seen_by.partition(',')
    return UNSEEN | {'tracer_provider': TracerProvider(shutdown_on_exit=False), 'tracing': tracing}


def caller(seen_by: str) -> AbstractContextManager[object]:
    """Return the span within which the hits are, if any."""
    if seen_by != 'all':
        return nullcontext()
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer('caller')
    return tracer.start_as_current_span('caller')


class Threads(bodies.OnThreads):
    params = [SEEN_BY]
    param_names = ['seen by']

    def setup(self, seen_by: str) -> None:
        self.open(hooks=HOOKS, **options(seen_by))
        self.caller = caller(seen_by)
        self.caller.__enter__()

    def teardown(self, *params: object) -> None:
        self.caller.__exit__(None, None, None)
        super().teardown()

    def time_acquire_release(self, *params: Any) -> None:
        self.acquire_release()


class Tasks(bodies.OnTasks):
    params = [SEEN_BY]
    param_names = ['seen by']

    def setup(self, seen_by: str) -> None:
        self.open(hooks=HOOKS, **options(seen_by))
        self.caller = caller(seen_by)
        self.caller.__enter__()

    def teardown(self, *params: object) -> None:
        self.caller.__exit__(None, None, None)
        super().teardown()

    def time_acquire_release(self, *params: Any) -> None:
        self.acquire_release()
