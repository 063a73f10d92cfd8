"""Guarantee 15 (docs/guarantees.md): Prometheus pages: what each series shows, for pools of both fronts, with and
without faults, open and closed."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fronts import AsyncioFront, Front
from pages import Page, check, check_histograms, check_no_step_back, registry, scrape
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

import gcp
import gcp.asyncio
import gcp.threading
from gcp.exceptions import AcquireTimeoutError, EndpointUnavailableError
from gcp.limits import Retry
from gcp.testing import AsyncFakeManager, BareFakeManager, FakeManager, calling, dead, error, never, ok, slow
from gcp.threading import ConnectionPool


class Refused(Exception):
    """A server's."""


# --- values ---


async def test_each_series_counts_what_it_says(front: Front) -> None:
    own = registry()
    manager = front.manager()
    pool = front.pool(manager, name='orders', registry=own, min_idle=1, max_size=2, total_max_size=3)

    async with pool.connection('a'):  # created, released to idle
        pass
    held = await pool.acquire('a')  # a hit
    await pool.acquire('a')  # created
    page = scrape(own)
    assert page.by('state', 'gcpool_connections', pool_endpoint='a') == {'used': 2}
    assert page.value('gcpool_oldest_checkout_seconds') > 0

    (waiter,) = await front.line_up(pool, 'a', 1)
    page = scrape(own)
    assert page.by('pool_endpoint', 'gcpool_waiters') == {'a': 1}
    assert page.value('gcpool_oldest_waiter_seconds') > 0
    await pool.release(held, 'a')  # handed over
    await pool.release(await waiter, 'a')
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('a', timeout=0.01)
        await pool.acquire('a', timeout=0.01)

    manager.create.does(error(Refused()), ok())
    with pytest.raises(Refused):
        await pool.acquire('b')
    manager.check_aliveness.does(dead(), ok())
    page = scrape(own)
    assert page.by('result', 'gcpool_acquires_total', pool_endpoint='a') == {
        'hit': 2,
        'created': 2,
        'waited': 1,
        'timeout': 1,
    }
    assert page.by('result', 'gcpool_acquires_total', pool_endpoint='_other') == {'error': 1}  # `b` has come and gone
    assert page.by('outcome', 'gcpool_releases_total') == {'idle': 2, 'handoff': 1}
    assert page.by('outcome', 'gcpool_hook_calls_total', hook='create') == {'ok': 2, 'error': 1}
    assert page.value('gcpool_acquire_wait_seconds_bucket', le='0.0001') >= 2
    assert page.value('gcpool_acquire_wait_seconds_count') == 7
    check(page)


async def test_closed_connections_and_their_reasons(front: Front) -> None:
    own = registry()
    manager = front.manager()
    pool = front.pool(manager, name='orders', registry=own, min_idle=0, max_size=1, total_max_size=2)
    for endpoint in 'abc':  # the third evicts the first
        async with pool.connection(endpoint):
            pass
    manager.check_aliveness.does(dead(), ok())
    async with pool.connection('c'):
        pass
    manager.on_release.does(error(Refused()))
    with pytest.raises(Refused):
        async with pool.connection('b'):
            pass
    before = scrape(own)
    assert before.by('reason', 'gcpool_connections_closed_total') == {'evicted': 1, 'dead': 1, 'error': 1}
    assert before.by('outcome', 'gcpool_hook_calls_total', hook='check_aliveness') == {'ok': 1, 'dead': 1}
    assert before.by('outcome', 'gcpool_hook_calls_total', hook='on_release') == {'ok': 4, 'error': 1}
    assert before.by('outcome', 'gcpool_hook_calls_total', hook='on_connection_dead') == {'ok': 1}
    check(before)
    await pool.close()
    page = scrape(own)
    assert page.by('reason', 'gcpool_connections_closed_total') == {
        'evicted': 1,
        'dead': 1,
        'error': 1,
        'pool_closed': 1,
    }
    assert page.value('gcpool_connection_age_seconds_count') == 4
    assert not page.by('state', 'gcpool_connections')
    assert page.value('gcpool_endpoints') == 0
    assert not list(page.find('gcpool_max_connections'))  # closed pools have no limits
    assert not list(page.find('gcpool_info'))
    check(page)
    check_no_step_back(before, page)


async def test_capacity_follows_the_endpoints_that_a_pool_has(front: Front) -> None:
    own = registry()
    pool: Any = front.pool(front.manager(), name='orders', registry=own, max_size=5, total_max_size=12, min_idle=0)
    assert scrape(own).value('gcpool_capacity') == 0
    held = [await pool.acquire('a') for _ in range(5)]
    (waiter,) = await front.line_up(pool, 'a', 1)
    page = scrape(own)
    # exhausted: all that one endpoint may have is in use, far below the limit of all endpoints
    assert page.sum('gcpool_connections', state='used') == page.value('gcpool_capacity') == 5
    held += [await pool.acquire(f'b{number}') for number in range(3)]
    assert scrape(own).value('gcpool_capacity') == page.value('gcpool_max_connections') == 12
    for conn, endpoint in zip(held, [*'aaaaa', 'b0', 'b1', 'b2'], strict=True):
        await pool.release(conn, endpoint)
    await pool.release(await waiter, 'a')
    await pool.close()
    assert not list(scrape(own).find('gcpool_capacity'))


async def test_capacities_of_pools_of_one_name_are_added_up(front: Front) -> None:
    own = registry()
    for endpoints in ('a', 'ab'):
        pool: Any = front.pool(front.manager(), name='orders', registry=own, max_size=2)
        for endpoint in endpoints:
            async with pool.connection(endpoint):
                pass
    assert scrape(own).value('gcpool_capacity') == 6


async def test_steps_that_take_long_or_time_out(front: Front) -> None:
    own = registry()
    manager = front.manager()
    pool = front.pool(manager, name='orders', registry=own)
    manager.create.does(slow(0.02))
    async with pool.connection('a'):
        pass
    manager.on_release.does(error(TimeoutError()))
    with pytest.raises(TimeoutError):
        async with pool.connection('a'):
            pass
    page = scrape(own)
    assert page.by('outcome', 'gcpool_hook_calls_total', hook='on_release') == {'ok': 1, 'timeout': 1}
    assert page.value('gcpool_hook_seconds_bucket', hook='create', result='ok', le='0.01') == 0
    assert page.value('gcpool_hook_seconds_bucket', hook='create', result='ok', le='+Inf') == 1
    assert page.value('gcpool_hook_seconds_sum', hook='create', result='ok') >= 0.02
    assert page.value('gcpool_hook_seconds_count', hook='on_release', result='failed') == 1
    check(page)


async def test_leaks(front: Front) -> None:
    own = registry()
    pool = front.pool(front.manager(bare=True), name='orders', registry=own, leak_threshold=0.01)
    held = await pool.acquire('a')
    await front.until(lambda: scrape(own).sum('gcpool_leaks_detected_total', pool_endpoint='a') == 1)
    await pool.release(held, 'a')
    assert scrape(own).sum('gcpool_leaks_detected_total', pool='orders') == 1


async def test_limits_and_what_the_pool_is(front: Front) -> None:
    own = registry()
    front.pool(front.manager(), name='orders', registry=own, min_idle=2, max_size=5, total_max_size=7)
    page = scrape(own)
    assert page.value('gcpool_max_connections', pool='orders') == 7
    assert page.value('gcpool_max_connections_per_endpoint', pool='orders') == 5
    assert page.value('gcpool_min_idle_connections', pool='orders') == 2
    frontend = 'asyncio' if front.name == 'asyncio' else 'threading'
    assert page.value('gcpool_info', pool='orders', version=gcp.__version__, frontend=frontend) == 1
    assert 0 < page.value('gcpool_collect_seconds') < 5


# --- steering ---


async def test_suspended_endpoints_and_expired_connections_that_are_left(front: Front) -> None:
    own = registry()
    pool = front.pool(front.manager(), name='orders', registry=own)
    assert scrape(own).value('gcpool_suspended', pool_endpoint='_other') == 0
    held = await front.fill(pool, 'a', 2)
    async with pool.connection('b'):
        pass
    pool.expire('a')
    await pool.suspend('b')
    page = scrape(own)
    assert page.by('pool_endpoint', 'gcpool_suspended') == {'b': 1}
    assert page.by('pool_endpoint', 'gcpool_stale_connections') == {'a': 2}
    await pool.suspend()
    assert scrape(own).by('pool_endpoint', 'gcpool_suspended') == {'a': 1, 'b': 1}
    pool.resume()
    await front.give_back(pool, held)
    await pool.wait_expired(30)
    page = scrape(own)
    assert page.by('pool_endpoint', 'gcpool_suspended') == page.by('pool_endpoint', 'gcpool_stale_connections') == {}


# --- connecting ---


async def test_failed_connects_and_what_follows_from_them(front: Front) -> None:
    own = registry()
    manager = front.manager()
    soon_then_late = Retry(1e-6, 60, factor=1e9)
    pool = front.pool(manager, name='orders', registry=own, breaker_threshold=2, connect_retry=soon_then_late)
    page = scrape(own)
    for name in ('gcpool_breaker_open', 'gcpool_retry_delay_seconds', 'gcpool_missing_connections'):
        assert page.value(name, pool_endpoint='_other') == 0
    manager.create.does(error(Refused()), endpoint='a')
    with pytest.raises(Refused):
        await pool.acquire('a', timeout=0)  # without another try
    assert scrape(own).by('pool_endpoint', 'gcpool_breaker_open') == {}
    with pytest.raises(Refused):
        await pool.acquire('a', timeout=0)
    for _ in range(3):
        with pytest.raises(EndpointUnavailableError):
            await pool.acquire('a')
    async with pool.connection('b'):
        page = scrape(own)
    assert page.by('class', 'gcpool_connect_failures_total', pool_endpoint='a') == {'transient': 2}
    assert page.by('pool_endpoint', 'gcpool_breaker_open') == {'a': 1}
    assert page.by('result', 'gcpool_acquires_total', pool_endpoint='a') == {'error': 2, 'rejected': 3}
    assert 0 < page.value('gcpool_retry_delay_seconds', pool_endpoint='a') <= 60
    assert page.value('gcpool_retry_delay_seconds', pool_endpoint='b') == 0
    check(page)


async def test_a_permanent_error_and_a_breaker_that_closes(front: Front) -> None:
    own = registry()
    manager = front.manager()
    manager.classify = lambda endpoint, error: gcp.ErrorClass.PERMANENT
    pool = front.pool(manager, name='orders', registry=own)
    gate: Any = never(ok())
    manager.create.does(error(Refused()), gate)
    with pytest.raises(Refused):
        await pool.acquire('a')
    assert scrape(own).by('class', 'gcpool_connect_failures_total') == {'permanent': 1}
    assert scrape(own).sum('gcpool_breaker_open') == 1
    await front.until(lambda: scrape(own).sum('gcpool_retry_delay_seconds') == 0)
    probe = front.spawn(pool.acquire('a'))
    await front.until(lambda: manager.create.running)
    assert scrape(own).sum('gcpool_breaker_open') == 1  # half open
    assert pool.stats().endpoints['a'].breaker == 'half_open'
    manager.unblock()
    await pool.release(await probe, 'a')
    page = scrape(own)
    assert page.sum('gcpool_breaker_open') == 0
    assert page.by('class', 'gcpool_connect_failures_total') == {'permanent': 1}
    check(page)


async def test_acquires_that_wait_to_connect(front: Front) -> None:
    own = registry()
    manager = front.manager()
    pool = front.pool(manager, name='orders', registry=own, max_size=3, max_connecting=1)
    manager.create.does(never(ok()))
    first = front.spawn(pool.acquire('a'))
    await front.until(lambda: manager.create.running)
    waiters = await front.line_up(pool, 'a', 3)
    page = scrape(own)
    assert page.by('pool_endpoint', 'gcpool_connect_waiters') == {'a': 3}
    assert pool.stats().endpoints['a'].connect_queue == 3
    manager.unblock()
    manager.create.does(ok())
    held = [await first, await waiters[0], await waiters[1]]
    await front.waiting(pool, 1)
    page = scrape(own)  # the last one waits for a release
    assert (page.sum('gcpool_waiters'), page.sum('gcpool_connect_waiters')) == (1, 0)
    for conn in held:
        await pool.release(conn, 'a')
    await pool.release(await waiters[2], 'a')


async def test_acquires_that_wait_for_a_retry(front: Front) -> None:
    own = registry()
    manager = front.manager()
    retry = gcp.Retry(initial=30.0, maximum=60.0)
    pool = front.pool(manager, name='orders', registry=own, connect_retry=retry, endpoint_labels=1)
    manager.create.does(error(Refused()))
    first, second, third = (front.spawn(pool.acquire(endpoint, timeout=3)) for endpoint in 'abc')
    await front.until(lambda: scrape(own).sum('gcpool_connect_waiters') == 3)
    page = scrape(own)
    assert sorted(page.by('pool_endpoint', 'gcpool_connect_waiters').values()) == [1, 2]  # one has a label
    assert max(page.by('pool_endpoint', 'gcpool_retry_delay_seconds').values()) <= 30  # of `_other` the longest
    assert page.sum('gcpool_breaker_open') == 0
    for actor in (first, second, third):
        with pytest.raises(AcquireTimeoutError):
            await actor
    check(scrape(own))


async def test_endpoints_with_limits_of_their_own(front: Front) -> None:
    own = registry()

    def limits(endpoint: str) -> Any:
        if endpoint == 'odd':
            raise LookupError(endpoint)
        return {'a': gcp.EndpointLimits(max_size=2), 'b': gcp.EndpointLimits(max_size=7)}.get(endpoint)

    pool = front.pool(
        front.manager(), name='orders', registry=own, limits=limits, max_size=4, total_max_size=100, endpoint_labels=2
    )
    assert scrape(own).by('pool_endpoint', 'gcpool_endpoint_max_connections') == {}
    for endpoint in 'ab':
        async with pool.connection(endpoint):
            pass
    page = scrape(own)
    assert page.by('pool_endpoint', 'gcpool_endpoint_max_connections') == {'a': 2, 'b': 7}
    assert (page.value('gcpool_capacity'), page.value('gcpool_limits_errors_total')) == (9, 0)
    for endpoint in ('c', 'odd'):
        async with pool.connection(endpoint):
            pass
    page = scrape(own)
    assert page.by('pool_endpoint', 'gcpool_endpoint_max_connections') == {'a': 2, 'b': 7, '_other': 8}
    assert (page.value('gcpool_capacity'), page.value('gcpool_limits_errors_total')) == (17, 1)
    assert page.value('gcpool_max_connections_per_endpoint') == 4
    check(page)


async def test_a_label_of_several_endpoints_counts_their_breakers(front: Front) -> None:
    own = registry()
    manager = front.manager()
    pool = front.pool(
        manager, name='orders', registry=own, breaker_threshold=1, endpoint_label=lambda endpoint: endpoint[0]
    )
    manager.create.does(error(Refused()))
    for endpoint in ('a1', 'a2', 'b1'):
        with pytest.raises(Refused):
            await pool.acquire(endpoint)
    assert scrape(own).by('pool_endpoint', 'gcpool_breaker_open') == {'a': 2, 'b': 1}


async def test_no_count_of_a_failing_endpoint_is_shown_in_another_column(front: Front) -> None:
    """A row has a place for each result, outcome, reason and class, however many there are."""
    own = registry()
    manager = front.manager()
    pool = front.pool(
        manager,
        name='orders',
        registry=own,
        breaker_threshold=1,
        connect_retry=Retry(60, 60),
        idle_timeout=1e-6,
        min_idle=0,
    )
    async with pool.connection('a'):
        pass
    await pool.discard(await pool.acquire('a'), 'a')
    manager.create.does(error(Refused()))
    for kind in (Refused, EndpointUnavailableError):
        with pytest.raises(kind):
            await pool.acquire('a', timeout=0)
    stats = pool.stats()
    page = scrape(own)
    for metric, label, counts in (
        ('gcpool_acquires_total', 'result', stats.acquires),
        ('gcpool_releases_total', 'outcome', stats.releases),
        ('gcpool_connections_closed_total', 'reason', stats.closed),
        ('gcpool_connect_failures_total', 'class', stats.connect_failures),
    ):
        assert page.by(label, metric) == {key: count for key, count in counts.items() if count}, metric
    assert page.sum('gcpool_leaks_detected_total') == stats.leaks == 0
    assert stats.acquires['rejected'] == stats.connect_failures['transient'] == 1


async def test_connections_that_a_kept_endpoint_lacks(front: Front) -> None:
    own = registry()
    manager = front.manager()
    pool: Any = front.pool(manager, name='orders', registry=own, min_idle=3, max_size=5, refill=True)
    async with pool.connection('other'):  # it is not kept
        pass
    assert scrape(own).by('pool_endpoint', 'gcpool_missing_connections') == {}
    await pool.warm_up('a')
    assert scrape(own).by('pool_endpoint', 'gcpool_missing_connections') == {}
    manager.create.does(error(Refused()))
    for _ in range(2):
        await pool.discard(await pool.acquire('a'), 'a')
    await front.until(lambda: pool.stats().connect_failures['transient'])
    page = scrape(own)
    assert page.by('pool_endpoint', 'gcpool_missing_connections') == {'a': 2}
    assert pool.stats().endpoints['a'].missing == 2
    manager.create.does(ok())
    await front.until(lambda: not scrape(own).sum('gcpool_missing_connections'))
    assert page.by('reason', 'gcpool_connections_closed_total') == {'discarded': 2}
    await pool.retire('a')
    page = scrape(own)
    assert page.by('pool_endpoint', 'gcpool_missing_connections') == {}
    assert page.by('reason', 'gcpool_connections_closed_total')['retired'] == 3
    check(page)


async def test_without_refill_nothing_is_missing_once_the_warm_up_has_ended(front: Front) -> None:
    own = registry()
    manager = front.manager()
    manager.create.does(never())
    pool: Any = front.pool(manager, name='orders', registry=own, min_idle=3, max_size=5)
    warming = front.spawn(pool.warm_up('a'))
    await front.until(lambda: manager.create.running == 3)
    assert scrape(own).by('pool_endpoint', 'gcpool_missing_connections') == {'a': 3}
    manager.create.does(ok())
    manager.create.unblock()
    await warming
    await pool.discard(await pool.acquire('a'), 'a')
    assert pool.get_size() == 2
    assert scrape(own).by('pool_endpoint', 'gcpool_missing_connections') == {}  # the pool does not open another one


async def test_acquires_that_wait_for_a_connect_worker(front: Front) -> None:
    own = registry()
    manager = front.manager()
    pool = front.pool(manager, name='orders', registry=own, max_size=5, connect_workers=1)
    manager.create.does(never(ok()))
    waiters = await front.line_up(pool, 'a', 3)
    await front.until(lambda: manager.create.running)
    page = scrape(own)
    assert page.by('state', 'gcpool_connections') == {'creating': 1}
    assert page.by('pool_endpoint', 'gcpool_connect_waiters') == {'a': 3}
    manager.unblock()
    manager.create.does(ok())
    for waiter in waiters:
        await pool.release(await waiter, 'a')
    await front.until(lambda: not pool.stats().creating)
    assert scrape(own).sum('gcpool_connect_waiters') == 0
    check(scrape(own))


async def test_checks_in_the_background(front: Front) -> None:
    own = registry()
    manager = front.manager()
    pool: Any = front.pool(
        manager, name='orders', registry=own, keepalive_interval=0.02, idle_timeout=60, min_idle=1, refill=True
    )
    manager.keepalive.does(never(ok()))
    await pool.warm_up('a')
    await front.until(lambda: manager.keepalive.running)
    page = scrape(own)
    assert page.by('state', 'gcpool_connections') == {'idle': 1}  # the one that is checked
    assert page.value('gcpool_oldest_checkout_seconds') == 0
    manager.keepalive.does(dead(), ok())
    manager.unblock()
    await front.until(lambda: scrape(own).by('reason', 'gcpool_connections_closed_total') == {'dead': 1})
    await front.until(lambda: not scrape(own).sum('gcpool_missing_connections'))
    await pool.close()
    page = scrape(own)
    calls = page.by('outcome', 'gcpool_hook_calls_total', hook='keepalive')
    assert calls['dead'] == 1 and calls['ok'] >= 1
    assert page.labels('outcome', hook='keepalive') == {'ok', 'error', 'timeout', 'cancelled', 'dead'}
    check(page)


# --- pools that come and go ---


def use(pool: Any, endpoint: str = 'db', times: int = 1) -> None:
    for _ in range(times):
        with pool.connection(endpoint):
            pass


def test_two_pools_and_two_registries() -> None:
    one, other = registry(), registry()
    orders = ConnectionPool[str, Any](FakeManager(), name='orders', registry=one)
    users = ConnectionPool[str, Any](FakeManager(), name='users', registry=one)
    audit = ConnectionPool[str, Any](FakeManager(), name='audit', registry=other)
    hidden = ConnectionPool[str, Any](FakeManager(), name='hidden', registry=None)
    for times, pool in enumerate((orders, users, audit, hidden), start=1):
        use(pool, times=times)
    assert scrape(one).by('pool', 'gcpool_acquires_total') == {'orders': 1, 'users': 2}
    assert scrape(other).by('pool', 'gcpool_acquires_total') == {'audit': 3}
    check(scrape(one))


def test_pools_of_one_name_are_summed() -> None:
    own = registry()
    pools = [ConnectionPool[str, Any](FakeManager(), name='orders', registry=own) for _ in range(2)]
    use(pools[0], 'a')
    use(pools[1], 'a', times=2)
    use(pools[1], 'b')
    page = scrape(own)
    assert page.by('pool_endpoint', 'gcpool_acquires_total') == {'a': 3, 'b': 1}
    assert page.by('pool_endpoint', 'gcpool_connections') == {'a': 2, 'b': 1}
    assert page.value('gcpool_max_connections') == 200
    check(page)
    pools[0].close()
    assert scrape(own).value('gcpool_max_connections') == 100


def test_the_default_registry_shows_an_unnamed_pool(script: Callable[..., Any]) -> None:
    out = script("""
        import sys
        import gcp.asyncio, gcp.threading
        assert not {'prometheus_client', 'opentelemetry'} & set(sys.modules)
        from gcp.testing import FakeManager
        pool = gcp.threading.ConnectionPool(FakeManager())
        with pool.connection('db'):
            pass
        from prometheus_client import generate_latest
        print(generate_latest().decode())
    """).quietly()
    assert Page(out).value('gcpool_acquires_total', pool='FakeManager-1', pool_endpoint='db', result='created') == 1


def test_a_pool_that_was_dropped_leaves_its_totals() -> None:
    own = registry()
    pool = ConnectionPool[str, Any](FakeManager(), name='orders', registry=own)
    use(pool, times=3)
    held = pool.acquire('db')
    before, gone = scrape(own), weakref.ref(pool)
    use(pool, 'other')  # after the last look
    del pool, held
    gc.collect()
    assert gone() is None
    for _ in range(2):
        page = scrape(own)
        check_no_step_back(before, page)
        assert page.sum('gcpool_acquires_total', pool='orders') == 5
        assert not page.by('state', 'gcpool_connections')
        assert not list(page.find('gcpool_max_connections'))
    use(again := ConnectionPool[str, Any](FakeManager(), name='orders', registry=own))
    page, before = scrape(own), page
    check_no_step_back(before, page)
    assert page.by('pool_endpoint', 'gcpool_acquires_total', pool='orders') == {'db': 5, '_other': 1}
    assert page.value('gcpool_max_connections') == 100
    again.close()


def test_a_pool_that_was_dropped_while_a_lease_is_held() -> None:
    own = registry()
    pool = ConnectionPool[str, Any](FakeManager(), name='orders', registry=own)
    use(pool)
    lease = pool.connection('db')
    lease.__enter__()
    before = scrape(own)
    del pool
    gc.collect()
    page = scrape(own)
    check_no_step_back(before, page)
    assert page.by('state', 'gcpool_connections') == {'used': 1}
    check(page)
    lease.__exit__(None, None, None)
    del lease
    gc.collect()
    check_no_step_back(page, scrape(own))
    assert scrape(own).sum('gcpool_acquires_total') == 2
    check(scrape(own))


def test_a_pool_is_not_kept_alive_by_its_label_function() -> None:
    class Owner:
        def __init__(self) -> None:
            self.pool = ConnectionPool[str, Any](BareFakeManager(), registry=registry(), endpoint_label=self.label)

        def label(self, endpoint: str) -> str:
            return endpoint

    owner = Owner()
    use(owner.pool)
    gone = weakref.ref(owner.pool)
    del owner
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize('looks', [False, True])
def test_many_short_lived_pools_leave_little_behind(looks: bool) -> None:
    own = registry()
    sizes = []
    for _ in range(8):
        for _ in range(100):
            use(ConnectionPool[str, Any](BareFakeManager(), registry=own))
            if looks:
                list(own.collect())
        gc.collect()
        sizes.append(len(gc.get_objects()))
    page = scrape(own)
    assert page.sum('gcpool_acquires_total') == 800
    assert len(page.labels('pool')) <= 13
    assert sizes[-1] < sizes[3] + 2000
    check(page)


def test_a_named_pool_is_remembered_longer_than_unnamed_ones() -> None:
    own = registry()
    use(ConnectionPool[str, Any](BareFakeManager(), name='orders', registry=own))
    for _ in range(50):
        use(ConnectionPool[str, Any](BareFakeManager(), registry=own))
    gc.collect()
    assert scrape(own).sum('gcpool_acquires_total', pool='orders') == 1


# --- what must not break a pool ---


class BrokenRegistry:
    def register(self, collector: object) -> None:
        raise RuntimeError('no room')


def test_a_registry_that_is_broken(caplog: pytest.LogCaptureFixture) -> None:
    own = BrokenRegistry()
    pools = [ConnectionPool[str, Any](FakeManager(), name='orders', registry=own) for _ in range(3)]
    for pool in pools:
        use(pool)
        assert pool._telemetry.telemetry.errors.count == 1
    assert [record.getMessage() for record in caplog.records if record.name == 'gcp.observe'] == [
        "orders: registry failed: RuntimeError('no room'); further errors are only counted"
    ]


def unregister_ours(registry: Any) -> None:
    for collector in list(registry._collector_to_names):
        if type(collector).__module__ == 'gcp.observe.prometheus':
            registry.unregister(collector)


def unregister_all(registry: Any) -> None:
    for collector in list(registry._collector_to_names):
        registry.unregister(collector)


def empty(registry: Any) -> None:
    registry._collector_to_names.clear()
    registry._names_to_collectors.clear()


@pytest.mark.parametrize('lose', [unregister_ours, unregister_all, empty])
@pytest.mark.parametrize('others', [0, 1])
def test_a_registry_that_has_lost_the_collector(
    lose: Callable[[Any], None], others: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The next pool registers it again, with the figures of all pools."""
    own = registry()
    for number in range(others):
        Counter(f'theirs_{number}', 'Theirs.', registry=own)
    first = ConnectionPool(FakeManager(), name='first', registry=own)
    with first.connection('db'):
        pass
    lose(own)
    assert not list(scrape(own).find('gcpool_max_connections'))
    second = ConnectionPool(FakeManager(), name='second', registry=own)
    page = scrape(own)
    assert page.labels('pool') == {'first', 'second'}
    assert page.by('pool', 'gcpool_acquires_total') == {'first': 1}
    ConnectionPool(FakeManager(), name='third', registry=own)
    assert scrape(own).labels('pool') == {'first', 'second', 'third'}
    assert not caplog.records and second.stats().size == 0


class Wrapped:
    """A registry of another make: it has the methods of the client's, and nothing else."""

    def __init__(self) -> None:
        self.own = registry()

    def register(self, collector: Any) -> None:
        self.own.register(collector)

    def unregister(self, collector: Any) -> None:
        self.own.unregister(collector)

    def collect(self) -> Any:
        return self.own.collect()


def test_a_registry_of_another_make_that_has_lost_the_collector() -> None:
    wrapped: Any = Wrapped()
    pools = [ConnectionPool(FakeManager(), name=f'{number}', registry=wrapped) for number in range(2)]
    assert scrape(wrapped).labels('pool') == {'0', '1'}
    unregister_all(wrapped.own)
    pools.append(ConnectionPool(FakeManager(), name='2', registry=wrapped))
    assert scrape(wrapped).labels('pool') == {'0', '1', '2'}


def test_a_default_registry_that_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    own = registry()
    monkeypatch.setattr('prometheus_client.REGISTRY', own)
    pool = ConnectionPool(FakeManager(), name='orders')
    assert scrape(own).labels('pool') == {'orders'} and pool.name == 'orders'


def test_a_registry_that_has_our_names(caplog: pytest.LogCaptureFixture) -> None:
    own = CollectorRegistry()
    theirs = Gauge('gcpool_waiters', 'Theirs.', registry=own)
    Counter('gcpool_acquires', 'Theirs, too.', registry=own)
    theirs.set(7)
    pools = [ConnectionPool[str, Any](FakeManager(), name=name, registry=own) for name in ('orders', 'users')]
    for pool in pools:
        use(pool)
    page = scrape(own)
    assert page.value('gcpool_waiters') == 7
    assert page.value('gcpool_telemetry_errors_total', pool='orders') == 1
    assert page.by('pool', 'gcpool_releases_total') == {'orders': 1, 'users': 1}
    assert len([record for record in caplog.records if record.name == 'gcp.observe']) == 1


def test_a_registry_that_has_all_our_names(caplog: pytest.LogCaptureFixture) -> None:
    own = registry()
    first = ConnectionPool[str, Any](FakeManager(), name='first', registry=own)

    class Same:
        """Takes what its other face has taken; not known as the same registry."""

        register, unregister = own.register, own.unregister

    pools = [ConnectionPool[str, Any](FakeManager(), name='second', registry=same) for same in [Same()] * 2]
    for pool in [first, *pools]:
        use(pool)
    assert scrape(own).by('pool', 'gcpool_acquires_total') == {'first': 1}
    assert len([record for record in caplog.records if record.name == 'gcp.observe']) == 1


def test_a_log_handler_that_raises() -> None:
    class Handler(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise OSError

    logger, handler = logging.getLogger('gcp.observe'), Handler()
    logger.addHandler(handler)
    try:
        use(pool := ConnectionPool[str, Any](FakeManager(), registry=BrokenRegistry()))
    finally:
        logger.removeHandler(handler)
    assert pool._telemetry.telemetry.errors.count == 1


def test_a_reading_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    own = registry()
    pools = [ConnectionPool[str, Any](FakeManager(), name=name, registry=own) for name in ('orders', 'users')]
    for pool in pools:
        use(pool)
    from gcp.observe import aggregation

    look = aggregation.NamedPools.read

    def read(self: Any, labelled: bool) -> Any:
        if self.name == 'orders':
            raise ZeroDivisionError
        return look(self, labelled)

    with monkeypatch.context() as patch:
        patch.setattr(aggregation.NamedPools, 'read', read)
        assert scrape(own).by('pool', 'gcpool_acquires_total') == {'users': 1}
    page = scrape(own)
    assert page.by('pool', 'gcpool_acquires_total') == {'orders': 1, 'users': 1}
    assert page.value('gcpool_telemetry_errors_total', pool='orders') == 1


def test_a_name_that_cannot_be_encoded() -> None:
    own = registry()
    use(ConnectionPool[str, Any](FakeManager(), name='or\udcffders', registry=own))
    assert scrape(own).sum('gcpool_acquires_total', pool='or?ders') == 1


# --- exemplars ---


def test_exemplars_are_shown_to_those_who_can_read_them() -> None:
    own = registry()
    pool = ConnectionPool[str, Any](FakeManager(), name='orders', registry=own)
    use(pool)
    exemplars = pool._telemetry.telemetry.exemplars
    exemplars['wait', None, 3] = {'trace_id': 'a' * 32, 'span_id': 'b' * 16}, 0.0007, 1700000000.0
    exemplars['hook', 'create', 0] = {'trace_id': 'c' * 32, 'span_id': 'd' * 16}, 0.00001, 1700000000.0
    text = generate_openmetrics(own).decode()
    found = {
        (sample.name, sample.labels['le'], sample.labels.get('hook')): sample.exemplar
        for family in parse_openmetrics(text)
        for sample in family.samples
        if sample.exemplar
    }
    assert set(found) == {
        ('gcpool_acquire_wait_seconds_bucket', '0.001', None),
        ('gcpool_hook_seconds_bucket', '0.0001', 'create'),
    }
    assert found['gcpool_acquire_wait_seconds_bucket', '0.001', None].labels['trace_id'] == 'a' * 32
    assert 'trace_id' not in scrape(own).text
    pool.close()


# --- at any time ---


def test_an_asyncio_pool_is_scraped_from_another_thread_while_it_works() -> None:
    own = registry()
    manager = AsyncFakeManager()
    pages: list[Page] = []

    async def main() -> None:
        pool = gcp.asyncio.ConnectionPool[str, Any](
            manager, name='orders', registry=own, min_idle=0, max_size=2, total_max_size=4
        )
        stop = asyncio.Event()

        async def work(chance: random.Random) -> None:
            while not stop.is_set():
                try:
                    async with pool.connection(chance.choice('abcdef'), timeout=0.01):
                        await asyncio.sleep(0)
                except AcquireTimeoutError:
                    pass

        tasks = [asyncio.ensure_future(work(random.Random(seed))) for seed in range(8)]
        pages.extend([await asyncio.to_thread(scrape, own) for _ in range(20)])
        stop.set()
        await asyncio.gather(*tasks)
        await pool.close()

    asyncio.run(main())
    pages.append(scrape(own))
    for before, after in itertools.pairwise(pages):
        check_no_step_back(before, after)
        check_histograms(after)
    check(pages[-1])


@pytest.fixture
def busy() -> Iterator[None]:
    """Switch threads as often as can be, without a word in the log."""
    import sys

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    logging.getLogger('gcp').setLevel(logging.CRITICAL)
    yield
    logging.getLogger('gcp').setLevel(logging.NOTSET)
    sys.setswitchinterval(interval)


def trouble(chance: random.Random, *, async_: bool) -> Any:
    def act(endpoint: Any, connection: Any) -> Any:
        fate = chance.random()
        if fate < 0.03:
            raise Refused
        return (asyncio.sleep if async_ else time.sleep)(0.0005) if fate < 0.1 else None

    return calling(act)


def troubled(manager: Any, *, async_: bool) -> Any:
    chance = random.Random(4)
    for hook in ('create', 'dispose', 'on_acquire', 'on_release', 'on_connection_dead'):
        getattr(manager, hook).does(trouble(chance, async_=async_))
    manager.check_aliveness.does(calling(lambda endpoint, connection: chance.random() > 0.05))
    return manager


CAPS: dict[str, Any] = {
    'name': 'orders',
    'min_idle': 1,
    'max_size': 2,
    'total_max_size': 5,
    'idle_timeout': 0.005,
    'max_lifetime': 0.1,
    'endpoint_labels': 4,
    'leak_threshold': 0.002,
}


def compare(page: Page, pool: Any) -> None:
    """See that the page shows what the pool knows, to the last count."""
    stats = pool.stats()
    for metric, label, counts in (
        ('gcpool_acquires_total', 'result', stats.acquires),
        ('gcpool_releases_total', 'outcome', stats.releases),
        ('gcpool_connections_closed_total', 'reason', stats.closed),
    ):
        assert page.by(label, metric, pool='orders') == {key: count for key, count in counts.items() if count}
    assert page.sum('gcpool_leaks_detected_total', pool='orders') == stats.leaks
    assert page.value('gcpool_use_seconds_sum') == stats.use_time.sum
    assert page.value('gcpool_acquire_wait_seconds_sum') == stats.wait_time.sum
    assert sum(stats.acquires.values()) > 100


def watched(own: Any, stop: threading.Event, pages: list[Page]) -> threading.Thread:
    """Scrape in another thread until told to stop."""

    def watch() -> None:
        while not stop.is_set():
            pages.append(scrape(own))

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_books_balance_after_threads_in_trouble(busy: None) -> None:
    own, stop = registry(), threading.Event()
    pages: list[Page] = []
    pool = ConnectionPool[str, Any](troubled(FakeManager(), async_=False), registry=own, **CAPS)
    end = time.monotonic() + 1

    def work(chance: random.Random) -> None:
        while time.monotonic() < end:
            try:
                with pool.connection(chance.choice('abcdefgh'), timeout=chance.choice([None, 0.001, 0])):
                    if chance.random() < 0.05:
                        raise Refused
            except (Refused, AcquireTimeoutError):
                pass

    watcher = watched(own, stop, pages)
    threads = [threading.Thread(target=work, args=(random.Random(seed),)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    watcher.join()
    verify(own, pool, pages)
    pool.close()
    check(scrape(own))


def verify(own: Any, pool: Any, pages: list[Page]) -> None:
    pages.append(scrape(own))
    check(pages[-1])
    compare(pages[-1], pool)
    for before, after in itertools.pairwise(pages):
        for name, by in (('gcpool_acquires_total', 'result'), ('gcpool_connections_closed_total', 'reason')):
            now = after.by(by, name)
            assert all(now[key] >= count for key, count in before.by(by, name).items())
        assert len(after.labels('pool_endpoint')) <= 5
        assert after.value('gcpool_acquire_wait_seconds_count') == after.sum('gcpool_acquires_total')


def test_books_balance_after_tasks_in_trouble(busy: None) -> None:
    own, stop = registry(), threading.Event()
    pages: list[Page] = []

    async def main() -> None:
        pool = gcp.asyncio.ConnectionPool[str, Any](troubled(AsyncFakeManager(), async_=True), registry=own, **CAPS)
        end = time.monotonic() + 1

        async def act(chance: random.Random) -> None:
            async with pool.connection(chance.choice('abcdefgh'), timeout=chance.choice([None, 0.001, 0])):
                await asyncio.sleep(0)
                if chance.random() < 0.05:
                    raise Refused

        async def work(chance: random.Random) -> None:
            while time.monotonic() < end:
                task = asyncio.ensure_future(act(chance))
                if chance.random() < 0.2:
                    await asyncio.sleep(0)
                    task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        watcher = watched(own, stop, pages)
        await asyncio.gather(*(work(random.Random(seed)) for seed in range(24)))
        stop.set()
        watcher.join()
        while pool.stats().disposing:
            await asyncio.sleep(0.001)
        verify(own, pool, pages)
        await pool.close()
        check(scrape(own))

    asyncio.run(main())


def test_a_forked_child_counts_from_0(script: Callable[..., Any]) -> None:
    assert (
        script(
            """
        import gc, os, sys
        from gcp.testing import FakeManager
        from gcp.threading import ConnectionPool
        from pages import check, registry, scrape

        own = registry()
        pool = ConnectionPool(FakeManager(), name='orders', registry=own)
        gone = ConnectionPool(FakeManager(), name='gone', registry=own)
        for each in pool, gone:
            with each.connection('db'):
                pass
        del gone, each
        gc.collect()
        assert scrape(own).sum('gcpool_acquires_total') == 2
        pid = os.fork()
        if pid == 0:
            page = scrape(own)
            assert page.sum('gcpool_acquires_total') == 0 and page.labels('pool') == {'orders'}, page.text
            with pool.connection('db'):
                pass
            assert scrape(own).sum('gcpool_acquires_total') == 1
            check(scrape(own))
            print('child done')
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert scrape(own).sum('gcpool_acquires_total') == 2
    """,
            '-W',
            'ignore::DeprecationWarning',
        ).quietly()
        == 'child done\n'
    )


# --- costs ---


def test_a_scrape_of_100_endpoints_takes_little() -> None:
    """The bound is 15 ms; here with room for a machine that is busy with other things."""
    own = registry()
    pool = ConnectionPool[str, Any](BareFakeManager(), name='orders', registry=own)
    for number in range(100):
        use(pool, f'db-{number}')
    scrape(own)
    from prometheus_client import generate_latest

    def took() -> float:
        began = time.thread_time()
        generate_latest(own)
        return time.thread_time() - began

    assert min(took() for _ in range(20)) < 0.03
    pool.close()


def test_no_caller_waits_for_a_scrape() -> None:
    """While a label function hangs, pools work, come and go."""
    own, gate, inside = registry(), threading.Event(), threading.Event()

    def hanging(endpoint: str) -> str:
        inside.set()
        assert gate.wait(60)
        return endpoint

    pool = ConnectionPool[str, Any](BareFakeManager(), name='orders', registry=own, endpoint_label=hanging)
    use(pool)
    scraping = threading.Thread(target=scrape, args=(own,))
    scraping.start()
    assert inside.wait(60)
    for _ in range(100):
        use(ConnectionPool[str, Any](BareFakeManager(), registry=own))
    use(pool)
    gate.set()
    scraping.join(60)
    assert scrape(own).sum('gcpool_acquires_total') == 102


async def test_a_cancelled_acquire(asyncio_front: AsyncioFront) -> None:
    own = registry()
    manager = asyncio_front.manager()
    pool = asyncio_front.pool(manager, name='orders', registry=own)
    manager.create.does(never())
    actor = asyncio_front.spawn(pool.acquire('a'))
    await asyncio_front.until(lambda: pool.stats().creating == 1)
    assert scrape(own).by('state', 'gcpool_connections') == {'creating': 1}
    actor.cancel()  # type: ignore[attr-defined]
    with pytest.raises(asyncio.CancelledError):
        await actor
    page = scrape(own)
    assert page.by('result', 'gcpool_acquires_total') == {'cancelled': 1}
    assert page.by('outcome', 'gcpool_hook_calls_total', hook='create') == {'cancelled': 1}
    check(page)
