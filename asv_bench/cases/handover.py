"""A place of the total cap moves to another endpoint: how soon after a release the waiter there is served."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Iterator

from benchmarks import managers

import gcp.asyncio
import gcp.threading

from .contest import interleave, repetitions
from .rows import Row, at_most

CREATE = 0.005


def case_handover(effort: float) -> Iterator[Row]:
    """total cap 2, both held by one endpoint, a waiter on another: served as soon as one is released; by the clock"""
    rounds = repetitions(effort, 40)
    run = {'threads': handover_in_threads, 'asyncio': lambda: asyncio.run(handover_in_tasks())}
    for front, seconds in interleave(run, rounds).items():
        served = statistics.median(seconds)
        yield at_most(f'handover, {front}: release to served / create', 1.2, served / CREATE, ' x', seconds=served)


def handover_in_threads() -> float:
    served: list[float] = []
    manager = managers.blocking(gcp.threading, create_time=CREATE)
    with gcp.threading.ConnectionPool(manager, max_size=2, total_max_size=2) as pool:
        held = [pool.acquire('a'), pool.acquire('a')]

        def wait() -> None:
            conn = pool.acquire('b')
            served.append(time.monotonic())
            pool.release(conn, 'b')

        waiter = threading.Thread(target=wait)
        waiter.start()
        while not pool.stats().waiting:
            time.sleep(0.0005)
        start = time.monotonic()
        pool.release(held.pop(), 'a')
        waiter.join()
        pool.release(held.pop(), 'a')
    return served[0] - start


async def handover_in_tasks() -> float:
    manager = managers.asynchronous(gcp.asyncio, create_time=CREATE)
    async with gcp.asyncio.ConnectionPool(manager, max_size=2, total_max_size=2) as pool:
        held = [await pool.acquire('a'), await pool.acquire('a')]

        async def wait() -> float:
            async with pool.connection('b'):
                return time.monotonic()

        waiter = asyncio.ensure_future(wait())
        while not pool.stats().waiting:
            await asyncio.sleep(0)
        start = time.monotonic()
        await pool.release(held.pop(), 'a')
        served = await waiter
        await pool.release(held.pop(), 'a')
    return served - start
