"""OpenTelemetry metrics: one set of observable instruments for each meter provider, over all of its pools.

Owns who is seen by which provider. Reads when a provider collects; pushes nothing. There is one set for each provider
because an SDK keeps the callbacks of the first instrument of a name only; and one reading for each collection, so that
the figures of all instruments agree with each other.

OpenTelemetry is not imported here before somebody else has done so: until then there can be no provider.

Histograms cannot be observed in OpenTelemetry. There are two ways to have them, both asked for: `gcp.observe.exporter`,
which is exact and costs nothing between exports, and `record_histograms`, for readers that have no exporter."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from time import monotonic, time_ns
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet, ref

from gcp.observe.accounts import Books, Reading
from gcp.observe.names import ATTRIBUTES, INSTRUMENTS, SCHEMA_URL, SCOPE, STATES, Instrument
from gcp.observe.telemetry import Telemetry, version
from gcp.options import DEFAULT

__all__ = ['join', 'record_histograms']

FRESH: Final = 1.0
"""For how long a reading serves the instruments that have not asked for it yet, in seconds."""

POOL: Final = ATTRIBUTES['pool']
OBSERVED: Final = tuple(instrument for instrument in INSTRUMENTS if instrument.kind != 'histogram')
HISTOGRAMS: Final = tuple(instrument for instrument in INSTRUMENTS if instrument.kind == 'histogram')

collected: Final = threading.local()
"""Its ``outlet``: the one that this thread has collected last, weakly. Exporters are called in the thread that did."""


# --- figures ---

def counted(reading: Reading, metric: str) -> Iterator[tuple[dict[str, str], int]]:
    """Yield a metric's values with their labels, without the pool's and the endpoint's."""
    total = reading.total
    if metric == 'gcpool_connections':
        yield from (({'state': state}, total[state]) for state in STATES)
    elif metric == 'gcpool_waiters':
        yield {}, total['waiting']
    elif metric == 'gcpool_acquires_total':
        yield from (({'result': result}, count) for result, count in total['acquires'].items())
    elif metric == 'gcpool_releases_total':
        yield from (({'outcome': outcome}, count) for outcome, count in total['releases'].items())
    elif metric == 'gcpool_connections_closed_total':
        yield from (({'reason': reason}, count) for reason, count in total['closed'].items())
    elif metric == 'gcpool_hook_calls_total':
        for hook, outcomes in total['hook_calls'].items():
            yield from (({'hook': hook, 'outcome': outcome}, count) for outcome, count in outcomes.items())
    elif reading.limits is not None:        # nobody is limited by a pool that is closed
        limits = ('gcpool_max_connections', 'gcpool_max_connections_per_endpoint', 'gcpool_min_idle_connections')
        yield {}, reading.limits[limits.index(metric)]


def figures(reading: Reading, instrument: Instrument) -> Iterator[tuple[dict[str, str], int]]:
    """Yield an instrument's values with their attributes."""
    for labels, value in counted(reading, instrument.metric):
        if all(labels[label] == only for label, only in instrument.where.items()):
            shown = {name: labels[label] for name, label in instrument.attributes.items() if label != 'pool'}
            yield {POOL: reading.pool, **shown}, value


def histograms(reading: Reading) -> Iterator[tuple[Instrument, tuple[str, str | None], tuple[int, ...], float]]:
    """Yield what was timed: the instrument, which exemplars are its own, how many in each bucket, and their sum."""
    for instrument in HISTOGRAMS:
        hook = instrument.where.get('hook')
        key = {'gcpool_acquire_wait_seconds': 'wait', 'gcpool_use_seconds': 'use'}.get(instrument.metric, 'hook')
        counts, total = reading.total['hook_time'][hook] if key == 'hook' else reading.total[key]
        yield instrument, (key, hook), counts, total


# --- instruments ---

class Outlet:
    """One provider's instruments, and the pools that it sees.

    :ivar born: when it was made, nanoseconds since the epoch
    :ivar superseded: whether another has taken its place
    """

    def __init__(self) -> None:
        self.books = Books(labelled=False)
        self.born = time_ns()
        self.superseded = False
        self._readings: list[Reading] = []
        self._taken = -1.0
        self._waiting: set[str] = set()     # instruments that this reading is still to serve
        self._recorder: Recorder | None = None

    def create(self, provider: Any) -> None:
        """Create the instruments."""
        meter = meter_of(provider)
        for instrument in OBSERVED:
            create = getattr(meter, f'create_{instrument.kind}')
            callback = partial(self.observe, instrument)
            create(instrument.name, callbacks=[callback], unit=instrument.unit, description=instrument.help)

    def record(self, provider: Any) -> None:
        """Have histograms recorded, too."""
        if self._recorder is None:
            self._recorder = Recorder(meter_of(provider))

    def observe(self, instrument: Instrument, options: object) -> Iterable[Any]:
        """Called by the provider when it collects."""
        try:
            from opentelemetry.metrics import Observation

            follow()
            if self.superseded:
                return []
            return [
                Observation(value, attributes)
                for reading in self._look(instrument.name) for attributes, value in figures(reading, instrument)
            ]
        except Exception as error:
            self.books.errors.note('opentelemetry', error)
            return []

    @property
    def readings(self) -> list[Reading]:
        """What the latest collection has seen."""
        return self._readings

    def _look(self, name: str) -> list[Reading]:
        """Read all pools, once for each collection."""
        collected.outlet = ref(self)
        with Globe.lock:
            if name not in self._waiting or monotonic() - self._taken > FRESH:
                self._readings = self.books.read()
                self._taken = monotonic()
                self._waiting = {instrument.name for instrument in OBSERVED}
                if self._recorder is not None:
                    self._recorder.catch_up(self._readings)
            self._waiting.discard(name)
            return self._readings


class Recorder:
    """Records histograms, in their buckets' places. The counts in all buckets and the sum come out right."""

    def __init__(self, meter: Any) -> None:
        self._instruments = {
            instrument.name: meter.create_histogram(
                instrument.name, unit=instrument.unit, description=instrument.help,
                explicit_bucket_boundaries_advisory=instrument.buckets)
            for instrument in HISTOGRAMS
        }
        self._seen: dict[tuple[str, str], tuple[tuple[int, ...], float]] = {}

    def catch_up(self, readings: list[Reading]) -> None:
        """Record what has been timed since last time."""
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


def since(last: tuple[tuple[int, ...], float] | None, counts: tuple[int, ...], total: float) -> tuple[
        tuple[int, ...], float]:
    """Return what has come to a histogram. What has become less has begun anew: a forked child's counts do."""
    if last is None or any(now < then for now, then in zip(counts, last[0], strict=True)):
        return counts, total
    return tuple(now - then for now, then in zip(counts, last[0], strict=True)), max(0.0, total - last[1])


def spread(bounds: tuple[float, ...], counts: tuple[int, ...], total: float) -> Iterator[tuple[float, int]]:
    """Find a value for each bucket such that all together have this sum."""
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


# --- who is seen by whom ---

outlets: Final[WeakKeyDictionary[Any, Outlet]] = WeakKeyDictionary()
followers: Final[WeakSet[Telemetry]] = WeakSet()
"""The pools that are seen by the global provider, whichever that is."""


class Globe:
    """The global provider.

    :ivar provider: the one known; the API's stand-in while there is none; None before OpenTelemetry was imported
    :ivar is_real: whether there is one
    :ivar lock: held while anything here changes
    """

    provider: Any = None
    is_real = False
    lock = threading.RLock()


def start_anew() -> None:
    """In a forked child, nobody holds the lock."""
    Globe.lock = threading.RLock()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=start_anew)


def meter_of(provider: Any) -> Any:
    return provider.get_meter(SCOPE, version(), SCHEMA_URL)


def outlet_of(provider: Any) -> Outlet:
    """Return a provider's outlet; make it if there is none."""
    with Globe.lock:
        outlet = outlets.get(provider)
        if outlet is None:
            outlet = outlets[provider] = Outlet()
            outlet.create(provider)
        return outlet


def follow() -> None:
    """See whether there is another global provider. All that follow it then do."""
    from opentelemetry.metrics import get_meter_provider

    provider = get_meter_provider()
    if provider is Globe.provider:
        return
    with Globe.lock:
        before, Globe.provider = Globe.provider, provider
        Globe.is_real = not is_stand_in(provider)
        if before is not None and before in outlets and stands_in(before, provider):
            stand_in = outlets.pop(before)
            if provider in outlets:     # a pool was given it before it became the global one: that set came first
                stand_in.superseded = True
            else:
                outlets[provider] = stand_in
                return
        books = outlet_of(provider).books
        for telemetry in list(followers):
            if telemetry.pool() is not None:
                books.add(telemetry)


def stands_in(one: Any, other: Any) -> bool:
    """Tell whether one provider is the API's stand-in, and the other the one that it stood in for. Its instruments have
    become the other's then."""
    return is_stand_in(one) and not is_stand_in(other) and meter_of(one) is meter_of(other)


def is_stand_in(provider: Any) -> bool:
    """Tell whether a provider is what the API gives while there is none."""
    kind = type(provider)
    return kind.__name__ == '_ProxyMeterProvider' and kind.__module__.startswith('opentelemetry.metrics')


def join(telemetry: Telemetry, provider: Any) -> None:
    """Let a pool be seen by a meter provider.

    :param telemetry: the pool's part in what is exported
    :param provider: the provider, or `DEFAULT` for the global one, whichever that is
    """
    if provider is DEFAULT and not is_imported():
        followers.add(telemetry)
        return
    follow()
    if provider is DEFAULT or is_stand_in(provider):
        with Globe.lock:
            followers.add(telemetry)
            outlet_of(Globe.provider).books.add(telemetry)
    else:
        outlet_of(provider).books.add(telemetry)


def is_imported() -> bool:
    """Tell whether there can be a global provider: somebody has imported the API, or its environment names one."""
    return Globe.provider is not None or 'opentelemetry.metrics' in sys.modules or (
        'OTEL_PYTHON_METER_PROVIDER' in os.environ)


def recheck(telemetry: Telemetry) -> None:
    """See whether the global provider was replaced. While there is none, its stand-in sees to that."""
    if Globe.is_real or (Globe.provider is None and 'opentelemetry.metrics' in sys.modules):
        try:
            follow()
        except Exception as error:
            telemetry.errors.note('meter_provider', error)


def record_histograms(meter_provider: Any = DEFAULT) -> None:
    """Have a meter provider record the histograms of its pools: create, wait and use times.

    For readers that call no exporter; where there is one, `gcp.observe.exporter.HistogramExporter` costs nothing. On
    each collection, all that was timed since the last one is recorded, each with a value in its bucket: counts and sums
    are right, the least and the greatest value are not. That takes some 10 microseconds for each acquire and each
    release, in the collecting thread.

    :param meter_provider: by default the global one, which must be set by then
    """
    with Globe.lock:
        follow()
        provider = Globe.provider if meter_provider is DEFAULT else meter_provider
        outlet_of(provider).record(provider)


def nothing() -> None:
    """Stands for a reference to nothing."""


def latest() -> Outlet | None:
    """Return what this thread has collected last, once."""
    outlet: Outlet | None = getattr(collected, 'outlet', nothing)()
    collected.outlet = nothing
    return outlet
