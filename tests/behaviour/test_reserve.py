"""Guarantee 30 (docs/guarantees.md): places that are only for acquires with a priority."""

from __future__ import annotations

from typing import Any

import pytest
from fronts import Front

from gcp import EndpointLimits
from gcp.exceptions import AcquireTimeoutError
from gcp.testing import dead, error, never, ok

each_number_of_workers = pytest.mark.parametrize('workers', [0, 2])


async def refused(pool: Any, endpoint: str = 'a', **options: Any) -> AcquireTimeoutError:
    """Acquire in vain; return the error."""
    with pytest.raises(AcquireTimeoutError) as caught:
        await pool.acquire(endpoint, 0, **options)
    return caught.value


async def give_back(pool: Any, *conns: Any) -> None:
    for conn in conns:
        await pool.release(conn, 'a')


@each_number_of_workers
@pytest.mark.parametrize('bare', [False, True], ids=['hooks', 'bare'])
async def test_the_last_places_are_for_acquires_with_a_priority(front: Front, workers: int, bare: bool) -> None:
    pool: Any = front.pool(front.manager(bare=bare), max_size=3, reserve=1, connect_workers=workers)
    first, second = await pool.acquire('a'), await pool.acquire('a', 5)
    await refused(pool)
    await refused(pool, priority=-1)
    check = await pool.acquire('a', 5, priority=1)
    assert (await refused(pool, priority=1)).blocked_by == 'endpoint cap'
    await give_back(pool, first, second, check)
    assert pool.stats().endpoints['a'].idle == 3
    first, second = await pool.acquire('a', 0), await pool.acquire('a', 0)
    await refused(pool)  # the third is idle
    assert pool.stats().endpoints['a'].idle == 1
    check = await pool.acquire('a', 0, priority=1)
    await give_back(pool, first, second, check)


async def test_what_a_preferred_acquire_holds_comes_off_the_reserve(front: Front) -> None:
    pool: Any = front.pool(front.manager(), max_size=3, reserve=1)
    check = await pool.acquire('a', priority=1)
    first, second = await pool.acquire('a', 0), await pool.acquire('a', 0)
    await give_back(pool, check)
    await refused(pool)
    check = await pool.acquire('a', 0, priority=1)
    await give_back(pool, first)
    first = await pool.acquire('a', 0)
    await give_back(pool, check, first, second)


@each_number_of_workers
async def test_connects_of_preferred_acquires_take_no_place_of_the_others(front: Front, workers: int) -> None:
    manager = front.manager()
    manager.create.does(never(), ok())
    pool: Any = front.pool(manager, max_size=2, reserve=1, connect_workers=workers)
    check = front.spawn(pool.acquire('a', priority=1))
    await front.until(lambda: manager.create.running == 1)
    other = front.spawn(pool.acquire('a'))
    await front.until(lambda: len(manager.create.calls) == 2)
    manager.create.unblock()
    await give_back(pool, await other, await check)


async def test_a_released_connection_stays_idle_for_the_reserve(front: Front) -> None:
    pool: Any = front.pool(front.manager(), max_size=2, reserve=1)
    held = await pool.acquire('a')
    check = await pool.acquire('a', priority=1)
    [waiter] = await front.line_up(pool, 'a', 1)
    await give_back(pool, check)
    assert (pool.stats().endpoints['a'].idle, pool.stats().waiting) == (1, 1)
    check = await pool.acquire('a', 0, priority=1)  # past the one that waits
    await give_back(pool, held)
    await give_back(pool, await waiter, check)


async def test_an_acquire_that_has_waited_long_enough_borrows_a_place(front: Front) -> None:
    pool: Any = front.pool(front.manager(), max_size=2, reserve=1, reserve_timeout=0.02)
    held = await pool.acquire('a')
    borrowed = await pool.acquire('a', 30)  # a new connection
    [waiter] = await front.line_up(pool, 'a', 1)
    await give_back(pool, borrowed)
    borrowed = await waiter
    await give_back(pool, borrowed)
    borrowed = await pool.acquire('a', 30)  # the idle one
    assert pool.stats().endpoints['a'].used == 2
    await give_back(pool, borrowed, held)
    held = await pool.acquire('a', 0)
    await refused(pool)
    await give_back(pool, held)


async def test_a_place_is_not_borrowed_before_its_time(front: Front) -> None:
    pool: Any = front.pool(front.manager(), max_size=2, reserve=1, reserve_timeout=None)
    held = await pool.acquire('a')
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('a', 0.05)
    pool.reconfigure(reserve_timeout=3600)
    waiters = await front.line_up(pool, 'a', 2)
    await front.sleep(0.02)
    assert pool.stats().waiting == 2
    pool.reconfigure(reserve_timeout=0.01)
    await front.waiting(pool, 1)  # those that wait already look again
    await give_back(pool, held)
    for waiter in waiters:
        await give_back(pool, await waiter)


async def test_errors_and_explanations_name_the_reserve(front: Front) -> None:
    pool: Any = front.pool(front.manager(), max_size=2, reserve=1)
    held = await pool.acquire('a')
    trouble = await refused(pool)
    assert (trouble.blocked_by, trouble.limit) == ('reserve', 1)
    assert "reserve=1 of endpoint 'a' (reserve)" in str(trouble)
    found = pool.explain('a')
    assert found.waits and (found.blocked_by, found.cap) == ('reserve', 'reserve=1')
    assert 'reserve=1' in str(found)
    [waiter] = await front.line_up(pool, 'a', 1)
    [waiting] = pool.waiters('a')
    assert (waiting.blocked_by, waiting.cap) == ('reserve', 'reserve=1')
    assert 'reserve=1' in repr(pool)
    check = await pool.acquire('a', priority=1)
    assert pool.explain('a').blocked_by == 'endpoint cap'
    another = front.spawn(pool.acquire('a', priority=1))
    await front.waiting(pool, 2)
    assert [each.blocked_by for each in pool.waiters('a')] == ['endpoint cap', 'endpoint cap']
    await give_back(pool, check)
    await give_back(pool, await another)
    assert pool.explain('a').blocked_by == 'reserve'
    await give_back(pool, held)
    await give_back(pool, await waiter)
    assert not pool.explain('a').waits
    assert pool.stats().endpoints['a'].limits.reserve == 1


async def test_reconfigured_up_and_down(front: Front) -> None:
    pool: Any = front.pool(front.manager(), max_size=3)
    check = await pool.acquire('a', priority=1)
    conns = [await pool.acquire('a'), await pool.acquire('a')]
    await give_back(pool, conns.pop())
    pool.reconfigure(reserve=1)
    conns.append(await pool.acquire('a', 0))  # the check holds what is reserved
    await give_back(pool, check, conns.pop())
    conns.append(await pool.acquire('a', 0))
    await refused(pool)
    waiters = await front.line_up(pool, 'a', 1)
    pool.reconfigure(reserve=0)
    conns.append(await waiters[0])
    pool.reconfigure(reserve=2)
    waiters = await front.line_up(pool, 'a', 1)
    await give_back(pool, *conns)
    await give_back(pool, await waiters[0])
    conn = await pool.acquire('a', 0)
    await refused(pool)
    waiters = await front.line_up(pool, 'a', 1)
    pool.reconfigure(max_size=4)  # there are idle connections
    await give_back(pool, await waiters[0], conn)
    with pytest.raises(ValueError, match='reserve=4 contradicts max_size=4'):
        pool.reconfigure(reserve=4)


async def test_of_one_endpoint(front: Front) -> None:
    limits = {'a': EndpointLimits(reserve=1), 'b': EndpointLimits(max_size=1)}
    pool: Any = front.pool(front.manager(), max_size=2, limits=limits)
    conns = [await pool.acquire('a'), await pool.acquire('c'), await pool.acquire('c', 0)]
    await refused(pool)
    for conn, endpoint in zip(conns, 'acc', strict=True):
        await pool.release(conn, endpoint)
    pool.reconfigure(limits=limits, reserve=1)
    conn = await pool.acquire('b', 0)  # it has one place: it cannot be reserved
    await pool.release(conn, 'b')


@each_number_of_workers
async def test_connects_that_fail_and_connections_that_die(front: Front, workers: int) -> None:
    """Whatever becomes of them, the places of preferred acquires are theirs, and no others."""
    manager = front.manager()
    pool: Any = front.pool(manager, max_size=2, reserve=1, connect_workers=workers)
    for _ in range(3):
        manager.create.does(error(RuntimeError), ok())
        with pytest.raises(RuntimeError):
            await pool.acquire('a', 5, priority=1)
        check = await pool.acquire('a', 5, priority=1)
        await give_back(pool, check)
        manager.check_aliveness.does(dead(), ok())
        check = await pool.acquire('a', 5, priority=1)
        conn = await pool.acquire('a', 5)
        await pool.discard(check, 'a')
        await refused(pool)
        await pool.discard(conn, 'a')
        await front.until(lambda: pool.stats().disposing == 0)


async def test_a_check_that_finds_its_connection_dead_keeps_its_priority(front: Front) -> None:
    manager = front.manager()
    pool: Any = front.pool(manager, max_size=1)
    conn = await pool.acquire('a')
    await give_back(pool, conn)
    held: list[Any] = []
    served: list[int] = []

    async def use(priority: int) -> None:
        held.append(await pool.acquire('a', 30, priority=priority))
        served.append(priority)
        await pool.release(held.pop(), 'a')

    manager.check_aliveness.does(never(dead()), ok())
    manager.create.does(never(), ok())
    urgent = front.spawn(use(1))
    await front.until(lambda: manager.check_aliveness.running == 1)
    low = front.spawn(use(0))
    await front.waiting(pool, 1)
    manager.check_aliveness.unblock()
    await front.until(lambda: manager.create.running == 1)
    another = front.spawn(use(0))
    await front.waiting(pool, 2)
    manager.create.unblock()
    for actor in (urgent, low, another):
        await actor
    assert served == [1, 0, 0]


async def test_suspended_and_resumed(front: Front) -> None:
    pool: Any = front.pool(front.manager(), max_size=2, reserve=1)
    async with pool.connection('a'):
        pass
    await pool.suspend('a')
    waiters = await front.line_up(pool, 'a', 2)
    pool.resume('a')
    await front.waiting(pool, 1)
    assert pool.waiters()[0].blocked_by == 'reserve'
    for waiter in waiters:
        await give_back(pool, await waiter)


async def test_under_a_total_cap(front: Front) -> None:
    pool: Any = front.pool(front.manager(), max_size=3, total_max_size=3, reserve=1)
    async with pool.connection('b'):
        pass
    conns = [await pool.acquire('a'), await pool.acquire('a')]
    await refused(pool)
    assert pool.stats().endpoints['b'].idle == 1  # nothing is evicted for an acquire that may not have the place
    check = await pool.acquire('a', 5, priority=1)
    assert pool.stats().closed['evicted'] == 1
    await give_back(pool, check, *conns)


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        ({'reserve': -1}, ValueError, 'reserve must be at least 0, not -1'),
        ({'reserve': 1.5}, TypeError, 'reserve must be a whole number, not float: 1.5'),
        ({'reserve': None}, TypeError, 'reserve must be a whole number'),
        ({'reserve': True}, TypeError, 'reserve must be a whole number'),
        (
            {'reserve': 2, 'max_size': 2},
            ValueError,
            'reserve=2 contradicts max_size=2: reserve must be less than max_size.*write reserve=1',
        ),
        ({'reserve': 5, 'total_max_size': 4}, ValueError, 'reserve=5 contradicts total_max_size=4'),
        ({'reserve_timeout': -1}, ValueError, 'reserve_timeout must be a number of seconds or None, 0 or more, not -1'),
        ({'reserve_timeout': '5'}, TypeError, 'reserve_timeout must be a number of seconds or None, not str'),
        (
            {'limits': {'a': EndpointLimits(reserve=2, max_size=2)}},
            ValueError,
            r"limits\['a'\].reserve=2 contradicts limits\['a'\].max_size=2",
        ),
        ({'limits': {'a': EndpointLimits(reserve=-1)}}, ValueError, r"limits\['a'\].reserve must be at least 0"),
    ],
)
async def test_bad_values(front: Front, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        front.pool(front.manager(), **options)
    pool = front.pool(front.manager())
    with pytest.raises(error, match=message):
        pool.reconfigure(**options)


async def test_a_cap_that_was_not_given_adapts(front: Front) -> None:
    pool: Any = front.pool(front.manager(), reserve=12)
    conn = await pool.acquire('a', 0)
    await refused(pool)
    await give_back(pool, conn)
