"""Endpoints that compete for the total cap: how evenly they share it, and what the sharing costs.

A creation takes 20 ms, a use 2 ms, and there are more workers than connections all the time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import product
from statistics import mean
from typing import Any

import gcp.asyncio
import gcp.threading

from . import effort, loads, managers, tracks

CREATE, USE = 0.02, 0.002
SECONDS = effort.choose(0.1, 1.0, 6.0)
WARM_UP = effort.choose(0.1, 0.5, 1.0)


@dataclass
class Load:
    """The number of endpoints, of workers on each, and of connections for all."""

    endpoints: int
    workers: int
    cap: int

    @property
    def names(self) -> list[str]:
        """The endpoint of each worker."""
        return [f'endpoint {number}' for number in range(self.endpoints)] * self.workers

    @property
    def limits(self) -> dict[str, Any]:
        return {'max_size': self.cap, 'total_max_size': self.cap}


LOADS = {
    '5 endpoints on 10': Load(endpoints=5, workers=6, cap=10),
    '20 endpoints on 5': Load(endpoints=20, workers=3, cap=5),
}


@dataclass
class Shared:
    """How the total cap was shared, after the warm-up.

    :ivar served: how often each endpoint was served
    :ivar evicted: how many connections were evicted
    :ivar used: the part of the connections' time for which they were in use
    """

    served: list[int]
    evicted: int
    used: float


def in_threads(load: Load) -> Shared:
    evicted: list[int] = []
    with gcp.threading.ConnectionPool(managers.blocking(gcp.threading, CREATE), **load.limits) as pool:
        workers = [loads.of_pool(pool, name) for name in load.names]
        seen = loads.in_threads(workers, USE, SECONDS, WARM_UP, lambda: evicted.append(evictions(pool)))
        return shared(load, seen, evictions(pool) - evicted[0])


async def in_tasks(load: Load) -> Shared:
    evicted: list[int] = []
    async with gcp.asyncio.ConnectionPool(managers.asynchronous(gcp.asyncio, CREATE), **load.limits) as pool:
        workers = [loads.of_pool(pool, name) for name in load.names]
        seen = await loads.in_tasks(workers, USE, SECONDS, WARM_UP, lambda: evicted.append(evictions(pool)))
        return shared(load, seen, evictions(pool) - evicted[0])


def evictions(pool: Any) -> int:
    count: int = pool.stats().closed['evicted']
    return count


def shared(load: Load, seen: loads.Seen, evicted: int) -> Shared:
    return Shared(seen.by(load.names), evicted, seen.used / (load.cap * seen.seconds))


FRONTS = {'threads': in_threads, 'asyncio': lambda load: asyncio.run(in_tasks(load))}
Seen = dict[tuple[str, str], Shared]


class Overloaded:
    """All combinations run once; each benchmark returns one of the values."""

    params = [list(FRONTS), list(LOADS)]
    param_names = ['front', 'load']
    timeout = 300

    def setup_cache(self) -> Seen:
        return {(front, load): FRONTS[front](LOADS[load]) for front, load in product(*self.params)}

    @tracks.more('% of an equal share')
    def track_least_served_percent(self, seen: Seen, *combination: str) -> float:
        served = seen[combination].served
        return 100 * min(served) / mean(served)

    @tracks.less('% of an equal share')
    def track_most_served_percent(self, seen: Seen, *combination: str) -> float:
        served = seen[combination].served
        return 100 * max(served) / mean(served)

    @tracks.more('1/s')
    def track_served_per_second(self, seen: Seen, *combination: str) -> float:
        return sum(seen[combination].served) / SECONDS

    @tracks.less('% of acquires')
    def track_evictions_percent(self, seen: Seen, *combination: str) -> float:
        return 100 * seen[combination].evicted / sum(seen[combination].served)

    @tracks.more('% of their time')
    def track_in_use_percent(self, seen: Seen, *combination: str) -> float:
        return 100 * seen[combination].used
