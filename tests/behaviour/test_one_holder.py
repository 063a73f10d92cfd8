"""Guarantee 2 (docs/guarantees.md): a connection has one holder; it is known by identity, then by equality, and need
not be hashable."""

from __future__ import annotations

from typing import Any

import pytest
from fronts import Front

from gcp.testing import calling


@pytest.mark.parametrize('bare', [True, False])
async def test_no_connection_has_two_holders(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager, max_size=3)

    async def work(actor: int) -> None:
        for _ in range(50):
            connection = await pool.acquire('db')
            with manager.hold(connection):
                if actor % 3 == 0:
                    await front.sleep(0)
            await pool.release(connection, 'db')

    for actor in [front.spawn(work(number)) for number in range(16)]:
        await actor
    manager.check(max_size=3)
    assert pool.stats().created <= 3


async def test_a_disposed_connection_is_never_handed_out(front: Front) -> None:
    manager = front.manager(bare=True)
    pool = front.pool(manager, max_size=2, min_idle=0, idle_timeout=0.001)
    for _ in range(20):
        async with pool.connection('db') as connection:
            with manager.hold(connection):
                pass
        await front.sleep(0.001)
    assert len(manager.disposed) >= 10


async def test_connections_need_not_be_hashable(front: Front) -> None:
    manager = front.manager(bare=True)
    manager.create.does(calling(lambda endpoint, _: {'to': endpoint}))
    pool = front.pool(manager)
    connection = await pool.acquire('db')
    await pool.release(connection, 'db')
    assert await pool.acquire('db') is connection
    await pool.release(connection, 'db')


async def test_equal_connections_are_told_apart(front: Front) -> None:
    manager = front.manager(bare=True)
    manager.create.does(calling(lambda endpoint, _: []))
    pool = front.pool(manager, min_idle=2)
    first, second, third = await front.fill(pool, 'db', 3)
    assert first == second and first is not second
    await pool.release(second, 'db')
    assert await pool.acquire('db') is second
    for connection in (first, second, third):
        await pool.release(connection, 'db')
    assert pool.stats().used == 0


async def test_a_rebuilt_tuple_is_recognised(front: Front) -> None:
    manager = front.manager(bare=True)
    streams = iter(range(100))
    manager.create.does(calling(lambda endpoint, _: (next(streams), 'writer')))
    pool = front.pool(manager)
    reader, writer = original = await pool.acquire('db')
    other = await pool.acquire('db')
    await pool.release((reader, writer), 'db')
    assert pool.stats().used == 1
    assert await pool.acquire('db') is original
    await pool.release(original, 'db')
    await pool.release(other, 'db')


class Touchy:
    """A connection that cannot be compared."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError('do not compare me')

    __hash__ = None  # type: ignore[assignment]


async def test_identity_asks_no_eq(front: Front) -> None:
    manager = front.manager(bare=True)
    manager.create.does(calling(lambda endpoint, _: Touchy()))
    pool = front.pool(manager, max_size=2)
    connections: list[Any] = await front.fill(pool, 'db', 2)
    for connection in connections:
        await pool.release(connection, 'db')
    async with pool.connection('db'):
        pass
    assert pool.stats().idle == 2
