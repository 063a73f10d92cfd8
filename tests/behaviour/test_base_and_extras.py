"""Base and extras: who is acquired first, who becomes which, and what a release tidies up."""

from __future__ import annotations

from typing import Any

import pytest
from fronts import Front
from gil import HAS_GIL

pytestmark = pytest.mark.parametrize('bare', [True, False], ids=['bare', 'hooks'])


async def test_base_connections_take_turns(front: Front, bare: bool) -> None:
    pool = front.pool(front.manager(bare=bare), min_idle=3, max_size=3)
    held = await front.fill(pool, 'db', 3)
    await front.give_back(pool, held)
    for connection in [*held, *held]:
        assert await pool.acquire('db') is connection
        await pool.release(connection, 'db')


async def test_extras_are_acquired_last_in_first_out(front: Front, bare: bool) -> None:
    pool = front.pool(front.manager(bare=bare), min_idle=0, max_size=3)
    held = await front.fill(pool, 'db', 3)
    await front.give_back(pool, held)
    assert await front.fill(pool, 'db', 3) == held[::-1]
    await front.give_back(pool, held)


async def test_base_connections_are_acquired_before_extras(front: Front, bare: bool) -> None:
    pool = front.pool(front.manager(bare=bare), min_idle=2, max_size=5)
    c1, c2, c3, c4, c5 = held = await front.fill(pool, 'db', 5)
    await front.give_back(pool, held)  # c1 to c3 become extras, c4 and c5 the base
    assert await front.fill(pool, 'db', 5) == [c4, c5, c3, c2, c1]
    await front.give_back(pool, held)


async def test_the_first_to_come_back_while_others_are_out_is_the_extra(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager, min_idle=1, max_size=2, idle_timeout=1)
    first, second = await front.fill(pool, 'db', 2)
    await pool.release(first, 'db')
    await front.sleep(1.05)
    await pool.release(second, 'db')
    assert manager.disposed == [first]
    await front.sleep(1.05)
    assert await pool.acquire('db') is second  # the base does not expire
    await pool.release(second, 'db')


async def test_a_base_place_is_taken_when_enough_are_back(front: Front, bare: bool) -> None:
    pool = front.pool(front.manager(bare=bare), min_idle=2, max_size=4)
    c1, c2, c3, c4 = held = await front.fill(pool, 'db', 4)
    await front.give_back(pool, [c1, c2, c3])  # c3: one is out and two base places are free
    assert await front.fill(pool, 'db', 3) == [c3, c2, c1]
    await front.give_back(pool, held)


async def test_each_endpoint_has_a_base_of_its_own(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager, min_idle=1, max_size=2, idle_timeout=1)
    for endpoint in 'ab':
        await front.give_back(pool, await front.fill(pool, endpoint, 2))
    await front.sleep(1.05)
    async with pool.connection('c'):
        pass
    async with pool.connection('c'):
        pass
    assert manager.story('dispose') == ['dispose a#1', 'dispose b#3']


@pytest.mark.parametrize('batch, expected', [(0, [4, 4, 0]), (2, [2, 2, 2]), (100, [8, 0, 0])])
async def test_a_release_disposes_of_a_batch_in_expiry_order(
    front: Front,
    bare: bool,
    batch: int,
    expected: list[int],
) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager, min_idle=0, max_size=8, idle_timeout=1, dispose_batch_size=batch)
    held = await front.fill(pool, 'a', 8)
    order = [held[index] for index in (3, 1, 4, 0, 5, 2, 7, 6)]
    released: list[Any] = await front.fill(pool, 'b', 3)
    await front.give_back(pool, order)
    await front.sleep(1.05)
    disposed = 0
    for connection, count in zip(released, expected, strict=True):
        await pool.release(connection, 'b')  # of the default: int(log2(size + 1)) + 1, the released one included
        disposed += count
        await front.until(lambda disposed=disposed: len(manager.disposed) >= disposed)  # type: ignore[misc]
        if HAS_GIL:
            assert manager.disposed == order[:disposed]
        else:  # workers may dispose of those of one batch in parallel
            assert set(manager.disposed) == set(order[:disposed])


async def test_sizes(front: Front, bare: bool) -> None:
    pool = front.pool(front.manager(bare=bare), max_size=3, total_max_size=4)

    async def sizes(endpoint: str) -> list[int]:
        return [await pool.get_endpoint_pool_size(endpoint, acquired) for acquired in (None, True, False)]

    assert pool.get_size() == 0 and not pool.is_full
    assert await sizes('a') == [0, 0, 0]
    a = await front.fill(pool, 'a', 3)
    assert await sizes('a') == [3, 3, 0]
    b = await front.fill(pool, 'b', 1)
    assert pool.get_size() == 4 and pool.is_full
    await pool.release(a.pop(), 'a')
    assert await sizes('a') == [3, 2, 1]
    assert await pool.get_endpoint_pool_size('a') == 3
    assert await pool.get_endpoint_pool_size('a', acquired=True) == 2
    assert await sizes('b') == [1, 1, 0]
    assert await sizes('never seen') == [0, 0, 0]
    assert pool.get_size() == 4
    await front.give_back(pool, [*a, *b])
