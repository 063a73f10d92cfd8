"""Workers that compete for connections: each acquires, holds and releases one repeatedly, and takes the times."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Seen:
    """What the workers measured after the warm-up.

    :ivar served: how often each worker was served
    :ivar seconds: how long it took
    :ivar longest_wait: the longest wait of any worker, while it was measured, seconds
    :ivar used: for how long connections were held, seconds in sum
    :ivar waits: all waits of all workers, seconds
    """

    served: list[int]
    seconds: float
    longest_wait: float = 0.0
    used: float = 0.0
    end: float = field(default=0.0, repr=False)
    waits: list[float] = field(default_factory=list, repr=False)

    def note(self, worker: int, asked: float, got: float, gave: float) -> None:
        start = self.end - self.seconds
        if asked >= start:
            self.waits.append(got - asked)
        if got >= start:  # a starved worker has asked before the start, and is served after the others have stopped
            self.longest_wait = max(self.longest_wait, got - max(asked, start))
        if start <= gave <= self.end:
            self.served[worker] += 1
            self.used += gave - got

    @property
    def rate(self) -> float:
        """Acquires served, per second."""
        return sum(self.served) / self.seconds

    @property
    def fairness(self) -> float:
        """Jain's index of the served counts: 1 where all are equal, 1/n where one worker gets everything."""
        return jain(self.served)

    def wait(self, part: float) -> float:
        """Return the quantile of the waits, seconds.

        :param part: from 0 to 1: 0.5 for the median, 0.99 for the tail
        """
        if not 0 <= part <= 1:
            raise ValueError(f'part must be from 0 to 1, not {part!r}')
        return sorted(self.waits)[max(0, math.ceil(part * len(self.waits)) - 1)] if self.waits else math.nan

    def by(self, names: Iterable[Hashable]) -> list[int]:
        """Served counts in sum for workers of the same name."""
        sums: dict[Hashable, int] = defaultdict(int)
        for name, count in zip(names, self.served, strict=True):
            sums[name] += count
        return list(sums.values())


def jain(counts: Sequence[int]) -> float:
    """Jain's fairness index (Jain, Chiu, Hawe 1984)."""
    return sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts) or 1)


BlockingWorker = tuple[Callable[[], Any], Callable[[Any], object]]
AsyncWorker = tuple[Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[object]]]


def in_threads(
    workers: Sequence[BlockingWorker],
    hold: float,
    seconds: float,
    warm_up: float = 0.0,
    when_warm: Callable[[], object] = lambda: None,
) -> Seen:
    """Let threads compete.

    :param workers: for each, a function that acquires a connection and one that releases it
    :param hold: for how long a connection is held, seconds; 0: it is released at once
    :param seconds: for how long to measure
    :param warm_up: for how long to let them run before that, seconds
    :param when_warm: called then
    """
    clock = time.monotonic
    seen = Seen(served=[0] * len(workers), seconds=seconds)
    ready = threading.Barrier(len(workers) + 1)

    def work(number: int, take: Callable[[], Any], give: Callable[[Any], object]) -> None:
        try:
            ready.wait()
        except threading.BrokenBarrierError:
            return
        gave = clock()
        while gave < seen.end:
            asked = gave
            conn = take()
            got = clock()
            if hold:
                time.sleep(hold)
            give(conn)
            gave = clock()
            seen.note(number, asked, got, gave)

    threads = [
        threading.Thread(target=work, args=(number, *worker), daemon=True) for number, worker in enumerate(workers)
    ]
    try:
        for thread in threads:
            thread.start()
        seen.end = clock() + warm_up + seconds
        ready.wait()
        time.sleep(warm_up)
        when_warm()
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C: the barrier is given up, and each worker stops once it is served
        seen.end = 0.0
        ready.abort()
        for thread in threads:
            if thread.is_alive():
                thread.join(timeout=0.1)
        raise
    return seen


async def in_tasks(
    workers: Sequence[AsyncWorker],
    hold: float,
    seconds: float,
    warm_up: float = 0.0,
    when_warm: Callable[[], object] = lambda: None,
) -> Seen:
    """Let tasks compete. As `in_threads`, but with no hold a task lets the others run after each release."""
    clock = time.monotonic
    seen = Seen(served=[0] * len(workers), seconds=seconds, end=clock() + warm_up + seconds)

    async def work(
        number: int,
        take: Callable[[], Awaitable[Any]],
        give: Callable[[Any], Awaitable[object]],
    ) -> None:
        gave = clock()
        while gave < seen.end:
            asked = gave
            conn = await take()
            got = clock()
            await asyncio.sleep(hold)
            await give(conn)
            gave = clock()
            seen.note(number, asked, got, gave)

    tasks = [asyncio.ensure_future(work(number, *worker)) for number, worker in enumerate(workers)]
    await asyncio.sleep(warm_up)
    when_warm()
    await asyncio.gather(*tasks)
    return seen


def of_pool(pool: Any, endpoint: object) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Make a worker that acquires connections to an endpoint from a pool, of either front."""
    return lambda: pool.acquire(endpoint), lambda conn: pool.release(conn, endpoint)
