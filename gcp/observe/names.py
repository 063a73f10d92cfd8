"""The table of all metrics: names, kinds, units, labels, buckets and descriptions, for Prometheus and OpenTelemetry.

Exporters, the dashboard, the rules and the documentation use this table, or tests compare them with it. The names of
OpenTelemetry's semantic conventions 1.44 (`db.client.connection.*`, all "Development") occur nowhere else. This module
imports no telemetry package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from gcp._core import (
    AGE_BOUNDS,
    CONNECT_FAILURES,
    HOOK_OUTCOMES,
    HOOKS,
    OUTCOMES,
    REASONS,
    RESULTS,
    USE_BOUNDS,
    WAIT_BOUNDS,
)

__all__ = [
    'ATTRIBUTES',
    'BY_NAME',
    'HOOK_RESULTS',
    'INSTRUMENTS',
    'METRICS',
    'OTHER',
    'SCHEMA_URL',
    'SCOPE',
    'STATES',
    'Instrument',
    'Metric',
]

Kind = Literal['counter', 'gauge', 'histogram', 'info']
InstrumentKind = Literal['observable_counter', 'observable_up_down_counter', 'observable_gauge', 'histogram']

#: the instrumentation scope
SCOPE: Final = 'gcpool'
#: the version of the semantic conventions whose names are used
SCHEMA_URL: Final = 'https://opentelemetry.io/schemas/1.44.0'
#: the label shared by all endpoints that have none of their own
OTHER: Final = '_other'
#: results of hook calls: all outcomes but error, timeout and cancelled are ``ok``
HOOK_RESULTS: Final = ('ok', 'failed')
#: states of connections; one that is being disposed of is in none of them, though it keeps its slot until then
STATES: Final = ('idle', 'used', 'creating')
#: the hooks that may find a connection dead
CHECKS: Final = ('check_aliveness', 'keepalive')


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric on a Prometheus page.

    :ivar name: its name in queries, including a counter's `_total`
    :ivar kind: its type
    :ivar help: its description, one sentence without a full stop
    :ivar unit: the UCUM unit: ``s`` for seconds, ``{connection}`` for a count of connections
    :ivar labels: the names of its labels, in their order on the page
    :ivar values: the values of enumerated labels; all these series exist from the start, at 0
    :ivar buckets: the upper bounds of a histogram's buckets, without ``+Inf``
    :ivar merge: how the values of several processes are combined
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
        """The name without the suffix of its kind."""
        suffix = {'counter': '_total', 'info': '_info'}.get(self.kind, '')
        return self.name.removesuffix(suffix)

    @property
    def samples(self) -> tuple[str, ...]:
        """The names of its series."""
        if self.kind == 'histogram':
            return tuple(self.name + suffix for suffix in ('_bucket', '_sum', '_count'))
        return (self.name,)

    def combinations(self) -> tuple[Mapping[str, str], ...]:
        """Return all combinations of the values of enumerated labels."""
        found: list[dict[str, str]] = [{}]
        for label in self.labels:
            if label in self.values:
                found = [{**each, label: value} for each in found for value in self.values[label]]
        return tuple(each for each in found if each.get('outcome') != 'dead' or each.get('hook') in CHECKS)


@dataclass(frozen=True, slots=True)
class Instrument:
    """One OpenTelemetry instrument, and the Prometheus metric whose figures it exports.

    :ivar name: its name
    :ivar kind: its type
    :ivar unit: the UCUM unit
    :ivar help: its description
    :ivar metric: the name of the Prometheus metric
    :ivar where: the label values that select its series; these labels are not attributes
    :ivar attributes: the metric's other labels, by attribute name
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
        """The upper bounds of a histogram's buckets, without ``+Inf``."""
        return BY_NAME[self.metric].buckets


#: the attribute of each label
ATTRIBUTES: Final[Mapping[str, str]] = MappingProxyType(
    {
        'pool': 'db.client.connection.pool.name',
        'pool_endpoint': 'gcpool.endpoint',
        'state': 'db.client.connection.state',
        'result': 'gcpool.result',
        'outcome': 'gcpool.outcome',
        'reason': 'gcpool.reason',
        'hook': 'gcpool.hook',
        'class': 'gcpool.class',
    }
)

ENDPOINT = ('pool', 'pool_endpoint')


def fixed(**values: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    return MappingProxyType(values)


METRICS: Final[tuple[Metric, ...]] = (
    Metric(
        'gcpool_connections', 'gauge', 'Connections by state', '{connection}', (*ENDPOINT, 'state'), fixed(state=STATES)
    ),
    Metric('gcpool_max_connections', 'gauge', 'Limit of the connections to all endpoints together', '{connection}'),
    Metric('gcpool_max_connections_per_endpoint', 'gauge', 'Limit of the connections to one endpoint', '{connection}'),
    Metric('gcpool_min_idle_connections', 'gauge', 'Idle connections that are kept for each endpoint', '{connection}'),
    Metric(
        'gcpool_capacity',
        'gauge',
        'Connections that the pool could hold for the endpoints that it has now',
        '{connection}',
    ),
    Metric('gcpool_waiters', 'gauge', 'Acquires that are waiting now', '{acquire}', ENDPOINT),
    Metric(
        'gcpool_oldest_waiter_seconds',
        'gauge',
        'How long the oldest waiting acquire has waited, 0 without one',
        's',
        merge='max',
    ),
    Metric(
        'gcpool_oldest_checkout_seconds',
        'gauge',
        'How long the connection held longest has been held, 0 without one',
        's',
        merge='max',
    ),
    Metric('gcpool_endpoints', 'gauge', 'Endpoints that have a connection or a waiter', '{endpoint}'),
    Metric(
        'gcpool_acquires_total',
        'counter',
        'Ended acquires by result',
        '{acquire}',
        (*ENDPOINT, 'result'),
        fixed(result=RESULTS),
    ),
    Metric(
        'gcpool_releases_total',
        'counter',
        'Releases by what happened to the connection',
        '{release}',
        (*ENDPOINT, 'outcome'),
        fixed(outcome=OUTCOMES),
    ),
    Metric(
        'gcpool_connections_closed_total',
        'counter',
        'Closed connections by reason',
        '{connection}',
        (*ENDPOINT, 'reason'),
        fixed(reason=REASONS),
    ),
    Metric(
        'gcpool_hook_calls_total',
        'counter',
        'Ended calls of the hooks of the connection manager by outcome',
        '{call}',
        ('pool', 'hook', 'outcome'),
        fixed(hook=HOOKS, outcome=HOOK_OUTCOMES),
    ),
    Metric(
        'gcpool_hook_seconds',
        'histogram',
        'Duration of calls of the hooks of the connection manager',
        's',
        ('pool', 'hook', 'result'),
        fixed(hook=HOOKS, result=HOOK_RESULTS),
        WAIT_BOUNDS,
    ),
    Metric(
        'gcpool_acquire_wait_seconds',
        'histogram',
        'Duration of acquires with any result; an idle hit counts as 0',
        's',
        buckets=WAIT_BOUNDS,
    ),
    Metric(
        'gcpool_use_seconds',
        'histogram',
        'How long connections were held, from acquire to release',
        's',
        buckets=USE_BOUNDS,
    ),
    Metric(
        'gcpool_connection_age_seconds',
        'histogram',
        'Age of connections when they were closed',
        's',
        buckets=AGE_BOUNDS,
    ),
    Metric(
        'gcpool_leaks_detected_total',
        'counter',
        'Connections held for longer than the leak threshold',
        '{connection}',
        ENDPOINT,
    ),
    Metric(
        'gcpool_connect_failures_total',
        'counter',
        'Failed connects by the class of their error',
        '{connect}',
        (*ENDPOINT, 'class'),
        fixed(**{'class': CONNECT_FAILURES}),
    ),
    Metric(
        'gcpool_connect_waiters',
        'gauge',
        'Acquires that wait until a connect may begin, which the limits of connects or a retry delay forbid',
        '{acquire}',
        ENDPOINT,
    ),
    Metric(
        'gcpool_breaker_open',
        'gauge',
        'Endpoints whose breaker is open or half open, 0 or 1 where the label is that of one endpoint',
        '{endpoint}',
        ENDPOINT,
    ),
    Metric(
        'gcpool_retry_delay_seconds',
        'gauge',
        'How long until the next connect to the endpoint may begin, 0 if it may now',
        's',
        ENDPOINT,
        merge='max',
    ),
    Metric(
        'gcpool_missing_connections',
        'gauge',
        'Connections that endpoints lack of their min_idle, and that the pool is to open',
        '{connection}',
        ENDPOINT,
    ),
    Metric(
        'gcpool_suspended',
        'gauge',
        'Endpoints that are suspended, 0 or 1 where the label is that of one endpoint',
        '{endpoint}',
        ENDPOINT,
    ),
    Metric(
        'gcpool_stale_connections',
        'gauge',
        'Connections that were opened before they were expired, and are not gone yet',
        '{connection}',
        ENDPOINT,
    ),
    Metric(
        'gcpool_endpoint_max_connections',
        'gauge',
        'Limit of the connections to the endpoint, its own or that of the pool',
        '{connection}',
        ENDPOINT,
    ),
    Metric(
        'gcpool_limits_errors_total', 'counter', 'Failed calls of the function that limits single endpoints', '{error}'
    ),
    Metric(
        'gcpool_abandoned_leases_total',
        'counter',
        'Leases that were garbage-collected before they were released',
        '{lease}',
    ),
    Metric('gcpool_reclaim_runs_total', 'counter', 'Runs of the garbage collector for holders that are gone', '{run}'),
    Metric('gcpool_listener_errors_total', 'counter', 'Calls of listeners that have raised', '{error}'),
    Metric(
        'gcpool_listener_events_dropped_total',
        'counter',
        'Events that listeners were too slow to be told of',
        '{event}',
    ),
    Metric('gcpool_endpoint_label_overflow_total', 'counter', 'Endpoints that got no label of their own', '{endpoint}'),
    Metric('gcpool_telemetry_errors_total', 'counter', 'Errors of label functions, exporters and callbacks', '{error}'),
    Metric('gcpool_collect_seconds', 'gauge', 'Duration of the last collection of these metrics', 's', (), merge='max'),
    Metric(
        'gcpool_info', 'info', 'Version and front end of the pool', '', ('pool', 'version', 'frontend'), merge='max'
    ),
)

BY_NAME: Final[Mapping[str, Metric]] = MappingProxyType({metric.name: metric for metric in METRICS})


def instrument(
    name: str,
    kind: InstrumentKind,
    help: str,
    metric: str,
    *,
    unit: str | None = None,
    **where: str,
) -> Instrument:
    """Return an instrument. The labels that `where` does not fix are its attributes."""
    shown = BY_NAME[metric]
    labels = [label for label in shown.labels if label not in where]
    return Instrument(
        name,
        kind,
        shown.unit if unit is None else unit,
        help,
        metric,
        MappingProxyType(where),
        MappingProxyType({ATTRIBUTES[label]: label for label in labels}),
    )


GAUGE: Final = 'observable_up_down_counter'
LATEST: Final = 'observable_gauge'
COUNTER: Final = 'observable_counter'

INSTRUMENTS: Final[tuple[Instrument, ...]] = (
    instrument('db.client.connection.count', GAUGE, 'Connections by state', 'gcpool_connections'),
    instrument(
        'db.client.connection.max',
        GAUGE,
        'Connections that the pool could hold for the endpoints that it has now',
        'gcpool_capacity',
    ),
    instrument(
        'db.client.connection.idle.max',
        GAUGE,
        'Limit of idle connections, the same as of all connections',
        'gcpool_capacity',
    ),
    instrument(
        'db.client.connection.idle.min',
        GAUGE,
        'Idle connections that are kept for each endpoint',
        'gcpool_min_idle_connections',
    ),
    instrument(
        'db.client.connection.pending_requests',
        GAUGE,
        'Acquires that are waiting now',
        'gcpool_waiters',
        unit='{request}',
    ),
    instrument(
        'db.client.connection.timeouts',
        COUNTER,
        'Acquires that timed out',
        'gcpool_acquires_total',
        unit='{timeout}',
        result='timeout',
    ),
    instrument(
        'db.client.connection.create_time',
        'histogram',
        'Duration of creating connections, without failed attempts',
        'gcpool_hook_seconds',
        hook='create',
        result='ok',
    ),
    instrument(
        'db.client.connection.wait_time',
        'histogram',
        'Duration of acquires with any result',
        'gcpool_acquire_wait_seconds',
    ),
    instrument('db.client.connection.use_time', 'histogram', 'How long connections were held', 'gcpool_use_seconds'),
    instrument('gcpool.connection.acquires', COUNTER, 'Ended acquires by result', 'gcpool_acquires_total'),
    instrument(
        'gcpool.connection.releases',
        COUNTER,
        'Releases by what happened to the connection',
        'gcpool_releases_total',
    ),
    instrument('gcpool.connection.closes', COUNTER, 'Closed connections by reason', 'gcpool_connections_closed_total'),
    instrument(
        'gcpool.connection.hook_calls',
        COUNTER,
        'Ended calls of the hooks of the connection manager by outcome',
        'gcpool_hook_calls_total',
    ),
    instrument(
        'gcpool.connection.connect_failures',
        COUNTER,
        'Failed connects by the class of their error',
        'gcpool_connect_failures_total',
    ),
    instrument(
        'gcpool.connection.connect_waiters',
        GAUGE,
        'Acquires that wait until a connect may begin',
        'gcpool_connect_waiters',
    ),
    instrument(
        'gcpool.connection.breakers_open',
        GAUGE,
        'Endpoints whose breaker is open or half open',
        'gcpool_breaker_open',
    ),
    instrument(
        'gcpool.connection.retry_delay',
        LATEST,
        'How long until the next connect to the endpoint may begin',
        'gcpool_retry_delay_seconds',
    ),
    instrument(
        'gcpool.connection.missing',
        GAUGE,
        'Connections that endpoints lack of their min_idle, and that the pool is to open',
        'gcpool_missing_connections',
    ),
    instrument(
        'gcpool.connection.suspended',
        GAUGE,
        'Endpoints that are suspended',
        'gcpool_suspended',
    ),
    instrument(
        'gcpool.connection.stale',
        GAUGE,
        'Connections that were opened before they were expired, and are not gone yet',
        'gcpool_stale_connections',
    ),
    instrument(
        'gcpool.connection.endpoint_max',
        GAUGE,
        'Limit of the connections to the endpoint',
        'gcpool_endpoint_max_connections',
    ),
    instrument(
        'gcpool.connection.limits_errors',
        COUNTER,
        'Failed calls of the function that limits single endpoints',
        'gcpool_limits_errors_total',
    ),
    instrument(
        'gcpool.connection.abandoned_leases',
        COUNTER,
        'Leases that were garbage-collected before they were released',
        'gcpool_abandoned_leases_total',
    ),
    instrument(
        'gcpool.connection.reclaim_runs',
        COUNTER,
        'Runs of the garbage collector for holders that are gone',
        'gcpool_reclaim_runs_total',
    ),
    instrument(
        'gcpool.connection.listener_errors',
        COUNTER,
        'Calls of listeners that have raised',
        'gcpool_listener_errors_total',
    ),
    instrument(
        'gcpool.connection.listener_events_dropped',
        COUNTER,
        'Events that listeners were too slow to be told of',
        'gcpool_listener_events_dropped_total',
    ),
)
