"""Two threads that run at the same time, where there is no GIL: beside two threads, each with a deque of its own.

Wall time. A pool scales as deques do if two threads take as long as one. Each thread makes what it uses alone: the
interpreter counts references to what another thread has made by dearer instructions."""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import managers

import gcp.threading

from .contest import interleave, repetitions
from .rows import Row, at_least, inform, unmeasured

Body = Callable[[], None]

TIMES = 100_000
HAS_GIL = bool(getattr(sys, '_is_gil_enabled', lambda: True)())
TARGETS = {'two endpoints': 0.85, 'one endpoint': 0.5}
KEYS = {'two endpoints': ('db', 'replica'), 'one endpoint': ('db', 'db')}


def of_deque() -> Body:
    mine = deque([object()])
    pop, append = mine.pop, mine.append

    def body() -> None:
        for _ in range(TIMES):
            append(pop())

    return body


def bound(pool: gcp.threading.ConnectionPool[Any, Any], key: str) -> Body:
    """Acquire and release by methods that are looked up once."""
    acquire, release = pool.acquire, pool.release
    release(acquire(key), key)

    def body() -> None:
        for _ in range(TIMES):
            release(acquire(key), key)

    return body


def looked_up(pool: gcp.threading.ConnectionPool[Any, Any], key: str) -> Body:
    """Acquire and release by methods that are looked up in the pool each time."""
    pool.release(pool.acquire(key), key)

    def body() -> None:
        for _ in range(TIMES):
            pool.release(pool.acquire(key), key)

    return body


def seconds(*make: Callable[[], Body]) -> float:
    """Run bodies at the same time, each made and run by a thread of its own; return the seconds of the slowest."""
    together = threading.Barrier(len(make))
    taken: list[float] = []

    def run(make_one: Callable[[], Body]) -> None:
        body = make_one()
        together.wait()
        began = time.perf_counter()
        body()
        taken.append(time.perf_counter() - began)

    threads = [threading.Thread(target=run, args=(one,)) for one in make]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(taken)


def with_pool(body: Callable[..., Body], *keys: str) -> float:
    """Run a body for each of the keys on one pool; return the seconds of the slowest."""
    with gcp.threading.ConnectionPool(managers.blocking(gcp.threading)) as pool:
        return seconds(*(lambda key=key: body(pool, key) for key in keys))


def case_scaling(effort: float) -> Iterator[Row]:
    """Without the GIL: two threads on two endpoints, and on one, beside two with a deque each; by the clock"""
    told = {name: f'two threads, {name}: scaling / that of two threads with a deque each' for name in TARGETS}
    missing = 'this Python has a GIL' if HAS_GIL else 'one processor' if os.cpu_count() == 1 else ''
    if missing:
        yield from (unmeasured(told[name], target, '', missing, is_ceiling=False) for name, target in TARGETS.items())
        return
    run: dict[str, Callable[[], float]] = {
        'a deque': lambda: seconds(of_deque),
        'two deques': lambda: seconds(of_deque, of_deque),
    }
    for way in bound, looked_up:
        run[f'{way.__name__}, one thread'] = lambda way=way: with_pool(way, 'db')
        for name, keys in KEYS.items():
            run[f'{way.__name__}, {name}'] = lambda way=way, keys=keys: with_pool(way, *keys)
    ns = {
        name: statistics.median(times) / TIMES * 1e9
        for name, times in interleave(run, repetitions(effort, 21, least=5)).items()
    }
    deques = ns['a deque'] / ns['two deques']

    def scaling(way: str, name: str) -> float:
        return ns[f'{way}, one thread'] / ns[f'{way}, {name}'] / deques

    medians = {f'{name}, ns': value for name, value in ns.items()}
    for name, target in TARGETS.items():
        yield at_least(told[name], target, scaling('bound', name), **medians)
        yield inform(f'two threads, {name}: the same, methods looked up each time', scaling('looked_up', name))
