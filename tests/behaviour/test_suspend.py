"""Guarantee 27 (docs/guarantees.md): endpoints, and pools, that are suspended and resumed."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest
from fronts import Front
from gil import collect

from gcp.exceptions import (
    AcquireTimeoutError,
    ConnectionPoolClosedError,
    EndpointRetiredError,
    PoolSuspendedError,
    TooManyWaitersError,
)
from gcp.testing import AsyncFakeManager, BareFakeManager, FakeManager, calling, dead, error, never, ok

each_target = pytest.mark.parametrize('target', ['a', None], ids=['endpoint', 'pool'])


@each_target
@pytest.mark.parametrize('bare', [False, True], ids=['hooks', 'bare'])
async def test_an_idle_connection_is_not_handed_out(front: Front, target: Any, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager)
    async with pool.connection('a') as conn:
        pass
    await pool.suspend(target)
    assert pool.stats().endpoints['a'].suspended
    for timeout in (0, 0.02):
        with pytest.raises(AcquireTimeoutError, match='suspended') as caught:
            await pool.acquire('a', timeout)
        assert (caught.value.phase, caught.value.blocked_by) == ('waiting', 'suspended')
    [waiter] = await front.line_up(pool, 'a', 1)
    pool.resume(target)
    assert await waiter is conn
    await pool.release(conn, 'a')
    assert not pool.stats().endpoints['a'].suspended
    async with pool.connection('a') as again:
        assert again is conn


@each_target
async def test_equal_keys_are_suspended_as_well(front: Front, target: Any) -> None:
    pool = front.pool(front.manager(bare=True))
    key = ('host', 5432)
    async with pool.connection(key):
        pass
    await pool.suspend(key if target else None)
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire(('ho' + 'st', int('5432')), 0)
    pool.resume()
    await pool.release(await pool.acquire(('ho' + 'st', int('5432')), 0), key)


@each_target
async def test_nothing_connects(front: Front, target: Any) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=3)
    await pool.suspend(target)
    waiters = await front.line_up(pool, 'a', 3)
    await front.sleep(0.01)
    assert manager.create.calls == []
    if target:
        async with pool.connection('b'):
            pass
    pool.resume(target)
    for waiter in waiters:
        await pool.release(await waiter, 'a')


@each_target
async def test_released_connections_are_kept(front: Front, target: Any) -> None:
    pool = front.pool(front.manager(), max_size=1)
    held = await pool.acquire('a')
    [waiter] = await front.line_up(pool, 'a', 1)
    await pool.suspend(target)
    await pool.release(held, 'a')
    assert (pool.stats().idle, pool.stats().waiting) == (1, 1)
    await front.sleep(0.01)
    assert not waiter.done()
    pool.resume(target)
    assert await waiter is held
    await pool.release(held, 'a')


@each_target
async def test_acquires_that_are_not_to_wait(front: Front, target: Any) -> None:
    pool = front.pool(front.manager(), max_size=1, name='orders')
    held = await pool.acquire('a')
    [waiter] = await front.line_up(pool, 'a', 1)
    await pool.suspend(target, 'raise')
    with pytest.raises(PoolSuspendedError, match='suspended') as caught:
        await waiter
    assert (caught.value.pool, caught.value.endpoint, caught.value.phase) == ('orders', 'a', 'waiting')
    await pool.release(held, 'a')
    with pytest.raises(PoolSuspendedError, match='suspended') as caught:
        await pool.acquire('a')
    assert caught.value.phase == 'admission'
    assert pool.stats().acquires['rejected'] == 2
    pool.resume(target)
    async with pool.connection('a') as conn:
        assert conn is held


async def test_the_stricter_mode_counts(front: Front) -> None:
    pool = front.pool(front.manager())
    await pool.suspend('a', mode='raise')
    await pool.suspend()
    with pytest.raises(PoolSuspendedError):
        await pool.acquire('a')
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('b', 0)
    pool.resume('a')
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('a', 0)
    await pool.suspend('a', mode='raise')
    await pool.suspend('a')  # the latest one
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('a', 0)
    pool.resume()
    await pool.release(await pool.acquire('a', 0), 'a')


@each_target
@pytest.mark.parametrize('word', ['wait', 'drain'])
async def test_it_may_wait_until_nothing_is_held(front: Front, target: Any, word: str) -> None:
    pool = front.pool(front.manager(), max_size=3)
    held = await front.fill(pool, 'a', 2)
    suspending = front.spawn(pool.suspend(target, **{word: True}))
    await front.until(lambda: pool.stats().endpoints['a'].suspended)
    await pool.release(held.pop(), 'a')
    await front.sleep(0.01)
    assert not suspending.done()
    await pool.release(held.pop(), 'a')
    await suspending
    await pool.suspend(target, wait=True)
    pool.resume(target)
    async with pool.connection('a'):
        pass


@each_target
@pytest.mark.parametrize('how', ['discard', 'drop', 'broken'])
async def test_other_ends_of_a_use_end_the_wait(front: Front, target: Any, how: str) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=3)
    lease: Any = pool.connection('a')
    conn = await lease.__aenter__()
    suspending = front.spawn(pool.suspend(target, wait=True, timeout=30))
    await front.until(lambda: pool.stats().endpoints['a'].suspended)
    if how == 'discard':
        await lease.discard()
    elif how == 'drop':
        lease = None
        collect()
    else:
        manager.on_release.does(error(OSError()))
        with pytest.raises(OSError):
            await lease.__aexit__(None, None, None)
    await suspending
    await front.until(lambda: conn in manager.disposed)
    pool.resume()


@each_target
async def test_it_may_run_out_of_time(front: Front, target: Any) -> None:
    pool = front.pool(front.manager())
    async with pool.connection('a'):
        for timeout in (0, 0.02):
            with pytest.raises(TimeoutError, match='1 connections are still held'):
                await pool.suspend(target, wait=True, timeout=timeout)
        assert pool.stats().endpoints['a'].suspended  # all the same
    pool.resume()


@each_target
async def test_a_connect_that_has_begun_is_waited_for(front: Front, target: Any) -> None:
    manager = front.manager()
    manager.create.does(never(), ok())
    pool = front.pool(manager)
    creating = front.spawn(pool.acquire('a'))
    await front.until(lambda: manager.create.running)
    suspending = front.spawn(pool.suspend(target, wait=True))
    await front.until(lambda: pool.stats().endpoints['a'].suspended)
    await front.sleep(0.01)
    manager.create.unblock()
    conn = await creating
    assert not suspending.done()
    await pool.release(conn, 'a')
    await suspending


@each_target
async def test_connects_in_the_background(front: Front, target: Any) -> None:
    manager = front.manager()
    manager.create.does(never(), ok())
    pool = front.pool(manager, connect_workers=1, max_size=5)
    waiters = await front.line_up(pool, 'a', 3)
    await front.until(lambda: manager.create.running)
    suspending = front.spawn(pool.suspend(target, wait=True))
    await front.until(lambda: pool.stats().endpoints['a'].suspended)
    manager.create.unblock()
    await suspending
    assert (pool.stats().idle, pool.stats().waiting, len(manager.create.calls)) == (1, 3, 1)
    pool.resume(target)
    for waiter in waiters:
        await pool.release(await waiter, 'a')


@each_target
async def test_nothing_is_refilled_or_warmed_up(front: Front, target: Any) -> None:
    manager = front.manager()
    pool = front.pool(manager, min_idle=2, max_size=5, refill=True)
    await pool.warm_up('a')
    await pool.suspend(target)
    pool.expire('a')
    await pool.wait_expired(30)
    warming = front.spawn(pool.warm_up('a', size=3))
    await front.sleep(0.02)
    assert len(manager.create.calls) == 2
    pool.resume(target)
    await warming
    assert len(manager.create.calls) == 5


@each_target
async def test_nothing_is_checked(front: Front, target: Any) -> None:
    manager = front.manager()
    pool = front.pool(manager, keepalive_interval=0.01, min_idle=1)
    async with pool.connection('a'):
        pass
    await pool.suspend(target, wait=True)
    checks = len(manager.keepalive.calls)
    await front.sleep(0.06)
    assert len(manager.keepalive.calls) == checks
    pool.resume(target)
    await front.until(lambda: len(manager.keepalive.calls) > checks)


async def test_a_connection_that_was_used_lately_is_checked_after_a_resume(front: Front) -> None:
    manager = front.manager()
    gone: set[Any] = set()
    manager.check_aliveness.does(calling(lambda endpoint, conn: conn not in gone))
    pool = front.pool(manager, check_interval=60)
    async with pool.connection('a') as conn:
        pass
    await pool.suspend(wait=True)
    gone.add(conn)
    [waiter] = await front.line_up(pool, 'a', 1)
    pool.resume()
    assert await waiter is not conn
    await pool.release(manager.created[-1], 'a')
    async with pool.connection('a') as conn:
        pass
    await pool.suspend('a', wait=True)
    gone.add(conn)
    pool.resume('a')
    async with pool.connection('a') as other:
        assert other is not conn


async def test_its_idle_connections_make_room_for_others(front: Front) -> None:
    pool = front.pool(front.manager(), total_max_size=1)
    async with pool.connection('a'):
        pass
    await pool.suspend('a')
    [waiter] = await front.line_up(pool, 'a', 1)
    async with pool.connection('b'):
        pass
    pool.resume('a')
    await pool.release(await waiter, 'a')


async def test_an_acquire_whose_connection_turns_out_dead(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    async with pool.connection('a'):
        pass
    manager.check_aliveness.does(never(then=dead()), ok())
    acquiring = front.spawn(pool.acquire('a'))
    await front.until(lambda: manager.check_aliveness.running)
    await pool.suspend('a')
    manager.check_aliveness.unblock()
    await front.waiting(pool, 1)
    pool.resume('a')
    await pool.release(await acquiring, 'a')


async def test_too_many_waiters(front: Front) -> None:
    pool = front.pool(front.manager(), max_waiting=1)
    await pool.suspend('a')
    [waiter] = await front.line_up(pool, 'a', 1)
    with pytest.raises(TooManyWaitersError):
        await pool.acquire('a')
    pool.resume('a')
    await pool.release(await waiter, 'a')


async def test_a_retirement_meanwhile(front: Front) -> None:
    pool = front.pool(front.manager())
    async with pool.connection('a'):
        pass
    await pool.suspend('a')
    [waiter] = await front.line_up(pool, 'a', 1)
    await pool.retire('a')
    with pytest.raises(EndpointRetiredError):
        await waiter
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('a', 0)  # still suspended
    pool.resume('a')
    async with pool.connection('a'):
        pass


@each_target
async def test_a_close_meanwhile(front: Front, target: Any) -> None:
    pool = front.pool(front.manager())
    held = await pool.acquire('a')
    suspending = front.spawn(pool.suspend(target, drain=True))
    await front.until(lambda: pool.stats().endpoints['a'].suspended)
    [waiter] = await front.line_up(pool, 'a', 1)
    closing = front.spawn(pool.close())
    with pytest.raises(ConnectionPoolClosedError):
        await waiter
    with pytest.raises(ConnectionPoolClosedError):
        await suspending
    await pool.release(held, 'a')
    await closing
    pool.resume(target)
    with pytest.raises(ConnectionPoolClosedError):
        await pool.suspend(target)


@each_target
async def test_a_resume_meanwhile(front: Front, target: Any) -> None:
    pool = front.pool(front.manager())
    async with pool.connection('a'):
        suspending = front.spawn(pool.suspend(target, wait=True))
        await front.until(lambda: pool.stats().endpoints['a'].suspended)
        await front.sleep(0.01)
        pool.resume()
        with pytest.raises(RuntimeError, match='was resumed'):
            await suspending


async def test_bad_arguments(front: Front) -> None:
    pool = front.pool(front.manager())
    with pytest.raises(ValueError, match="mode must be 'wait' or 'raise', not 'stop'"):
        await pool.suspend('a', 'stop')
    with pytest.raises(TypeError, match='wait must be True or False'):
        await pool.suspend('a', wait='yes')
    with pytest.raises(TypeError, match='timeout'):
        await pool.suspend('a', wait=True, timeout='soon')
    with pytest.raises(TypeError, match='hashable'):
        await pool.suspend([])
    with pytest.raises(TypeError, match='hashable'):
        pool.resume([])
    pool.resume('unknown')
    pool.resume()
    async with pool.connection('a'):
        pass


async def test_what_the_pool_shows(front: Front) -> None:
    pool = front.pool(front.manager())
    assert 'suspended' not in repr(pool)
    await pool.suspend('a')
    assert "'a': 0 waiting, suspended" in repr(pool)
    assert not pool.stats().suspended
    assert pool.stats().endpoints['a'].suspended
    pool.resume()
    assert pool.stats().endpoints == {}
    await pool.suspend()
    assert '; suspended' in repr(pool)
    assert pool.stats().suspended
    pool.resume()
    assert not pool.stats().suspended
    assert 'suspended' not in repr(pool)


async def test_many_endpoints_come_while_all_are_suspended(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), total_max_size=200)
    for i in range(50):
        async with pool.connection(i):
            pass
    await pool.suspend()
    waiters = [(i, (await front.line_up(pool, i, 1))[0]) for i in range(0, 100, 5)]
    pool.resume()
    for i, waiter in waiters:
        await pool.release(await waiter, i)
    for i in range(100):
        async with pool.connection(i):
            pass
    assert pool.stats().size == 100


def test_a_cancelled_suspension_stays() -> None:
    from gcp.asyncio import ConnectionPool

    async def main() -> None:
        async with ConnectionPool(AsyncFakeManager()) as pool:
            conn = await pool.acquire('a')
            suspending = asyncio.create_task(pool.suspend('a', wait=True))
            await asyncio.sleep(0)
            waiting = asyncio.create_task(pool.acquire('a'))
            await asyncio.sleep(0)
            suspending.cancel()
            waiting.cancel()
            await asyncio.wait({suspending, waiting})
            assert suspending.cancelled()
            assert pool.stats().waiting == 0
            await pool.release(conn, 'a')
            with pytest.raises(AcquireTimeoutError):
                await pool.acquire('a', 0)
            pool.resume('a')
            async with pool.connection('a') as again:
                assert again is conn

    asyncio.run(main())


def test_a_permit_that_was_given_just_before_is_returned() -> None:
    from gcp.asyncio import ConnectionPool

    async def main() -> None:
        manager: Any = AsyncFakeManager()
        async with ConnectionPool(manager, total_max_size=1) as pool:
            conn = await pool.acquire('a')
            waiting = asyncio.create_task(use(pool))
            await asyncio.sleep(0)
            await pool.discard(conn, 'a')
            await pool.suspend('b', wait=True)
            calls = len(manager.create.calls)
            await asyncio.sleep(0.01)
            assert len(manager.create.calls) in (calls, 1)
            if calls == 1:
                assert pool.stats().waiting == 1
            pool.resume('b')
            await waiting

    async def use(pool: Any) -> None:
        async with pool.connection('b'):
            pass

    asyncio.run(main())


def test_from_another_thread_than_that_of_the_event_loop() -> None:
    from gcp.asyncio import ConnectionPool

    async def main() -> None:
        async with ConnectionPool(AsyncFakeManager()) as pool:
            await pool.suspend('a')
            waiting = asyncio.create_task(pool.acquire('a'))
            await asyncio.sleep(0)
            await asyncio.to_thread(pool.resume, 'a')
            await pool.release(await asyncio.wait_for(waiting, 30), 'a')

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
@each_target
def test_a_forked_child_is_not_suspended(target: Any) -> None:
    from gcp.threading import ConnectionPool

    with ConnectionPool(FakeManager()) as pool:
        with pool.connection('a'):
            pass
        pool.suspend(target)
        child = os.fork()
        if not child:
            try:
                with pool.connection('a', 5):
                    pool.suspend(target)
                    pool.resume(target)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(AcquireTimeoutError):
            pool.acquire('a', 0)
        pool.resume(target)


def test_under_load_of_threads() -> None:
    """While it is suspended and drained, no connection is held, created or checked."""
    from gcp.threading import ConnectionPool

    manager: Any = BareFakeManager()
    errors: list[BaseException] = []
    stop = threading.Event()
    pool = ConnectionPool(manager, max_size=4, total_max_size=6, acquire_timeout=60)

    def use(endpoint: str) -> None:
        try:
            while not stop.is_set():
                with pool.connection(endpoint):
                    pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(endpoint,)) for endpoint in 'aaaabbbbcccc']
    for thread in threads:
        thread.start()
    while 'a' not in pool.stats().endpoints:
        pass
    for turn in range(20):
        target = 'a' if turn % 2 else None
        pool.suspend(target, wait=True, timeout=60)
        stats = pool.stats()
        assert stats.endpoints['a'].used == stats.endpoints['a'].creating == 0
        if target is None:
            assert stats.used == stats.creating == 0
        pool.resume(target)
        done = sum(pool.stats().acquires.values())
        while sum(pool.stats().acquires.values()) < done + 50:
            pass
    stop.set()
    for thread in threads:
        thread.join(60)
    assert errors == []
    pool.close()
