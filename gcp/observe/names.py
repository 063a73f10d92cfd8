"""The one table of names: each metric as Prometheus and as OpenTelemetry know it.

Owns names, kinds, units, labels and their values, buckets and sentences. Whatever exports, draws or documents metrics
takes them from here, or is checked against it. OpenTelemetry's own names (`db.client.connection.*`, semantic
conventions 1.44, all in development) occur nowhere else. Knows no telemetry package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from gcp._core import AGE_BOUNDS, HOOK_OUTCOMES, HOOKS, OUTCOMES, REASONS, RESULTS, USE_BOUNDS, WAIT_BOUNDS

__all__ = [
    'ATTRIBUTES', 'BY_NAME', 'INSTRUMENTS', 'METRICS', 'OTHER', 'SCHEMA_URL', 'SCOPE', 'STATES', 'Instrument', 'Metric',
]

Kind = Literal['counter', 'gauge', 'histogram', 'info']
InstrumentKind = Literal['observable_counter', 'observable_up_down_counter', 'histogram']

#: of what is ours
SCOPE: Final = 'gcpool'
#: the version of OpenTelemetry's conventions whose names are used here
SCHEMA_URL: Final = 'https://opentelemetry.io/schemas/1.44.0'
#: the label of all endpoints that have none of their own
OTHER: Final = '_other'
#: of connections; one that is being disposed of is in none of them, though its place is taken until that is over
STATES: Final = ('idle', 'used', 'creating')


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric on a Prometheus page.

    :ivar name: as it is written in queries; a counter's ends in `_total`
    :ivar kind: what it is
    :ivar help: what it means, in one sentence without a full stop
    :ivar unit: as UCUM writes it: ``s`` for seconds, ``{connection}`` for a number of them
    :ivar labels: their names, in the order in which they are shown
    :ivar values: those of the labels that have a fixed set: each series exists at 0 from the start
    :ivar buckets: a histogram's upper bounds, without the last one, which is infinite
    :ivar merge: how values of several processes become one: ``sum``, or ``max``
    """

    name: str
    kind: Kind
    help: str
    unit: str
    labels: tuple[str, ...] = ('pool',)
    values: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    buckets: tuple[float, ...] = ()
    merge: Literal['sum', 'max'] = 'sum'

    @property
    def family(self) -> str:
        """The name without what its kind appends."""
        suffix = {'counter': '_total', 'info': '_info'}.get(self.kind, '')
        return self.name.removesuffix(suffix)

    @property
    def samples(self) -> tuple[str, ...]:
        """The names of its series."""
        if self.kind == 'histogram':
            return tuple(self.name + suffix for suffix in ('_bucket', '_sum', '_count'))
        return (self.name,)

    def combinations(self) -> tuple[Mapping[str, str], ...]:
        """All that the labels with a fixed set of values can be together."""
        found: list[dict[str, str]] = [{}]
        for label in self.labels:
            if label in self.values:
                found = [{**each, label: value} for each in found for value in self.values[label]]
        return tuple(each for each in found if each.get('outcome') != 'dead' or each.get('hook') == 'check_aliveness')


@dataclass(frozen=True, slots=True)
class Instrument:
    """One OpenTelemetry instrument, and which part of which metric it shows.

    :ivar name: its name
    :ivar kind: what it is
    :ivar unit: as UCUM writes it
    :ivar help: its description
    :ivar metric: the Prometheus name of the metric with the same figures
    :ivar where: the label values to which it is confined; those labels are no attributes of it
    :ivar attributes: the metric's labels that are attributes, by the attribute's name; the endpoint never is one
    """

    name: str
    kind: InstrumentKind
    unit: str
    help: str
    metric: str
    where: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def buckets(self) -> tuple[float, ...]:
        """A histogram's upper bounds, without the last one, which is infinite."""
        return BY_NAME[self.metric].buckets


#: OpenTelemetry's name of each label
ATTRIBUTES: Final[Mapping[str, str]] = MappingProxyType({
    'pool': 'db.client.connection.pool.name',
    'state': 'db.client.connection.state',
    'result': 'gcpool.result',
    'outcome': 'gcpool.outcome',
    'reason': 'gcpool.reason',
    'hook': 'gcpool.hook',
})

ENDPOINT = ('pool', 'pool_endpoint')


def fixed(**values: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    return MappingProxyType(values)


METRICS: Final[tuple[Metric, ...]] = (
    Metric('gcpool_connections', 'gauge', 'Connections by state',
           '{connection}', (*ENDPOINT, 'state'), fixed(state=STATES)),
    Metric('gcpool_max_connections', 'gauge', 'Connections of all endpoints together, at most', '{connection}'),
    Metric('gcpool_max_connections_per_endpoint', 'gauge', 'Connections of one endpoint, at most', '{connection}'),
    Metric('gcpool_min_idle_connections', 'gauge', 'Idle connections that each endpoint keeps', '{connection}'),
    Metric('gcpool_waiters', 'gauge', 'Acquires that wait in line now', '{acquire}', ENDPOINT),
    Metric('gcpool_oldest_waiter_seconds', 'gauge',
           'How long the oldest of the waiting acquires has waited, 0 without any', 's', merge='max'),
    Metric('gcpool_oldest_checkout_seconds', 'gauge',
           'How long the longest held connection has been held, 0 without any', 's', merge='max'),
    Metric('gcpool_endpoints', 'gauge', 'Endpoints that have a connection or a waiter', '{endpoint}'),
    Metric('gcpool_acquires_total', 'counter', 'Acquires that ended, by result', '{acquire}',
           (*ENDPOINT, 'result'), fixed(result=RESULTS)),
    Metric('gcpool_releases_total', 'counter', 'Releases, by what became of the connection', '{release}',
           (*ENDPOINT, 'outcome'), fixed(outcome=OUTCOMES)),
    Metric('gcpool_connections_closed_total', 'counter', 'Connections closed, by reason', '{connection}',
           (*ENDPOINT, 'reason'), fixed(reason=REASONS)),
    Metric('gcpool_hook_calls_total', 'counter', 'Calls of the hooks of the connection manager that ended, by outcome',
           '{call}', ('pool', 'hook', 'outcome'), fixed(hook=HOOKS, outcome=HOOK_OUTCOMES)),
    Metric('gcpool_hook_seconds', 'histogram', 'How long calls of the hooks of the connection manager took', 's',
           ('pool', 'hook'), fixed(hook=HOOKS), WAIT_BOUNDS),
    Metric('gcpool_acquire_wait_seconds', 'histogram',
           'How long acquires took, however they ended; an idle hit counts as 0', 's', buckets=WAIT_BOUNDS),
    Metric('gcpool_use_seconds', 'histogram', 'How long connections were held, from acquire to release', 's',
           buckets=USE_BOUNDS),
    Metric('gcpool_connection_age_seconds', 'histogram', 'How old connections were when they were closed', 's',
           buckets=AGE_BOUNDS),
    Metric('gcpool_leaks_detected_total', 'counter', 'Connections held for longer than the leak threshold',
           '{connection}', ENDPOINT),
    Metric('gcpool_endpoint_label_overflow_total', 'counter', 'Endpoints seen that got no label of their own',
           '{endpoint}'),
    Metric('gcpool_telemetry_errors_total', 'counter', 'Errors of what exports: labels, exporters, callbacks',
           '{error}'),
    Metric('gcpool_collect_seconds', 'gauge', 'How long the collection of these metrics took', 's', (), merge='max'),
    Metric('gcpool_info', 'info', 'What the pool is', '', ('pool', 'version', 'frontend'), merge='max'),
)

BY_NAME: Final[Mapping[str, Metric]] = MappingProxyType({metric.name: metric for metric in METRICS})


def instrument(
        name: str, kind: InstrumentKind, help: str, metric: str, *, unit: str | None = None, **where: str,
) -> Instrument:
    """Make an instrument whose attributes are the labels of its metric that are left."""
    shown = BY_NAME[metric]
    labels = [label for label in shown.labels if label != 'pool_endpoint' and label not in where]
    return Instrument(
        name, kind, shown.unit if unit is None else unit, help, metric, MappingProxyType(where),
        MappingProxyType({ATTRIBUTES[label]: label for label in labels}))


GAUGE: Final = 'observable_up_down_counter'
COUNTER: Final = 'observable_counter'

INSTRUMENTS: Final[tuple[Instrument, ...]] = (
    instrument('db.client.connection.count', GAUGE, 'Connections by state', 'gcpool_connections'),
    instrument('db.client.connection.max', GAUGE, 'Connections of all endpoints together, at most',
               'gcpool_max_connections'),
    instrument('db.client.connection.idle.max', GAUGE, 'Idle connections, at most: as many as there may be at all',
               'gcpool_max_connections'),
    instrument('db.client.connection.idle.min', GAUGE, 'Idle connections that each endpoint keeps',
               'gcpool_min_idle_connections'),
    instrument('db.client.connection.pending_requests', GAUGE, 'Acquires that wait in line now', 'gcpool_waiters',
               unit='{request}'),
    instrument('db.client.connection.timeouts', COUNTER, 'Acquires that timed out', 'gcpool_acquires_total',
               unit='{timeout}', result='timeout'),
    instrument('db.client.connection.create_time', 'histogram', 'How long creating connections took',
               'gcpool_hook_seconds', hook='create'),
    instrument('db.client.connection.wait_time', 'histogram', 'How long acquires took, however they ended',
               'gcpool_acquire_wait_seconds'),
    instrument('db.client.connection.use_time', 'histogram', 'How long connections were held', 'gcpool_use_seconds'),
    instrument('gcpool.acquires', COUNTER, 'Acquires that ended, by result', 'gcpool_acquires_total'),
    instrument('gcpool.releases', COUNTER, 'Releases, by what became of the connection', 'gcpool_releases_total'),
    instrument('gcpool.connections.closed', COUNTER, 'Connections closed, by reason',
               'gcpool_connections_closed_total'),
    instrument('gcpool.hook_calls', COUNTER, 'Calls of the hooks of the connection manager that ended, by outcome',
               'gcpool_hook_calls_total'),
)
