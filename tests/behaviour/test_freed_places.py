"""Guarantees 4 and 16 (docs/guarantees.md): whatever becomes free serves a waiter, if need be one of another
endpoint."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from fronts import Front, Pool, elapsed
from gil import HAS_GIL

from gcp.exceptions import AcquireTimeoutError
from gcp.testing import error, never, ok, slow

Seen = TypeVar('Seen')

LIVES = 8
"""For so many times as long as a connect takes, a connection stays with its endpoint."""
HOLD = 0.002
"""For how long an actor of `Overload` holds a connection, seconds."""
CONNECT = 0.02
"""What a connect takes there, seconds."""


async def past_its_price(front: Front, pool: Pool) -> None:
    """Wait until all connections may go to other endpoints. On a busy machine a fake may take long to connect."""
    await front.sleep(0.05 + LIVES * pool.stats().hook_time['create'].sum)


Way = Callable[[Front, Pool, Any, Callable[[], Awaitable[Any]]], Awaitable[None]]


async def release(front: Front, pool: Pool, manager: Any, line_up: Callable[[], Awaitable[Any]]) -> None:
    connection = await pool.acquire('a')
    await line_up()
    await pool.release(connection, 'a')


async def poisoned_release(front: Front, pool: Pool, manager: Any, line_up: Callable[[], Awaitable[Any]]) -> None:
    connection = await pool.acquire('a')
    await line_up()
    manager.on_release.does(error(OSError('broken')), ok())
    with pytest.raises(OSError):
        await pool.release(connection, 'a')


async def failed_creation(front: Front, pool: Pool, manager: Any, line_up: Callable[[], Awaitable[Any]]) -> None:
    manager.create.does(never(then=error(ConnectionRefusedError())), ok())
    creator = front.spawn(pool.acquire('a'))
    await front.until(lambda: manager.create.running)
    await line_up()
    manager.create.unblock()
    with pytest.raises(ConnectionRefusedError):
        await creator


async def late_creation(front: Front, pool: Pool, manager: Any, line_up: Callable[[], Awaitable[Any]]) -> None:
    manager.create.does(slow(1.5), ok())
    creator = front.spawn(pool.acquire('a', timeout=1))
    await front.until(lambda: manager.create.running)
    await line_up()
    with pytest.raises(AcquireTimeoutError):
        await creator


async def cancelled_creation(front: Front, pool: Pool, manager: Any, line_up: Callable[[], Awaitable[Any]]) -> None:
    if front.name != 'asyncio':
        pytest.skip('threads cannot be cancelled')
    manager.create.does(never(), ok())
    creator: Any = front.spawn(pool.acquire('a'))
    await front.until(lambda: manager.create.running)
    await line_up()
    creator.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creator


async def failed_on_acquire(front: Front, pool: Pool, manager: Any, line_up: Callable[[], Awaitable[Any]]) -> None:
    manager.on_acquire.does(never(then=error(OSError('no'))), ok())
    acquirer = front.spawn(pool.acquire('a'))
    await front.until(lambda: manager.on_acquire.running)
    await line_up()
    manager.on_acquire.unblock()
    with pytest.raises(OSError):
        await acquirer


@pytest.mark.parametrize('waits_for', ['a', 'b'], ids=['same endpoint', 'other endpoint'])
@pytest.mark.parametrize(
    'way',
    [release, poisoned_release, failed_creation, late_creation, cancelled_creation, failed_on_acquire],
    ids=lambda way: way.__name__,
)
async def test_it_serves_a_waiter(front: Front, way: Way, waits_for: str) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=1, total_max_size=1)
    waiters: list[Any] = []

    async def line_up() -> None:
        waiters.extend(await front.line_up(pool, waits_for, 1))

    await way(front, pool, manager, line_up)
    connection = await waiters[0]
    assert connection.endpoint == waits_for
    await pool.release(connection, waits_for)
    manager.check(total_max_size=1)


async def test_every_failed_creation_lets_the_next_waiter_try(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never(then=error(ConnectionRefusedError())), *[error(ConnectionRefusedError())] * 4, ok())
    pool = front.pool(manager, max_size=1)
    actors: list[Any] = [front.spawn(pool.acquire('db'))]
    await front.until(lambda: manager.create.running)
    actors += await front.line_up(pool, 'db', 5)
    manager.create.unblock()
    for actor in actors[:5]:
        with pytest.raises(ConnectionRefusedError):
            await actor
    await pool.release(await actors[5], 'db')
    assert len(manager.create.calls) == 6


async def test_an_idle_connection_of_another_endpoint_is_evicted_at_once(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=2, total_max_size=2, min_idle=1)
    await front.give_back(pool, await front.fill(pool, 'a', 2))
    async with elapsed():
        connection = await pool.acquire('b', timeout=0)
    assert pool.stats().closed['evicted'] == 1
    await pool.release(connection, 'b')


async def test_extras_are_evicted_before_bases_and_the_longest_idle_first(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=3, total_max_size=5, min_idle=1)
    a1, a2, a3 = await front.fill(pool, 'a', 3)
    b1, b2 = await front.fill(pool, 'b', 2)
    await front.give_back(pool, [a2, b2, a1, b1, a3])  # a2, b2 and a1 become extras, b1 and a3 bases, in this order
    for endpoint in 'cdefg':
        await pool.acquire(endpoint)
    assert manager.disposed == [a2, b2, a1, b1, a3]
    await front.give_back(pool, manager.live)


async def test_total_cap_2_both_held_by_a_and_a_waiter_on_b(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=2, total_max_size=2)
    held = await front.fill(pool, 'a', 2)
    [waiter] = await front.line_up(pool, 'b', 1)
    await pool.release(held.pop(), 'a')
    async with elapsed():
        held.append(await waiter)
    await front.give_back(pool, held)


async def test_a_released_connection_goes_to_its_own_line_first(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1, total_max_size=1)
    connection = await pool.acquire('a')
    [own] = await front.line_up(pool, 'a', 1)
    [other] = await front.line_up(pool, 'b', 1)
    await past_its_price(front, pool)
    await pool.release(connection, 'a')
    assert await own is connection
    assert not other.done()
    await pool.release(connection, 'a')
    await pool.release(await other, 'b')


async def test_it_goes_to_an_endpoint_that_has_none_and_waits_longer(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1, total_max_size=1)
    connection = await pool.acquire('a')
    [other] = await front.line_up(pool, 'b', 1)
    [own] = await front.line_up(pool, 'a', 1)
    await past_its_price(front, pool)
    await pool.release(connection, 'a')
    await pool.release(await other, 'b')
    await pool.release(await own, 'a')


async def test_it_goes_to_another_endpoint_to_even_out_holdings(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=4, total_max_size=4)
    held_a, held_b = await front.fill(pool, 'a', 3), await front.fill(pool, 'b', 1)
    [own] = await front.line_up(pool, 'a', 1)
    [other] = await front.line_up(pool, 'b', 1)
    await past_its_price(front, pool)
    await pool.release(held_a.pop(), 'a')  # 3 and 1, though a's waiter is the older
    held_b.append(await other)
    [other] = await front.line_up(pool, 'b', 1)
    await past_its_price(front, pool)
    await pool.release(held_a.pop(), 'a')  # 2 and 2
    held_a.append(await own)
    assert not other.done()
    await pool.release(held_a.pop(), 'a')  # nobody of a waits any more
    await front.give_back(pool, [await other, *held_a, *held_b])


async def test_the_oldest_waiter_among_equals_is_served(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=3, total_max_size=3)
    held = await front.fill(pool, 'a', 3)
    waiters = [(await front.line_up(pool, endpoint, 1))[0] for endpoint in 'cb']
    await pool.release(held.pop(), 'a')
    first = await waiters[0]
    assert not waiters[1].done()
    await pool.release(held.pop(), 'a')
    await front.give_back(pool, [first, await waiters[1], *held])


async def test_a_young_connection_is_not_given_away_for_a_slow_one(front: Front) -> None:
    manager = front.manager()
    manager.create.does(slow(0.05), endpoint='b')
    pool = front.pool(manager, max_size=5, total_max_size=5)
    began = time.monotonic()
    held_b = await front.fill(pool, 'b', 1)
    slowly = time.monotonic() - began  # 50 ms, or more where the machine is busy
    held_a = await front.fill(pool, 'a', 4)
    born = time.monotonic()
    first, second = await front.line_up(pool, 'a', 2)
    [other] = await front.line_up(pool, 'b', 1)
    await pool.release(held_a.pop(), 'a')  # evens out 4 and 1, but has lived less than 8 times as long
    if time.monotonic() - born < 0.3:
        held_a.append(await first)
        assert not other.done()
    await front.sleep(max(0.0, born + 8 * slowly + 0.3 - time.monotonic()))
    await pool.release(held_a.pop(0), 'a')
    held_b.append(await other)
    await pool.release(held_a.pop(), 'a')
    held_a.append(await second)
    await front.give_back(pool, [*held_a, *held_b])


class Overload:
    """Actors that use connections of some endpoints all the time; counts what each endpoint got."""

    def __init__(self, front: Front, pool: Pool, endpoints: int, actors: int) -> None:
        self.front, self.pool = front, pool
        self.served: Counter[int] = Counter()
        self.used = 0.0
        self.late: list[float] = []  # how much later than it wished an actor ran on, seconds
        self._actors = [endpoint for endpoint in range(endpoints) for _ in range(actors)]
        self._runs = True

    async def __aenter__(self) -> Overload:
        self._running = [self.front.spawn(self._act(endpoint)) for endpoint in self._actors]
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._runs = False
        for actor in self._running:
            await actor

    async def _act(self, endpoint: int) -> None:
        while self._runs:
            async with self.pool.connection(endpoint):
                began = time.monotonic()
                await self.front.sleep(HOLD)
                self.served[endpoint] += 1
                self.used += time.monotonic() - began
                self.late.append(time.monotonic() - began - HOLD)

    @property
    def was_disturbed(self) -> bool:
        """Whether the machine was too busy to judge the pool. An actor that waits for the processor does not stand in
        line, so connections go to endpoints that seem to need them more; and where connects take long, they stay with
        their endpoints for longer."""
        connects = self.pool.stats().hook_time['create']
        return connects.sum > 1.25 * CONNECT * connects.count or statistics.quantiles(self.late, n=20)[-1] > HOLD / 2


async def overload(
    front: Front, cap: int, endpoints: int, actors: int, judge: Callable[[Overload], Awaitable[None]]
) -> None:
    """Overload a pool until it passes once. A busy machine spoils some rounds, a pool that is not fair spoils all.

    :param cap: the pool's, in total and of each endpoint
    :param judge: looks on, and asserts
    """
    failure: AssertionError | None = None
    for _ in range(6):
        manager = front.manager(bare=True)
        manager.create.does(slow(CONNECT))
        pool = front.pool(manager, max_size=cap, total_max_size=cap)
        async with Overload(front, pool, endpoints, actors) as load:
            try:
                await judge(load)
            except AssertionError as error:
                failure = error if not load.was_disturbed else failure
            else:
                return
    if failure is not None:
        raise failure
    pytest.skip('the machine is too busy: actors wait for the processor')


async def test_5_endpoints_overloading_a_total_cap_of_10_share_it(front: Front) -> None:
    async def judge(load: Overload) -> None:
        await front.sleep(1)
        before, evicted = Counter(load.served), load.pool.stats().closed['evicted']
        await front.sleep(1.5)
        served, evicted = load.served - before, load.pool.stats().closed['evicted'] - evicted
        equal = served.total() / 5
        assert all(0.8 * equal <= served[endpoint] <= 1.2 * equal for endpoint in range(5)), served
        # without the GIL, actors wait for the processor more often, and are not in line then
        assert evicted <= (0.01 if HAS_GIL else 0.03) * served.total()

    await overload(front, 10, endpoints=5, actors=6, judge=judge)


async def test_20_endpoints_overloading_a_total_cap_of_5_do_not_starve_or_thrash(front: Front) -> None:
    async def judge(load: Overload) -> None:
        await front.sleep(4)
        served, used, created = Counter(load.served), load.used, load.pool.stats().created
        assert min(served[endpoint] for endpoint in range(20)) >= 0.5 * served.total() / 20, served
        assert used >= 0.8 * (used + CONNECT * created), (used, created)

    await overload(front, 5, endpoints=20, actors=2, judge=judge)
