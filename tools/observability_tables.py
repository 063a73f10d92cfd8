"""Write the tables of docs/observability.md: `python -m tools.observability_tables`.

Names, labels and meanings are those of `gcp.observe.names`; how to read each metric is written here. Run it after a
change to either."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from gcp.observe.names import INSTRUMENTS, METRICS, Metric

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'observability.md'

READ = {
    'gcpool_connections': 'Almost all used, and waiters: too few, or held for too long. Many idle all day: too many. '
    'Many creating: the server is slow to accept connections.',
    'gcpool_max_connections': '`total_max_size`. Its sum over all processes is the number of connections that the '
    'servers must accept.',
    'gcpool_max_connections_per_endpoint': '`max_size`, the limit that is usually reached first.',
    'gcpool_min_idle_connections': '`min_idle`: so many idle connections are kept for good.',
    'gcpool_capacity': 'Fullness is measured against it: the smaller of `total_max_size` and the sum of the limits '
    'of each endpoint that has a connection or a waiter. A pool of one endpoint is full at `max_size`. 0 without '
    'endpoints.',
    'gcpool_waiters': 'If it returns to 0, it was a burst. If it does not, the pool is saturated.',
    'gcpool_oldest_waiter_seconds': 'Close to `acquire_timeout`: acquires are about to fail.',
    'gcpool_oldest_checkout_seconds': 'A straight line that rises and never falls is a leak.',
    'gcpool_endpoints': 'If it grows without end, endpoints contain something unbounded, such as a query or a user.',
    'gcpool_acquires_total': '`hit` is the fast path. With `timeout`, `rejected` and `error` the caller got an '
    'exception; `rejected`: `max_waiting` acquires waited already, or the breaker was open.',
    'gcpool_releases_total': 'Many `handoff`: acquires wait all the time. `discarded`: the connection was evicted for '
    'another endpoint, had expired, or a hook failed.',
    'gcpool_connections_closed_total': '`evicted`: endpoints compete for `total_max_size`, or a cap was lowered. '
    '`expired`: `classify` called an error stale. `dead`: the server closed it. `error`: a hook raised, or an '
    'acquire was cancelled half-way.',
    'gcpool_hook_calls_total': 'Errors of `create`: the server refuses connections, or cannot be reached. Errors of '
    '`on_release`: connections cannot be reset after use.',
    'gcpool_hook_seconds': '`failed`: the call raised, timed out or was cancelled. For `create`, the time to connect. '
    'A slow `check_aliveness`, `on_acquire` or `on_release` delays every acquire.',
    'gcpool_acquire_wait_seconds': 'The delay of callers. p50 in the first bucket is the normal state; watch p99.',
    'gcpool_use_seconds': 'If it grows, the same limits serve fewer callers. The rate of its sum is the average number '
    'of connections in use.',
    'gcpool_connection_age_seconds': 'Close to `idle_timeout` or `max_lifetime`: these closed them. Much lower: '
    'something else did.',
    'gcpool_leaks_detected_total': 'Connections that were held for longer than `leak_threshold`. Always 0 without one.',
    'gcpool_connect_failures_total': '`permanent`: a wrong password, an unknown host or database, a certificate; '
    'no retry helps. What `classify` says of the error, else `transient`.',
    'gcpool_connect_waiters': 'A part of `gcpool_waiters`: not the caps hold them up, but `max_connecting`, '
    '`max_connecting_total`, `connect_workers` or the retry delay.',
    'gcpool_breaker_open': 'Above 0: callers that find no idle connection get `EndpointUnavailableError` at once. '
    'A label of several endpoints counts them.',
    'gcpool_retry_delay_seconds': 'Above 0: the latest connects have failed. It grows up to the maximum of '
    '`connect_retry`. A label of several endpoints shows the longest.',
    'gcpool_missing_connections': 'Above 0 for more than moments: connects fail, or the limits leave no room. '
    'Always 0 for endpoints that were not warmed up, and without `refill` once the warm-up has ended.',
    'gcpool_suspended': 'Above 0: `suspend` was called, and acquires wait or fail until `resume`. If a pool is '
    'suspended as a whole, each endpoint that it knows counts.',
    'gcpool_stale_connections': 'After `expire`, it falls to 0 as connections are released. If it does not, a '
    'connection from before is still held.',
    'gcpool_endpoint_max_connections': '`max_size`, unless `limits` gives the endpoint its own. A label of several '
    'endpoints shows the sum.',
    'gcpool_limits_errors_total': 'If it is not 0, the limits of the pool hold for endpoints that should have '
    'their own; the log has the first error of each.',
    'gcpool_abandoned_leases_total': 'Above 0: code drops connections without releasing them; the log names the line '
    'that acquired each.',
    'gcpool_reclaim_runs_total': 'Grows only with `reclaim_abandoned`: holders were gone while acquires waited.',
    'gcpool_listener_errors_total': 'If it is not 0, the logger `gcp.listener` has the first error of each method of a '
    'listener.',
    'gcpool_listener_events_dropped_total': 'If it grows, a listener blocks, or takes too long for so many events.',
    'gcpool_endpoint_label_overflow_total': 'Raise `endpoint_labels`, or group endpoints with `endpoint_label`.',
    'gcpool_telemetry_errors_total': 'If it is not 0, the logger `gcp.observe` has the first error of each kind.',
    'gcpool_collect_seconds': 'A part of the duration of a scrape.',
    'gcpool_info': 'Which version runs where.',
}


def metric_rows() -> Iterator[str]:
    yield '| metric | kind and labels | what it is | how to read it |'
    yield '|---|---|---|---|'
    for metric in METRICS:
        yield f'| `{metric.name}` | {kind_of(metric)} | {metric.help}. | {READ[metric.name]} |'


def kind_of(metric: Metric) -> str:
    labels = [
        f'`{label}`' + (f': {", ".join(metric.values[label])}' if label in metric.values else '')
        for label in metric.labels
        if label != 'pool'
    ]
    return '; '.join([metric.kind, *labels])


def bucket_rows() -> Iterator[str]:
    yield '| histogram | buckets, up to so many seconds |'
    yield '|---|---|'
    for metric in METRICS:
        if metric.buckets:
            yield f'| `{metric.name}` | {" ".join(f"{bound:g}" for bound in metric.buckets)} |'


def instrument_rows() -> Iterator[str]:
    yield '| instrument | kind | attributes | the same figures as |'
    yield '|---|---|---|---|'
    for instrument in INSTRUMENTS:
        where = ', '.join(f'{label}="{value}"' for label, value in instrument.where.items())
        labels = [name for name, label in instrument.attributes.items() if label != 'pool']
        attributes = ', '.join(f'`{name}`' for name in labels)
        yield (
            f'| `{instrument.name}` | {instrument.kind.replace("_", " ")} | {attributes} | '
            f'`{instrument.metric}{f"{{{where}}}" if where else ""}` |'
        )


TABLES = {'metrics': metric_rows, 'buckets': bucket_rows, 'instruments': instrument_rows}


def filled(text: str) -> str:
    """Return the page with each table between its marks."""
    for name, rows in TABLES.items():
        begin, end = f'<!-- {name} -->\n', f'<!-- end of {name} -->'
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f'the page has no marks for the table of {name}')
        text = '\n'.join([before + begin, *rows(), '', end]) + after
    return text


if __name__ == '__main__':
    if list(READ) != [metric.name for metric in METRICS]:
        sys.exit('READ has other metrics')
    PAGE.write_text(filled(PAGE.read_text()))
