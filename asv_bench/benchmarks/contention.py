"""More callers than connections: who is served, how many, and how late."""

from __future__ import annotations

import asyncio

import gcp.asyncio
import gcp.threading

from . import loads, managers

HOLD, SECONDS = 0.001, 0.5


class Threads:
    """32 threads share 8 connections, each held for a millisecond."""

    def setup_cache(self) -> tuple[float, float, float]:
        pool = gcp.threading.ConnectionPool(managers.blocking(gcp.threading), max_size=8)
        worker = (lambda: pool.acquire('db'), lambda conn: pool.release(conn, 'db'))
        seen = loads.in_threads([worker] * 32, HOLD, SECONDS, 0.1)
        return seen.fairness, seen.rate, seen.longest_wait

    def track_jain_fairness(self, seen: tuple[float, float, float]) -> float:
        return seen[0]

    def track_served_per_second(self, seen: tuple[float, float, float]) -> float:
        return seen[1]

    def track_longest_wait(self, seen: tuple[float, float, float]) -> float:
        return seen[2]


class Tasks:
    """1000 tasks share 10 connections, each held for a millisecond."""

    def setup_cache(self) -> tuple[float, float, float]:
        async def run() -> loads.Seen:
            pool = gcp.asyncio.ConnectionPool(managers.asynchronous(gcp.asyncio), max_size=10)
            worker = (lambda: pool.acquire('db'), lambda conn: pool.release(conn, 'db'))
            return await loads.in_tasks([worker] * 1000, HOLD, SECONDS, 0.3)

        seen = asyncio.run(run())
        return seen.fairness, seen.rate, seen.longest_wait

    def track_jain_fairness(self, seen: tuple[float, float, float]) -> float:
        return seen[0]

    def track_served_per_second(self, seen: tuple[float, float, float]) -> float:
        return seen[1]

    def track_longest_wait(self, seen: tuple[float, float, float]) -> float:
        return seen[2]


Threads.track_served_per_second.unit = Tasks.track_served_per_second.unit = '1/s'  # type: ignore[attr-defined]
Threads.track_longest_wait.unit = Tasks.track_longest_wait.unit = 's'  # type: ignore[attr-defined]
