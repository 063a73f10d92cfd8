"""The table of names: what it promises, and that nothing else is shown."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pages import registry, scrape

import gcp.observe
from gcp.observe.names import BY_NAME, INSTRUMENTS, METRICS
from gcp.testing import FakeManager
from gcp.threading import ConnectionPool

W = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
RESULTS = {'hit', 'created', 'waited', 'timeout', 'cancelled', 'error', 'rejected'}
HOOKS = {'create', 'dispose', 'check_aliveness', 'on_acquire', 'on_release', 'on_connection_dead', 'keepalive'}

#: name: type, labels, and what those with a fixed set of values can be
PROMISED = {
    'gcpool_connections': ('gauge', 'pool pool_endpoint state', {'state': {'idle', 'used', 'creating'}}),
    'gcpool_max_connections': ('gauge', 'pool', {}),
    'gcpool_max_connections_per_endpoint': ('gauge', 'pool', {}),
    'gcpool_min_idle_connections': ('gauge', 'pool', {}),
    'gcpool_capacity': ('gauge', 'pool', {}),
    'gcpool_waiters': ('gauge', 'pool pool_endpoint', {}),
    'gcpool_oldest_waiter_seconds': ('gauge', 'pool', {}),
    'gcpool_oldest_checkout_seconds': ('gauge', 'pool', {}),
    'gcpool_endpoints': ('gauge', 'pool', {}),
    'gcpool_acquires_total': ('counter', 'pool pool_endpoint result', {'result': RESULTS}),
    'gcpool_releases_total': ('counter', 'pool pool_endpoint outcome', {'outcome': {'idle', 'handoff', 'discarded'}}),
    'gcpool_connections_closed_total': (
        'counter',
        'pool pool_endpoint reason',
        {
            'reason': {
                'idle_timeout',
                'max_lifetime',
                'dead',
                'discarded',
                'evicted',
                'pool_closed',
                'error',
                'expired',
                'max_uses',
                'retired',
            }
        },
    ),
    'gcpool_hook_calls_total': (
        'counter',
        'pool hook outcome',
        {'hook': HOOKS, 'outcome': {'ok', 'error', 'timeout', 'cancelled', 'dead'}},
    ),
    'gcpool_hook_seconds': ('histogram', 'pool hook result', {'hook': HOOKS, 'result': {'ok', 'failed'}}),
    'gcpool_acquire_wait_seconds': ('histogram', 'pool', {}),
    'gcpool_use_seconds': ('histogram', 'pool', {}),
    'gcpool_connection_age_seconds': ('histogram', 'pool', {}),
    'gcpool_leaks_detected_total': ('counter', 'pool pool_endpoint', {}),
    'gcpool_connect_failures_total': ('counter', 'pool pool_endpoint class', {'class': {'transient', 'permanent'}}),
    'gcpool_connect_waiters': ('gauge', 'pool pool_endpoint', {}),
    'gcpool_breaker_open': ('gauge', 'pool pool_endpoint', {}),
    'gcpool_retry_delay_seconds': ('gauge', 'pool pool_endpoint', {}),
    'gcpool_missing_connections': ('gauge', 'pool pool_endpoint', {}),
    'gcpool_suspended': ('gauge', 'pool pool_endpoint', {}),
    'gcpool_stale_connections': ('gauge', 'pool pool_endpoint', {}),
    'gcpool_endpoint_max_connections': ('gauge', 'pool pool_endpoint', {}),
    'gcpool_limits_errors_total': ('counter', 'pool', {}),
    'gcpool_abandoned_leases_total': ('counter', 'pool', {}),
    'gcpool_reclaim_runs_total': ('counter', 'pool', {}),
    'gcpool_listener_errors_total': ('counter', 'pool', {}),
    'gcpool_listener_events_dropped_total': ('counter', 'pool', {}),
    'gcpool_endpoint_label_overflow_total': ('counter', 'pool', {}),
    'gcpool_telemetry_errors_total': ('counter', 'pool', {}),
    'gcpool_collect_seconds': ('gauge', '', {}),
    'gcpool_info': ('gauge', 'pool version frontend', {}),  # an info is a gauge on a plain page
}

NEVER_0 = {
    'gcpool_max_connections',
    'gcpool_max_connections_per_endpoint',
    'gcpool_min_idle_connections',
    'gcpool_info',
    'gcpool_collect_seconds',
}

BUCKETS = {
    'gcpool_hook_seconds': W,
    'gcpool_acquire_wait_seconds': W,
    'gcpool_use_seconds': (*W, 30, 60, 300),
    'gcpool_connection_age_seconds': (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 21600, 86400),
}


def test_all_that_is_promised_is_shown_at_0_from_the_start_and_nothing_else() -> None:
    own = registry()
    pool = ConnectionPool(FakeManager(), name='orders', registry=own)
    page = scrape(own)
    shown = {family.name + ('_total' if family.type == 'counter' else ''): family for family in page.families.values()}
    assert {name: family.type for name, family in shown.items()} == {
        name: kind for name, (kind, _, _) in PROMISED.items()
    }
    for name, (_, labels, values) in PROMISED.items():
        family = shown[name]
        assert family.documentation == BY_NAME[name].help
        for sample in family.samples:
            assert set(sample.labels) == set(labels.split()) | ({'le'} if sample.name.endswith('_bucket') else set())
            assert sample.labels.get('pool', 'orders') == 'orders'
            assert sample.value == 0 or name in NEVER_0, sample
        for label, expected in values.items():
            assert {sample.labels[label] for sample in family.samples} == expected
    assert {
        name: tuple(
            sorted({float(sample.labels['le']) for sample in shown[name].samples if 'le' in sample.labels})[:-1],
        )
        for name in BUCKETS
    } == BUCKETS
    assert page.labels('outcome', hook='create') == {'ok', 'error', 'timeout', 'cancelled'}
    for hook in ('check_aliveness', 'keepalive'):
        assert page.labels('outcome', hook=hook) == {'ok', 'error', 'timeout', 'cancelled', 'dead'}
    pool.close()


def test_the_table_is_what_is_promised() -> None:
    assert [metric.name for metric in METRICS] == list(PROMISED)
    for metric in METRICS:
        kind, labels, values = PROMISED[metric.name]
        assert metric.kind == ('info' if metric.name == 'gcpool_info' else kind)
        assert metric.labels == tuple(labels.split())
        assert {label: set(found) for label, found in metric.values.items()} == values
        assert metric.buckets == BUCKETS.get(metric.name, ())
        assert metric.help and not metric.help.endswith('.')
        assert metric.name.endswith('_seconds') == (metric.unit == 's')


def test_no_label_is_one_that_service_discovery_sets() -> None:
    """Prometheus would rename it, and rules and panels that use it would find nothing."""
    target = {'cluster', 'container', 'endpoint', 'instance', 'job', 'namespace', 'node', 'pod', 'service'}
    assert not target & {label for metric in METRICS for label in metric.labels}


def test_instruments_show_what_the_table_has() -> None:
    assert len({instrument.name for instrument in INSTRUMENTS}) == len(INSTRUMENTS)
    for instrument in INSTRUMENTS:
        metric = BY_NAME[instrument.metric]
        assert set(instrument.where) <= set(metric.values)
        assert all(value in metric.values[label] for label, value in instrument.where.items())
        assert set(instrument.attributes.values()) == set(metric.labels) - set(instrument.where)
        assert (instrument.kind == 'histogram') == bool(instrument.buckets)
        assert re.match(r'db\.client\.connection\.|gcpool\.', instrument.name)


def test_names_of_conventions_are_in_one_file() -> None:
    sources = Path(gcp.observe.__file__).parent.glob('*.py')
    assert [path.name for path in sources if re.search(r"'db\.client\.", path.read_text())] == ['names.py']


@pytest.mark.skipif(shutil.which('promtool') is None, reason='needs promtool')
def test_promtool_finds_nothing_to_complain_about() -> None:
    own = registry()
    with ConnectionPool(FakeManager(), name='orders', registry=own) as pool, pool.connection('db'):
        text = scrape(own).text
    result = subprocess.run(['promtool', 'check', 'metrics'], input=text, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
