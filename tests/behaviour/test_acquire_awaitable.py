"""Guarantee 5 (docs/guarantees.md): an acquire of the asyncio pool leaks nothing, however it is awaited, cancelled
or dropped.

Everything that accepts a coroutine accepts what `acquire` returns."""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from typing import Any

import pytest
from fronts import Front
from gil import collect
from task_factories import begins_at_once

from gcp.asyncio import ConnectionPool
from gcp.exceptions import AcquireTimeoutError
from gcp.testing import AsyncBareFakeManager, AsyncFakeManager


@pytest.mark.parametrize('hit', [True, False])
@pytest.mark.parametrize('bare', [True, False])
async def test_all_ways_to_wait_for_it(asyncio_front: Front, hit: bool, bare: bool) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=bare), max_size=4, min_idle=4)
    if hit:
        await asyncio_front.give_back(pool, await asyncio_front.fill(pool, 'db', 4))
    held = [
        await pool.acquire('db'),
        await asyncio.create_task(pool.acquire('db')),
        await asyncio.wait_for(pool.acquire('db'), 60),
        *await asyncio.gather(pool.acquire('db')),
    ]
    assert len(set(held)) == 4
    assert pool.stats().created == 4
    await asyncio_front.give_back(pool, held)


@pytest.mark.parametrize('hit', [True, False])
async def test_async_with(asyncio_front: Front, hit: bool) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(), max_size=1)
    if hit:
        await pool.release(await pool.acquire('db'), 'db')
    async with pool.acquire('db') as connection:
        assert connection.endpoint == 'db'
        assert pool.stats().used == 1
    assert pool.stats().idle == 1


async def test_it_takes_a_connection_only_when_it_is_driven(asyncio_front: Front) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    await pool.release(await pool.acquire('db'), 'db')
    awaitable = pool.acquire('db')
    assert pool.stats().idle == 1
    connection = await awaitable
    assert pool.stats().used == 1
    await pool.release(connection, 'db')


@pytest.mark.parametrize('hit', [True, False])
async def test_it_can_be_awaited_once(asyncio_front: Front, hit: bool) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=2)
    if hit:
        await pool.release(await pool.acquire('db'), 'db')
    awaitable = pool.acquire('db')
    connection = await awaitable
    with pytest.raises(RuntimeError):
        await awaitable
    assert pool.stats().used == 1
    await pool.release(connection, 'db')


async def test_wait_for_gives_up_in_the_line(asyncio_front: Front) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    connection = await pool.acquire('db')
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(pool.acquire('db'), 0.02)
    assert pool.stats().waiting == 0
    assert pool.stats().acquires['cancelled'] == 1
    await pool.release(connection, 'db')


async def test_a_time_out_in_gather(asyncio_front: Front) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    results = await asyncio.gather(*[pool.acquire('db', timeout=0.02) for _ in range(3)], return_exceptions=True)
    assert sum(isinstance(result, AcquireTimeoutError) for result in results) == 2
    await asyncio_front.give_back(pool, [result for result in results if not isinstance(result, BaseException)])


@pytest.mark.skipif(begins_at_once, reason='it starts at once')
async def test_a_task_cancelled_before_it_starts(asyncio_front: Front) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    await pool.release(await pool.acquire('db'), 'db')
    task = asyncio.create_task(pool.acquire('db'))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.stats().idle == 1


@pytest.mark.parametrize('bare', [True, False])
@pytest.mark.parametrize('method', ['acquire', 'release', 'a wrong release'])
async def test_one_that_is_never_awaited_is_told(asyncio_front: Front, method: str, bare: bool) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=bare), max_size=1)
    connection = await pool.acquire('db')
    with pytest.warns(RuntimeWarning, match=rf"coroutine 'ConnectionPool.{method[-7:]}' was never awaited"):
        if method == 'acquire':
            pool.acquire('db')
        else:
            pool.release(connection if method == 'release' else object(), 'db')
    if method != 'release':
        await pool.release(connection, 'db')
    await asyncio_front.until(lambda: pool.stats().used == 0)


@pytest.mark.filterwarnings('error')
async def test_one_that_is_closed_or_left_is_not_told(asyncio_front: Front) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    pool.acquire('db').close()
    pool.connection('db')
    async with pool.acquire('db'):
        pass
    pool.release(await pool.acquire('db'), 'db').close()
    assert pool.stats().used == 0


@pytest.mark.parametrize('bare', [True, False])
def test_a_release_that_is_called_where_no_loop_runs_is_done_when_it_is_driven(bare: bool) -> None:
    pool: Any = ConnectionPool(AsyncBareFakeManager() if bare else AsyncFakeManager())
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(pool.acquire('db'))
    release = pool.release(connection, 'db')
    assert pool.stats().used == 1
    loop.run_until_complete(release)
    assert pool.stats().used == 0
    loop.run_until_complete(pool.close())
    loop.close()


@pytest.mark.parametrize('bare', [True, False])
async def test_a_release_that_is_called_in_another_thread(asyncio_front: Front, bare: bool) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=bare), max_size=1)
    connection = await pool.acquire('db')
    loop = asyncio.get_running_loop()

    def release() -> None:
        asyncio.run_coroutine_threadsafe(pool.release(connection, 'db'), loop).result(60)

    await loop.run_in_executor(None, release)
    assert pool.stats().used == 0


@pytest.mark.parametrize('way', ['hit', 'wait', 'release', 'block'])
async def test_another_loop_within_the_pools_own_is_refused(asyncio_front: Front, way: str) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    connection = await pool.acquire('db')
    if way == 'hit':
        await pool.release(connection, 'db')

    async def use() -> None:
        with pytest.raises(RuntimeError, match='belongs to another event loop'):
            if way == 'release':
                await pool.release(connection, 'db')
            else:
                await pool.acquire('db')

    nest(asyncio.new_event_loop(), use())
    if way != 'hit':
        await pool.release(connection, 'db')
    async with pool.connection('db'):
        assert pool.stats().used == 1
    assert pool.stats().idle == 1


def nest(loop: asyncio.AbstractEventLoop, body: Any) -> None:
    """Run a loop within another one, as nest_asyncio does. From 3.14 on the loop of a task must run when it is left."""
    outer, task = asyncio.get_running_loop(), asyncio.current_task()
    asyncio.tasks._leave_task(outer, task)  # type: ignore[attr-defined]
    asyncio._set_running_loop(None)
    try:
        loop.run_until_complete(body)
        loop.close()
    finally:
        asyncio._set_running_loop(outer)
        asyncio.tasks._enter_task(outer, task)  # type: ignore[attr-defined]


async def test_no_timer_keeps_the_context_of_a_caller_alive(asyncio_front: Front) -> None:
    """The event loop keeps a timer that was cancelled until its time has come."""

    class Request:
        pass

    variable: contextvars.ContextVar[Request] = contextvars.ContextVar('request')
    pool: Any = asyncio_front.pool(asyncio_front.manager(), max_size=1, background_collector=True)
    requests: list[weakref.ref[Request]] = []

    async def work() -> None:
        variable.set(request := Request())
        requests.append(weakref.ref(request))
        async with pool.connection('db', timeout=3600):
            waiting = asyncio.ensure_future(pool.acquire('db', timeout=3600))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])

    await asyncio.get_running_loop().create_task(work())
    await asyncio.sleep(0)
    collect()
    assert requests[0]() is None
