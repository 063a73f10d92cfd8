"""Health checks of a pool that is overloaded: how long they wait, with places that are reserved for them."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import managers

import gcp.asyncio
import gcp.threading
from gcp import TooManyWaitersError

from .contest import repetitions
from .rows import Row, at_most, inform

USE = 0.02
SIZE, WAITING, CLIENTS = 4, 20, 40
RESERVED, BY_PRIORITY = 'priority=1, reserve=1', 'priority=1 alone'
CONTENDERS: Mapping[str, int] = {RESERVED: 1, BY_PRIORITY: 0}


def case_reserve(effort: float) -> Iterator[Row]:
    """40 clients keep the queue of 4 connections full, 20 ms each; a health check every 5 ms: its wait"""
    checks = repetitions(effort, 400, 100)
    for front, run in {'threads': in_threads, 'asyncio': lambda *args: asyncio.run(in_tasks(*args))}.items():
        for name, reserve in CONTENDERS.items():
            waits, served = run(reserve, checks)
            p99 = statistics.quantiles(waits, n=100)[98]
            what = f'{front}, {name}: p99 wait of {checks} checks / use'
            medians = {'median, ms': statistics.median(waits) * 1e3, 'longest, ms': max(waits) * 1e3, 'served': served}
            if name == RESERVED:
                yield at_most(what, 1.0, p99 / USE, ' x', **medians)
            else:
                yield inform(what, p99 / USE, ' x', **medians)


def options(reserve: int) -> dict[str, Any]:
    """Return those of the pool. Without a reserve, a check would be refused where the queue is full."""
    return {'max_size': SIZE, 'max_waiting': WAITING if reserve else None, 'reserve': reserve}


def in_threads(reserve: int, checks: int) -> tuple[list[float], int]:
    """Return how long each check waited, and how many acquires of clients were served."""
    over = threading.Event()
    served: list[int] = []
    waits: list[float] = []

    def use() -> None:
        while not over.is_set():
            try:
                with pool.connection('a'):
                    time.sleep(USE)
                served.append(1)
            except TooManyWaitersError:
                time.sleep(USE / 4)

    with gcp.threading.ConnectionPool(managers.blocking(gcp.threading), **options(reserve)) as pool:
        clients = [threading.Thread(target=use) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        while pool.stats().waiting < WAITING:
            time.sleep(USE)
        while len(waits) < checks:
            time.sleep(0.005)
            began = time.monotonic()
            try:
                with pool.connection('a', priority=1):
                    waits.append(time.monotonic() - began)
            except TooManyWaitersError:
                waits.append(USE * 100)
        over.set()
        for client in clients:
            client.join()
    return waits, len(served)


async def in_tasks(reserve: int, checks: int) -> tuple[list[float], int]:
    """Do the same with tasks."""
    over = asyncio.Event()
    served: list[int] = []
    waits: list[float] = []

    async def use() -> None:
        while not over.is_set():
            try:
                async with pool.connection('a'):
                    await asyncio.sleep(USE)
                served.append(1)
            except TooManyWaitersError:
                await asyncio.sleep(USE / 4)

    async with gcp.asyncio.ConnectionPool(managers.asynchronous(gcp.asyncio), **options(reserve)) as pool:
        clients = [asyncio.ensure_future(use()) for _ in range(CLIENTS)]
        while pool.stats().waiting < WAITING:
            await asyncio.sleep(USE)
        while len(waits) < checks:
            await asyncio.sleep(0.005)
            began = time.monotonic()
            try:
                async with pool.connection('a', priority=1):
                    waits.append(time.monotonic() - began)
            except TooManyWaitersError:
                waits.append(USE * 100)
        over.set()
        await asyncio.gather(*clients)
    return waits, len(served)
