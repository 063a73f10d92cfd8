"""Guarantee 6 (docs/guarantees.md): a time-out covers the whole acquire, and the error says what ran out of time and
why."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest
from fronts import Front, elapsed
from gil import is_same

from gcp.exceptions import AcquireTimeoutError, BaseError
from gcp.testing import dead, error, never, ok, slow


async def timed_out(acquire: Any) -> AcquireTimeoutError:
    with pytest.raises(AcquireTimeoutError) as caught:
        await acquire
    return caught.value


async def test_waiting_in_line_ends_at_the_deadline(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1)
    connection = await pool.acquire('db')
    async with elapsed(least=0.1):
        await timed_out(pool.acquire('db', timeout=0.1))
    assert pool.stats().acquires['timeout'] == 1
    await pool.release(connection, 'db')


async def test_the_pool_s_own_time_out_is_the_default(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1, acquire_timeout=0.05)
    connection = await pool.acquire('db')
    async with elapsed(least=0.05):
        assert (await timed_out(pool.acquire('db'))).timeout == 0.05
    with pytest.raises(AcquireTimeoutError):
        async with pool.connection('db'):
            pass
    patient = front.spawn(pool.acquire('db', timeout=math.inf))
    await front.waiting(pool, 1)
    await front.sleep(0.1)
    assert not patient.done()
    await pool.release(connection, 'db')
    await pool.release(await patient, 'db')


@pytest.mark.parametrize('timeout', [None, math.inf, 1e300, 10**20, 4_000_000])
async def test_for_ever_and_nearly(front: Front, timeout: float | None) -> None:
    pool = front.pool(front.manager(), max_size=1)
    connection = await pool.acquire('db', timeout=timeout)
    waiter = front.spawn(pool.acquire('db', timeout=timeout))
    await front.waiting(pool, 1)
    await pool.release(connection, 'db')
    assert await waiter is connection
    await pool.release(connection, 'db')


@pytest.mark.parametrize('hook', ['create', 'check_aliveness', 'on_acquire'])
async def test_hooks_are_on_the_same_clock(asyncio_front: Front, hook: str) -> None:
    manager = asyncio_front.manager()
    pool = asyncio_front.pool(manager, max_size=1)
    if hook == 'check_aliveness':
        await pool.release(await pool.acquire('db'), 'db')
    getattr(manager, hook).does(never())
    async with elapsed(least=0.05):
        e = await timed_out(pool.acquire('db', timeout=0.05))
    assert e.phase == {'create': 'creation'}.get(hook, hook)
    assert e.blocked_by == ('creation' if hook == 'create' else None)


async def test_slow_steps_add_up(front: Front) -> None:
    manager = front.manager()
    manager.check_aliveness.does(slow(60, honours_timeout=True))
    pool = front.pool(manager, max_size=1)
    connection = await pool.acquire('db')
    began = time.monotonic()
    waiter = front.spawn(pool.acquire('db', timeout=2))
    await front.waiting(pool, 1)
    async with elapsed():
        await front.sleep(0.1)
        await pool.release(connection, 'db')
        with pytest.raises(TimeoutError if front.name == 'threads' else AcquireTimeoutError):
            await waiter  # 0.1 s in line, and then a check of what is left
    assert time.monotonic() - began >= 2 - 0.002
    if front.name == 'threads':
        assert manager.check_aliveness.calls[-1].timeout <= 1.9 + 0.002 < 2


async def test_sync_hooks_are_told_what_is_left(threads_front: Front) -> None:
    manager = threads_front.manager()
    pool = threads_front.pool(manager, max_size=1, dispose_timeout=0.7)
    connection = await pool.acquire('db', timeout=5)
    waiter = threads_front.spawn(pool.acquire('db', timeout=5))
    await threads_front.waiting(pool, 1)
    await threads_front.sleep(0.1)
    manager.on_release.does(error(OSError('broken')), ok())
    with pytest.raises(OSError):
        await pool.release(connection, 'db')
    connection = await waiter
    await pool.release(connection, 'db')
    await pool.release(await pool.acquire('db', timeout=3), 'db')
    await pool.release(await pool.acquire('db'), 'db')
    first, second = (call.timeout for call in manager.create.calls)
    assert 4.5 < first <= 5 and 3 < second < 4.95
    bounded, unbounded = (call.timeout for call in manager.check_aliveness.calls[-2:])
    assert 2 < bounded <= 3 and unbounded is None
    assert 0 < manager.dispose.calls[0].timeout <= 0.7


async def test_a_late_creation_is_kept_idle(threads_front: Front) -> None:
    manager = threads_front.manager()
    manager.create.does(slow(0.1), ok())
    pool = threads_front.pool(manager, max_size=1)
    e = await timed_out(pool.acquire('db', timeout=0.02))
    assert e.phase == 'creation'
    assert pool.stats().idle == 1
    assert pool.stats().acquires['timeout'] == 1
    assert await pool.acquire('db', timeout=0) is manager.created[0]
    assert manager.story('on_acquire') == ['on_acquire db#1']
    await threads_front.give_back(pool, manager.created)


async def test_a_late_creation_serves_who_waits(threads_front: Front) -> None:
    manager = threads_front.manager()
    manager.create.does(slow(0.1), ok())
    pool = threads_front.pool(manager, max_size=1)
    late = threads_front.spawn(pool.acquire('db', timeout=0.02))
    await threads_front.until(lambda: manager.create.running)
    [waiter] = await threads_front.line_up(pool, 'db', 1)
    await timed_out(late)
    await pool.release(await waiter, 'db')
    assert len(manager.created) == 1


@pytest.mark.parametrize('timeout', [0, 0.0, -1, -math.inf])
class TestTryOnce:
    """A time-out of 0 or less: an idle connection, a free place, or the error at once."""

    async def test_takes_an_idle_connection(self, front: Front, timeout: float) -> None:
        pool = front.pool(front.manager(), max_size=1)
        await pool.release(connection := await pool.acquire('db'), 'db')
        assert await pool.acquire('db', timeout=timeout) is connection
        await pool.release(connection, 'db')

    async def test_takes_a_free_place(self, front: Front, timeout: float) -> None:
        manager = front.manager()
        manager.create.does(slow(0.02))
        pool = front.pool(manager)
        await pool.release(await pool.acquire('db', timeout=timeout), 'db')
        assert manager.create.calls[0].timeout is None

    async def test_creates_within_the_pool_s_own_time_out(self, front: Front, timeout: float) -> None:
        manager = front.manager()
        manager.create.does(slow(60, honours_timeout=True))
        pool = front.pool(manager, acquire_timeout=0.1)
        async with elapsed(least=0.1):
            with pytest.raises(TimeoutError if front.name == 'threads' else AcquireTimeoutError):
                await pool.acquire('db', timeout=timeout)

    async def test_does_not_wait_for_others(self, front: Front, timeout: float) -> None:
        manager = front.manager()
        pool = front.pool(manager, max_size=1)
        connection = await pool.acquire('db')
        async with elapsed():
            e = await timed_out(pool.acquire('db', timeout=timeout))
        assert e.phase == 'waiting' and e.blocked_by == 'endpoint cap'
        await pool.release(connection, 'db')
        manager.create.does(never())
        creator = front.spawn(pool.acquire('other'))
        await front.until(lambda: manager.create.running)
        async with elapsed():
            await timed_out(pool.acquire('other', timeout=timeout))
        manager.unblock()
        await pool.release(await creator, 'other')

    async def test_passes_over_the_dead(self, front: Front, timeout: float) -> None:
        manager = front.manager()
        pool = front.pool(manager, max_size=2, min_idle=2)
        await front.give_back(pool, await front.fill(pool, 'db', 2))
        manager.check_aliveness.does(dead(), ok())
        connection = await pool.acquire('db', timeout=timeout)
        assert connection is manager.created[1]
        await pool.release(connection, 'db')


async def test_the_error_of_an_endpoint_cap(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=2, name='orders')
    held = await front.fill(pool, 'db', 2)
    await pool.release(await pool.acquire('other'), 'other')
    waiting = await front.line_up(pool, 'db', 1)
    await front.sleep(0.05)
    e = await timed_out(pool.acquire('db', timeout=0.05))
    assert isinstance(e, TimeoutError) and isinstance(e, asyncio.TimeoutError if front.name == 'asyncio' else BaseError)
    assert (e.pool, e.phase, e.blocked_by, e.timeout) == ('orders', 'waiting', 'endpoint cap', 0.05)
    assert (e.idle, e.used, e.creating, e.limit) == (0, 2, 0, 2)
    assert e.waiting == 1
    assert 0.1 <= e.oldest_checkout < 5
    assert e.__cause__ is None
    for fact in ('orders', 'endpoint cap', '2 used', '0.05'):
        assert fact in str(e), str(e)
    await front.give_back(pool, held)
    await pool.release(await waiting[0], 'db')


async def test_the_error_of_a_total_cap(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=2, total_max_size=3)
    held = [*await front.fill(pool, 'a', 2), *await front.fill(pool, 'b', 1)]
    e = await timed_out(pool.acquire('c', timeout=0.02))
    assert (e.phase, e.blocked_by) == ('waiting', 'total cap')
    assert (e.idle, e.used, e.creating, e.limit) == (0, 3, 0, 3)
    await front.give_back(pool, held)


async def test_the_error_of_a_creation(front: Front) -> None:
    manager = front.manager()
    manager.create.does(slow(0.1), ok())
    pool = front.pool(manager, max_size=2)
    e = await timed_out(pool.acquire('db', timeout=0.05))
    assert (e.phase, e.blocked_by, e.timeout, e.limit) == ('creation', 'creation', 0.05, 2)
    assert e.oldest_checkout == 0


async def test_one_who_waits_for_another_s_creation(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never())
    pool = front.pool(manager, max_size=1)
    creator = front.spawn(pool.acquire('db'))
    await front.until(lambda: manager.create.running)
    e = await timed_out(pool.acquire('db', timeout=0.02))
    assert (e.phase, e.used, e.creating) == ('waiting', 0, 1)
    manager.unblock()
    await pool.release(await creator, 'db')


async def test_the_last_connect_error_is_the_cause(front: Front) -> None:
    manager = front.manager()
    refused = ConnectionRefusedError('nobody there')
    manager.create.does(never(then=error(refused)), slow(0.3), ok())
    pool = front.pool(manager, max_size=1)
    creator = front.spawn(pool.acquire('db'))
    await front.until(lambda: manager.create.running)
    waiter = front.spawn(pool.acquire('db', timeout=0.2))
    await front.waiting(pool, 1)
    manager.create.unblock()
    with pytest.raises(ConnectionRefusedError):
        await creator
    e = await timed_out(waiter)
    assert e.phase == 'creation'
    assert is_same(e.__cause__, refused)


async def test_a_connect_time_out_is_a_time_out(front: Front) -> None:
    manager = front.manager()
    manager.create.does(error(TimeoutError('no answer')), ok())
    pool = front.pool(manager)
    with pytest.raises(TimeoutError):
        await pool.acquire('db')
    assert pool.get_size() == 0


async def test_a_connect_time_out_at_the_deadline_is_an_acquire_time_out(threads_front: Front) -> None:
    manager = threads_front.manager()
    manager.create.does(slow(1, honours_timeout=True))
    pool = threads_front.pool(manager)
    e = await timed_out(pool.acquire('db', timeout=0.05))
    assert e.phase == 'creation'
    assert isinstance(e.__cause__, TimeoutError)
    assert pool.get_size() == 0


async def test_an_eviction_that_hangs_does_not_hold_the_deadline(front: Front) -> None:
    manager = front.manager()
    manager.dispose.does(never())
    pool = front.pool(manager, max_size=1, total_max_size=1)
    await pool.release(await pool.acquire('a'), 'a')
    async with elapsed(least=0.1):
        e = await timed_out(pool.acquire('b', timeout=0.1))
    assert e.blocked_by == 'total cap'
    await front.until(lambda: manager.dispose.running)
    manager.unblock()
    await pool.release(await pool.acquire('b', timeout=5), 'b')


async def test_a_hand_off_just_in_time_is_not_lost(front: Front) -> None:
    """Releases and time-outs at the same moment: each acquire gets a connection or an error, and no slot is lost."""
    pool = front.pool(front.manager(bare=True), max_size=1)

    async def wait(timeout: float) -> None:
        try:
            await pool.release(await pool.acquire('db', timeout=timeout), 'db')
        except AcquireTimeoutError:
            pass

    for round_ in range(60):
        connection = await pool.acquire('db', timeout=5)
        actors = [front.spawn(wait(0.003 + 0.00005 * round_)) for _ in range(2)]
        await front.sleep(0.003)
        await pool.release(connection, 'db')
        for actor in actors:
            await actor
    assert (pool.stats().idle, pool.stats().used) == (1, 0)


async def test_time_is_not_spent_on_a_poll(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=1)
    connection = await pool.acquire('db')
    waiter = front.spawn(pool.acquire('db', timeout=30))
    await front.waiting(pool, 1)
    began = time.process_time()
    await front.sleep(0.3)
    assert time.process_time() - began < 0.05
    await pool.release(connection, 'db')
    await pool.release(await waiter, 'db')
