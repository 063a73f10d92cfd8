"""Guarantee 21 (docs/guarantees.md): idle connections that are checked in the background, by `keepalive_interval`."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
from fronts import Front

from gcp.exceptions import AcquireTimeoutError
from gcp.testing import BareFakeManager, FakeManager, dead, error, never, ok
from gcp.threading import ConnectionPool


class Checked(FakeManager):
    """A manager without a `keepalive` of its own."""

    keepalive = BareFakeManager.keepalive  # type: ignore[assignment]


async def idle(pool: Any, count: int) -> None:
    for connection in [await pool.acquire('db') for _ in range(count)]:
        await pool.release(connection, 'db')


async def test_idle_connections_are_kept_alive(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, keepalive_interval=0.02, min_idle=3)
    await idle(pool, 3)
    await front.until(lambda: len(manager.keepalive.calls) >= 6)
    assert {call.connection for call in manager.keepalive.calls} == set(manager.created)
    await front.until(lambda: pool.stats().hook_calls['keepalive']['ok'] >= 6)
    assert pool.stats().hook_time['keepalive'].count >= 6
    assert manager.check_aliveness.calls == []
    assert (pool.stats().idle, pool.stats().used) == (3, 0)  # also while one is checked


def test_a_manager_without_keepalive_is_asked_for_aliveness() -> None:
    manager = Checked()
    with ConnectionPool(manager, keepalive_interval=0.02) as pool:
        with pool.connection('db'):
            pass
        deadline = time.monotonic() + 60
        while len(manager.check_aliveness.calls) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert manager.check_aliveness.calls[0].timeout is not None
    assert manager.keepalive is not None


async def test_a_manager_that_can_check_nothing_is_left_alone(front: Front) -> None:
    manager = front.manager(bare=True)
    pool = front.pool(manager, keepalive_interval=0.01)
    await idle(pool, 1)
    await front.sleep(0.05)
    assert manager.story() == ['create db#1']


async def test_a_dead_one_is_disposed_of(front: Front) -> None:
    manager = front.manager()
    manager.keepalive.does(dead())
    pool = front.pool(manager, keepalive_interval=0.02)
    await idle(pool, 1)
    await front.until(lambda: pool.stats().size == 0)
    assert pool.stats().closed['dead'] == 1
    assert pool.stats().hook_calls['keepalive']['dead'] == 1
    assert manager.story() == [
        'create db#1',
        'on_acquire db#1',
        'on_release db#1',
        'keepalive db#1',
        'on_connection_dead db#1',
        'dispose db#1',
    ]


async def test_and_replaced_where_the_endpoint_is_kept(front: Front) -> None:
    manager = front.manager()
    manager.keepalive.does(dead(), ok())
    pool = front.pool(manager, keepalive_interval=0.02, refill=True)
    await pool.warm_up('db')
    await front.until(lambda: len(manager.created) == 2 and pool.stats().idle == 1)


async def test_a_check_that_raises_costs_the_connection(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    manager = front.manager()
    manager.keepalive.does(error(OSError('reset')), ok())
    pool = front.pool(manager, keepalive_interval=0.02)
    with caplog.at_level(logging.ERROR):
        await idle(pool, 1)
        await front.until(lambda: pool.stats().size == 0)
    assert pool.stats().closed['error'] == 1
    assert "keepalive failed for 'db': OSError('reset')" in caplog.text


async def test_an_acquire_that_would_wait_for_nothing_else_gets_it(front: Front) -> None:
    manager = front.manager()
    manager.keepalive.does(never())
    pool = front.pool(manager, keepalive_interval=0.02, max_size=1)
    await idle(pool, 1)
    await front.until(lambda: manager.keepalive.running)
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('db', timeout=0)
    [waiter] = await front.line_up(pool, 'db', 1)
    manager.keepalive.does(ok())
    manager.keepalive.unblock()
    await pool.release(await waiter, 'db')
    assert len(manager.created) == 1


async def test_never_more_at_once_than_max_connecting(front: Front) -> None:
    manager = front.manager()
    manager.keepalive.does(never())
    pool = front.pool(manager, keepalive_interval=0.02, min_idle=5, max_connecting=2)
    await idle(pool, 5)
    await front.until(lambda: manager.keepalive.running == 2)
    await front.sleep(0.05)
    assert manager.keepalive.running == 2


async def test_the_interval_can_be_changed(front: Front) -> None:
    manager = front.manager()
    pool: Any = front.pool(manager)
    await idle(pool, 2)
    pool.reconfigure(keepalive_interval=0.02)
    await front.until(lambda: len(manager.keepalive.calls) >= 4)
    pool.reconfigure(keepalive_interval=None)
    await front.until(lambda: not manager.keepalive.running)
    before = len(manager.keepalive.calls)
    await front.sleep(0.06)
    assert len(manager.keepalive.calls) == before


async def test_a_close_during_a_check(front: Front) -> None:
    manager = front.manager()
    manager.keepalive.does(never())
    pool = front.pool(manager, keepalive_interval=0.02)
    await idle(pool, 1)
    await front.until(lambda: manager.keepalive.running)
    closing = front.spawn(pool.close(timeout=5))
    await front.until(lambda: pool.closed)
    manager.keepalive.unblock()
    await closing
    assert pool.get_size() == 0


async def test_it_needs_the_collector(front: Front) -> None:
    with pytest.raises(ValueError, match='background_collector=False contradicts keepalive_interval'):
        front.pool(front.manager(), keepalive_interval=1.0, background_collector=False)


def test_1000_idle_connections_cost_less_than_a_hundredth_of_a_core() -> None:
    """The threads of a pool whose checks take no time use less than 1 % of a core at one check per second."""
    manager = Quick()
    pool = ConnectionPool(manager, max_size=1000, total_max_size=1000, min_idle=1000, keepalive_interval=30.0)
    pool.warm_up('db')
    before = {thread.ident: cpu(thread) for thread in threading.enumerate() if thread.name.startswith('gcp-')}
    began = time.monotonic()
    time.sleep(0.5)
    used = sum(
        cpu(thread) - before.get(thread.ident, 0.0)
        for thread in threading.enumerate()
        if thread.name.startswith('gcp-')
    )
    assert used < 0.01 * (time.monotonic() - began)
    pool.close()


class Quick(BareFakeManager):
    """A manager whose checks take no time."""

    def keepalive(self, endpoint: Any, conn: Any, timeout: float | None) -> bool:
        return True


def cpu(thread: threading.Thread) -> float:
    """Return the processor time of a thread, seconds."""
    if not hasattr(time, 'pthread_getcpuclockid') or thread.ident is None:
        pytest.skip('needs the clocks of threads')
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    except OSError:  # it has ended
        return 0.0
