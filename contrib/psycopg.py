"""PostgreSQL connections by psycopg (version 3) for both pools. The same page as psycopg2.py, twice."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

try:
    import psycopg
    from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.errors import Diagnostic
    from psycopg.pq import PipelineStatus, TransactionStatus
    from psycopg.rows import tuple_row
except ImportError as exc:
    raise ImportError('gcp.contrib.psycopg needs psycopg: pip install gcpool[psycopg]', name='psycopg') from exc

from gcp.contrib._libpq import connect_by, spelled_out
from gcp.contrib._postgres import (
    CHECK_TIMEOUT,
    NEWS,
    AsyncManager,
    DbEndpoint,
    Manager,
    Parameters,
    Settings,
    SyncManager,
    UnknownEndpointError,
    check_parameters,
)
from gcp.contrib._wire import deadline_in, hang_up, is_quiet, is_writable, peek
from gcp.managers import AsyncConnectionManager, SyncConnectionManager

__all__ = [
    'AsyncConnection', 'AsyncDbConnectionManager', 'Connection', 'DbConnectionManager', 'DbEndpoint', 'DsnParameters',
    'UnknownEndpointError',
]

DsnParameters = Mapping[DbEndpoint, Parameters]
AnyConnection = Connection[Any] | AsyncConnection[Any]
AnyConnectionT = TypeVar('AnyConnectionT', Connection[Any], AsyncConnection[Any])

#: How often to read from an idle connection until it is quiet.
READS = 8

#: How long to wait for a thread that is in the middle of a command, and has had its connection broken off.
PARTING = 0.2

#: What is set on the client's side, in the order in which to set it again: by a method of the asyncio connection, ...
BY_METHOD = ('autocommit', 'isolation_level', 'read_only', 'deferrable')
#: ... and by plain attributes.
BY_ATTRIBUTE = ('row_factory', 'cursor_factory', 'server_cursor_factory', 'prepare_threshold')

IDLE, ACTIVE = TransactionStatus.IDLE, TransactionStatus.ACTIVE


class _Psycopg(Manager[AnyConnectionT]):
    """What psycopg's connections for threads and for asyncio have in common."""

    _errors = (psycopg.Error, OSError)

    def _has_ended(self, conn: AnyConnectionT) -> bool:
        return conn.closed

    def _is_closed_by_user(self, conn: AnyConnectionT) -> bool:
        return conn.closed and not conn.broken

    def _check_not_busy(self, conn: AnyConnectionT) -> None:
        # also a COPY that was left half-way, and results that were not read
        if conn.pgconn.transaction_status == ACTIVE or conn.pgconn.pipeline_status != PipelineStatus.OFF:
            raise psycopg.InterfaceError('the connection was released in the middle of a command')


class DbConnectionManager(
    _Psycopg['Connection[Any]'],
    SyncManager['Connection[Any]'],
    SyncConnectionManager[DbEndpoint, 'Connection[Any]'],
):
    """Connects to PostgreSQL databases by name, for the threading pool.

    A connection that comes back in a transaction, failed or not, is rolled back before the next can have it, and is set
    as it was (autocommit, isolation level, read-only, deferrable, factories, prepare threshold); one that cannot be,
    within five seconds, makes the release raise, and is disposed of.

    :param dsn_params: keyword arguments of `psycopg.connect` by endpoint name, or a function that returns those of an
        endpoint, called for each new connection (for credentials that rotate)
    :param aliveness: ``'socket'``: look at the socket, which costs about a microsecond and sends nothing, and sees
        whatever has reached this host; ``'query'``: one round trip on top of it, which also sees a server that is gone
        without a word
    :param reset: what is done on release: ``'rollback'``; ``'discard all'``: on top of it ``DISCARD ALL``, one round
        trip, after which nothing is left of the session's past; or a function of the connection, called after the
        rollback, that raises when the connection is of no use any more
    :param check_timeout: how long a server may take to answer a check, seconds: with ``aliveness='query'``, and after a
        connection of the same endpoint was found dead
    :raises TypeError: when `dsn_params` is neither, or has something else than a mapping for an endpoint
    :raises ValueError: when `aliveness`, `reset` or `check_timeout` is none of these
    """

    def __init__(
            self,
            dsn_params: DsnParameters | Callable[[DbEndpoint], Parameters],
            *,
            aliveness: Literal['socket', 'query'] = 'socket',
            reset: Literal['rollback', 'discard all'] | Callable[[Connection[Any]], object] = 'rollback',
            check_timeout: float = CHECK_TIMEOUT,
    ) -> None:
        super().__init__(dsn_params, aliveness, reset, _discard_all, check_timeout)
        self._settings = Settings['Connection[Any]'](*BY_METHOD, *BY_ATTRIBUTE)

    def create(self, endpoint: DbEndpoint, timeout: float | None = None) -> Connection[Any]:
        """Connect to a database.

        :param endpoint: its name
        :param timeout: how long it may take, authentication included; ``None``: what its parameters say
        :raises UnknownEndpointError: when there are no parameters for it
        :raises TimeoutError: when it took longer
        :raises psycopg.Error: when the server cannot be reached, or refuses
        """
        deadline = deadline_in(timeout)
        found = check_parameters(endpoint, self._directory.find(endpoint))
        parameters = spelled_out(endpoint, found, 'conninfo', conninfo_to_dict)
        conn = connect_by(deadline, endpoint, parameters, _connect, Connection.close)
        self._settings.record(conn)
        self._register(endpoint, conn)
        return conn

    def dispose(self, endpoint: DbEndpoint, conn: Connection[Any], timeout: float | None = None) -> None:
        """Close a connection. Says goodbye where that cannot wait, else breaks it off. Does nothing in a process forked
        off since its creation, where psycopg lets go of it without a word.

        :param endpoint: what it is connected to
        :param conn: the connection
        :param timeout: not needed: this does not wait for the server
        """
        if not self._births.was_here(conn):
            return
        self._generations.gone(endpoint, conn)
        _part(conn)
        # psycopg would free what another thread may be in the middle of; the lock of a COPY that was left half-way
        # stays taken, and tells nothing
        is_ours = conn.lock.acquire(timeout=PARTING)
        try:
            conn.close()
        finally:
            if is_ours:
                conn.lock.release()

    def check_aliveness(self, endpoint: DbEndpoint, conn: Connection[Any], timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: what it is connected to
        :param conn: the connection
        :param timeout: how long a query may take; ``None``: as long as `check_timeout` says
        """
        alive = _looks_alive(conn)
        if alive and not self._asks_server and endpoint not in self._suspects:
            return True
        return self._is_usable(endpoint, conn, alive, timeout)

    def on_release(self, endpoint: DbEndpoint, conn: Connection[Any]) -> None:
        """Clear away what the user left behind.

        :param endpoint: what it is connected to
        :param conn: the connection
        :raises psycopg.Error: when that is impossible
        :raises TimeoutError: when it takes more than five seconds
        """
        if self._reset is None and _is_clean(conn) and self._settings.are_kept(conn):
            return
        self._clean_up(endpoint, conn)

    def _ping(self, conn: Connection[Any]) -> None:
        _execute(conn, 'SELECT 1')

    def _clean(self, conn: Connection[Any]) -> None:
        """End whatever transaction there is, and set the connection as it was."""
        conn.rollback()
        for name, value in self._settings.changed(conn):
            setattr(conn, name, value)


class AsyncDbConnectionManager(
    _Psycopg['AsyncConnection[Any]'],
    AsyncManager['AsyncConnection[Any]'],
    AsyncConnectionManager[DbEndpoint, 'AsyncConnection[Any]'],
):
    """Connects to PostgreSQL databases by name, for the asyncio pool.

    The same as `DbConnectionManager`; functions given to it may be plain or async.

    :param dsn_params: keyword arguments of `psycopg.AsyncConnection.connect` by endpoint name, or a function that
        returns those of an endpoint
    :param aliveness: ``'socket'`` or ``'query'``
    :param reset: ``'rollback'``, ``'discard all'`` or a function of the connection
    :param check_timeout: how long a server may take to answer a check, seconds
    :raises TypeError: when `dsn_params` is neither, or has something else than a mapping for an endpoint
    :raises ValueError: when `aliveness`, `reset` or `check_timeout` is none of these
    """

    def __init__(
            self,
            dsn_params: DsnParameters | Callable[[DbEndpoint], Parameters | Awaitable[Parameters]],
            *,
            aliveness: Literal['socket', 'query'] = 'socket',
            reset: Literal['rollback', 'discard all'] | Callable[[AsyncConnection[Any]], object] = 'rollback',
            check_timeout: float = CHECK_TIMEOUT,
    ) -> None:
        super().__init__(dsn_params, aliveness, reset, _discard_all_async, check_timeout)
        self._settings = Settings['AsyncConnection[Any]'](*BY_METHOD, *BY_ATTRIBUTE)

    async def create(self, endpoint: DbEndpoint) -> AsyncConnection[Any]:
        """Connect to a database.

        :param endpoint: its name
        :raises UnknownEndpointError: when there are no parameters for it
        :raises psycopg.Error: when the server cannot be reached, or refuses
        """
        found = self._directory.find(endpoint)
        if inspect.isawaitable(found):
            found = await found
        parameters = spelled_out(endpoint, check_parameters(endpoint, found), 'conninfo', conninfo_to_dict)
        try:
            conn: AsyncConnection[Any] = await AsyncConnection.connect(**parameters)
        except BaseException as error:
            # psycopg leaves it to the garbage collector to close a connection that was not completed, and the frames
            # of the traceback hold on to it
            raise error.with_traceback(None)  # noqa: B904
        self._settings.record(conn)
        self._register(endpoint, conn)
        return conn

    async def dispose(self, endpoint: DbEndpoint, conn: AsyncConnection[Any]) -> None:
        """Close a connection. Says goodbye where that cannot wait, else breaks it off. Does nothing in a process forked
        off since its creation.

        :param endpoint: what it is connected to
        :param conn: the connection
        """
        if self._births.was_here(conn):
            self._generations.gone(endpoint, conn)
            _part(conn)
            await conn.close()

    async def check_aliveness(self, endpoint: DbEndpoint, conn: AsyncConnection[Any]) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: what it is connected to
        :param conn: the connection
        """
        alive = _looks_alive(conn)
        if alive and not self._asks_server and endpoint not in self._suspects:
            return True
        return await self._is_usable(endpoint, conn, alive)

    async def on_release(self, endpoint: DbEndpoint, conn: AsyncConnection[Any]) -> None:
        """Clear away what the user left behind.

        :param endpoint: what it is connected to
        :param conn: the connection
        :raises psycopg.Error: when that is impossible
        :raises TimeoutError: when it takes more than five seconds
        """
        if self._reset is None and _is_clean(conn) and self._settings.are_kept(conn):
            return
        await self._clean_up(endpoint, conn)

    def _aborter(self, conn: AsyncConnection[Any]) -> Callable[[], object]:
        return partial(hang_up, conn.fileno())

    async def _ping(self, conn: AsyncConnection[Any]) -> None:
        await _execute_async(conn, 'SELECT 1')

    async def _clean(self, conn: AsyncConnection[Any]) -> None:
        """End whatever transaction there is, and set the connection as it was."""
        await conn.rollback()
        for name, value in self._settings.changed(conn):
            if name in BY_METHOD:
                await getattr(conn, f'set_{name}')(value)
            else:
                setattr(conn, name, value)


def _connect(parameters: Parameters) -> Connection[Any]:
    try:
        return Connection.connect(**parameters)
    except BaseException as error:
        # psycopg leaves it to the garbage collector to close a connection that was not completed: the frames of the
        # traceback hold on to it, and, when it was psycopg's own time-out, those of the context and the error to each
        # other
        error.__context__ = None
        raise error.with_traceback(None)  # noqa: B904


def _part(conn: AnyConnection) -> None:
    """Break a connection off where a goodbye might wait: for a command in progress, or for room to send."""
    with contextlib.suppress(psycopg.Error):  # libpq has no socket any more
        if conn.pgconn.transaction_status == ACTIVE or not is_writable(conn.fileno()):
            hang_up(conn.fileno())


def _looks_alive(conn: AnyConnection) -> bool:
    try:
        return is_quiet(conn.pgconn.socket) or _heard_only_news(conn)
    except (psycopg.Error, OSError, ValueError):
        return False


def _heard_only_news(conn: AnyConnection) -> bool:
    """Take in what an idle connection was sent; tell whether the server may say that to one that stays in use.

    A changed parameter, a notice and a notification are news: libpq reads them, and keeps notifications for the user.
    An error is the server's goodbye, of which libpq makes a mere notice until it meets the EOF behind it; whatever else
    comes unasked is a fault, and libpq would skip it. So look at the first byte before libpq does, and, as that tells
    nothing through TLS, at the notices."""
    pgconn = conn.pgconn
    if not pgconn.ssl_in_use and peek(pgconn.socket) not in NEWS:
        return False
    severities: set[str | None] = set()

    def listen(notice: Diagnostic) -> None:
        severities.add(notice.severity_nonlocalized or notice.severity)

    conn.add_notice_handler(listen)
    try:
        for _ in range(READS):
            pgconn.consume_input()  # reads what is there, never waits; raises at EOF
            pgconn.is_busy()  # makes libpq look at it
            if severities & {'ERROR', 'FATAL', 'PANIC'}:
                hang_up(pgconn.socket)  # libpq would go on as if nothing had been said
                return False
            if is_quiet(pgconn.socket):
                return True
    finally:
        conn.remove_notice_handler(listen)
    return False  # it goes on and on: no connection that waits for questions


def _is_clean(conn: AnyConnection) -> bool:
    pgconn = conn.pgconn
    return pgconn.transaction_status == IDLE and pgconn.pipeline_status == PipelineStatus.OFF


def _execute(conn: Connection[Any], statement: str) -> None:
    before = conn.autocommit
    conn.autocommit = True  # else BEGIN and ROLLBACK make three round trips of one
    Cursor(conn, row_factory=tuple_row).execute(statement.encode(), prepare=False)
    conn.autocommit = before


async def _execute_async(conn: AsyncConnection[Any], statement: str) -> None:
    before = conn.autocommit
    await conn.set_autocommit(True)
    await AsyncCursor(conn, row_factory=tuple_row).execute(statement.encode(), prepare=False)
    await conn.set_autocommit(before)


def _discard_all(conn: Connection[Any]) -> None:
    """Leave nothing of a session's past; psycopg sees to the statements that it has prepared."""
    _execute(conn, 'DISCARD ALL')


async def _discard_all_async(conn: AsyncConnection[Any]) -> None:
    await _execute_async(conn, 'DISCARD ALL')
