"""Statistics and the repr: one consistent snapshot, by state, reason, result and outcome."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import pytest
from fronts import Front
from gil import collect

from gcp.exceptions import AcquireTimeoutError
from gcp.stats import EndpointStats, PoolStats
from gcp.testing import BareFakeManager, dead, error, never, ok
from gcp.threading import ConnectionPool


async def test_the_repr_tells_the_counts(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=4, min_idle=4, name='orders')
    held = await front.fill(pool, 'db', 3)
    await front.give_back(pool, held[:1])
    manager.create.does(never(), endpoint='other')
    creator = front.spawn(pool.acquire('other'))
    await front.until(lambda: manager.create.running)
    assert repr(pool) == '<ConnectionPool orders: 1 idle, 2 used, 1 creating, 0 waiting; closed=False>'
    manager.unblock()
    await front.give_back(pool, [*held[1:], await creator])
    await pool.close()
    assert repr(pool) == '<ConnectionPool orders: 0 idle, 0 used, 0 creating, 0 waiting; closed=True>'


async def test_an_unnamed_pool_is_called_after_its_manager(front: Front) -> None:
    first, second = front.pool(front.manager()), front.pool(front.manager())
    stem, number = first.name.rsplit('-', 1)
    assert stem == type(front.managers[0]).__name__
    assert second.name == f'{stem}-{int(number) + 1}'
    assert first.stats().name == first.name


async def test_every_acquire_ends_in_one_result(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=1)
    connection = await pool.acquire('db')
    [waiter] = await front.line_up(pool, 'db', 1)
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('db', timeout=0.01)
    await pool.release(connection, 'db')
    await pool.release(await waiter, 'db')
    await pool.release(await pool.acquire('db'), 'db')
    manager.on_acquire.does(error(OSError()), ok())
    with pytest.raises(OSError):
        await pool.acquire('db')
    stats = pool.stats()
    assert stats.acquires == {
        'hit': 1,
        'created': 1,
        'waited': 1,
        'timeout': 1,
        'cancelled': 0,
        'error': 1,
        'rejected': 0,
    }
    assert stats.releases == {'idle': 2, 'handoff': 1, 'discarded': 0}
    assert stats.closed == {
        'idle_timeout': 0,
        'max_lifetime': 0,
        'dead': 0,
        'discarded': 0,
        'evicted': 0,
        'pool_closed': 0,
        'error': 1,
        'expired': 0,
        'max_uses': 0,
        'retired': 0,
    }


async def test_a_hit_found_dead_is_a_creation(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=1)
    await pool.release(await pool.acquire('db'), 'db')
    manager.check_aliveness.does(dead())
    await pool.release(await pool.acquire('db'), 'db')
    assert (pool.stats().acquires['created'], pool.stats().acquires['hit']) == (2, 0)
    assert (pool.stats().created, pool.stats().closed['dead']) == (2, 1)


async def test_endpoints_add_up(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=3)
    a, b = await front.fill(pool, 'a', 3), await front.fill(pool, 'b', 2)
    waiters = await front.line_up(pool, 'a', 2)
    stats = pool.stats()
    assert isinstance(stats, PoolStats) and isinstance(stats.endpoints['a'], EndpointStats)
    assert (stats.endpoints['a'].used, stats.endpoints['a'].waiting, stats.endpoints['a'].endpoint) == (3, 2, 'a')
    assert (stats.endpoints['b'].used, stats.endpoints['b'].created) == (2, 2)
    assert (stats.used, stats.waiting, stats.size, stats.created) == (5, 2, 5, 5)
    assert not stats.is_closed
    await front.give_back(pool, [*a, *b])
    await front.give_back(pool, [await waiter for waiter in waiters])


async def test_a_snapshot_is_frozen_and_does_not_change(front: Front) -> None:
    pool = front.pool(front.manager())
    before: Any = pool.stats()
    await pool.release(await pool.acquire('db'), 'db')
    assert (before.created, before.acquires['created'], dict(before.endpoints)) == (0, 0, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.idle = 7


async def test_a_snapshot_is_consistent_at_any_time(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=2, total_max_size=3)
    runs = True

    async def work(endpoint: str) -> None:
        while runs:
            async with pool.connection(endpoint):
                await front.sleep(0)

    actors = [front.spawn(work(endpoint)) for endpoint in 'aabb']
    for _ in range(300):
        stats = pool.stats()
        assert stats.size <= 3 and all(each.size <= 2 for each in stats.endpoints.values())
        open_ = stats.created - sum(stats.closed.values())
        assert open_ in (stats.idle + stats.used, stats.idle + stats.used + stats.disposing)
        await front.sleep(0)
    runs = False
    for actor in actors:
        await actor


async def test_the_statistics_of_endpoints_are_those_of_the_snapshot(front: Front) -> None:
    """They are made when they are asked for, from what was counted at the moment of the snapshot."""
    pool = front.pool(front.manager(), max_size=2)
    held = await pool.acquire('a')
    await pool.release(await pool.acquire('b'), 'b')
    stats = pool.stats()
    await pool.release(held, 'a')
    await pool.release(await pool.acquire('c'), 'c')
    await pool.close()
    assert (stats.endpoints['a'].used, stats.endpoints['b'].idle) == (1, 1)
    assert list(stats.endpoints) == ['a', 'b'] and len(stats.endpoints) == 2
    assert 'c' not in stats.endpoints and stats.endpoints.get('c') is None
    with pytest.raises(KeyError, match='c'):
        stats.endpoints['c']
    assert {key: each.endpoint for key, each in stats.endpoints.items()} == {'a': 'a', 'b': 'b'}
    assert sum(each.size for each in stats.endpoints.values()) == stats.size == 2
    assert stats.endpoints == dict(stats.endpoints) == {**stats.endpoints}
    assert stats.endpoints['a'] == stats.endpoints['a'] != stats.endpoints['b']
    assert stats == dataclasses.replace(stats)
    assert repr(stats.endpoints) == repr(dict(stats.endpoints))
    with pytest.raises(TypeError):
        stats.endpoints['a'] = stats.endpoints['b']  # type: ignore[index]


async def test_many_endpoints_add_up_to_the_pool(front: Front) -> None:
    """Of more endpoints than the core copies without releasing the GIL."""
    pool = front.pool(front.manager(bare=True), max_size=2, total_max_size=3000)
    held = [(await pool.acquire(endpoint), endpoint) for endpoint in range(1500)]
    for connection, endpoint in held[::3]:
        await pool.release(connection, endpoint)
    stats = pool.stats()
    assert (stats.idle, stats.used, len(stats.endpoints)) == (500, 1000, 1500)
    for name in ('idle', 'used', 'created'):
        assert sum(getattr(each, name) for each in stats.endpoints.values()) == getattr(stats, name)
    assert stats.acquires['created'] == sum(each.acquires['created'] for each in stats.endpoints.values()) == 1500
    assert stats.releases['idle'] == sum(each.releases['idle'] for each in stats.endpoints.values()) == 500
    assert [each.used for each in stats.endpoints.values()] == [0, 1, 1] * 500
    for connection, endpoint in held:
        if endpoint % 3:
            await pool.release(connection, endpoint)
    await pool.close()


def test_a_snapshot_keeps_no_endpoint_alive_when_it_is_gone() -> None:
    class Endpoint:
        pass

    pool = ConnectionPool[Any, Any](BareFakeManager())
    pool.release(pool.acquire(endpoint := Endpoint()), endpoint)
    stats = pool.stats()
    pool.retire(endpoint)
    pool._manager._log.clear()
    gone = weakref.ref(endpoint)
    del endpoint
    collect()
    assert gone() is not None and list(stats.endpoints) == [gone()]
    del stats
    assert collect(gone) == [None]
    pool.close()
