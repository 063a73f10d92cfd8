"""HikariCP's spike: 5 connections are idle, 50 requests come at once; connecting takes 150 ms, a use 2 ms.

How late is the last request, how many connections were created, and was one created while another lay idle?
(After 'Welcome to the Jungle', a page about such a spike in production, in HikariCP's documentation.)
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

import gcp.asyncio
import gcp.threading

from . import effort, managers, tracks

IDLE, REQUESTS = 5, 50
CONNECT = effort.choose(0.02, 0.15, 0.15)
USE = 0.002


@dataclass
class Request:
    """When a request asked for a connection, got it, and had released it."""

    asked: float = field(default_factory=time.monotonic)
    got: float = inf
    gave: float = inf
    conn: object = None

    def take(self, conn: object) -> None:
        self.conn, self.got = conn, time.monotonic()


@dataclass
class Spike:
    """What was seen.

    :ivar creations: when the creation of each connection began, those before the spike included
    """

    requests: list[Request] = field(default_factory=list)
    creations: dict[object, float] = field(default_factory=dict)
    start: float = inf

    @property
    def slowest(self) -> float:
        """The longest that any request took, seconds."""
        return max(request.gave - request.asked for request in self.requests)

    @property
    def created(self) -> int:
        """How many connections were created for the requests."""
        return sum(begun >= self.start for begun in self.creations.values())

    @property
    def passed_over(self) -> int:
        """For how many requests a connection was created although another was idle all the time."""
        idle = [period for conn in self.creations for period in self.idle_for_sure(conn)]
        return sum(
            any(since <= request.asked and begun <= until for since, until in idle)
            for request in self.requests
            if request.asked <= (begun := self.creations[request.conn]) <= request.got
        )

    def idle_for_sure(self, conn: object) -> Iterator[tuple[float, float]]:
        """The intervals between a release and the moment when the next user of that connection asked."""
        since = self.start if self.creations[conn] < self.start else inf
        for request in sorted((one for one in self.requests if one.conn is conn), key=lambda one: one.got):
            yield since, request.asked
            since = request.gave
        yield since, inf


def noting(manager: Any, spike: Spike) -> Any:
    """Make a manager record when it begins to create each connection."""
    create = manager.create

    def note_and_create(endpoint: object, timeout: float | None = None) -> object:
        begun = time.monotonic()
        conn = create(endpoint, timeout)
        spike.creations[conn] = begun
        return conn

    async def note_and_await(endpoint: object) -> object:
        begun = time.monotonic()
        conn = await create(endpoint)
        spike.creations[conn] = begun
        return conn

    manager.create = note_and_await if inspect.iscoroutinefunction(create) else note_and_create
    return manager


def in_threads() -> Spike:
    spike = Spike()
    manager = noting(managers.blocking(gcp.threading, CONNECT), spike)
    ready = threading.Barrier(REQUESTS)

    def work() -> None:
        ready.wait()
        spike.requests.append(request := Request())
        with pool.connection('db') as conn:
            request.take(conn)
            time.sleep(USE)
        request.gave = time.monotonic()

    with gcp.threading.ConnectionPool(manager, min_idle=IDLE, max_size=REQUESTS) as pool:
        for conn in [pool.acquire('db') for _ in range(IDLE)]:
            pool.release(conn, 'db')
        threads = [threading.Thread(target=work) for _ in range(REQUESTS)]
        spike.start = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return spike


async def in_tasks() -> Spike:
    """The same for asyncio."""
    spike = Spike()
    manager = noting(managers.asynchronous(gcp.asyncio, CONNECT), spike)

    async def work() -> None:
        spike.requests.append(request := Request())
        async with pool.connection('db') as conn:
            request.take(conn)
            await asyncio.sleep(USE)
        request.gave = time.monotonic()

    async with gcp.asyncio.ConnectionPool(manager, min_idle=IDLE, max_size=REQUESTS) as pool:
        for conn in await asyncio.gather(*(pool.acquire('db') for _ in range(IDLE))):
            await pool.release(conn, 'db')
        spike.start = time.monotonic()
        await asyncio.gather(*(work() for _ in range(REQUESTS)))
    return spike


FRONTS = {'threads': in_threads, 'asyncio': lambda: asyncio.run(in_tasks())}


class Hikari:
    """Each front runs once; each benchmark returns one of the values."""

    params = [list(FRONTS)]
    param_names = ['front']

    def setup_cache(self) -> dict[str, tuple[float, int, int]]:
        seen = {front: spike() for front, spike in FRONTS.items()}
        return {front: (spike.slowest, spike.created, spike.passed_over) for front, spike in seen.items()}

    @tracks.less('ms')
    def track_slowest_request_ms(self, seen: dict[str, tuple[float, int, int]], front: str) -> float:
        return 1000 * seen[front][0]

    @tracks.less('connections')
    def track_connections_created(self, seen: dict[str, tuple[float, int, int]], front: str) -> int:
        return seen[front][1]

    @tracks.less('times')
    def track_idle_passed_over(self, seen: dict[str, tuple[float, int, int]], front: str) -> int:
        return seen[front][2]
