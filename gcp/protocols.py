"""What a pool asks of the objects that its telemetry goes to. They are given as ``registry``, ``meter_provider`` and
``tracer_provider``; those of prometheus_client and of OpenTelemetry's API have these methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer
    from prometheus_client.registry import Collector

__all__ = ['MeterProvider', 'Registry', 'TracerProvider']


class Registry(Protocol):
    """A Prometheus registry, such as `prometheus_client.CollectorRegistry`."""

    def register(self, collector: Collector, /) -> None:
        """Have a collector asked for its metrics at each scrape.

        :param collector: the collector
        """

    def unregister(self, collector: Collector, /) -> None:
        """Have a collector asked no more.

        :param collector: the collector
        """


class MeterProvider(Protocol):
    """An OpenTelemetry meter provider, such as `opentelemetry.sdk.metrics.MeterProvider`."""

    def get_meter(self, name: str, version: str | None = None, schema_url: str | None = None, /) -> Meter:
        """Return a meter, which makes instruments.

        :param name: the name of the library that is measured
        :param version: its version
        :param schema_url: where the names of its metrics are defined
        """


class TracerProvider(Protocol):
    """An OpenTelemetry tracer provider, such as `opentelemetry.sdk.trace.TracerProvider`."""

    def get_tracer(self, name: str, version: str | None = None, schema_url: str | None = None, /) -> Tracer:
        """Return a tracer, which starts spans.

        :param name: the name of the library that is traced
        :param version: its version
        :param schema_url: where the names of its attributes are defined
        """
