"""The recording and alerting rules, and test cases in which each alert fires and does not fire.

Rules keep every label of the target (`without`, never `by`), so that a notification shows cluster and namespace, too.
Where possible they use metrics without endpoint label: when a label is reused for another endpoint, its old counts
move to `_other` all at once, which looks like a burst."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gcp._core import WAIT_BOUNDS
from gcp.observe.grafana import RUNBOOK_BASE

__all__ = ['ALERTS', 'CASES', 'RECORDS', 'Alert', 'Case', 'Record']


WHERE: Final = 'Pool {{ $labels.pool }} on {{ $labels.instance }}'


@dataclass(frozen=True, slots=True)
class Record:
    """A recording rule, named by level, metric and operation: ``pool:gcpool_waiters:sum`` has one series for each pool
    of each process."""

    name: str
    expr: str


@dataclass(frozen=True, slots=True)
class Alert:
    """An alerting rule.

    :ivar wait: how long the expression must hold; empty for no time
    :ivar severity: ``critical``: callers get errors; ``warning``: callers wait, or errors are likely to follow
    :ivar summary: the problem, in one line
    :ivar description: the observation, its meaning, and what to do immediately
    """

    name: str
    expr: str
    wait: str
    severity: str
    summary: str
    description: str

    @property
    def runbook(self) -> str:
        """The section of the documentation, as an absolute URL."""
        return f'{RUNBOOK_BASE}#{self.name.lower()}'

    @property
    def annotations(self) -> dict[str, str]:
        """The annotations of a notification."""
        return {
            'summary': f'{WHERE} {self.summary}',
            'description': f'{WHERE}. {self.description}',
            'runbook_url': self.runbook,
        }

    @property
    def labels(self) -> dict[str, str]:
        """The labels for routing."""
        return {'severity': self.severity, 'component': 'gcpool'}


@dataclass(frozen=True, slots=True)
class Case:
    """A test case, with a sample each minute.

    :ivar story: its title
    :ivar series: samples by series, without the labels of target and pool, in promtool's notation
    :ivar at: the time at which the alert is evaluated
    :ivar value: the value in the alert's texts; None if it must not fire
    """

    alert: str
    story: str
    series: Mapping[str, str]
    at: str
    value: str | None = None


def rates(metric: str, where: str = '', apart: str = 'pool_endpoint, result', window: str = '5m') -> str:
    return f'sum without ({apart}) (rate({metric}{where and f"{{{where}}}"}[{window}]))'


def part(of: str, whole: str) -> str:
    return f'{of}\n/\n{whole}'


HOOK = 'outcome, hook'
CREATES = rates('gcpool_hook_calls_total', 'hook="create", outcome!="cancelled"', HOOK)

RECORDS: Final = (
    Record('pool:gcpool_connections:sum', 'sum without (pool_endpoint, state) (gcpool_connections)'),
    Record(
        'pool:gcpool_connections_busy:ratio',
        part(
            'sum without (pool_endpoint, state) (gcpool_connections{state=~"used|creating"})',
            'clamp_min(gcpool_capacity, 1)',
        ),
    ),
    Record(
        'pool:gcpool_connections_busy_of_endpoint:max_ratio',
        (
            'max without (pool_endpoint) (\n'
            '  sum without (state) (gcpool_connections{state=~"used|creating", pool_endpoint!~"|_other"})\n'
            '  / gcpool_endpoint_max_connections\n'
            ')'
        ),
    ),
    Record('pool:gcpool_waiters:sum', 'sum without (pool_endpoint) (gcpool_waiters)'),
    Record('pool:gcpool_breaker_open:sum', 'sum without (pool_endpoint) (gcpool_breaker_open)'),
    Record('pool:gcpool_missing_connections:sum', 'sum without (pool_endpoint) (gcpool_missing_connections)'),
    Record('pool:gcpool_acquires:rate5m', 'rate(gcpool_acquire_wait_seconds_count[5m])'),
    Record(
        'pool:gcpool_acquires_timeout:ratio_rate5m',
        part(rates('gcpool_acquires_total', 'result="timeout"'), rates('gcpool_acquires_total')),
    ),
    Record(
        'pool:gcpool_acquires_queued:ratio_rate5m',
        part(rates('gcpool_acquires_total', 'result=~"waited|timeout"'), rates('gcpool_acquires_total')),
    ),
    Record(
        'pool:gcpool_acquire_wait_seconds:p50_5m',
        'histogram_quantile(0.5, rate(gcpool_acquire_wait_seconds_bucket[5m]))',
    ),
    Record(
        'pool:gcpool_acquire_wait_seconds:p95_5m',
        'histogram_quantile(0.95, rate(gcpool_acquire_wait_seconds_bucket[5m]))',
    ),
    Record(
        'pool:gcpool_acquire_wait_seconds:p99_5m',
        'histogram_quantile(0.99, rate(gcpool_acquire_wait_seconds_bucket[5m]))',
    ),
    Record('pool:gcpool_use_seconds:p95_5m', 'histogram_quantile(0.95, rate(gcpool_use_seconds_bucket[5m]))'),
    Record('pool:gcpool_use_seconds:rate5m', 'rate(gcpool_use_seconds_sum[5m])'),
    Record(
        'pool_hook:gcpool_hook_seconds:p95_5m',
        'histogram_quantile(0.95, sum without (result) (rate(gcpool_hook_seconds_bucket{result="ok"}[5m])))',
    ),
    Record('pool:gcpool_creates:rate5m', rates('gcpool_hook_calls_total', 'hook="create", outcome="ok"', HOOK)),
    Record(
        'pool:gcpool_create_errors:ratio_rate5m',
        part(rates('gcpool_hook_calls_total', 'hook="create", outcome=~"error|timeout"', HOOK), CREATES),
    ),
    Record(
        'pool:gcpool_connections_closed:rate5m', rates('gcpool_connections_closed_total', apart='pool_endpoint, reason')
    ),
    Record(
        'pool:gcpool_connections_dead:rate5m',
        rates('gcpool_hook_calls_total', 'hook="check_aliveness", outcome="dead"', HOOK),
    ),
)

ALERTS: Final = (
    Alert(
        'GcpoolSaturated',
        'quantile_over_time(0.5, pool:gcpool_waiters:sum[5m]) > 0',
        '2m',
        'warning',
        'is saturated',
        'Acquires have been waiting for most of the last minutes, {{ $value | humanize }} at the median. Timeouts are '
        'likely to follow. Look at "Longest held connection" and "Time held" first: if they grew, something holds '
        'connections (a slow query, a lock, a leak), and a larger pool would only move the wait into the server. If '
        'they did not, the load grew: add processes, or raise max_size and total_max_size as far as the server has '
        'connections left.',
    ),
    Alert(
        'GcpoolAcquireTimeouts',
        'pool:gcpool_acquires_timeout:ratio_rate5m > 0.01',
        '2m',
        'critical',
        'lets acquires time out',
        '{{ $value | humanizePercentage }} of the acquires time out, and the callers get errors. The message of '
        'AcquireTimeoutError, in the log of the process, says which limit was reached and for how long connections '
        'are held. If time ran out in waiting, reduce the load, or end what holds connections; if it ran out in '
        'create, the server cannot be reached, see GcpoolCreateErrors. Acquires with timeout=0 that get no connection '
        'are counted, too.',
    ),
    Alert(
        'GcpoolSlowAcquire',
        'pool:gcpool_acquire_wait_seconds:p95_5m > 0.1',
        '10m',
        'warning',
        'serves acquires slowly',
        'One acquire in twenty takes longer than {{ $value | humanizeDuration }}. "Acquires by result" shows why. '
        'waited: the pool is too small, or connections are held for too long, see GcpoolSaturated. created: '
        'connections are created on demand, see GcpoolChurn, and "Time to create" for a server that is slow to accept '
        'them. An exemplar leads to the trace of a slow acquire, and from there to the span that held the connection.',
    ),
    Alert(
        'GcpoolConnectionLeakSuspected',
        'sum without (pool_endpoint) (increase(gcpool_leaks_detected_total[15m])) > 0\n'
        'or\n'
        'gcpool_oldest_checkout_seconds > 3600',
        '',
        'warning',
        'has a connection that was not released',
        'A connection has been held for longer than the leak_threshold of the pool, or for more than an hour. If '
        '"Longest held connection" rises in a straight line, the pool will not get it back before the process ends: '
        'when "Pool fullness" approaches 100 %, restart the process. Then look for an acquire() whose release() is '
        'skipped by an exception or an early return, and use connection() there. If it is held on purpose (LISTEN, a '
        'long job), give it a pool of its own with a suitable leak_threshold.',
    ),
    Alert(
        'GcpoolChurn',
        'pool:gcpool_creates:rate5m / pool:gcpool_acquires:rate5m > 0.2\nand\npool:gcpool_creates:rate5m > 0.1',
        '10m',
        'warning',
        'creates connections instead of reusing them',
        '{{ $value | humanizePercentage }} of the acquires create a connection. Callers wait for handshakes, and '
        'the server is busy with them. This is not urgent unless the server is overloaded. "Closed by reason" shows '
        'what to change. evicted: endpoints compete, raise total_max_size. idle_timeout, max_lifetime: raise it. '
        'dead: see GcpoolDeadConnections. error, discarded: a hook fails, see the log of the process.',
    ),
    Alert(
        'GcpoolCreateErrors',
        'pool:gcpool_create_errors:ratio_rate5m > 0.05',
        '2m',
        'critical',
        'cannot connect',
        '{{ $value | humanizePercentage }} of the attempts to connect fail. The error is in the log of the process. '
        'Refused or unreachable: is the server up, has its address changed? Too many connections: find which clients '
        'have them, or lower total_max_size. Authentication: was a password changed? Timeouts: DNS, a firewall, an '
        'overloaded server. Existing connections remain in use, and each acquire that needs a new one tries again.',
    ),
    Alert(
        'GcpoolBreakerOpen',
        'pool:gcpool_breaker_open:sum > 0',
        '1m',
        'critical',
        'has an unavailable endpoint',
        'The latest connects to {{ $value | humanize }} of its endpoints have failed, and callers that find no idle '
        'connection there get EndpointUnavailableError at once. "Unavailable endpoints" shows which, and the error '
        'and its cause are in the log of the process. "Failed connects by class" says what helps. permanent: a '
        'password, a name or a certificate is wrong; retries do not help, so correct it. transient: the server is '
        'down or cannot be reached, see GcpoolCreateErrors. One connect for each retry delay tries whether it is '
        'back, and the first that succeeds ends this: nothing has to be restarted.',
    ),
    Alert(
        'GcpoolBelowMinIdle',
        'pool:gcpool_missing_connections:sum > 0',
        '2m',
        'warning',
        'has fewer connections than it is to keep',
        'Endpoints that are kept by refill, or that are being warmed up, lack {{ $value | humanize }} of their '
        'min_idle connections. The next burst of acquires will wait for connects. "Missing connections" shows where. '
        'If "Failed connects by class" is above 0, the server refuses connections: see GcpoolCreateErrors. If not, '
        'connects hang; or the limits leave no room: refilling evicts nothing, so total_max_size must be above what '
        'the kept endpoints and the others need together; or the connections end as fast as they are made, see '
        'GcpoolChurn.',
    ),
    Alert(
        'GcpoolDeadConnections',
        'pool:gcpool_connections_dead:rate5m / pool:gcpool_acquires:rate5m > 0.01',
        '5m',
        'warning',
        'finds many connections dead',
        'Checks find idle connections dead, one for {{ $value | humanizePercentage }} of the acquires. One restart '
        'of the server does not raise this alert; a server that restarts repeatedly does: look at it first. '
        'Otherwise the server, a proxy or a firewall closes idle connections: set idle_timeout and max_lifetime below '
        'its timeouts. With check_aliveness, callers lose time only; without it, they get errors.',
    ),
)

# --- test cases ---

LIMITS = {'gcpool_max_connections': '10x60', 'gcpool_max_connections_per_endpoint': '10x60'}

CASES: Final = (
    Case(
        'GcpoolSaturated',
        'acquires wait all the time',
        {'gcpool_waiters{pool_endpoint="db:5432"}': '0x5 4x20'},
        '15m',
        '4',
    ),
    Case(
        'GcpoolSaturated',
        'bursts, each of which is served before the next one',
        {'gcpool_waiters{pool_endpoint="db:5432"}': '0 9 0 0 9 0 0 9 0 0 9 0 0 9 0'},
        '14m',
    ),
    Case(
        'GcpoolAcquireTimeouts',
        'one acquire in ten times out',
        {
            'gcpool_acquires_total{pool_endpoint="db:5432", result="hit"}': '0+540x20',
            'gcpool_acquires_total{pool_endpoint="db:5432", result="timeout"}': '0+60x20',
        },
        '15m',
        '10%',
    ),
    Case(
        'GcpoolAcquireTimeouts',
        'one in a thousand does',
        {
            'gcpool_acquires_total{pool_endpoint="db:5432", result="hit"}': '0+5994x20',
            'gcpool_acquires_total{pool_endpoint="db:5432", result="timeout"}': '0+6x20',
        },
        '15m',
    ),
    Case(
        'GcpoolSlowAcquire',
        'acquires take from 0.25 to 0.5 s',
        {
            f'gcpool_acquire_wait_seconds_bucket{{le="{le}"}}': f'0+{0 if float(le) < 0.5 else 60}x40'
            for le in (*(f'{bound:g}' if bound % 1 else f'{bound:.1f}' for bound in WAIT_BOUNDS), '+Inf')
        },
        '30m',
        '487.5ms',
    ),
    Case(
        'GcpoolSlowAcquire',
        'all but a few are hits',
        {
            f'gcpool_acquire_wait_seconds_bucket{{le="{le}"}}': f'0+{58 if float(le) < 0.5 else 60}x40'
            for le in (*(f'{bound:g}' if bound % 1 else f'{bound:.1f}' for bound in WAIT_BOUNDS), '+Inf')
        },
        '30m',
    ),
    Case(
        'GcpoolConnectionLeakSuspected',
        'a connection passes the threshold',
        {
            'gcpool_leaks_detected_total{pool_endpoint="db:5432"}': '0x10 1x20',
            'gcpool_oldest_checkout_seconds': '0+60x30',
        },
        '15m',
        '',
    ),
    Case(
        'GcpoolConnectionLeakSuspected',
        'no threshold, and a connection that has been held for more than an hour',
        {'gcpool_leaks_detected_total{pool_endpoint="db:5432"}': '0x70', 'gcpool_oldest_checkout_seconds': '0+60x70'},
        '65m',
        '',
    ),
    Case(
        'GcpoolConnectionLeakSuspected',
        'a leak long ago; uses come and go',
        {
            'gcpool_leaks_detected_total{pool_endpoint="db:5432"}': '1x70',
            'gcpool_oldest_checkout_seconds': '0+60x9 0+60x9 0+60x9 0+60x9',
        },
        '35m',
    ),
    Case(
        'GcpoolChurn',
        'every second acquire creates',
        {
            'gcpool_acquire_wait_seconds_count': '0+120x40',
            'gcpool_hook_calls_total{hook="create", outcome="ok"}': '0+60x40',
        },
        '30m',
        '50%',
    ),
    Case(
        'GcpoolChurn',
        'a pool that is hardly used, and creates each time',
        {
            'gcpool_acquire_wait_seconds_count': '0 0 1 1 1 1 1 2 2 2 2 2 3 3 3 3 3 4x20',
            'gcpool_hook_calls_total{hook="create", outcome="ok"}': '0 0 1 1 1 1 1 2 2 2 2 2 3 3 3 3 3 4x20',
        },
        '16m',
    ),
    Case(
        'GcpoolCreateErrors',
        'three of four attempts fail',
        {
            'gcpool_hook_calls_total{hook="create", outcome="ok"}': '0+15x20',
            'gcpool_hook_calls_total{hook="create", outcome="error"}': '0+30x20',
            'gcpool_hook_calls_total{hook="create", outcome="timeout"}': '0+15x20',
            'gcpool_hook_calls_total{hook="create", outcome="cancelled"}': '0+600x20',
        },
        '15m',
        '75%',
    ),
    Case(
        'GcpoolCreateErrors',
        'callers cancel, and the server accepts all connections',
        {
            'gcpool_hook_calls_total{hook="create", outcome="ok"}': '0+15x20',
            'gcpool_hook_calls_total{hook="create", outcome="error"}': '0x20',
            'gcpool_hook_calls_total{hook="create", outcome="timeout"}': '0x20',
            'gcpool_hook_calls_total{hook="create", outcome="cancelled"}': '0+600x20',
            'gcpool_hook_calls_total{hook="dispose", outcome="error"}': '0+600x20',
        },
        '15m',
    ),
    Case(
        'GcpoolBreakerOpen',
        'an endpoint is unavailable',
        {
            'gcpool_breaker_open{pool_endpoint="db:5432"}': '0x5 1x20',
            'gcpool_breaker_open{pool_endpoint="replica:5432"}': '0x25',
        },
        '10m',
        '1',
    ),
    Case(
        'GcpoolBreakerOpen',
        'a breaker that closes at the first probe',
        {'gcpool_breaker_open{pool_endpoint="db:5432"}': '0 0 1 0 0 0 1 0 0 0'},
        '6m',
    ),
    Case(
        'GcpoolBelowMinIdle',
        'a kept endpoint lacks two connections, another one',
        {
            'gcpool_missing_connections{pool_endpoint="db:5432"}': '0x5 2x20',
            'gcpool_missing_connections{pool_endpoint="replica:5432"}': '0x5 1x20',
        },
        '10m',
        '3',
    ),
    Case(
        'GcpoolBelowMinIdle',
        'connections expire, and are replaced',
        {'gcpool_missing_connections{pool_endpoint="db:5432"}': '0 1 0 2 1 0 1 0 1 0 0'},
        '8m',
    ),
    Case(
        'GcpoolDeadConnections',
        'one acquire in twenty finds its connection dead',
        {
            'gcpool_acquire_wait_seconds_count': '0+600x30',
            'gcpool_hook_calls_total{hook="check_aliveness", outcome="dead"}': '0+30x30',
        },
        '20m',
        '5%',
    ),
    Case(
        'GcpoolDeadConnections',
        'the server was restarted once, which ended all ten',
        {
            'gcpool_acquire_wait_seconds_count': '0+600x30',
            'gcpool_hook_calls_total{hook="check_aliveness", outcome="dead"}': '0x10 10x20',
            'gcpool_connections_closed_total{pool_endpoint="db:5432", reason="idle_timeout"}': '0+600x30',
        },
        '13m',
    ),
)
