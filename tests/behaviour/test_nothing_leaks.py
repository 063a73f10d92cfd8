"""Guarantee 5 (docs/guarantees.md): whatever ends an acquire or a release, each permit and each slot is accounted
for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fronts import Front
from gil import collect

from gcp.exceptions import AcquireTimeoutError
from gcp.testing import dead, error, never, ok

HOOKS = ['create', 'dispose', 'check_aliveness', 'on_acquire', 'on_release', 'on_connection_dead']


class Meteor(BaseException):
    """Nothing that anybody expects."""


async def workload(front: Front, pool: Any) -> None:
    """Touch every hook: create, release, reuse, find dead, evict."""
    for endpoint in ('a', 'a', 'b', 'a'):
        try:
            async with pool.connection(endpoint, timeout=5):
                pass
        except (Meteor, KeyboardInterrupt, GeneratorExit, OSError, AcquireTimeoutError):
            pass


@pytest.mark.parametrize('exception', [Meteor, KeyboardInterrupt, GeneratorExit, OSError, TimeoutError])
@pytest.mark.parametrize('hook', HOOKS)
async def test_any_exception_in_any_hook(front: Front, hook: str, exception: type[BaseException]) -> None:
    if front.name == 'asyncio' and hook == 'dispose' and exception is KeyboardInterrupt:
        pytest.skip('a Ctrl-C in a background task ends the loop: that is how asyncio treats it')
    manager = front.manager()
    pool = front.pool(manager, max_size=1, total_max_size=1)
    manager.check_aliveness.does(ok(), dead(), ok())
    getattr(manager, hook).does(error(exception), ok(), error(exception), ok())
    for _ in range(3):
        await workload(front, pool)
    manager.check_aliveness.does(ok())
    await front.until(lambda: pool.stats().size <= 1)
    async with pool.connection('c', timeout=5):
        assert pool.stats().used == 1
    manager.check(total_max_size=1)


@pytest.mark.parametrize('hook', ['create', 'check_aliveness', 'on_acquire'])
async def test_an_acquire_cancelled_inside_a_hook(asyncio_front: Front, hook: str) -> None:
    manager = asyncio_front.manager()
    pool = asyncio_front.pool(manager, max_size=1, total_max_size=1)
    if hook != 'create':
        await pool.release(await pool.acquire('db'), 'db')
    getattr(manager, hook).does(never(), ok())
    acquire: Any = asyncio_front.spawn(pool.acquire('db'))
    await asyncio_front.until(lambda: getattr(manager, hook).running)
    acquire.cancel()
    with pytest.raises(asyncio.CancelledError):
        await acquire
    async with pool.connection('db', timeout=5):
        pass
    assert pool.stats().acquires['cancelled'] == 1
    assert len(manager.create.calls) == 2


async def test_a_release_cancelled_inside_its_hook(asyncio_front: Front) -> None:
    manager = asyncio_front.manager()
    pool = asyncio_front.pool(manager, max_size=1)
    connection = await pool.acquire('db')
    manager.on_release.does(never(), ok())
    release: Any = asyncio_front.spawn(pool.release(connection, 'db'))
    await asyncio_front.until(lambda: manager.on_release.running)
    release.cancel()
    with pytest.raises(asyncio.CancelledError):
        await release
    await asyncio_front.until(lambda: pool.stats().size == 0)
    assert manager.disposed == [connection]
    async with pool.connection('db', timeout=5) as other:
        assert other is not connection


async def test_an_acquire_cancelled_in_the_line(asyncio_front: Front) -> None:
    pool = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    connection = await pool.acquire('db')
    waiters: list[Any] = await asyncio_front.line_up(pool, 'db', 1)
    waiters[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiters[0]
    assert pool.stats().waiting == 0
    await pool.release(connection, 'db')
    assert pool.stats().idle == 1


async def test_an_acquire_cancelled_while_its_victim_goes(asyncio_front: Front) -> None:
    manager = asyncio_front.manager()
    pool = asyncio_front.pool(manager, max_size=1, total_max_size=1)
    await pool.release(await pool.acquire('a'), 'a')
    manager.dispose.does(never(), ok())
    acquire: Any = asyncio_front.spawn(pool.acquire('b'))
    await asyncio_front.until(lambda: manager.dispose.running)
    acquire.cancel()
    with pytest.raises(asyncio.CancelledError):
        await acquire
    manager.dispose.unblock()
    async with pool.connection('c', timeout=5):
        pass
    manager.check(total_max_size=1)


async def test_a_cancelled_with_block_gives_back(asyncio_front: Front) -> None:
    front, pool = asyncio_front, asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    inside = front.gate()

    async def use() -> None:
        async with pool.connection('db'):
            inside.open()
            await asyncio.sleep(60)

    user: Any = front.spawn(use())
    await inside.passed()
    user.cancel()
    with pytest.raises(asyncio.CancelledError):
        await user
    assert pool.stats().idle == 1


@pytest.mark.parametrize('drop', ['never driven', 'closed'])
@pytest.mark.filterwarnings('ignore:coroutine .* was never awaited:RuntimeWarning')
async def test_an_acquire_that_is_never_awaited_takes_nothing(asyncio_front: Front, drop: str) -> None:
    pool = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    awaitable: Any = pool.acquire('db')
    assert pool.get_size() == 0
    if drop == 'closed':
        awaitable.close()
    del awaitable
    collect()
    assert pool.get_size() == 0
    async with pool.connection('db', timeout=0):
        pass


@pytest.mark.parametrize('held', [True, False], ids=['in line', 'at a hit'])
async def test_an_acquire_that_is_driven_by_hand_and_closed(asyncio_front: Front, held: bool) -> None:
    pool = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    connection = await pool.acquire('db')
    if not held:
        await pool.release(connection, 'db')
    awaitable: Any = pool.acquire('db').__await__()
    try:
        next(awaitable)
    except StopIteration as hit:
        assert not held
        await pool.release(hit.value, 'db')
    else:
        assert held and pool.stats().waiting == 1
        awaitable.close()
        assert pool.stats().waiting == 0
        await pool.release(connection, 'db')
    assert pool.stats().idle == 1
