"""Redis connections by redis-py, for the threading pool and for the asyncio pool.

Checks that a connection is alive, that no reply reaches another user than the one who sent the command, and that no
transaction, database or subscription remains for the next user. redis-py's own reconnects, retries and pooling are off:
a closed connection stays closed, and the pool replaces it.

`client(conn)` gives redis-py's commands over a connection: ``client(conn).get('key')``."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
import inspect
import math
import os
import socket
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping
from ssl import SSLContext
from types import MappingProxyType
from typing import Any, Literal, overload

try:
    import redis
    import redis.asyncio.connection
    import redis.connection
except ImportError as exc:
    raise ImportError('gcp.contrib.redis needs redis: pip install gcpool[redis]', name='redis') from exc

from redis.credentials import CredentialProvider
from redis.utils import str_if_bytes

from gcp.contrib._endpoints import Parameters, UnknownEndpointError
from gcp.contrib._errors import classify_error
from gcp.contrib._redis import (
    IRREVERSIBLE,
    RESETTABLE,
    REVERSIBLE,
    ClosedError,
    Credentials,
    Deadline,
    RedisEndpoint,
    Secret,
    ServerDirectory,
    ServerSettings,
    Session,
    client_state,
)
from gcp.contrib._redis_errors import look_at_redis
from gcp.contrib._tcp import KeepAlive
from gcp.contrib._wire import (
    UnsolicitedData,
    check_unsolicited_data,
    clamp,
    deadline_in,
    restore_timeout,
    time_left,
)
from gcp.exceptions import ErrorClass
from gcp.managers import AsyncConnectionManager, SyncConnectionManager

__all__ = [
    'AsyncRedisConnection',
    'AsyncRedisConnectionManager',
    'ClosedError',
    'KeepAlive',
    'RedisConnection',
    'RedisConnectionManager',
    'RedisEndpoint',
    'UnknownEndpointError',
    'client',
]

Servers = Mapping[str, Parameters | str]
NO_SERVERS: Servers = MappingProxyType({})

#: redis-py's own limit of a single read or write, seconds.
SOCKET_TIMEOUT: float | None = (
    inspect.signature(redis.connection.AbstractConnection.__init__).parameters['socket_timeout'].default
)

#: How long the reset of a released connection may take, seconds.
RESET_TIMEOUT = 2.0

#: How long the server may take to answer a keepalive, seconds.
KEEPALIVE_TIMEOUT = 2.0


# ---- connections


class DeadlineSocket:
    """A socket for redis-py on which a deadline for several operations can be set. redis-py's own time-out starts anew
    with each read, so a server that sends a byte now and then could delay a caller for ever.

    :ivar sock: the socket
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.sock = sock
        self._deadline = deadline
        self._timeout = sock.gettimeout()
        self.restore_timeout()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def apply_deadline(self) -> None:
        """Apply the deadline from now on."""
        self._timeout = self.sock.gettimeout()
        for name in ('recv', 'recv_into', 'sendall'):
            setattr(self, name, functools.partial(self._with_deadline, getattr(self.sock, name)))

    def restore_timeout(self) -> None:
        """Apply the socket's own time-out again."""
        for name in ('recv', 'recv_into', 'sendall'):
            setattr(self, name, getattr(self.sock, name))
        with contextlib.suppress(OSError):  # closed meanwhile
            self.sock.settimeout(self._timeout)

    def _with_deadline(self, operation: Callable[..., Any], *args: Any) -> Any:
        left = self._deadline.left()
        if left == 0:  # settimeout(0) would mean non-blocking mode
            raise TimeoutError('no time left')
        limits = [seconds for seconds in (left, self._timeout) if seconds]
        self.sock.settimeout(clamp(min(limits, default=None)))
        return operation(*args)


class RedisConnection(Session, redis.connection.AbstractConnection):
    """redis-py's connection for threads, over a socket of one of `gcp.contrib`'s managers.

    :ivar transport: the socket; ``None`` before it is connected
    """

    transport: DeadlineSocket | None = None

    def is_open(self) -> bool:
        """Tell whether it is connected, and not closed on this side."""
        return self.transport is not None and self.transport.fileno() >= 0

    def ask(self, *command: Any) -> Any:
        """Return the reply to a command.

        :param command: its words
        """
        self.send_command(*command)
        return self.read_response()

    def read_response(self, *args: Any, push_request: bool = False, **kwargs: Any) -> Any:
        """Read a reply, and count it."""
        try:
            response = super().read_response(*args, push_request=push_request, **kwargs)
        except redis.ResponseError:
            self.pending_replies -= 1
            raise
        if not push_request:  # else it may be a push message, which is not a reply
            self.pending_replies -= 1
        return response

    def authenticate(self) -> None:
        """Open a session: connect if necessary, and authenticate."""
        self.credentials.fetch()
        if self.is_open():
            self.on_connect()
        else:
            self.connect()

    def run_redacted(self, work: Callable[[], None], timeout: float | None) -> None:
        """Run a function within a time limit; redact the password from its errors.

        :param work: the function
        :param timeout: how long it may take, seconds; ``None``: no limit
        :raises TimeoutError: when it took longer
        :raises redis.RedisError: the function's error
        """
        try:
            with self.time_limit(timeout):
                return work()
        except redis.RedisError as exc:
            error = self.credentials.redact(exc)
        raise error  # outside the except block, or the original would be its context

    @contextlib.contextmanager
    def time_limit(self, timeout: float | None) -> Iterator[None]:
        """Limit how long the block may take in all.

        :param timeout: seconds; ``None``: no limit
        :raises TimeoutError: when it took longer
        """
        self.deadline.at = deadline_in(timeout)
        try:
            if self.transport is not None:
                self.transport.apply_deadline()
            yield
        except redis.TimeoutError:  # not a subclass of TimeoutError
            raise TimeoutError(f'{self!r}: not answered in time') from None
        finally:
            self.deadline.at = math.inf
            if self.transport is not None:
                self.transport.restore_timeout()

    def _connect(self) -> Any:
        # implements redis-py's abstract method: there is no public way to pass a socket
        self.check_not_closed()
        self.created_in = os.getpid()
        limits = [seconds for seconds in (self.deadline.left(), self.socket_connect_timeout) if seconds is not None]
        sock = self.socket_manager.create(self.address, min(limits, default=None))
        self.transport = DeadlineSocket(sock, self.deadline)
        self.transport.settimeout(self.socket_timeout)
        self.transport.apply_deadline()
        return self.transport


class TcpConnection(RedisConnection, redis.Connection):
    """A connection over TCP."""


class SslConnection(RedisConnection, redis.SSLConnection):
    """A connection over TLS."""


class UnixConnection(RedisConnection, redis.UnixDomainSocketConnection):
    """A connection over a unix socket."""


class AsyncRedisConnection(Session, redis.asyncio.connection.AbstractConnection):
    """redis-py's connection for asyncio, over a stream of one of `gcp.contrib`'s managers.

    :ivar streams: reader and writer; ``None`` before it is connected
    """

    streams: tuple[Any, Any] | None = None

    async def authenticate(self) -> None:
        """Open a session: connect if necessary, and authenticate."""
        await self.credentials.fetch_async()
        await (self.on_connect() if self.is_open() else self.connect())

    async def run_redacted(self, work: Awaitable[None]) -> None:
        """Await something; redact the password from its errors.

        :param work: the awaitable
        :raises redis.RedisError: its error
        """
        try:
            return await work
        except redis.RedisError as exc:
            error = self.credentials.redact(exc)
        raise error  # outside the except block, or the original would be its context

    async def abort(self) -> None:
        """Close at once, without flushing. Takes effect even if it is cancelled."""
        if self.streams is not None:
            self.streams[1].transport.abort()
        await self.disconnect(nowait=True)
        await asyncio.sleep(0)  # the event loop closes the descriptor meanwhile

    def is_open(self) -> bool:
        """Tell whether it is connected, and not closed on this side."""
        return self.streams is not None and not self.streams[1].is_closing()

    async def ask(self, *command: Any) -> Any:
        """Return the reply to a command.

        :param command: its words
        """
        await self.send_command(*command)
        return await self.read_response()

    async def read_response(
        self,
        disable_decoding: bool = False,
        timeout: float | None = None,
        *,
        push_request: bool | None = False,
        **kwargs: Any,
    ) -> Any:
        """Read a reply, and count it."""
        try:
            response = await super().read_response(disable_decoding, timeout, push_request=push_request, **kwargs)
        except redis.ResponseError:
            self.pending_replies -= 1
            raise
        # after a push message or a time-out, the reply is still to come
        if not push_request and (timeout is None or response is not None):
            self.pending_replies -= 1
        return response

    async def has_unread_data(self) -> bool:
        """Tell whether there is unsolicited data, in redis-py's buffer or in the socket."""
        if not await self.socket_manager.check_aliveness(self.address, self.streams):
            return True
        # before 8.0: can_read_destructive
        readable: bool = await (self.can_read() if hasattr(self, 'can_read') else self.can_read_destructive())
        return readable

    async def _connect(self) -> None:
        # implements redis-py's abstract method: there is no public way to pass streams
        self.check_not_closed()
        self.created_in = os.getpid()
        self.streams = self._reader, self._writer = await self.socket_manager.create(self.address)


class AsyncTcpConnection(AsyncRedisConnection, redis.asyncio.Connection):
    """A connection over TCP."""


class AsyncSslConnection(AsyncRedisConnection, redis.asyncio.SSLConnection):
    """A connection over TLS."""


class AsyncUnixConnection(AsyncRedisConnection, redis.asyncio.UnixDomainSocketConnection):
    """A connection over a unix socket."""


# ---- managers


class _Manager(abc.ABC):
    """What the sync and the async manager share: their arguments, and how they build a connection from them."""

    _kinds: tuple[Any, Any, Any]  # classes of connections over TCP, TLS, and unix sockets

    def __init__(
        self,
        servers: Servers | Callable[[str], Any] = NO_SERVERS,
        *,
        db: int = 0,
        username: str | None = None,
        password: Secret | None = None,
        credential_provider: CredentialProvider | None = None,
        client_name: str | None = None,
        ssl: SSLContext | bool | None = None,
        protocol: Literal[2, 3] = 2,
        keepalive: KeepAlive | None = KeepAlive(),  # noqa: B008  # it is frozen
        nodelay: bool = True,
        source_address: tuple[str, int] | None = None,
        user_timeout: float | None = None,
        socket_timeout: float | None = SOCKET_TIMEOUT,
        decode_responses: bool = False,
        aliveness: Literal['socket', 'ping'] = 'socket',
        reset: Literal['discard', 'reset'] | Callable[[Any], Any] = 'discard',
        unsolicited_data: UnsolicitedData = 'dead',
    ) -> None:
        if aliveness not in ('socket', 'ping'):
            raise ValueError(f"aliveness: 'socket' or 'ping' was expected, not {aliveness!r}")
        if reset not in ('discard', 'reset') and not callable(reset):
            raise ValueError(f"reset: 'discard', 'reset' or a function was expected, not {reset!r}")
        if protocol not in (2, 3):
            raise ValueError(f'protocol: 2 or 3 was expected, not {protocol!r}')
        if check_unsolicited_data(unsolicited_data) == 'allowed' and protocol != 3:
            raise ValueError("unsolicited_data: 'allowed' needs protocol=3, where messages cannot be taken for replies")
        self._directory = ServerDirectory(
            servers,
            ServerSettings(
                db=db,
                username=username,
                password=password,
                credential_provider=credential_provider,
                client_name=client_name,
                ssl=ssl,
            ),
        )
        self._pings = aliveness == 'ping'
        self._reset = reset
        self._allows_data = unsolicited_data == 'allowed'
        self._socket_options: dict[str, Any] = {'unsolicited_data': unsolicited_data}
        self._tcp_options: dict[str, Any] = {
            'keepalive': keepalive,
            'nodelay': nodelay,
            'source_address': source_address,
            'user_timeout': user_timeout,
        }
        self._redis_options: dict[str, Any] = {
            'protocol': protocol,
            'decode_responses': decode_responses,
            'socket_timeout': clamp(socket_timeout),
        }
        # cached: they keep TLS sessions; bounded: a user's function may return a new context each time
        self._socket_manager = functools.lru_cache(maxsize=128)(self._make_socket_manager)
        self._socket_manager(False, None)  # reports wrong options now, not at the first acquire

    def __repr__(self) -> str:
        return f'<{type(self).__name__}: {self._directory}>'

    @abc.abstractmethod
    def _make_socket_manager(self, over_unix: bool, ssl: SSLContext | bool | None) -> Any:
        """Return a manager of the underlying sockets."""

    def _prepare(self, endpoint: RedisEndpoint, found: Any) -> Any:
        """Return a connection to an endpoint, not connected yet."""
        settings = self._directory.settings(endpoint, found)
        over_unix = settings.path is not None
        where = {'path': settings.address} if over_unix else {'host': settings.host, 'port': settings.port}
        kind = self._kinds[2 if over_unix else 1 if settings.ssl else 0]
        deadline = Deadline()
        credentials = Credentials(settings, deadline)
        conn = kind(
            **where,
            **self._redis_options,
            db=settings.db,
            client_name=settings.client_name,
            credential_provider=credentials if credentials.are_needed else None,
        )
        conn.configure(self._socket_manager(over_unix, settings.ssl or None), settings.address, credentials, deadline)
        conn.where = where
        return conn

    def clean_after_error(self, endpoint: RedisEndpoint, conn: Session, error: BaseException) -> bool:
        """Tell whether a connection can be reused although an error left the block that used it: if all replies were
        read, and no transaction, subscription or the like goes on.

        :param endpoint: its endpoint
        :param conn: the connection
        :param error: the error
        """
        return conn.is_clean()

    def classify(self, endpoint: RedisEndpoint, error: BaseException) -> ErrorClass:
        """Say what an error means, by the server's reply or the error of the system in it. It only looks.

        :param endpoint: the endpoint
        :param error: the error of a create, or one that leaves the block of a connection's holder
        """
        return classify_error(error, look_at_redis)

    def _is_reusable(self, conn: Session) -> bool:
        """Tell whether a connection can be used again, perhaps after a reset."""
        if callable(self._reset):
            return not conn.pending_replies and conn.lasting_commands.isdisjoint(IRREVERSIBLE)
        reversible = RESETTABLE if self._reset == 'reset' else REVERSIBLE.keys()
        return not conn.pending_replies and conn.lasting_commands <= reversible


class RedisConnectionManager(_Manager, SyncConnectionManager[RedisEndpoint, RedisConnection]):
    """Connects to Redis servers. An endpoint is a pair of host and port, a unix socket's path, or a name.

    A connection released with unread replies, subscribed, or in a state that cannot be reverted is closed at once. An
    open transaction, watched keys or another database cost one round trip each to revert. A connection that was only
    used for commands, the usual case, costs none.

    :param servers: for each endpoint name its parameters or a URL (``'rediss://user:password@host:port/db'``), or a
        function that returns them for an endpoint, called for each new connection; parameters are `host` and `port`, or
        `path`, and `db`, `username`, `password`, `credential_provider`, `client_name`, `ssl`, which override the
        arguments of the same name
    :param db: the database
    :param username: the name of an ACL user; ``None``: the default user
    :param password: the password, or a function that returns it, called for each new connection
    :param credential_provider: redis-py's object that provides both
    :param client_name: the name in ``CLIENT LIST``
    :param ssl: ``True`` or a context: use TLS; ``True`` verifies the server's certificate and name
    :param protocol: the version of RESP, 2 or 3; 3 needs Redis 6
    :param keepalive: how the kernel detects that an idle peer has vanished; ``None``: no keepalive
    :param nodelay: send small packets at once (``TCP_NODELAY``)
    :param source_address: an IP address of this host and a port (0: any) to connect from; ``None``: the kernel chooses
    :param user_timeout: how long sent data may stay unacknowledged before the kernel breaks the connection, seconds
        (``TCP_USER_TIMEOUT``, on Linux); ``None``: the kernel's default, about 15 minutes
    :param socket_timeout: how long a single read or write of the user's may take, seconds; ``None``: no limit; by
        default redis-py's own limit
    :param decode_responses: return replies as `str`
    :param aliveness: ``'socket'``: look at the socket, which sends nothing; ``'ping'``: also make a round trip, which
        detects a server that has vanished
    :param reset: what to do with a connection whose session's state was changed: ``'discard'``: as described above;
        ``'reset'``: send ``RESET`` and authenticate anew, which also reverts ``AUTH``, ``CLIENT TRACKING`` and the
        like, and needs Redis 6.2; a function: called with each connection that is released without unread replies
    :param unsolicited_data: what data means that arrives while a connection is idle: ``'dead'`` or ``'allowed'``
        (push messages of RESP 3, as those of client tracking)
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for an argument with an impossible value
    """

    _kinds = (TcpConnection, SslConnection, UnixConnection)

    def create(self, endpoint: RedisEndpoint, timeout: float | None = None) -> RedisConnection:
        """Connect and open a session: ``HELLO``, ``AUTH``, ``SELECT``, as far as needed.

        :param endpoint: host and port, a path, or a name
        :param timeout: how long it may take in all, seconds, including the user's function for the password; ``None``:
            no limit
        :raises UnknownEndpointError: when there are no parameters for a name
        :raises TimeoutError: when it took longer
        :raises redis.AuthenticationError: when user name or password are wrong
        :raises redis.RedisError: when the server is unreachable or refuses
        """
        deadline = deadline_in(timeout)
        conn: RedisConnection = self._prepare(endpoint, self._directory.find(endpoint, deadline))
        try:
            left = None if deadline == math.inf else time_left(deadline, f'connection to {endpoint!r}')
            conn.run_redacted(conn.authenticate, left)
        except BaseException:
            conn.disconnect()
            raise
        conn.mark_clean()
        conn.remember_attributes()
        return conn

    def dispose(self, endpoint: RedisEndpoint, conn: RedisConnection, timeout: float | None = None) -> None:
        """Close a connection. A thread that waits on it returns at once. Sends no ``QUIT``: Redis does not need it.

        :param endpoint: its endpoint
        :param conn: the connection
        :param timeout: how long TLS may take to send its close_notify, seconds
        """
        try:
            if conn.transport is not None:
                conn.socket_manager.dispose(conn.address, conn.transport.sock, timeout)
        finally:
            conn.disconnect()

    def check_aliveness(self, endpoint: RedisEndpoint, conn: RedisConnection, timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: its endpoint
        :param conn: the connection
        :param timeout: how long the server may take to answer a ``PING``, seconds; ``None``: no limit
        """
        if conn.transport is None or not conn.is_open():
            return False
        if not conn.socket_manager.check_aliveness(conn.address, conn.transport.sock):
            return False
        return not self._pings or (conn.created_in == os.getpid() and _ping(conn, timeout))

    def keepalive(self, endpoint: RedisEndpoint, conn: RedisConnection, timeout: float | None = None) -> bool:
        """Send a ``PING``, which keeps what is between here and the server from forgetting an idle connection.

        :param endpoint: its endpoint
        :param conn: the connection
        :param timeout: how long the server may take to answer besides two seconds
        :return: whether it answered in time
        """
        limit = KEEPALIVE_TIMEOUT if timeout is None else min(timeout, KEEPALIVE_TIMEOUT)
        if not self.check_aliveness(endpoint, conn, limit):
            return False
        return self._pings or (conn.created_in == os.getpid() and _ping(conn, limit))

    def on_acquire(self, endpoint: RedisEndpoint, conn: RedisConnection) -> None:
        """Mark a connection as in use.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        if conn.transport is not None:
            conn.socket_manager.mark_in_use(conn.transport.sock)

    def on_release(self, endpoint: RedisEndpoint, conn: RedisConnection) -> None:
        """Reset a connection for its next user, or close it if that is impossible.

        :param endpoint: its endpoint
        :param conn: the connection
        :raises redis.ResponseError: when the server refuses
        """
        if conn.transport is None or not conn.is_open():
            return  # closed by its user or during its use: no error of the release, and the next check fails
        conn.restore_attributes()
        restore_timeout(conn.transport.sock, conn.socket_timeout)
        try:
            reusable = self._is_reusable(conn) and (self._allows_data or not conn.can_read(0))
            if reusable and (conn.lasting_commands or callable(self._reset)):
                conn.run_redacted(functools.partial(_restore, conn, self._reset), RESET_TIMEOUT)
        except (redis.ConnectionError, TimeoutError):
            reusable = False
        if reusable and not conn.pending_replies:
            conn.mark_clean()
            conn.socket_manager.mark_idle(conn.transport.sock)
        else:
            conn.disconnect()

    def _make_socket_manager(self, over_unix: bool, ssl: SSLContext | bool | None) -> SyncConnectionManager[Any, Any]:
        if over_unix:
            from gcp.contrib.unix import UnixSocketConnectionManager

            return UnixSocketConnectionManager(**self._socket_options)
        from gcp.contrib.socket import SslSocketConnectionManager, TcpSocketConnectionManager

        if not ssl:
            return TcpSocketConnectionManager(**self._socket_options, **self._tcp_options)
        return SslSocketConnectionManager(None if ssl is True else ssl, **self._socket_options, **self._tcp_options)


def _ping(conn: RedisConnection, timeout: float | None) -> bool:
    try:
        with conn.time_limit(timeout):
            return str_if_bytes(conn.ask('PING')) == 'PONG'
    except Exception:  # includes replies that cannot be parsed
        conn.disconnect()
        return False


def _restore(conn: RedisConnection, reset: Any) -> None:
    if callable(reset):
        reset(conn)
    elif reset == 'reset':
        conn.ask('RESET')
        conn.authenticate()
    else:
        for name, undo in REVERSIBLE.items():
            if name in conn.lasting_commands:
                conn.ask(*undo, *([conn.db] if name == 'SELECT' else []))


class AsyncRedisConnectionManager(_Manager, AsyncConnectionManager[RedisEndpoint, AsyncRedisConnection]):
    """Connects to Redis servers, for the asyncio pool. The arguments are those of `RedisConnectionManager`.

    Functions for parameters, passwords and resets may be async."""

    _kinds = (AsyncTcpConnection, AsyncSslConnection, AsyncUnixConnection)

    async def create(self, endpoint: RedisEndpoint) -> AsyncRedisConnection:
        """Connect and open a session: ``HELLO``, ``AUTH``, ``SELECT``, as far as needed.

        :param endpoint: host and port, a path, or a name
        :raises UnknownEndpointError: when there are no parameters for a name
        :raises redis.AuthenticationError: when user name or password are wrong
        :raises redis.RedisError: when the server is unreachable or refuses
        """
        conn: AsyncRedisConnection = self._prepare(endpoint, await self._directory.find_async(endpoint))
        try:
            await conn.run_redacted(conn.authenticate())
            await conn.socket_manager.on_acquire(conn.address, conn.streams)
        except BaseException:
            await conn.abort()
            raise
        conn.mark_clean()
        conn.remember_attributes()
        return conn

    async def dispose(self, endpoint: RedisEndpoint, conn: AsyncRedisConnection) -> None:
        """Close a connection. Sends no ``QUIT``: Redis does not need it. Does nothing in a process forked since its
        creation.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        if conn.created_in != os.getpid():
            return
        try:
            if conn.streams is not None:
                await conn.socket_manager.dispose(conn.address, conn.streams)
        finally:
            await conn.abort()

    async def check_aliveness(self, endpoint: RedisEndpoint, conn: AsyncRedisConnection) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        if not conn.is_open() or not await conn.socket_manager.check_aliveness(conn.address, conn.streams):
            return False
        return not self._pings or (conn.created_in == os.getpid() and await _ping_async(conn))

    async def keepalive(self, endpoint: RedisEndpoint, conn: AsyncRedisConnection) -> bool:
        """Send a ``PING``, which keeps what is between here and the server from forgetting an idle connection.

        :param endpoint: its endpoint
        :param conn: the connection
        :return: whether the server answered within two seconds
        """
        if conn.created_in != os.getpid() or not conn.is_open():
            return False
        try:
            return await asyncio.wait_for(self._answers(conn), KEEPALIVE_TIMEOUT)
        except (asyncio.TimeoutError, TimeoutError):
            await conn.abort()
            return False

    async def _answers(self, conn: AsyncRedisConnection) -> bool:
        alive = await conn.socket_manager.check_aliveness(conn.address, conn.streams)
        return bool(alive) and await _ping_async(conn)

    async def on_release(self, endpoint: RedisEndpoint, conn: AsyncRedisConnection) -> None:
        """Reset a connection for its next user, or close it if that is impossible.

        :param endpoint: its endpoint
        :param conn: the connection
        :raises redis.ResponseError: when the server refuses
        """
        if not conn.is_open():
            return  # closed by its user or during its use: no error of the release, and the next check fails
        conn.restore_attributes()
        await conn.socket_manager.on_release(conn.address, conn.streams)
        try:
            reusable = self._is_reusable(conn) and (self._allows_data or not await conn.has_unread_data())
            if reusable and (conn.lasting_commands or callable(self._reset)):
                await asyncio.wait_for(conn.run_redacted(_restore_async(conn, self._reset)), RESET_TIMEOUT)
        except (redis.ConnectionError, redis.TimeoutError, asyncio.TimeoutError, TimeoutError):
            reusable = False
        if reusable and not conn.pending_replies:
            conn.mark_clean()
        else:
            await conn.abort()

    def _make_socket_manager(self, over_unix: bool, ssl: SSLContext | bool | None) -> AsyncConnectionManager[Any, Any]:
        if over_unix:
            from gcp.contrib.unix_async import UnixSocketStreamConnectionManager

            return UnixSocketStreamConnectionManager(**self._socket_options)
        from gcp.contrib.socket_async import TcpStreamConnectionManager

        return TcpStreamConnectionManager(ssl, **self._socket_options, **self._tcp_options)


async def _ping_async(conn: AsyncRedisConnection) -> bool:
    try:
        return str_if_bytes(await conn.ask('PING')) == 'PONG'
    except Exception:  # includes replies that cannot be parsed
        await conn.abort()
        return False


async def _restore_async(conn: AsyncRedisConnection, reset: Any) -> None:
    if callable(reset):
        done = reset(conn)
        if inspect.isawaitable(done):
            await done
    elif reset == 'reset':
        await conn.ask('RESET')
        await conn.authenticate()
    else:
        for name, undo in REVERSIBLE.items():
            if name in conn.lasting_commands:
                await conn.ask(*undo, *([conn.db] if name == 'SELECT' else []))


# ---- commands


class _SingleConnection:
    """A pool of redis-py's that always returns one given connection, which it does not own.

    A mixin for redis-py's pools, sync and async."""

    connection_kwargs: dict[str, Any]

    def __init__(self, conn: Any) -> None:
        super().__init__(  # type: ignore[call-arg]
            type(conn), 1, protocol=conn.protocol, db=conn.db, decode_responses=conn.encoder.decode_responses
        )
        self.connection_kwargs.update(conn.where)  # tracing of redis-py takes the server's address from here
        self._conn_ref = weakref.ref(conn)  # weak: the connection refers to the client

    def _get(self) -> Any:
        conn = self._conn_ref()
        if conn is None:
            raise ClosedError('the connection no longer exists; do not use a client after its connection was released')
        return conn


class _SyncPool(_SingleConnection, redis.ConnectionPool):
    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        return self._get()

    def release(self, connection: Any) -> None:
        pass

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        pass


class _AsyncPool(_SingleConnection, redis.asyncio.ConnectionPool):
    async def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        return self._get()

    async def release(self, connection: Any) -> None:
        pass

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        pass


@overload
def client(conn: RedisConnection) -> redis.Redis: ...


@overload
def client(conn: AsyncRedisConnection) -> redis.asyncio.Redis: ...


def client(conn: RedisConnection | AsyncRedisConnection) -> Any:
    """Return redis-py's client for a connection. Closing the client does not close the connection.

    Use it only while you hold the connection, in one thread or task at a time. It is cached on the connection, because
    a new client costs as much as a command or two.

    :param conn: a connection of one of these managers
    """
    if conn.client is None:
        conn.client = (
            redis.asyncio.Redis(connection_pool=_AsyncPool(conn))
            if isinstance(conn, AsyncRedisConnection)
            else redis.Redis(connection_pool=_SyncPool(conn))
        )
        conn.client_state = client_state(conn.client)
    return conn.client
