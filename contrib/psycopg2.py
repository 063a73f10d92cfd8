"""PostgreSQL connections by psycopg2 for the threading pool.

Checks that a connection is alive before it is reused, resets it after each use, and bounds the time that an
unresponsive server can take."""

from __future__ import annotations

import contextlib
import socket
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Literal

try:
    import psycopg2
    from psycopg2.extensions import (
        STATUS_PREPARED,
        STATUS_READY,
        TRANSACTION_STATUS_ACTIVE,
        TRANSACTION_STATUS_IDLE,
        TRANSACTION_STATUS_INERROR,
        TRANSACTION_STATUS_INTRANS,
        TRANSACTION_STATUS_UNKNOWN,
        cursor,
        parse_dsn,
    )
    from psycopg2.extensions import connection as Connection  # noqa: N812
except ImportError as exc:
    raise ImportError('gcp.contrib.psycopg2 needs psycopg2: pip install gcpool[psycopg2]', name='psycopg2') from exc

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
from gcp.contrib._libpq import connect_with_deadline, expand_conninfo
from gcp.contrib._postgres import ASYNC_MESSAGES, HARMLESS, Postgres, judge_notices
from gcp.contrib._wire import deadline_in, is_quiet, is_writable, peek, shut_down
from gcp.threading import BaseConnectionManager

__all__ = ['Connection', 'DbConnectionManager', 'DbEndpoint', 'DsnParameters', 'UnknownEndpointError']

DsnParameters = Mapping[DbEndpoint, Parameters]

#: How often to read from an idle connection until there is nothing more to read.
MAX_READS = 8

#: Settings on the client's side, in the order in which to restore them. `autocommit` first: setting it reverts what it
#: told the server of the next three. A user may replace or change `notices` and `notifies`, register typecasters in
#: `string_types` and `binary_types`, and set `encoding` by `set_client_encoding`.
SETTINGS = (
    'autocommit',
    'isolation_level',
    'readonly',
    'deferrable',
    'cursor_factory',
    'notices',
    'notifies',
    'string_types',
    'binary_types',
    'encoding',
)

#: In these, no command is in progress.
BETWEEN_COMMANDS = (TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INTRANS, TRANSACTION_STATUS_INERROR)

#: `connection.closed` after `connection.close()`; after an error it is 2.
CLOSED = 1


class DbConnectionManager(Postgres[Connection], SyncManager[Connection], BaseConnectionManager[DbEndpoint, Connection]):
    """Connects to PostgreSQL databases by name.

    A released connection is rolled back if it is in a transaction, and its settings (autocommit, isolation level,
    read-only, deferrable, cursor factory) are restored. If that fails or takes more than five seconds, the release
    raises, and the connection is disposed of.

    :param dsn_params: keyword arguments of `psycopg2.connect` by endpoint name, or a function that returns them for an
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

    _misnomers: ClassVar[Mapping[str, str]] = {'conninfo': 'dsn'}
    _errors = (psycopg2.Error, OSError)

    def __init__(
        self,
        dsn_params: DsnParameters | Callable[[DbEndpoint], Parameters],
        *,
        aliveness: Literal['socket', 'query'] = 'socket',
        reset: Literal['rollback', 'discard all'] | Callable[[Connection], object] = 'rollback',
        check_timeout: float = CHECK_TIMEOUT,
    ) -> None:
        super().__init__(dsn_params, aliveness, reset, {'rollback': None, 'discard all': _discard_all}, check_timeout)
        # autocommit first: setting it reverts what it told the server of the others
        self._said: weakref.WeakKeyDictionary[Connection, list[str]] = weakref.WeakKeyDictionary()
        self._settings = ClientSettings[Connection](*SETTINGS, reported=_reported)

    def create(self, endpoint: DbEndpoint, timeout: float | None = None) -> Connection:
        """Connect to a database.

        :param endpoint: its name
        :param timeout: how long it may take, authentication included, seconds; ``None``: as its parameters say
        :raises UnknownEndpointError: when there are no parameters for it
        :raises TimeoutError: when it took longer
        :raises psycopg2.Error: when the server is unreachable or refuses
        """
        deadline = deadline_in(None if timeout is None else clamped(timeout))
        parameters = expand_conninfo(endpoint, self._find(endpoint, deadline), 'dsn', parse_dsn)
        conn = connect_with_deadline(deadline, endpoint, parameters, _connect, Connection.close, _resolve)
        self._record(conn)
        self._register(endpoint, conn)
        return conn

    def dispose(self, endpoint: DbEndpoint, conn: Connection, timeout: float | None = None) -> None:
        """Close a connection: in order where that cannot block, else by aborting it. Does nothing in a process forked
        since its creation, where psycopg2 drops it without sending anything.

        :param endpoint: its endpoint
        :param conn: the connection
        :param timeout: not needed: this does not wait for the server
        """
        if not self._fork_guard.is_inherited(conn):
            self._failure_detector.remove(endpoint, conn)
            with contextlib.suppress(psycopg2.Error, ValueError):  # ValueError: libpq has closed its socket
                # `close` would wait for a command that another thread begins only now: let that receive nothing.
                shut_down(conn.fileno(), receiving_only=not _close_would_block(conn))
            with contextlib.suppress(psycopg2.Error):
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
        :raises psycopg2.Error: when that fails
        :raises TimeoutError: when it took more than five seconds
        """
        is_clean = conn.get_transaction_status() == TRANSACTION_STATUS_IDLE and conn.status == STATUS_READY
        if is_clean and self._reset is None and self._settings.are_unchanged(conn):
            return
        self._clean_up(endpoint, conn)

    def _record(self, conn: Connection) -> None:
        self._settings.record(conn)

    def _is_between_commands(self, conn: Connection) -> bool:
        status = conn.get_transaction_status()
        return status in BETWEEN_COMMANDS and conn.status != STATUS_PREPARED and not conn.isexecuting()

    def _has_ended(self, conn: Connection) -> bool:
        return bool(conn.closed) or conn.get_transaction_status() == TRANSACTION_STATUS_UNKNOWN

    def _last_words(self, conn: Connection) -> str | None:
        said = [notice for notice in self._said.pop(conn, []) if not notice.startswith(HARMLESS)]
        return said[-1] if said else None

    def _is_closed_by_user(self, conn: Connection) -> bool:
        return conn.closed == CLOSED

    def _check_not_busy(self, conn: Connection) -> None:
        if conn.get_transaction_status() == TRANSACTION_STATUS_ACTIVE:
            raise psycopg2.InterfaceError('the connection was released in the middle of a command')

    def _ping(self, conn: Connection) -> None:
        _execute(conn, 'SELECT 1')

    def _clean(self, conn: Connection) -> None:
        """End any transaction, and restore the client's settings."""
        if not is_quiet(conn.fileno()):
            # of a session that has ended, libpq would pass on the EOF, not the server's message
            with contextlib.suppress(psycopg2.Error), _collected_notices(conn) as said:  # the rollback raises it, too
                self._said[conn] = said
                conn.poll()
                if judge_notices(said) is Verdict.DEAD:
                    shut_down(conn.fileno())  # else the rollback would wait for the EOF
        conn.rollback()
        if conn.get_transaction_status() != TRANSACTION_STATUS_IDLE:
            _execute(conn, 'ROLLBACK')  # the user executed BEGIN, which psycopg2 does not track
        self._restore_encoding(conn)
        for name, value in self._settings.to_restore(conn):
            if name in ('string_types', 'binary_types'):
                casters = getattr(conn, name)  # read-only attributes
                casters.clear()
                casters.update(value)
            else:
                setattr(conn, name, value)

    def _restore_encoding(self, conn: Connection) -> None:
        """Set the client's encoding as it was. Takes a round trip if it has changed, in psycopg2 or by ``SET``."""
        encoding, reported = self._settings.original(conn)[-2:]
        if conn.encoding != encoding:
            conn.set_client_encoding(encoding)
        if reported and conn.get_parameter_status('client_encoding') != reported:  # psycopg2 does not notice a SET
            _execute(conn, f"SET client_encoding TO '{reported}'")


def _reported(conn: Connection) -> tuple[str | None]:
    return (conn.get_parameter_status('client_encoding'),)


def _connect(parameters: Parameters) -> Connection:
    conn: Connection = psycopg2.connect(**(parameters or {'dsn': ''}))
    return conn


def _resolve(parameters: Parameters) -> dict[str, str]:
    """Return all parameters that libpq uses.

    psycopg2 shows them of a connection only, one that is being opened included. So open one to a listener of our own,
    without a round trip: the system accepts it."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        ours = {'host': '127.0.0.1', 'hostaddr': '127.0.0.1', 'port': listener.getsockname()[1]}
        conn = psycopg2.connect(**parameters, **ours, async_=True)
        try:
            return dict(conn.info.dsn_parameters)
        finally:
            conn.close()


def _close_would_block(conn: Connection) -> bool:
    """Tell whether closing in order might block: on a command in another thread, or on a full send buffer."""
    return conn.get_transaction_status() == TRANSACTION_STATUS_ACTIVE or not is_writable(conn.fileno())


def _look(conn: Connection) -> Verdict:
    try:
        return Verdict.ALIVE if is_quiet(conn.fileno()) else _read_idle(conn)
    except (psycopg2.Error, OSError, ValueError):  # ValueError: libpq has closed its socket
        return Verdict.DEAD


def _read_idle(conn: Connection) -> Verdict:
    """Read what an idle connection has received, and decide.

    Parameter changes, notices and notifications keep it alive: libpq reads them, and keeps notifications for the user.
    An error is the server's last message, which libpq would treat as a notice until it reads the EOF after it; anything
    else is a protocol error, which libpq would skip. So look at the first byte before libpq does, and, because TLS
    encrypts that, at the notices. Those of a server that speaks another language put the connection in doubt."""
    if not conn.info.ssl_in_use and peek(conn.fileno()) not in ASYNC_MESSAGES:
        return Verdict.DEAD
    with _collected_notices(conn) as said:
        for _ in range(MAX_READS):
            conn.poll()  # reads what is there, never waits; raises at EOF
            if conn.closed:
                return Verdict.DEAD
            look = judge_notices(said)
            if look is Verdict.DEAD:
                shut_down(conn.fileno())  # libpq would treat the connection as open
                return look
            if is_quiet(conn.fileno()):
                return look
    return Verdict.DEAD  # the server keeps sending: this is not an idle connection


@contextlib.contextmanager
def _collected_notices(conn: Connection) -> Iterator[list[str]]:
    """Collect the notices that are read in this block, besides adding them to `conn.notices`."""
    said: list[str] = []
    before, conn.notices = conn.notices, said
    try:
        yield said
    finally:
        conn.notices = before
        for notice in said:
            before.append(notice)


def _execute(conn: Connection, statement: str) -> None:
    before = conn.autocommit
    conn.autocommit = True  # else BEGIN and ROLLBACK add two round trips
    with cursor(conn) as plain:
        plain.execute(statement)
    conn.autocommit = before


def _discard_all(conn: Connection) -> None:
    """Discard the session's state, on the server and in psycopg2."""
    _execute(conn, 'DISCARD ALL')
    # psycopg2 ignores the server's report that the encoding is reset
    encoding = conn.info.parameter_status('client_encoding')
    if encoding and encoding.replace('_', '') != conn.encoding:
        conn.set_client_encoding(encoding)
