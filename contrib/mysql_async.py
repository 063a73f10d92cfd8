"""MySQL and MariaDB connections by aiomysql for the asyncio pool.

Checks that a connection is alive before it is reused, resets it after each use, and bounds the time that an
unresponsive server can take."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, Literal

try:
    import aiomysql
    import pymysql
except ImportError as exc:
    raise ImportError('gcp.contrib.mysql_async needs aiomysql: pip install gcpool[mysql]', name='aiomysql') from exc

from gcp.asyncio import BaseConnectionManager
from gcp.contrib._database import (
    CHECK_TIMEOUT,
    AsyncManager,
    ClientSettings,
    DbEndpoint,
    Parameters,
    UnknownEndpointError,
    Verdict,
)
from gcp.contrib._mysql import AUTOCOMMIT, IN_TRANSACTION, RESET_CONNECTION, look_at_mysql, status_of
from gcp.contrib.socket_async import StreamAlivenessCheckingMixin, close_stream
from gcp.exceptions import ErrorClass

__all__ = ['Connection', 'DbConnectionManager', 'DbEndpoint', 'DsnParameters', 'UnknownEndpointError']

DsnParameters = Mapping[DbEndpoint, Parameters]
Connection = aiomysql.Connection

#: Settings on the client's side that a user may change. `_charset` takes a round trip to restore.
SETTINGS = ('_charset', 'cursorclass', 'decoders', 'encoders')

_streams: StreamAlivenessCheckingMixin[Any] = StreamAlivenessCheckingMixin()


class DbConnectionManager(AsyncManager[Any], BaseConnectionManager[DbEndpoint, Any]):
    """Connects to databases of MySQL and MariaDB by name.

    As that of `gcp.contrib.mysql`; functions passed to it may be async.

    :param dsn_params: keyword arguments of `aiomysql.connect` by endpoint name, or a function that returns them for an
        endpoint
    :param aliveness: ``'socket'`` or ``'query'``
    :param reset: ``'rollback'``, ``'reset connection'`` or a function of the connection
    :param check_timeout: how long the server may take to answer a check, seconds
    :raises TypeError: when an argument has the wrong type, or `dsn_params` has no mapping for an endpoint
    :raises ValueError: when `aliveness`, `reset` or `check_timeout` has another value
    """

    _dsn_key = 'host'
    _misnomers: ClassVar[Mapping[str, str]] = {'dbname': 'db', 'database': 'db', 'dsn': 'host'}
    _errors = (pymysql.err.MySQLError, OSError)

    def __init__(
        self,
        dsn_params: DsnParameters | Callable[[DbEndpoint], Parameters | Awaitable[Parameters]],
        *,
        aliveness: Literal['socket', 'query'] = 'socket',
        reset: Literal['rollback', 'reset connection'] | Callable[[Any], object] = 'rollback',
        check_timeout: float = CHECK_TIMEOUT,
    ) -> None:
        resets = {'rollback': None, 'reset connection': self._reset_connection}
        super().__init__(dsn_params, aliveness, reset, resets, check_timeout)
        self._settings = ClientSettings[Any](*SETTINGS, reported=_autocommit)

    async def create(self, endpoint: DbEndpoint) -> Any:
        """Connect to a database.

        :param endpoint: its name
        :raises UnknownEndpointError: when there are no parameters for it
        :raises pymysql.err.MySQLError: when the server is unreachable or refuses
        """
        conn = Connection(**await self._find(endpoint))
        try:
            await conn._connect()
        except BaseException as error:
            if conn._writer is not None:  # it closes it for an Exception only
                conn._writer.transport.abort()
                conn.close()
            raise error.with_traceback(None)  # noqa: B904  # its frames keep the transport
        self._record(conn)
        self._register(endpoint, conn)
        return conn

    async def dispose(self, endpoint: DbEndpoint, conn: Any) -> None:
        """Close a connection: in order within two seconds, else by aborting it. Does nothing in a process forked since
        its creation.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        if self._fork_guard.is_inherited(conn):
            return
        self._failure_detector.remove(endpoint, conn)
        writer = conn._writer
        if writer is None:
            return
        is_idle = not _is_busy(conn) and not writer.is_closing()
        conn._writer = conn._reader = None
        if conn._result is not None:  # else its cursor would read it to its end
            conn._result.unbuffered_active = conn._result.has_next = False
        if is_idle:
            writer.write(QUIT)
        await close_stream(writer)

    async def check_aliveness(self, endpoint: DbEndpoint, conn: Any) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        look = await _look(conn)
        if look is Verdict.ALIVE and not self._asks_server and endpoint not in self._unverified:
            return True
        return await self._is_usable(endpoint, conn, look)

    async def keepalive(self, endpoint: DbEndpoint, conn: Any) -> bool:
        """Make one round trip, which keeps what is between here and the server from forgetting an idle connection.

        :param endpoint: its endpoint
        :param conn: the connection
        :return: whether the server answered within `check_timeout`
        """
        return await self._keep_alive(endpoint, conn, await _look(conn))

    async def on_release(self, endpoint: DbEndpoint, conn: Any) -> None:
        """Reset the connection for its next user.

        :param endpoint: its endpoint
        :param conn: the connection
        :raises pymysql.err.MySQLError: when that fails
        :raises TimeoutError: when it took more than five seconds
        """
        is_clean = not conn.closed and not _is_busy(conn) and not status_of(conn) & IN_TRANSACTION
        if is_clean and self._reset is None and self._settings.are_unchanged(conn):
            return
        await self._clean_up(endpoint, conn)

    def _record(self, conn: Any) -> None:
        self._settings.record(conn)

    def _is_between_commands(self, conn: Any) -> bool:
        return not conn.closed and not _is_busy(conn) and not conn._reader._buffer

    def _has_ended(self, conn: Any) -> bool:
        return bool(conn.closed)

    def _is_closed_by_user(self, conn: Any) -> bool:
        return bool(conn.closed)

    def _check_not_busy(self, conn: Any) -> None:
        if _is_busy(conn):
            raise pymysql.err.InterfaceError(0, 'the connection was released before its result was read')

    def _look_at_error(self, error: BaseException) -> ErrorClass | None:
        return look_at_mysql(error, self._errors)

    def _aborter(self, conn: Any) -> Callable[[], object]:
        transport: Any = conn._writer.transport
        return transport.abort  # type: ignore[no-any-return]

    async def _ping(self, conn: Any) -> None:
        await conn.ping(False)

    async def _clean(self, conn: Any) -> None:
        """End any transaction, and restore the client's settings."""
        if status_of(conn) & IN_TRANSACTION:
            await conn.rollback()
        (autocommit,) = self._settings.original(conn)[-1:]
        if _autocommit(conn) != (autocommit,):
            await conn.autocommit(autocommit)
        for name, value in self._settings.to_restore(conn):
            if name == '_charset':
                await conn.set_charset(value)
            else:
                setattr(conn, name, value)

    async def _reset_connection(self, conn: Any) -> None:
        await conn._execute_command(RESET_CONNECTION, '')
        await conn._read_ok_packet()
        await conn.set_charset(conn.charset)  # it was reset to the server's


#: The command that ends a session.
QUIT = b'\x01\0\0\0\x01'


def _autocommit(conn: Any) -> tuple[bool]:
    return (bool(status_of(conn) & AUTOCOMMIT),)


def _is_busy(conn: Any) -> bool:
    """Tell whether a result was not read to its end."""
    result = conn._result
    return result is not None and bool(result.unbuffered_active or result.has_next)


async def _look(conn: Any) -> Verdict:
    """Tell whether nothing has come on an idle connection: all that a server says unasked is that it ends."""
    if conn.closed or not await _streams.check_aliveness(None, (conn._reader, conn._writer)):
        return Verdict.DEAD
    return Verdict.ALIVE
