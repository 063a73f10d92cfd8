"""PostgreSQL connections by asyncpg for the asyncio pool."""

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
    ASYNC_MESSAGES,
    CHECK_TIMEOUT,
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

#: How long an orderly close may take, including the cancellation of a command, before the connection is aborted.
CLOSE_TIMEOUT = 2.0


class DbConnectionManager(
    AsyncManager['Connection[RecordT]'],
    BaseConnectionManager[DbEndpoint, 'Connection[RecordT]'],
    Generic[RecordT],
):
    """Connects to PostgreSQL databases by name.

    A released connection is rolled back if it is in a transaction. If that fails or takes more than five seconds, the
    release raises, and the connection is disposed of.

    :param dsn_params: keyword arguments of `asyncpg.connect` by endpoint name, or a function, plain or async, that
        returns them for an endpoint, called for each new connection (for rotating credentials)
    :param aliveness: ``'socket'``: judge by what the event loop has read from the socket, which sends nothing;
        ``'query'``: also make a round trip, which detects a server that has vanished
    :param reset: what to do on release: ``'rollback'``; ``'discard all'``: a rollback and ``DISCARD ALL``, one round
        trip, which leaves nothing of the session's state, listeners and cached statements included; or a function of
        the connection, plain or async, called after the rollback, that raises when the connection cannot be used again
    :param check_timeout: how long the server may take to answer a check, seconds: with ``aliveness='query'``, and after
        another connection of the endpoint was found dead
    :raises TypeError: when an argument has the wrong type, or `dsn_params` has no mapping for an endpoint
    :raises ValueError: when `aliveness`, `reset` or `check_timeout` has another value
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
        self._monitors: weakref.WeakKeyDictionary[Connection[RecordT], _ProtocolMonitor] = weakref.WeakKeyDictionary()

    async def create(self, endpoint: DbEndpoint) -> Connection[RecordT]:
        """Connect to a database.

        :param endpoint: its name
        :raises UnknownEndpointError: when there are no parameters for it
        :raises OSError: when the server is unreachable
        :raises asyncpg.PostgresError: when it refuses
        """
        found = self._directory.find(endpoint)
        if inspect.isawaitable(found):
            found = await found
        conn = await _connect(endpoint, check_parameters(endpoint, found))
        self._monitor(conn)
        self._register(endpoint, conn)
        return conn

    async def dispose(self, endpoint: DbEndpoint, conn: Connection[RecordT]) -> None:
        """Close a connection within two seconds. Does nothing in a process forked since its creation.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        if self._fork_guard.is_inherited(conn):
            return
        is_dead = self._monitor(conn).is_lost or self._failure_detector.is_invalid(endpoint, conn)
        self._failure_detector.remove(endpoint, conn)
        try:
            if is_dead:
                conn.terminate()  # the server cannot be told
            else:
                # not close(timeout=...): before 0.32 it does not limit the cancellation of a command
                await asyncio.wait_for(conn.close(), CLOSE_TIMEOUT)
        except Exception:  # the connection broke before it was closed
            pass
        finally:
            _internals(conn)._transport.abort()  # before 0.32, a close that is cancelled leaves it open

    async def check_aliveness(self, endpoint: DbEndpoint, conn: Connection[RecordT]) -> bool:
        """Tell whether an idle connection can still be used.

        The event loop reads the socket, so there is no need to poll it. Asynchronous messages (notices, notifications,
        parameter changes) went to their listeners. EOF and errors have closed the connection, or its transport is
        closing. Anything else that came while the connection was idle was noted on its way to asyncpg.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        transport = _internals(conn)._transport
        alive = not conn.is_closed() and not transport.is_closing() and self._monitor(conn).begin_use()
        if alive and not self._asks_server and endpoint not in self._unverified:
            return True
        return await self._is_usable(endpoint, conn, alive)

    async def on_release(self, endpoint: DbEndpoint, conn: Connection[RecordT]) -> None:
        """Reset the connection for its next user.

        :param endpoint: its endpoint
        :param conn: the connection
        :raises asyncpg.PostgresError: when that fails
        :raises asyncpg.InterfaceError: when another task is executing a command
        :raises TimeoutError: when it took more than five seconds
        """
        monitor = self._monitor(conn)
        has_ended = conn.is_closed() or monitor.is_lost
        if has_ended or self._reset is not None or _is_occupied(conn):
            await self._clean_up(endpoint, conn)
        else:
            await _check_no_command(conn)
        if not has_ended:
            # of a `conn.transaction()` that was never ended; else the next user's would be a savepoint within it
            _internals(conn)._top_xact = None
            monitor.is_idle = True

    def _has_ended(self, conn: Connection[RecordT]) -> bool:
        return conn.is_closed() or self._monitor(conn).is_lost

    def _is_closed_by_user(self, conn: Connection[RecordT]) -> bool:
        return not self._monitor(conn).is_lost

    def _aborter(self, conn: Connection[RecordT]) -> Callable[[], object]:
        return self._monitor(conn).abort

    async def _ping(self, conn: Connection[RecordT]) -> None:
        await conn.execute('SELECT 1')  # the simple protocol: one round trip, no statement left behind

    async def _clean(self, conn: Connection[RecordT]) -> None:
        if _is_occupied(conn):
            await conn.execute('ROLLBACK')

    def _monitor(self, conn: Connection[RecordT]) -> _ProtocolMonitor:
        """Return a connection's monitor. One that another manager created gets a second one here."""
        try:
            return self._monitors[conn]
        except KeyError:
            monitor = self._monitors[conn] = _ProtocolMonitor(_internals(conn)._transport)
            return monitor


class _ProtocolMonitor(asyncio.Protocol):
    """A protocol between the transport and asyncpg's, which inspects what an idle connection receives.

    asyncpg stores an unexpected message silently: the next command fails, and so do those after it until the EOF
    arrives. A server that ends a session sends the EOF a millisecond or more after its message.

    :ivar is_idle: the connection is not in use: it should receive nothing but asynchronous messages
    :ivar is_lost: the connection is broken or about to be, and was not closed on this side
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._protocol: Any = transport.get_protocol() or asyncio.Protocol()
        self._receive = self._protocol.data_received
        self.is_lost = False
        self.is_idle = False
        transport.set_protocol(self)

    def abort(self) -> None:
        """Close the connection at once, without sending or waiting for anything."""
        self.is_lost = True
        self._transport.abort()

    def begin_use(self) -> bool:
        """Tell whether the connection is intact; from now on, what it receives is for its next user."""
        self.is_idle = False
        return not self.is_lost

    def data_received(self, data: bytes) -> None:
        # FATAL is the last message of a session, also while the connection is in use but no command is executing
        if (self.is_idle and data[:1] not in ASYNC_MESSAGES) or (data[:1] == b'E' and b'FATAL\0' in data):
            self.is_lost = True
        self._receive(data)

    def eof_received(self) -> bool | None:
        self.is_lost = self.is_lost or not self.is_closed()
        closes_itself: bool | None = self._protocol.eof_received()
        return closes_itself

    def is_closed(self) -> bool:
        """Tell whether the connection was closed on this side. Public: another manager's monitor may call it."""
        closed: bool = self._protocol.is_closed()
        return closed

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = self.is_lost or exc is not None
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


def _internals(conn: Connection[Any]) -> Any:
    """Return the connection untyped, for attributes that asyncpg's own pool uses and that have no public name."""
    return conn


async def _connect(endpoint: DbEndpoint, parameters: Parameters) -> Connection[Any]:
    try:
        return await asyncpg.connect(**parameters)
    except ValueError:
        if 'dsn' not in parameters:
            raise
    # raised outside the except block, or its context would be asyncpg's error, which quotes the DSN
    raise ValueError(f"dsn_params of endpoint {endpoint!r}: 'dsn' is no connection string that asyncpg understands")


def _is_occupied(conn: Connection[Any]) -> bool:
    """Tell whether there is a transaction, or a cancelled command that may still be executing on the server."""
    return conn.is_in_transaction() or _internals(conn)._protocol._is_cancelling()


async def _check_no_command(conn: Connection[Any]) -> None:
    """Raise when a task is executing a command.

    asyncpg has no way to ask, and raises only at the next command. So close a statement that is marked as in use:
    asyncpg first checks that the connection is free, and then refuses, without sending anything."""
    protocol = _internals(conn)._protocol
    statement = PreparedStatementState('', '', protocol, asyncpg.Record, False)
    statement.attach()
    with contextlib.suppress(asyncpg.InternalClientError):
        await protocol.close_statement(statement, None)


async def _discard_all(conn: Connection[Any]) -> None:
    """Discard the session's state, on the server and in asyncpg."""
    await conn.execute('DISCARD ALL')
    internals = _internals(conn)
    # the server has deallocated the prepared statements in asyncpg's cache
    internals._mark_stmts_as_closed()
    # and stopped listening; else asyncpg would not send LISTEN for a channel that it has in its table
    internals._listeners.clear()
    internals._log_listeners.clear()
