"""The two loads: threads with psycopg2 through one pool, and asyncio tasks with asyncpg through another.

A query that fails on an acquired connection is retried on another one. Failed acquires are not retried."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any

import asyncpg
import psycopg2

import gcp.contrib.asyncpg
import gcp.contrib.psycopg2
from gcp.asyncio import ConnectionPool as TasksPool
from gcp.demo.databases import Databases
from gcp.demo.tally import Tally
from gcp.demo.work import ACQUIRE_TIMEOUT, ATTEMPTS, CLOSE_TIMEOUT, PID_QUERY, PID_TIMEOUT, GaveUpError, Work
from gcp.stats import PoolStats
from gcp.threading import ConnectionPool as ThreadsPool

__all__ = ['CONNECTIONS', 'TasksLoad', 'ThreadsLoad']

#: connections per endpoint, by load: far fewer than workers, so that acquires have to wait
CONNECTIONS = {'threads': 4, 'tasks': 8}

#: what asyncpg raises when a query fails; an internal error if the connection was closed before the query
BROKEN = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


class ThreadsLoad:
    """Threads that share a pool."""

    name = 'threads'

    def __init__(self, databases: Databases, workers: int, over: threading.Event) -> None:
        self.workers = workers
        self.tally = Tally()
        self._table = databases.table
        self._over = over
        self._pool: ThreadsPool[str, gcp.contrib.psycopg2.Connection] = ThreadsPool(
            gcp.contrib.psycopg2.DbConnectionManager(databases.for_psycopg2(self.name)),
            max_size=CONNECTIONS[self.name],
            idle_timeout=None,
            max_lifetime=None,
            name=self.name,
        )
        self._threads = [
            threading.Thread(target=self._work, args=(seed,), name=f'demo-{seed}', daemon=True)
            for seed in range(workers)
        ]

    def stats(self) -> PoolStats[str]:
        return self._pool.stats()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait_finished(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def backend_pids(self, endpoints: Sequence[str]) -> list[int]:
        with contextlib.ExitStack() as held:
            conns = [held.enter_context(self._pool.connection(endpoint, PID_TIMEOUT)) for endpoint in endpoints]
            return [_query(conn, PID_QUERY)[0] for conn in conns]

    def close(self) -> None:
        self._pool.close(CLOSE_TIMEOUT)

    def _work(self, seed: int) -> None:
        work = Work(self._table, seed)
        while not self._over.is_set():
            self._do(*work.pick())

    def _do(self, endpoint: str, query: str) -> None:
        for _ in range(ATTEMPTS):
            if self._attempt(endpoint, query):
                return
            self.tally.retry()
        self.tally.fail(GaveUpError(f'after {ATTEMPTS} attempts'))

    def _attempt(self, endpoint: str, query: str) -> bool:
        """Execute a query. Return False if it has to be retried."""
        served = False
        asked = self.tally.begin()
        try:
            with self._pool.connection(endpoint, ACQUIRE_TIMEOUT) as conn:
                served = self.tally.acquired(asked)
                _query(conn, query)
                conn.commit()
        except Exception as error:
            if served and isinstance(error, psycopg2.Error):
                return False
            self.tally.fail(error)
        else:
            self.tally.finish()
        return True


class TasksLoad:
    """Asyncio tasks, in an event loop in a thread of its own."""

    name = 'tasks'

    def __init__(self, databases: Databases, workers: int, over: threading.Event) -> None:
        self.workers = workers
        self.tally = Tally()
        self._table = databases.table
        self._over = over
        self._pool: TasksPool[str, Any] = TasksPool(
            gcp.contrib.asyncpg.DbConnectionManager[Any](databases.for_asyncpg(self.name)),
            max_size=CONNECTIONS[self.name],
            idle_timeout=None,
            max_lifetime=None,
            name=self.name,
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name='demo-loop', daemon=True)
        self._started, self._finished, self._closing = threading.Event(), threading.Event(), asyncio.Event()

    def stats(self) -> PoolStats[str]:
        return self._pool.stats()

    def start(self) -> None:
        self._thread.start()
        self._started.wait()

    def wait_finished(self, timeout: float) -> bool:
        return self._finished.wait(timeout)

    def backend_pids(self, endpoints: Sequence[str]) -> list[int]:
        return asyncio.run_coroutine_threadsafe(self._backend_pids(endpoints), self._loop).result(PID_TIMEOUT)

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(2 * CLOSE_TIMEOUT)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._started.set()
        await asyncio.gather(*(self._work(seed) for seed in range(self.workers)))
        self._finished.set()
        await self._closing.wait()
        await self._pool.close(CLOSE_TIMEOUT)

    async def _backend_pids(self, endpoints: Sequence[str]) -> list[int]:
        async with contextlib.AsyncExitStack() as held:
            conns = [
                await held.enter_async_context(self._pool.connection(endpoint, PID_TIMEOUT)) for endpoint in endpoints
            ]
            return [await conn.fetchval(PID_QUERY) for conn in conns]

    async def _work(self, seed: int) -> None:
        work = Work(self._table, seed)
        while not self._over.is_set():
            await self._do(*work.pick())

    async def _do(self, endpoint: str, query: str) -> None:
        for _ in range(ATTEMPTS):
            if await self._attempt(endpoint, query):
                return
            self.tally.retry()
        self.tally.fail(GaveUpError(f'after {ATTEMPTS} attempts'))

    async def _attempt(self, endpoint: str, query: str) -> bool:
        """Execute a query. Return False if it has to be retried."""
        served = False
        asked = self.tally.begin()
        try:
            async with self._pool.connection(endpoint, ACQUIRE_TIMEOUT) as conn:
                served = self.tally.acquired(asked)
                await conn.execute(query)
        except Exception as error:
            if served and isinstance(error, BROKEN):
                return False
            self.tally.fail(error)
        else:
            self.tally.finish()
        return True


def _query(conn: gcp.contrib.psycopg2.Connection, query: str) -> Any:
    with conn.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()
