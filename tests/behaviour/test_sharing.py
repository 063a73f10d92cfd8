"""Guarantee 28 (docs/guarantees.md): places of the total cap where endpoints have weights or floors."""

from __future__ import annotations

import pytest
from fronts import Front, elapsed

from gcp.exceptions import AcquireTimeoutError
from gcp.limits import EndpointLimits
from gcp.testing import ok, slow


async def test_a_connection_that_lingers_is_given_up_though_nothing_else_happens(front: Front) -> None:
    manager = front.manager()
    manager.create.does(slow(0.05))
    pool = front.pool(manager, total_max_size=1, limits={'a': EndpointLimits(weight=2)})
    conn = await pool.acquire('a')
    [waiter] = await front.line_up(pool, 'b', 1)
    await pool.release(conn, 'a')
    async with elapsed(most=20):
        await pool.release(await waiter, 'b')
    assert pool.stats().closed['evicted'] == 1


async def test_the_one_that_watches_it_may_run_out_of_time(front: Front) -> None:
    manager = front.manager()
    manager.create.does(slow(1.2), ok())
    pool = front.pool(manager, total_max_size=1, limits={'a': EndpointLimits(weight=2)})
    conn = await pool.acquire('a')
    first = front.spawn(pool.acquire('b', 1))
    await front.until(lambda: pool.stats().waiting == 1 or first.done())
    second = front.spawn(pool.acquire('c'))
    await front.until(lambda: pool.stats().waiting == 2 or first.done())
    await pool.release(conn, 'a')
    with pytest.raises(AcquireTimeoutError):
        await first
    await pool.release(await second, 'c')


async def test_a_client_that_comes_back_finds_its_connection(front: Front) -> None:
    manager = front.manager()
    manager.create.does(slow(0.3))
    pool = front.pool(manager, total_max_size=1, limits={'a': EndpointLimits(weight=2)})
    conn = await pool.acquire('a')
    [waiter] = await front.line_up(pool, 'b', 1)
    await pool.release(conn, 'a')
    again = await pool.acquire('a', 0)
    assert again is conn
    await pool.discard(again, 'a')
    await pool.release(await waiter, 'b')
