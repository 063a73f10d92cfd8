"""What is counted and timed: each step of a connection's life, in whatever way it ends; waits, uses, ages, leaks."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from fronts import Front
from gil import collect

from gcp.exceptions import AcquireTimeoutError
from gcp.stats import Histogram
from gcp.testing import dead, error, never, ok, slow

HOOKS = ('create', 'dispose', 'check_aliveness', 'on_acquire', 'on_release', 'on_connection_dead')


def nonzero(stats: Any) -> dict[str, dict[str, int]]:
    """The steps that were taken."""
    steps = {step: {how: n for how, n in outcomes.items() if n} for step, outcomes in stats.hook_calls.items()}
    return {step: outcomes for step, outcomes in steps.items() if outcomes}


# -- steps


async def test_all_series_are_there_from_the_start(front: Front) -> None:
    stats = front.pool(front.manager()).stats()
    assert tuple(stats.hook_calls) == tuple(stats.hook_time) == (*HOOKS, 'keepalive')
    for step, outcomes in stats.hook_calls.items():
        assert set(outcomes) - {'dead'} == {'ok', 'error', 'timeout', 'cancelled'}
        assert ('dead' in outcomes) == (step in ('check_aliveness', 'keepalive'))
        assert not any(outcomes.values())
    assert stats.wait_time.count == stats.use_time.count == stats.age.count == stats.leaks == 0


async def test_a_round_takes_each_step_once(front: Front) -> None:
    pool = front.pool(manager := front.manager())
    async with pool.connection('db'):
        pass
    assert nonzero(pool.stats()) == {'create': {'ok': 1}, 'on_acquire': {'ok': 1}, 'on_release': {'ok': 1}}
    manager.check_aliveness.does(dead(), ok())
    async with pool.connection('db'):
        pass
    await front.until(lambda: pool.stats().hook_calls['dispose']['ok'])
    assert nonzero(pool.stats()) == {
        'create': {'ok': 2},
        'on_acquire': {'ok': 2},
        'on_release': {'ok': 2},
        'check_aliveness': {'dead': 1},
        'on_connection_dead': {'ok': 1},
        'dispose': {'ok': 1},
    }


async def test_hooks_that_are_not_there_are_no_steps(front: Front) -> None:
    pool = front.pool(front.manager(bare=True))
    for _ in range(3):
        async with pool.connection('db'):
            pass
    assert nonzero(pool.stats()) == {'create': {'ok': 1}}


@pytest.mark.parametrize('hook', HOOKS)
@pytest.mark.parametrize(('exception', 'outcome'), [(OSError(), 'error'), (TimeoutError(), 'timeout')])
async def test_a_hook_that_raises(front: Front, hook: str, exception: Exception, outcome: str) -> None:
    pool = front.pool(manager := front.manager())
    if hook != 'create':
        async with pool.connection('db'):
            pass
    if hook in ('dispose', 'on_connection_dead'):
        manager.check_aliveness.does(dead(), ok())
    getattr(manager, hook).does(error(exception), ok())
    try:
        async with pool.connection('db'):
            pass
    except (OSError, AcquireTimeoutError):
        pass
    await front.until(lambda: pool.stats().hook_calls[hook][outcome] == 1)
    assert sum(pool.stats().hook_calls[hook].values()) - pool.stats().hook_calls[hook]['ok'] == 1


@pytest.mark.parametrize('hook', ['create', 'check_aliveness', 'on_acquire', 'on_release'])
async def test_a_hook_that_is_cancelled(front: Front, hook: str) -> None:
    if front.name == 'threads':
        pytest.skip('threads cannot be cancelled')
    pool = front.pool(manager := front.manager())
    if hook == 'check_aliveness':
        async with pool.connection('db'):
            pass
    getattr(manager, hook).does(never(), ok())

    async def use() -> None:
        async with pool.connection('db'):
            pass

    task = asyncio.ensure_future(use())
    await front.until(lambda: getattr(manager, hook).running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.stats().hook_calls[hook]['cancelled'] == 1


async def test_a_disposal_that_takes_too_long(front: Front) -> None:
    pool = front.pool(manager := front.manager(), dispose_timeout=0.05)
    async with pool.connection('db'):
        pass
    manager.dispose.does(never(), ok())
    manager.check_aliveness.does(dead(), ok())
    async with pool.connection('db'):
        pass
    await front.until(lambda: pool.stats().hook_calls['dispose']['timeout'] == 1)
    manager.unblock()
    await front.until(lambda: not manager.dispose.running)
    assert nonzero(pool.stats())['dispose'] == {'timeout': 1}, 'it ended once'


async def test_how_long_a_step_took(front: Front) -> None:
    pool = front.pool(manager := front.manager())
    manager.create.does(slow(0.03))
    async with pool.connection('db'):
        pass
    took = pool.stats().hook_time['create']
    assert took.count == 1 and 0.03 <= took.sum < 5
    assert sum(took.counts[: took.bounds.index(0.025) + 1]) == 0, 'it took longer than 25 ms'


# -- waits and uses


async def test_a_hit_waits_for_nothing(front: Front) -> None:
    pool = front.pool(front.manager())
    await pool.release(await pool.acquire('db'), 'db')
    before = pool.stats().wait_time
    for _ in range(5):
        await pool.release(await pool.acquire('db'), 'db')
    after = pool.stats().wait_time
    assert after.sum == before.sum
    assert after.counts[0] == before.counts[0] + 5


async def test_a_wait_is_timed_also_when_it_was_in_vain(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1)
    connection = await pool.acquire('db')
    before = pool.stats().wait_time
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('db', timeout=0.03)
    after = pool.stats().wait_time
    assert after.count == before.count + 1
    assert 0.03 <= after.sum - before.sum < 5
    await pool.release(connection, 'db')


async def test_a_use_lasts_from_acquire_to_release(front: Front) -> None:
    pool = front.pool(front.manager())
    async with pool.connection('db'):
        await front.sleep(0.03)
        assert pool.stats().use_time.count == 0
        assert 0.03 <= pool.stats().oldest_checkout < 5
    used = pool.stats().use_time
    assert used.count == 1 and 0.03 <= used.sum < 5
    assert pool.stats().oldest_checkout == 0


async def test_the_oldest_waiter_is_told(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1)
    connection = await pool.acquire('db')
    assert pool.stats().oldest_waiter == 0
    waiters = await front.line_up(pool, 'db', 2)
    await front.sleep(0.02)
    assert 0.02 <= pool.stats().oldest_waiter < 5
    await pool.release(connection, 'db')
    for waiter in waiters:
        await pool.release(await waiter, 'db')


async def test_the_age_at_the_end_is_kept(front: Front) -> None:
    pool = front.pool(front.manager())
    await pool.release(await pool.acquire('db'), 'db')
    await front.sleep(0.02)
    await pool.close()
    age = pool.stats().age
    assert age.count == 1 and 0.02 <= age.sum < 5


# -- leaks


async def test_a_connection_held_for_too_long_is_a_leak_once(front: Front) -> None:
    pool = front.pool(front.manager(), leak_threshold=0.02)
    connection = await pool.acquire('db')
    assert pool.stats().leaks == 0
    await front.sleep(0.03)
    assert pool.stats().leaks == pool.stats().leaks == pool.stats().endpoints['db'].leaks == 1
    await pool.release(connection, 'db')
    assert pool.stats().leaks == 1
    async with pool.connection('db'):
        await front.sleep(0.03)
    assert pool.stats().leaks == 2, 'also when nobody looked while it was held'


async def test_without_a_threshold_nothing_is_a_leak(front: Front) -> None:
    pool = front.pool(front.manager())
    async with pool.connection('db'):
        await front.sleep(0.01)
    assert pool.stats().leaks == 0


# -- what remains


async def test_a_pool_that_is_gone_leaves_its_totals(front: Front) -> None:
    pool = front.pool_class(front.manager())
    face = front.face(pool)
    await face.release(await face.acquire('a'), 'a')
    await face.release(await face.acquire('a'), 'a')
    held = await face.acquire('b')
    final_counts = pool._core.final_counts
    assert final_counts.read() is None
    del pool, face, held
    collect()
    total = final_counts.read()
    assert total is not None
    assert total['acquires'] == {
        'hit': 1,
        'created': 2,
        'waited': 0,
        'timeout': 0,
        'cancelled': 0,
        'error': 0,
        'rejected': 0,
    }
    assert sum(total['releases'].values()) == 3, 'what was held went with the pool'
    assert total['closed']['discarded'] == total['created'] == 2
    assert total['idle'] == total['used'] == 0
    assert sum(total['use'][0]) == 3 and sum(total['age'][0]) == 2


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here')
async def test_a_forked_child_counts_from_zero(front: Front) -> None:
    if front.name == 'asyncio':
        pytest.skip('a fork within an event loop')
    pool = front.pool(front.manager(), leak_threshold=100)
    held = await pool.acquire('db')
    await pool.release(await pool.acquire('other'), 'other')
    child = os.fork()
    if not child:
        stats = pool.stats()
        clean = not nonzero(stats) and stats.wait_time.count == stats.use_time.count == stats.age.count == 0
        os._exit(0 if clean and stats.oldest_checkout == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0
    await pool.release(held, 'db')


# -- histograms


def test_quantiles_are_those_of_prometheus() -> None:
    histogram = Histogram(bounds=(1.0, 2.0, 4.0), counts=(2, 0, 6, 2), sum=30.0)
    assert histogram.count == 10
    assert histogram.quantile(0.0) == 0.0
    assert histogram.quantile(0.1) == 0.5
    assert histogram.quantile(0.5) == 3.0
    assert histogram.quantile(0.8) == 4.0
    assert histogram.quantile(0.99) == 4.0, 'beyond the highest bound nothing is known'
    assert str(Histogram((1.0,), (0, 0), 0.0).quantile(0.5)) == 'nan'
    for q in (-0.1, 1.1, float('nan')):
        with pytest.raises(ValueError, match='q must be'):
            histogram.quantile(q)
