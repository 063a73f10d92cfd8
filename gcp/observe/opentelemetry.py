"""OpenTelemetry metrics: one set of observable instruments for each meter provider, which covers all its pools.

Pools are read when a provider collects; nothing is pushed. There is one set of instruments for each provider, because
the SDK keeps the callbacks of the first instrument of a name only; and one reading for each collection, so that the
figures of all instruments agree.

This module imports OpenTelemetry only after the program has done so: until then there can be no provider.

OpenTelemetry has no observable histogram. Histograms are exported in one of two ways, both opt-in:
`gcp.observe.exporter` is exact and costs nothing between exports; `record_histograms`, or in the environment
`GCPOOL_OTEL_HISTOGRAMS=record`, serves readers without an exporter and programs that are instrumented from outside."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from time import monotonic, perf_counter, sleep, time_ns
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet, ref

from gcp.observe.addresses import location
from gcp.observe.aggregation import Aggregation, Reading
from gcp.observe.labels import COLUMNS, GAUGES, STATES, YIELD_INTERVAL
from gcp.observe.names import ATTRIBUTES, BY_NAME, INSTRUMENTS, OTHER, SCHEMA_URL, SCOPE, Instrument
from gcp.observe.telemetry import Telemetry, version
from gcp.options import DEFAULT

__all__ = ['attach', 'record_histograms']

FRESH: Final = 1.0
"""For how long the instruments of one collection share a reading, seconds."""

VARIABLE: Final = 'GCPOOL_OTEL_HISTOGRAMS'
"""The environment's switch for histograms: ``record``, or ``off`` (the default)."""

POOL: Final = ATTRIBUTES['pool']
OBSERVED: Final = tuple(instrument for instrument in INSTRUMENTS if instrument.kind != 'histogram')
SERIES: Final = {metric: BY_NAME[metric].combinations() for metric in COLUMNS}
HISTOGRAMS: Final = tuple(instrument for instrument in INSTRUMENTS if instrument.kind == 'histogram')

collected: Final = threading.local()
"""Its ``binding``: a weak reference to what this thread collected last. Readers export in the thread that collects."""


# --- figures ---

#: counters of a whole pool, by their names in `Core.snapshot`
TOTALS: Final[Mapping[str, str]] = {
    'gcpool_limits_errors_total': 'limits_errors',
    'gcpool_abandoned_leases_total': 'abandoned_leases',
    'gcpool_reclaim_runs_total': 'reclaim_runs',
    'gcpool_listener_errors_total': 'listener_errors',
    'gcpool_listener_events_dropped_total': 'listener_events_dropped',
}


def counted(reading: Reading, metric: str) -> Iterator[tuple[dict[str, str], float]]:
    """Yield a metric's values with their labels other than the pool's."""
    if metric in COLUMNS:
        begin = COLUMNS[metric]
        for label, row in reading.rows.items():
            if begin >= GAUGES or row[0] >= 0:  # a label without endpoints keeps its counters only
                own = {'pool_endpoint': str(label)}
                yield from (({**own, **each}, value) for each, value in zip(SERIES[metric], row[begin:], strict=False))
    elif metric in STATES:
        yield from (({'pool_endpoint': str(label)}, state[metric]) for label, state in reading.states.items())
    elif metric == 'gcpool_hook_calls_total':
        for hook, outcomes in reading.total['hook_calls'].items():
            yield from (({'hook': hook, 'outcome': outcome}, count) for outcome, count in outcomes.items())
    elif metric == 'gcpool_capacity' and reading.capacity is not None:  # closed pools have no limits
        yield {}, reading.capacity
    elif metric == 'gcpool_min_idle_connections' and reading.limits is not None:
        yield {}, reading.limits[2]
    elif metric in TOTALS:
        yield {}, reading.total[TOTALS[metric]]


@lru_cache(maxsize=256)
def place(label: str) -> tuple[tuple[str, Any], ...]:
    """Return the address that a label shows. It follows from the label alone: one that groups endpoints or hides their
    addresses has none, and each label has the same attributes for good."""
    return tuple(location(label))


def figures(reading: Reading, instrument: Instrument) -> Iterator[tuple[dict[str, Any], float]]:
    """Yield an instrument's values with their attributes."""
    for labels, value in counted(reading, instrument.metric):
        if all(labels[label] == only for label, only in instrument.where.items()):
            shown = {name: labels[label] for name, label in instrument.attributes.items() if label != 'pool'}
            yield {POOL: reading.pool, **shown, **dict(place(labels.get('pool_endpoint', OTHER)))}, value


def histograms(reading: Reading) -> Iterator[tuple[Instrument, tuple[str, str | None], tuple[int, ...], float]]:
    """Yield the histograms: instrument, key of its exemplars, counts of the buckets, sum."""
    for instrument in HISTOGRAMS:
        hook = instrument.where.get('hook')
        key = {'gcpool_acquire_wait_seconds': 'wait', 'gcpool_use_seconds': 'use'}.get(instrument.metric, 'hook')
        counts, total = reading.total['hook_time'][hook]['ok'] if key == 'hook' else reading.total[key]
        yield instrument, (key, hook), counts, total


# --- instruments ---


class ProviderBinding:
    """The instruments of one provider, and its pools.

    :ivar born: when it was created, nanoseconds since the epoch
    :ivar superseded: whether the instruments of another binding have replaced these
    """

    def __init__(self) -> None:
        self.aggregation = Aggregation(labelled=True)
        self.born = time_ns()
        self.superseded = False
        self._readings: list[Reading] = []
        self._taken = -1.0
        self._since = 0.0  # when a collection last yielded to other threads
        self._waiting: set[str] = set()  # instruments that have not used this reading yet
        self._recorder: Recorder | None = None

    def create(self, provider: Any) -> None:
        """Create the instruments."""
        meter = meter_of(provider)
        for instrument in OBSERVED:
            create = getattr(meter, f'create_{instrument.kind}')
            callback = partial(self.observe, instrument)
            create(instrument.name, callbacks=[callback], unit=instrument.unit, description=instrument.help)

    def record(self, provider: Any) -> None:
        """Record histograms at each collection from now on."""
        if self._recorder is None:
            self._recorder = Recorder(meter_of(provider))

    def record_if_asked(self, provider: Any) -> None:
        """Record histograms if the environment says so. A value that is not understood is logged once."""
        try:
            if records_histograms():
                self.record(provider)
        except Exception as error:
            self.aggregation.errors.record(VARIABLE, error, logged=GlobalProvider.is_variable_logged)
            GlobalProvider.is_variable_logged = True

    def observe(self, instrument: Instrument, options: object) -> Iterable[Any]:
        """Return an instrument's observations. The provider calls this when it collects.

        A collection can take longer than the interpreter's switch interval of 5 ms, so this yields to other threads."""
        if perf_counter() - self._since > YIELD_INTERVAL:
            sleep(0)
            self._since = perf_counter()
        try:
            from opentelemetry.metrics import Observation

            follow()
            if self.superseded:
                return []
            return [
                Observation(value, attributes)
                for reading in self._read(instrument.name)
                for attributes, value in figures(reading, instrument)
            ]
        except Exception as error:
            self.aggregation.errors.record('opentelemetry', error)
            return []

    @property
    def readings(self) -> list[Reading]:
        """The readings of the latest collection."""
        return self._readings

    def _read(self, name: str) -> list[Reading]:
        """Return the readings of this collection. The first instrument that asks has all pools read."""
        collected.binding = ref(self)
        with GlobalProvider.lock:
            if name not in self._waiting or monotonic() - self._taken > FRESH:
                self._readings = self.aggregation.read()
                self._taken = monotonic()
                self._waiting = {instrument.name for instrument in OBSERVED}
                if self._recorder is not None:
                    self._recorder.catch_up(self._readings)
            self._waiting.discard(name)
            return self._readings


class Recorder:
    """Records histograms, with a value in the bucket for each observation. Counts and sums are exact."""

    def __init__(self, meter: Any) -> None:
        self._instruments = {
            instrument.name: meter.create_histogram(
                instrument.name,
                unit=instrument.unit,
                description=instrument.help,
                explicit_bucket_boundaries_advisory=instrument.buckets,
            )
            for instrument in HISTOGRAMS
        }
        self._seen: dict[tuple[str, str], tuple[tuple[int, ...], float]] = {}

    def catch_up(self, readings: list[Reading]) -> None:
        """Record the observations since the last call."""
        seen, self._seen = self._seen, {}
        for reading in readings:
            for instrument, _, counts, total in histograms(reading):
                key = reading.pool, instrument.name
                self._seen[key] = counts, total
                more, rest = since(seen.get(key), counts, total)
                record = partial(self._instruments[instrument.name].record, attributes={POOL: reading.pool})
                for value, count in spread(instrument.buckets, more, rest):
                    for _ in range(count):
                        record(value)


def since(
    last: tuple[tuple[int, ...], float] | None, counts: tuple[int, ...], total: float
) -> tuple[tuple[int, ...], float]:
    """Return the growth of a histogram: all of it if a count has fallen, as in a forked child, which counts from 0."""
    if last is None or any(now < then for now, then in zip(counts, last[0], strict=True)):
        return counts, total
    return tuple(now - then for now, then in zip(counts, last[0], strict=True)), max(0.0, total - last[1])


def spread(bounds: tuple[float, ...], counts: tuple[int, ...], total: float) -> Iterator[tuple[float, int]]:
    """Yield a value and a count for each bucket, such that the values add up to the sum."""
    least = sum(count * lower for count, lower in zip(counts, (0.0, *bounds), strict=True))
    width = sum(count * (upper - lower) for count, lower, upper in zip(counts, (0.0, *bounds), bounds, strict=False))
    beyond = counts[-1]
    part = 0.5 if beyond else (total - least) / width if width else 0.0
    part = min(1.0, max(1e-9, part))
    for count, lower, upper in zip(counts, (0.0, *bounds), bounds, strict=False):
        if count:
            yield min(upper, lower + part * (upper - lower)), count
    if beyond:
        yield max(bounds[-1] * (1 + 1e-9), bounds[-1] + (total - least - part * width) / beyond), beyond


# --- bindings ---

bindings: Final[WeakKeyDictionary[Any, ProviderBinding]] = WeakKeyDictionary()
followers: Final[WeakSet[Telemetry]] = WeakSet()
"""The pools that follow the global provider."""


class GlobalProvider:
    """The global provider, as last seen.

    :cvar provider: the API's proxy while none is set; None before OpenTelemetry is imported
    :cvar is_real: whether one is set
    :cvar is_variable_logged: whether it was logged that the environment's switch is not understood
    :cvar lock: guards the bindings
    """

    provider: Any = None
    is_real = False
    is_variable_logged = False
    lock = threading.RLock()


def reset_after_fork() -> None:
    """Replace the lock in a forked child: another thread may have held it at the fork."""
    GlobalProvider.lock = threading.RLock()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=reset_after_fork)


def meter_of(provider: Any) -> Any:
    return provider.get_meter(SCOPE, version(), SCHEMA_URL)


def records_histograms() -> bool:
    """Tell whether the environment asks for recorded histograms.

    :raises ValueError: it asks for something else
    """
    wanted = os.environ.get(VARIABLE, '').strip().lower()
    if wanted not in ('', 'off', 'record'):
        raise ValueError(f"{VARIABLE}={wanted}: 'record' or 'off' was expected")
    return wanted == 'record'


def binding_of(provider: Any) -> ProviderBinding:
    """Return the binding of a provider; create it at the first call."""
    with GlobalProvider.lock:
        binding = bindings.get(provider)
        if binding is None:
            binding = bindings[provider] = ProviderBinding()
            binding.create(provider)
            binding.record_if_asked(provider)
        return binding


def follow() -> None:
    """Adopt the current global provider, with all pools that follow it."""
    from opentelemetry.metrics import get_meter_provider

    if get_meter_provider() is GlobalProvider.provider:
        return
    with GlobalProvider.lock:
        provider = get_meter_provider()
        if provider is GlobalProvider.provider:  # another thread has adopted it meanwhile
            return
        before, GlobalProvider.provider = GlobalProvider.provider, provider
        GlobalProvider.is_real = not is_proxy(provider)
        if before is not None and before in bindings and is_proxy_of(before, provider):
            earlier = bindings.pop(before)
            if provider in bindings:  # the argument of a pool before it was global: its instruments came first
                earlier.superseded = True
            else:
                bindings[provider] = earlier
                return
        aggregation = binding_of(provider).aggregation
        for telemetry in list(followers):
            if telemetry.pool() is not None:
                aggregation.add(telemetry)


def is_proxy_of(one: Any, other: Any) -> bool:
    """Tell whether one provider is the API's proxy for the other, which has taken over its instruments."""
    return is_proxy(one) and not is_proxy(other) and meter_of(one) is meter_of(other)


def is_proxy(provider: Any) -> bool:
    """Tell whether a provider is the API's proxy for one that is not set yet."""
    kind = type(provider)
    return kind.__name__ == '_ProxyMeterProvider' and kind.__module__.startswith('opentelemetry.metrics')


def attach(telemetry: Telemetry, provider: Any) -> None:
    """Export a pool to a meter provider.

    :param telemetry: the pool's part in what is exported
    :param provider: the provider, or `DEFAULT` to follow the global one
    """
    if provider is DEFAULT:
        with GlobalProvider.lock:
            followers.add(telemetry)
            if not is_imported():  # looked at last: who imports it, and adopts a provider, finds the pool
                return
    follow()
    if provider is DEFAULT or is_proxy(provider):
        with GlobalProvider.lock:
            followers.add(telemetry)  # one with the API's proxy as its argument, too
            binding_of(GlobalProvider.provider).aggregation.add(telemetry)
    else:
        binding_of(provider).aggregation.add(telemetry)


def is_imported() -> bool:
    """Tell whether there can be a global provider: the API is imported, or the environment names one."""
    return (
        GlobalProvider.provider is not None
        or 'opentelemetry.metrics' in sys.modules
        or ('OTEL_PYTHON_METER_PROVIDER' in os.environ)
    )


def recheck(telemetry: Telemetry) -> None:
    """Adopt a new global provider. While none is set, the API's proxy passes instruments on by itself."""
    if GlobalProvider.is_real or (GlobalProvider.provider is None and 'opentelemetry.metrics' in sys.modules):
        try:
            follow()
        except Exception as error:
            telemetry.errors.record('meter_provider', error)


def record_histograms(meter_provider: Any = DEFAULT) -> None:
    """Record the histograms of a meter provider's pools: create, wait and use times.

    For readers without an exporter; with one, `gcp.observe.exporter.HistogramExporter` costs less. At each collection,
    the observations since the last one are recorded, each with a value in its bucket: counts and sums are exact, the
    minimum and the maximum are not. This takes about 10 microseconds for each acquire and each release, in the
    collecting thread. ``GCPOOL_OTEL_HISTOGRAMS=record`` in the environment does the same for every meter provider.

    :param meter_provider: the provider; by default the global one, which must be set before the call
    """
    with GlobalProvider.lock:
        follow()
        provider = GlobalProvider.provider if meter_provider is DEFAULT else meter_provider
        binding_of(provider).record(provider)


def no_binding() -> None:
    """Return None, as a dead weak reference does."""


def latest() -> ProviderBinding | None:
    """Return the binding that this thread has collected since the last call, or None."""
    binding: ProviderBinding | None = getattr(collected, 'binding', no_binding)()
    collected.binding = no_binding
    return binding
