"""Guarantee 22 (docs/guarantees.md): endpoints that are taken out of use by `retire`."""

from __future__ import annotations

import pytest
from fronts import Front, elapsed
from gil import collect

from gcp.exceptions import ConnectionNotAcquiredError, ConnectionPoolNotFound, EndpointRetiredError
from gcp.testing import error, never, ok


async def test_idle_connections_go_at_once_and_used_ones_when_they_are_released(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    held, other = await pool.acquire('a'), await pool.acquire('a')
    await pool.release(other, 'a')
    retiring = front.spawn(pool.retire('a'))
    await front.until(lambda: len(manager.disposed) == 1)
    assert not retiring.done()
    await pool.release(held, 'a')
    await retiring
    assert pool.stats().closed['retired'] == 2
    assert pool.stats().endpoints == {}


async def test_newcomers_and_waiters_are_told(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1)
    held = await pool.acquire('a')
    [waiter] = await front.line_up(pool, 'a', 1)
    retiring = front.spawn(pool.retire('a'))
    with pytest.raises(EndpointRetiredError) as caught:
        await waiter
    assert caught.value.endpoint == 'a'
    for attempt in (pool.acquire('a'), pool.warm_up('a')):
        with pytest.raises(EndpointRetiredError, match="'a' is being retired"):
            await attempt
    async with pool.connection('b'):
        pass
    await pool.release(held, 'a')
    await retiring


async def test_it_may_be_used_again(front: Front) -> None:
    pool = front.pool(front.manager())
    async with pool.connection('a'):
        pass
    await pool.retire('a')
    async with pool.connection('a'):
        pass
    assert pool.stats().endpoints['a'].idle == 1


async def test_releasing_what_was_taken_by_force_does_nothing(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    held = await pool.acquire('a')
    async with pool.connection('a'):
        await pool.retire('a', 0)
        await front.until(lambda: len(manager.disposed) == 2)
    await pool.release(held, 'a')
    with pytest.raises(ConnectionNotAcquiredError):
        await pool.release(held, 'a')  # a second time is misuse
    assert pool.stats().size == 0


async def test_at_the_time_limit_connections_are_taken_by_force(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    held = await pool.acquire('a')
    async with elapsed(least=0.05):
        await pool.retire('a', 0.05)
    assert manager.disposed == [held]
    assert pool.stats().endpoints == {}
    assert pool.stats().closed['retired'] == 1
    async with pool.connection('a'):
        pass


async def test_a_creation_in_progress(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never(), ok())
    pool = front.pool(manager)
    creating = front.spawn(pool.acquire('a'))
    await front.until(lambda: manager.create.running)
    retiring = front.spawn(pool.retire('a'))
    await front.sleep(0.01)
    assert not retiring.done()
    manager.create.unblock()
    with pytest.raises(EndpointRetiredError):
        await creating
    await retiring
    assert manager.live == []


async def test_an_endpoint_that_is_not_there(front: Front) -> None:
    pool = front.pool(front.manager())
    with pytest.raises(ConnectionPoolNotFound, match="there is no endpoint 'a'"):
        await pool.retire('a')
    with pytest.raises(TypeError, match='hashable'):
        await pool.retire([])
    async with pool.connection('a'):
        pass
    with pytest.raises(TypeError, match='timeout'):
        await pool.retire('a', timeout='soon')  # type: ignore[arg-type]
    assert pool.stats().endpoints['a'].idle == 1


async def test_twice_at_a_time(front: Front) -> None:
    pool = front.pool(front.manager())
    held = await pool.acquire('a')
    both = [front.spawn(pool.retire('a')), front.spawn(pool.retire('a'))]
    await front.sleep(0.01)
    await pool.release(held, 'a')
    for retiring in both:
        await retiring
    async with pool.connection('a'):
        pass


async def test_a_lease_that_is_dropped_meanwhile(front: Front) -> None:
    pool = front.pool(front.manager())
    lease = pool.connection('a')
    await lease.__aenter__()
    retiring = front.spawn(pool.retire('a', timeout=60))
    await front.sleep(0.01)
    async with elapsed():
        del lease
        collect()
        await retiring


async def test_a_dispose_that_raises(front: Front) -> None:
    manager = front.manager()
    manager.dispose.does(error(OSError()))
    pool = front.pool(manager)
    async with pool.connection('a'):
        pass
    await pool.retire('a')
    assert pool.get_size() == 0


async def test_a_close_meanwhile(front: Front) -> None:
    pool = front.pool(front.manager())
    held = await pool.acquire('a')
    retiring = front.spawn(pool.retire('a'))
    await front.sleep(0.01)
    closing = front.spawn(pool.close())
    await pool.release(held, 'a')
    await closing
    await retiring


async def test_its_places_serve_others(front: Front) -> None:
    pool = front.pool(front.manager(), total_max_size=1)
    held = await pool.acquire('a')
    [waiter] = await front.line_up(pool, 'b', 1)
    retiring = front.spawn(pool.retire('a'))
    await front.sleep(0.01)
    await pool.release(held, 'a')
    await pool.release(await waiter, 'b')
    await retiring
