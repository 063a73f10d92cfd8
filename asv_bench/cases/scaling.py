"""Two threads that run at the same time, where there is no GIL: beside two threads, each with a deque of its own.

Wall time. A pool scales as deques do if two threads take as long as one. Each thread makes what is its own: to count
references to what another thread has made is dear, which the interpreter decides, not the pool."""

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


def turns(pop: Callable[[], Any], append: Callable[[Any], Any]) -> Body:
    def body() -> None:
        for _ in range(TIMES):
            append(pop())

    return body


def of_deque() -> Body:
    mine = deque([object()])
    return turns(mine.pop, mine.append)


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
    with gcp.threading.ConnectionPool(managers.blocking(gcp.threading)) as pool:
        return seconds(*(lambda key=key: body(pool, key) for key in keys))


def case_scaling(effort: float) -> Iterator[Row]:
    """Without the GIL: two threads on two endpoints, and on one, beside two with a deque each; by the clock"""
    told = {name: f'two threads, {name}: scaling / that of two threads with a deque each' for name in TARGETS}
    missing = 'this Python has a GIL' if HAS_GIL else 'one processor' if len(os.sched_getaffinity(0)) < 2 else ''
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
    for name, target in TARGETS.items():
        medians = {f'{one}, ns': ns[one] for one in ('a deque', 'two deques')}
        alone, together = ns['bound, one thread'], ns[f'bound, {name}']
        yield at_least(
            told[name], target, alone / together / deques, **medians, **{'alone, ns': alone, 'together, ns': together}
        )
        alone, together = ns['looked_up, one thread'], ns[f'looked_up, {name}']
        yield inform(
            f'two threads, {name}: the same, methods looked up each time', alone / together / deques,
            **{'alone, ns': alone, 'together, ns': together},
        )  # fmt: skip
