"""Guarantee 15 (docs/guarantees.md): OpenTelemetry metrics with a real SDK: one set of instruments per provider, for
all of its pools."""

from __future__ import annotations

import gc
import math
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fronts import Front
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
from traces import forget_meter_provider, globals_of_our_own

import gcp
from gcp._core import HOOKS, OUTCOMES, REASONS, RESULTS
from gcp.exceptions import AcquireTimeoutError, EndpointUnavailableError
from gcp.limits import Retry
from gcp.observe import opentelemetry as ours
from gcp.observe.names import INSTRUMENTS, METRICS, SCHEMA_URL, Instrument
from gcp.observe.opentelemetry import record_histograms, since, spread
from gcp.testing import BareFakeManager, error
from gcp.threading import ConnectionPool

POOL = 'db.client.connection.pool.name'

#: what TELEMETRY promises; a mapping of names to kinds, units and further attributes
PROMISED = {
    'db.client.connection.count': (False, '{connection}', {'db.client.connection.state', 'gcpool.endpoint'}),
    'db.client.connection.max': (False, '{connection}', set()),
    'db.client.connection.idle.max': (False, '{connection}', set()),
    'db.client.connection.idle.min': (False, '{connection}', set()),
    'db.client.connection.pending_requests': (False, '{request}', {'gcpool.endpoint'}),
    'db.client.connection.timeouts': (True, '{timeout}', {'gcpool.endpoint'}),
    'gcpool.connection.acquires': (True, '{acquire}', {'gcpool.result', 'gcpool.endpoint'}),
    'gcpool.connection.releases': (True, '{release}', {'gcpool.outcome', 'gcpool.endpoint'}),
    'gcpool.connection.closes': (True, '{connection}', {'gcpool.reason', 'gcpool.endpoint'}),
    'gcpool.connection.hook_calls': (True, '{call}', {'gcpool.hook', 'gcpool.outcome'}),
    'gcpool.connection.connect_failures': (True, '{connect}', {'gcpool.class', 'gcpool.endpoint'}),
    'gcpool.connection.connect_waiters': (False, '{acquire}', {'gcpool.endpoint'}),
    'gcpool.connection.breakers_open': (False, '{endpoint}', {'gcpool.endpoint'}),
    'gcpool.connection.retry_delay': (None, 's', {'gcpool.endpoint'}),
    'gcpool.connection.missing': (False, '{connection}', {'gcpool.endpoint'}),
    'gcpool.connection.suspended': (False, '{endpoint}', {'gcpool.endpoint'}),
    'gcpool.connection.stale': (False, '{connection}', {'gcpool.endpoint'}),
    'gcpool.connection.endpoint_max': (False, '{connection}', {'gcpool.endpoint'}),
    'gcpool.connection.limits_errors': (True, '{error}', set()),
    'gcpool.connection.abandoned_leases': (True, '{lease}', set()),
    'gcpool.connection.reclaim_runs': (True, '{run}', set()),
    'gcpool.connection.listener_errors': (True, '{error}', set()),
    'gcpool.connection.listener_events_dropped': (True, '{event}', set()),
}


@pytest.fixture(autouse=True)
def own_globals() -> Iterator[None]:
    # pools of other tests would follow the global provider, too; a test that failed last would keep its own alive
    for name in ('last_exc', 'last_traceback', 'last_value'):
        vars(sys).pop(name, None)
    gc.collect()
    with globals_of_our_own():
        yield


class Meters:
    """A meter provider, and what it collects."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def collect(self) -> dict[str, Metric]:
        """Collect once; by the instruments' names."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        found = [
            scope
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            if scope.scope.name == 'gcpool'
        ]
        assert len(found) <= 1
        for scope in found:
            assert (scope.scope.version, scope.scope.schema_url, scope.schema_url) == (
                gcp.__version__,
                SCHEMA_URL,
                SCHEMA_URL,
            )
        return {metric.name: metric for scope in found for metric in scope.metrics}

    def values(self, name: str, pool: str | None = 'orders') -> dict[Any, Any]:
        """What one instrument shows, by its attribute values without the pool's; of one pool, or summed up."""
        return values_of(self.collect(), name, pool)


def values_of(collected: dict[str, Metric], name: str, pool: str | None = None) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for point in collected[name].data.data_points if name in collected else []:
        attributes = dict(point.attributes or {})
        for attribute in ('gcpool.endpoint', 'server.address', 'server.port'):
            attributes.pop(attribute, None)
        if pool in (None, attributes.pop(POOL)):
            key: Any = tuple(attributes.values())
            key = key[0] if len(key) == 1 else key
            found[key] = found.get(key, 0) + getattr(point, 'value', 0)
    return found


def pool_of(front: Front, meters: Meters | None = None, name: str = 'orders', **arguments: Any) -> Any:
    given: dict[str, Any] = {'meter_provider': meters.provider} if meters is not None else {}
    return front.pool(front.manager(), name=name, registry=None, **given | arguments)


async def use(pool: Any, times: int = 1, endpoint: Any = 'db') -> None:
    for _ in range(times):
        async with pool.connection(endpoint):
            pass


# --- what is shown ---


async def test_names_kinds_units_and_attributes(front: Front) -> None:
    meters = Meters()
    await use(pool_of(front, meters))
    collected = meters.collect()
    shown = {}
    for name, metric in collected.items():
        data: Any = metric.data
        attributes = {key for point in data.data_points for key in point.attributes}
        assert POOL in attributes and metric.description
        shown[name] = getattr(data, 'is_monotonic', None), metric.unit, attributes - {POOL}
    assert shown == PROMISED
    assert set(PROMISED) == {each.name for each in INSTRUMENTS if each.kind != 'histogram'}


async def test_values_are_the_pools_own(front: Front) -> None:
    meters = Meters()
    pool = pool_of(front, meters, max_size=2, total_max_size=7, min_idle=1)
    await use(pool, 3)
    one, two = await pool.acquire('db'), await pool.acquire('db')
    waiter = (await front.line_up(pool, 'db', 1))[0]
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('db', timeout=0)

    stats, shown = pool.stats(), meters.collect()
    assert values_of(shown, 'db.client.connection.count') == {'idle': 0, 'used': 2, 'creating': 0}
    assert values_of(shown, 'db.client.connection.max') == {(): 2}
    assert values_of(shown, 'db.client.connection.idle.max') == {(): 2}
    assert values_of(shown, 'db.client.connection.idle.min') == {(): 1}
    assert values_of(shown, 'db.client.connection.pending_requests') == {(): 1}
    assert values_of(shown, 'db.client.connection.timeouts') == {(): 1}
    assert values_of(shown, 'gcpool.connection.acquires') == dict(stats.acquires)
    assert values_of(shown, 'gcpool.connection.releases') == dict(stats.releases)
    assert values_of(shown, 'gcpool.connection.closes') == dict(stats.closed)
    assert values_of(shown, 'gcpool.connection.hook_calls') == {
        (hook, outcome): count for hook, outcomes in stats.hook_calls.items() for outcome, count in outcomes.items()
    }
    await pool.release(one, 'db')
    await pool.release(await waiter, 'db')
    await pool.release(two, 'db')


async def test_connecting_is_shown(front: Front) -> None:
    meters = Meters()
    pool = pool_of(front, meters, breaker_threshold=1, connect_retry=Retry(60, 60), max_size=3)
    front.managers[-1].create.does(error(OSError()), endpoint='down')
    with pytest.raises(OSError):
        await pool.acquire('down', timeout=0)  # without another try
    with pytest.raises(EndpointUnavailableError):
        await pool.acquire('down')
    await use(pool)
    shown = meters.collect()
    assert values_of(shown, 'gcpool.connection.connect_failures') == {'transient': 1, 'permanent': 0}
    assert values_of(shown, 'gcpool.connection.acquires')['rejected'] == 1
    assert values_of(shown, 'gcpool.connection.breakers_open') == {(): 1}
    assert values_of(shown, 'gcpool.connection.connect_waiters') == {(): 0}
    assert values_of(shown, 'gcpool.connection.missing') == {(): 0}
    assert values_of(shown, 'gcpool.connection.suspended') == {(): 0}
    assert values_of(shown, 'gcpool.connection.stale') == {(): 0}
    assert values_of(shown, 'gcpool.connection.endpoint_max') == {(): 6}
    assert values_of(shown, 'gcpool.connection.limits_errors') == {(): 0}
    assert 0 < values_of(shown, 'gcpool.connection.retry_delay')[()] <= 60
    by_endpoint = {
        point.attributes['gcpool.endpoint']: point.value
        for point in shown['gcpool.connection.breakers_open'].data.data_points
    }
    assert by_endpoint == {'down': 1, 'db': 0, '_other': 0}


async def test_endpoints_have_labels_and_addresses(front: Front) -> None:
    meters = Meters()
    pool = pool_of(front, meters, endpoint_labels=2)
    endpoints = [('db-1', 5432), 'db-2.example.org', 'third', 'fourth']
    held = [(await pool.acquire(endpoint), endpoint) for endpoint in endpoints]
    for connection, endpoint in held:
        await pool.release(connection, endpoint)
    await use(pool, 2, ('db-1', 5432))
    found = {}
    for point in meters.collect()['gcpool.connection.acquires'].data.data_points:
        attributes: Any = point.attributes
        if attributes['gcpool.result'] == 'hit':
            where = attributes.get('server.address'), attributes.get('server.port')
            found[attributes['gcpool.endpoint'], where] = getattr(point, 'value', None)
    assert found == {
        ('db-1:5432', ('db-1', 5432)): 2,
        ('db-2.example.org', ('db-2.example.org', None)): 0,
        ('_other', (None, None)): 0,
    }
    used = meters.collect()['db.client.connection.count'].data.data_points
    assert {point.attributes['gcpool.endpoint'] for point in used if point.attributes} == {key for key, _ in found}


async def test_label_function_of_the_pool_holds_for_metrics(front: Front) -> None:
    """An address that the label hides, or that differs within a group, is not shown."""
    meters = Meters()
    pool = pool_of(front, meters, endpoint_label=lambda endpoint: f'shard {endpoint[1] % 2}')
    for port in (1, 2, 3):
        await use(pool, 1, ('db', port))
    points = meters.collect()['gcpool.connection.acquires'].data.data_points
    assert {point.attributes['gcpool.endpoint'] for point in points if point.attributes} == {
        'shard 0',
        'shard 1',
        '_other',
    }
    assert not any('server.address' in (point.attributes or {}) for point in points)


@pytest.mark.parametrize('later', [False, True])
async def test_histograms_that_the_environment_asks_for(
    front: Front, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    monkeypatch.setenv('GCPOOL_OTEL_HISTOGRAMS', 'record')
    with globals_of_our_own():
        meters = Meters()
        if later:
            pool = pool_of(front, name='asked for')
            metrics.set_meter_provider(meters.provider)
        else:
            metrics.set_meter_provider(meters.provider)
            pool = pool_of(front, name='asked for')
        await use(pool, 3)

        def count_of(name: str) -> object:
            points = meters.collect()[
                f'db.client.connection.{name}'
            ].data.data_points  # pools of other tests may be left
            (point,) = (one for one in points if pool.name in (one.attributes or {}).values())
            return getattr(point, 'count', None)

        for _ in range(2):
            assert (count_of('create_time'), count_of('wait_time'), count_of('use_time')) == (1, 3, 3)
        record_histograms()  # changes nothing
        assert count_of('use_time') == 3


async def test_environment_that_asks_for_something_else(
    front: Front, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv('GCPOOL_OTEL_HISTOGRAMS', 'yes')
    monkeypatch.setattr(ours.GlobalProvider, 'is_variable_logged', False)
    meters = Meters()
    for _ in range(2):
        await use(pool_of(front, meters))
    assert 'db.client.connection.use_time' not in meters.collect()
    (record,) = caplog.records
    assert "GCPOOL_OTEL_HISTOGRAMS=yes: 'record' or 'off' was expected" in record.getMessage()


async def test_failed_creations_have_no_create_time(front: Front) -> None:
    meters, manager = Meters(), front.manager()
    record_histograms(meters.provider)
    pool = front.pool(manager, name='orders', registry=None, meter_provider=meters.provider)
    await use(pool)
    for outcome in (error(OSError('refused')), error(TimeoutError())):
        manager.create.does(outcome)
        with pytest.raises(OSError):
            await use(pool, 1, 'other')
    (point,) = meters.collect()['db.client.connection.create_time'].data.data_points
    assert getattr(point, 'count', None) == 1
    assert pool.stats().hook_time['create'].count == 3


async def test_all_series_are_there_from_the_start(front: Front) -> None:
    meters = Meters()
    pool_of(front, meters)
    shown = meters.collect()
    assert set(values_of(shown, 'gcpool.connection.acquires')) == set(RESULTS)
    assert set(values_of(shown, 'gcpool.connection.releases')) == set(OUTCOMES)
    assert set(values_of(shown, 'gcpool.connection.closes')) == set(REASONS)
    assert {hook for hook, _ in values_of(shown, 'gcpool.connection.hook_calls')} == set(HOOKS)
    assert all(value == 0 for name in PROMISED if PROMISED[name][0] for value in values_of(shown, name).values())


async def test_one_snapshot_for_all_instruments(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    meters = Meters()
    pool = pool_of(front, meters)
    binding = ours.binding_of(meters.provider)
    looks = []
    read = binding.aggregation.read
    monkeypatch.setattr(binding.aggregation, 'read', lambda: looks.append(1) or read())
    for number in range(1, 4):
        await use(pool)
        meters.collect()
        assert len(looks) == number


# --- who is seen by whom ---


async def test_two_pools_of_one_provider(front: Front) -> None:
    """The SDK drops the callback of a second instrument of the same name."""
    meters = Meters()
    await use(pool_of(front, meters, 'one'), 2)
    await use(pool_of(front, meters, 'two'), 3)
    shown = meters.collect()
    assert values_of(shown, 'gcpool.connection.acquires', 'one')['hit'] == 1
    assert values_of(shown, 'gcpool.connection.acquires', 'two')['hit'] == 2


async def test_two_pools_of_one_name_are_summed_up(front: Front) -> None:
    meters = Meters()
    await use(pool_of(front, meters), 2)
    await use(pool_of(front, meters), 3)
    assert meters.values('gcpool.connection.acquires')['hit'] == 3
    assert meters.values('db.client.connection.max') == {(): 20}


async def test_three_providers(front: Front) -> None:
    one, two, everybodys = Meters(), Meters(), Meters()
    metrics.set_meter_provider(everybodys.provider)
    for times, meters in enumerate((one, two, None), 2):
        await use(pool_of(front, meters, f'pool {times}'), times)
    for times, meters in enumerate((one, two, everybodys), 2):
        collected = meters.collect()
        assert values_of(collected, 'gcpool.connection.acquires', f'pool {times}')['hit'] == times - 1
        shown = [dict(point.attributes or {}) for point in collected['db.client.connection.max'].data.data_points]
        ours = [attributes for attributes in shown if attributes[POOL].startswith('pool ')]
        assert ours == [{POOL: f'pool {times}'}]


async def test_global_provider_that_is_set_later(front: Front) -> None:
    await use(pool_of(front, name='before'), 2)
    meters = Meters()
    metrics.set_meter_provider(meters.provider)
    assert meters.values('gcpool.connection.acquires', 'before')['hit'] == 1  # without an acquire in between

    await use(pool_of(front, name='after'), 3)
    await use(pool_of(front, meters, name='given'), 4)
    shown = meters.collect()
    assert [values_of(shown, 'gcpool.connection.acquires', name)['hit'] for name in ('before', 'after', 'given')] == [
        1,
        2,
        3,
    ]


async def test_provider_that_becomes_the_global_one_after_it_was_given(front: Front) -> None:
    meters = Meters()
    await use(pool_of(front, name='everybodys'), 2)
    await use(pool_of(front, meters, 'given'), 3)
    metrics.set_meter_provider(meters.provider)
    meters.collect()  # notices
    shown = meters.collect()
    assert [values_of(shown, 'gcpool.connection.acquires', name)['hit'] for name in ('everybodys', 'given')] == [1, 2]


async def test_sdk_that_is_loaded_anew(front: Front) -> None:
    pool = pool_of(front)
    for number in range(1, 4):
        meters = Meters()
        metrics.set_meter_provider(meters.provider)
        await use(pool, endpoint=f'db{number}')
        assert meters.values('gcpool.connection.acquires', 'orders')['created'] == number
        meters.provider.shutdown()
        forget_meter_provider()


async def test_stand_in_given_as_a_provider_is_the_global_one(front: Front) -> None:
    pool = pool_of(front, meter_provider=metrics.get_meter_provider())
    await use(pool, 2)
    meters = Meters()
    metrics.set_meter_provider(meters.provider)
    assert meters.values('gcpool.connection.acquires')['hit'] == 1


async def test_a_pool_without_a_provider_is_not_exported(front: Front) -> None:
    meters = Meters()
    metrics.set_meter_provider(meters.provider)
    await use(pool_of(front, meter_provider=None))
    assert not meters.collect()


def test_none_imports_nothing(script: Callable[..., Any]) -> None:
    script("""
        import sys
        from gcp.testing import FakeManager
        from gcp.threading import ConnectionPool

        with ConnectionPool(FakeManager(), meter_provider=None, tracer_provider=None, registry=None):
            assert not [name for name in sys.modules if name.startswith('opentelemetry')]
    """).quietly()


def test_sdk_is_not_imported(script: Callable[..., Any]) -> None:
    script("""
        import sys
        from gcp.testing import FakeManager
        from gcp.threading import ConnectionPool

        import opentelemetry.metrics, opentelemetry.trace
        with ConnectionPool(FakeManager()) as pool, pool.connection('db'):
            assert not [name for name in sys.modules if name.startswith('opentelemetry.sdk')]
    """).quietly()


def test_nothing_is_imported_before_the_program_does(script: Callable[..., Any]) -> None:
    """The first pool is often created in an event loop, which must not be blocked."""
    script("""
        import sys
        from gcp.testing import FakeManager
        from gcp.threading import ConnectionPool

        pool = ConnectionPool(FakeManager(), name='orders')
        with pool.connection('a'), pool.connection('a'):
            assert not [name for name in sys.modules if name.startswith('opentelemetry')]

        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
        metrics.set_meter_provider(MeterProvider([reader]))
        trace.set_tracer_provider(provider := TracerProvider())
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with pool.connection('b'):
            pass
        assert [span.name for span in exporter.get_finished_spans()] == ['create orders', 'wait_for_connection orders']
        (scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
        (metric,) = (each for each in scope.metrics if each.name == 'gcpool.connection.acquires')
        assert sum(point.value for point in metric.data.data_points) == 3
        pool.close()
    """).quietly()


async def test_provider_that_raises(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def get_meter(self, *args: Any) -> Any:
            raise RuntimeError('no meter today')

    pool = pool_of(front, meter_provider=Broken())
    await use(pool)
    assert pool._telemetry.telemetry.errors.count == 1
    assert [record.getMessage() for record in caplog.records] == [
        "orders: meter_provider failed: RuntimeError('no meter today'); further errors are only counted"
    ]


async def test_reading_that_raises(
    front: Front,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    meters = Meters()
    pool_of(front, meters)
    aggregation = ours.binding_of(meters.provider).aggregation

    def fail() -> Any:
        raise RuntimeError('no figures today')

    with monkeypatch.context() as patch:
        patch.setattr(aggregation, 'read', fail)
        for _ in range(3):
            assert not meters.collect()
    assert aggregation.errors.count == 3 * len(PROMISED)
    assert len(caplog.records) == 1
    assert meters.collect()


# --- nothing ever steps back ---


async def test_closed_pool(front: Front) -> None:
    meters = Meters()
    pool = pool_of(front, meters)
    await use(pool, 2)
    await pool.close()
    shown = meters.collect()
    assert values_of(shown, 'gcpool.connection.acquires')['hit'] == 1
    assert values_of(shown, 'db.client.connection.count') == {'idle': 0, 'used': 0, 'creating': 0}


def test_pool_that_was_dropped() -> None:
    meters = Meters()
    for number in range(1, 4):
        pool = ConnectionPool(BareFakeManager(), name='orders', meter_provider=meters.provider, registry=None)
        with pool.connection('db'):
            pass
        with pool.connection('db'):
            pass
        assert meters.values('gcpool.connection.acquires')['hit'] == number
        died = weakref.ref(pool)
        del pool
        gc.collect()
        assert died() is None
        shown = meters.collect()
        assert values_of(shown, 'gcpool.connection.acquires')['hit'] == number
        assert sum(values_of(shown, 'gcpool.connection.closes').values()) == number
        assert values_of(shown, 'db.client.connection.count') == {'idle': 0, 'used': 0, 'creating': 0}


def test_pools_that_come_and_go_leave_little_behind() -> None:
    meters = Meters()
    for number in range(300):
        pool = ConnectionPool(BareFakeManager(), name=f'pool {number}', meter_provider=meters.provider, registry=None)
        with pool.connection('db'):
            pass
        del pool
    gc.collect()
    shown = meters.collect()
    assert values_of(shown, 'gcpool.connection.acquires')['created'] == 300
    assert len(shown['db.client.connection.timeouts'].data.data_points) <= 30


def test_provider_that_is_dropped_is_forgotten() -> None:
    gc.collect()
    before = len(ours.bindings)
    for _ in range(5):
        meters = Meters()
        pool = ConnectionPool(BareFakeManager(), meter_provider=meters.provider, registry=None)
        meters.collect()
        meters.provider.shutdown()
        del meters, pool
    gc.collect()
    assert len(ours.bindings) <= before + 1


def test_forked_child_begins_at_zero(script: Callable[..., Any]) -> None:
    """It waits for no lock that another thread held at the fork."""
    script(
        """
        import os, threading
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from gcp.observe.opentelemetry import GlobalProvider
        from gcp.testing import FakeManager
        from gcp.threading import ConnectionPool

        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        pool = ConnectionPool(FakeManager(), name='orders')

        def acquired():
            (scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
            (metric,) = (each for each in scope.metrics if each.name == 'gcpool.connection.acquires')
            return sum(point.value for point in metric.data.data_points)

        with pool.connection('db'):
            pass
        assert acquired() == 1
        held, over = threading.Event(), threading.Event()

        def hold():
            with GlobalProvider.lock:
                held.set()
                over.wait()

        threading.Thread(target=hold).start()
        held.wait()
        child = os.fork()
        if not child:
            with ConnectionPool(FakeManager(), name='orders').connection('db'), pool.connection('db'):
                pass
            os._exit(acquired())
        over.set()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        assert acquired() == 1
        pool.close()
    """,
        '-W',
        'ignore',
    ).quietly()


# --- recorded histograms ---


def points_of(shown: dict[str, Metric]) -> dict[str, Any]:
    """The histograms of the pool `orders`; a test that failed may have left pools of its own."""
    return {
        name.rsplit('.', 1)[1]: point
        for name in shown
        if name.endswith('_time')
        for point in shown[name].data.data_points
        if point.attributes[POOL] == 'orders'
    }


async def test_recorded_histograms(front: Front) -> None:
    meters = Meters()
    pool = pool_of(front, meters)
    record_histograms(meters.provider)
    record_histograms(meters.provider)  # once is enough
    for _ in range(3):
        await use(pool, 4)
        await use(pool, endpoint='slow')
        shown = points_of(meters.collect())
        stats = pool.stats()
        for name, histogram in (
            ('create_time', stats.hook_time['create']),
            ('wait_time', stats.wait_time),
            ('use_time', stats.use_time),
        ):
            assert tuple(shown[name].bucket_counts) == histogram.counts
            assert tuple(shown[name].explicit_bounds) == histogram.bounds
            assert shown[name].sum == pytest.approx(histogram.sum, rel=0.01, abs=1e-7)
            assert dict(shown[name].attributes) == {POOL: 'orders'}


async def test_recorded_histograms_of_the_global_provider(front: Front) -> None:
    meters = Meters()
    metrics.set_meter_provider(meters.provider)
    pool = pool_of(front)
    record_histograms()
    await use(pool, 4)
    assert points_of(meters.collect())['use_time'].count == 4


async def test_histograms_are_not_recorded_unless_asked_for(front: Front) -> None:
    meters = Meters()
    await use(pool_of(front, meters))
    assert points_of(meters.collect()) == {}


@pytest.mark.parametrize(
    'counts, total',
    [
        ((1, 0, 0), 0.5),
        ((0, 3, 0), 4.5),
        ((2, 1, 0), 2.5),
        ((5, 0, 0), 0.0),
        ((0, 0, 2), 60.0),
        ((1, 2, 3), 100.0),
        ((1, 0, 1), 2.0),
        ((0, 0, 0), 0.0),
    ],
)
def test_spread_keeps_buckets_and_sum(counts: tuple[int, ...], total: float) -> None:
    found = list(spread((1.0, 2.0), counts, total))
    assert sum(count for _, count in found) == sum(counts)
    for value, count in found:
        bucket = 0 if value <= 1 else 1 if value <= 2 else 2
        assert counts[bucket] == count
    reachable = not counts[-1] or total > sum(counts) * 2
    if reachable:
        assert math.isclose(sum(value * count for value, count in found), total, rel_tol=1e-6, abs_tol=1e-6)


def test_since() -> None:
    assert since(None, (1, 2), 3.0) == ((1, 2), 3.0)
    assert since(((1, 1), 1.0), (1, 2), 3.0) == ((0, 1), 2.0)
    assert since(((5, 5), 9.0), (1, 2), 3.0) == ((1, 2), 3.0)  # a forked child begins anew


# --- beside the Prometheus collector ---


def translations(instrument: Instrument) -> set[str]:
    """What exporters make of an instrument's name: with and without the suffixes of its unit and its type."""
    stem = re.sub('[^a-zA-Z0-9:]+', '_', instrument.name)
    names = {stem, f'{stem}_seconds'} if instrument.unit == 's' else {stem}
    names |= {f'{name}_{instrument.unit.strip("{}")}s' for name in names if instrument.unit.startswith('{')}
    suffixes = ('_bucket', '_sum', '_count', '_total', '_ratio', '_created')
    return names | {name + suffix for name in names for suffix in suffixes}


def test_no_instrument_is_translated_into_a_name_of_the_collector() -> None:
    own = {name for metric in METRICS for name in (metric.name, metric.family, *metric.samples)}
    assert not own & {name for instrument in INSTRUMENTS for name in translations(instrument)}


PROMETHEUS_READER = """
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gcp import top
from gcp.observe.opentelemetry import record_histograms
from gcp.testing import FakeManager
from gcp.threading import ConnectionPool

set_meter_provider(MeterProvider([PrometheusMetricReader()]))
record_histograms()
pool = ConnectionPool(FakeManager(), name='orders')
for _ in range(5):
    with pool.connection('db-1'):
        pass
page = generate_latest(REGISTRY).decode()
types = [line.split()[2] for line in page.splitlines() if line.startswith('# TYPE')]
assert len(types) == len(set(types)), sorted(name for name in types if types.count(name) > 1)
assert 'db_client_connection_count' in types
series = {}
for family in text_string_to_metric_families(openmetrics(REGISTRY).decode()):
    for sample in family.samples:
        series.setdefault(sample.name, []).append(sample)
assert sum(sample.value for sample in series['gcpool_acquires_total']) == 5
assert sum(sample.value for sample in series['gcpool_connection_acquires_total']) == 5
with open('page.txt', 'w') as file:
    file.write(page)
assert top.main(['page.txt'], True, 1.0) == 0
"""


def test_one_registry_with_the_reader_of_opentelemetry(script: Callable[..., Any]) -> None:
    pytest.importorskip('opentelemetry.exporter.prometheus')
    assert 'hit 80.0%   created 20.0%' in script(PROMETHEUS_READER).quietly()
