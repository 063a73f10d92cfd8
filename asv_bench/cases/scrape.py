"""Reading a pool of many endpoints: the time that it takes, and how long another thread waits for it.

The times are processor time of the reading thread: the smallest of a few rounds. A stretch is what lies between two
moments at which that thread yields to others; a release of the GIL within the core is not counted as one."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from benchmarks import managers
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest

import gcp.observe.aggregation
import gcp.observe.labels
import gcp.observe.opentelemetry
import gcp.observe.prometheus
import gcp.threading

from .contest import repetitions
from .rows import Row, at_most, inform

FEW, MANY = 100, 10_000
YIELDING: list[Any] = [
    gcp.observe.aggregation,
    gcp.observe.labels,
    gcp.observe.opentelemetry,
    gcp.observe.prometheus,
]


class Pool:
    """A pool with one held connection of each endpoint, which is what takes longest to read."""

    def __init__(self, endpoints: int) -> None:
        self.registry = CollectorRegistry()
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider(metric_readers=[self.reader], shutdown_on_exit=False)
        self.pool: gcp.threading.ConnectionPool[Any, Any] = gcp.threading.ConnectionPool(
            managers.blocking(gcp.threading),
            total_max_size=endpoints,
            registry=self.registry,
            meter_provider=self.provider,
        )
        self.held = [(self.pool.acquire(key), key) for key in (f'db-{number}' for number in range(endpoints))]

    def close(self) -> None:
        for connection, endpoint in self.held:
            self.pool.release(connection, endpoint)
        self.pool.close()
        self.provider.shutdown()

    @property
    def readings(self) -> dict[str, Callable[[], object]]:
        """How it can be read, by name."""
        return {
            'a page of metrics': lambda: generate_latest(self.registry),
            'a collection of OpenTelemetry': self.reader.get_metrics_data,
            'stats()': self.pool.stats,
        }


def stretches(read: Callable[[], object]) -> list[float]:
    """Read, and return the processor time between moments at which the thread yields, seconds."""
    marks = [time.thread_time()]
    kept = [module.sleep for module in YIELDING]
    for module in YIELDING:
        module.sleep = lambda seconds: marks.append(time.thread_time())
    try:
        read()
    finally:
        for module, sleep in zip(YIELDING, kept, strict=True):
            module.sleep = sleep
    marks.append(time.thread_time())
    return [end - begin for begin, end in pairwise(marks)]


def case_scrape(effort: float) -> Iterator[Row]:
    """A pool of 10,000 endpoints beside one of 100: a page of metrics, `stats()`; processor time"""
    pools = {endpoints: Pool(endpoints) for endpoints in (FEW, MANY)}
    gc.collect()
    gc.disable()
    try:
        for name in pools[FEW].readings:
            seen: dict[int, list[list[float]]] = {FEW: [], MANY: []}
            for _ in range(repetitions(effort, 30, 10)):
                for endpoints, pool in pools.items():
                    seen[endpoints].append(stretches(pool.readings[name]))
            times = {endpoints: min(map(sum, rounds)) * 1e3 for endpoints, rounds in seen.items()}
            longest = {endpoints: min(map(max, rounds)) * 1e3 for endpoints, rounds in seen.items()}
            medians = {f'{endpoints} endpoints, ms': spent for endpoints, spent in times.items()}
            if name == 'stats()':
                yield inform(f'{name}: {MANY:,} endpoints', times[MANY], ' ms', **medians)
            else:
                yield at_most(f'{name}: {MANY:,} endpoints / {FEW}', 1.5, times[MANY] / times[FEW], ' x', **medians)
            stretch = f'{name}, {MANY:,} endpoints: the longest stretch without a yield'
            if name.endswith('OpenTelemetry'):  # its last one is the SDK's own
                yield inform(stretch, longest[MANY], ' ms')
            else:
                yield at_most(stretch, 2.0, longest[MANY], ' ms')
    finally:
        gc.enable()
        for pool in pools.values():
            pool.close()
