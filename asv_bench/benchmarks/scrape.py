"""Reading a pool of many endpoints: a page for Prometheus, a collection of OpenTelemetry's, `stats()`."""

from __future__ import annotations

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest

from . import bodies

ENDPOINTS = bodies.effort.choose([10], [1, 100, 1000], [1, 100, 1000, 10_000])


class Scrape(bodies.OnThreads):
    """Each endpoint has labels of its own, and an idle connection."""

    params = [ENDPOINTS]
    param_names = ['endpoints']

    def setup(self, endpoints: int) -> None:
        self.registry = CollectorRegistry()
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider(metric_readers=[self.reader], shutdown_on_exit=False)
        self.open(
            [f'db-{number}' for number in range(endpoints)],
            total_max_size=max(100, endpoints),
            max_size=1,
            registry=self.registry,
            meter_provider=self.provider,
            endpoint_labels=endpoints,
        )
        assert len(self.pool.stats().endpoints) == endpoints

    def teardown(self, *params: object) -> None:
        super().teardown()
        self.provider.shutdown()

    def time_prometheus_page(self, endpoints: int) -> None:
        generate_latest(self.registry)

    def time_opentelemetry_collect(self, endpoints: int) -> None:
        self.reader.get_metrics_data()

    def time_stats(self, endpoints: int) -> None:
        self.pool.stats()
