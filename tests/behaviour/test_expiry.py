"""Guarantee 7 (docs/guarantees.md): expired connections are not handed out; when they are disposed of, and by whom."""

from __future__ import annotations

import math

import pytest
from fronts import Front
from gil import HAS_GIL

from gcp.testing import error, never, ok

pytestmark = pytest.mark.parametrize('bare', [True, False], ids=['bare', 'hooks'])


async def test_past_its_lifetime(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager, max_lifetime=0.05)
    await pool.release(old := await pool.acquire('db'), 'db')
    await front.sleep(0.06)
    new = await pool.acquire('db')
    assert new is not old
    await pool.release(new, 'db')
    await front.until(lambda: manager.disposed[:1] == [old])
    assert pool.stats().closed['max_lifetime'] >= 1


async def test_past_its_lifetime_while_it_was_used(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager, max_lifetime=0.05)
    async with pool.connection('db') as old:
        await front.sleep(0.06)
        assert not manager.disposed
    assert manager.disposed == [old]
    async with pool.connection('db') as new:
        assert new is not old


async def test_past_its_lifetime_with_somebody_waiting(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager, max_lifetime=0.05, max_size=1)
    old = await pool.acquire('db')
    [waiter] = await front.line_up(pool, 'db', 1)
    await front.sleep(0.06)
    await pool.release(old, 'db')
    new = await waiter
    assert new is not old and manager.disposed == [old]
    await pool.release(new, 'db')
    manager.check(max_size=1)


async def test_an_extra_past_its_idle_time(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager, min_idle=0, idle_timeout=0.05)
    await pool.release(old := await pool.acquire('db'), 'db')
    await front.sleep(0.06)
    new = await pool.acquire('db')
    assert new is not old
    await pool.release(new, 'db')
    await front.until(lambda: manager.disposed == [old])
    assert pool.stats().closed['idle_timeout'] == 1


async def test_the_base_has_no_idle_time_out(front: Front, bare: bool) -> None:
    pool = front.pool(front.manager(bare=bare), min_idle=1, idle_timeout=0.02)
    await pool.release(old := await pool.acquire('db'), 'db')
    await front.sleep(0.05)
    assert await pool.acquire('db') is old
    await pool.release(old, 'db')


async def test_each_use_starts_the_idle_time_anew(front: Front, bare: bool) -> None:
    pool = front.pool(front.manager(bare=bare), min_idle=0, idle_timeout=3)
    for _ in range(4):
        async with pool.connection('db'):
            pass
        await front.sleep(1)
    assert pool.stats().created == 1


@pytest.mark.parametrize('never_', [None, math.inf])
async def test_never(front: Front, bare: bool, never_: float | None) -> None:
    pool = front.pool(front.manager(bare=bare), min_idle=0, idle_timeout=never_, max_lifetime=never_)
    for _ in range(2):
        await front.give_back(pool, await front.fill(pool, 'db', 3))
        await front.sleep(0.01)
    assert pool.stats().created == 3


async def test_lifetimes_are_exact_by_default(front: Front, bare: bool) -> None:
    pool = front.pool(front.manager(bare=bare), min_idle=10, max_lifetime=4)
    await front.give_back(pool, await front.fill(pool, 'db', 10))
    await front.sleep(2)
    await front.give_back(pool, await front.fill(pool, 'db', 10))
    assert pool.stats().created == 10


async def test_lifetimes_are_jittered_at_birth(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager, min_idle=40, max_size=40, max_lifetime=6.0, lifetime_jitter=1.0)
    held = await front.fill(pool, 'db', 40)
    await front.sleep(2)
    await front.give_back(pool, held)
    held = await front.fill(pool, 'db', 40)
    assert 1 <= 80 - pool.stats().created <= 39  # some were over, some were not: 40 coins
    await front.give_back(pool, held)


async def test_without_a_release_nothing_is_collected(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager, min_idle=0, idle_timeout=0.01)
    await pool.release(await pool.acquire('db'), 'db')
    await front.sleep(0.05)
    assert not manager.disposed


async def test_the_collector_disposes_of_the_expired_by_itself(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager, min_idle=0, idle_timeout=0.3, max_lifetime=60, background_collector=True)
    held = await front.fill(pool, 'db', 3)
    await front.give_back(pool, held)
    await front.until(lambda: pool.get_size() == 0)
    if HAS_GIL:
        assert manager.disposed == held
    else:  # workers may dispose of them in parallel
        assert sorted(manager.disposed) == held
    await pool.release(await pool.acquire('other'), 'other')
    await front.until(lambda: pool.get_size() == 0)


async def test_the_collector_wakes_for_an_earlier_deadline(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager, min_idle=1, max_size=2, idle_timeout=0.3, max_lifetime=60, background_collector=True)
    async with pool.connection('db'):
        pass
    await front.sleep(0.02)  # the collector sleeps until the end of the base's lifetime by now
    first, second = await front.fill(pool, 'db', 2)
    await front.give_back(pool, [first, second])
    await front.until(lambda: manager.disposed == [first], patience=20)


async def test_the_collector_goes_on_after_a_failed_disposal(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    manager.dispose.does(error(OSError('reset')), error(KeyError('odd')), ok())
    pool = front.pool(manager, min_idle=0, idle_timeout=0.02, background_collector=True)
    await front.give_back(pool, await front.fill(pool, 'db', 4))
    await front.until(lambda: pool.get_size() == 0)
    assert len(manager.disposed) == 4


async def test_the_collector_goes_on_beside_a_hanging_disposal(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    manager.dispose.does(never(), endpoint='a')
    pool = front.pool(manager, min_idle=0, idle_timeout=0.02, background_collector=True)
    await pool.release(await pool.acquire('a'), 'a')
    await front.until(lambda: manager.dispose.running)
    for _ in range(2):
        await pool.release(await pool.acquire('b'), 'b')
        await front.until(lambda: pool.stats().size == 1)
    manager.unblock()


async def test_with_a_collector_a_release_collects_nothing(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    manager.dispose.does(never(), endpoint='a')
    pool = front.pool(manager, min_idle=0, idle_timeout=0.02, background_collector=True, dispose_batch_size=5)
    await front.give_back(pool, await front.fill(pool, 'a', 3))
    await front.sleep(0.03)
    async with pool.connection('b'):
        pass
    manager.unblock()


async def test_many_expire_at_once(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    pool = front.pool(manager, min_idle=0, max_size=300, idle_timeout=1, background_collector=True)
    held = await front.fill(pool, 'db', 300)
    await front.give_back(pool, held)
    await front.until(lambda: pool.get_size() == 0)
    assert sorted(manager.disposed) == held
