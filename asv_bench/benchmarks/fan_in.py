"""Many asyncio tasks on few connections: how many are served, how evenly, how late."""

from __future__ import annotations

import asyncio
from itertools import product

import gcp.asyncio

from . import effort, loads, managers, tracks

CONNECTIONS = 10
SECONDS = effort.choose(0.2, 0.5, 3.0)
WARM_UP = effort.choose(0.0, 0.3, 0.5)

Seen = dict[tuple[int, float], loads.Seen]


async def compete(tasks: int, hold: float) -> loads.Seen:
    """Let tasks share connections that each holds for some milliseconds; 0: for one turn of the loop."""
    manager = managers.asynchronous(gcp.asyncio)
    async with gcp.asyncio.ConnectionPool(manager, max_size=CONNECTIONS) as pool:
        return await loads.in_tasks([loads.of_pool(pool, 'db')] * tasks, hold / 1000, SECONDS, WARM_UP)


class Tasks:
    """All combinations run once; each benchmark returns one of the values."""

    params = [effort.choose([100], [100, 1000], [100, 1000, 10_000]), effort.choose([1.0], [1.0], [0.0, 1.0, 10.0])]
    param_names = ['tasks', 'hold (ms)']
    timeout = 300

    def setup_cache(self) -> Seen:
        return {combination: asyncio.run(compete(*combination)) for combination in product(*self.params)}

    @tracks.more('Jain index')
    def track_jain_fairness(self, seen: Seen, *combination: float) -> float:
        return seen[combination].fairness

    @tracks.more('1/s')
    def track_served_per_second(self, seen: Seen, *combination: float) -> float:
        return seen[combination].rate

    @tracks.less('ms')
    def track_wait_p99_ms(self, seen: Seen, *combination: float) -> float:
        return 1000 * seen[combination].wait(0.99)

    @tracks.less('ms')
    def track_longest_wait_ms(self, seen: Seen, *combination: float) -> float:
        return 1000 * seen[combination].longest_wait
