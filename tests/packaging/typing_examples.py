"""What a type checker must know about gcp. Checked by `mypy --strict`, never run.

An annotated assignment is an assertion; a `type: ignore` with a code is the assertion that the line is wrong, since
`warn_unused_ignores` complains about one that is not needed."""

from __future__ import annotations

import asyncio
import socket

import gcp
import gcp.asyncio
import gcp.threading
from gcp import AcquireTimeoutError, BaseError, ConnectionNotAcquiredError, ConnectionPoolClosedError, PoolStats
from gcp.stats import EndpointStats
from gcp.testing import (
    AsyncFakeManager,
    Call,
    FakeConnection,
    FakeManager,
    ManagerReport,
    check_manager,
    error,
    never,
    ok,
    slow,
)

Address = tuple[str, int]
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Sockets(gcp.threading.BaseConnectionManager[Address, socket.socket]):
    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        return socket.create_connection(endpoint, timeout)

    def dispose(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> None:
        conn.close()


class Streams(gcp.asyncio.BaseConnectionManager[Address, Pair]):
    async def create(self, endpoint: Address) -> Pair:
        return await asyncio.open_connection(*endpoint)

    async def dispose(self, endpoint: Address, conn: Pair) -> None:
        conn[1].close()


def threads() -> None:
    pool = gcp.threading.ConnectionPool(Sockets(), max_size=4, name='sockets')  # inferred from the manager
    same: gcp.threading.ConnectionPool[Address, socket.socket] = pool
    given = gcp.threading.ConnectionPool[Address, socket.socket](Sockets(), idle_timeout=None, lifetime_jitter=0.1)
    base: gcp.BaseConnectionPool[Address, socket.socket] = given

    connection: socket.socket = pool.acquire(('localhost', 1), timeout=1)
    released: None = pool.release(connection, ('localhost', 1))  # type: ignore[func-returns-value]
    with pool.connection(('localhost', 1), timeout=None) as leased:
        exact: socket.socket = leased
        leased.no_such_method()  # type: ignore[attr-defined]
    with gcp.threading.ConnectionPool(Sockets()) as entered:
        closed: bool = entered.closed
    pool.close(timeout=1.5)

    pool.acquire('localhost')  # type: ignore[arg-type]
    pool.release('connection', ('localhost', 1))  # type: ignore[arg-type]
    gcp.threading.ConnectionPool(Streams())  # type: ignore[arg-type]
    gcp.threading.ConnectionPool[str, bytes](Sockets())  # type: ignore[arg-type]
    gcp.threading.ConnectionPool(Sockets(), max_sizes=1)  # type: ignore[call-arg]
    gcp.threading.ConnectionPool(Sockets(), max_size='4')  # type: ignore[arg-type]
    pool.max_size = 7  # type: ignore[misc]

    print(same, base, released, exact, closed)


async def tasks() -> None:
    pool = gcp.asyncio.ConnectionPool(Streams(), acquire_timeout=1.0)
    same: gcp.asyncio.ConnectionPool[Address, Pair] = pool

    reader, writer = await pool.acquire(('localhost', 1))
    line: bytes = await reader.readline()
    await pool.release((reader, writer), ('localhost', 1))
    async with pool.connection(('localhost', 1)) as (reader, writer):
        writer.write(line)
    async with pool.acquire(('localhost', 1)) as (reader, writer):
        writer.write(line)
    waited: Pair = await asyncio.wait_for(pool.acquire(('localhost', 1)), 1)
    task: asyncio.Task[Pair] = asyncio.create_task(pool.acquire(('h', 1)))
    first, second = await asyncio.gather(pool.acquire(('h', 1)), pool.acquire(('h', 2)))
    size: int = await pool.get_endpoint_pool_size(('h', 1), acquired=True)
    async with gcp.asyncio.ConnectionPool(Streams()) as entered:
        closed: bool = entered.closed
    await pool.close()

    gcp.asyncio.ConnectionPool(Sockets())  # type: ignore[arg-type]
    with pool.connection(('localhost', 1)):  # type: ignore[attr-defined]
        pass

    print(same, waited, task, first, second, size, closed)


def statistics(pool: gcp.threading.ConnectionPool[str, FakeConnection]) -> None:
    stats: PoolStats[str] = pool.stats()
    each: EndpointStats[str] = stats.endpoints['db']
    idle: int = each.idle
    evicted: int = stats.closed['evicted']
    name: str = stats.name
    limits: tuple[int, int, int, float, float] = (
        pool.min_idle,
        pool.max_size,
        pool.total_max_size,
        pool.idle_timeout,
        pool.max_lifetime,
    )
    full: bool = pool.is_full
    stats.idle = 3  # type: ignore[misc]
    print(idle, evicted, name, limits, full, pool.get_size() + pool.get_endpoint_pool_size('db'))


def errors(pool: gcp.threading.ConnectionPool[str, FakeConnection]) -> None:
    try:
        pool.acquire('db', timeout=0)
    except AcquireTimeoutError as e:
        phase: str = e.phase
        blocked_by: str | None = e.blocked_by
        as_time_out: TimeoutError = e
        print(phase, blocked_by, as_time_out)
    except (ConnectionPoolClosedError, ConnectionNotAcquiredError) as closed:
        ours: BaseError = closed
        print(ours)


def doubles() -> None:
    manager = FakeManager()
    manager.create.does(error(ConnectionRefusedError()), slow(0.1), ok())
    manager.dispose.does(never(), endpoint='db')
    pool = gcp.threading.ConnectionPool[str, FakeConnection](manager)
    connection: FakeConnection = pool.acquire('db')
    calls: list[Call] = manager.calls
    of_one_hook: list[Call] = manager.create.calls
    manager.create('db', timeout=1)
    manager.create('db', wrong=1)  # type: ignore[call-arg]
    manager.check(max_size=1, total_max_size=2)
    in_tasks: gcp.asyncio.ConnectionPool[str, FakeConnection] = gcp.asyncio.ConnectionPool(AsyncFakeManager())
    print(connection.name, calls, of_one_hook, in_tasks)


async def conformance() -> None:
    report: ManagerReport = check_manager(Sockets(), ('localhost', 1), kill=lambda conn: None, silent=('localhost', 2))
    awaited: ManagerReport = await check_manager(Streams(), ('localhost', 1), kill=lambda endpoint, conn: None)
    check_manager(Sockets(), 'localhost')  # type: ignore[misc]
    check_manager(Sockets(), ('localhost', 1), refused='localhost')  # type: ignore[misc]
    await check_manager(Sockets(), ('localhost', 1))  # type: ignore[misc]
    print(report, awaited, report.passed[0].seconds, report.skipped[0].reason)
