"""One endpoint, and a hundred thousand. Times are for a thousand acquires and releases, in turn or in random order."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from . import bodies

ENDPOINTS = bodies.effort.choose([1, 100], [1, 100, 100_000], [1, 100, 10_000, 100_000])
ROUTE = 100_000
"""After so many endpoints the way begins again: those at hand in the processor's caches are others by then."""


@cache
def filled(endpoints: int) -> tuple[bodies.OnThreads, tuple[str, ...]]:
    """Make a pool of many endpoints, each with an idle connection. All samples share it: making it takes a second."""
    names = tuple(f'endpoint {number}' for number in range(endpoints))
    threads = bodies.OnThreads()
    threads.open(names, total_max_size=max(100, endpoints))
    return threads, names


class Threads(bodies.effort.Timed):
    params = [ENDPOINTS, ['in turn', 'random']]
    param_names = ['endpoints', 'order']

    def setup(self, endpoints: int, order: str) -> None:
        self.threads, names = filled(endpoints)
        self.threads.keys = self.stretch(names, order)

    def stretch(self, names: tuple[str, ...], order: str) -> tuple[str, ...]:
        """Return the next thousand endpoints of the route."""
        if order == 'random':
            return tuple(random.choices(names, k=bodies.TIMES))
        first = getattr(self, 'first', 0)
        self.first = (first + bodies.TIMES) % ROUTE
        return tuple(names[number % len(names)] for number in range(first, first + bodies.TIMES))

    def time_acquire_release(self, *params: Any) -> None:
        self.threads.acquire_release()
