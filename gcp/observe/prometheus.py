"""Prometheus metrics: one collector for each registry, which reads all its pools at each scrape.

Defines the value of each series; the names are those of `gcp.observe.names`. A collector holds no lock while it
formats, and an error of one metric does not fail the scrape."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from functools import partial
from itertools import accumulate, count
from math import inf
from time import perf_counter, sleep
from typing import Any, Final
from weakref import WeakKeyDictionary

import prometheus_client
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from gcp.observe.aggregation import Aggregation, Reading
from gcp.observe.labels import COLUMNS, GAUGES, STATES, YIELD_INTERVAL
from gcp.observe.names import BY_NAME, METRICS, Metric
from gcp.observe.telemetry import Telemetry, version
from gcp.options import DEFAULT

__all__ = ['Collector', 'attach']

Labels = dict[str, str]


# --- the value of each metric in a reading ---

#: metrics with one value for each pool
NUMBERS: Final[Mapping[str, Callable[[Reading], float | None]]] = {
    'gcpool_max_connections': lambda reading: reading.limits[0] if reading.limits else None,
    'gcpool_max_connections_per_endpoint': lambda reading: reading.limits[1] if reading.limits else None,
    'gcpool_min_idle_connections': lambda reading: reading.limits[2] if reading.limits else None,
    'gcpool_capacity': lambda reading: reading.capacity,
    'gcpool_oldest_waiter_seconds': lambda reading: reading.total['oldest_waiter'],
    'gcpool_oldest_checkout_seconds': lambda reading: reading.total['oldest_checkout'],
    'gcpool_endpoints': lambda reading: reading.endpoints,
    'gcpool_endpoint_label_overflow_total': lambda reading: reading.overflow,
    'gcpool_limits_errors_total': lambda reading: reading.total['limits_errors'],
    'gcpool_abandoned_leases_total': lambda reading: reading.total['abandoned_leases'],
    'gcpool_reclaim_runs_total': lambda reading: reading.total['reclaim_runs'],
    'gcpool_listener_errors_total': lambda reading: reading.total['listener_errors'],
    'gcpool_listener_events_dropped_total': lambda reading: reading.total['listener_events_dropped'],
    'gcpool_telemetry_errors_total': lambda reading: reading.errors,
}

#: histograms: their names in `Core.snapshot` and `Telemetry.exemplars`
HISTOGRAMS: Final[Mapping[str, str]] = {
    'gcpool_hook_seconds': 'hook',
    'gcpool_acquire_wait_seconds': 'wait',
    'gcpool_use_seconds': 'use',
    'gcpool_connection_age_seconds': 'age',
}


def histogram_of(reading: Reading, kind: str, labels: Labels) -> tuple[tuple[int, ...], float]:
    """Return the counts of a histogram's buckets, not cumulative, and its sum.

    :param labels: the labels of its series
    """
    hooks = reading.total['hook_time']
    found: tuple[tuple[int, ...], float]
    found = hooks[labels['hook']][labels['result']] if kind == 'hook' else reading.total[kind]
    return found


def bounds_of(metric: Metric) -> list[str]:
    """Return the upper bounds of a histogram's buckets as Prometheus writes them."""
    return [str(floatToGoString(bound)) for bound in (*metric.buckets, inf)]  # type: ignore[no-untyped-call]


# --- labels ---


class SeriesLabels:
    """The labels of all series of one pool, created once. Those of an endpoint are dropped with its label. They do not
    change, so that threads may use them at the same time."""

    def __init__(self, pool: str) -> None:
        self.pool: Final[Labels] = {'pool': pool}
        self.hook_calls: Final = [{'pool': pool, **each} for each in BY_NAME['gcpool_hook_calls_total'].combinations()]
        self.histograms: Final = {
            metric.name: [
                ({'pool': pool, **each}, [{'pool': pool, **each, 'le': bound} for bound in bounds_of(metric)])
                for each in metric.combinations()
            ]
            for metric in METRICS
            if metric.kind == 'histogram'
        }
        self.rows: dict[str | None, dict[str, list[Labels]]] = {}

    def of(self, rows: Iterable[str | None]) -> SeriesLabels:
        """Return the same with the labels of these endpoints only; those that are missing are created."""
        found = copy(self)
        found.rows = {label: self.rows.get(label) or self._row(label) for label in rows}
        return found

    def _row(self, label: str | None) -> dict[str, list[Labels]]:
        own = self.pool if label is None else {**self.pool, 'pool_endpoint': label}
        return {name: [{**own, **each} for each in BY_NAME[name].combinations()] for name in (*COLUMNS, *STATES)}


# --- the collector ---


class Collector:
    """Exports all pools of one registry.

    :param aggregation: the pools
    :param metrics: the metrics to export
    """

    def __init__(self, aggregation: Aggregation, metrics: tuple[Metric, ...] = METRICS) -> None:
        self._aggregation = aggregation
        self._metrics = metrics
        self._series_labels: dict[str, SeriesLabels] = {}

    def describe(self) -> list[Family]:
        """Return the families without values. No pool is read."""
        return [family_of(metric) for metric in self._metrics]

    def collect(self) -> Iterator[Family]:
        """Read all pools at once, then yield family by family. If a metric fails at a pool, its samples are left
        out, and the error is counted and logged once.

        A page can take longer than the interpreter's switch interval of 5 ms, so this yields to other threads."""
        began = since = perf_counter()
        readings = self._aggregation.read()
        before, series_labels = self._series_labels, {}
        for reading in readings:
            known = before.get(reading.pool) or SeriesLabels(reading.pool)
            series_labels[reading.pool] = known.of(reading.rows)
        self._series_labels = series_labels
        for metric in self._metrics:
            family = self._family(metric, readings, series_labels)
            if metric.name == 'gcpool_collect_seconds':
                family.samples.append(Sample(metric.name, {}, perf_counter() - began))
            yield family
            if perf_counter() - since > YIELD_INTERVAL:
                sleep(0)
                since = perf_counter()

    def _family(self, metric: Metric, readings: list[Reading], series_labels: Mapping[str, SeriesLabels]) -> Family:
        family = family_of(metric)
        for reading in readings:
            try:
                family.samples += list(samples_of(metric, reading, series_labels[reading.pool]))
            except Exception as error:
                self._aggregation.record_error(metric.name, error, reading.pool)
        return family


def family_of(metric: Metric) -> Family:
    return Family(metric.family, metric.help, metric.kind)


def samples_of(metric: Metric, reading: Reading, series_labels: SeriesLabels) -> Iterator[Sample]:
    """Yield one pool's samples of a metric."""
    name = metric.name
    if name in COLUMNS:
        yield from endpoint_samples(name, reading, series_labels)
    elif name in STATES:
        for endpoint, state in reading.states.items():
            yield Sample(name, series_labels.rows[endpoint][name][0], state[name])
    elif name in NUMBERS:
        value = NUMBERS[name](reading)
        if value is not None:
            yield Sample(name, series_labels.pool, value)
    elif name in HISTOGRAMS:
        for labels, buckets in series_labels.histograms[name]:
            yield from histogram_samples(name, HISTOGRAMS[name], reading, labels, buckets)
    elif name == 'gcpool_hook_calls_total':
        for labels in series_labels.hook_calls:
            yield Sample(name, labels, reading.total['hook_calls'][labels['hook']][labels['outcome']])
    elif name == 'gcpool_info':
        for frontend in reading.frontends:
            yield Sample(name, {**series_labels.pool, 'version': version(), 'frontend': frontend}, 1)


def endpoint_samples(name: str, reading: Reading, series_labels: SeriesLabels) -> Iterator[Sample]:
    begin = COLUMNS[name]
    for endpoint, row in reading.rows.items():
        if begin < GAUGES and row[0] < 0:
            continue  # the label has no endpoint: its counters stay, its gauges do not
        for labels, value in zip(series_labels.rows[endpoint][name], row[begin:], strict=False):
            yield Sample(name, labels, value)


def histogram_samples(
    name: str,
    kind: str,
    reading: Reading,
    labels: Labels,
    buckets: list[Labels],
) -> Iterator[Sample]:
    counts, total = histogram_of(reading, kind, labels)
    hook = labels.get('hook')
    kind = 'failed_hook' if labels.get('result') == 'failed' else kind
    for index, bucket, below in zip(count(), buckets, accumulate(counts), strict=False):
        exemplar = reading.exemplars.get((kind, hook, index)) if reading.exemplars else None
        yield Sample(f'{name}_bucket', bucket, below, None, None if exemplar is None else Exemplar(*exemplar))
    yield Sample(f'{name}_sum', labels, total)
    yield Sample(f'{name}_count', labels, sum(counts))


# --- registries ---


class RegistryBinding:
    """The pools of one registry, and the collector that reads them.

    :ivar logged: whether the failure to register a collector was logged
    """

    def __init__(self) -> None:
        self.aggregation = Aggregation(labelled=True)
        self.collector: Collector | None = None
        self.logged = False


class RegistryBindings:
    """All registries, by identity, and the lock that guards them."""

    def __init__(self) -> None:
        self.bindings: WeakKeyDictionary[Any, RegistryBinding] = WeakKeyDictionary()
        self.lock = threading.RLock()

    def reset_after_fork(self) -> None:
        """Replace the lock in a forked child: another thread may have held it at the fork."""
        self.lock = threading.RLock()


registries: Final = RegistryBindings()
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=registries.reset_after_fork)


def attach(telemetry: Telemetry, registry: Any) -> None:
    """Export a pool to a registry. If no collector can be registered there, or the registry has lost it, the next pool
    tries again."""
    with registries.lock:
        owner = prometheus_client.REGISTRY if registry is DEFAULT else registry
        binding = registries.bindings.setdefault(owner, RegistryBinding())
        binding.aggregation.add(telemetry)
        if binding.collector is None or not is_registered(owner, binding.collector):
            try:
                record_error = partial(telemetry.errors.record, 'registry', logged=binding.logged)
                binding.collector = register(owner, binding.aggregation, record_error)
            except Exception as error:
                telemetry.errors.record('registry', error, logged=binding.logged)
                binding.logged = True


def is_registered(registry: Any, collector: Collector) -> bool:
    """Tell whether a registry still has a collector: it may have been unregistered, or the registry emptied.

    The client has no function for this. A registry without its attribute is asked to register the collector again,
    which it refuses if it has it."""
    collectors = getattr(registry, '_collector_to_names', None)
    if collectors is not None:
        return collector in collectors
    try:
        registry.register(collector)
    except ValueError:
        pass
    return True


def register(registry: Any, aggregation: Aggregation, record_error: Callable[[Exception], None]) -> Collector:
    """Register a collector. Metrics whose names another collector of the registry has are left out."""
    collector = Collector(aggregation)
    try:
        registry.register(collector)
    except ValueError as error:
        free = tuple(metric for metric in METRICS if is_free(registry, metric))
        if not free or len(free) == len(METRICS):
            raise
        collector = Collector(aggregation, free)
        registry.register(collector)
        record_error(error)
    return collector


def is_free(registry: Any, metric: Metric) -> bool:
    """Tell whether a registry accepts a metric."""
    probe = Collector(Aggregation(labelled=False), (metric,))
    try:
        registry.register(probe)
    except ValueError:
        return False
    registry.unregister(probe)
    return True
