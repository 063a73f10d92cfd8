"""Prometheus: one collector for each registry, which reads all pools there when it is scraped.

Decides what each series shows; the names are those of `gcp.observe.names`. Holds nothing while it formats, and raises
nothing into a scrape."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import accumulate, count
from math import inf
from time import perf_counter, sleep
from typing import Any, Final
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from gcp.observe.accounts import Books, Reading
from gcp.observe.labels import GAUGES
from gcp.observe.names import BY_NAME, METRICS, Metric
from gcp.observe.telemetry import Telemetry, version
from gcp.options import DEFAULT

__all__ = ['Collector', 'join']

Labels = dict[str, str]

#: after how long a scrape lets other threads run, seconds
BREATH: Final = 0.001


# --- where each metric's values are in a reading ---

#: of those with an endpoint label: where in its row they begin
COLUMNS: Final[Mapping[str, int]] = dict(zip(
    ('gcpool_connections', 'gcpool_waiters', 'gcpool_acquires_total', 'gcpool_releases_total',
     'gcpool_connections_closed_total', 'gcpool_leaks_detected_total'),
    (0, 3, 4, 10, 13, 20), strict=True))

#: of those that are one number for each pool
NUMBERS: Final[Mapping[str, Callable[[Reading], float | None]]] = {
    'gcpool_max_connections': lambda reading: reading.limits[0] if reading.limits else None,
    'gcpool_max_connections_per_endpoint': lambda reading: reading.limits[1] if reading.limits else None,
    'gcpool_min_idle_connections': lambda reading: reading.limits[2] if reading.limits else None,
    'gcpool_oldest_waiter_seconds': lambda reading: reading.total['oldest_waiter'],
    'gcpool_oldest_checkout_seconds': lambda reading: reading.total['oldest_checkout'],
    'gcpool_endpoints': lambda reading: reading.endpoints,
    'gcpool_endpoint_label_overflow_total': lambda reading: reading.overflow,
    'gcpool_telemetry_errors_total': lambda reading: reading.errors,
}

#: of the histograms: what `Core.snapshot` and `Telemetry.exemplars` call them
HISTOGRAMS: Final[Mapping[str, str]] = {
    'gcpool_hook_seconds': 'hook',
    'gcpool_acquire_wait_seconds': 'wait',
    'gcpool_use_seconds': 'use',
    'gcpool_connection_age_seconds': 'age',
}


def histogram_of(reading: Reading, kind: str, hook: str | None) -> tuple[tuple[int, ...], float]:
    """Return a histogram's counts, not cumulative, and its sum."""
    found: tuple[tuple[int, ...], float] = reading.total[kind] if hook is None else reading.total['hook_time'][hook]
    return found


def bounds_of(metric: Metric) -> list[str]:
    """Write a histogram's upper bounds as Prometheus does."""
    return [str(floatToGoString(bound)) for bound in (*metric.buckets, inf)]  # type: ignore[no-untyped-call]


# --- the labels of the series, made once ---

class Marks:
    """The labels of all series of one pool. Those of an endpoint are dropped when it has no label any more."""

    def __init__(self, pool: str) -> None:
        self.pool: Final[Labels] = {'pool': pool}
        self.hook_calls: Final = [{'pool': pool, **each} for each in BY_NAME['gcpool_hook_calls_total'].combinations()]
        self.histograms: Final = {
            metric.name: [({'pool': pool, **each}, [
                {'pool': pool, **each, 'le': bound} for bound in bounds_of(metric)
            ]) for each in metric.combinations()]
            for metric in METRICS if metric.kind == 'histogram'
        }
        self.rows: dict[str | None, dict[str, list[Labels]]] = {}

    def update(self, rows: Iterable[str | None]) -> None:
        """Make the labels of those endpoints, and of no others."""
        self.rows = {label: self.rows.get(label) or self._row(label) for label in rows}

    def _row(self, label: str | None) -> dict[str, list[Labels]]:
        own = self.pool if label is None else {**self.pool, 'pool_endpoint': label}
        return {name: [{**own, **each} for each in BY_NAME[name].combinations()] for name in COLUMNS}


# --- the collector ---

class Collector:
    """All pools of one registry, as Prometheus metrics.

    :param books: the pools
    :param metrics: those to show
    """

    def __init__(self, books: Books, metrics: tuple[Metric, ...] = METRICS) -> None:
        self._books = books
        self._metrics = metrics
        self._marks: dict[str, Marks] = {}

    def describe(self) -> list[Family]:
        """Tell the names, without looking at a pool."""
        return [family_of(metric) for metric in self._metrics]

    def collect(self) -> Iterator[Family]:
        """Look at all pools at once, then tell, family by family. What fails is left out, counted and logged once.

        Other threads may run in between, oftener than the interpreter would let them: they serve somebody."""
        began = since = perf_counter()
        readings = self._books.read()
        marks = {reading.pool: self._marks.get(reading.pool) or Marks(reading.pool) for reading in readings}
        for reading in readings:
            marks[reading.pool].update(reading.rows)
        self._marks = marks
        for metric in self._metrics:
            family = self._family(metric, readings, marks)
            if metric.name == 'gcpool_collect_seconds':
                family.samples.append(Sample(metric.name, {}, perf_counter() - began))
            yield family
            if perf_counter() - since > BREATH:
                sleep(0)
                since = perf_counter()

    def _family(self, metric: Metric, readings: list[Reading], marks: Mapping[str, Marks]) -> Family:
        family = family_of(metric)
        for reading in readings:
            try:
                family.samples += list(samples_of(metric, reading, marks[reading.pool]))
            except Exception as error:
                self._books.note(metric.name, error, reading.pool)
        return family


def family_of(metric: Metric) -> Family:
    return Family(metric.family, metric.help, metric.kind)


def samples_of(metric: Metric, reading: Reading, marks: Marks) -> Iterator[Sample]:
    """Tell one pool's part in a metric."""
    name = metric.name
    if name in COLUMNS:
        yield from endpoint_samples(name, reading, marks)
    elif name in NUMBERS:
        value = NUMBERS[name](reading)
        if value is not None:
            yield Sample(name, marks.pool, value)
    elif name in HISTOGRAMS:
        for labels, buckets in marks.histograms[name]:
            yield from histogram_samples(name, HISTOGRAMS[name], reading, labels, buckets)
    elif name == 'gcpool_hook_calls_total':
        for labels in marks.hook_calls:
            yield Sample(name, labels, reading.total['hook_calls'][labels['hook']][labels['outcome']])
    elif name == 'gcpool_info':
        for frontend in reading.frontends:
            yield Sample(name, {**marks.pool, 'version': version(), 'frontend': frontend}, 1)


def endpoint_samples(name: str, reading: Reading, marks: Marks) -> Iterator[Sample]:
    begin = COLUMNS[name]
    for endpoint, row in reading.rows.items():
        if begin < GAUGES and row[0] < 0:
            continue        # nothing is there; what it has counted stays
        for labels, value in zip(marks.rows[endpoint][name], row[begin:], strict=False):
            yield Sample(name, labels, value)


def histogram_samples(
        name: str, kind: str, reading: Reading, labels: Labels, buckets: list[Labels],
) -> Iterator[Sample]:
    hook = labels.get('hook')
    counts, total = histogram_of(reading, kind, hook)
    for index, bucket, below in zip(count(), buckets, accumulate(counts), strict=False):
        exemplar = reading.exemplars.get((kind, hook, index)) if reading.exemplars else None
        yield Sample(f'{name}_bucket', bucket, below, None, None if exemplar is None else Exemplar(*exemplar))
    yield Sample(f'{name}_sum', labels, total)
    yield Sample(f'{name}_count', labels, sum(counts))


# --- registries ---

class Seat:
    """One registry's books, and whether they are read."""

    def __init__(self) -> None:
        self.books = Books(labelled=True)
        self.collector: Collector | None = None
        self.told = False


class Hall:
    """All registries."""

    def __init__(self) -> None:
        self.seats: WeakKeyDictionary[Any, Seat] = WeakKeyDictionary()
        self.lock = threading.RLock()

    def start_anew(self) -> None:
        """In a forked child nobody holds the lock."""
        self.lock = threading.RLock()


hall: Final = Hall()
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=hall.start_anew)


def join(telemetry: Telemetry, registry: Any) -> None:
    """Let a pool be seen in a registry. One that cannot be registered with is tried again with the next pool."""
    with hall.lock:
        owner = REGISTRY if registry is DEFAULT else registry
        seat = hall.seats.setdefault(owner, Seat())
        seat.books.add(telemetry)
        if seat.collector is None:
            try:
                seat.collector = register(owner, seat.books, partial(telemetry.errors.note, 'registry', told=seat.told))
            except Exception as error:
                telemetry.errors.note('registry', error, told=seat.told)
                seat.told = True


def register(registry: Any, books: Books, note: Callable[[Exception], None]) -> Collector:
    """Register a collector. What names the registry has already are left to whoever took them."""
    collector = Collector(books)
    try:
        registry.register(collector)
    except ValueError as error:
        free = tuple(metric for metric in METRICS if is_free(registry, metric))
        if not free or len(free) == len(METRICS):
            raise
        collector = Collector(books, free)
        registry.register(collector)
        note(error)
    return collector


def is_free(registry: Any, metric: Metric) -> bool:
    """Whether a registry would take a metric."""
    probe = Collector(Books(labelled=False), (metric,))
    try:
        registry.register(probe)
    except ValueError:
        return False
    registry.unregister(probe)
    return True
