"""Guarantees 1, 4 and 12 (docs/guarantees.md): limits change while a pool is in use. They hold at once, caps are exact
at each moment, and no acquire waits while there is room."""

from __future__ import annotations

import asyncio
import math
import random
import threading
from collections import Counter
from typing import Any

import pytest
from fronts import PATIENCE, Front

from gcp import AcquireTimeoutError, EndpointLimits, Retry, TooManyWaitersError
from gcp.asyncio import ConnectionPool as AsyncConnectionPool
from gcp.options import FIXED, NAMES
from gcp.testing import AsyncFakeManager, calling, never, slow


async def test_waiters_are_served_at_once_where_a_cap_has_grown(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1)
    held = await front.fill(pool, 'db', 1)
    waiters = await front.line_up(pool, 'db', 3)
    pool.reconfigure(max_size=3)
    held += [await waiter for waiter in waiters[:2]]
    assert pool.stats().waiting == 1
    pool.reconfigure(max_size=4)
    held.append(await waiters[2])
    await front.give_back(pool, held)


async def test_a_lower_cap_closes_no_more_than_it_must(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=6)
    held = await front.fill(pool, 'db', 6)
    await front.give_back(pool, held[3:])
    pool.reconfigure(max_size=4)
    await front.until(lambda: pool.get_size() == 4)
    assert (pool.stats().used, pool.stats().idle, pool.stats().closed['evicted']) == (3, 1, 2)
    pool.reconfigure(max_size=2)
    await front.until(lambda: pool.get_size() == 3)
    assert (pool.stats().used, pool.stats().idle) == (3, 0)
    await front.give_back(pool, held[:3])
    await front.until(lambda: pool.get_size() == 2)
    assert pool.stats().idle == 2 and pool.stats().closed['evicted'] == 4


async def test_a_disposal_that_hangs_does_not_hold_up_a_change(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=3)
    await front.give_back(pool, await front.fill(pool, 'db', 3))
    manager.dispose.does(never())
    pool.reconfigure(max_size=1)
    await front.until(lambda: manager.dispose.running)
    async with pool.connection('db'):
        with pytest.raises(AcquireTimeoutError):
            await pool.acquire('db', timeout=0.01)
    manager.unblock()
    await front.until(lambda: pool.get_size() == 1)


async def test_properties_statistics_and_errors_show_the_new_values(front: Front) -> None:
    pool: Any = front.pool(front.manager(), limits={'own': EndpointLimits(max_size=2)})
    changes = {'max_size': 3, 'total_max_size': 7, 'min_idle': 2, 'idle_timeout': 5, 'max_lifetime': 50}
    raw = front.pools[0]
    async with pool.connection('db'), pool.connection('own'):
        pool.reconfigure(**changes, max_waiting=0)
        assert {name: getattr(raw, name) for name in changes} == changes
        endpoints = pool.stats().endpoints
        assert endpoints['db'].limits == EndpointLimits(3, 2, 5.0, 50.0, 0, 1.0, 0)
        assert endpoints['own'].limits == EndpointLimits(2, 2, 5.0, 50.0, 0, 1.0, 0)
        pool.reconfigure(max_size=1, min_idle=1)
        with pytest.raises(TooManyWaitersError, match="max_size=1 of endpoint 'db'"):
            await pool.acquire('db')
        pool.reconfigure(max_waiting=None, acquire_timeout=0.01)
        with pytest.raises(AcquireTimeoutError, match=r'within 0.01 s.*max_size=1 '):
            await pool.acquire('db')


async def test_defaults_adapt_as_when_a_pool_is_built(front: Front) -> None:
    pool: Any = front.pool(front.manager())
    raw = front.pools[0]
    pool.reconfigure(max_size=200)
    assert (raw.max_size, raw.total_max_size) == (200, 200)
    pool.reconfigure(max_size=5)
    assert (raw.max_size, raw.total_max_size) == (5, 100)
    pool.reconfigure(idle_timeout=None, max_lifetime=None)
    assert (raw.idle_timeout, raw.max_lifetime) == (math.inf, math.inf)


CAN_CHANGE: dict[str, Any] = {
    'acquire_timeout': 3,
    'dispose_batch_size': 2,
    'dispose_timeout': 4,
    'min_idle': 2,
    'max_size': 9,
    'idle_timeout': 50,
    'max_lifetime': 500,
    'total_max_size': 90,
    'lifetime_jitter': 0.1,
    'leak_threshold': 7,
    'max_uses': 1000,
    'keepalive_interval': 30,
    'check_interval': 1,
    'limits': {'db': EndpointLimits(max_size=3)},
    'refill': True,
    'connect_workers': 0,
    'connect_timeout': 5,
    'max_connecting': 2,
    'max_connecting_total': 4,
    'connect_retry': Retry(),
    'breaker_threshold': 3,
    'max_waiting': 8,
    'admission': 'deadline',
    'reserve': 1,
    'reserve_timeout': 2.0,
}


def test_each_argument_can_change_or_says_that_it_cannot(front: Front) -> None:
    assert {*CAN_CHANGE} | {*FIXED} == {*NAMES}
    pool = front.pool_class(front.manager())
    for name, value in CAN_CHANGE.items():
        pool.reconfigure(**{name: value})
        assert getattr(pool._options, name) == value
    pool.reconfigure(**CAN_CHANGE)
    for name in FIXED:
        with pytest.raises(TypeError, match=f'{name} cannot be changed'):
            pool.reconfigure(**{name: None})


@pytest.mark.parametrize(
    'changes, kind, message',
    [
        ({'max_size': 0}, ValueError, 'max_size must be at least 1, not 0'),
        ({'max_size': '3'}, TypeError, "max_size .* '3'"),
        ({'max_size': 12}, ValueError, 'max_size=12 contradicts total_max_size=11'),
        ({'max_size': 3, 'min_idle': 4}, ValueError, 'min_idle=4 contradicts max_size=3'),
        ({'idle_timeout': 9, 'max_lifetime': 8}, ValueError, 'idle_timeout=9 contradicts max_lifetime=8'),
        ({'limits': {'db': EndpointLimits(max_size=12)}}, ValueError, r"limits\['db'\]\.max_size=12 contradicts"),
        ({'total_max_size': 5}, ValueError, r"limits\['own'\]\.max_size=6 contradicts total_max_size=5"),
        ({'maxsize': 3}, TypeError, "reconfigure got an unexpected argument 'maxsize'.*max_size"),
        ({'max_size': 4, 'name': 'other'}, TypeError, 'name cannot be changed'),
        ({'keepalive_interval': 0}, ValueError, 'keepalive_interval'),
    ],
    ids=str,
)
async def test_a_wrong_change_changes_nothing(
    front: Front, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    pool: Any = front.pool(front.manager(), total_max_size=11, limits={'own': EndpointLimits(max_size=6)})
    raw = front.pools[0]
    async with pool.connection('db'):
        before, options = pool.stats().endpoints['db'].limits, raw._options
        with pytest.raises(kind, match=message):
            pool.reconfigure(acquire_timeout=1, **changes)
        assert pool.stats().endpoints['db'].limits == before
        assert raw._options is options


async def test_the_function_is_asked_again(front: Front) -> None:
    size = [2]
    pool = front.pool(front.manager(), limits=lambda endpoint: EndpointLimits(max_size=size[0]))
    held = await front.fill(pool, 'db', 2)
    [waiter] = await front.line_up(pool, 'db', 1)
    size[0] = 3
    pool.reconfigure(max_size=8)
    held.append(await waiter)
    pool.reconfigure(limits=lambda endpoint: 1 / 0, max_size=4)
    assert pool.stats().endpoints['db'].limits.max_size == 4
    assert pool.stats().limits_errors == 1
    await front.give_back(pool, held)


async def test_a_collector_starts_where_it_is_needed_from_now_on(front: Front) -> None:
    pool = front.pool(front.manager(), min_idle=0)
    await front.give_back(pool, await front.fill(pool, 'db', 2))
    pool.reconfigure(keepalive_interval=1000, idle_timeout=0.01)
    await front.until(lambda: pool.get_size() == 0)


async def test_of_two_threads_that_need_a_collector_one_starts_it(front: Front) -> None:
    """The second reconfigures the pool while the first makes the collector."""
    pool: Any = front.pool(front.manager())
    raw: Any = getattr(pool, 'raw', pool)
    make, made = raw._make_collector, []

    def make_slowly(*given: Any) -> Any:
        if not made:
            made.append(1)
            pool.reconfigure(keepalive_interval=900)
        made.append(2)
        return make(*given)

    raw._make_collector = make_slowly
    pool.reconfigure(keepalive_interval=1000)
    assert made == [1, 2]
    assert raw._collector is not None


async def test_releases_go_on_collecting_where_no_collector_can_be_made(front: Front) -> None:
    manager = front.manager()
    pool: Any = front.pool(manager, min_idle=0, idle_timeout=0.01)
    raw: Any = getattr(pool, 'raw', pool)

    def fail(*given: Any) -> Any:
        raise MemoryError

    make, raw._make_collector = raw._make_collector, fail
    async with pool.connection('a'):
        pass
    with pytest.raises(MemoryError):
        pool.reconfigure(keepalive_interval=1000)
    await front.sleep(0.02)
    async with pool.connection('b'):
        pass
    await front.until(lambda: len(manager.disposed) == 1)
    raw._make_collector = make
    pool.reconfigure(keepalive_interval=900)
    assert raw._collector is not None


async def test_a_limit_of_disposals_holds_from_now_on(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=2)
    held = await front.fill(pool, 'db', 2)
    manager.dispose.does(never())
    pool.reconfigure(dispose_timeout=0.02, max_size=1)
    await front.give_back(pool, held)
    await front.until(lambda: pool.get_size() == 1)
    manager.unblock()


@pytest.mark.parametrize('background', [False, True])
def test_limits_may_change_where_no_event_loop_runs(background: bool) -> None:
    pool = AsyncConnectionPool(AsyncFakeManager(), background_collector=background)
    pool.reconfigure(max_size=8)
    loop = asyncio.new_event_loop()

    async def fill() -> None:
        for conn in [await pool.acquire('db') for _ in range(4)]:
            await pool.release(conn, 'db')

    async def see(size: int) -> None:
        while pool.get_size() > size:
            await asyncio.sleep(0)

    loop.run_until_complete(fill())
    pool.reconfigure(max_size=3)
    loop.run_until_complete(see(3))
    loop.close()
    pool.reconfigure(max_size=1)
    assert pool.max_size == 1


@pytest.mark.parametrize('connecting', [False, True], ids=['callers connect', 'all limits'])
async def test_up_and_down_under_load(front: Front, connecting: bool) -> None:
    """Change limits a thousand times while eight users work. A cap that was lowered may be exceeded only by what there
    was before: no connection is created beyond the caps that hold."""
    manager = front.manager()
    manager.create.does(slow(0.0001))
    pool: Any = front.pool(manager, max_size=4, total_max_size=8)
    raw = front.pools[0]
    stopped: list[bool] = []
    errors: list[BaseException] = []

    async def work(actor: int) -> None:
        random_ = random.Random(actor)
        while not stopped:
            try:
                async with pool.connection(random_.choice('abcd'), timeout=20) as connection:
                    with manager.hold(connection):
                        await front.sleep(0.0001)
            except BaseException as error:
                errors.append(error)
                raise

    actors = [front.spawn(work(actor)) for actor in range(8)]
    random_ = random.Random(1)
    for _ in range(1000):
        changes = some_limits(random_) | (some_limits_of_connects(random_) if connecting else {})
        pool.reconfigure(**changes)
        await front.sleep(0)
        look(raw, changes, exact=not connecting)
    stopped.append(True)
    for actor in actors:
        await actor
    assert not errors
    changes = {**some_limits(random_), 'max_size': 2, 'total_max_size': 3, 'limits': None, 'min_idle': 1}
    pool.reconfigure(**changes)
    await front.until(lambda: not pool.stats().disposing)
    assert pool.get_size() <= 3
    assert all(endpoint.size <= 2 for endpoint in pool.stats().endpoints.values())


@pytest.mark.parametrize('changes', [100, pytest.param(1000, marks=pytest.mark.nightly)])
async def test_nothing_is_closed_that_need_not_be(front: Front, changes: int) -> None:
    """Change the caps of four endpoints again and again, up and down, while eight users work. Each endpoint is full
    before a change: as many connections are closed as are beyond the new caps, and none because of other limits."""
    manager = front.manager()
    pool: Any = front.pool(manager, total_max_size=24)
    caps = allowed = dict.fromkeys('abcd', 1)
    existing: Counter[str] = Counter()
    begun: list[tuple[str, int, int]] = []
    stopped: list[bool] = []

    lock = threading.Lock()

    def create(endpoint: str, _: object) -> None:
        with lock:
            existing[endpoint] += 1
            begun.append((endpoint, existing[endpoint], allowed[endpoint]))

    def dispose(endpoint: str, _: object) -> None:
        with lock:
            existing[endpoint] -= 1

    async def work(actor: int) -> None:
        random_ = random.Random(actor)
        while not stopped:
            async with pool.connection(random_.choice('abcd'), timeout=PATIENCE) as connection:
                with manager.hold(connection):
                    await front.sleep(0.0001)

    def is_settled() -> bool:
        return all(each.size <= caps[name] for name, each in pool.stats().endpoints.items())

    manager.create.does(calling(create))
    manager.dispose.does(calling(dispose))
    pool.reconfigure(limits=lambda endpoint: EndpointLimits(max_size=caps[endpoint]))
    actors = [front.spawn(work(actor)) for actor in range(8)]
    random_ = random.Random(1)
    needless = 0
    for _ in range(changes):
        for endpoint, cap in caps.items():
            await pool.warm_up(endpoint, size=cap)
        old, before = caps, sum(pool.stats().closed.values())
        new = {name: random_.randint(1, 6) for name in caps}
        allowed = {name: max(old[name], new[name]) for name in caps}
        caps = new
        pool.reconfigure(max_size=random_.randint(1, 6), **some_limits_of_connects(random_) | {'refill': False})
        await front.until(is_settled)
        beyond = sum(max(0, old[name] - new[name]) for name in caps)
        needless += sum(pool.stats().closed.values()) - before - beyond
        assert not needless, (old, new, pool.stats())
    stopped.append(True)
    for actor in actors:
        await actor
    assert [(endpoint, number) for endpoint, number, cap in begun if number > cap] == []


def some_limits(random_: random.Random) -> dict[str, Any]:
    max_size = random_.randint(1, 5)
    return {
        'max_size': max_size,
        'total_max_size': random_.randint(max_size, 9),
        'min_idle': random_.randint(0, max_size),
        'idle_timeout': random_.choice([0, 0.001, 60, None]),
        'max_lifetime': random_.choice([60, None]),
        'lifetime_jitter': random_.random(),
        'max_uses': random_.choice([None, 1, 5]),
        'check_interval': random_.choice([None, 10]),
        'max_waiting': None,
        'limits': random_.choice(
            [None, {'a': EndpointLimits(max_size=1)}, {'b': EndpointLimits(max_size=max_size)}.get]
        ),
        'acquire_timeout': random_.choice([None, 20]),
        'leak_threshold': random_.choice([None, 1]),
        'dispose_batch_size': random_.choice([0, 3]),
    }


def some_limits_of_connects(random_: random.Random) -> dict[str, Any]:
    return {
        'max_connecting': random_.choice([None, 1, 2]),
        'max_connecting_total': random_.choice([None, 2]),
        'connect_workers': random_.choice([0, 1, 3]),
        'connect_timeout': random_.choice([None, 20]),
        'connect_retry': random_.choice([None, Retry()]),
        'breaker_threshold': random_.choice([None, 3]),
        'keepalive_interval': random_.choice([None, 0.001]),
        'refill': random_.choice([False, True]),
        'admission': None,
    }


def look(pool: Any, changes: dict[str, Any], exact: bool) -> None:
    """See that no acquire waits while there is room, and that nothing is idle beyond a cap.

    :param exact: acquires wait for caps only, and what is shown as idle is not being checked
    """
    stats = pool.stats()
    live = stats.idle + stats.used + stats.creating
    assert not exact or live <= changes['total_max_size'] or not stats.idle
    for name, each in stats.endpoints.items():
        cap = each.limits.max_size
        assert cap == 1 if name == 'a' and isinstance(changes['limits'], dict) else cap == changes['max_size']
        assert not exact or each.size - each.disposing <= cap or not each.idle
        if each.waiting and exact:
            assert not each.idle and (each.size >= cap or stats.size >= changes['total_max_size'])
