"""PostgreSQL connections by asyncpg for the asyncio pool. The same page as psycopg2.py, in the other colour."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, Literal, TypeVar

try:
    import asyncpg
    from asyncpg.protocol.protocol import PreparedStatementState
except ImportError as exc:
    raise ImportError('gcp.contrib.asyncpg needs asyncpg: pip install gcpool[asyncpg]', name='asyncpg') from exc

from gcp.asyncio import BaseConnectionManager
from gcp.contrib._postgres import (
    CHECK_TIMEOUT,
    NEWS,
    AsyncManager,
    DbEndpoint,
    Parameters,
    UnknownEndpointError,
    check_parameters,
)

__all__ = ['Connection', 'DbConnectionManager', 'DbEndpoint', 'DsnParameters', 'UnknownEndpointError']

Connection = asyncpg.Connection
DsnParameters = Mapping[DbEndpoint, Parameters]
RecordT = TypeVar('RecordT', bound=asyncpg.Record)

#: How long a goodbye may take, the cancelling of a command in progress included, before the connection is broken off.
GOODBYE_TIMEOUT = 2.0

class DbConnectionManager(
    AsyncManager['Connection[RecordT]'],
    BaseConnectionManager[DbEndpoint, 'Connection[RecordT]'],
    Generic[RecordT],
):
    """Connects to PostgreSQL databases by name.

    A connection that comes back in a transaction, failed or not, is rolled back before the next can have it; one that
    cannot be, within five seconds, makes the release raise, and is disposed of.

    :param dsn_params: keyword arguments of `asyncpg.connect` by endpoint name, or a function, plain or async, that
        returns those of an endpoint, called for each new connection (for credentials that rotate)
    :param aliveness: ``'socket'``: ask what the event loop has read from the socket, which sends nothing;
        ``'query'``: one round trip on top of it, which also sees a server that is gone without a word
    :param reset: what is done on release: ``'rollback'``; ``'discard all'``: on top of it ``DISCARD ALL``, one round
        trip, after which nothing is left of the session's past, listeners and cached statements included; or a function
        of the connection, plain or async, called after the rollback, that raises when the connection is of no use any
        more
    :param check_timeout: how long a server may take to answer a check, seconds: with ``aliveness='query'``, and after a
        connection of the same endpoint was found dead
    :raises TypeError: when `dsn_params` is neither, or has something else than a mapping for an endpoint
    :raises ValueError: when `aliveness`, `reset` or `check_timeout` is none of these
    """

    _errors = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)

    def __init__(
            self,
            dsn_params: DsnParameters | Callable[[DbEndpoint], Parameters | Awaitable[Parameters]],
            *,
            aliveness: Literal['socket', 'query'] = 'socket',
            reset: Literal['rollback', 'discard all'] | Callable[[Connection[RecordT]], object] = 'rollback',
            check_timeout: float = CHECK_TIMEOUT,
    ) -> None:
        super().__init__(dsn_params, aliveness, reset, _discard_all, check_timeout)
        self._ears: weakref.WeakKeyDictionary[Connection[RecordT], _Ear] = weakref.WeakKeyDictionary()

    async def create(self, endpoint: DbEndpoint) -> Connection[RecordT]:
        """Connect to a database.

        :param endpoint: its name
        :raises UnknownEndpointError: when there are no parameters for it
        :raises OSError: when the server cannot be reached
        :raises asyncpg.PostgresError: when it refuses
        """
        found = self._directory.find(endpoint)
        if inspect.isawaitable(found):
            found = await found
        conn = await _connect(endpoint, check_parameters(endpoint, found))
        self._ear(conn)
        self._register(endpoint, conn)
        return conn

    async def dispose(self, endpoint: DbEndpoint, conn: Connection[RecordT]) -> None:
        """Close a connection, within two seconds. Does nothing in a process forked off since its creation.

        :param endpoint: what it is connected to
        :param conn: the connection
        """
        if not self._births.was_here(conn):
            return
        is_dead = self._ear(conn).is_gone or self._generations.is_condemned(endpoint, conn)
        self._generations.gone(endpoint, conn)
        try:
            if is_dead:
                conn.terminate()  # nobody is there to say goodbye to
            else:
                # not close(timeout=...): before 0.32 that is no limit where a command is being cancelled
                await asyncio.wait_for(conn.close(), GOODBYE_TIMEOUT)
        except Exception:  # the server, or what is left of the connection, does not care for a goodbye
            pass
        finally:
            _internals(conn)._transport.abort()  # before 0.32, a close that is broken off leaves it open

    async def check_aliveness(self, endpoint: DbEndpoint, conn: Connection[RecordT]) -> bool:
        """Tell whether an idle connection can still be used.

        The event loop reads the socket all the time, so there is no need to look. News (notices, notifications, changed
        parameters) went to their listeners. EOF and errors have closed the connection, or are about to, and then the
        transport is closing. Whatever else came while nobody used it was heard on its way to asyncpg.

        :param endpoint: what it is connected to
        :param conn: the connection
        """
        transport = _internals(conn)._transport
        alive = not conn.is_closed() and not transport.is_closing() and self._ear(conn).is_fine()
        if alive and not self._asks_server and endpoint not in self._suspects:
            return True
        return await self._is_usable(endpoint, conn, alive)

    async def on_release(self, endpoint: DbEndpoint, conn: Connection[RecordT]) -> None:
        """Clear away what the user left behind.

        :param endpoint: what it is connected to
        :param conn: the connection
        :raises asyncpg.PostgresError: when that is impossible
        :raises asyncpg.InterfaceError: when another task is in the middle of a command
        :raises TimeoutError: when it takes more than five seconds
        """
        ear = self._ear(conn)
        has_ended = conn.is_closed() or ear.is_gone
        if has_ended or self._reset is not None or _is_occupied(conn):
            await self._clean_up(endpoint, conn)
        else:
            await _check_no_command(conn)
        if not has_ended:
            # a `conn.transaction()` that was started and never ended; else the next user's would be a savepoint in it
            _internals(conn)._top_xact = None
            ear.is_idle = True

    def _has_ended(self, conn: Connection[RecordT]) -> bool:
        return conn.is_closed() or self._ear(conn).is_gone

    def _is_closed_by_user(self, conn: Connection[RecordT]) -> bool:
        return not self._ear(conn).is_gone

    def _aborter(self, conn: Connection[RecordT]) -> Callable[[], object]:
        return self._ear(conn).break_off

    async def _ping(self, conn: Connection[RecordT]) -> None:
        await conn.execute('SELECT 1')  # the simple protocol: one round trip, no statement left behind

    async def _clean(self, conn: Connection[RecordT]) -> None:
        if _is_occupied(conn):
            await conn.execute('ROLLBACK')

    def _ear(self, conn: Connection[RecordT]) -> _Ear:
        """The ear of a connection; of one that another manager created, one of our own."""
        try:
            return self._ears[conn]
        except KeyError:
            ear = self._ears[conn] = _Ear(_internals(conn)._transport)
            return ear


class _Ear(asyncio.Protocol):
    """Stands between the transport and asyncpg's protocol, and hears what a connection is told while nobody uses it.

    asyncpg takes note of such words and says nothing: the next command fails, and, as long as the EOF behind them is
    not there, that after it too. A server that ends sessions takes a millisecond or more from the one to the other.

    :ivar is_idle: nobody uses the connection: it should hear nothing but news
    :ivar is_gone: the connection broke, or is about to; and it was not us who closed it
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._protocol: Any = transport.get_protocol() or asyncio.Protocol()
        self._receive = self._protocol.data_received
        self.is_gone = False
        self.is_idle = False
        transport.set_protocol(self)

    def break_off(self) -> None:
        """Close the connection without a word, and without waiting for one."""
        self.is_gone = True
        self._transport.abort()

    def is_fine(self) -> bool:
        """Tell whether all is well so far; what comes from here on is for the connection's next user."""
        self.is_idle = False
        return not self.is_gone

    def data_received(self, data: bytes) -> None:
        # FATAL is the server's goodbye, also to one who has a connection and asks nothing
        if (self.is_idle and data[:1] not in NEWS) or (data[:1] == b'E' and b'FATAL\0' in data):
            self.is_gone = True
        self._receive(data)

    def eof_received(self) -> bool | None:
        self.is_gone = self.is_gone or not self.is_closed()
        closes_itself: bool | None = self._protocol.eof_received()
        return closes_itself

    def is_closed(self) -> bool:
        """Tell whether it was us who closed the connection; another ear may ask, another manager's."""
        closed: bool = self._protocol.is_closed()
        return closed

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_gone = self.is_gone or exc is not None
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


def _internals(conn: Connection[Any]) -> Any:
    """The connection, for what asyncpg's own pool knows of it and nobody else can ask."""
    return conn


async def _connect(endpoint: DbEndpoint, parameters: Parameters) -> Connection[Any]:
    try:
        return await asyncpg.connect(**parameters)
    except ValueError:
        if 'dsn' not in parameters:
            raise
    # out here, where no context holds on to what asyncpg said: it quotes the DSN
    raise ValueError(f"dsn_params of endpoint {endpoint!r}: 'dsn' is no connection string that asyncpg understands")


def _is_occupied(conn: Connection[Any]) -> bool:
    """Tell whether there is a transaction, or a command that its user's cancellation broke off: it may go on for a
    while, and not at the cost of the next user."""
    return conn.is_in_transaction() or _internals(conn)._protocol._is_cancelling()


async def _check_no_command(conn: Connection[Any]) -> None:
    """Raise when a task is in the middle of a command.

    asyncpg keeps that to itself, until it is asked for another. So ask to close a statement that cannot be closed, as
    it is said to be in use: of that it complains only after it has seen that the connection is free to begin."""
    protocol = _internals(conn)._protocol
    statement = PreparedStatementState('', '', protocol, asyncpg.Record, False)
    statement.attach()
    with contextlib.suppress(asyncpg.InternalClientError):
        await protocol.close_statement(statement, None)


async def _discard_all(conn: Connection[Any]) -> None:
    """Leave nothing of a session's past, neither on the server nor here."""
    await conn.execute('DISCARD ALL')
    internals = _internals(conn)
    # the server has forgotten the statements that asyncpg remembers to have prepared, and closes no more
    internals._mark_stmts_as_closed()
    # it has forgotten the channels, too; asyncpg would take the next user's for known, and not tell it
    internals._listeners.clear()
    internals._log_listeners.clear()
