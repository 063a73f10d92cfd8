"""PostgreSQL connections by psycopg (version 3), for the threading pool and for the asyncio pool."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

try:
    import psycopg
    from psycopg import AsyncConnection, AsyncCursor, BaseConnection, Connection, Cursor
    from psycopg.adapt import AdaptersMap
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.errors import Diagnostic
    from psycopg.pq import PGconn, PipelineStatus, TransactionStatus
    from psycopg.rows import tuple_row
except ImportError as exc:
    raise ImportError('gcp.contrib.psycopg needs psycopg: pip install gcpool[psycopg]', name='psycopg') from exc

from gcp.contrib._database import (
    CHECK_TIMEOUT,
    AsyncManager,
    ClientSettings,
    DbEndpoint,
    Parameters,
    SyncManager,
    UnknownEndpointError,
    Verdict,
    clamped,
)
from gcp.contrib._libpq import connect_with_deadline, expand_conninfo
from gcp.contrib._postgres import ASYNC_MESSAGES, Postgres, judge_notices
from gcp.contrib._wire import deadline_in, is_quiet, is_writable, peek, shut_down
from gcp.managers import AsyncConnectionManager, SyncConnectionManager

__all__ = [
    'AsyncConnection',
    'AsyncDbConnectionManager',
    'Connection',
    'DbConnectionManager',
    'DbEndpoint',
    'DsnParameters',
    'UnknownEndpointError',
]

DsnParameters = Mapping[DbEndpoint, Parameters]
AnyConnection = Connection[Any] | AsyncConnection[Any]
AnyConnectionT = TypeVar('AnyConnectionT', Connection[Any], AsyncConnection[Any])

#: How often to read from an idle connection until there is nothing more to read.
MAX_READS = 8

#: How long to wait for a thread that is executing a command on a connection that was just aborted, seconds.
LOCK_TIMEOUT = 0.2

#: Settings on the client's side, in the order in which to restore them: on asyncio connections by methods, ...
BY_METHOD = ('autocommit', 'isolation_level', 'read_only', 'deferrable')
#: ... and by plain attributes.
BY_ATTRIBUTE = ('row_factory', 'cursor_factory', 'server_cursor_factory', 'prepare_threshold', 'prepared_max')

#: What users register on a connection: handlers, notifications that nothing has read yet (since psycopg 3.2.4), ...
REGISTERED = ('_notice_handlers', '_notify_handlers') + (
    ('_notifies_backlog',) if '_notifies_backlog' in BaseConnection.__init__.__code__.co_names else ()
)
#: ... and adapters. Maps of adapters are copied on write, so unchanged ones are equal by identity of their parts.
ADAPTERS = ('adapters._dumpers', 'adapters._dumpers_by_oid', 'adapters._loaders', 'adapters.types._registry')

IDLE, ACTIVE = TransactionStatus.IDLE, TransactionStatus.ACTIVE
#: In these, no command is in progress.
BETWEEN_COMMANDS = (IDLE, TransactionStatus.INTRANS, TransactionStatus.INERROR)


class _Psycopg(Postgres[AnyConnectionT]):
    """What the managers of psycopg's sync and async connections share."""

    _dsn_key = 'conninfo'
    _misnomers: ClassVar[Mapping[str, str]] = {'dsn': 'conninfo', 'database': 'dbname'}
    _errors = (psycopg.Error, OSError)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        names = (*BY_METHOD, *BY_ATTRIBUTE, *REGISTERED, *ADAPTERS)
        self._settings: ClientSettings[AnyConnectionT] = ClientSettings(*names, reported=_reported)
        self._adapters: weakref.WeakKeyDictionary[AnyConnectionT, AdaptersMap] = weakref.WeakKeyDictionary()

    def _record(self, conn: AnyConnectionT) -> None:
        self._adapters[conn] = AdaptersMap(conn.adapters)  # from now on, the connection's map is copied on write
        self._settings.record(conn)

    def _encoding_to_restore(self, conn: AnyConnectionT) -> str | None:
        """Return a statement that sets the client's encoding as it was, if it has changed."""
        (encoding,) = self._settings.original(conn)[-1:]
        return (
            None if _reported(conn) == (encoding,) or not encoding else f"SET client_encoding TO '{encoding.decode()}'"
        )

    def _restore(self, conn: AnyConnectionT, name: str, value: Any) -> None:
        if name not in ADAPTERS:
            setattr(conn, name, value)
        elif conn in self._adapters:
            conn._adapters = AdaptersMap(self._adapters[conn])

    def _is_between_commands(self, conn: AnyConnectionT) -> bool:
        pgconn = conn.pgconn
        return (
            pgconn.transaction_status in BETWEEN_COMMANDS
            and pgconn.pipeline_status == PipelineStatus.OFF
            and not conn.lock.locked()  # by another thread or task, or by a COPY or a wait for notifications
            and not conn._num_transactions  # blocks that were not left refuse a rollback, and so does ...
            and not conn._tpc  # ... a two-phase transaction
        )

    def _has_ended(self, conn: AnyConnectionT) -> bool:
        return conn.closed

    def _is_closed_by_user(self, conn: AnyConnectionT) -> bool:
        return conn.closed and not conn.broken

    def _check_not_busy(self, conn: AnyConnectionT) -> None:
        # includes an abandoned COPY and unread results
        if conn.pgconn.transaction_status == ACTIVE or conn.pgconn.pipeline_status != PipelineStatus.OFF:
            raise psycopg.InterfaceError('the connection was released in the middle of a command')


class DbConnectionManager(
    _Psycopg['Connection[Any]'],
    SyncManager['Connection[Any]'],
    SyncConnectionManager[DbEndpoint, 'Connection[Any]'],
):
    """Connects to PostgreSQL databases by name, for the threading pool.

    A released connection is rolled back if it is in a transaction, and its settings (autocommit, isolation level,
    read-only, deferrable, factories, prepare threshold) are restored. If that fails or takes more than five seconds,
    the release raises, and the connection is disposed of.

    :param dsn_params: keyword arguments of `psycopg.connect` by endpoint name, or a function that returns them for an
        endpoint, called for each new connection (for rotating credentials)
    :param aliveness: ``'socket'``: look at the socket; costs about a microsecond, sends nothing, and sees what has
        reached this host; ``'query'``: also make a round trip, which detects a server that has vanished
    :param reset: what to do on release: ``'rollback'``; ``'discard all'``: a rollback and ``DISCARD ALL``, one round
        trip, which leaves nothing of the session's state; or a function of the connection, called after the rollback,
        that raises when the connection cannot be used again
    :param check_timeout: how long the server may take to answer a check, seconds: with ``aliveness='query'``, and after
        another connection of the endpoint was found dead
    :raises TypeError: when an argument has the wrong type, or `dsn_params` has no mapping for an endpoint
    :raises ValueError: when `aliveness`, `reset` or `check_timeout` has another value
    """

    def __init__(
        self,
        dsn_params: DsnParameters | Callable[[DbEndpoint], Parameters],
        *,
        aliveness: Literal['socket', 'query'] = 'socket',
        reset: Literal['rollback', 'discard all'] | Callable[[Connection[Any]], object] = 'rollback',
        check_timeout: float = CHECK_TIMEOUT,
    ) -> None:
        super().__init__(dsn_params, aliveness, reset, {'rollback': None, 'discard all': _discard_all}, check_timeout)

    def create(self, endpoint: DbEndpoint, timeout: float | None = None) -> Connection[Any]:
        """Connect to a database.

        :param endpoint: its name
        :param timeout: how long it may take, authentication included, seconds; ``None``: as its parameters say
        :raises UnknownEndpointError: when there are no parameters for it
        :raises TimeoutError: when it took longer
        :raises psycopg.Error: when the server is unreachable or refuses
        """
        deadline = deadline_in(None if timeout is None else clamped(timeout))
        parameters = expand_conninfo(endpoint, self._find(endpoint, deadline), 'conninfo', conninfo_to_dict)
        conn = connect_with_deadline(deadline, endpoint, parameters, _connect, Connection.close, _resolve)
        self._record(conn)
        self._register(endpoint, conn)
        return conn

    def dispose(self, endpoint: DbEndpoint, conn: Connection[Any], timeout: float | None = None) -> None:
        """Close a connection: in order where that cannot block, else by aborting it. Does nothing in a process forked
        since its creation, where psycopg drops it without sending anything.

        :param endpoint: its endpoint
        :param conn: the connection
        :param timeout: not needed: this does not wait for the server
        """
        if self._fork_guard.is_inherited(conn):
            return
        self._failure_detector.remove(endpoint, conn)
        _abort_if_busy(conn)
        # closing frees memory that a command in another thread may still use, hence the lock; with a time-out, for a
        # COPY that was abandoned keeps it locked
        is_ours = conn.lock.acquire(timeout=LOCK_TIMEOUT)
        try:
            conn.close()
        finally:
            if is_ours:
                conn.lock.release()

    def check_aliveness(self, endpoint: DbEndpoint, conn: Connection[Any], timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: its endpoint
        :param conn: the connection
        :param timeout: the limit of a query besides `check_timeout`, seconds
        """
        look = _look(conn)
        if look is Verdict.ALIVE and not self._asks_server and endpoint not in self._unverified:
            return True
        return self._is_usable(endpoint, conn, look, timeout)

    def keepalive(self, endpoint: DbEndpoint, conn: Connection[Any], timeout: float | None = None) -> bool:
        """Make one round trip, which keeps what is between here and the server from forgetting an idle connection.

        :param endpoint: its endpoint
        :param conn: the connection
        :param timeout: the limit of the query besides `check_timeout`, seconds
        :return: whether the server answered in time
        """
        return self._keep_alive(endpoint, conn, _look(conn), timeout)

    def on_release(self, endpoint: DbEndpoint, conn: Connection[Any]) -> None:
        """Reset the connection for its next user.

        :param endpoint: its endpoint
        :param conn: the connection
        :raises psycopg.Error: when that fails
        :raises TimeoutError: when it took more than five seconds
        """
        if self._reset is None and _is_clean(conn) and self._settings.are_unchanged(conn):
            return
        self._clean_up(endpoint, conn)

    def _ping(self, conn: Connection[Any]) -> None:
        _execute(conn, 'SELECT 1')

    def _clean(self, conn: Connection[Any]) -> None:
        """End any transaction, and restore the client's settings."""
        _abort_if_ended(conn)
        conn.rollback()
        if statement := self._encoding_to_restore(conn):
            _execute(conn, statement)
        for name, value in self._settings.to_restore(conn):
            self._restore(conn, name, value)


class AsyncDbConnectionManager(
    _Psycopg['AsyncConnection[Any]'],
    AsyncManager['AsyncConnection[Any]'],
    AsyncConnectionManager[DbEndpoint, 'AsyncConnection[Any]'],
):
    """Connects to PostgreSQL databases by name, for the asyncio pool.

    As `DbConnectionManager`; functions passed to it may be async.

    :param dsn_params: keyword arguments of `psycopg.AsyncConnection.connect` by endpoint name, or a function that
        returns them for an endpoint
    :param aliveness: ``'socket'`` or ``'query'``
    :param reset: ``'rollback'``, ``'discard all'`` or a function of the connection
    :param check_timeout: how long the server may take to answer a check, seconds
    :raises TypeError: when an argument has the wrong type, or `dsn_params` has no mapping for an endpoint
    :raises ValueError: when `aliveness`, `reset` or `check_timeout` has another value
    """

    def __init__(
        self,
        dsn_params: DsnParameters | Callable[[DbEndpoint], Parameters | Awaitable[Parameters]],
        *,
        aliveness: Literal['socket', 'query'] = 'socket',
        reset: Literal['rollback', 'discard all'] | Callable[[AsyncConnection[Any]], object] = 'rollback',
        check_timeout: float = CHECK_TIMEOUT,
    ) -> None:
        resets = {'rollback': None, 'discard all': _discard_all_async}
        super().__init__(dsn_params, aliveness, reset, resets, check_timeout)

    async def create(self, endpoint: DbEndpoint) -> AsyncConnection[Any]:
        """Connect to a database.

        :param endpoint: its name
        :raises UnknownEndpointError: when there are no parameters for it
        :raises psycopg.Error: when the server is unreachable or refuses
        """
        parameters = expand_conninfo(endpoint, await self._find(endpoint), 'conninfo', conninfo_to_dict)
        try:
            conn: AsyncConnection[Any] = await AsyncConnection.connect(**parameters)
        except BaseException as error:
            # psycopg leaves an incomplete connection to the garbage collector, and the traceback's frames keep it alive
            raise error.with_traceback(None)  # noqa: B904
        self._record(conn)
        self._register(endpoint, conn)
        return conn

    async def dispose(self, endpoint: DbEndpoint, conn: AsyncConnection[Any]) -> None:
        """Close a connection: in order where that cannot block, else by aborting it. Does nothing in a process forked
        since its creation.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        if not self._fork_guard.is_inherited(conn):
            self._failure_detector.remove(endpoint, conn)
            _abort_if_busy(conn)
            await conn.close()

    async def check_aliveness(self, endpoint: DbEndpoint, conn: AsyncConnection[Any]) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        look = _look(conn)
        if look is Verdict.ALIVE and not self._asks_server and endpoint not in self._unverified:
            return True
        return await self._is_usable(endpoint, conn, look)

    async def keepalive(self, endpoint: DbEndpoint, conn: AsyncConnection[Any]) -> bool:
        """Make one round trip, which keeps what is between here and the server from forgetting an idle connection.

        :param endpoint: its endpoint
        :param conn: the connection
        :return: whether the server answered within `check_timeout`
        """
        return await self._keep_alive(endpoint, conn, _look(conn))

    async def on_release(self, endpoint: DbEndpoint, conn: AsyncConnection[Any]) -> None:
        """Reset the connection for its next user.

        :param endpoint: its endpoint
        :param conn: the connection
        :raises psycopg.Error: when that fails
        :raises TimeoutError: when it took more than five seconds
        """
        if self._reset is None and _is_clean(conn) and self._settings.are_unchanged(conn):
            return
        await self._clean_up(endpoint, conn)

    def _aborter(self, conn: AsyncConnection[Any]) -> Callable[[], object]:
        return partial(shut_down, conn.fileno())

    async def _ping(self, conn: AsyncConnection[Any]) -> None:
        await _execute_async(conn, 'SELECT 1')

    async def _clean(self, conn: AsyncConnection[Any]) -> None:
        """End any transaction, and restore the client's settings."""
        _abort_if_ended(conn)
        await conn.rollback()
        if statement := self._encoding_to_restore(conn):
            await _execute_async(conn, statement)
        for name, value in self._settings.to_restore(conn):
            if name in BY_METHOD:
                await getattr(conn, f'set_{name}')(value)
            else:
                self._restore(conn, name, value)


def _reported(conn: AnyConnection) -> tuple[bytes | None]:
    return (conn.pgconn.parameter_status(b'client_encoding'),)


def _connect(parameters: Parameters) -> Connection[Any]:
    try:
        return Connection.connect(**parameters)
    except BaseException as error:
        # psycopg leaves an incomplete connection to the garbage collector. The traceback's frames keep it alive, and,
        # after psycopg's own time-out, so does a reference cycle of the error and its context.
        error.__context__ = None
        raise error.with_traceback(None)  # noqa: B904


def _resolve(parameters: Parameters) -> dict[str, str]:
    """Return all parameters that libpq uses. It resolves them before it fails to connect to a directory without a
    socket."""
    nowhere = make_conninfo(**parameters, host=os.path.join(os.sep, 'dev', 'null'), hostaddr='', port='')
    pgconn = PGconn.connect_start(nowhere.encode())
    try:
        return {option.keyword.decode(): option.val.decode() for option in pgconn.info if option.val is not None}
    finally:
        pgconn.finish()


def _abort_if_busy(conn: AnyConnection) -> None:
    """Shut a connection down where closing in order might block: on a command, or on a full send buffer."""
    with contextlib.suppress(psycopg.Error):  # libpq has closed its socket
        if conn.pgconn.transaction_status == ACTIVE or not is_writable(conn.fileno()):
            shut_down(conn.fileno())


def _abort_if_ended(conn: AnyConnection) -> None:
    """Shut a connection down whose server has sent its last message; else a rollback would wait for the EOF."""
    pgconn = conn.pgconn
    with contextlib.suppress(OSError):  # the rollback raises it, too
        if not pgconn.ssl_in_use and not is_quiet(pgconn.socket) and peek(pgconn.socket) == b'E':
            shut_down(pgconn.socket)  # what has arrived can still be read


def _look(conn: AnyConnection) -> Verdict:
    try:
        return Verdict.ALIVE if is_quiet(conn.pgconn.socket) else _read_idle(conn)
    except (psycopg.Error, OSError, ValueError):
        return Verdict.DEAD


def _read_idle(conn: AnyConnection) -> Verdict:
    """Read what an idle connection has received, and decide.

    Parameter changes, notices and notifications keep it alive: libpq reads them, and keeps notifications for the user.
    An error is the server's last message, which libpq treats as a notice until it reads the EOF after it; anything else
    is a protocol error, which libpq would skip. So look at the first byte before libpq does, and, because TLS encrypts
    that, at the notices. A severity in another language, if the server sends no other, puts the connection in doubt."""
    pgconn = conn.pgconn
    if not pgconn.ssl_in_use and peek(pgconn.socket) not in ASYNC_MESSAGES:
        return Verdict.DEAD
    severities: set[str] = set()

    def listen(notice: Diagnostic) -> None:
        severities.add(notice.severity_nonlocalized or notice.severity or '')

    conn.add_notice_handler(listen)
    try:
        for _ in range(MAX_READS):
            pgconn.consume_input()  # reads what is there, never waits; raises at EOF
            pgconn.is_busy()  # makes libpq look at it
            look = judge_notices(severities)
            if look is Verdict.DEAD:
                shut_down(pgconn.socket)  # libpq would treat the connection as open
                return look
            if is_quiet(pgconn.socket):
                return look
    finally:
        conn.remove_notice_handler(listen)
    return Verdict.DEAD  # the server keeps sending: this is not an idle connection


def _is_clean(conn: AnyConnection) -> bool:
    pgconn = conn.pgconn
    return pgconn.transaction_status == IDLE and pgconn.pipeline_status == PipelineStatus.OFF


def _execute(conn: Connection[Any], statement: str) -> None:
    before = conn.autocommit
    conn.autocommit = True  # else BEGIN and ROLLBACK add two round trips
    Cursor(conn, row_factory=tuple_row).execute(statement.encode(), prepare=False)
    conn.autocommit = before


async def _execute_async(conn: AsyncConnection[Any], statement: str) -> None:
    before = conn.autocommit
    await conn.set_autocommit(True)
    await AsyncCursor(conn, row_factory=tuple_row).execute(statement.encode(), prepare=False)
    await conn.set_autocommit(before)


def _discard_all(conn: Connection[Any]) -> None:
    """Discard the session's state; psycopg itself forgets its prepared statements."""
    _execute(conn, 'DISCARD ALL')


async def _discard_all_async(conn: AsyncConnection[Any]) -> None:
    await _execute_async(conn, 'DISCARD ALL')
