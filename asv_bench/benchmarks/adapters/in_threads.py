"""Pools for threads: gcp, its predecessor, other pools, bare queues; and a deque as the unit."""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from collections.abc import Iterator
from typing import Any

from .. import managers
from . import fakes
from .peer import Peer


@contextlib.contextmanager
def open_gcp(size: int) -> Iterator[Any]:
    import gcp.threading as library

    with library.ConnectionPool(managers.blocking(library), max_size=size) as pool:
        yield pool


@contextlib.contextmanager
def open_predecessor(size: int) -> Iterator[Any]:
    import generic_connection_pool.threading as library

    with contextlib.closing(library.ConnectionPool(managers.blocking(library), max_size=size)) as pool:
        yield pool


@contextlib.contextmanager
def open_psycopg_pool(size: int) -> Iterator[Any]:
    from psycopg_pool import ConnectionPool

    with ConnectionPool(
        connection_class=fakes.psycopg_connection(),
        min_size=size,
        max_size=size,
        open=False,
    ) as pool:
        pool.wait()
        yield pool


@contextlib.contextmanager
def open_sqlalchemy(size: int) -> Iterator[Any]:
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(fakes.DbApi.connect, pool_size=size, max_overflow=0, reset_on_return=None)
    yield pool
    pool.dispose()


@contextlib.contextmanager
def open_dbutils(size: int) -> Iterator[Any]:
    from dbutils.pooled_db import PooledDB

    with contextlib.closing(
        PooledDB(
            fakes.DbApi,
            maxcached=size,
            maxconnections=size,
            blocking=True,
            reset=False,
            ping=0,
        )
    ) as pool:
        yield pool


@contextlib.contextmanager
def open_redis(size: int) -> Iterator[Any]:
    from redis import BlockingConnectionPool

    with contextlib.closing(
        BlockingConnectionPool(
            max_connections=size,
            timeout=None,
            connection_class=fakes.RedisConnection,
        )
    ) as pool:
        yield pool


@contextlib.contextmanager
def open_simple_queue(size: int) -> Iterator[Any]:
    yield fill(queue.SimpleQueue(), size)


@contextlib.contextmanager
def open_lifo_queue(size: int) -> Iterator[Any]:
    yield fill(queue.LifoQueue(), size)


def fill(line: Any, size: int) -> Any:
    for _ in range(size):
        line.put(object())
    return line


@contextlib.contextmanager
def open_deque(size: int) -> Iterator[Any]:
    yield deque(object() for _ in range(size))


#: Nothing can be less: no waiting, no limit, no name.
UNIT = Peer('deque', open_deque, take='pool.pop()', give='pool.append(conn)')

THREADS = {
    peer.name: peer
    for peer in (
        Peer(
            'gcp',
            open_gcp,
            take="pool.acquire('a')",
            give="pool.release(conn, 'a')",
            context="pool.connection('a')",
            note='by default: metrics on, no background collector',
        ),
        Peer(
            'generic-connection-pool',
            open_predecessor,
            packages=('generic-connection-pool',),
            take="pool.acquire('a')",
            give="pool.release(conn, 'a')",
            context="pool.connection('a')",
            note='without a background collector, as gcp (one takes about an eighth off its hit)',
        ),
        Peer(
            'psycopg_pool',
            open_psycopg_pool,
            packages=('psycopg-pool', 'psycopg'),
            take='pool.getconn()',
            give='pool.putconn(conn)',
            context='pool.connection()',
            note='fixed size, connections that are always idle',
        ),
        Peer(
            'SQLAlchemy QueuePool',
            open_sqlalchemy,
            packages=('SQLAlchemy',),
            take='pool.connect()',
            give='conn.close()',
            context='pool.connect()',
            note='no overflow, reset_on_return=None',
        ),
        Peer(
            'DBUtils PooledDB',
            open_dbutils,
            packages=('DBUtils',),
            take='pool.connection()',
            give='conn.close()',
            context='pool.connection()',
            note='dedicated connections, reset=False, ping=0',
        ),
        Peer(
            'redis-py BlockingConnectionPool',
            open_redis,
            packages=('redis',),
            take='pool.get_connection()',
            give='pool.release(conn)',
            note='timeout=None',
        ),
        Peer('queue.SimpleQueue', open_simple_queue, take='pool.get()', give='pool.put(conn)'),
        Peer('queue.LifoQueue', open_lifo_queue, take='pool.get()', give='pool.put(conn)'),
    )
}
