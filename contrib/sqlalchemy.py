"""A pool for SQLAlchemy's engines: checkout and checkin are a gcp pool's acquire and release.

::

    engine = create_engine('postgresql+psycopg://host/orders', poolclass=Pool, pool_size=10, max_overflow=0)
    engine = create_async_engine('postgresql+asyncpg://host/orders', poolclass=Pool, pool_size=10, max_overflow=0)

Waiters are served in the order of their arrival, and all that gcp knows of a pool is there: metrics, holders, spans,
steering (`Pool.pool`). Events, pre-ping, invalidation, `dispose` and `recreate` are SQLAlchemy's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping
from importlib import import_module
from typing import Any

try:
    from sqlalchemy import exc
    from sqlalchemy.pool import Pool as SqlAlchemyPool
    from sqlalchemy.util import await_only, greenlet_spawn
except ImportError as error:
    raise ImportError(
        'gcp.contrib.sqlalchemy needs SQLAlchemy 2: pip install gcpool[sqlalchemy]', name='sqlalchemy'
    ) from error

from gcp.contrib._errors import classify_error
from gcp.contrib._postgres_errors import look_at_postgres
from gcp.exceptions import AcquireTimeoutError, ErrorClass
from gcp.managers import AsyncConnectionManager, SyncConnectionManager

__all__ = ['Pool']

#: The size of a pool without a limit: what is stored for `max_overflow=-1` and `pool_size=0`.
UNLIMITED = 2**31 - 1

#: Options of gcp that arguments of `create_engine` set, and those arguments.
SET_BY = {
    'acquire_timeout': 'pool_timeout',
    'max_lifetime': 'pool_recycle',
    'max_size': 'pool_size and max_overflow',
    'min_idle': 'pool_size and pool_use_lifo',
    'idle_timeout': 'pool_size and max_overflow: a connection in excess of pool_size is closed when it is returned',
    'total_max_size': 'pool_size and max_overflow',
    'limits': 'pool_size and max_overflow: an engine has one endpoint',
}

#: SQLAlchemy's entry of a pool: it keeps a DBAPI connection and what belongs to it, and connects again after it was
#: closed. The type is not public.
Record = Any


class Pool(SqlAlchemyPool):
    """A pool for `create_engine` and `create_async_engine`, given as `poolclass`. The dialect decides whether it is one
    for threads or for asyncio.

    :param creator: returns a DBAPI connection; `create_engine` makes it
    :param pool_size: how many connections are kept; 0: all, without a limit
    :param max_overflow: how many connections there may be besides; they are closed when they are returned; -1: no limit
    :param timeout: `pool_timeout` of `create_engine`: how long a checkout may take, seconds, waiting and connecting;
        ``None``: no limit
    :param use_lifo: `pool_use_lifo`: whether the connection that was returned last is used first
    :param recycle: `pool_recycle`: seconds after which a connection is replaced; -1: never
    :param pre_ping: `pool_pre_ping`: whether to check a connection by a round trip before each use
    :param gcp_options: other options of `gcp.threading.ConnectionPool`, such as ``name`` or ``leak_threshold``
    :param named: `echo`, `logging_name`, `reset_on_return`, `events` and `dialect` of SQLAlchemy's `Pool`
    :ivar pool: the `gcp.threading.ConnectionPool`, or that of `gcp.asyncio`
    :ivar endpoint: its endpoint: the name of the dialect and of the driver
    :raises ValueError: if `gcp_options` contradict the other arguments, or an argument is out of range
    """

    _is_asyncio = False
    _pool: Any

    def __init__(
        self,
        creator: Any,
        pool_size: int = 5,
        max_overflow: int = 10,
        timeout: float | None = 30.0,
        use_lifo: bool = False,
        recycle: int = -1,
        pre_ping: bool = False,
        gcp_options: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> None:
        # the ping is made by the manager's check_aliveness: gcp closes a connection that fails it, and makes another
        super().__init__(creator, recycle=recycle, pre_ping=False, **named)
        self._pings = pre_ping
        self._size, self._max_overflow = _check_sizes(pool_size, max_overflow)
        self._timeout, self._use_lifo, self._gcp_options = timeout, use_lifo, dict(gcp_options or {})
        self._is_asyncio = self._awaits = self._dialect.is_async
        self._overflow_lock = threading.Lock()
        self._vacant: deque[Record] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.endpoint = _describe(self._dialect)
        self._pool = self._make_pool()

    @property
    def pool(self) -> Any:
        """The gcp pool: for `stats`, `holders`, `expire` and all that is not SQLAlchemy's."""
        return self._pool

    def _make_pool(self) -> Any:
        options = self._options()
        if self._awaits:
            from gcp.asyncio import ConnectionPool as AsyncPool

            return AsyncPool((AsyncPingingManager if self._pings else AsyncEngineManager)(self), **options)
        from gcp.threading import ConnectionPool as SyncPool

        return SyncPool((PingingManager if self._pings else EngineManager)(self), **options)

    def _options(self) -> dict[str, Any]:
        for name, arguments in SET_BY.items():
            if name in self._gcp_options:
                raise ValueError(
                    f'gcp_options: {name} is set by arguments of create_engine, which win: leave it out, and set '
                    f'{arguments}'
                )
        largest = self._size + self._max_overflow if self._max_overflow >= 0 else UNLIMITED
        return {
            'acquire_timeout': self._timeout,
            'idle_timeout': None,
            'lifetime_jitter': 0.0,
            'max_lifetime': self._recycle if self._recycle > 0 else None,
            'max_size': largest,
            'min_idle': 0 if self._use_lifo else largest,  # the base is used first in, first out
            'total_max_size': largest,
            **self._gcp_options,
        }

    # --- what SQLAlchemy calls ---

    def _do_get(self) -> Record:
        began = time.time()
        record = self._acquire(0)
        while record.starttime < began and self._is_stale(record):
            self._discard(record)
            record = self._acquire(1)  # before those that came later
        return record

    def _acquire(self, priority: int) -> Record:
        try:
            if self._awaits:
                return await_only(self._pool.acquire(self.endpoint, priority=priority))
            return self._pool.acquire(self.endpoint, priority=priority)
        except AcquireTimeoutError as error:
            raise exc.TimeoutError(
                f'pool limit of size {self._size} overflow {self._max_overflow} reached or connecting took too long, '
                f'connection timed out, timeout {self._timeout}: {error}',
                code='3o7r',
            ) from error

    def _do_return_conn(self, record: Record) -> None:
        if record.dbapi_connection is None:  # it was invalidated or detached
            self._discard(record)
        elif self._max_overflow == 0 or self._size == 0:
            self._release(record)
        else:
            with self._overflow_lock:  # else two threads might both find a place left
                excess = self.checkedin() >= self._size
                if not excess:
                    self._release(record)
            if excess:
                self._discard(record)

    def _release(self, record: Record) -> None:
        released = self._pool.release(record, self.endpoint)
        if self._awaits:
            try:
                suspended = released.send(None)  # it seldom suspends: that saves two switches of greenlets
            except StopIteration:
                return
            await_only(_Rest(released, suspended))

    def _discard(self, record: Record) -> None:
        if not self._awaits:
            self._pool.discard(record, self.endpoint)
        elif _in_greenlet():
            await_only(self._pool.discard(record, self.endpoint))
        elif self._loop is not None and not self._loop.is_closed():
            # the garbage collector returned it, in whatever thread: its DBAPI connection is gone already
            self._loop.call_soon_threadsafe(_discard_later, self._pool, record, self.endpoint)

    def recreate(self) -> Pool:
        """Return a new pool with the same arguments."""
        self.logger.info('Pool recreating')
        return self.__class__(
            self._creator,
            pool_size=self._size,
            max_overflow=self._max_overflow,
            timeout=self._timeout,
            use_lifo=self._use_lifo,
            recycle=self._recycle,
            pre_ping=self._pings,
            gcp_options=self._gcp_options,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def dispose(self) -> None:
        """Close all connections: idle ones now, those that are checked out when they are returned. The pool can be used
        further."""
        self._pool.expire()
        self._vacant.clear()
        if self._awaits and _in_greenlet() and not self.checkedout():
            await_only(self._pool.wait_expired())
        self.logger.info('Pool disposed. %s', self.status())

    # --- looking ---

    def status(self) -> str:
        """Describe the state of the pool."""
        return (
            f'Pool size: {self.size()}  Connections in pool: {self.checkedin()} '
            f'Current Overflow: {self.overflow()} Current Checked out connections: {self.checkedout()}'
        )

    def size(self) -> int:
        """Return `pool_size`."""
        return self._size

    def timeout(self) -> float | None:
        """Return `pool_timeout`, seconds."""
        return self._timeout

    def checkedin(self) -> int:
        """Return how many connections are not checked out, with places of connections that were invalidated."""
        idle: int = self._pool._core.endpoint_size(self.endpoint, False)
        return idle + len(self._vacant)

    def checkedout(self) -> int:
        """Return how many connections are checked out."""
        count: int = self._pool._core.endpoint_size(self.endpoint, True)
        return count

    def overflow(self) -> int:
        """Return how many connections there are beyond `pool_size`; negative: how many are missing."""
        if not self._size:
            return 0
        taken: int = self._pool._core.endpoint_size(self.endpoint, None) + len(self._vacant)
        return taken - self._size if self._max_overflow < 0 else min(taken - self._size, self._max_overflow)

    # --- what the managers call ---

    def _connect(self) -> Record:
        """Return a record with a new connection. One that has lost its connection is used again, with its
        `record_info`, as SQLAlchemy's documentation says of `ConnectionPoolEntry`."""
        try:
            record = self._vacant.popleft()
        except IndexError:
            return self._create_connection()
        try:
            record.get_connection()
        except BaseException:
            self._leave_vacant(record)
            raise
        return record

    def _is_stale(self, record: Record) -> bool:
        """Tell whether a record is to get a new connection, as `get_connection` would decide."""
        if self._recycle > -1 and time.time() - record.starttime > self._recycle:
            self.logger.info('Connection %r exceeded timeout; recycling', record.dbapi_connection)
            return True
        if record._is_hard_or_soft_invalidated():
            self.logger.info('Connection %r was invalidated; recycling', record.dbapi_connection)
            return True
        return False

    def _ping(self, record: Record) -> bool:
        """Make a round trip. If the server does not answer, all connections are invalidated that were made before."""
        if self._dialect._do_ping_w_event(record.dbapi_connection):
            return True
        error = exc.InvalidatePoolError()
        self.logger.info('Pool pre-ping on connection %s failed, will invalidate pool', record.dbapi_connection)
        record.invalidate(error)
        if self._invalidate_time < record.starttime:
            self._invalidate_time = time.time()
        return False

    def _close_record(self, record: Record) -> None:
        """Close a record's connection, by force if it may be broken."""
        if record.dbapi_connection is not None:
            if record._is_hard_or_soft_invalidated():
                record._ConnectionRecord__close(terminate=True)
            else:
                record.close()
        self._leave_vacant(record)

    def _leave_vacant(self, record: Record) -> None:
        if not self._size or self.checkedin() < self._size:
            self._vacant.append(record)


class _Classifying:
    """Says what an error of a connect means, for `connect_retry` and `breaker_threshold`."""

    _owner: Pool

    def classify(self, endpoint: str, error: BaseException) -> ErrorClass:
        """Say what an error means, by that of the driver. It only looks.

        :param endpoint: the endpoint
        :param error: the error of a connect
        """
        dialect: Any = self._owner._dialect
        if getattr(dialect, 'name', None) != 'postgresql':
            return ErrorClass.TRANSIENT
        drivers_own = (dialect.loaded_dbapi.Error, OSError)
        return classify_error(error, lambda one: look_at_postgres(one, drivers_own))


class EngineManager(_Classifying, SyncConnectionManager[str, Record]):
    """Has SQLAlchemy connect, ping and close, in threads.

    :param owner: the pool whose creator, dialect and events are used
    """

    def __init__(self, owner: Pool) -> None:
        self._owner = owner

    def create(self, endpoint: str, timeout: float | None = None) -> Record:
        """Connect, and fire SQLAlchemy's events.

        :param endpoint: not looked at
        :param timeout: not known to SQLAlchemy: give the driver one in `connect_args`
        """
        return self._owner._connect()

    def dispose(self, endpoint: str, conn: Record, timeout: float | None = None) -> None:
        """Close the connection.

        :param endpoint: not looked at
        :param conn: the record
        :param timeout: not known to SQLAlchemy
        """
        self._owner._close_record(conn)

    def keepalive(self, endpoint: str, conn: Record, timeout: float | None = None) -> bool:
        """Make a round trip, as the dialect does for `pool_pre_ping`.

        :param endpoint: not looked at
        :param conn: the record
        :param timeout: not known to SQLAlchemy
        :return: whether the server answered, and the connection is still valid
        """
        return not self._owner._is_stale(conn) and self._owner._ping(conn)


class PingingManager(EngineManager):
    """The same, with a round trip before each use: `pool_pre_ping`."""

    def check_aliveness(self, endpoint: str, conn: Record, timeout: float | None = None) -> bool:
        """Tell whether the server answers.

        :param endpoint: not looked at
        :param conn: the record
        :param timeout: not known to SQLAlchemy
        """
        return self.keepalive(endpoint, conn, timeout)


class AsyncEngineManager(_Classifying, AsyncConnectionManager[str, Record]):
    """Has SQLAlchemy connect, ping and close, in tasks.

    :param owner: the pool whose creator, dialect and events are used
    """

    def __init__(self, owner: Pool) -> None:
        self._owner = owner

    async def create(self, endpoint: str) -> Record:
        """Connect, and fire SQLAlchemy's events.

        :param endpoint: not looked at
        """
        self._owner._loop = asyncio.get_running_loop()
        return await _spawn(self._owner._connect)

    async def dispose(self, endpoint: str, conn: Record) -> None:
        """Close the connection.

        :param endpoint: not looked at
        :param conn: the record
        """
        await _spawn(self._owner._close_record, conn)

    async def keepalive(self, endpoint: str, conn: Record) -> bool:
        """Make a round trip, as the dialect does for `pool_pre_ping`.

        :param endpoint: not looked at
        :param conn: the record
        :return: whether the server answered, and the connection is still valid
        """
        return not self._owner._is_stale(conn) and await _spawn(self._owner._ping, conn)


class AsyncPingingManager(AsyncEngineManager):
    """The same, with a round trip before each use: `pool_pre_ping`."""

    async def check_aliveness(self, endpoint: str, conn: Record) -> bool:
        """Tell whether the server answers.

        :param endpoint: not looked at
        :param conn: the record
        """
        return await self.keepalive(endpoint, conn)


class _Rest:
    """What is left to be awaited of a coroutine that has suspended.

    :param coro: the coroutine
    :param suspended: what it waits for
    """

    def __init__(self, coro: Any, suspended: Any) -> None:
        self._coro, self._suspended = coro, suspended

    def __await__(self) -> Generator[Any, Any, Any]:
        while True:
            try:
                sent = yield self._suspended
            except BaseException as error:
                resume, value = self._coro.throw, error
            else:
                resume, value = self._coro.send, sent
            try:
                self._suspended = resume(value)
            except StopIteration as stop:
                return stop.value


def _check_sizes(pool_size: int, max_overflow: int) -> tuple[int, int]:
    for name, value, least in (('pool_size', pool_size, 0), ('max_overflow', max_overflow, -1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f'{name} must be a whole number, not {value!r}')
        if value < least and pool_size:
            raise ValueError(f'{name} must be {least} or more, not {value}')
    return pool_size, -1 if pool_size == 0 else max_overflow


def _describe(dialect: Any) -> str:
    name, driver = getattr(dialect, 'name', None), getattr(dialect, 'driver', None)
    return f'{name}+{driver}' if isinstance(name, str) and isinstance(driver, str) else 'database'


async def _spawn(function: Any, *arguments: Any) -> Any:
    """Call a function that may await. It returns to the greenlet from which it is called here: that has to be the event
    loop's, and not the one of a caller, in which an eager task begins."""
    if _in_greenlet():
        await asyncio.sleep(0)
    return await greenlet_spawn(function, *arguments)


def _in_greenlet() -> bool:
    """Tell whether SQLAlchemy can await here. (`sqlalchemy.util.concurrency.in_greenlet` is not in all versions.)"""
    current = import_module('greenlet').getcurrent()
    return bool(getattr(current, '__sqlalchemy_greenlet_provider__', False))


#: Tasks that discard what the garbage collector returned; an event loop keeps weak references only.
_tasks: set[asyncio.Task[None]] = set()


def _discard_later(pool: Any, record: Record, endpoint: str) -> None:
    task = asyncio.get_running_loop().create_task(pool.discard(record, endpoint))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
