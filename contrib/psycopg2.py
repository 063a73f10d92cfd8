"""PostgreSQL connections by psycopg2 for the threading pool.

Sees to it that a connection is alive, that it carries nothing from one user to the next, and that a server that falls
silent costs no more than the time-out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Literal

try:
    import psycopg2
    from psycopg2.extensions import (
        STATUS_READY,
        TRANSACTION_STATUS_ACTIVE,
        TRANSACTION_STATUS_IDLE,
        TRANSACTION_STATUS_UNKNOWN,
        cursor,
        parse_dsn,
    )
    from psycopg2.extensions import connection as Connection  # noqa: N812
except ImportError as exc:
    raise ImportError('gcp.contrib.psycopg2 needs psycopg2: pip install gcpool[psycopg2]', name='psycopg2') from exc

from gcp.contrib._libpq import connect_by, spelled_out
from gcp.contrib._postgres import (
    CHECK_TIMEOUT,
    NEWS,
    DbEndpoint,
    Parameters,
    Settings,
    SyncManager,
    UnknownEndpointError,
    check_parameters,
)
from gcp.contrib._wire import deadline_in, hang_up, is_quiet, is_writable, peek
from gcp.threading import BaseConnectionManager

__all__ = ['Connection', 'DbConnectionManager', 'DbEndpoint', 'DsnParameters', 'UnknownEndpointError']

DsnParameters = Mapping[DbEndpoint, Parameters]

#: How often to read from an idle connection until it is quiet.
READS = 8

#: `connection.closed` after `connection.close()`; after an error it is 2.
CLOSED = 1


class DbConnectionManager(SyncManager[Connection], BaseConnectionManager[DbEndpoint, Connection]):
    """Connects to PostgreSQL databases by name.

    A connection that comes back in a transaction, failed or not, is rolled back before the next can have it, and is set
    as it was (autocommit, isolation level, read-only, deferrable, cursor factory); one that cannot be, within five
    seconds, makes the release raise, and is disposed of.

    :param dsn_params: keyword arguments of `psycopg2.connect` by endpoint name, or a function that returns those of an
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

    _errors = (psycopg2.Error, OSError)

    def __init__(
            self,
            dsn_params: DsnParameters | Callable[[DbEndpoint], Parameters],
            *,
            aliveness: Literal['socket', 'query'] = 'socket',
            reset: Literal['rollback', 'discard all'] | Callable[[Connection], object] = 'rollback',
            check_timeout: float = CHECK_TIMEOUT,
    ) -> None:
        super().__init__(dsn_params, aliveness, reset, _discard_all, check_timeout)
        # autocommit first: it takes what it has told the server of the others back
        self._settings = Settings[Connection](
            'autocommit', 'isolation_level', 'readonly', 'deferrable', 'cursor_factory')

    def create(self, endpoint: DbEndpoint, timeout: float | None = None) -> Connection:
        """Connect to a database.

        :param endpoint: its name
        :param timeout: how long it may take, authentication included; ``None``: what its parameters say
        :raises UnknownEndpointError: when there are no parameters for it
        :raises TimeoutError: when it took longer
        :raises psycopg2.Error: when the server cannot be reached, or refuses
        """
        deadline = deadline_in(timeout)
        found = check_parameters(endpoint, self._directory.find(endpoint))
        parameters = spelled_out(endpoint, found, 'dsn', parse_dsn)
        conn = connect_by(deadline, endpoint, parameters, _connect, Connection.close)
        self._settings.record(conn)
        self._register(endpoint, conn)
        return conn

    def dispose(self, endpoint: DbEndpoint, conn: Connection, timeout: float | None = None) -> None:
        """Close a connection. Says goodbye where that cannot wait, else breaks it off. Does nothing in a process forked
        off since its creation, where psycopg2 lets go of it without a word.

        :param endpoint: what it is connected to
        :param conn: the connection
        :param timeout: not needed: this does not wait for the server
        """
        if self._births.was_here(conn):
            self._generations.gone(endpoint, conn)
            with contextlib.suppress(psycopg2.Error, ValueError):  # ValueError: libpq has no socket any more
                if _is_tied_up(conn):
                    hang_up(conn.fileno())
            with contextlib.suppress(psycopg2.Error):
                conn.close()

    def check_aliveness(self, endpoint: DbEndpoint, conn: Connection, timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: what it is connected to
        :param conn: the connection
        :param timeout: how long a query may take; ``None``: as long as `check_timeout` says
        """
        try:
            alive = is_quiet(conn.fileno()) or _heard_only_news(conn)
        except (psycopg2.Error, OSError, ValueError):  # ValueError: libpq has no socket any more
            alive = False
        if alive and not self._asks_server and endpoint not in self._suspects:
            return True
        return self._is_usable(endpoint, conn, alive, timeout)

    def on_release(self, endpoint: DbEndpoint, conn: Connection) -> None:
        """Clear away what the user left behind.

        :param endpoint: what it is connected to
        :param conn: the connection
        :raises psycopg2.Error: when that is impossible
        :raises TimeoutError: when it takes more than five seconds
        """
        is_clean = conn.get_transaction_status() == TRANSACTION_STATUS_IDLE and conn.status == STATUS_READY
        if is_clean and self._reset is None and self._settings.are_kept(conn):
            return
        self._clean_up(endpoint, conn)

    def _has_ended(self, conn: Connection) -> bool:
        return bool(conn.closed) or conn.get_transaction_status() == TRANSACTION_STATUS_UNKNOWN

    def _is_closed_by_user(self, conn: Connection) -> bool:
        return conn.closed == CLOSED

    def _check_not_busy(self, conn: Connection) -> None:
        if conn.get_transaction_status() == TRANSACTION_STATUS_ACTIVE:
            raise psycopg2.InterfaceError('the connection was released in the middle of a command')

    def _ping(self, conn: Connection) -> None:
        _execute(conn, 'SELECT 1')

    def _clean(self, conn: Connection) -> None:
        """End whatever transaction there is, and set the connection as it was."""
        conn.rollback()
        if conn.get_transaction_status() != TRANSACTION_STATUS_IDLE:
            _execute(conn, 'ROLLBACK')  # the user said BEGIN: psycopg2 knows of no transaction
        for name, value in self._settings.changed(conn):
            setattr(conn, name, value)


def _connect(parameters: Parameters) -> Connection:
    conn: Connection = psycopg2.connect(**(parameters or {'dsn': ''}))
    return conn


def _is_tied_up(conn: Connection) -> bool:
    """Tell whether a goodbye might wait: for a command in another thread, or for room to send."""
    return conn.get_transaction_status() == TRANSACTION_STATUS_ACTIVE or not is_writable(conn.fileno())


def _heard_only_news(conn: Connection) -> bool:
    """Take in what an idle connection was sent; tell whether the server may say that to one that stays in use.

    A changed parameter, a notice and a notification are news: libpq reads them, and keeps notifications for the user.
    An error is the server's goodbye, of which libpq would make a mere notice until it meets the EOF behind it; whatever
    else comes unasked is a fault, and libpq would skip it. So look at the first byte before libpq does, and, as that
    tells nothing through TLS, at the notices."""
    if not conn.info.ssl_in_use and peek(conn.fileno()) not in NEWS:
        return False
    for _ in range(READS):
        conn.poll()  # reads what is there, never waits; raises at EOF
        if conn.closed:
            return False
        if any(str(notice).startswith('FATAL') for notice in conn.notices):
            hang_up(conn.fileno())  # libpq would go on as if nothing had been said
            return False
        if is_quiet(conn.fileno()):
            return True
    return False  # it goes on and on: no connection that waits for questions


def _execute(conn: Connection, statement: str) -> None:
    before = conn.autocommit
    conn.autocommit = True  # else BEGIN and ROLLBACK make three round trips of one
    with cursor(conn) as plain:
        plain.execute(statement)
    conn.autocommit = before


def _discard_all(conn: Connection) -> None:
    """Leave nothing of a session's past, neither on the server nor here."""
    _execute(conn, 'DISCARD ALL')
    # psycopg2 does not listen when the server says that the encoding is again what it was at first
    encoding = conn.info.parameter_status('client_encoding')
    if encoding and encoding.replace('_', '') != conn.encoding:
        conn.set_client_encoding(encoding)
    del conn.notifies[:], conn.notices[:]
