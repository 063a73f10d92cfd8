"""PostgreSQL connections by asyncpg for the asyncio pool. The same page as psycopg2.py, in the other colour."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, Literal, TypeVar

try:
    import asyncpg
except ImportError as exc:
    raise ImportError('gcp.contrib.asyncpg needs asyncpg: pip install gcpool[asyncpg]', name='asyncpg') from exc

from gcp.asyncio import BaseConnectionManager
from gcp.contrib._postgres import NEWS, Births, DbEndpoint, Directory, Parameters, UnknownEndpointError, asks_server

__all__ = ['Connection', 'DbConnectionManager', 'DbEndpoint', 'DsnParameters', 'UnknownEndpointError']

Connection = asyncpg.Connection
DsnParameters = Mapping[DbEndpoint, Parameters]
RecordT = TypeVar('RecordT', bound=asyncpg.Record)

#: How long a goodbye may take, the cancelling of a command in progress included, before the connection is broken off.
GOODBYE_TIMEOUT = 2.0

#: How long a server may take to roll back, the end of a cancelled command included.
ROLLBACK_TIMEOUT = 10.0


class DbConnectionManager(BaseConnectionManager[DbEndpoint, 'Connection[RecordT]'], Generic[RecordT]):
    """Connects to PostgreSQL databases by name.

    A connection that comes back in a transaction, failed or not, is rolled back before the next can have it; one that
    cannot be makes the release raise, and is disposed of.

    :param dsn_params: keyword arguments of `asyncpg.connect` by endpoint name, or a function, plain or async, that
        returns those of an endpoint, called for each new connection (for credentials that rotate)
    :param aliveness: ``'socket'``: ask what the event loop has read from the socket, which sends nothing;
        ``'query'``: one round trip on top of it, which also sees a server that is gone without a word
    :raises TypeError: when `dsn_params` is neither, or has something else than a mapping for an endpoint
    :raises ValueError: when `aliveness` is neither
    """

    def __init__(
            self,
            dsn_params: DsnParameters | Callable[[DbEndpoint], Parameters | Awaitable[Parameters]],
            *,
            aliveness: Literal['socket', 'query'] = 'socket',
    ) -> None:
        self._directory = Directory(dsn_params)
        self._asks_server = asks_server(aliveness)
        self._births = Births['Connection[RecordT]']()

    def __repr__(self) -> str:
        return f'<{type(self).__name__}: {self._directory}>'

    async def create(self, endpoint: DbEndpoint) -> Connection[RecordT]:
        """Connect to a database.

        :param endpoint: its name
        :raises UnknownEndpointError: when there are no parameters for it
        :raises OSError: when the server cannot be reached
        :raises asyncpg.PostgresError: when it refuses
        """
        parameters = self._directory.find(endpoint)
        if inspect.isawaitable(parameters):
            parameters = await parameters
        conn = await asyncpg.connect(**self._directory.check(endpoint, parameters))
        transport = _internals(conn)._transport
        transport.set_protocol(_Ear(transport.get_protocol()))
        self._births.record(conn)
        return conn

    async def dispose(self, endpoint: DbEndpoint, conn: Connection[RecordT]) -> None:
        """Close a connection, within two seconds. Does nothing in a process forked off since its creation.

        :param endpoint: what it is connected to
        :param conn: the connection
        """
        if not self._births.was_here(conn):
            return
        try:
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
        if conn.is_closed() or transport.is_closing() or not _ear(transport).is_fine():
            return False
        return not self._asks_server or (self._births.was_here(conn) and await _answers(conn))

    async def on_release(self, endpoint: DbEndpoint, conn: Connection[RecordT]) -> None:
        """Roll back what the user left open.

        :param endpoint: what it is connected to
        :param conn: the connection
        :raises asyncpg.PostgresError: when that is impossible
        :raises asyncpg.InterfaceError: when another task is in the middle of a command
        :raises TimeoutError: when it takes more than ten seconds
        """
        if conn.is_closed():
            return  # the user closed it or saw it break: no fault of the release, and the next check finds it dead
        # a command that its user's cancellation broke off may go on for a while: not at the cost of the next user
        if conn.is_in_transaction() or _internals(conn)._protocol._is_cancelling():
            await conn.execute('ROLLBACK', timeout=ROLLBACK_TIMEOUT)
        # a `conn.transaction()` that was started and never ended; else the next user's would be a savepoint within it
        _internals(conn)._top_xact = None
        _ear(_internals(conn)._transport).is_idle = True


class _Ear(asyncio.Protocol):
    """Stands between the transport and asyncpg's protocol, and hears what a connection is told while nobody uses it.

    asyncpg takes note of such words and says nothing: the next command fails, and, as long as the EOF behind them is
    not there, that after it too. A server that ends sessions takes a millisecond or more from the one to the other.

    :ivar is_idle: nobody uses the connection: it should hear nothing but news
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._receive = protocol.data_received
        self._is_gone = False
        self.is_idle = False

    def is_fine(self) -> bool:
        """Tell whether all is well so far; what comes from here on is for the connection's next user."""
        self.is_idle = False
        return not self._is_gone

    def data_received(self, data: bytes) -> None:
        # FATAL is the server's goodbye, also to one who has a connection and asks nothing
        if (self.is_idle and data[:1] not in NEWS) or (data[:1] == b'E' and b'FATAL\0' in data):
            self._is_gone = True
        self._receive(data)

    def eof_received(self) -> bool | None:
        closes_itself: bool | None = self._protocol.eof_received()
        return closes_itself

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


def _ear(transport: Any) -> _Ear:
    """The ear of a connection; of one that the manager did not create, one that has heard nothing."""
    protocol = transport.get_protocol()
    return protocol if isinstance(protocol, _Ear) else _Ear(asyncio.Protocol())


def _internals(conn: Connection[Any]) -> Any:
    """The connection, for what asyncpg's own pool knows of it and nobody else can ask."""
    return conn


async def _answers(conn: Connection[Any]) -> bool:
    try:
        await conn.execute('SELECT 1')  # the simple protocol: one round trip, no statement left behind
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
        return False
    return True
