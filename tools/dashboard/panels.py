"""What the dashboard asks and tells: rows, panels, queries, sentences. Knows no Grafana: `tools.dashboard.generate`
turns it into what Grafana reads. Names of metrics and labels are those of `gcp.observe.names`; a test holds it."""

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
    """A choice at the dashboard's head, filled from a label's values.

    :ivar everything: what "All" stands for. Processes that share their metrics have no endpoint labels: there it must
        match the lack of one, too
    """

    name: str
    query: str
    help: str
    everything: str = '.+'


@dataclass(frozen=True, slots=True)
class Query:
    """One question to Prometheus.

    :ivar legend: how its series are called, with labels in double braces
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
    :ivar help: what is seen, how to read it, what to do then
    :ivar unit: as Grafana calls it
    :ivar width: of the dashboard's 24 columns
    :ivar stacked: whether series add up
    :ivar colors: of series, by legend; others take their turn
    :ivar steps: from which values on a figure has which colour; green below
    :ivar line: a limit that is a constant
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
    """Ask how many there are a second."""
    return summed('rate', metric, by, where, labels)


def added(metric: str, by: str = '', where: str = '', labels: str = ENDPOINT) -> str:
    """Ask how many were added from one point to the next."""
    return summed('increase', metric, by, where, labels)


def average(metric: str, by: str = '', where: str = '', labels: str = ENDPOINT) -> str:
    """Ask how many there were on average, from one point to the next: what is so at a scrape only is no news."""
    return summed('avg_over_time', metric, by, where, labels)


def summed(function: str, metric: str, by: str, where: str, labels: str) -> str:
    return f'sum{grouped(by)} ({function}({metric}{{{both(labels, where)}}}[$__rate_interval]))'


def gauge(metric: str, by: str = '', where: str = '', labels: str = ENDPOINT, how: str = 'sum') -> str:
    """Ask how many there are."""
    return f'{how}{grouped(by)} ({metric}{{{both(labels, where)}}})'


def quantile(q: float, metric: str, by: str = '', where: str = '') -> str:
    """Ask what a part of all observations was below. Histograms know no endpoints."""
    buckets = rate(f'{metric}_bucket', f'{by}, le' if by else 'le', where, POOL)
    return f'histogram_quantile({q:g}, {buckets})'


def quantiles(metric: str, where: str = '') -> tuple[Query, ...]:
    """Ask for the three quantiles that everybody shows."""
    return tuple(Query(quantile(q, metric, where=where), f'p{q * 100:g}', exemplars=True) for q in (0.5, 0.95, 0.99))


def share(metric: str, where: str, by: str = '') -> str:
    """Ask which part of all it was."""
    return f'{rate(metric, by, where)} / {rate(metric, by)}'


def grouped(by: str) -> str:
    return by and f' by ({by})'


def both(*matchers: str) -> str:
    return ', '.join(filter(None, matchers))


BUSY: Final = 'state=~"used|creating"'
FAILING: Final = 'result=~"timeout|error"'
QUEUED: Final = 'result=~"waited|timeout"'
CREATED: Final = 'hook="create", outcome="ok"'
ONE_POOL: Final = 'job, instance, pool'
CAPACITY: Final = f"clamp_min({average('gcpool_capacity', ONE_POOL, labels=POOL)}, 1)"    # 0 without endpoints
FULLNESS: Final = f"{average('gcpool_connections', ONE_POOL, BUSY, POOL)} / {CAPACITY}"
ENDPOINT_FULLNESS: Final = (
    average('gcpool_connections', f'{ONE_POOL}, pool_endpoint', f'pool_endpoint!~"|_other", {BUSY}')
    + f' / on ({ONE_POOL}) group_left () '
    + gauge('gcpool_max_connections_per_endpoint', ONE_POOL, labels=POOL))
NEEDED: Final = f"{rate('gcpool_use_seconds_sum', ONE_POOL, labels=POOL)} / {CAPACITY}"


def colors(**of: str) -> Mapping[str, str]:
    return MappingProxyType(of)


BY_RESULT: Final = colors(hit=GREEN, created=BLUE, waited=YELLOW, timeout=RED, cancelled=GREY, error=PURPLE)
BY_STATE: Final = colors(used=BLUE, creating=YELLOW, idle=GREEN, capacity=RED)
BY_QUANTILE: Final = colors(p50=GREEN, p95=YELLOW, p99=ORANGE)
BY_OUTCOME: Final = colors(idle=GREEN, handoff=YELLOW, discarded=RED)
BY_REASON: Final = colors(
    idle_timeout=GREEN, max_lifetime=BLUE, dead=RED, discarded=ORANGE, evicted=YELLOW, pool_closed=GREY, error=PURPLE)

# --- the dashboard ---

VARIABLES: Final[tuple[Variable, ...]] = (
    Variable('job', 'label_values(gcpool_max_connections, job)', 'The scrape job.'),
    Variable('instance', 'label_values(gcpool_max_connections{job=~"$job"}, instance)',
             'The process, as it is scraped.'),
    Variable('pool', 'label_values(gcpool_max_connections{job=~"$job", instance=~"$instance"}, pool)',
             'The name of the pool.'),
    Variable('pool_endpoint', f'label_values(gcpool_connections{{{POOL}}}, pool_endpoint)',
             'What the pool connects to. Filters what is counted by endpoint; times are those of the whole pool.',
             everything='.*'),
)

OVERVIEW: Final = Row('Overview', (
    Panel(
        'Acquires',
        'Acquires that ended, each second, however they ended.',
        'ops', (Query(rate('gcpool_acquires_total'), 'acquires'),), 'stat', 3),
    Panel(
        'Idle hits',
        'The part of the acquires that found an idle connection and waited for nothing. A low figure means that the '
        'pool is too small, or that its connections are gone before they are used again.',
        'percentunit', (Query(share('gcpool_acquires_total', 'result="hit"'), 'hits'),), 'stat', 3,
        steps=((0.0, RED), (0.5, YELLOW), (0.9, GREEN))),
    Panel(
        'Fullest pool',
        'Connections in use or being created, of those that the pool may have, where that is most. At 100 % an '
        'acquire that finds nothing idle has to wait.',
        'percentunit', (Query(f'max({FULLNESS})', 'fullest'),), 'stat', 3, steps=((0.7, YELLOW), (0.9, RED))),
    Panel(
        'Waiting now',
        'Acquires that wait in line. What stays above 0 is a queue that does not drain.',
        'short', (Query(gauge('gcpool_waiters'), 'waiting'),), 'stat', 3, steps=((1, YELLOW), (10, RED))),
    Panel(
        'Acquire time, p99',
        'One acquire in a hundred took longer than this.',
        's',
        (Query(quantile(0.99, 'gcpool_acquire_wait_seconds'), 'p99'),), 'stat', 3,
        steps=((0.1, YELLOW), (1, RED))),
    Panel(
        'Failing acquires',
        'The part of the acquires that ended in a timeout or another error. Callers see each of them.',
        'percentunit', (Query(share('gcpool_acquires_total', FAILING), 'failing'),), 'stat', 3,
        steps=((0.0001, YELLOW), (0.01, RED))),
    Panel(
        'New connections',
        'Connections created, each second. In a healthy pool this is close to 0.',
        'ops', (Query(rate('gcpool_hook_calls_total', where=CREATED, labels=POOL), 'created'),), 'stat', 3),
    Panel(
        'Longest held',
        'For how long the connection that was taken first and not yet released has been held.',
        's',
        (Query(gauge('gcpool_oldest_checkout_seconds', labels=POOL, how='max'), 'longest held'),), 'stat', 3,
        steps=((300, YELLOW), (3600, RED))),
    Panel(
        'Connections by state',
        'What the pools hold, against the limit of all together (dashed). Much idle all day: the pool is larger than '
        'it need be. No idle at all: every acquire waits or creates.',
        'short',
        (Query(gauge('gcpool_connections', 'state'), '{{state}}'),
         Query(gauge('gcpool_capacity', labels=POOL), 'capacity', limit=True)),
        width=12, stacked=True, colors=BY_STATE),
    Panel(
        'Acquires by result',
        'How acquires ended: with an idle connection (hit), with a new one (created), with one that another caller '
        'gave back (waited), or with none (timeout, cancelled, error).',
        'ops', (Query(rate('gcpool_acquires_total', 'result'), '{{result}}'),), width=12, stacked=True,
        colors=BY_RESULT),
))

SATURATION: Final = Row('Saturation', (
    Panel(
        'Pool fullness',
        'Connections in use or being created, of those that the pool may have; of several processes the fullest. A '
        'pool that touches the dashed line while acquires wait is too small for its load, or its connections are held '
        'for too long: see Use and leaks.',
        'percentunit', (Query(f'max by (pool) ({FULLNESS})', '{{pool}}'),), width=6, line=1),
    Panel(
        'Fullness of the fullest endpoint',
        'The same against the limit of one endpoint, which is usually met first. Endpoints without a label of their '
        'own are left out.',
        'percentunit', (Query(f'max by (pool) ({ENDPOINT_FULLNESS})', '{{pool}}'),), width=6, line=1),
    Panel(
        'Connections needed',
        'What the load asks for: connections held on average, by the clock of the pool and not by samples, of those '
        'that it may have. Above 50 % for long, queues begin to grow; 100 % (dashed) is the end. A use counts when it '
        'ends: a spike is one that was long.',
        'percentunit', (Query(f'max by (pool) ({NEEDED})', '{{pool}}'),), width=6, line=1),
    Panel(
        'Capacity',
        'How many connections the pools could hold for the endpoints that they have now, against total_max_size '
        '(dashed). Where both are equal, endpoints compete: a new connection to one evicts an idle one to another.',
        'short',
        (Query(gauge('gcpool_capacity', 'pool', labels=POOL), '{{pool}}'),
         Query(gauge('gcpool_max_connections', 'pool', labels=POOL), 'limit of {{pool}}', limit=True)), width=6),
    Panel(
        'Acquires in line',
        'Acquires that wait for a connection, by pool. A line that comes back to 0 is a burst; one that does not is '
        'saturation.',
        'short', (Query(gauge('gcpool_waiters', 'pool'), '{{pool}}'),), width=6),
    Panel(
        'Oldest waiter',
        'For how long the first in line has waited. Close to the acquire timeout, the next step is errors.',
        's', (Query(gauge('gcpool_oldest_waiter_seconds', 'pool', labels=POOL, how='max'), '{{pool}}'),), width=6),
    Panel(
        'Acquires that had to wait',
        'The part of the acquires that stood in line, whether or not they were served.',
        'percentunit', (Query(share('gcpool_acquires_total', QUEUED, 'pool'), '{{pool}}'),), width=6),
    Panel(
        'Failing acquires by pool',
        'Acquires that ended in a timeout or another error. Timeouts ask for more connections or shorter use; errors '
        'come from the connection manager: see Hook calls.',
        'ops', (Query(rate('gcpool_acquires_total', 'pool, result', FAILING), '{{pool}}: {{result}}'),), width=6),
))

LATENCY: Final = Row('Acquire latency', (
    Panel(
        'Acquire time',
        'How long callers waited for a connection. An idle hit counts as 0 (the time of its check is under Hook '
        'calls), so that p50 at 0 is the normal state; watch p99. The dots are acquires with a trace: click one to see '
        'who held the connection.',
        's', quantiles('gcpool_acquire_wait_seconds'), colors=BY_QUANTILE),
    Panel(
        'Acquire time, p99 by pool',
        'One acquire in a hundred took longer than this: which pool makes its callers wait.',
        's', (Query(quantile(0.99, 'gcpool_acquire_wait_seconds', 'pool'), '{{pool}}', exemplars=True),)),
    Panel(
        'Acquire time, distribution',
        'How many acquires took how long. Two bands, one at the bottom and one far above it, are hits and waits: the '
        'upper one is what queueing, or connecting, costs.',
        's', (Query(added('gcpool_acquire_wait_seconds_bucket', 'le', labels=POOL), '{{le}}', exemplars=True),),
        'heatmap'),
))

USE: Final = Row('Use and leaks', (
    Panel(
        'Time held',
        'How long callers kept their connections, from acquire to release. When it grows, the pool gets smaller '
        'without a change to its limits: look at the queries, or at what is done between them.',
        's', quantiles('gcpool_use_seconds'), colors=BY_QUANTILE),
    Panel(
        'Longest held connection',
        'For how long the connection that was taken first has been held. A straight line that climbs and never falls '
        'is a connection that nobody will release.',
        's', (Query(gauge('gcpool_oldest_checkout_seconds', 'pool', labels=POOL, how='max'), '{{pool}}'),)),
    Panel(
        'Leaks detected',
        'Connections that were held for longer than the leak_threshold of their pool, each once. Always 0 without a '
        'threshold.',
        'short', (Query(added('gcpool_leaks_detected_total', 'pool'), '{{pool}}'),)),
    Panel(
        'Time held, p95 by pool',
        'Which pool lends its connections for longest.',
        's', (Query(quantile(0.95, 'gcpool_use_seconds', 'pool'), '{{pool}}', exemplars=True),), width=12),
    Panel(
        'Releases by outcome',
        'What became of released connections: put back (idle), handed to a waiter (handoff), or closed (discarded). '
        'Many handoffs mean that a line is never empty.',
        'ops', (Query(rate('gcpool_releases_total', 'outcome'), '{{outcome}}'),), width=12, stacked=True,
        colors=BY_OUTCOME),
))

HOOKS: Final = Row('Hook calls', (
    Panel(
        'Hook calls by hook',
        'Calls of the hooks of the connection manager. Checks and hooks follow the acquires; creates and disposes are '
        'churn.',
        'ops', (Query(rate('gcpool_hook_calls_total', 'hook', labels=POOL), '{{hook}}'),)),
    Panel(
        'Hook time, p95',
        'How long the hooks took. A slow check, on_acquire or on_release is paid for by every acquire.',
        's', (Query(quantile(0.95, 'gcpool_hook_seconds', 'hook'), '{{hook}}', exemplars=True),)),
    Panel(
        'Failed hook calls',
        'Hooks that raised, timed out or were cancelled, and checks that found their connection dead. Errors of '
        'create: the server refuses, or cannot be reached.',
        'ops', (Query(rate('gcpool_hook_calls_total', 'hook, outcome', 'outcome!="ok"', POOL) + ' > 0 or '
                      + rate('gcpool_hook_calls_total', 'hook, outcome', 'hook="create", outcome="error"', POOL),
                      '{{hook}}: {{outcome}}'),)),
    Panel(
        'Time to create',
        'How long it takes to connect. When this grows while the load does not, the server is slow to accept, or '
        'something is in between: DNS, TLS, a proxy.',
        's', quantiles('gcpool_hook_seconds', 'hook="create"'), width=12, colors=BY_QUANTILE),
    Panel(
        'Time to create, distribution',
        'How many creations took how long. A band at 1 s, 3 s or 7 s is the network sending again what was lost.',
        's', (Query(added('gcpool_hook_seconds_bucket', 'le', 'hook="create"', POOL), '{{le}}', exemplars=True),),
        'heatmap', width=12),
))

CHURN: Final = Row('Churn', (
    Panel(
        'Created and closed',
        'Connections that came and went. In a steady load both are close to 0; both high is churn, and each of them '
        'is a handshake that a caller may wait for.',
        'ops',
        (Query(rate('gcpool_hook_calls_total', where=CREATED, labels=POOL), 'created'),
         Query(rate('gcpool_connections_closed_total', labels=POOL), 'closed')),
        width=12, colors=colors(created=BLUE, closed=ORANGE)),
    Panel(
        'Closed by reason',
        'Why connections were closed. evicted: endpoints compete for the limit of all; idle_timeout: it is shorter '
        'than the pauses of the load; dead: the other end hung up; discarded, error: hooks went wrong.',
        'ops', (Query(rate('gcpool_connections_closed_total', 'reason'), '{{reason}}'),), width=12, stacked=True,
        colors=BY_REASON),
    Panel(
        'Acquires per new connection',
        'How often a connection is used in its life. Below 5, pooling does little: raise idle_timeout, max_lifetime '
        'or the limits.',
        'short',
        (Query(rate('gcpool_acquire_wait_seconds_count', 'pool', labels=POOL) + ' / '
               + rate('gcpool_hook_calls_total', 'pool', CREATED, POOL), '{{pool}}'),),
        width=12),
    Panel(
        'Age at close',
        'How old connections became. Close to idle_timeout or max_lifetime: the limits are at work; much below: '
        'something else ends them.',
        's', quantiles('gcpool_connection_age_seconds'), width=12, colors=BY_QUANTILE),
))

ENDPOINTS: Final = Row('Endpoints', (
    Panel(
        'Connections by endpoint',
        'Connections of each endpoint, in any state, against the limit of one (dashed).',
        'short',
        (Query(gauge('gcpool_connections', 'pool, pool_endpoint'), '{{pool}}: {{pool_endpoint}}'),
         Query(gauge('gcpool_max_connections_per_endpoint', 'pool', labels=POOL), 'limit of {{pool}}', limit=True)),
        width=12),
    Panel(
        'Idle connections by endpoint',
        'Connections that wait to be used, against those that each endpoint keeps for ever (dashed). What stays far '
        'above is there for bursts.',
        'short',
        (Query(average('gcpool_connections', 'pool, pool_endpoint', 'state="idle"'), '{{pool}}: {{pool_endpoint}}'),
         Query(gauge('gcpool_min_idle_connections', 'pool', labels=POOL), 'kept by {{pool}}', limit=True)),
        width=12),
    Panel(
        'Acquires by endpoint',
        'Where the load goes.',
        'ops', (Query(rate('gcpool_acquires_total', 'pool, pool_endpoint'), '{{pool}}: {{pool_endpoint}}'),)),
    Panel(
        'In line by endpoint',
        'Whose callers wait. One endpoint alone: it is slow, or its own limit is too low; all: the limit of the pool '
        'is.',
        'short', (Query(gauge('gcpool_waiters', 'pool, pool_endpoint'), '{{pool}}: {{pool_endpoint}}'),)),
    Panel(
        'Failing acquires by endpoint',
        'Whose callers get errors. One that has neither a connection nor a waiter when the metrics are read counts as '
        '_other: the log and the spans name it.',
        'ops', (Query(rate('gcpool_acquires_total', 'pool, pool_endpoint', FAILING), '{{pool}}: {{pool_endpoint}}'),)),
))

SELF: Final = Row('Self-telemetry', (
    Panel(
        'Time to collect',
        'How long it took to write the metrics of all pools of a process, at the last scrape.',
        's', (Query(gauge('gcpool_collect_seconds', 'instance', labels=PROCESS, how='max'), '{{instance}}'),), width=6),
    Panel(
        'Telemetry errors',
        'Errors in labels, exporters and callbacks. They never reach a caller; the first of each is in the log of the '
        'process.',
        'short', (Query(added('gcpool_telemetry_errors_total', 'pool', labels=POOL), '{{pool}}'),), width=6),
    Panel(
        'Endpoints held',
        'Endpoints that have a connection or a waiter, by pool.',
        'short', (Query(gauge('gcpool_endpoints', 'pool', labels=POOL), '{{pool}}'),), width=6),
    Panel(
        'Endpoints without a label',
        'Endpoints that came when all labels were taken, and are counted as _other: raise endpoint_labels, or group '
        'endpoints by endpoint_label.',
        'short', (Query(added('gcpool_endpoint_label_overflow_total', 'pool', labels=POOL), '{{pool}}'),), width=6),
    Panel(
        'Pools',
        'The pools that are seen, with their version and their front.',
        'string',
        (Query(gauge('gcpool_info', f'{ONE_POOL}, frontend, version', labels=POOL, how='max'), '{{pool}}'),),
        'table', 24),
))

ROWS: Final[tuple[Row, ...]] = (OVERVIEW, SATURATION, LATENCY, USE, HOOKS, CHURN, ENDPOINTS, SELF)
