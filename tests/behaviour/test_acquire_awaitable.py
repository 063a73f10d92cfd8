"""Guarantee 5 (docs/guarantees.md): an acquire of the asyncio pool leaks nothing, however it is awaited, cancelled
or dropped.

Everything that accepts a coroutine accepts what `acquire` returns."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fronts import Front
from task_factories import begins_at_once

from gcp.exceptions import AcquireTimeoutError


@pytest.mark.parametrize('hit', [True, False])
@pytest.mark.parametrize('bare', [True, False])
async def test_all_ways_to_wait_for_it(asyncio_front: Front, hit: bool, bare: bool) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=bare), max_size=4, min_idle=4)
    if hit:
        await asyncio_front.give_back(pool, await asyncio_front.fill(pool, 'db', 4))
    held = [
        await pool.acquire('db'),
        await asyncio.create_task(pool.acquire('db')),
        await asyncio.wait_for(pool.acquire('db'), 5),
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
