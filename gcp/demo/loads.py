"""The two crowds: threads on psycopg2 through one pool, asyncio tasks on asyncpg through another. The same page twice.

A query that fails once it has its connection is tried again, on another one. Nothing else is tried twice."""

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
from gcp.demo.work import ACQUIRE_TIMEOUT, ATTEMPTS, CLOSE_TIMEOUT, ROLL, ROLL_TIMEOUT, GaveUpError, Work
from gcp.stats import PoolStats
from gcp.threading import ConnectionPool as ThreadsPool

__all__ = ['CONNECTIONS', 'TasksLoad', 'ThreadsLoad']

#: Connections per endpoint, by crowd: far fewer than workers, so that there is a line to watch.
CONNECTIONS = {'threads': 4, 'tasks': 8}

#: How asyncpg tells that a query failed; by an internal error where the connection heard its end before the question.
BROKEN = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


class ThreadsLoad:
    """Threads."""

    name = 'threads'

    def __init__(self, databases: Databases, workers: int, over: threading.Event) -> None:
        self.workers = workers
        self.tally = Tally()
        self._table = databases.table
        self._over = over
        self._pool: ThreadsPool[str, gcp.contrib.psycopg2.Connection] = ThreadsPool(
            gcp.contrib.psycopg2.DbConnectionManager(databases.for_psycopg2(self.name)),
            max_size=CONNECTIONS[self.name], idle_timeout=None, max_lifetime=None, name=self.name,
        )
        self._threads = [
            threading.Thread(target=self._labour, args=(seed,), name=f'demo-{seed}', daemon=True)
            for seed in range(workers)
        ]

    def stats(self) -> PoolStats[str]:
        return self._pool.stats()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def rest(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def call_roll(self, endpoints: Sequence[str]) -> list[int]:
        with contextlib.ExitStack() as held:
            conns = [held.enter_context(self._pool.connection(endpoint, ROLL_TIMEOUT)) for endpoint in endpoints]
            return [_ask(conn, ROLL)[0] for conn in conns]

    def close(self) -> None:
        self._pool.close(CLOSE_TIMEOUT)

    def _labour(self, seed: int) -> None:
        work = Work(self._table, seed)
        while not self._over.is_set():
            self._do(*work.pick())

    def _do(self, endpoint: str, question: str) -> None:
        for _ in range(ATTEMPTS):
            if self._attempt(endpoint, question):
                return
            self.tally.lose()
        self.tally.fail(GaveUpError(f'after {ATTEMPTS} attempts'))

    def _attempt(self, endpoint: str, question: str) -> bool:
        """Do a piece of work; tell whether it need not be tried again."""
        served = False
        asked = self.tally.ask()
        try:
            with self._pool.connection(endpoint, ACQUIRE_TIMEOUT) as conn:
                served = self.tally.serve(asked)
                _ask(conn, question)
                conn.commit()
        except Exception as error:
            if served and isinstance(error, psycopg2.Error):
                return False
            self.tally.fail(error)
        else:
            self.tally.finish()
        return True


class TasksLoad:
    """Asyncio tasks, in an event loop with a thread of its own."""

    name = 'tasks'

    def __init__(self, databases: Databases, workers: int, over: threading.Event) -> None:
        self.workers = workers
        self.tally = Tally()
        self._table = databases.table
        self._over = over
        self._pool: TasksPool[str, Any] = TasksPool(
            gcp.contrib.asyncpg.DbConnectionManager[Any](databases.for_asyncpg(self.name)),
            max_size=CONNECTIONS[self.name], idle_timeout=None, max_lifetime=None, name=self.name,
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name='demo-loop', daemon=True)
        self._started, self._resting, self._closing = threading.Event(), threading.Event(), asyncio.Event()

    def stats(self) -> PoolStats[str]:
        return self._pool.stats()

    def start(self) -> None:
        self._thread.start()
        self._started.wait()

    def rest(self, timeout: float) -> bool:
        return self._resting.wait(timeout)

    def call_roll(self, endpoints: Sequence[str]) -> list[int]:
        return asyncio.run_coroutine_threadsafe(self._call_roll(endpoints), self._loop).result(ROLL_TIMEOUT)

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(2 * CLOSE_TIMEOUT)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._started.set()
        await asyncio.gather(*(self._labour(seed) for seed in range(self.workers)))
        self._resting.set()
        await self._closing.wait()
        await self._pool.close(CLOSE_TIMEOUT)

    async def _call_roll(self, endpoints: Sequence[str]) -> list[int]:
        async with contextlib.AsyncExitStack() as held:
            conns = [
                await held.enter_async_context(self._pool.connection(endpoint, ROLL_TIMEOUT)) for endpoint in endpoints
            ]
            return [await conn.fetchval(ROLL) for conn in conns]

    async def _labour(self, seed: int) -> None:
        work = Work(self._table, seed)
        while not self._over.is_set():
            await self._do(*work.pick())

    async def _do(self, endpoint: str, question: str) -> None:
        for _ in range(ATTEMPTS):
            if await self._attempt(endpoint, question):
                return
            self.tally.lose()
        self.tally.fail(GaveUpError(f'after {ATTEMPTS} attempts'))

    async def _attempt(self, endpoint: str, question: str) -> bool:
        """Do a piece of work; tell whether it need not be tried again."""
        served = False
        asked = self.tally.ask()
        try:
            async with self._pool.connection(endpoint, ACQUIRE_TIMEOUT) as conn:
                served = self.tally.serve(asked)
                await conn.execute(question)
        except Exception as error:
            if served and isinstance(error, BROKEN):
                return False
            self.tally.fail(error)
        else:
            self.tally.finish()
        return True


def _ask(conn: gcp.contrib.psycopg2.Connection, question: str) -> Any:
    with conn.cursor() as cursor:
        cursor.execute(question)
        return cursor.fetchone()
