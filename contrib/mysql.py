"""MySQL and MariaDB connections by PyMySQL for the threading pool.

Checks that a connection is alive before it is reused, resets it after each use, and bounds the time that an
unresponsive server can take."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

try:
    import pymysql
    from pymysql.connections import Connection as PyMySqlConnection
except ImportError as exc:
    raise ImportError('gcp.contrib.mysql needs PyMySQL: pip install gcpool[mysql]', name='pymysql') from exc

from gcp.contrib._database import (
    CHECK_TIMEOUT,
    ClientSettings,
    DbEndpoint,
    Parameters,
    SyncManager,
    UnknownEndpointError,
    Verdict,
    clamped,
)
from gcp.contrib._mysql import AUTOCOMMIT, IN_TRANSACTION, RESET_CONNECTION, look_at_mysql, status_of
from gcp.contrib._watchdog import Watchdog
from gcp.contrib._wire import deadline_in, is_quiet, is_writable, shut_down, time_left
from gcp.contrib.socket import TcpSocketConnectionManager
from gcp.exceptions import ErrorClass
from gcp.threading import BaseConnectionManager

__all__ = ['Connection', 'DbConnectionManager', 'DbEndpoint', 'DsnParameters', 'UnknownEndpointError']

DsnParameters = Mapping[DbEndpoint, Parameters]

#: Settings on the client's side that a user may change. `charset` takes a round trip to restore.
SETTINGS = ('charset', 'cursorclass', 'decoders', 'encoders', '_read_timeout', '_write_timeout')

#: How long a connect may take that has no time-out of its own, seconds: as PyMySQL's `connect_timeout`.
CONNECT_TIMEOUT = 10.0


class Connection(PyMySqlConnection):  # type: ignore[misc]
    """PyMySQL's connection, which keeps the status that the server sends with each answer."""

    def fileno(self) -> int:
        """Return the descriptor.

        :raises pymysql.err.InterfaceError: if the connection is closed
        """
        if self._sock is None:
            raise pymysql.err.InterfaceError(0, 'the connection is closed')
        return int(self._sock.fileno())

    def _read_ok_packet(self) -> Any:
        ok = super()._read_ok_packet()
        self.server_status = ok.server_status  # PyMySQL before 1.2 keeps only those of queries
        return ok


class DbConnectionManager(SyncManager[Connection], BaseConnectionManager[DbEndpoint, Connection]):
    """Connects to databases of MySQL and MariaDB by name.

    A released connection is rolled back if it is in a transaction, and its settings (autocommit, character set, cursor
    class, time-outs) are restored. If that fails or takes more than five seconds, the release raises, and the
    connection is disposed of.

    :param dsn_params: keyword arguments of `pymysql.connect` by endpoint name, or a function that returns them for an
        endpoint, called for each new connection (for rotating credentials)
    :param aliveness: ``'socket'``: look at the socket; costs about a microsecond, sends nothing, and sees what has
        reached this host; ``'query'``: also make a round trip, which detects a server that has vanished
    :param reset: what to do on release: ``'rollback'``; ``'reset connection'``: the command of that name, which leaves
        nothing of the session's state but the database, in up to three round trips; or a function of the connection,
        called after the rollback, that raises when the connection cannot be used again
    :param check_timeout: how long the server may take to answer a check, seconds: with ``aliveness='query'``, and after
        another connection of the endpoint was found dead
    :raises TypeError: when an argument has the wrong type, or `dsn_params` has no mapping for an endpoint
    :raises ValueError: when `aliveness`, `reset` or `check_timeout` has another value
    """

    _dsn_key = 'host'
    _misnomers: ClassVar[Mapping[str, str]] = {'dbname': 'database', 'dsn': 'host'}
    _errors = (pymysql.err.MySQLError, OSError)

    def __init__(
        self,
        dsn_params: DsnParameters | Callable[[DbEndpoint], Parameters],
        *,
        aliveness: Literal['socket', 'query'] = 'socket',
        reset: Literal['rollback', 'reset connection'] | Callable[[Connection], object] = 'rollback',
        check_timeout: float = CHECK_TIMEOUT,
    ) -> None:
        resets = {'rollback': None, 'reset connection': self._reset_connection}
        super().__init__(dsn_params, aliveness, reset, resets, check_timeout)
        self._settings = ClientSettings[Connection](*SETTINGS, reported=_autocommit)
        self._tcp = TcpSocketConnectionManager()

    def create(self, endpoint: DbEndpoint, timeout: float | None = None) -> Connection:
        """Connect to a database.

        :param endpoint: its name
        :param timeout: how long it may take, authentication included, seconds; ``None``: as its ``connect_timeout``
            says, or ten seconds
        :raises UnknownEndpointError: when there are no parameters for it
        :raises TimeoutError: when it took longer
        :raises pymysql.err.MySQLError: when the server refuses
        :raises OSError: when it is unreachable
        """
        deadline = deadline_in(None if timeout is None else clamped(timeout))
        parameters = dict(self._find(endpoint, deadline))
        own = parameters.pop('connect_timeout', None) or (CONNECT_TIMEOUT if timeout is None else None)
        deadline = min(deadline, deadline_in(own))
        conn = Connection(**parameters, defer_connect=True)
        what = f'a connect to endpoint {endpoint!r}'
        sock = self._open(conn, parameters, deadline, what)
        try:
            with Watchdog(sock.fileno(), time_left(deadline, what), what=what):
                conn.connect(sock)
        except BaseException as error:
            sock.close()
            conn._force_close()
            raise error.with_traceback(None)  # noqa: B904  # its frames keep the descriptors of the handshake
        self._record(conn)
        self._register(endpoint, conn)
        return conn

    def dispose(self, endpoint: DbEndpoint, conn: Connection, timeout: float | None = None) -> None:
        """Close a connection: in order where that cannot block, else by aborting it. Does nothing in a process forked
        since its creation.

        :param endpoint: its endpoint
        :param conn: the connection
        :param timeout: not needed: this does not wait for the server
        """
        if self._fork_guard.is_inherited(conn):
            return
        self._failure_detector.remove(endpoint, conn)
        if not conn.open:
            return
        if _is_busy(conn) or not is_writable(conn.fileno()):
            shut_down(conn.fileno())
            if conn._result is not None:  # else it would be read to its end when it is garbage
                conn._result.unbuffered_active = conn._result.has_next = False
            conn._force_close()
        else:
            with contextlib.suppress(pymysql.err.Error):
                conn.close()

    def check_aliveness(self, endpoint: DbEndpoint, conn: Connection, timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: its endpoint
        :param conn: the connection
        :param timeout: the limit of a query besides `check_timeout`, seconds
        """
        look = _look(conn)
        if look is Verdict.ALIVE and not self._asks_server and endpoint not in self._unverified:
            return True
        return self._is_usable(endpoint, conn, look, timeout)

    def keepalive(self, endpoint: DbEndpoint, conn: Connection, timeout: float | None = None) -> bool:
        """Make one round trip, which keeps what is between here and the server from forgetting an idle connection.

        :param endpoint: its endpoint
        :param conn: the connection
        :param timeout: the limit of the query besides `check_timeout`, seconds
        :return: whether the server answered in time
        """
        return self._keep_alive(endpoint, conn, _look(conn), timeout)

    def on_release(self, endpoint: DbEndpoint, conn: Connection) -> None:
        """Reset the connection for its next user.

        :param endpoint: its endpoint
        :param conn: the connection
        :raises pymysql.err.MySQLError: when that fails
        :raises TimeoutError: when it took more than five seconds
        """
        is_clean = conn.open and not _is_busy(conn) and not status_of(conn) & IN_TRANSACTION
        if is_clean and self._reset is None and self._settings.are_unchanged(conn):
            return
        self._clean_up(endpoint, conn)

    def _open(self, conn: Connection, parameters: Parameters, deadline: float, what: str) -> socket.socket:
        """Return a connected socket: PyMySQL would try the addresses of a name one after the other."""
        left = time_left(deadline, what)
        if conn.unix_socket:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(left)
                sock.connect(conn.unix_socket)
            except BaseException:
                sock.close()
                raise
            conn._secure = True
            conn.host_info = 'Localhost via UNIX socket'
            return sock
        conn.host_info = f'socket {conn.host}:{conn.port}'
        return self._tcp.create((conn.host, conn.port), left)

    def _record(self, conn: Connection) -> None:
        self._settings.record(conn)

    def _is_between_commands(self, conn: Connection) -> bool:
        return bool(conn.open) and not _is_busy(conn) and is_quiet(conn.fileno())

    def _has_ended(self, conn: Connection) -> bool:
        return not conn.open

    def _is_closed_by_user(self, conn: Connection) -> bool:
        return bool(conn._closed)

    def _check_not_busy(self, conn: Connection) -> None:
        if _is_busy(conn):
            raise pymysql.err.InterfaceError(0, 'the connection was released before its result was read')

    def _look_at_error(self, error: BaseException) -> ErrorClass | None:
        return look_at_mysql(error, self._errors)

    def _ping(self, conn: Connection) -> None:
        conn.ping(False)

    def _clean(self, conn: Connection) -> None:
        """End any transaction, and restore the client's settings."""
        if status_of(conn) & IN_TRANSACTION:
            conn.rollback()
        (autocommit,) = self._settings.original(conn)[-1:]
        if _autocommit(conn) != (autocommit,):
            conn.autocommit(autocommit)
        for name, value in self._settings.to_restore(conn):
            if name == 'charset':
                conn.set_character_set(value)
            else:
                setattr(conn, name, value)

    def _reset_connection(self, conn: Connection) -> None:
        conn._execute_command(RESET_CONNECTION, b'')
        conn._read_ok_packet()
        conn.set_character_set(conn.charset)  # it was reset to the server's


def _autocommit(conn: Any) -> tuple[bool]:
    return (bool(status_of(conn) & AUTOCOMMIT),)


def _is_busy(conn: Any) -> bool:
    """Tell whether a result was not read to its end."""
    result = conn._result
    return result is not None and bool(result.unbuffered_active or result.has_next)


def _look(conn: Connection) -> Verdict:
    """Tell whether nothing has come on an idle connection: all that a server says unasked is that it ends."""
    return Verdict.ALIVE if conn.open and is_quiet(conn.fileno()) else Verdict.DEAD
