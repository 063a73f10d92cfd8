"""HikariCP's spike: 5 connections are idle, 50 requests come at once; connecting takes 150 ms, a use 2 ms.

How late is the last request, how many connections were created, and was one created while another lay idle?
(After 'Welcome to the Jungle', a page about such a spike in production, in HikariCP's documentation.)
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

import gcp.asyncio
import gcp.threading

from . import effort, managers, tracks
from .adapters import fakes

IDLE, REQUESTS = 5, 50
CONNECT = effort.choose(0.02, 0.15, 0.15)
USE = 0.002
WORKERS = 3


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
    :ivar attempts: when each connect began, those included that have not ended
    """

    requests: list[Request] = field(default_factory=list)
    creations: dict[object, float] = field(default_factory=dict)
    start: float = inf
    attempts: list[float] = field(default_factory=list)

    @property
    def slowest(self) -> float:
        """The longest that any request took, seconds."""
        return max(request.gave - request.asked for request in self.requests)

    @property
    def created(self) -> int:
        """How many connections were created for the requests."""
        return sum(begun >= self.start for begun in self.attempts)

    def begin(self) -> float:
        """Record that a connect begins, and return the time."""
        self.attempts.append(begun := time.monotonic())
        return begun

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
        begun = spike.begin()
        conn = create(endpoint, timeout)
        spike.creations[conn] = begun
        return conn

    async def note_and_await(endpoint: object) -> object:
        begun = spike.begin()
        conn = await create(endpoint)
        spike.creations[conn] = begun
        return conn

    manager.create = note_and_await if inspect.iscoroutinefunction(create) else note_and_create
    return manager


def in_threads(connect_workers: int = 0) -> Spike:
    spike = Spike()
    manager = noting(managers.blocking(gcp.threading, CONNECT), spike)
    with gcp.threading.ConnectionPool(
        manager, min_idle=IDLE, max_size=REQUESTS, connect_workers=connect_workers
    ) as pool:
        pool.warm_up('db')
        request_in_threads(spike, lambda: pool.connection('db'))
    return spike


def in_threads_of_psycopg_pool() -> Spike:
    """The same with psycopg_pool, by as many workers."""
    from psycopg_pool import ConnectionPool

    spike = Spike()

    class Connection(fakes.psycopg_connection()):  # type: ignore[misc]
        @classmethod
        def connect(cls, conninfo: str, **options: Any) -> object:
            begun = spike.begin()
            time.sleep(CONNECT)
            spike.creations[conn := cls()] = begun
            return conn

    with ConnectionPool(
        connection_class=Connection, min_size=IDLE, max_size=REQUESTS, num_workers=WORKERS, open=False
    ) as pool:
        pool.wait()
        request_in_threads(spike, pool.connection)
    return spike


def request_in_threads(spike: Spike, connection: Callable[[], Any]) -> None:
    ready = threading.Barrier(REQUESTS)

    def work() -> None:
        ready.wait()
        spike.requests.append(request := Request())
        with connection() as conn:
            request.take(conn)
            time.sleep(USE)
        request.gave = time.monotonic()

    threads = [threading.Thread(target=work) for _ in range(REQUESTS)]
    spike.start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def in_tasks(connect_workers: int = 0) -> Spike:
    """The same for asyncio."""
    spike = Spike()
    manager = noting(managers.asynchronous(gcp.asyncio, CONNECT), spike)
    async with gcp.asyncio.ConnectionPool(
        manager, min_idle=IDLE, max_size=REQUESTS, connect_workers=connect_workers
    ) as pool:
        await pool.warm_up('db')
        await request_in_tasks(spike, lambda: pool.connection('db'))
    return spike


async def in_tasks_of_psycopg_pool() -> Spike:
    from psycopg_pool import AsyncConnectionPool

    spike = Spike()

    class Connection(fakes.psycopg_async_connection()):  # type: ignore[misc]
        @classmethod
        async def connect(cls, conninfo: str, **options: Any) -> object:
            begun = spike.begin()
            await asyncio.sleep(CONNECT)
            spike.creations[conn := cls()] = begun
            return conn

    async with AsyncConnectionPool(
        connection_class=Connection, min_size=IDLE, max_size=REQUESTS, num_workers=WORKERS, open=False
    ) as pool:
        await pool.wait()
        await request_in_tasks(spike, pool.connection)
    return spike


async def request_in_tasks(spike: Spike, connection: Callable[[], Any]) -> None:
    async def work() -> None:
        spike.requests.append(request := Request())
        async with connection() as conn:
            request.take(conn)
            await asyncio.sleep(USE)
        request.gave = time.monotonic()

    spike.start = time.monotonic()
    await asyncio.gather(*(work() for _ in range(REQUESTS)))


FRONTS: dict[str, Callable[[], Spike]] = {'threads': in_threads, 'asyncio': lambda: asyncio.run(in_tasks())}
WITH_WORKERS: dict[str, Callable[[], Spike]] = {
    'threads': functools.partial(in_threads, WORKERS),
    'asyncio': lambda: asyncio.run(in_tasks(WORKERS)),
}
OF_PSYCOPG_POOL: dict[str, Callable[[], Spike]] = {
    'threads': in_threads_of_psycopg_pool,
    'asyncio': lambda: asyncio.run(in_tasks_of_psycopg_pool()),
}


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
