"""What is recorded, and what is alerted on: rules as Prometheus reads them, and cases in which each alert fires and
keeps silent. `tools.dashboard.generate` writes them down.

Rules keep every label of the target (`without`, never `by`), so that what is there besides job and instance reaches
whoever is called. Where there is a choice, they ask for what is not counted by endpoint: when labels are scarce, and
one is taken over by another endpoint, what was counted under it long ago becomes `_other`'s all at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gcp._core import WAIT_BOUNDS

__all__ = ['ALERTS', 'CASES', 'RECORDS', 'Alert', 'Case', 'Record']


WHERE: Final = 'Pool {{ $labels.pool }} on {{ $labels.instance }}'


@dataclass(frozen=True, slots=True)
class Record:
    """A recording rule. Its name says which labels it has, what of, and what was done: ``pool:gcpool_waiters:sum`` has
    one series for each pool of each process."""

    name: str
    expr: str


@dataclass(frozen=True, slots=True)
class Alert:
    """An alerting rule.

    :ivar wait: how long the expression must hold; empty: not at all
    :ivar severity: ``critical``: callers get errors, wake somebody; ``warning``: they will, or they wait
    :ivar summary: what is the matter with the pool, in one line
    :ivar description: what was seen, what it means, and what to do at night
    """

    name: str
    expr: str
    wait: str
    severity: str
    summary: str
    description: str

    @property
    def runbook(self) -> str:
        """Where to read on."""
        return f'docs/observability.md#{self.name.lower()}'

    @property
    def annotations(self) -> dict[str, str]:
        """All that is told."""
        return {
            'summary': f'{WHERE} {self.summary}',
            'description': f'{WHERE}. {self.description}',
            'runbook': self.runbook,
        }

    @property
    def labels(self) -> dict[str, str]:
        """What it is routed by."""
        return {'severity': self.severity, 'component': 'gcpool'}


@dataclass(frozen=True, slots=True)
class Case:
    """A course of events, a sample a minute, and whether the alert fires.

    :ivar story: what happens
    :ivar series: samples by series, without their target and pool, in promtool's notation
    :ivar at: when to look
    :ivar value: what the alert tells, as its texts write it; None: it keeps silent
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
    Record('pool:gcpool_connections_busy:ratio', part(
        'sum without (pool_endpoint, state) (gcpool_connections{state=~"used|creating"})',
        'clamp_min(gcpool_capacity, 1)')),
    Record('pool:gcpool_connections_busy_of_endpoint:max_ratio', (
        'max without (pool_endpoint) (\n'
        '  sum without (state) (gcpool_connections{state=~"used|creating", pool_endpoint!~"|_other"})\n'
        '  / ignoring (pool_endpoint) group_left ()\n'
        '  gcpool_max_connections_per_endpoint\n'
        ')')),
    Record('pool:gcpool_waiters:sum', 'sum without (pool_endpoint) (gcpool_waiters)'),
    Record('pool:gcpool_acquires:rate5m', 'rate(gcpool_acquire_wait_seconds_count[5m])'),
    Record('pool:gcpool_acquires_timeout:ratio_rate5m', part(
        rates('gcpool_acquires_total', 'result="timeout"'), rates('gcpool_acquires_total'))),
    Record('pool:gcpool_acquires_queued:ratio_rate5m', part(
        rates('gcpool_acquires_total', 'result=~"waited|timeout"'), rates('gcpool_acquires_total'))),
    Record('pool:gcpool_acquire_wait_seconds:p50_5m',
           'histogram_quantile(0.5, rate(gcpool_acquire_wait_seconds_bucket[5m]))'),
    Record('pool:gcpool_acquire_wait_seconds:p95_5m',
           'histogram_quantile(0.95, rate(gcpool_acquire_wait_seconds_bucket[5m]))'),
    Record('pool:gcpool_acquire_wait_seconds:p99_5m',
           'histogram_quantile(0.99, rate(gcpool_acquire_wait_seconds_bucket[5m]))'),
    Record('pool:gcpool_use_seconds:p95_5m', 'histogram_quantile(0.95, rate(gcpool_use_seconds_bucket[5m]))'),
    Record('pool:gcpool_use_seconds:rate5m', 'rate(gcpool_use_seconds_sum[5m])'),
    Record('pool_hook:gcpool_hook_seconds:p95_5m', 'histogram_quantile(0.95, rate(gcpool_hook_seconds_bucket[5m]))'),
    Record('pool:gcpool_creates:rate5m', rates('gcpool_hook_calls_total', 'hook="create", outcome="ok"', HOOK)),
    Record('pool:gcpool_create_errors:ratio_rate5m', part(
        rates('gcpool_hook_calls_total', 'hook="create", outcome=~"error|timeout"', HOOK), CREATES)),
    Record('pool:gcpool_connections_closed:rate5m',
           rates('gcpool_connections_closed_total', apart='pool_endpoint, reason')),
    Record('pool:gcpool_connections_dead:rate5m',
           rates('gcpool_hook_calls_total', 'hook="check_aliveness", outcome="dead"', HOOK)),
)

ALERTS: Final = (
    Alert(
        'Saturated', 'quantile_over_time(0.5, pool:gcpool_waiters:sum[5m]) > 0', '2m', 'warning',
        'has no connection to spare',
        'Acquires have stood in line for most of the last minutes, {{ $value | humanize }} at the median. Timeouts '
        'come next. Look at "Longest held connection" and "Time held" first: if they grew, something holds '
        'connections (a slow query, a lock, a leak), and a larger pool would only move the line into the server. If '
        'they did not, the load grew: add processes, or raise max_size and total_max_size as far as the server has '
        'connections left.'),
    Alert(
        'AcquireTimeouts', 'pool:gcpool_acquires_timeout:ratio_rate5m > 0.01', '2m', 'critical',
        'fails its callers',
        '{{ $value | humanizePercentage }} of the acquires end without a connection, and the callers see errors. The '
        'text of an AcquireTimeoutError, in the log of the process, says which limit blocked and how many hold '
        'connections for how long. "waiting": take load off, or kill what holds connections; "create": the server is '
        'not to be reached, see CreateErrors. Acquires that ask with timeout=0 and get nothing are counted, too.'),
    Alert(
        'SlowAcquire', 'pool:gcpool_acquire_wait_seconds:p95_5m > 0.1', '10m', 'warning',
        'makes its callers wait',
        'One acquire in twenty takes longer than {{ $value | humanizeDuration }}. "Acquires by result" says what they '
        'wait for: waited: the pool is too small or connections are held for too long, see Saturated; created: '
        'connections are made on demand, see Churn, and "Time to create" for a server that is slow to accept. An '
        'exemplar leads to the trace of a slow one, and from there to the one that held the connection.'),
    Alert(
        'ConnectionLeakSuspected',
        'sum without (pool_endpoint) (increase(gcpool_leaks_detected_total[15m])) > 0\n'
        'or\n'
        'gcpool_oldest_checkout_seconds > 3600', '', 'warning',
        'lends a connection that does not come back',
        'A connection has been held for longer than the leak_threshold of the pool, or for more than an hour. If '
        '"Longest held connection" climbs in a straight line, it is lost to the pool until the process ends: when '
        '"Pool fullness" nears 100 %, restart the process. Then look for an acquire() whose release() an exception or '
        'a forgotten path jumps over, and use connection() there. If it is one that is meant to be held (LISTEN, a '
        'long job), give it a pool of its own with a leak_threshold to match.'),
    Alert(
        'Churn',
        'pool:gcpool_creates:rate5m / pool:gcpool_acquires:rate5m > 0.2\n'
        'and\n'
        'pool:gcpool_creates:rate5m > 0.1', '10m', 'warning',
        'connects instead of reusing',
        '{{ $value | humanizePercentage }} of the acquires open a new connection. Callers wait for handshakes, and '
        'the server spends its time on them. Nothing has to be done at night unless the server suffers. "Closed by '
        'reason" says what to change: evicted: endpoints compete, raise total_max_size; idle_timeout or max_lifetime: '
        'raise it; dead: see DeadConnections; error or discarded: a hook goes wrong, see the log of the process.'),
    Alert(
        'CreateErrors', 'pool:gcpool_create_errors:ratio_rate5m > 0.05', '2m', 'critical',
        'cannot connect',
        '{{ $value | humanizePercentage }} of the attempts to connect fail. The log of the process has the error: '
        'refused or unreachable: is the server up, has it moved? Too many connections: find who else took them, or '
        'lower total_max_size. Authentication: was a password changed? Timeouts: DNS, a firewall, a server that is '
        'too busy to accept. Connections that exist go on being used; the pool tries again by itself.'),
    Alert(
        'DeadConnections', 'pool:gcpool_connections_dead:rate5m / pool:gcpool_acquires:rate5m > 0.01', '5m', 'warning',
        'keeps losing connections',
        'The other end hangs up on idle connections again and again, one for {{ $value | humanizePercentage }} of the '
        'acquires. One restart of a server does not raise this alert, a server that keeps restarting does: look at '
        'it first. Else something ends idle connections: set idle_timeout and max_lifetime below what the server, a '
        'proxy or a firewall allows. Callers notice nothing but time, as long as the connection manager has '
        'check_aliveness.'),
)

# --- in which cases they fire ---

LIMITS = {'gcpool_max_connections': '10x60', 'gcpool_max_connections_per_endpoint': '10x60'}

CASES: Final = (
    Case('Saturated', 'somebody is in line, minute after minute',
         {'gcpool_waiters{pool_endpoint="db:5432"}': '0x5 4x20'}, '15m', '4'),
    Case('Saturated', 'bursts, each of which is served before the next comes',
         {'gcpool_waiters{pool_endpoint="db:5432"}': '0 9 0 0 9 0 0 9 0 0 9 0 0 9 0'}, '14m'),
    Case('AcquireTimeouts', 'one acquire in ten times out',
         {'gcpool_acquires_total{pool_endpoint="db:5432", result="hit"}': '0+540x20',
          'gcpool_acquires_total{pool_endpoint="db:5432", result="timeout"}': '0+60x20'}, '15m', '10%'),
    Case('AcquireTimeouts', 'one in a thousand does',
         {'gcpool_acquires_total{pool_endpoint="db:5432", result="hit"}': '0+5994x20',
          'gcpool_acquires_total{pool_endpoint="db:5432", result="timeout"}': '0+6x20'}, '15m'),
    Case('SlowAcquire', 'acquires take from 0.25 to 0.5 s',
         {f'gcpool_acquire_wait_seconds_bucket{{le="{le}"}}': f'0+{0 if float(le) < 0.5 else 60}x40'
          for le in (*(f'{bound:g}' if bound % 1 else f'{bound:.1f}' for bound in WAIT_BOUNDS), '+Inf')},
         '30m', '487.5ms'),
    Case('SlowAcquire', 'all but a few are hits',
         {f'gcpool_acquire_wait_seconds_bucket{{le="{le}"}}': f'0+{58 if float(le) < 0.5 else 60}x40'
          for le in (*(f'{bound:g}' if bound % 1 else f'{bound:.1f}' for bound in WAIT_BOUNDS), '+Inf')},
         '30m'),
    Case('ConnectionLeakSuspected', 'a connection passes the threshold',
         {'gcpool_leaks_detected_total{pool_endpoint="db:5432"}': '0x10 1x20',
          'gcpool_oldest_checkout_seconds': '0+60x30'}, '15m', ''),
    Case('ConnectionLeakSuspected', 'no threshold, and a connection that has been held for more than an hour',
         {'gcpool_leaks_detected_total{pool_endpoint="db:5432"}': '0x70',
          'gcpool_oldest_checkout_seconds': '0+60x70'}, '65m', ''),
    Case('ConnectionLeakSuspected', 'a leak long ago; uses come and go',
         {'gcpool_leaks_detected_total{pool_endpoint="db:5432"}': '1x70',
          'gcpool_oldest_checkout_seconds': '0+60x9 0+60x9 0+60x9 0+60x9'}, '35m'),
    Case('Churn', 'every second acquire creates',
         {'gcpool_acquire_wait_seconds_count': '0+120x40',
          'gcpool_hook_calls_total{hook="create", outcome="ok"}': '0+60x40'}, '30m', '50%'),
    Case('Churn', 'a pool that is hardly used, and creates each time',
         {'gcpool_acquire_wait_seconds_count': '0 0 1 1 1 1 1 2 2 2 2 2 3 3 3 3 3 4x20',
          'gcpool_hook_calls_total{hook="create", outcome="ok"}': '0 0 1 1 1 1 1 2 2 2 2 2 3 3 3 3 3 4x20'}, '16m'),
    Case('CreateErrors', 'three of four attempts fail',
         {'gcpool_hook_calls_total{hook="create", outcome="ok"}': '0+15x20',
          'gcpool_hook_calls_total{hook="create", outcome="error"}': '0+30x20',
          'gcpool_hook_calls_total{hook="create", outcome="timeout"}': '0+15x20',
          'gcpool_hook_calls_total{hook="create", outcome="cancelled"}': '0+600x20'}, '15m', '75%'),
    Case('CreateErrors', 'callers give up, the server refuses nobody',
         {'gcpool_hook_calls_total{hook="create", outcome="ok"}': '0+15x20',
          'gcpool_hook_calls_total{hook="create", outcome="error"}': '0x20',
          'gcpool_hook_calls_total{hook="create", outcome="timeout"}': '0x20',
          'gcpool_hook_calls_total{hook="create", outcome="cancelled"}': '0+600x20',
          'gcpool_hook_calls_total{hook="dispose", outcome="error"}': '0+600x20'}, '15m'),
    Case('DeadConnections', 'one acquire in twenty finds its connection dead',
         {'gcpool_acquire_wait_seconds_count': '0+600x30',
          'gcpool_hook_calls_total{hook="check_aliveness", outcome="dead"}': '0+30x30'}, '20m', '5%'),
    Case('DeadConnections', 'the server was restarted once, which ended all ten',
         {'gcpool_acquire_wait_seconds_count': '0+600x30',
          'gcpool_hook_calls_total{hook="check_aliveness", outcome="dead"}': '0x10 10x20',
          'gcpool_connections_closed_total{pool_endpoint="db:5432", reason="idle_timeout"}': '0+600x30'}, '13m'),
)
