"""Guarantee 11 (docs/guarantees.md): what `close` does to idle and used connections, waiters, later acquires and the
collector."""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Any

import pytest
from fronts import Front, elapsed
from gil import collect

from gcp.exceptions import ConnectionPoolClosedError
from gcp.testing import error, never, ok, slow

collector = pytest.mark.parametrize('background_collector', [False, True])


@collector
async def test_idle_connections_are_disposed_of(front: Front, background_collector: bool) -> None:
    manager = front.manager()
    pool = front.pool(manager, background_collector=background_collector, min_idle=2)
    for endpoint in 'ab':
        await front.give_back(pool, await front.fill(pool, endpoint, 3))
    async with elapsed():
        await pool.close()
    assert pool.closed and pool.get_size() == 0
    assert sorted(manager.disposed) == manager.created
    assert pool.stats().closed['pool_closed'] == 6


async def test_newcomers_are_refused(front: Front) -> None:
    pool = front.pool(front.manager())
    async with pool.connection('db'):
        pass
    await pool.close()
    for timeout in (None, 0, 5):
        with pytest.raises(ConnectionPoolClosedError):
            await pool.acquire('db', timeout=timeout)
        with pytest.raises(ConnectionPoolClosedError):
            async with pool.connection('new', timeout=timeout):
                pass
    assert 'closed=True' in repr(pool)


@pytest.mark.parametrize('waits_for', ['a', 'b'], ids=['endpoint cap', 'total cap'])
async def test_waiters_are_refused_at_once(front: Front, waits_for: str) -> None:
    pool = front.pool(front.manager(), max_size=1, total_max_size=1)
    connection = await pool.acquire('a')
    waiters = await front.line_up(pool, waits_for, 3)
    closer = front.spawn(pool.close())
    async with elapsed():
        for waiter in waiters:
            with pytest.raises(ConnectionPoolClosedError):
                await waiter
    assert not closer.done()
    await pool.release(connection, 'a')
    await closer


async def test_idle_ones_go_while_used_ones_are_waited_for(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, min_idle=2)
    idle, used = await front.fill(pool, 'db', 2)
    await pool.release(idle, 'db')
    closer = front.spawn(pool.close())
    await front.until(lambda: manager.disposed == [idle])
    assert not closer.done()
    await pool.release(used, 'db')
    await closer
    assert manager.disposed == [idle, used]
    assert manager.story('on_release') == ['on_release db#1', 'on_release db#2']


async def test_used_ones_are_disposed_of_at_the_time_out(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    connection = await pool.acquire('db')
    async with elapsed(least=0.1):
        await pool.close(timeout=0.1)
    assert manager.disposed == [connection]
    assert pool.get_size() == 0
    await pool.release(connection, 'db')
    assert manager.disposed == [connection]


@pytest.mark.parametrize('timeout', [0, -1, 0.0])
async def test_at_once(front: Front, timeout: float) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    connection = await pool.acquire('db')
    async with elapsed():
        await pool.close(timeout=timeout)
    assert manager.disposed == [connection]


async def test_a_lease_that_ends_after_a_forced_close_ends_quietly(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    async with pool.connection('db') as connection:
        await pool.close(timeout=0)
        assert manager.disposed == [connection]
    with pytest.raises(LookupError):
        async with front.pool(manager).connection('db'):
            await front.face(front.pools[-1]).close(timeout=0)
            raise LookupError


async def test_it_is_idempotent(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    async with pool.connection('db'):
        pass
    for timeout in (None, 0, 1, None):
        await pool.close(timeout=timeout)
    assert len(manager.disposed) == 1


async def test_several_may_close_at_a_time(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    connection = await pool.acquire('db')
    closers = [front.spawn(pool.close()) for _ in range(3)]
    await front.until(lambda: pool.closed)
    await pool.release(connection, 'db')
    for closer in closers:
        await closer
    assert manager.disposed == [connection]


async def test_an_impatient_closer_ends_the_wait_of_a_patient_one(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    connection = await pool.acquire('db')
    patient = front.spawn(pool.close())
    await front.until(lambda: pool.closed)
    await pool.close(timeout=0)
    await patient
    assert manager.disposed == [connection]


async def test_a_cancelled_close_can_be_repeated(asyncio_front: Front) -> None:
    front, manager = asyncio_front, asyncio_front.manager()
    pool = front.pool(manager, background_collector=True)
    idle, used = await front.fill(pool, 'db', 2)
    await pool.release(idle, 'db')
    closer: Any = front.spawn(pool.close())
    await front.until(lambda: manager.disposed == [idle])
    closer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closer
    assert pool.closed
    closer = front.spawn(pool.close())
    await asyncio.sleep(0)
    await pool.release(used, 'db')
    await closer
    assert sorted(manager.disposed) == [idle, used]


async def test_a_creation_in_flight_ends_in_a_refusal(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never())
    pool = front.pool(manager)
    creator = front.spawn(pool.acquire('db'))
    await front.until(lambda: manager.create.running)
    closer = front.spawn(pool.close())
    await front.until(lambda: pool.closed)
    manager.create.unblock()
    with pytest.raises(ConnectionPoolClosedError):
        await creator
    await closer
    assert manager.disposed == manager.created


@pytest.mark.parametrize('hook', ['check_aliveness', 'on_acquire'])
async def test_a_hook_in_flight_ends_in_a_refusal_or_a_release(front: Front, hook: str) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    await pool.release(await pool.acquire('db'), 'db')
    getattr(manager, hook).does(never())
    acquire = front.spawn(pool.acquire('db'))
    await front.until(lambda: getattr(manager, hook).running)
    closer = front.spawn(pool.close())
    await front.until(lambda: pool.closed)
    manager.unblock()
    try:
        await pool.release(await acquire, 'db')
    except ConnectionPoolClosedError:
        pass
    await closer
    assert manager.disposed == manager.created


async def test_the_deadline_holds_though_a_disposal_hangs(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, min_idle=3)
    await front.give_back(pool, await front.fill(pool, 'a', 1))
    await front.give_back(pool, await front.fill(pool, 'b', 2))
    manager.dispose.does(never(), endpoint='a')
    async with elapsed():
        await pool.close(timeout=0.2)
    assert sorted(manager.disposed) == manager.created
    manager.unblock()


async def test_a_hanging_disposal_holds_it_no_longer_than_the_dispose_timeout(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, min_idle=3, dispose_timeout=0.05)
    await front.give_back(pool, await front.fill(pool, 'db', 3))
    manager.dispose.does(never())
    async with elapsed():
        await pool.close()
    assert sorted(manager.disposed) == manager.created
    manager.unblock()


async def test_the_deadline_holds_though_a_creation_hangs(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never())
    pool = front.pool(manager)
    creator = front.spawn(pool.acquire('a'))
    await front.until(lambda: manager.create.running)
    async with elapsed():
        await pool.close(timeout=0.1)
    manager.unblock()
    with pytest.raises(ConnectionPoolClosedError):
        await creator
    await front.until(lambda: manager.disposed == manager.created)


async def test_disposals_that_raise_do_not_stop_it(front: Front) -> None:
    manager = front.manager()
    manager.dispose.does(error(OSError('reset')), error(KeyError('odd')), ok())
    pool = front.pool(manager, min_idle=3)
    await front.give_back(pool, await front.fill(pool, 'db', 3))
    await pool.close()
    assert len(manager.disposed) == 3
    assert pool.get_size() == 0


async def test_it_waits_for_disposals(front: Front) -> None:
    manager = front.manager()
    manager.dispose.does(slow(0.05))
    pool = front.pool(manager)
    await front.give_back(pool, await front.fill(pool, 'db', 2))
    await pool.close()
    assert [call.outcome for call in manager.dispose.calls] == ['ok', 'ok']


async def test_a_pool_is_a_context_manager(front: Front) -> None:
    manager = front.manager()
    async with front.pool(manager) as pool:
        async with pool.connection('db'):
            pass
    assert pool.closed and manager.disposed == manager.created
    with pytest.raises(LookupError):
        async with front.pool(manager) as pool:
            raise LookupError
    assert pool.closed


async def test_a_holder_may_close(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    connection = await pool.acquire('db')
    await pool.close(timeout=0.02)
    await pool.release(connection, 'db')
    assert manager.disposed == [connection]


async def test_releases_of_strangers_to_a_closed_pool_are_ignored(front: Front) -> None:
    pool = front.pool(front.manager())
    await pool.close()
    await pool.release(object(), 'db')
    await pool.release(object(), 'never seen')


@pytest.mark.parametrize('held', [True, False])
def test_the_collector_of_threads_dies_with_a_dropped_pool(threads_front: Front, held: bool) -> None:
    before = set(threading.enumerate())
    pool = threads_front.pool_class(threads_front.manager(), background_collector=True, idle_timeout=30)
    if held:
        pool.release(pool.acquire('db'), 'db')
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)
    gone = weakref.ref(pool)
    del pool
    collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert set(threading.enumerate()) <= before
    assert gone() is None


async def test_the_collector_of_tasks_dies_with_a_dropped_pool(asyncio_front: Front) -> None:
    before = asyncio.all_tasks()
    pool = asyncio_front.pool_class(asyncio_front.manager(), background_collector=True, idle_timeout=30)
    async with pool.connection('db'):
        pass
    await asyncio.sleep(0.01)
    gone = weakref.ref(pool)
    del pool

    def is_over() -> bool:
        collect()
        return gone() is None and asyncio.all_tasks() <= before

    await asyncio_front.until(is_over)


def test_the_collector_ends_when_the_pool_is_closed(threads_front: Front) -> None:
    before = set(threading.enumerate())
    pool = threads_front.pool_class(threads_front.manager(), background_collector=True)
    with pool.connection('db'):
        pass
    pool.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert set(threading.enumerate()) <= before
