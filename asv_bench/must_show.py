"""What gcp must show, measured: a table of targets and of what was seen. The exit status is 1 when one is missed.

Contenders take turns in one run, round after round, and medians are compared: on a machine that does other things as
well, ratios hold where times do not. Of the predecessor, ``generic-connection-pool==0.8.1`` is measured where it is
installed.

    python asv_bench/must_show.py                 everything, about three minutes
    python asv_bench/must_show.py hit endpoints   these cases
    python asv_bench/must_show.py --quick         shorter, and less certain
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import queue
import random
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

if __name__ == '__main__':
    sys.path.append(str(Path(__file__).resolve().parents[1]))   # a clone, built in place but not installed

from benchmarks import loads, managers
from benchmarks.turns import Contender, clock, in_loop, take_turns

import gcp.asyncio
import gcp.threading

try:
    import generic_connection_pool.asyncio as old_asyncio
    import generic_connection_pool.threading as old_threading
except ImportError:
    old_asyncio = old_threading = None


@dataclass
class Row:
    """A line of the table. `ok` is None for one that only informs."""

    case: str
    target: str
    seen: str
    ok: bool | None


def at_most(case: str, bound: float, value: float, unit: str = '') -> Row:
    return Row(case, f'<= {bound:g}{unit}', f'{value:.3g}{unit}', value <= bound)


def at_least(case: str, bound: float, value: float, unit: str = '') -> Row:
    return Row(case, f'>= {bound:g}{unit}', f'{value:.4g}{unit}', value >= bound)


# --- hit: an idle connection taken and given back ---

def deque_pair(number: int) -> float:
    line = deque([object()])
    start = clock()
    for _ in range(number):
        conn = line.pop()
        line.append(conn)
    return clock() - start


def pair_of(pool: Any) -> Contender:
    def run(number: int) -> float:
        start = clock()
        for _ in range(number):
            conn = pool.acquire('a')
            pool.release(conn, 'a')
        return clock() - start

    return run


def with_of(pool: Any) -> Contender:
    def run(number: int) -> float:
        start = clock()
        for _ in range(number):
            with pool.connection('a'):
                pass
        return clock() - start

    return run


def await_pair_of(pool: Any) -> Callable[[int], Awaitable[float]]:
    async def run(number: int) -> float:
        start = clock()
        for _ in range(number):
            conn = await pool.acquire('a')
            await pool.release(conn, 'a')
        return clock() - start

    return run


def async_with_of(pool: Any) -> Callable[[int], Awaitable[float]]:
    async def run(number: int) -> float:
        start = clock()
        for _ in range(number):
            async with pool.connection('a'):
                pass
        return clock() - start

    return run


def case_hit(effort: float) -> Iterator[Row]:
    """acquire+release, with, async with: against a deque, and against the predecessor"""
    loop = asyncio.new_event_loop()

    async def make(library: ModuleType) -> Any:
        return library.ConnectionPool(managers.asynchronous(library))

    pool = gcp.threading.ConnectionPool(managers.blocking(gcp.threading))
    apool = loop.run_until_complete(make(gcp.asyncio))
    contenders: dict[str, Contender] = {
        'deque': deque_pair,
        'pair': pair_of(pool),
        'with': with_of(pool),
        'await pair': in_loop(loop, await_pair_of(apool)),
        'async with': in_loop(loop, async_with_of(apool)),
    }
    if old_threading is not None:
        old_pool = old_threading.ConnectionPool(managers.blocking(old_threading))
        old_apool = loop.run_until_complete(make(old_asyncio))
        contenders |= {
            'old pair': pair_of(old_pool),
            'old with': with_of(old_pool),
            'old await pair': in_loop(loop, await_pair_of(old_apool)),
            'old async with': in_loop(loop, async_with_of(old_apool)),
        }
    seen = take_turns(contenders, rounds=round(100 * effort) + 5)
    loop.close()
    yield at_most('acquire+release / deque.pop+append', 5, seen['pair'] / seen['deque'], ' x')
    for name in ('with', 'await pair', 'async with'):
        yield Row(f'{name} / deque.pop+append', '', f'{seen[name] / seen["deque"]:.3g} x', None)
    for name, what, bound in (
        ('pair', 'acquire+release', 80), ('with', 'with pool.connection()', 50),
        ('await pair', 'await acquire+release', 0), ('async with', 'async with pool.connection()', 120),
    ):
        case = f'predecessor / gcp: {what}'
        if old_threading is None:
            yield Row(case, f'>= {bound} x', 'the predecessor is not installed', None)
        elif bound:
            yield at_least(case, bound, seen[f'old {name}'] / seen[name], ' x')
        else:
            yield Row(case, '', f'{seen[f"old {name}"] / seen[name]:.4g} x', None)


# --- threads, tasks: waiting in line ---

def compare_loads(
    what: str, run: dict[str, Callable[[], loads.Seen]], rounds: int,
) -> tuple[list[Row], list[loads.Seen]]:
    """Let a pool and a bare queue take turns. The pool is the first of the two."""
    seen: dict[str, list[loads.Seen]] = {name: [] for name in run}
    for _ in range(rounds):
        for name, load in run.items():
            seen[name].append(load())
    ours, bare = seen.values()
    _, bare_name = seen
    fairness = statistics.median(one.fairness for one in ours)
    ratio = statistics.median(one.rate / other.rate for one, other in zip(ours, bare, strict=True))
    return [
        at_least(f'{what}: Jain fairness', 0.99, fairness),
        Row(f'{what}: Jain fairness of {bare_name}', '', f'{statistics.median(s.fairness for s in bare):.3g}', None),
        at_least(f'{what}: throughput / {bare_name}', 95, 100 * ratio, ' %'),
    ], ours


def case_threads(effort: float) -> Iterator[Row]:
    """32 threads on 8 connections held 1 ms, against queue.SimpleQueue"""
    threads, conns, hold, seconds = 32, 8, 0.001, max(3 * effort, 0.5)

    def ours() -> loads.Seen:
        with gcp.threading.ConnectionPool(managers.blocking(gcp.threading), max_size=conns) as pool:
            return loads.in_threads([loads.of_pool(pool, 'a')] * threads, hold, seconds)

    def bare() -> loads.Seen:
        tokens: queue.SimpleQueue[object] = queue.SimpleQueue()
        for _ in range(conns):
            tokens.put(object())
        return loads.in_threads([(tokens.get, tokens.put)] * threads, hold, seconds)

    rows, seen = compare_loads('threads', {'pool': ours, 'queue.SimpleQueue': bare}, rounds=round(4 * effort) + 1)
    yield from rows
    ideal = threads / conns * hold
    longest = statistics.median(one.longest_wait for one in seen)
    yield at_most('threads: longest wait / (32/8 x hold)', 5, longest / ideal, ' x')


def case_tasks(effort: float) -> Iterator[Row]:
    """1000 asyncio tasks on 10 connections held 1 ms, against asyncio.Queue"""
    tasks, conns, hold, seconds = 1000, 10, 0.001, max(3 * effort, 2)

    async def ours() -> loads.Seen:
        async with gcp.asyncio.ConnectionPool(managers.asynchronous(gcp.asyncio), max_size=conns) as pool:
            return await loads.in_tasks([loads.of_pool(pool, 'a')] * tasks, hold, seconds)

    async def bare() -> loads.Seen:
        tokens: asyncio.Queue[object] = asyncio.Queue()
        for _ in range(conns):
            tokens.put_nowait(object())
        return await loads.in_tasks([(tokens.get, tokens.put)] * tasks, hold, seconds)

    rows, _ = compare_loads(
        'tasks', {'pool': lambda: asyncio.run(ours()), 'asyncio.Queue': lambda: asyncio.run(bare())},
        rounds=round(4 * effort) + 1)
    yield from rows


# --- handover: a place moves to another endpoint ---

CREATE = 0.005


def case_handover(effort: float) -> Iterator[Row]:
    """total cap 2, both held by one endpoint, a waiter on another: served as soon as one is released"""
    rounds = round(40 * effort) + 5
    threads = [handover_in_threads() for _ in range(rounds)]
    tasks = [asyncio.run(handover_in_tasks()) for _ in range(rounds)]
    yield at_most('handover, threads: release to served / create', 1.2, statistics.median(threads) / CREATE, ' x')
    yield at_most('handover, asyncio: release to served / create', 1.2, statistics.median(tasks) / CREATE, ' x')


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


# --- sharing: endpoints overload the total cap ---

@dataclass
class Shared:
    """How endpoints shared the total cap, after the first second."""

    seen: loads.Seen
    by_endpoint: list[int]
    evicted: int
    used: float     # part of the connections' time

    @property
    def least(self) -> float:
        return min(self.by_endpoint) / statistics.mean(self.by_endpoint)

    @property
    def most(self) -> float:
        return max(self.by_endpoint) / statistics.mean(self.by_endpoint)


def share(front: ModuleType, cap: int, endpoints: int, workers: int, seconds: float) -> Shared:
    """Overload a total cap: creating takes 20 ms, use 2 ms."""
    names = [f'endpoint {number}' for number in range(endpoints)] * workers
    options: dict[str, Any] = {'max_size': cap, 'total_max_size': cap}
    before: list[Any] = []
    if front is gcp.threading:
        manager = managers.blocking(front, create_time=0.02)
        with gcp.threading.ConnectionPool(manager, **options) as pool:
            seen = loads.in_threads(
                [loads.of_pool(pool, name) for name in names], 0.002, seconds, 1.0, lambda: before.append(pool.stats()))
            after: Any = pool.stats()
    else:
        async def run() -> tuple[loads.Seen, Any]:
            manager = managers.asynchronous(front, create_time=0.02)
            async with gcp.asyncio.ConnectionPool(manager, **options) as pool:
                seen = await loads.in_tasks(
                    [loads.of_pool(pool, name) for name in names], 0.002, seconds, 1.0,
                    lambda: before.append(pool.stats()))
                return seen, pool.stats()

        seen, after = asyncio.run(run())
    return Shared(
        seen=seen,
        by_endpoint=seen.by(names),
        evicted=after.closed['evicted'] - before[0].closed['evicted'],
        used=seen.used / (cap * seen.seconds),
    )


def case_sharing(effort: float) -> Iterator[Row]:
    """5 endpoints overload a total cap of 10; 20 endpoints overload one of 5: shares, evictions, time in use"""
    for name, front in (('threads', gcp.threading), ('asyncio', gcp.asyncio)):
        few = share(front, cap=10, endpoints=5, workers=6, seconds=max(4 * effort, 1))
        yield at_least(f'10 / 5 endpoints, {name}: least served / equal share', 80, 100 * few.least, ' %')
        yield at_most(f'10 / 5 endpoints, {name}: most served / equal share', 120, 100 * few.most, ' %')
        yield at_most(
            f'10 / 5 endpoints, {name}: evictions / acquires', 1, 100 * few.evicted / sum(few.by_endpoint), ' %')
        many = share(front, cap=5, endpoints=20, workers=3, seconds=max(6 * effort, 1))
        yield at_least(f'5 / 20 endpoints, {name}: least served / equal share', 50, 100 * many.least, ' %')
        yield at_least(f'5 / 20 endpoints, {name}: time in use', 80, 100 * many.used, ' %')


# --- expiry: many idle connections at once ---

MANY = 20_000
IDLE = {'min_idle': 0, 'max_size': MANY + 1, 'total_max_size': MANY + 1}


def processor_time_until(quiet: Callable[[], bool], step: Callable[[], object]) -> float:
    """Do something until all is quiet; return the time that all threads of the process spent on it, seconds."""
    start = time.process_time()
    while not quiet():
        step()
    return time.process_time() - start


def expire_in_threads(endpoint: str, **options: Any) -> float:
    """Let many connections expire. Without a collector, acquires and releases of an endpoint sweep them up."""
    pool = gcp.threading.ConnectionPool(managers.blocking(gcp.threading), **IDLE, **options)
    held = [pool.acquire('a') for _ in range(MANY)]
    pool.release(pool.acquire(endpoint), endpoint)
    start = time.monotonic()
    for conn in held:
        pool.release(conn, 'a')
    del held
    filled = pool.get_size()
    time.sleep(max(0.0, pool.idle_timeout - (time.monotonic() - start)))

    def sweep() -> None:
        if options['background_collector']:
            time.sleep(0.005)
        else:
            pool.release(pool.acquire(endpoint), endpoint)

    try:
        return processor_time_until(lambda: pool.get_size() <= 2, sweep) / filled
    finally:
        pool.close(0)


async def expire_in_tasks(endpoint: str, **options: Any) -> float:
    pool = gcp.asyncio.ConnectionPool(managers.asynchronous(gcp.asyncio), **IDLE, **options)
    held = [await pool.acquire('a') for _ in range(MANY)]
    await pool.release(await pool.acquire(endpoint), endpoint)
    start = time.monotonic()
    for conn in held:
        await pool.release(conn, 'a')
    del held
    filled = pool.get_size()
    time.sleep(max(0.0, pool.idle_timeout - (time.monotonic() - start)))    # the loop stands still: nothing expires yet

    async def sweep() -> None:
        if options['background_collector']:
            await asyncio.sleep(0.005)
        else:
            await pool.release(await pool.acquire(endpoint), endpoint)

    begun = time.process_time()
    while pool.get_size() > 2:
        await sweep()
    took = time.process_time() - begun
    await pool.close(0)
    return took / filled


def case_expiry(effort: float) -> Iterator[Row]:
    """20,000 idle connections expire: processor time of the pool for each"""
    rounds = max(round(5 * effort), 1)
    variants: dict[str, dict[str, Any]] = {
        'with a collector': {'endpoint': 'b', 'background_collector': True},
        'swept by releases of another endpoint': {'endpoint': 'b', 'background_collector': False},
        'swept by releases of their endpoint': {'endpoint': 'a', 'background_collector': False},
    }
    for what, options in variants.items():
        for name, expire in (
            ('threads', expire_in_threads),
            ('asyncio', lambda **given: asyncio.run(expire_in_tasks(**given))),
        ):
            seen = [expire(idle_timeout=1.0, **options) for _ in range(rounds)]
            yield at_most(f'expiry, {name}, {what}', 5, statistics.median(seen) * 1e6, ' us')
            gc.collect()


# --- endpoints: one, and a hundred thousand ---

def case_endpoints(effort: float) -> Iterator[Row]:
    """acquire+release over 100,000 endpoints, round and round, against one"""
    number = 100_000
    names = [f'endpoint {i}' for i in range(number)]

    def walk(known: list[str], route: list[str]) -> Contender:
        """Go along a route, a stretch at a time, and again from its beginning."""
        pool = gcp.threading.ConnectionPool(managers.blocking(gcp.threading), total_max_size=number)
        for name in known:
            pool.release(pool.acquire(name), name)
        position = 0

        def run(times: int) -> float:
            nonlocal position
            position = position if position + times <= len(route) else 0
            stretch = route[position:position + times]
            position += times
            start = clock()
            for name in stretch:
                conn = pool.acquire(name)
                pool.release(conn, name)
            return clock() - start

        return run

    seen = take_turns({
        'one': walk(names[:1], names[:1] * number),
        'many': walk(names, names * 20),
        'random': walk(names, random.Random(1).choices(names, k=3 * number)),
    }, rounds=round(100 * effort) + 5)
    yield at_most('endpoints: 100,000, round and round / one', 2.5, seen['many'] / seen['one'], ' x')
    yield Row('endpoints: 100,000, in random order / one', '', f'{seen["random"] / seen["one"]:.3g} x', None)


# --- the table ---

CASES: dict[str, Callable[[float], Iterator[Row]]] = {
    'hit': case_hit,
    'threads': case_threads,
    'tasks': case_tasks,
    'handover': case_handover,
    'sharing': case_sharing,
    'expiry': case_expiry,
    'endpoints': case_endpoints,
}


def show(*cells: str) -> None:
    print('{:<58} | {:<10} | {:<12} | {}'.format(*cells), flush=True)


def main() -> int:
    """Measure and print. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('cases', nargs='*', metavar='case', help=f'one of {", ".join(CASES)}; all by default')
    parser.add_argument('--quick', action='store_true', help='a fifth of the rounds and of the seconds')
    parser.add_argument('--list', action='store_true', help='say what the cases are')
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f'no such case: {", ".join(sorted(unknown))}')
    if arguments.list:
        for name, case in CASES.items():
            print(f'{name:<10} {case.__doc__}')
        return 0
    print(f'{platform.python_implementation()} {platform.python_version()}, {platform.machine()}\n')
    show('case', 'target', 'seen', 'ok')
    show('-' * 58, '-' * 10, '-' * 12, '---')
    missed = 0
    for name in arguments.cases or CASES:
        for row in CASES[name](0.2 if arguments.quick else 1.0):
            show(row.case, row.target, row.seen, {True: 'yes', False: 'NO', None: ''}[row.ok])
            missed += row.ok is False
    print(f'\n{missed} missed' if missed else '\nall met')
    return 1 if missed else 0


if __name__ == '__main__':
    sys.exit(main())
