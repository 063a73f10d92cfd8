"""Guarantees 15 and 16 (docs/guarantees.md): trouble stays with its endpoint, telemetry breaks nothing, and an idle
pool costs nothing."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
from fronts import Front, elapsed

from gcp.testing import dead, error, never, ok


@pytest.mark.parametrize('hook', ['create', 'check_aliveness', 'on_acquire', 'on_release', 'dispose'])
async def test_a_hung_endpoint_does_not_delay_another(front: Front, hook: str) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=2, total_max_size=20, max_lifetime=0.05 if hook == 'dispose' else 60)
    if hook != 'create':
        async with pool.connection('a'):
            pass
    getattr(manager, hook).does(never(), endpoint='a')

    async def use() -> None:
        async with pool.connection('a'):
            await front.sleep(0.06 if hook == 'dispose' else 0)

    stuck = [front.spawn(use()) for _ in range(2)]
    await front.until(lambda: getattr(manager, hook).running >= 1)
    async with elapsed():
        for number in range(50):
            async with pool.connection(number % 3, timeout=30):
                pass
    manager.unblock()
    for actor in stuck:
        await actor


async def test_a_failing_endpoint_does_not_hurt_another(front: Front) -> None:
    manager = front.manager()
    manager.create.does(error(ConnectionRefusedError()), endpoint='a')
    pool = front.pool(manager, max_size=2, total_max_size=2)
    for _ in range(10):
        with pytest.raises(ConnectionRefusedError):
            async with pool.connection('a'):
                pass
        async with pool.connection('b', timeout=0):
            pass
    assert len(manager.disposed) <= 1


@pytest.mark.parametrize('background_collector', [False, True])
async def test_an_idle_pool_its_waiters_and_its_close_use_no_cpu(front: Front, background_collector: bool) -> None:
    pool = front.pool(front.manager(), max_size=2, background_collector=background_collector, idle_timeout=30)
    held = await front.fill(pool, 'db', 2)
    waiters: list[Any] = []
    for timeout in (None, 60, 1e9) * 3:
        waiters.append(front.spawn(pool.acquire('db', timeout=timeout)))
        await front.waiting(pool, len(waiters))  # they are served in this order
    began = time.process_time()
    await front.sleep(0.5)
    assert time.process_time() - began < 0.05
    await front.give_back(pool, held)
    for waiter in waiters:
        await pool.release(connection := await waiter, 'db')
    connection = await pool.acquire('db')
    closer = front.spawn(pool.close())
    await front.until(lambda: pool.closed)
    began = time.process_time()
    await front.sleep(0.3)
    assert time.process_time() - began < 0.05
    await pool.release(connection, 'db')
    await closer


class Blows(logging.Handler):
    """A logging handler that raises."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError('this handler is broken')


class Reenters(logging.Handler):
    """A logging handler that uses the pool it hears about."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act, self.heard = act, 0

    def emit(self, record: logging.LogRecord) -> None:
        self.heard += 1
        if self.heard < 5:
            self.act()


async def test_a_logging_handler_that_raises_changes_nothing(front: Front) -> None:
    manager = front.manager()
    manager.dispose.does(error(OSError('reset')))
    manager.check_aliveness.does(*[dead(), ok()] * 3, ok())
    manager.on_connection_dead.does(error(OSError('obituary')))
    pool = front.pool(manager, max_size=1, total_max_size=1)
    logger, handler = logging.getLogger('gcp'), Blows()
    logger.addHandler(handler)
    try:
        for endpoint in 'aabbaabbab':
            async with pool.connection(endpoint, timeout=5):
                pass
        await pool.close()
    finally:
        logger.removeHandler(handler)
    assert sorted(manager.disposed) == manager.created


async def test_a_logging_handler_may_use_the_pool(front: Front) -> None:
    manager = front.manager(bare=True)
    manager.dispose.does(error(OSError('reset')))
    pool = front.pool(manager, max_size=1, total_max_size=2)

    def act() -> None:
        pool.stats(), pool.get_size(), repr(pool)
        if front.name == 'threads':
            with front.pools[0].connection('log', timeout=0):
                pass

    logger, handler = logging.getLogger('gcp'), Reenters(act)
    logger.addHandler(handler)
    try:
        for endpoint in 'abcabc':
            async with pool.connection(endpoint, timeout=5):
                pass
    finally:
        logger.removeHandler(handler)
    assert handler.heard
