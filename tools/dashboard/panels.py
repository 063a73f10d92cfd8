"""The contents of the dashboard: rows, panels, queries, descriptions. `tools.dashboard.generate` turns them into
Grafana's format. A test checks that the names of metrics and labels are those of `gcp.observe.names`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

__all__ = ['ROWS', 'VARIABLES', 'Panel', 'Query', 'Row', 'Variable']

PROCESS: Final = 'job=~"$job", instance=~"$instance"'
POOL: Final = PROCESS + ', pool=~"$pool"'
ENDPOINT: Final = POOL + ', pool_endpoint=~"$pool_endpoint"'

GREEN, BLUE, YELLOW, ORANGE, RED, PURPLE, GREY = 'green', 'blue', 'yellow', 'orange', 'red', 'purple', '#8e8e8e'


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the dashboard, with the values of a label.

    :ivar everything: the value of "All". In multiprocess mode there are no endpoint labels, so it must match a missing
        label, too
    """

    name: str
    query: str
    help: str
    everything: str = '.+'


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL query.

    :ivar legend: the names of its series, with labels in double braces
    :ivar exemplars: whether to show exemplars, which lead to traces
    :ivar limit: whether it is a limit: drawn as a dashed line, never stacked
    """

    expr: str
    legend: str
    exemplars: bool = False
    limit: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    :ivar kind: Grafana's type
    :ivar help: its description: what it shows, how to read it, what to do
    :ivar unit: Grafana's name of the unit
    :ivar width: its width, of 24 columns
    :ivar stacked: whether the series are stacked
    :ivar colors: colours of series by legend; others have Grafana's default
    :ivar steps: thresholds with their colours; green below the first
    :ivar line: a constant limit
    """

    title: str
    help: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal['stat', 'timeseries', 'heatmap', 'table'] = 'timeseries'
    width: int = 8
    stacked: bool = False
    colors: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    steps: tuple[tuple[float, str], ...] = ()
    line: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


# --- queries ---


def rate(metric: str, by: str = '', where: str = '', labels: str = ENDPOINT) -> str:
    """Return a query for the rate of a counter."""
    return summed('rate', metric, by, where, labels)


def added(metric: str, by: str = '', where: str = '', labels: str = ENDPOINT) -> str:
    """Return a query for the increase of a counter between two points."""
    return summed('increase', metric, by, where, labels)


def average(metric: str, by: str = '', where: str = '', labels: str = ENDPOINT) -> str:
    """Return a query for the average of a gauge between two points, which is steadier than its value at one scrape."""
    return summed('avg_over_time', metric, by, where, labels)


def summed(function: str, metric: str, by: str, where: str, labels: str) -> str:
    return f'sum{grouped(by)} ({function}({metric}{{{both(labels, where)}}}[$__rate_interval]))'


def gauge(metric: str, by: str = '', where: str = '', labels: str = ENDPOINT, how: str = 'sum') -> str:
    """Return a query for the current value of a gauge."""
    return f'{how}{grouped(by)} ({metric}{{{both(labels, where)}}})'


def quantile(q: float, metric: str, by: str = '', where: str = '') -> str:
    """Return a query for a quantile. Histograms have no endpoint label."""
    buckets = rate(f'{metric}_bucket', f'{by}, le' if by else 'le', where, POOL)
    return f'histogram_quantile({q:g}, {buckets})'


def quantiles(metric: str, where: str = '') -> tuple[Query, ...]:
    """Return queries for p50, p95 and p99."""
    return tuple(Query(quantile(q, metric, where=where), f'p{q * 100:g}', exemplars=True) for q in (0.5, 0.95, 0.99))


def share(metric: str, where: str, by: str = '') -> str:
    """Return a query for a share of all events."""
    return f'{rate(metric, by, where)} / {rate(metric, by)}'


def grouped(by: str) -> str:
    return by and f' by ({by})'


def both(*matchers: str) -> str:
    return ', '.join(filter(None, matchers))


BUSY: Final = 'state=~"used|creating"'
FAILING: Final = 'result=~"timeout|error|rejected"'
QUEUED: Final = 'result=~"waited|timeout"'
CREATED: Final = 'hook="create", outcome="ok"'
ONE_POOL: Final = 'job, instance, pool'
CAPACITY: Final = f'clamp_min({average("gcpool_capacity", ONE_POOL, labels=POOL)}, 1)'  # without endpoints it is 0
FULLNESS: Final = f'{average("gcpool_connections", ONE_POOL, BUSY, POOL)} / {CAPACITY}'
ENDPOINT_FULLNESS: Final = (
    average('gcpool_connections', f'{ONE_POOL}, pool_endpoint', f'pool_endpoint!~"|_other", {BUSY}')
    + ' / '
    + gauge('gcpool_endpoint_max_connections', f'{ONE_POOL}, pool_endpoint')
)
NEEDED: Final = f'{rate("gcpool_use_seconds_sum", ONE_POOL, labels=POOL)} / {CAPACITY}'


def colors(**of: str) -> Mapping[str, str]:
    return MappingProxyType(of)


BY_RESULT: Final = colors(
    hit=GREEN, created=BLUE, waited=YELLOW, timeout=RED, cancelled=GREY, error=PURPLE, rejected=ORANGE
)
BY_STATE: Final = colors(used=BLUE, creating=YELLOW, idle=GREEN, capacity=RED)
BY_QUANTILE: Final = colors(p50=GREEN, p95=YELLOW, p99=ORANGE)
BY_OUTCOME: Final = colors(idle=GREEN, handoff=YELLOW, discarded=RED)
BY_CLASS: Final = colors(transient=YELLOW, permanent=RED)
BY_CALL: Final = colors(ok=GREEN, error=RED, timeout=ORANGE, cancelled=GREY)
BY_REASON: Final = colors(
    idle_timeout=GREEN, max_lifetime=BLUE, dead=RED, discarded=ORANGE, evicted=YELLOW, pool_closed=GREY, error=PURPLE
)

# --- the dashboard ---

VARIABLES: Final[tuple[Variable, ...]] = (
    Variable('job', 'label_values(gcpool_max_connections, job)', 'The scrape job.'),
    Variable(
        'instance', 'label_values(gcpool_max_connections{job=~"$job"}, instance)', 'The process, as it is scraped.'
    ),
    Variable(
        'pool',
        'label_values(gcpool_max_connections{job=~"$job", instance=~"$instance"}, pool)',
        'The name of the pool.',
    ),
    Variable(
        'pool_endpoint',
        f'label_values(gcpool_connections{{{POOL}}}, pool_endpoint)',
        'What the pool connects to. Times are those of the whole pool.',
        everything='.*',
    ),
)

OVERVIEW: Final = Row(
    'Overview',
    (
        Panel(
            'Acquires',
            'Ended acquires per second, with any result.',
            'ops',
            (Query(rate('gcpool_acquires_total'), 'acquires'),),
            'stat',
            3,
        ),
        Panel(
            'Idle hits',
            'The share of acquires that found an idle connection. A low value: the pool is too small, or its connections '
            'are closed before they are used again.',
            'percentunit',
            (Query(share('gcpool_acquires_total', 'result="hit"'), 'hits'),),
            'stat',
            3,
            steps=((0.0, RED), (0.5, YELLOW), (0.9, GREEN)),
        ),
        Panel(
            'Fullest pool',
            'Connections in use or being created, as a share of the capacity, of the fullest pool. At 100 % an acquire '
            'that finds no idle connection has to wait.',
            'percentunit',
            (Query(f'max({FULLNESS})', 'fullest'),),
            'stat',
            3,
            steps=((0.7, YELLOW), (0.9, RED)),
        ),
        Panel(
            'Waiting now',
            'Acquires that are waiting. If this stays above 0, the pool is saturated.',
            'short',
            (Query(gauge('gcpool_waiters'), 'waiting'),),
            'stat',
            3,
            steps=((1, YELLOW), (10, RED)),
        ),
        Panel(
            'Acquire time, p99',
            'One acquire in a hundred took longer than this.',
            's',
            (Query(quantile(0.99, 'gcpool_acquire_wait_seconds'), 'p99'),),
            'stat',
            3,
            steps=((0.1, YELLOW), (1, RED)),
        ),
        Panel(
            'Failing acquires',
            'The share of acquires that ended in a timeout or another error, or were refused. Callers see each of them.',
            'percentunit',
            (Query(share('gcpool_acquires_total', FAILING), 'failing'),),
            'stat',
            3,
            steps=((0.0001, YELLOW), (0.01, RED)),
        ),
        Panel(
            'New connections',
            'Connections created per second. In a healthy pool this is close to 0.',
            'ops',
            (Query(rate('gcpool_hook_calls_total', where=CREATED, labels=POOL), 'created'),),
            'stat',
            3,
        ),
        Panel(
            'Longest held',
            'For how long the connection that was acquired first and not yet released has been held.',
            's',
            (Query(gauge('gcpool_oldest_checkout_seconds', labels=POOL, how='max'), 'longest held'),),
            'stat',
            3,
            steps=((300, YELLOW), (3600, RED)),
        ),
        Panel(
            'Connections by state',
            'The connections of the pools, against their capacity (dashed). Many idle all day: the pool is larger than '
            'necessary. None idle: every acquire waits or creates.',
            'short',
            (
                Query(gauge('gcpool_connections', 'state'), '{{state}}'),
                Query(gauge('gcpool_capacity', labels=POOL), 'capacity', limit=True),
            ),
            width=12,
            stacked=True,
            colors=BY_STATE,
        ),
        Panel(
            'Acquires by result',
            'How acquires ended: with an idle connection (hit), with a new one (created), with one that another caller '
            'released (waited), or without one (timeout, cancelled, error; rejected: at once).',
            'ops',
            (Query(rate('gcpool_acquires_total', 'result'), '{{result}}'),),
            width=12,
            stacked=True,
            colors=BY_RESULT,
        ),
    ),
)

SATURATION: Final = Row(
    'Saturation',
    (
        Panel(
            'Pool fullness',
            'Connections in use or being created, as a share of the capacity; of several processes the fullest. A pool '
            'that reaches the dashed line while acquires wait is too small for its load, or its connections are held for '
            'too long: see Who holds.',
            'percentunit',
            (Query(f'max by (pool) ({FULLNESS})', '{{pool}}'),),
            width=6,
            line=1,
        ),
        Panel(
            'Fullness of the fullest endpoint',
            'The same for one endpoint and its limit (max_size, its own or that of the pool), which is usually reached '
            'first. Endpoints without a label of their own are left out.',
            'percentunit',
            (Query(f'max by (pool) ({ENDPOINT_FULLNESS})', '{{pool}}'),),
            width=6,
            line=1,
        ),
        Panel(
            'Connections needed',
            'Connections held on average, as a share of the capacity, computed from the times of use and not from samples. '
            'If this is above 50 % for long, acquires begin to wait; the maximum is 100 % (dashed). A use is counted when '
            'it ends, so a single long one is a spike.',
            'percentunit',
            (Query(f'max by (pool) ({NEEDED})', '{{pool}}'),),
            width=6,
            line=1,
        ),
        Panel(
            'Capacity',
            'How many connections the pools could hold for the endpoints that they have now, against total_max_size '
            '(dashed). Where both are equal, endpoints compete: a new connection to one evicts an idle one to another.',
            'short',
            (
                Query(gauge('gcpool_capacity', 'pool', labels=POOL), '{{pool}}'),
                Query(gauge('gcpool_max_connections', 'pool', labels=POOL), 'limit of {{pool}}', limit=True),
            ),
            width=6,
        ),
        Panel(
            'Waiting acquires',
            'Acquires that wait for a connection, by pool. If the number returns to 0, it was a burst; if it does not, the '
            'pool is saturated.',
            'short',
            (Query(gauge('gcpool_waiters', 'pool'), '{{pool}}'),),
            width=6,
        ),
        Panel(
            'Oldest waiter',
            'For how long the oldest waiter has waited. Close to acquire_timeout, acquires are about to fail.',
            's',
            (Query(gauge('gcpool_oldest_waiter_seconds', 'pool', labels=POOL, how='max'), '{{pool}}'),),
            width=6,
        ),
        Panel(
            'Acquires that had to wait',
            'The share of acquires that waited, whether or not they got a connection.',
            'percentunit',
            (Query(share('gcpool_acquires_total', QUEUED, 'pool'), '{{pool}}'),),
            width=6,
        ),
        Panel(
            'Failing acquires by pool',
            'Acquires that ended in a timeout or another error, or were refused. Timeouts ask for more connections or '
            'shorter use; errors come from the connection manager: see Hook calls; refused ones: see Connecting.',
            'ops',
            (Query(rate('gcpool_acquires_total', 'pool, result', FAILING), '{{pool}}: {{result}}'),),
            width=6,
        ),
    ),
)

LATENCY: Final = Row(
    'Acquire latency',
    (
        Panel(
            'Acquire time',
            'How long callers waited for a connection. An idle hit counts as 0 (the time of its check is under Hook '
            'calls), so p50 at 0 is the normal state; watch p99. The dots are acquires with a trace: click one to see '
            'who held the connection.',
            's',
            quantiles('gcpool_acquire_wait_seconds'),
            colors=BY_QUANTILE,
        ),
        Panel(
            'Acquire time, p99 by pool',
            'One acquire in a hundred took longer than this: which pool makes its callers wait.',
            's',
            (Query(quantile(0.99, 'gcpool_acquire_wait_seconds', 'pool'), '{{pool}}', exemplars=True),),
        ),
        Panel(
            'Acquire time, distribution',
            'How many acquires took how long. Two separate bands are hits and waits: the upper one is the cost of waiting '
            'or connecting.',
            's',
            (Query(added('gcpool_acquire_wait_seconds_bucket', 'le', labels=POOL), '{{le}}', exemplars=True),),
            'heatmap',
        ),
    ),
)

USE: Final = Row(
    'Who holds',
    (
        Panel(
            'Time held',
            'How long callers held their connections, from acquire to release. If this grows, the same limits serve fewer '
            'callers: look at the queries, and at the work done between them.',
            's',
            quantiles('gcpool_use_seconds'),
            colors=BY_QUANTILE,
        ),
        Panel(
            'Longest held connection',
            'For how long the connection that was acquired first has been held. A straight line that rises and never falls '
            'is a leaked connection.',
            's',
            (Query(gauge('gcpool_oldest_checkout_seconds', 'pool', labels=POOL, how='max'), '{{pool}}'),),
        ),
        Panel(
            'Leaks detected',
            'Connections that were held for longer than the leak_threshold of their pool, each counted once (always 0 '
            'without a threshold), and leases that were garbage-collected before they were released. The log names the '
            'line that acquired each; pool.holders() and the debug page show who holds what now.',
            'short',
            (
                Query(added('gcpool_leaks_detected_total', 'pool'), '{{pool}}'),
                Query(added('gcpool_abandoned_leases_total', 'pool', labels=POOL), '{{pool}}: garbage-collected'),
                Query(added('gcpool_reclaim_runs_total', 'pool', labels=POOL), '{{pool}}: reclaimed'),
            ),
        ),
        Panel(
            'Time held, p95 by pool',
            'The pools whose connections are held for longest.',
            's',
            (Query(quantile(0.95, 'gcpool_use_seconds', 'pool'), '{{pool}}', exemplars=True),),
            width=12,
        ),
        Panel(
            'Releases by outcome',
            'What happened to released connections: idle again (idle), handed to a waiter (handoff), closed (discarded). '
            'Many handoffs mean that acquires wait all the time.',
            'ops',
            (Query(rate('gcpool_releases_total', 'outcome'), '{{outcome}}'),),
            width=12,
            stacked=True,
            colors=BY_OUTCOME,
        ),
    ),
)

HOOKS: Final = Row(
    'Hook calls',
    (
        Panel(
            'Hook calls by hook',
            'Calls of the hooks of the connection manager. check_aliveness, on_acquire and on_release grow with the '
            'acquires; create and dispose are churn.',
            'ops',
            (Query(rate('gcpool_hook_calls_total', 'hook', labels=POOL), '{{hook}}'),),
        ),
        Panel(
            'Hook time, p95',
            'The duration of hook calls that succeeded. A slow check_aliveness, on_acquire or on_release delays every acquire.',
            's',
            (Query(quantile(0.95, 'gcpool_hook_seconds', 'hook', 'result="ok"'), '{{hook}}', exemplars=True),),
        ),
        Panel(
            'Failed hook calls',
            'Hook calls that raised, timed out or were cancelled, and checks that found the connection dead. Errors of '
            'create: the server refuses connections, or cannot be reached.',
            'ops',
            (
                Query(
                    rate('gcpool_hook_calls_total', 'hook, outcome', 'outcome!="ok"', POOL)
                    + ' > 0 or '
                    + rate('gcpool_hook_calls_total', 'hook, outcome', 'hook="create", outcome="error"', POOL),
                    '{{hook}}: {{outcome}}',
                ),
            ),
        ),
        Panel(
            'Time to create',
            'How long connecting takes where it succeeds. If this grows and the load does not, the server is slow to accept connections, or '
            'DNS, TLS or a proxy is slow.',
            's',
            quantiles('gcpool_hook_seconds', 'hook="create", result="ok"'),
            width=12,
            colors=BY_QUANTILE,
        ),
        Panel(
            'Time to create, distribution',
            'How many creations that succeeded took how long. Bands at 1 s, 3 s and 7 s are retransmissions of lost packets.',
            's',
            (
                Query(
                    added('gcpool_hook_seconds_bucket', 'le', 'hook="create", result="ok"', POOL),
                    '{{le}}',
                    exemplars=True,
                ),
            ),
            'heatmap',
            width=12,
        ),
    ),
)

CONNECTING: Final = Row(
    'Connecting',
    (
        Panel(
            'Connects',
            'Attempts to connect by outcome. While a server is away, retries and breakers keep the failing ones few: one at '
            'a time for each endpoint.',
            'ops',
            (Query(rate('gcpool_hook_calls_total', 'outcome', 'hook="create"', POOL), '{{outcome}}'),),
            width=6,
            stacked=True,
            colors=BY_CALL,
        ),
        Panel(
            'Failed connects by class',
            'Failed connects by what classify says of their error. transient: it may go away by itself. permanent: a wrong '
            'password, an unknown host or database, a certificate: no retry helps.',
            'ops',
            (Query(rate('gcpool_connect_failures_total', 'class'), '{{class}}'),),
            width=6,
            stacked=True,
            colors=BY_CLASS,
        ),
        Panel(
            'Unavailable endpoints',
            'Endpoints whose breaker is open or half open: their latest connects have failed, and acquires that find no '
            'idle connection get EndpointUnavailableError at once.',
            'short',
            (Query(gauge('gcpool_breaker_open', 'pool, pool_endpoint'), '{{pool}}: {{pool_endpoint}}'),),
            width=6,
        ),
        Panel(
            'Refused acquires',
            'Acquires that got their error at once, without waiting: the endpoint is unavailable, or as many acquires wait '
            'for it as may wait.',
            'ops',
            (Query(rate('gcpool_acquires_total', 'pool', 'result="rejected"'), '{{pool}}'),),
            width=6,
        ),
        Panel(
            'Waiting to connect',
            'Acquires that wait until a connect of their endpoint may begin: for max_connecting, max_connecting_total, a '
            'connect worker, or a retry delay. They may be served by a release meanwhile.',
            'short',
            (Query(gauge('gcpool_connect_waiters', 'pool, pool_endpoint'), '{{pool}}: {{pool_endpoint}}'),),
            width=8,
        ),
        Panel(
            'Retry delay',
            'How long until the next connect to a failing endpoint may begin. It grows with each failure, up to the maximum '
            'of connect_retry, and is 0 as soon as a connect succeeds.',
            's',
            (
                Query(
                    gauge('gcpool_retry_delay_seconds', 'pool, pool_endpoint', how='max'), '{{pool}}: {{pool_endpoint}}'
                ),
            ),
            width=8,
        ),
        Panel(
            'Missing connections',
            'Connections that endpoints lack of their min_idle: those kept by refill, and those that are being warmed '
            'up. Above 0 for more than moments: connects fail, or the total limit leaves no room.',
            'short',
            (Query(gauge('gcpool_missing_connections', 'pool, pool_endpoint'), '{{pool}}: {{pool_endpoint}}'),),
            width=8,
        ),
        Panel(
            'Suspended endpoints',
            'Endpoints whose acquires wait, or fail, until resume is called.',
            'short',
            (Query(gauge('gcpool_suspended', 'pool, pool_endpoint'), '{{pool}}: {{pool_endpoint}}'),),
            width=12,
        ),
        Panel(
            'Expired connections that are left',
            'Connections that were opened before expire was called, and are not gone yet: those that are held go when they '
            'are released.',
            'short',
            (Query(gauge('gcpool_stale_connections', 'pool, pool_endpoint'), '{{pool}}: {{pool_endpoint}}'),),
            width=12,
        ),
    ),
)

CHURN: Final = Row(
    'Churn',
    (
        Panel(
            'Created and closed',
            'Connections created and closed. Under a steady load both are close to 0. If both are high, the pool churns, '
            'and callers wait for handshakes.',
            'ops',
            (
                Query(rate('gcpool_hook_calls_total', where=CREATED, labels=POOL), 'created'),
                Query(rate('gcpool_connections_closed_total', labels=POOL), 'closed'),
            ),
            width=12,
            colors=colors(created=BLUE, closed=ORANGE),
        ),
        Panel(
            'Closed by reason',
            'Why connections were closed. evicted: endpoints compete for total_max_size; idle_timeout: it is shorter than '
            'the pauses of the load; dead: the server closed it; discarded, error: a hook failed.',
            'ops',
            (Query(rate('gcpool_connections_closed_total', 'reason'), '{{reason}}'),),
            width=12,
            stacked=True,
            colors=BY_REASON,
        ),
        Panel(
            'Acquires per new connection',
            'How often a connection is used. Below 5, the pool brings little: raise idle_timeout, max_lifetime or the '
            'limits.',
            'short',
            (
                Query(
                    rate('gcpool_acquire_wait_seconds_count', 'pool', labels=POOL)
                    + ' / '
                    + rate('gcpool_hook_calls_total', 'pool', CREATED, POOL),
                    '{{pool}}',
                ),
            ),
            width=12,
        ),
        Panel(
            'Age at close',
            'The age of connections when they were closed. Close to idle_timeout or max_lifetime, these closed them; much '
            'lower, something else did.',
            's',
            quantiles('gcpool_connection_age_seconds'),
            width=12,
            colors=BY_QUANTILE,
        ),
    ),
)

ENDPOINTS: Final = Row(
    'Endpoints',
    (
        Panel(
            'Connections by endpoint',
            'Connections of each endpoint, in any state, against its limit (dashed).',
            'short',
            (
                Query(gauge('gcpool_connections', 'pool, pool_endpoint'), '{{pool}}: {{pool_endpoint}}'),
                Query(
                    gauge('gcpool_endpoint_max_connections', 'pool, pool_endpoint'),
                    'limit of {{pool}}: {{pool_endpoint}}',
                    limit=True,
                ),
            ),
            width=12,
        ),
        Panel(
            'Idle connections by endpoint',
            'Idle connections, against min_idle (dashed). Those above it are closed after idle_timeout.',
            'short',
            (
                Query(
                    average('gcpool_connections', 'pool, pool_endpoint', 'state="idle"'), '{{pool}}: {{pool_endpoint}}'
                ),
                Query(gauge('gcpool_min_idle_connections', 'pool', labels=POOL), 'kept by {{pool}}', limit=True),
            ),
            width=12,
        ),
        Panel(
            'Acquires by endpoint',
            'Acquires by endpoint: how the load is distributed.',
            'ops',
            (Query(rate('gcpool_acquires_total', 'pool, pool_endpoint'), '{{pool}}: {{pool_endpoint}}'),),
            width=6,
        ),
        Panel(
            'Waiting acquires by endpoint',
            'Where callers wait. One endpoint alone: it is slow, or max_size is too low. All endpoints: total_max_size is '
            'too low.',
            'short',
            (Query(gauge('gcpool_waiters', 'pool, pool_endpoint'), '{{pool}}: {{pool_endpoint}}'),),
            width=6,
        ),
        Panel(
            'Failing acquires by endpoint',
            'Where callers get errors. An endpoint with neither a connection nor a waiter at the time of the scrape is '
            'counted as _other; the log and the spans name it.',
            'ops',
            (Query(rate('gcpool_acquires_total', 'pool, pool_endpoint', FAILING), '{{pool}}: {{pool_endpoint}}'),),
            width=6,
        ),
        Panel(
            'Limits of endpoints',
            'How many connections each endpoint may have: max_size of the pool (dashed), unless limits gives the endpoint '
            'its own. A label of several endpoints shows the sum of their limits.',
            'short',
            (
                Query(gauge('gcpool_endpoint_max_connections', 'pool, pool_endpoint'), '{{pool}}: {{pool_endpoint}}'),
                Query(
                    gauge('gcpool_max_connections_per_endpoint', 'pool', labels=POOL), 'limit of {{pool}}', limit=True
                ),
            ),
            width=6,
        ),
    ),
)

SHARING: Final = Row(
    'Sharing',
    (
        Panel(
            'Connections in use by endpoint',
            'Connections that each endpoint has in use. Where endpoints wait for the total limit, they share it in '
            'proportion to their weights, and none gets less than its floor while it has demand.',
            'short',
            (
                Query(
                    average('gcpool_connections', 'pool, pool_endpoint', 'state="used"'), '{{pool}}: {{pool_endpoint}}'
                ),
            ),
            width=12,
            stacked=True,
        ),
        Panel(
            'Evictions per acquire',
            'How often an idle connection of one endpoint was closed to make room for another, per acquire. Above a few '
            'percent the endpoints take places from each other all the time: raise total_max_size.',
            'percentunit',
            (
                Query(
                    rate('gcpool_connections_closed_total', 'pool', 'reason="evicted"', POOL)
                    + ' / '
                    + rate('gcpool_acquire_wait_seconds_count', 'pool', labels=POOL),
                    '{{pool}}',
                ),
            ),
            width=12,
        ),
    ),
)

SELF: Final = Row(
    'Self-telemetry',
    (
        Panel(
            'Time to collect',
            'How long it took to collect the metrics of all pools of a process at the last scrape.',
            's',
            (Query(gauge('gcpool_collect_seconds', 'instance', labels=PROCESS, how='max'), '{{instance}}'),),
            width=6,
        ),
        Panel(
            'Telemetry errors',
            'Errors of label functions, exporters and callbacks, of the function that limits single endpoints, and of '
            'listeners, and the events that those were too slow for. They never reach a caller; the first of each kind is '
            'logged.',
            'short',
            (
                Query(added('gcpool_telemetry_errors_total', 'pool', labels=POOL), '{{pool}}'),
                Query(added('gcpool_limits_errors_total', 'pool', labels=POOL), '{{pool}}: limits'),
                Query(added('gcpool_listener_errors_total', 'pool', labels=POOL), '{{pool}}: listeners'),
                Query(added('gcpool_listener_events_dropped_total', 'pool', labels=POOL), '{{pool}}: events dropped'),
            ),
            width=6,
        ),
        Panel(
            'Endpoints held',
            'Endpoints that have a connection or a waiter, by pool.',
            'short',
            (Query(gauge('gcpool_endpoints', 'pool', labels=POOL), '{{pool}}'),),
            width=6,
        ),
        Panel(
            'Endpoints without a label',
            'New endpoints for which no label was free, counted as _other: raise endpoint_labels, or group endpoints with '
            'endpoint_label.',
            'short',
            (Query(added('gcpool_endpoint_label_overflow_total', 'pool', labels=POOL), '{{pool}}'),),
            width=6,
        ),
        Panel(
            'Pools',
            'The pools with their version and front end.',
            'string',
            (Query(gauge('gcpool_info', f'{ONE_POOL}, frontend, version', labels=POOL, how='max'), '{{pool}}'),),
            'table',
            24,
        ),
    ),
)

ROWS: Final[tuple[Row, ...]] = (OVERVIEW, SATURATION, LATENCY, USE, HOOKS, CONNECTING, CHURN, ENDPOINTS, SHARING, SELF)
