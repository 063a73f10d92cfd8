"""Guarantee 3 (docs/guarantees.md): acquires that wait for the same endpoint are served by priority, then in order."""

from __future__ import annotations

from typing import Any

import pytest
from fronts import Front


@pytest.mark.parametrize('how', ['acquire', 'connection'])
@pytest.mark.parametrize('workers', [0, 1])
async def test_higher_priorities_first_and_in_order_among_equals(front: Front, how: str, workers: int) -> None:
    pool: Any = front.pool(front.manager(), max_size=1, connect_workers=workers)
    held = await pool.acquire('a')
    served: list[tuple[int, int]] = []

    async def use(number: int, priority: int) -> None:
        if how == 'acquire':
            conn = await pool.acquire('a', priority=priority)
            served.append((priority, number))
            await pool.release(conn, 'a')
        else:
            async with pool.connection('a', priority=priority):
                served.append((priority, number))

    actors = []
    for number, priority in enumerate([0, 2, 0, -1, 1, 2, 1]):
        actors.append(front.spawn(use(number, priority)))
        await front.waiting(pool, number + 1)
    await pool.release(held, 'a')
    for actor in actors:
        await actor
    assert served == [(2, 1), (2, 5), (1, 4), (1, 6), (0, 0), (0, 2), (-1, 3)]


async def test_an_idle_connection_and_a_new_one(front: Front) -> None:
    pool: Any = front.pool(front.manager())
    conn = await pool.acquire('a', 5, priority=1)
    await pool.release(conn, 'a')
    async with pool.connection('a', priority=1, tag='check') as again:
        assert again is conn
    assert (pool.stats().acquires['hit'], pool.stats().acquires['created']) == (1, 1)


@pytest.mark.parametrize(
    ('value', 'error'), [('high', TypeError), (True, TypeError), (1.5, TypeError), (10**9, ValueError)]
)
async def test_bad_priorities(front: Front, value: Any, error: type[Exception]) -> None:
    pool: Any = front.pool(front.manager())
    with pytest.raises(error, match='priority must be'):
        await pool.acquire('a', priority=value)
    with pytest.raises(error, match='priority must be'):
        pool.connection('a', priority=value)


async def test_the_oldest_waiter_is_told_whatever_is_served_first(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1)
    conn = await pool.acquire('db')
    [low] = await front.line_up(pool, 'db', 1)
    await front.until(lambda: pool.stats().oldest_waiter > 0.01)
    high = front.spawn(pool.acquire('db', priority=1))
    await front.waiting(pool, 2)
    assert pool.stats().oldest_waiter > 0.01
    first, second = front.pools[0].waiters()
    assert first.age > 0.01 and first.age > second.age
    assert (first.position, second.position) == (2, 1)
    await pool.release(conn, 'db')
    await pool.release(await high, 'db')
    await pool.release(await low, 'db')
