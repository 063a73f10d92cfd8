"""Guarantee 1 (docs/guarantees.md): caps are never exceeded, per endpoint or in total, whatever state a connection
is in."""

from __future__ import annotations

from typing import Any

import pytest
from fronts import Front

from gcp.exceptions import AcquireTimeoutError
from gcp.testing import error, never, ok, slow


async def test_an_endpoint_never_has_more_than_max_size(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=3)
    held = await front.fill(pool, 'db', 3)
    waiters = await front.line_up(pool, 'db', 2)
    assert manager.peak('db') == 3
    await front.give_back(pool, held)
    await front.give_back(pool, [await waiter for waiter in waiters])
    assert manager.peak('db') == 3


async def test_all_endpoints_together_never_have_more_than_total_max_size(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=2, total_max_size=3)
    held = [*await front.fill(pool, 'a', 2), *await front.fill(pool, 'b', 1)]
    assert pool.is_full
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('b', timeout=0)
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('c', timeout=0.02)
    assert manager.peak() == 3
    await front.give_back(pool, held)


async def test_a_connection_that_is_being_created_counts(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never())
    pool = front.pool(manager, max_size=2, total_max_size=3)
    creators = [front.spawn(pool.acquire(endpoint)) for endpoint in 'aab']
    await front.until(lambda: manager.create.running == 3)
    assert pool.stats().creating == 3
    assert pool.get_size() == 3 and pool.is_full
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('a', timeout=0)
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('c', timeout=0)
    manager.unblock()
    await front.give_back(pool, [await creator for creator in creators])
    manager.check(max_size=2, total_max_size=3)


async def test_a_connection_that_is_being_disposed_of_counts(front: Front) -> None:
    manager = front.manager()
    manager.on_release.does(error(OSError('broken')), ok())
    manager.dispose.does(never())
    pool = front.pool(manager, max_size=1)
    release = front.spawn(pool.release(await pool.acquire('db'), 'db'))
    await front.until(lambda: manager.dispose.running)
    assert pool.stats().disposing == 1
    assert pool.get_size() == 1
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('db', timeout=0.02)
    manager.unblock()
    with pytest.raises(OSError):
        await release
    await pool.release(await pool.acquire('db'), 'db')
    manager.check(max_size=1)


async def test_a_place_is_free_only_when_its_victim_is_gone(front: Front) -> None:
    manager = front.manager()
    manager.dispose.does(never())
    pool = front.pool(manager, total_max_size=1, max_size=1)
    await pool.release(await pool.acquire('a'), 'a')
    acquire = front.spawn(pool.acquire('b'))
    await front.until(lambda: manager.dispose.running)
    assert manager.create.calls[-1].endpoint == 'a'
    manager.unblock()
    await pool.release(await acquire, 'b')
    manager.check(total_max_size=1)


async def test_a_disposal_that_overstays_its_time_out_still_counts(
    front: Front,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr('gcp.disposal.threads.DISPOSE_GRACE', 30.0)  # until the watchdog gives it up, that is
    manager = front.manager()
    manager.dispose.does(slow(0.1))
    pool = front.pool(manager, max_size=1, total_max_size=1, dispose_timeout=0.02)
    await pool.release(await pool.acquire('a'), 'a')
    await pool.release(await pool.acquire('b', timeout=60), 'b')
    manager.check(total_max_size=1)


@pytest.mark.parametrize('bare', [True, False])
async def test_caps_hold_under_churn(front: Front, bare: bool) -> None:
    manager = front.manager(bare=bare)
    manager.create.does(*[slow(0.0005), ok(), error(OSError('refused'))] * 100, ok())
    manager.dispose.does(*[ok(), slow(0.0005), error(OSError('reset'))] * 100, ok())
    pool = front.pool(manager, max_size=3, total_max_size=5, min_idle=1, idle_timeout=0.0005)

    async def work(actor: int) -> None:
        for round_ in range(40):
            endpoint = 'abcd'[(actor + round_) % 4]
            try:
                async with pool.connection(endpoint, timeout=5) as connection:
                    with manager.hold(connection):
                        await front.sleep(0.0002)
            except OSError:
                pass

    actors: list[Any] = [front.spawn(work(actor)) for actor in range(12)]
    for actor in actors:
        await actor
    manager.check(max_size=3, total_max_size=5)
