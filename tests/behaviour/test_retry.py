"""Guarantee 18 (docs/guarantees.md): connects to an endpoint that fails are tried again, one at a time, and no more
connects are made at once than may be."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Any

import pytest
from fronts import Front
from starvation import SOON

import gcp.asyncio
from gcp.exceptions import AcquireTimeoutError, EndpointUnavailableError
from gcp.limits import Retry
from gcp.testing import AsyncBareFakeManager, calling, never, ok, slow
from gcp.testing import error as raises


def down() -> ConnectionRefusedError:
    return ConnectionRefusedError('connection refused')


async def test_without_retries_a_failed_connect_ends_its_acquire(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    manager.create.does(raises(down()))
    with pytest.raises(ConnectionRefusedError):
        await pool.acquire('db')
    assert len(manager.create.calls) == 1


async def test_a_failed_connect_is_tried_again(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, connect_retry=Retry(0.01, 0.04))
    manager.create.does(raises(down()), raises(down()), raises(down()), ok())
    began = time.monotonic()
    conn = await pool.acquire('db', timeout=20)
    assert time.monotonic() - began >= 0.8 * (0.01 + 0.02 + 0.04)
    await pool.release(conn, 'db')
    assert pool.stats().endpoints['db'].connect_failures == {'transient': 3, 'permanent': 0}
    assert pool.stats().endpoints['db'].failures == 0


async def test_at_the_deadline_the_last_error_is_the_cause(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, connect_retry=Retry(60, 60))
    manager.create.does(raises(down()))
    with pytest.raises(AcquireTimeoutError, match="retry delay of endpoint 'db'.*connection refused") as caught:
        await pool.acquire('db', timeout=0.15)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert len(manager.create.calls) == 1


@pytest.mark.parametrize('workers', [0, 3])
async def test_one_attempt_at_a_time_however_many_wait(front: Front, workers: int) -> None:
    manager = front.manager(bare=True)
    retry = Retry(0.02, 0.05, jitter=0.0)
    pool = front.pool(manager, max_size=10, max_connecting=2, connect_retry=retry, connect_workers=workers)
    began = time.monotonic()
    back = began + 0.4

    def connect(endpoint: Any, connection: Any) -> None:
        if time.monotonic() < back:
            raise down()

    manager.create.does(calling(connect))

    async def client() -> float:
        async with pool.connection('db', timeout=20):
            return time.monotonic()

    served = [await actor for actor in [front.spawn(client()) for _ in range(30)]]
    await front.until(lambda: not pool.stats().creating)  # one that was begun in the background ends there
    failed = pool.stats().connect_failures['transient']
    assert 1 <= failed <= 4 + (min(served) - began) / 0.05, failed
    assert min(served) - back < SOON
    assert pool.stats().acquires['error'] == pool.stats().acquires['timeout'] == 0


async def test_a_release_serves_one_that_waits_for_its_next_connect(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, connect_retry=Retry(60, 60))
    held = await pool.acquire('db')
    manager.create.does(raises(down()))
    waiter = front.spawn(pool.acquire('db', timeout=20))
    await front.until(lambda: pool.stats().endpoints['db'].failures == 1 and pool.stats().waiting == 1)
    await pool.release(held, 'db')
    assert await waiter is held
    await pool.release(held, 'db')


async def test_other_endpoints_are_untouched(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, connect_retry=Retry(60, 60))
    manager.create.does(raises(down()), endpoint='down')
    waiter = front.spawn(pool.acquire('down', timeout=2))
    await front.until(lambda: pool.stats().waiting == 1)
    for _ in range(20):
        async with pool.connection('up'):
            pass
    with pytest.raises(AcquireTimeoutError):
        await waiter


async def test_when_one_that_keeps_the_time_gives_up_another_one_does(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_connecting=1, connect_retry=Retry(2, 2, jitter=0.0))
    manager.create.does(never(raises(down())), ok())
    short = front.spawn(pool.acquire('db', timeout=2))
    await front.until(lambda: pool.stats().creating == 1)
    patient = front.spawn(pool.acquire('db', timeout=20))
    await front.waiting(pool, 1)
    manager.create.does(raises(down()), ok())
    manager.unblock()
    conn = await patient
    try:
        await pool.release(await short, 'db')
    except AcquireTimeoutError:
        pass
    await pool.release(conn, 'db')


async def test_no_more_connects_at_a_time_than_allowed(front: Front) -> None:
    manager = front.manager(bare=True)
    pool = front.pool(manager, max_size=20, max_connecting=2, max_connecting_total=3)
    manager.create.does(slow(0.005))
    peaks: dict[str, int] = {}

    async def client(endpoint: str) -> None:
        for _ in range(3):
            conn = await pool.acquire(endpoint, timeout=20)
            stats = pool.stats()
            peaks['all'] = max(peaks.get('all', 0), stats.creating)
            for key, each in stats.endpoints.items():
                peaks[key] = max(peaks.get(key, 0), each.connecting)
            await pool.release(conn, endpoint)

    for actor in [front.spawn(client(endpoint)) for endpoint in 'aaaaaaaabbbbbbbb']:
        await actor
    assert peaks.pop('all') <= 3
    assert max(peaks.values()) <= 2


async def test_a_connect_takes_no_longer_than_its_own_limit(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, connect_timeout=0.05, acquire_timeout=60)
    manager.create.does(slow(60, honours_timeout=True))
    began = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        await pool.acquire('db')
    assert time.monotonic() - began < SOON
    assert not isinstance(caught.value, AcquireTimeoutError)
    if front.name == 'asyncio':
        assert str(caught.value) == 'create took longer than connect_timeout=0.05 s'


async def test_a_connect_that_takes_too_long_is_tried_again(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, connect_timeout=0.05, connect_retry=Retry(0.01, 0.01))
    manager.create.does(slow(60, honours_timeout=True), ok())
    async with pool.connection('db', timeout=20):
        pass
    assert len(manager.create.calls) == 2


@pytest.mark.parametrize('seed', range(4))
async def test_random_failures_leave_nothing_behind(front: Front, seed: int) -> None:
    """Acquires that fail, retry, give up and are served, at random settings: all end, and the counts agree."""
    rng = random.Random(seed)
    manager = front.manager(bare=True)
    pool = front.pool(
        manager, max_size=4, total_max_size=6, max_connecting=rng.randint(1, 3), max_connecting_total=rng.randint(1, 4),
        connect_retry=rng.choice([None, Retry(0.001, 0.004)]), breaker_threshold=rng.choice([None, 2]),
    )  # fmt: skip

    def connect(endpoint: Any, connection: Any) -> None:
        if rng.random() < 0.5:
            raise down()

    manager.create.does(calling(connect))

    async def client(number: int) -> None:
        for turn in range(15):
            endpoint = 'abc'[(number + turn) % 3]
            try:
                conn = await pool.acquire(endpoint, timeout=rng.choice([0.002, 0.02, 20]))
            except Exception:  # each is counted
                await front.sleep(0.001)
            else:
                if rng.random() < 0.3:
                    await pool.discard(conn, endpoint)
                else:
                    await pool.release(conn, endpoint)

    for actor in [front.spawn(client(number)) for number in range(12)]:
        await actor
    assert sum(pool.stats().acquires.values()) == 12 * 15
    assert pool.stats().creating == pool.stats().waiting == 0


@pytest.mark.parametrize('seed', range(4))
def test_cancelled_at_any_moment_nothing_is_left_behind(seed: int) -> None:
    asyncio.run(cancel_at_random(seed))


async def cancel_at_random(seed: int) -> None:
    rng = random.Random(seed)
    manager = AsyncBareFakeManager()
    pool = gcp.asyncio.ConnectionPool(
        manager,
        max_size=4,
        total_max_size=6,
        max_connecting=rng.randint(1, 3),
        connect_retry=Retry(0.001, 0.004),
        breaker_threshold=rng.choice([None, 3]),
        registry=None,
    )

    async def connect(endpoint: Any, connection: Any) -> None:
        await asyncio.sleep(0.002)
        if rng.random() < 0.5:
            raise down()

    manager.create.does(calling(connect))

    async def client(endpoint: str) -> None:
        async with pool.connection(endpoint, timeout=20):
            await asyncio.sleep(0.001)

    for _ in range(20):
        tasks = [asyncio.create_task(client(rng.choice('abc'))) for _ in range(10)]
        for task in tasks:
            await asyncio.sleep(rng.choice([0, 0.0005, 0.002]))
            if rng.random() < 0.5:
                task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, EndpointUnavailableError):
                await asyncio.wait_for(task, 60)
    stats = pool.stats()
    assert (stats.used, stats.creating, stats.waiting) == (0, 0, 0)
    assert sum(stats.acquires.values()) == 200
    await pool.close()
    assert pool.stats().size == 0
