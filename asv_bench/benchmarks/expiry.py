"""What an expired connection costs the pool: many expire at once, for a collector or for the next releases."""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import Any

import gcp.asyncio
import gcp.threading

from . import effort, managers, tracks

MANY = effort.choose(100, 2000, 20_000)
ROUNDS = effort.choose(1, 3, 9)
IDLE_TIMEOUT = effort.choose(0.05, 0.1, 1.0)
"""Long enough to give all back within it."""

SIZES: dict[str, Any] = {'min_idle': 0, 'max_size': MANY, 'total_max_size': MANY + 1, 'idle_timeout': IDLE_TIMEOUT}
FEW = 1
"""What is left in the end: the connection that the sweeper uses."""

SHORTEST_SLEEP = 0.002


def in_threads(collector: bool, sweeper: str) -> float:
    """Let connections of endpoint 'db' expire. Return the processor's time for each, of all threads, seconds.

    :param collector: whether a collector disposes of them
    :param sweeper: if not, releases of this endpoint do
    """
    manager = managers.blocking(gcp.threading)
    pool = gcp.threading.ConnectionPool(manager, background_collector=collector, **SIZES)
    held = [pool.acquire('db') for _ in range(MANY)]
    for conn in held:
        pool.release(conn, 'db')
    del held, conn
    time.sleep(IDLE_TIMEOUT / 2)
    assert pool.get_size() == MANY, 'some expired before all were idle'
    begun = time.process_time()
    time.sleep(IDLE_TIMEOUT / 2)
    while pool.get_size() > FEW:
        if collector:
            time.sleep(SHORTEST_SLEEP)
        else:
            pool.release(pool.acquire(sweeper), sweeper)
    took = time.process_time() - begun
    pool.close()
    return took / MANY


async def in_tasks(collector: bool, sweeper: str) -> float:
    """The same for asyncio."""
    manager = managers.asynchronous(gcp.asyncio)
    pool = gcp.asyncio.ConnectionPool(manager, background_collector=collector, **SIZES)
    held = [await pool.acquire('db') for _ in range(MANY)]
    for conn in held:
        await pool.release(conn, 'db')
    del held, conn
    await asyncio.sleep(IDLE_TIMEOUT / 2)
    assert pool.get_size() == MANY, 'some expired before all were idle'
    begun = time.process_time()
    await asyncio.sleep(IDLE_TIMEOUT / 2)
    while pool.get_size() > FEW:
        if collector:
            await asyncio.sleep(SHORTEST_SLEEP)
        else:
            await pool.release(await pool.acquire(sweeper), sweeper)
    took = time.process_time() - begun
    await pool.close()
    return took / MANY


FRONTS = {'threads': in_threads, 'asyncio': lambda *how: asyncio.run(in_tasks(*how))}
HOW = {'collector': (True, ''), 'releases': (False, 'db'), 'releases of another endpoint': (False, 'other')}


class Expiry:
    params = [list(FRONTS), list(HOW)]
    param_names = ['front', 'disposed of by']
    timeout = 120

    @tracks.less('us')
    def track_microseconds_each(self, front: str, how: str) -> float:
        return 1e6 * median(FRONTS[front](*HOW[how]) for _ in range(ROUNDS))
