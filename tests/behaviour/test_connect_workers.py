"""Guarantee 19 (docs/guarantees.md): connections that are created in the background, by `connect_workers`."""

from __future__ import annotations

import asyncio
import contextvars
import os
import random
import threading
import time
import weakref
from typing import Any

import pytest
from fronts import Front
from gil import collect

from gcp.exceptions import AcquireTimeoutError, ConnectionPoolClosedError, ErrorClass
from gcp.limits import Retry
from gcp.testing import FakeManager, calling, error, never, ok, slow
from gcp.threading import ConnectionPool


async def test_a_spike_is_served_by_what_is_released(front: Front) -> None:
    """5 idle connections, 50 requests at once, and connects that take longer than all of them: HikariCP's spike."""
    manager = front.manager(bare=True)
    pool = front.pool(manager, max_size=50, min_idle=5, connect_workers=3)
    await pool.warm_up('db')
    manager.create.does(never())
    gate = front.gate()

    async def use() -> None:
        async with pool.connection('db'):
            await gate.passed()

    actors = [front.spawn(use()) for _ in range(50)]
    await front.waiting(pool, 45)
    await front.until(lambda: manager.create.running == 3)
    gate.open()
    for actor in actors:
        await actor
    assert len(manager.create.calls) == 5 + 3
    manager.create.unblock()
    await front.until(lambda: not pool.stats().creating)
    assert pool.stats().idle == len(manager.created) == 8


async def test_whichever_comes_first(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, connect_workers=1)
    first = await pool.acquire('db')
    manager.create.does(never())
    [waiter] = await front.line_up(pool, 'db', 1)
    await front.until(lambda: manager.create.running)
    await pool.release(first, 'db')
    assert await waiter is first
    manager.create.unblock()
    await front.until(lambda: pool.stats().idle == 1)  # the new one is idle
    await pool.release(first, 'db')


async def test_no_more_connects_at_a_time_than_workers(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never())
    pool = front.pool(manager, connect_workers=2)
    waiters = await front.line_up(pool, 'db', 5)
    await front.until(lambda: manager.create.running == 2)
    manager.create.does(ok())
    manager.create.unblock()
    for waiter in waiters:
        await waiter
    assert manager.peak('db') == 5


async def test_the_error_of_a_connect_goes_to_the_oldest_waiter(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never(then=error(ConnectionRefusedError('no'))), ok())
    pool = front.pool(manager, connect_workers=1)
    first, second = await front.line_up(pool, 'db', 2)
    await front.until(lambda: manager.create.running)
    manager.create.unblock()
    with pytest.raises(ConnectionRefusedError, match='no'):
        await first
    await pool.release(await second, 'db')
    assert pool.stats().acquires['error'] == 1


@pytest.mark.parametrize('wrong', [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
async def test_so_does_one_that_is_no_exception(front: Front, wrong: type[BaseException]) -> None:
    if front.name == 'asyncio' and wrong is not asyncio.CancelledError:
        pytest.skip('a task that raises it ends the event loop')
    manager = front.manager()
    manager.create.does(error(wrong()), ok())
    pool = front.pool(manager, connect_workers=1)
    with pytest.raises(wrong):
        await pool.acquire('db')
    await pool.release(await pool.acquire('db'), 'db')


async def test_a_permanent_error_goes_to_all_waiters(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never(then=error(ConnectionRefusedError('password'))))
    manager.classify.does(ok(ErrorClass.PERMANENT))
    pool = front.pool(manager, connect_workers=1, connect_retry=Retry())
    waiters = await front.line_up(pool, 'db', 3)
    await front.until(lambda: manager.create.running)
    manager.create.unblock()
    for waiter in waiters:
        with pytest.raises(ConnectionRefusedError, match='password'):
            await waiter
    assert len(manager.create.calls) == 1


async def test_waiters_keep_their_places_while_connects_are_tried_again(front: Front) -> None:
    manager = front.manager()
    manager.create.does(error(ConnectionRefusedError()), error(ConnectionRefusedError()), ok())
    pool = front.pool(manager, connect_workers=3, connect_retry=Retry(initial=0.01, maximum=0.02))

    async def use() -> None:
        async with pool.connection('db'):
            await front.sleep(0.001)

    actors = [front.spawn(use()) for _ in range(5)]
    for actor in actors:
        await actor
    assert pool.stats().acquires['error'] == 0


async def test_new_connections_are_prepared_but_not_checked(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, connect_workers=1)
    async with pool.connection('db'):
        assert manager.story() == ['create db#1', 'on_acquire db#1']
    assert pool.stats().acquires['created'] == 1


async def test_an_acquire_that_runs_out_of_time_leaves_its_connect_to_others(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never())
    pool = front.pool(manager, connect_workers=1)
    with pytest.raises(AcquireTimeoutError, match='creation') as caught:
        await pool.acquire('db', timeout=0.02)
    assert caught.value.blocked_by == 'creation'
    await front.until(lambda: manager.create.running)
    manager.create.unblock()
    await front.until(lambda: pool.stats().idle == 1)
    async with pool.connection('db'):
        pass
    assert len(manager.created) == 1


async def test_connect_timeout_limits_a_connect(front: Front) -> None:
    manager = front.manager()
    manager.create.does(slow(30, honours_timeout=True))
    pool = front.pool(manager, connect_workers=1, connect_timeout=0.02)
    with pytest.raises(TimeoutError):
        await pool.acquire('db')


async def test_an_acquire_that_does_not_wait_creates_its_connection(front: Front) -> None:
    pool = front.pool(front.manager(), connect_workers=1)
    await pool.release(await pool.acquire('db', timeout=0), 'db')


async def test_the_number_of_workers_can_be_changed(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never())
    pool: Any = front.pool(manager, connect_workers=1)
    waiters = await front.line_up(pool, 'db', 3)
    await front.until(lambda: manager.create.running == 1)
    pool.reconfigure(connect_workers=2)
    await front.until(lambda: manager.create.running == 2)
    manager.create.does(ok())
    pool.reconfigure(connect_workers=0)
    manager.create.unblock()
    for waiter in waiters:
        await pool.release(await waiter, 'db')
    await front.until(lambda: not pool.stats().creating)


async def test_context_variables_travel_along(front: Front) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar('variable', default='none')
    seen = []
    manager = front.manager()
    manager.create.does(calling(lambda endpoint, connection: seen.append(variable.get())))
    pool = front.pool(manager, connect_workers=1)
    token = variable.set('mine')
    try:
        async with pool.connection('db'):
            pass
    finally:
        variable.reset(token)
    assert seen == ['mine']


async def test_a_close_ends_the_waits_and_disposes_of_what_still_connects(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never())
    pool = front.pool(manager, connect_workers=2)
    waiters = await front.line_up(pool, 'db', 3)
    await front.until(lambda: manager.create.running == 2)
    closing = front.spawn(pool.close(timeout=5))
    for waiter in waiters:
        with pytest.raises(ConnectionPoolClosedError):
            await waiter
    manager.create.unblock()
    await closing
    assert pool.get_size() == 0
    assert manager.live == []


def test_1000_cancellations_lose_no_connect() -> None:
    """Connects of 20 ms, 4 workers, acquires that are cancelled at random moments."""
    from gcp.asyncio import ConnectionPool as AsyncConnectionPool
    from gcp.testing import AsyncFakeManager

    async def use(pool: Any, chance: random.Random) -> None:
        async with pool.connection(chance.choice('ab')):
            await asyncio.sleep(chance.random() * 0.002)

    async def main() -> None:
        chance = random.Random(1)
        manager = AsyncFakeManager()
        manager.create.does(slow(0.02))
        pool = AsyncConnectionPool(manager, max_size=20, total_max_size=30, connect_workers=4)
        loop = asyncio.get_running_loop()
        tasks = []
        for i in range(1000):
            tasks.append(task := loop.create_task(use(pool, chance)))
            loop.call_later(chance.random() * 0.04, task.cancel)
            if i % 10 == 0:
                await asyncio.sleep(0.001)
        await asyncio.gather(*tasks, return_exceptions=True)
        while pool.stats().creating or pool.stats().disposing:
            await asyncio.sleep(0.001)
        stats = pool.stats()
        begun = len(manager.create.calls)
        assert (stats.used, stats.waiting) == (0, 0)
        assert begun == stats.created == stats.idle + sum(stats.closed.values())
        assert stats.hook_calls['create']['ok'] == begun <= 60
        manager.check(max_size=20, total_max_size=30)
        await pool.close()
        assert pool.get_size() == 0

    asyncio.run(main())


def test_a_pool_that_connects_is_dropped_with_its_workers() -> None:
    manager = FakeManager()
    pool = ConnectionPool(manager, connect_workers=2)
    with pool.connection('db'):
        pass
    ref = weakref.ref(pool)
    del pool
    deadline = time.monotonic() + 60
    # a worker that is about to rest may refer to it for a moment
    while ref() is not None or any(thread.name == 'gcp-background' for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        collect()
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_forked_child_has_workers_of_its_own() -> None:
    pool = ConnectionPool(FakeManager(), connect_workers=1, refill=True)
    pool.warm_up('db')
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with pool.connection('db', timeout=5):
                pass
            pool.warm_up('other', timeout=5)
            pool.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.stats().idle == 1
    pool.close()
