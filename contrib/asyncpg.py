"""PostgreSQL connections by asyncpg for the asyncio pool."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

try:
    import asyncpg
    from asyncpg.protocol.protocol import PreparedStatementState
except ImportError as exc:
    raise ImportError('gcp.contrib.asyncpg needs asyncpg: pip install gcpool[asyncpg]', name='asyncpg') from exc

from gcp._core import set_option
from gcp.asyncio import BaseConnectionManager
from gcp.contrib._database import (
    CHECK_TIMEOUT,
    AsyncManager,
    ClientSettings,
    DbEndpoint,
    Parameters,
    UnknownEndpointError,
    Verdict,
    call_user,
    is_coroutine_function,
)
from gcp.contrib._postgres import MessageReader, Postgres, error_message
from gcp.contrib._wire import has_ended, is_quiet
from gcp.contrib.socket_async import let_loop_read

__all__ = ['Connection', 'DbConnectionManager', 'DbEndpoint', 'DsnParameters', 'UnknownEndpointError']

DsnParameters = Mapping[DbEndpoint, Parameters]
if TYPE_CHECKING:
    from asyncpg import Connection
    from typing_extensions import TypeVar as TypeVarWithDefault

    RecordT = TypeVarWithDefault('RecordT', bound=asyncpg.Record, default=asyncpg.Record)
else:
    Connection = asyncpg.Connection
    RecordT = TypeVar('RecordT', bound=asyncpg.Record)

#: What users register on a connection: callbacks on notifications, messages, its end and queries.
SETTINGS = ('_listeners', '_log_listeners', '_termination_listeners', '_query_loggers')

#: libpq's parameters of the socket, and the highest value of each: asyncpg does not know them, so they are set here.
SOCKET_OPTIONS = {
    'keepalives': 1,
    'keepalives_idle': 32767,
    'keepalives_interval': 32767,
    'keepalives_count': 127,
    'tcp_user_timeout': 2**31 - 1,
}

#: How long an orderly close may take, including the cancellation of a command, before the connection is aborted.
CLOSE_TIMEOUT = 2.0


class DbConnectionManager(
    Postgres['Connection[RecordT]'],
    AsyncManager['Connection[RecordT]'],
    BaseConnectionManager[DbEndpoint, 'Connection[RecordT]'],
    Generic[RecordT],
):
    """Connects to PostgreSQL databases by name.

    A released connection is rolled back if it is in a transaction, and reset as asyncpg's own pool does. Its listeners,
    query loggers and type codecs are restored. If that fails or takes more than five seconds, the release raises, and
    the connection is disposed of. If the server has ended the session, it is disposed of without an error.

    :param dsn_params: keyword arguments of `asyncpg.connect` by endpoint name, or a function, plain or async, that
        returns them for an endpoint, called for each new connection (for rotating credentials); besides, libpq's
        ``keepalives``, ``keepalives_idle`` and ``keepalives_interval`` (seconds), ``keepalives_count`` and
        ``tcp_user_timeout`` (milliseconds)
    :param aliveness: ``'socket'``: judge by what the event loop has read from the socket, which sends nothing;
        ``'query'``: also make a round trip, which detects a server that has vanished
    :param reset: what to do on release: ``'reset'``: a rollback and `Connection.reset`, one round trip, which leaves
        roles, temporary tables and prepared statements; ``'rollback'``, which needs no round trip outside a
        transaction; ``'discard all'``: a rollback and ``DISCARD ALL``, one round trip, which leaves nothing of the
        session's state, cached statements included; or a function of the connection, plain or async, called after the
        rollback, that raises when the connection cannot be used again
    :param check_timeout: how long the server may take to answer a check, seconds: with ``aliveness='query'``, and after
        another connection of the endpoint was found dead
    :raises TypeError: when an argument has the wrong type, or `dsn_params` has no mapping for an endpoint
    :raises ValueError: when `aliveness`, `reset` or `check_timeout` has another value
    """

    _misnomers: ClassVar[Mapping[str, str]] = {'conninfo': 'dsn', 'dbname': 'database', 'sslmode': 'ssl'}
    _errors = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)

    def __init__(
        self,
        dsn_params: DsnParameters | Callable[[DbEndpoint], Parameters | Awaitable[Parameters]],
        *,
        aliveness: Literal['socket', 'query'] = 'socket',
        reset: Literal['reset', 'rollback', 'discard all'] | Callable[[Connection[RecordT]], object] = 'reset',
        check_timeout: float = CHECK_TIMEOUT,
    ) -> None:
        resets = {'reset': _reset, 'rollback': None, 'discard all': _discard_all}
        super().__init__(dsn_params, aliveness, reset, resets, check_timeout)
        self._settings = ClientSettings['Connection[RecordT]'](*SETTINGS, reported=_reported)
        self._monitors: weakref.WeakKeyDictionary[Connection[RecordT], _ProtocolMonitor] = weakref.WeakKeyDictionary()

    async def create(self, endpoint: DbEndpoint) -> Connection[RecordT]:
        """Connect to a database.

        :param endpoint: its name
        :raises UnknownEndpointError: when there are no parameters for it
        :raises OSError: when the server is unreachable
        :raises asyncpg.PostgresError: when it refuses
        """
        conn = await _connect(endpoint, await self._find(endpoint))
        self._monitor(conn)
        self._record(conn)
        self._register(endpoint, conn)
        return conn

    async def dispose(self, endpoint: DbEndpoint, conn: Connection[RecordT]) -> None:
        """Close a connection within two seconds. Does nothing in a process forked since its creation.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        if self._fork_guard.is_inherited(conn):
            return
        is_dead = (
            self._monitor(conn).is_lost
            or self._failure_detector.is_invalid(endpoint, conn)
            or self._monitor(conn).is_ended_by_server()
        )
        self._failure_detector.remove(endpoint, conn)
        try:
            if is_dead:
                _internals(conn)._transport.abort()  # first: the server cannot be told, though asyncpg would try
                conn.terminate()
            else:
                # not close(timeout=...): before 0.32 it does not limit the cancellation of a command
                await asyncio.wait_for(conn.close(), CLOSE_TIMEOUT)
        except Exception:  # the connection broke before it was closed
            pass
        finally:
            _internals(conn)._transport.abort()  # before 0.32, a close that is cancelled leaves it open

    async def check_aliveness(self, endpoint: DbEndpoint, conn: Connection[RecordT]) -> bool:
        """Tell whether an idle connection can still be used.

        The event loop reads the socket; what it has not read yet, because it was busy, it reads first. Asynchronous
        messages (notices, notifications, parameter changes) went to their listeners. EOF and errors have closed the
        connection, or its transport is closing. Anything else that came while the connection was idle was noted on
        its way to asyncpg.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        alive = await self._begin_use(conn)
        if alive and not self._asks_server and endpoint not in self._unverified:
            return True
        return await self._is_usable(endpoint, conn, Verdict.ALIVE if alive else Verdict.DEAD)

    async def keepalive(self, endpoint: DbEndpoint, conn: Connection[RecordT]) -> bool:
        """Make one round trip, which keeps what is between here and the server from forgetting an idle connection.

        :param endpoint: its endpoint
        :param conn: the connection
        :return: whether the server answered within `check_timeout`
        """
        look = Verdict.ALIVE if await self._begin_use(conn) else Verdict.DEAD
        answers = await self._keep_alive(endpoint, conn, look)
        self._monitor(conn).end_use()
        return answers

    async def on_release(self, endpoint: DbEndpoint, conn: Connection[RecordT]) -> None:
        """Reset the connection for its next user.

        :param endpoint: its endpoint
        :param conn: the connection
        :raises asyncpg.PostgresError: when that fails
        :raises asyncpg.InterfaceError: when another task is executing a command
        :raises TimeoutError: when it took more than five seconds
        :raises DiscardConnection: when the server has ended the session
        """
        monitor = self._monitor(conn)
        has_ended = conn.is_closed() or monitor.is_lost
        if has_ended or self._reset or _is_occupied(conn) or not self._settings.are_unchanged(conn):
            await self._clean_up(endpoint, conn)
        else:
            await _check_no_command(conn)
        if not has_ended:
            # of a `conn.transaction()` that was never ended; else the next user's would be a savepoint within it
            _internals(conn)._top_xact = None
            monitor.end_use()

    async def _begin_use(self, conn: Connection[RecordT]) -> bool:
        """Tell whether an idle connection is intact, and begin a use of it."""
        monitor = self._monitor(conn)
        if monitor.has_unread():
            await let_loop_read()
        is_closed = conn.is_closed() or _internals(conn)._transport.is_closing()
        return not is_closed and monitor.begin_use()

    def _record(self, conn: Connection[RecordT]) -> None:
        self._settings.record(conn)

    def _is_between_commands(self, conn: Connection[RecordT]) -> bool:
        return not _internals(conn)._protocol._is_cancelling() and _has_no_command(conn)

    def _is_cut_off(self, conn: Connection[RecordT]) -> bool:
        protocol = _internals(conn)._protocol
        return self._monitor(conn).is_lost and protocol is not None and bool(protocol.is_in_transaction())

    def _last_words(self, conn: Connection[RecordT]) -> str | None:
        return self._monitor(conn).last_words

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
        changed = self._settings.to_restore(conn)
        for name, value in changed:
            now = getattr(conn, name)
            deaf = sorted(set(value) - set(now)) if name == '_listeners' else []
            now.clear()
            now.update(value)
            if deaf:  # channels of `create` that the server no longer sends: one round trip
                await conn.execute(';'.join(f'LISTEN {_quoted(channel)}' for channel in deaf))
        codecs, encoding = self._settings.original(conn)[-2:]
        if _reported(conn)[0] != codecs:
            await _internals(conn)._restore_codecs(codecs)
        if encoding and _reported(conn)[1] != encoding:
            await conn.execute(f"SET client_encoding TO '{encoding}'")

    def _monitor(self, conn: Connection[RecordT]) -> _ProtocolMonitor:
        """Return a connection's monitor. One that another manager created gets a second one here."""
        try:
            return self._monitors[conn]
        except KeyError:
            monitor = self._monitors[conn] = _ProtocolMonitor(_internals(conn)._transport)
            return monitor


class _CodecTracker:
    """Mixed into a connection's class: remembers which custom type codecs are set, which asyncpg cannot tell."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._gcp_codecs: dict[int, _Codec] = {}
        self._gcp_type_found: Any = None
        self._gcp_type_given: Any = None

    async def set_type_codec(self, typename: str, *, schema: str = 'public', **options: Any) -> None:
        await self._change_codec(_Codec('set_type_codec', typename, schema, options))

    async def set_builtin_type_codec(self, typename: str, *, schema: str = 'public', **options: Any) -> None:
        await self._change_codec(_Codec('set_builtin_type_codec', typename, schema, options))

    async def reset_type_codec(self, typename: str, *, schema: str = 'public') -> None:
        await self._change_codec(_Codec('reset_type_codec', typename, schema, {}))

    async def _change_codec(self, codec: _Codec) -> None:
        self._gcp_type_found = None
        is_known = False
        try:
            await getattr(super(), codec.method)(codec.typename, schema=codec.schema, **codec.options)
            is_known = True
        finally:  # one that could not be set may have removed the one before
            if self._gcp_type_found is not None:
                oid = self._gcp_type_found['oid']
                self._gcp_codecs[oid] = codec._replace(type_found=self._gcp_type_found, is_known=is_known)
                if is_known and codec.method == 'reset_type_codec':
                    del self._gcp_codecs[oid]

    async def _introspect_type(self, typename: str, schema: str) -> Any:
        self._gcp_type_found = self._gcp_type_given or await super()._introspect_type(typename, schema)  # type: ignore[misc]
        return self._gcp_type_found

    async def _restore_codecs(self, original: Mapping[int, _Codec]) -> None:
        """Set custom type codecs as they were; without a round trip, save for one of a composite type in `original`."""
        now = self._gcp_codecs
        settings = _internals(self)._protocol.get_settings()
        for oid in [oid for oid in {*now, *original} if now.get(oid) != original.get(oid)]:
            codec = now.pop(oid, None) or original[oid]
            settings.remove_python_codec(oid, codec.typename, codec.schema)
            if oid in original:
                self._gcp_type_given = original[oid].type_found
                try:
                    await self._change_codec(original[oid])
                finally:
                    self._gcp_type_given = None
        _internals(self)._drop_local_statement_cache()


class _Codec(NamedTuple):
    """A custom type codec: how it was set, and what the server said of its type."""

    method: str
    typename: str
    schema: str
    options: dict[str, Any]
    type_found: Any = None
    is_known: bool = True


@functools.cache
def _tracking(connection_class: type[Connection[Any]]) -> type[Connection[Any]]:
    """Return a subclass that remembers its type codecs, under the same name."""
    names = {name: getattr(connection_class, name) for name in ('__module__', '__qualname__', '__doc__')}
    make: Any = type(connection_class)
    tracking: type[Connection[Any]] = make(connection_class.__name__, (_CodecTracker, connection_class), names)
    return tracking


def _reported(conn: Connection[Any]) -> tuple[dict[int, _Codec], str | None]:
    return getattr(conn, '_gcp_codecs', {}), getattr(_internals(conn)._protocol.get_settings(), 'client_encoding', None)


class _ProtocolMonitor(asyncio.Protocol):
    """A protocol between the transport and asyncpg's, which inspects what an idle connection receives.

    asyncpg stores an unexpected message silently: the next command fails, and so do those after it until the EOF
    arrives. A server that ends a session sends the EOF a millisecond or more after its message.

    :ivar is_idle: the connection is not in use: it should receive nothing but asynchronous messages
    :ivar is_lost: the connection is broken or about to be, and was not closed on this side
    :ivar last_words: the server's last message, if it ended the session with one
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._socket = transport.get_extra_info('socket')
        self._protocol: Any = transport.get_protocol() or asyncio.Protocol()
        self._receive = self._protocol.data_received
        self.is_lost = False
        self.is_idle = False
        self.last_words: str | None = None
        self._messages = MessageReader()
        transport.set_protocol(self)

    def abort(self) -> None:
        """Close the connection at once, without sending or waiting for anything."""
        self.is_lost = True
        self._transport.abort()

    def end_use(self) -> None:
        """Inspect what the connection receives from now on."""
        self._messages = MessageReader()
        self.is_idle = True

    def begin_use(self) -> bool:
        """Tell whether the connection is intact; from now on, what it receives is for its next user."""
        self.is_idle = False
        return not self.is_lost

    def has_unread(self) -> bool:
        """Tell whether there is something, if only an EOF, that the event loop has not read yet."""
        fd = self._descriptor()
        return fd >= 0 and not is_quiet(fd)

    def is_ended_by_server(self) -> bool:
        """Tell whether the server has closed or reset the connection, even if the event loop has not read that yet: a
        message to it may end the process by SIGPIPE."""
        fd = self._descriptor()
        return fd >= 0 and has_ended(fd)

    def _descriptor(self) -> int:
        """Return the socket's descriptor; negative when it is closed."""
        return -1 if self._socket is None else int(self._socket.fileno())

    def data_received(self, data: bytes) -> None:
        # FATAL is the last message of a session, also while the connection is in use but no command is executing
        if (self.is_idle and not self._messages.are_async(data)) or (data[:1] == b'E' and b'FATAL\0' in data):
            self._end(data)
        self._receive(data)

    def _end(self, data: bytes) -> None:
        self.is_lost = True
        self.last_words = self.last_words or error_message(data)

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


def _internals(conn: Connection[Any] | _CodecTracker) -> Any:
    """Return the connection untyped, for attributes that asyncpg's own pool uses and that have no public name."""
    return conn


async def _connect(endpoint: DbEndpoint, parameters: Parameters) -> Connection[Any]:
    connection_class = parameters.get('connection_class', Connection)
    if isinstance(connection_class, type) and issubclass(connection_class, Connection):
        parameters = {**parameters, 'connection_class': _tracking(connection_class)}
    password = parameters.get('password')
    if callable(password) and not is_coroutine_function(password):
        parameters = {**parameters, 'password': functools.partial(call_user, password)}
    parameters, options = _split(endpoint, parameters)
    try:
        conn: Connection[Any] = await asyncpg.connect(**parameters)
    except ValueError:
        if 'dsn' not in parameters:
            raise
    else:
        try:
            _set_options(_internals(conn)._transport, options)
        except BaseException:
            conn.terminate()
            raise
        return conn
    # raised outside the except block, or its context would be asyncpg's error, which quotes the DSN
    raise ValueError(f"dsn_params of endpoint {endpoint!r}: 'dsn' is no connection string that asyncpg understands")


def _split(endpoint: DbEndpoint, parameters: Parameters) -> tuple[dict[str, Any], dict[str, int]]:
    """Return asyncpg's parameters and, of the parameters and the DSN, libpq's options of the socket."""
    ours = {name: value for name, value in parameters.items() if name in SOCKET_OPTIONS}
    rest = {name: value for name, value in parameters.items() if name not in SOCKET_OPTIONS}
    if isinstance(dsn := rest.get('dsn'), str) and '?' in dsn:
        base, _, query = dsn.partition('?')
        pairs = [pair.partition('=') for pair in query.split('&')]
        ours = {name: value for name, _, value in pairs if name in SOCKET_OPTIONS} | ours
        kept = '&'.join(map(''.join, (pair for pair in pairs if pair[0] not in SOCKET_OPTIONS)))
        rest['dsn'] = f'{base}?{kept}' if kept else base
    return rest, {name: _whole_number(endpoint, name, value) for name, value in ours.items()}


def _whole_number(endpoint: DbEndpoint, name: str, value: object) -> int:
    try:
        return max(0, min(int(float(value)), SOCKET_OPTIONS[name]))  # type: ignore[arg-type]
    except OverflowError:  # infinity
        return SOCKET_OPTIONS[name]
    except (TypeError, ValueError):
        problem = f'dsn_params of endpoint {endpoint!r}: {name}: a number was expected, not {value!r}'
    raise ValueError(problem)


def _set_options(transport: asyncio.BaseTransport, options: Mapping[str, int]) -> None:
    """Set TCP's options of a connection as libpq does; 0: leave the system's. A unix socket has none."""
    sock = transport.get_extra_info('socket')
    if not options or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    names = {'keepalives_interval': 'TCP_KEEPINTVL', 'keepalives_count': 'TCP_KEEPCNT'}
    names |= {'tcp_user_timeout': 'TCP_USER_TIMEOUT', 'keepalives_idle': 'TCP_KEEPIDLE'}
    fd = sock.fileno()
    set_option(fd, socket.SOL_SOCKET, socket.SO_KEEPALIVE, options.get('keepalives', 1))
    for name, value in options.items():
        number = getattr(socket, names.get(name, ''), None)  # not every system has all of them
        if value and number is not None:
            set_option(fd, socket.IPPROTO_TCP, number, value)


def _is_occupied(conn: Connection[Any]) -> bool:
    """Tell whether there is a transaction, or a cancelled command that may still be executing on the server."""
    return conn.is_in_transaction() or _internals(conn)._protocol._is_cancelling()


async def _check_no_command(conn: Connection[Any]) -> None:
    """Raise when a task is executing a command."""
    with contextlib.suppress(asyncpg.InternalClientError):
        await _close_statement_in_use(conn)


def _has_no_command(conn: Connection[Any]) -> bool:
    """Tell whether no task is executing a command."""
    closing = _close_statement_in_use(conn)
    try:
        closing.send(None)
    except asyncpg.InternalClientError:
        return True
    finally:
        closing.close()
    return False  # it waits for the end of a cancelled command


def _close_statement_in_use(conn: Connection[Any]) -> Any:
    """Return a coroutine that raises `InternalClientError` when no command is in progress, else another error.

    asyncpg has no way to ask, and raises only at the next command. So close a statement that is marked as in use:
    asyncpg first checks that the connection is free, and then refuses, without sending anything."""
    protocol = _internals(conn)._protocol
    statement = PreparedStatementState('', '', protocol, asyncpg.Record, False)
    statement.attach()
    return protocol.close_statement(statement, None)


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


async def _reset(conn: Connection[Any]) -> None:
    """Reset the session as asyncpg's own pool does."""
    # of a `conn.transaction()` that was never ended: asyncpg would report it to the loop's exception handler
    _internals(conn)._top_xact = None
    await conn.reset()


async def _discard_all(conn: Connection[Any]) -> None:
    """Discard the session's state, on the server and in asyncpg."""
    await conn.execute('DISCARD ALL')
    internals = _internals(conn)
    # the server has deallocated the prepared statements in asyncpg's cache
    internals._mark_stmts_as_closed()
    # and stopped listening; else asyncpg would not send LISTEN for a channel that it has in its table
    internals._listeners.clear()
