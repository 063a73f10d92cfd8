"""PostgreSQL connections by psycopg2 for the threading pool.

Sees to it that a connection is alive, carries no transaction from one user to the next, and that a server that falls
silent costs no more than the time-out. It does not touch what else a session can be left with."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

try:
    import psycopg2
    from psycopg2.extensions import (
        STATUS_READY,
        TRANSACTION_STATUS_ACTIVE,
        TRANSACTION_STATUS_IDLE,
        TRANSACTION_STATUS_UNKNOWN,
    )
    from psycopg2.extensions import connection as Connection  # noqa: N812
except ImportError as exc:
    raise ImportError('gcp.contrib.psycopg2 needs psycopg2: pip install gcpool[psycopg2]', name='psycopg2') from exc

from gcp.contrib._postgres import NEWS, Births, DbEndpoint, Directory, Parameters, UnknownEndpointError, asks_server
from gcp.contrib._wire import hang_up, is_quiet, is_writable, peek, within
from gcp.threading import BaseConnectionManager

__all__ = ['Connection', 'DbConnectionManager', 'DbEndpoint', 'DsnParameters', 'UnknownEndpointError']

DsnParameters = Mapping[DbEndpoint, Parameters]

#: How often to read from an idle connection until it is quiet.
READS = 8


class DbConnectionManager(BaseConnectionManager[DbEndpoint, Connection]):
    """Connects to PostgreSQL databases by name.

    A connection that comes back in a transaction, failed or not, is rolled back before the next can have it; one that
    cannot be makes the release raise, and is disposed of.

    :param dsn_params: keyword arguments of `psycopg2.connect` by endpoint name, or a function that returns those of an
        endpoint, called for each new connection (for credentials that rotate)
    :param aliveness: ``'socket'``: look at the socket, which costs about 2 microseconds and sends nothing, and sees
        whatever has reached this host; ``'query'``: one round trip on top of it, which also sees a server that is gone
        without a word
    :raises TypeError: when `dsn_params` is neither, or has something else than a mapping for an endpoint
    :raises ValueError: when `aliveness` is neither
    """

    def __init__(
            self,
            dsn_params: DsnParameters | Callable[[DbEndpoint], Parameters],
            *,
            aliveness: Literal['socket', 'query'] = 'socket',
    ) -> None:
        self._directory = Directory(dsn_params)
        self._asks_server = asks_server(aliveness)
        self._births = Births[Connection]()

    def __repr__(self) -> str:
        return f'<{type(self).__name__}: {self._directory}>'

    def create(self, endpoint: DbEndpoint, timeout: float | None = None) -> Connection:
        """Connect to a database.

        :param endpoint: its name
        :param timeout: how long it may take, authentication included; ``None``: what its parameters say
        :raises UnknownEndpointError: when there are no parameters for it
        :raises TimeoutError: when it took longer
        :raises psycopg2.Error: when the server cannot be reached, or refuses
        """
        parameters = self._directory.check(endpoint, self._directory.find(endpoint))
        conn = _connect(parameters) if timeout is None else _connect_within(timeout, endpoint, parameters)
        self._births.record(conn)
        return conn

    def dispose(self, endpoint: DbEndpoint, conn: Connection, timeout: float | None = None) -> None:
        """Close a connection. Says goodbye where that cannot wait, else breaks it off. Does nothing in a process forked
        off since its creation, where psycopg2 lets go of it without a word.

        :param endpoint: what it is connected to
        :param conn: the connection
        :param timeout: not needed: this does not wait for the server
        """
        if self._births.was_here(conn):
            with contextlib.suppress(psycopg2.Error, ValueError):  # ValueError: libpq has no socket any more
                if _is_tied_up(conn):
                    hang_up(conn.fileno())
            with contextlib.suppress(psycopg2.Error):
                conn.close()

    def check_aliveness(self, endpoint: DbEndpoint, conn: Connection, timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: what it is connected to
        :param conn: the connection
        :param timeout: how long a query may take; ``None``: no limit
        """
        if conn.closed:
            return False
        try:
            alive = is_quiet(conn.fileno()) or _heard_only_news(conn)
        except (psycopg2.Error, OSError, ValueError):  # ValueError: libpq has no socket any more
            return False
        return alive and (not self._asks_server or (self._births.was_here(conn) and _answers(conn, timeout)))

    def on_release(self, endpoint: DbEndpoint, conn: Connection) -> None:
        """Roll back what the user left open.

        :param endpoint: what it is connected to
        :param conn: the connection
        :raises psycopg2.Error: when that is impossible
        """
        status = conn.get_transaction_status()
        if status == TRANSACTION_STATUS_IDLE and conn.status == STATUS_READY:
            return
        if conn.closed or status == TRANSACTION_STATUS_UNKNOWN:
            return  # the user closed it or saw it break: no fault of the release, and the next check finds it dead
        if status == TRANSACTION_STATUS_ACTIVE:
            raise psycopg2.InterfaceError('the connection was released in the middle of a command')
        _roll_back(conn)


def _connect(parameters: Parameters) -> Connection:
    conn: Connection = psycopg2.connect(**parameters)
    return conn


def _connect_within(timeout: float, endpoint: DbEndpoint, parameters: Parameters) -> Connection:
    """Connect in a thread that can be left behind: libpq counts in whole seconds, for each address anew, and
    psycopg2 cannot make a blocking connection of one that it has connected step by step.

    libpq's own limit only ends a thread that was left behind, so it is the first that is longer than ours."""
    limit = math.floor(min(timeout, 1e6)) + 1
    given = int(parameters.get('connect_timeout') or 0)
    return within(
        timeout,
        partial(_connect, {**parameters, 'connect_timeout': min(given, limit) if given > 0 else limit}),
        what=f'connection to {endpoint!r}',
        discard=Connection.close,
    )


def _is_tied_up(conn: Connection) -> bool:
    """Tell whether a goodbye might wait: for a command in another thread, or for room to send."""
    return conn.get_transaction_status() == TRANSACTION_STATUS_ACTIVE or not is_writable(conn.fileno())


def _heard_only_news(conn: Connection) -> bool:
    """Take in what an idle connection was sent; tell whether the server may say that to one that stays in use.

    A changed parameter, a notice and a notification are news: libpq reads them, and keeps notifications for the user.
    An error is the server's goodbye, of which libpq would make a mere notice until it meets the EOF behind it; whatever
    else comes unasked is a fault, and libpq would skip it. So look at the first byte before libpq does, except through
    TLS, where it tells nothing."""
    if not conn.info.ssl_in_use and peek(conn.fileno()) not in NEWS:
        return False
    for _ in range(READS):
        conn.poll()  # reads what is there, never waits; raises at EOF
        if conn.closed:
            return False
        if is_quiet(conn.fileno()):
            return True
    return False  # it goes on and on: no connection that waits for questions


def _answers(conn: Connection, timeout: float | None) -> bool:
    try:
        if timeout is None:
            _ask(conn)
        else:
            within(timeout, partial(_ask, conn), what='query')
    except TimeoutError:
        hang_up(conn.fileno())  # ends the thread that was left behind
        return False
    except psycopg2.Error:
        return False
    return True


def _ask(conn: Connection) -> None:
    before = conn.autocommit
    conn.autocommit = True  # else BEGIN and ROLLBACK make three round trips of one
    with conn.cursor() as cursor:
        cursor.execute('SELECT 1')
    conn.autocommit = before


def _roll_back(conn: Connection) -> None:
    if conn.autocommit:
        # the user said BEGIN; psycopg2 knows of no transaction, and its own rollback would do nothing
        with conn.cursor() as cursor:
            cursor.execute('ROLLBACK')
    else:
        conn.rollback()
