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
                          'Creating for long: the server is slow to accept.',
    'gcpool_max_connections': 'Compare with the connections of all states. Its sum over all processes is what the '
                              'server must be able to take.',
    'gcpool_max_connections_per_endpoint': 'The limit that is usually met first.',
    'gcpool_min_idle_connections': 'So many idle ones are there on purpose.',
    'gcpool_capacity': 'Fullness is measured against it: the smaller of `total_max_size` and `max_size` for each '
                       'endpoint that has a connection or a waiter. A pool of one endpoint is full at `max_size`. 0 '
                       'without endpoints.',
    'gcpool_waiters': 'A line that comes back to 0 is a burst. One that does not is saturation.',
    'gcpool_oldest_waiter_seconds': 'Close to the time-out of acquires: the next step is errors.',
    'gcpool_oldest_checkout_seconds': 'A straight line that climbs and never falls is a leak.',
    'gcpool_endpoints': 'Grows without end: endpoints are made of what they should not be, a query or a user.',
    'gcpool_acquires_total': 'The part that is not `hit` paid for more than an idle connection; `timeout` and `error` '
                             'reached a caller as exceptions.',
    'gcpool_releases_total': 'Many `handoff`: there is always somebody in line. `discarded`: it was given up for '
                             'another endpoint, had expired, or a hook went wrong.',
    'gcpool_connections_closed_total': '`evicted`: endpoints compete for the limit of all. `dead`: the other end hung '
                                       'up. `error`: a hook raised, or an acquire was given up half-way.',
    'gcpool_hook_calls_total': 'Errors of `create`: the server refuses, or cannot be reached. Errors of `on_release`: '
                               'what users leave behind cannot be cleared away.',
    'gcpool_hook_seconds': 'For `create`, the time to connect. A slow `check_aliveness`, `on_acquire` or `on_release` '
                           'is paid for by every acquire.',
    'gcpool_acquire_wait_seconds': 'What callers feel. p50 in the first bucket is the normal state; watch p99.',
    'gcpool_use_seconds': 'When it grows, the pool shrinks with its limits unchanged. The rate of its sum is how many '
                          'connections the load needs.',
    'gcpool_connection_age_seconds': 'Close to `idle_timeout` or `max_lifetime`: they are at work. Much below: '
                                     'something else ends connections.',
    'gcpool_leaks_detected_total': 'Each is one connection that passed the `leak_threshold`. Always 0 without one.',
    'gcpool_endpoint_label_overflow_total': 'Raise `endpoint_labels`, or group endpoints by `endpoint_label`.',
    'gcpool_telemetry_errors_total': 'Not 0: look for the first of each in the log of `gcp.observe`.',
    'gcpool_collect_seconds': 'Part of the duration of a scrape.',
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
        for label in metric.labels if label != 'pool'
    ]
    return '; '.join([metric.kind, *labels])


def bucket_rows() -> Iterator[str]:
    yield '| histogram | buckets, up to so many seconds |'
    yield '|---|---|'
    for metric in METRICS:
        if metric.buckets:
            yield f'| `{metric.name}` | {" ".join(f"{bound:g}" for bound in metric.buckets)} |'


def instrument_rows() -> Iterator[str]:
    yield '| instrument | kind | the same figures as |'
    yield '|---|---|---|'
    for instrument in INSTRUMENTS:
        where = ', '.join(f'{label}="{value}"' for label, value in instrument.where.items())
        yield (f'| `{instrument.name}` | {instrument.kind.replace("_", " ")} | '
               f'`{instrument.metric}{f"{{{where}}}" if where else ""}` |')


TABLES = {'metrics': metric_rows, 'buckets': bucket_rows, 'instruments': instrument_rows}


def filled(text: str) -> str:
    """Put each table between its marks."""
    for name, rows in TABLES.items():
        begin, end = f'<!-- {name} -->\n', f'<!-- end of {name} -->'
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f'no place for {name}')
        text = '\n'.join([before + begin, *rows(), '', end]) + after
    return text


if __name__ == '__main__':
    if list(READ) != [metric.name for metric in METRICS]:
        sys.exit('READ has other metrics')
    PAGE.write_text(filled(PAGE.read_text()))
