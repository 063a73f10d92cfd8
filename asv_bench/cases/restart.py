"""PostgreSQL away for two seconds, under load: what callers, the server and the first query afterwards see of it.

gcp and psycopg_pool have the same load in turn, each with a restart of its own, with psycopg. Errors of queries, and of
what follows them, are the driver's: a query that is interrupted by the restart fails with any pool."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

from benchmarks.adapters import THREADS
from benchmarks.adapters.peer import is_installed

import gcp.asyncio
import gcp.threading
from gcp.demo.server import Server, ServerError, serve
from gcp.limits import Retry

from .contest import GCP, PSYCOPG, interleave, repetitions
from .rows import Row, at_most, inform, unmeasured

SIZE, TIMEOUT = 4, 5.0
AWAY, AROUND = 2.0, 1.0
"""How long the server is away, and how long the load runs before and after, seconds."""
CALLERS = {'8 threads': 8, '100 tasks': 100}
OPTIONS: dict[str, Any] = {
    'min_idle': SIZE,
    'max_size': SIZE,
    'acquire_timeout': TIMEOUT,
    'connect_retry': Retry(maximum=0.4),
    'max_connecting': 2,
}


@dataclass
class Seen:
    """What was seen of a restart.

    :ivar refused: errors of acquiring a connection
    :ivar interrupted: errors of queries
    :ivar attempts: when each connect began
    :ivar served: when each query had its answer
    """

    refused: list[Exception] = field(default_factory=list)
    interrupted: list[Exception] = field(default_factory=list)
    attempts: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    gone: float = inf
    back: float = inf

    @property
    def attempts_while_away(self) -> int:
        return sum(self.gone <= begun <= self.back for begun in self.attempts)

    @property
    def delay(self) -> float:
        """How long after the server's return the first query was answered, seconds."""
        return min((moment for moment in self.served if moment > self.back), default=inf) - self.back

    def restart(self, server: Server) -> None:
        time.sleep(AROUND)
        server.stop()
        self.gone = time.monotonic()
        time.sleep(AWAY)
        server.start()
        self.back = time.monotonic()
        time.sleep(AROUND)


# --- threads ---


@contextlib.contextmanager
def open_gcp(parameters: dict[str, str], seen: Seen) -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
    from gcp.contrib.psycopg import DbConnectionManager

    class Manager(DbConnectionManager):
        def create(self, endpoint: str, timeout: float | None = None) -> Any:
            seen.attempts.append(time.monotonic())
            return super().create(endpoint, timeout)

    with gcp.threading.ConnectionPool(Manager({'db': parameters}), **OPTIONS) as pool:
        yield lambda: pool.acquire('db'), lambda conn, error: pool.release(conn, 'db', error=error)


@contextlib.contextmanager
def open_psycopg_pool(
    parameters: dict[str, str], seen: Seen
) -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
    import psycopg
    from psycopg_pool import ConnectionPool

    class Connection(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Any:
            seen.attempts.append(time.monotonic())
            return super().connect(*args, **kwargs)

    with ConnectionPool(
        kwargs=parameters, connection_class=Connection, min_size=SIZE, max_size=SIZE, timeout=TIMEOUT, open=False
    ) as pool:
        pool.wait()
        yield pool.getconn, lambda conn, error: pool.putconn(conn)


def in_threads(open_pool: Callable[..., Any], server: Server) -> Seen:
    seen = Seen()
    stopped = threading.Event()

    def work() -> None:
        while not stopped.wait(0.002):
            try:
                conn = acquire()
            except Exception as error:
                seen.refused.append(error)
                continue
            failed = None
            try:
                conn.execute('SELECT 1').fetchone()
                seen.served.append(time.monotonic())
            except Exception as error:
                seen.interrupted.append(failed := error)
            with contextlib.suppress(Exception):
                release(conn, failed)

    with open_pool(server.parameters, seen) as (acquire, release):
        threads = [threading.Thread(target=work) for _ in range(CALLERS['8 threads'])]
        for thread in threads:
            thread.start()
        seen.restart(server)
        stopped.set()
        for thread in threads:
            thread.join()
    return seen


# --- tasks ---


@contextlib.asynccontextmanager
async def open_async_gcp(parameters: dict[str, str], seen: Seen) -> AsyncIterator[Any]:
    from gcp.contrib.psycopg import AsyncDbConnectionManager

    class Manager(AsyncDbConnectionManager):
        async def create(self, endpoint: str) -> Any:
            seen.attempts.append(time.monotonic())
            return await super().create(endpoint)

    async with gcp.asyncio.ConnectionPool(Manager({'db': parameters}), **OPTIONS) as pool:
        yield lambda: pool.acquire('db'), lambda conn, error: pool.release(conn, 'db', error=error)


@contextlib.asynccontextmanager
async def open_async_psycopg_pool(parameters: dict[str, str], seen: Seen) -> AsyncIterator[Any]:
    import psycopg
    from psycopg_pool import AsyncConnectionPool

    class Connection(psycopg.AsyncConnection[Any]):
        @classmethod
        async def connect(cls, *args: Any, **kwargs: Any) -> Any:
            seen.attempts.append(time.monotonic())
            return await super().connect(*args, **kwargs)

    async with AsyncConnectionPool(
        kwargs=parameters, connection_class=Connection, min_size=SIZE, max_size=SIZE, timeout=TIMEOUT, open=False
    ) as pool:
        await pool.wait()
        yield pool.getconn, lambda conn, error: pool.putconn(conn)


def in_tasks(open_pool: Callable[..., Any], server: Server) -> Seen:
    """In a thread of their own: the server ends with the thread that has started it."""
    seen = Seen()
    opened, stopped = threading.Event(), threading.Event()

    async def work(acquire: Callable[..., Any], release: Callable[..., Any]) -> None:
        while not stopped.is_set():
            await asyncio.sleep(0.002)
            try:
                conn = await acquire()
            except Exception as error:
                seen.refused.append(error)
                continue
            failed = None
            try:
                cursor = await conn.execute('SELECT 1')
                await cursor.fetchone()
                seen.served.append(time.monotonic())
            except Exception as error:
                seen.interrupted.append(failed := error)
            with contextlib.suppress(Exception):
                await release(conn, failed)

    async def work_all() -> None:
        async with open_pool(server.parameters, seen) as ways:
            opened.set()
            await asyncio.gather(*(work(*ways) for _ in range(CALLERS['100 tasks'])))

    thread = threading.Thread(target=lambda: asyncio.run(work_all()))
    thread.start()
    opened.wait()
    seen.restart(server)
    stopped.set()
    thread.join()
    return seen


def contenders(server: Server, callers: str) -> dict[str, Callable[[], Seen]]:
    pools: dict[str, Any]
    if callers == '8 threads':
        load, pools = in_threads, {GCP: open_gcp, PSYCOPG: open_psycopg_pool}
    else:
        load, pools = in_tasks, {GCP: open_async_gcp, PSYCOPG: open_async_psycopg_pool}
    return {
        name: functools.partial(load, open_pool, server)
        for name, open_pool in pools.items()
        if not THREADS[name].missing
    }


def case_restart(effort: float) -> Iterator[Row]:
    """PostgreSQL restarted under 8 threads and 100 tasks, 2 s away, time-out 5 s: the worst of a few; by the clock"""
    what = f'PostgreSQL {AWAY:g} s away'
    if not is_installed('psycopg'):
        yield unmeasured(f'{what}: callers that got an error', 0, '', 'not installed: psycopg')
        return
    logging.disable(logging.CRITICAL)  # psycopg_pool logs each failed connect
    try:
        with serve(max_connections=30) as server:
            for callers in CALLERS:
                seen = interleave(contenders(server, callers), repetitions(effort, 3, 1))
                yield from rows(f'{what}, {callers}', seen)
                if missing := THREADS[PSYCOPG].missing:
                    yield unmeasured(f'{what}, {callers}, {PSYCOPG}: callers that got an error', 0, '', missing)
    except ServerError as error:
        yield unmeasured(f'{what}: callers that got an error', 0, '', str(error))
    finally:
        logging.disable(logging.NOTSET)


def rows(what: str, seen: dict[str, list[Seen]]) -> Iterator[Row]:
    for name, all_of_it in seen.items():
        make: Any = at_most if name == GCP else lambda what, bound, *rest: inform(what, *rest)
        yield make(f'{what}, {name}: callers that got an error', 0, sum(len(one.refused) for one in all_of_it))
        yield make(f'{what}, {name}: connects while it was away', 10, max(one.attempts_while_away for one in all_of_it))
        yield make(f'{what}, {name}: served again after', 500, max(one.delay for one in all_of_it) * 1e3, ' ms')
        yield inform(f'{what}, {name}: queries interrupted', max(len(one.interrupted) for one in all_of_it))
