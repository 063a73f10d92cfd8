"""More threads than connections: how many are served, how evenly, how late."""

from __future__ import annotations

from itertools import product

import gcp.threading

from . import effort, loads, managers, tracks

SECONDS = effort.choose(0.2, 0.5, 3.0)
WARM_UP = effort.choose(0.0, 0.1, 0.5)

Seen = dict[tuple[int, int, float], loads.Seen]


def compete(threads: int, connections: int, hold: float) -> loads.Seen:
    """Let threads share connections that each holds for some milliseconds."""
    manager = managers.blocking(gcp.threading)
    with gcp.threading.ConnectionPool(manager, max_size=connections) as pool:
        return loads.in_threads([loads.of_pool(pool, 'db')] * threads, hold / 1000, SECONDS, WARM_UP)


class Threads:
    """All combinations run once; each benchmark returns one of the values."""

    params = [
        effort.choose([8], [32], [8, 32, 200]),
        effort.choose([4], [8], [4, 8, 32]),
        effort.choose([0.0], [0.0, 1.0], [0.0, 1.0, 10.0]),
    ]
    param_names = ['threads', 'connections', 'hold (ms)']
    timeout = 300

    def setup_cache(self) -> Seen:
        return {combination: compete(*combination) for combination in product(*self.params)}

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
