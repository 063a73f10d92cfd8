"""Redis connections by redis-py, for the threading pool and for the asyncio pool.

Sees to it that a connection is alive, that nobody gets the answer to another's question, and that no user finds himself
in the transaction, the database or the subscription of the one before. redis-py itself connects, retries and pools
behind one's back; here it does neither: a connection that has ended stays so, and the pool replaces it.

`client(conn)` lends a connection redis-py's commands: ``client(conn).get('key')``."""

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
    import redis.asyncio
except ImportError as exc:
    raise ImportError('gcp.contrib.redis needs redis: pip install gcpool[redis]', name='redis') from exc

from redis.credentials import CredentialProvider
from redis.utils import str_if_bytes

from gcp.contrib._endpoints import Parameters, UnknownEndpointError
from gcp.contrib._redis import (
    FINAL,
    RESETTABLE,
    UNDOABLE,
    ClosedError,
    Credentials,
    Deadline,
    Directions,
    RedisEndpoint,
    Secret,
    Session,
    Settings,
)
from gcp.contrib._tcp import KeepAlive
from gcp.contrib._wire import UnsolicitedData, check_unsolicited_data, deadline_in
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
NOBODY: Servers = MappingProxyType({})

#: How long it may take to take back what a user has left.
RESET_TIMEOUT = 2.0


# ---- connections


class Wire:
    """A socket as redis-py sees it. Can be held to a deadline, where redis-py would count each read anew, so that a
    server that sends a byte now and then keeps one waiting for ever.

    :ivar sock: the socket
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.sock = sock
        self._deadline = deadline
        self._usual = sock.gettimeout()
        self.let_go()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def hold(self) -> None:
        """From now on, heed the deadline."""
        self._usual = self.sock.gettimeout()
        for name in ('recv', 'recv_into', 'sendall'):
            setattr(self, name, functools.partial(self._timely, getattr(self.sock, name)))

    def let_go(self) -> None:
        """From now on, heed the socket's own time-out, as before."""
        for name in ('recv', 'recv_into', 'sendall'):
            setattr(self, name, getattr(self.sock, name))
        with contextlib.suppress(OSError):  # closed meanwhile
            self.sock.settimeout(self._usual)

    def _timely(self, operation: Callable[..., Any], *args: Any) -> Any:
        left = self._deadline.left()
        if left == 0:  # to a socket, that would mean: do not wait
            raise TimeoutError('no time left')
        self.sock.settimeout(left)
        return operation(*args)


class RedisConnection(Session, redis.connection.AbstractConnection):
    """A connection for threads: redis-py's, over a socket that one of `gcp.contrib`'s managers has connected.

    :ivar wire: the socket; ``None`` before
    """

    wire: Wire | None = None

    def is_open(self) -> bool:
        """Tell whether it was connected, and not closed on this side since."""
        return self.wire is not None and self.wire.fileno() >= 0

    def ask(self, *command: Any) -> Any:
        """Return the reply to a command.

        :param command: its words
        """
        self.send_command(*command)
        return self.read_response()

    def read_response(self, *args: Any, push_request: bool = False, **kwargs: Any) -> Any:
        """Read a reply, and strike it off what is owed."""
        try:
            response = super().read_response(*args, push_request=push_request, **kwargs)
        except redis.ResponseError:
            self.owed -= 1
            raise
        if not push_request:  # else it may have been a message, and a reply may still be to come
            self.owed -= 1
        return response

    def log_in(self) -> None:
        """Connect, unless it is, and begin a session."""
        self.credentials.prepare()
        if self.is_open():
            self.on_connect()
        else:
            self.connect()

    def discreetly(self, work: Callable[[], None], timeout: float | None) -> None:
        """Do work within a time; its errors show no password.

        :param work: the work
        :param timeout: how long it may take; ``None``: no limit
        :raises TimeoutError: when it took longer
        :raises redis.RedisError: what it raised
        """
        try:
            with self.held_to(timeout):
                return work()
        except redis.RedisError as exc:
            error = self.credentials.purged(exc)
        raise error  # out of there, or it would have the other one as its context

    @contextlib.contextmanager
    def held_to(self, timeout: float | None) -> Iterator[None]:
        """Let what is done meanwhile take no longer than this in all.

        :param timeout: how long; ``None``: no limit
        :raises TimeoutError: when it took longer
        """
        self.deadline.at = deadline_in(timeout)
        try:
            if self.wire is not None:
                self.wire.hold()
            yield
        except redis.TimeoutError:  # which is no TimeoutError
            raise TimeoutError(f'{self!r}: not answered in time') from None
        finally:
            self.deadline.at = math.inf
            if self.wire is not None:
                self.wire.let_go()

    def _connect(self) -> Any:
        # what redis-py's own kinds of connection fill in; there is no public way to bring a socket
        self.check_not_over()
        self.born_in = os.getpid()
        self.wire = Wire(self.dialer.create(self.address, self.deadline.left()), self.deadline)
        self.wire.settimeout(self.socket_timeout)
        self.wire.hold()
        return self.wire


class TcpConnection(RedisConnection, redis.Connection):
    """Over TCP."""


class SslConnection(RedisConnection, redis.SSLConnection):
    """Over TLS."""


class UnixConnection(RedisConnection, redis.UnixDomainSocketConnection):
    """Over a unix socket."""


class AsyncRedisConnection(Session, redis.asyncio.connection.AbstractConnection):
    """A connection for asyncio: redis-py's, over streams that one of `gcp.contrib`'s managers has connected.

    :ivar streams: reader and writer; ``None`` before
    """

    streams: tuple[Any, Any] | None = None

    async def log_in(self) -> None:
        """Connect, unless it is, and begin a session."""
        await self.credentials.prepare_later()
        await (self.on_connect() if self.is_open() else self.connect())

    async def discreetly(self, work: Awaitable[None]) -> None:
        """Do work; its errors show no password.

        :param work: the work
        :raises redis.RedisError: what it raised
        """
        try:
            return await work
        except redis.RedisError as exc:
            error = self.credentials.purged(exc)
        raise error  # out of there, or it would have the other one as its context

    async def break_off(self) -> None:
        """Close at once, whatever is still to be sent; done even if it is cancelled."""
        if self.streams is not None:
            self.streams[1].transport.abort()
        await self.disconnect(nowait=True)
        await asyncio.sleep(0)  # within which the descriptor is closed

    def is_open(self) -> bool:
        """Tell whether it was connected, and not closed on this side since."""
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
        """Read a reply, and strike it off what is owed."""
        try:
            response = await super().read_response(disable_decoding, timeout, push_request=push_request, **kwargs)
        except redis.ResponseError:
            self.owed -= 1
            raise
        # a message, or time ran out: a reply may still be to come
        if not push_request and (timeout is None or response is not None):
            self.owed -= 1
        return response

    async def has_heard(self) -> bool:
        """Tell whether there is more than what was asked for, read by redis-py or not."""
        if not await self.dialer.check_aliveness(self.address, self.streams):
            return True
        # before 8.0, it has another name for this, which means less
        heard: bool = await (self.can_read() if hasattr(self, 'can_read') else self.can_read_destructive())
        return heard

    async def _connect(self) -> None:
        # what redis-py's own kinds of connection fill in; there is no public way to bring streams
        self.check_not_over()
        self.born_in = os.getpid()
        self.streams = self._reader, self._writer = await self.dialer.create(self.address)


class AsyncTcpConnection(AsyncRedisConnection, redis.asyncio.Connection):
    """Over TCP."""


class AsyncSslConnection(AsyncRedisConnection, redis.asyncio.SSLConnection):
    """Over TLS."""


class AsyncUnixConnection(AsyncRedisConnection, redis.asyncio.UnixDomainSocketConnection):
    """Over a unix socket."""


# ---- managers


class _Manager(abc.ABC):
    """What managers of both colours are told, and how they make a connection of it that is yet to be connected."""

    _kinds: tuple[Any, Any, Any]  # of connections: over TCP, TLS, and unix sockets

    def __init__(
            self,
            servers: Servers | Callable[[str], Any] = NOBODY,
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
            socket_timeout: float | None = None,
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
        self._directions = Directions(servers, Settings(
            db=db, username=username, password=password, credential_provider=credential_provider,
            client_name=client_name, ssl=ssl,
        ))
        self._pings = aliveness == 'ping'
        self._reset = reset
        self._allows_data = unsolicited_data == 'allowed'
        self._of_sockets: dict[str, Any] = {'unsolicited_data': unsolicited_data}
        self._of_tcp: dict[str, Any] = {'keepalive': keepalive, 'nodelay': nodelay, 'source_address': source_address}
        self._of_redis: dict[str, Any] = {
            'protocol': protocol, 'decode_responses': decode_responses,
            'socket_timeout': socket_timeout, 'socket_connect_timeout': None,
        }
        # kept, for they remember TLS sessions; a function of the user's may make a context for each connection
        self._dialer = functools.lru_cache(maxsize=128)(self._make_dialer)
        self._dialer(False, None)  # finds fault with options at once

    def __repr__(self) -> str:
        return f'<{type(self).__name__}: {self._directions}>'

    @abc.abstractmethod
    def _make_dialer(self, over_unix: bool, ssl: SSLContext | bool | None) -> Any:
        """Return the manager of the sockets under connections."""

    def _prepare(self, endpoint: RedisEndpoint, found: Any) -> Any:
        """Return a connection to an endpoint, yet to be connected."""
        settings = self._directions.settings(endpoint, found)
        over_unix = settings.path is not None
        where = {'path': settings.address} if over_unix else {'host': settings.host, 'port': settings.port}
        kind = self._kinds[2 if over_unix else 1 if settings.ssl else 0]
        deadline = Deadline()
        credentials = Credentials(settings, deadline)
        conn = kind(
            **where, **self._of_redis, db=settings.db, client_name=settings.client_name,
            credential_provider=credentials if credentials.are_needed else None,
        )
        conn.set_up(self._dialer(over_unix, settings.ssl or None), settings.address, credentials, deadline)
        return conn

    def _is_reusable(self, conn: Session) -> bool:
        """Tell whether a connection can, perhaps after some work, be what it was at first."""
        if callable(self._reset):
            return not conn.owed and conn.left.isdisjoint(FINAL)
        return not conn.owed and conn.left <= (RESETTABLE if self._reset == 'reset' else UNDOABLE.keys())


class RedisConnectionManager(_Manager, SyncConnectionManager[RedisEndpoint, RedisConnection]):
    """Connects to Redis servers. An endpoint is a pair of host and port, a unix socket's path, or a name.

    A connection that comes back with replies unread, subscribed, or in a state that cannot be taken back is closed at
    once. One that comes back in a transaction, with watched keys or in another database is made as it was, at the cost
    of a round trip; one that was but used for commands, the usual case, costs none.

    :param servers: parameters by endpoint name, or a URL (``'rediss://user:password@host:port/db'``), or a function
        that returns those of an endpoint, called for each new connection; parameters are `host` and `port`, or `path`,
        and `db`, `username`, `password`, `credential_provider`, `client_name`, `ssl`, which go before the arguments of
        the same name
    :param db: the database
    :param username: an ACL user's name; ``None``: the default user
    :param password: the password, or a function that returns it, called for each new connection
    :param credential_provider: redis-py's way of providing both
    :param client_name: for ``CLIENT LIST``
    :param ssl: ``True`` or a context: speak TLS; ``True`` verifies the server's certificate and name
    :param protocol: 2 or 3: of RESP; 3 needs Redis 6
    :param keepalive: how the kernel finds out that an idle peer is gone without a word; ``None``: not at all
    :param nodelay: send small packets at once (``TCP_NODELAY``)
    :param source_address: an IP address of this host and a port (0: any) to connect from; ``None``: the kernel chooses
    :param socket_timeout: how long a user's single read or write may take; ``None``: no limit
    :param decode_responses: make replies `str`
    :param aliveness: ``'socket'``: look at the socket, which sends nothing; ``'ping'``: one round trip on top of it,
        which also sees a server that is gone without a word
    :param reset: what becomes of a connection that is left in a lasting state: ``'discard'``: as said above;
        ``'reset'``: ``RESET``, and a new log-in, which also takes back ``AUTH``, ``CLIENT TRACKING`` and the like, but
        needs Redis 6.2; a function: called with each connection that comes back without replies unread
    :param unsolicited_data: what data means that came while nobody used the connection: ``'dead'`` or ``'allowed'``
        (messages of RESP 3, as of client tracking)
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for one that is impossible
    """

    _kinds = (TcpConnection, SslConnection, UnixConnection)

    def create(self, endpoint: RedisEndpoint, timeout: float | None = None) -> RedisConnection:
        """Connect, and begin a session: ``HELLO``, ``AUTH``, ``SELECT``, as far as they are needed.

        :param endpoint: host and port, a path, or a name
        :param timeout: how long it may take in all, a function of the user's for the password included;
            ``None``: no limit
        :raises UnknownEndpointError: when there are no parameters for a name
        :raises TimeoutError: when it took longer
        :raises redis.AuthenticationError: when user name or password are wrong
        :raises redis.RedisError: when the server cannot be reached, or refuses
        """
        conn: RedisConnection = self._prepare(endpoint, self._directions.find(endpoint))
        try:
            conn.discreetly(conn.log_in, timeout)
        except BaseException:
            conn.disconnect()
            raise
        conn.settle()
        return conn

    def dispose(self, endpoint: RedisEndpoint, conn: RedisConnection, timeout: float | None = None) -> None:
        """Close a connection, also in the hands of another thread that waits on it. Redis needs no goodbye.

        :param endpoint: what it is connected to
        :param conn: the connection
        :param timeout: how long TLS may take to say its own
        """
        try:
            if conn.wire is not None:
                conn.dialer.dispose(conn.address, conn.wire.sock, timeout)
        finally:
            conn.disconnect()

    def check_aliveness(self, endpoint: RedisEndpoint, conn: RedisConnection, timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: what it is connected to
        :param conn: the connection
        :param timeout: how long the server may take to answer a ``PING``; ``None``: no limit
        """
        if conn.wire is None or not conn.is_open() or not conn.dialer.check_aliveness(conn.address, conn.wire.sock):
            return False
        return not self._pings or (conn.born_in == os.getpid() and _answers(conn, timeout))

    def on_acquire(self, endpoint: RedisEndpoint, conn: RedisConnection) -> None:
        """Take note that somebody uses a connection.

        :param endpoint: what it is connected to
        :param conn: the connection
        """
        if conn.wire is not None:
            conn.dialer.on_acquire(conn.address, conn.wire.sock)

    def on_release(self, endpoint: RedisEndpoint, conn: RedisConnection) -> None:
        """Take back what the user has left, or close the connection where that cannot be.

        :param endpoint: what it is connected to
        :param conn: the connection
        :raises redis.ResponseError: when the server refuses
        """
        if conn.wire is None or not conn.is_open():
            return  # the user closed it or saw it break: no fault of the release, and the next check finds it dead
        try:
            reusable = self._is_reusable(conn) and (self._allows_data or not conn.can_read(0))
            if reusable and (conn.left or callable(self._reset)):
                conn.discreetly(functools.partial(_take_back, conn, self._reset), RESET_TIMEOUT)
        except (redis.ConnectionError, TimeoutError):
            reusable = False
        if reusable and not conn.owed:
            conn.settle()
            conn.dialer.on_release(conn.address, conn.wire.sock)
        else:
            conn.disconnect()

    def _make_dialer(self, over_unix: bool, ssl: SSLContext | bool | None) -> SyncConnectionManager[Any, Any]:
        if over_unix:
            from gcp.contrib.unix import UnixSocketConnectionManager

            return UnixSocketConnectionManager(**self._of_sockets)
        from gcp.contrib.socket import SslSocketConnectionManager, TcpSocketConnectionManager

        if not ssl:
            return TcpSocketConnectionManager(**self._of_sockets, **self._of_tcp)
        return SslSocketConnectionManager(None if ssl is True else ssl, **self._of_sockets, **self._of_tcp)


def _answers(conn: RedisConnection, timeout: float | None) -> bool:
    try:
        with conn.held_to(timeout):
            return str_if_bytes(conn.ask('PING')) == 'PONG'
    except Exception:  # whatever a server may say that is no reply
        conn.disconnect()
        return False


def _take_back(conn: RedisConnection, reset: Any) -> None:
    if callable(reset):
        reset(conn)
    elif reset == 'reset':
        conn.ask('RESET')
        conn.log_in()
    else:
        for name, undo in UNDOABLE.items():
            if name in conn.left:
                conn.ask(*undo, *([conn.db] if name == 'SELECT' else []))


class AsyncRedisConnectionManager(_Manager, AsyncConnectionManager[RedisEndpoint, AsyncRedisConnection]):
    """Connects to Redis servers. The same as `RedisConnectionManager`, in the other colour.

    Functions for parameters, passwords and resets may be async."""

    _kinds = (AsyncTcpConnection, AsyncSslConnection, AsyncUnixConnection)

    async def create(self, endpoint: RedisEndpoint) -> AsyncRedisConnection:
        """Connect, and begin a session: ``HELLO``, ``AUTH``, ``SELECT``, as far as they are needed.

        :param endpoint: host and port, a path, or a name
        :raises UnknownEndpointError: when there are no parameters for a name
        :raises redis.AuthenticationError: when user name or password are wrong
        :raises redis.RedisError: when the server cannot be reached, or refuses
        """
        found = self._directions.find(endpoint)
        conn: AsyncRedisConnection = self._prepare(endpoint, await found if inspect.isawaitable(found) else found)
        try:
            await conn.discreetly(conn.log_in())
        except BaseException:
            await conn.break_off()
            raise
        conn.settle()
        return conn

    async def dispose(self, endpoint: RedisEndpoint, conn: AsyncRedisConnection) -> None:
        """Close a connection. Redis needs no goodbye. Does nothing in a process forked off since its creation.

        :param endpoint: what it is connected to
        :param conn: the connection
        """
        if conn.born_in != os.getpid():
            return
        try:
            if conn.streams is not None:
                await conn.dialer.dispose(conn.address, conn.streams)
        finally:
            await conn.break_off()

    async def check_aliveness(self, endpoint: RedisEndpoint, conn: AsyncRedisConnection) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: what it is connected to
        :param conn: the connection
        """
        if not conn.is_open() or not await conn.dialer.check_aliveness(conn.address, conn.streams):
            return False
        return not self._pings or (conn.born_in == os.getpid() and await _answers_later(conn))

    async def on_release(self, endpoint: RedisEndpoint, conn: AsyncRedisConnection) -> None:
        """Take back what the user has left, or close the connection where that cannot be.

        :param endpoint: what it is connected to
        :param conn: the connection
        :raises redis.ResponseError: when the server refuses
        """
        if not conn.is_open():
            return  # the user closed it or saw it break: no fault of the release, and the next check finds it dead
        try:
            reusable = self._is_reusable(conn) and (self._allows_data or not await conn.has_heard())
            if reusable and (conn.left or callable(self._reset)):
                await asyncio.wait_for(conn.discreetly(_take_back_later(conn, self._reset)), RESET_TIMEOUT)
        except (redis.ConnectionError, redis.TimeoutError, asyncio.TimeoutError, TimeoutError):
            reusable = False
        if reusable and not conn.owed:
            conn.settle()
        else:
            await conn.break_off()

    def _make_dialer(self, over_unix: bool, ssl: SSLContext | bool | None) -> AsyncConnectionManager[Any, Any]:
        if over_unix:
            from gcp.contrib.unix_async import UnixSocketStreamConnectionManager

            return UnixSocketStreamConnectionManager(**self._of_sockets)
        from gcp.contrib.socket_async import TcpStreamConnectionManager

        return TcpStreamConnectionManager(ssl, **self._of_sockets, **self._of_tcp)


async def _answers_later(conn: AsyncRedisConnection) -> bool:
    try:
        return str_if_bytes(await conn.ask('PING')) == 'PONG'
    except Exception:  # whatever a server may say that is no reply
        await conn.break_off()
        return False


async def _take_back_later(conn: AsyncRedisConnection, reset: Any) -> None:
    if callable(reset):
        done = reset(conn)
        if inspect.isawaitable(done):
            await done
    elif reset == 'reset':
        await conn.ask('RESET')
        await conn.log_in()
    else:
        for name, undo in UNDOABLE.items():
            if name in conn.left:
                await conn.ask(*undo, *([conn.db] if name == 'SELECT' else []))


# ---- commands


class _OnlyConnection:
    """A pool, to redis-py's clients, that lends one connection that is somebody else's, and takes nothing back.

    A mixin for redis-py's pools of either colour."""

    def __init__(self, conn: Any) -> None:
        super().__init__(  # type: ignore[call-arg]
            type(conn), 1, protocol=conn.protocol, db=conn.db, decode_responses=conn.encoder.decode_responses)
        self._borrowed = weakref.ref(conn)  # which keeps the client

    def _lent(self) -> Any:
        conn = self._borrowed()
        if conn is None:
            raise ClosedError('the connection is gone; a client lasts no longer than the connection it was made for')
        return conn


class _SyncPool(_OnlyConnection, redis.ConnectionPool):
    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        return self._lent()

    def release(self, connection: Any) -> None:
        pass

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        pass


class _AsyncPool(_OnlyConnection, redis.asyncio.ConnectionPool):
    async def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        return self._lent()

    async def release(self, connection: Any) -> None:
        pass

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        pass


@overload
def client(conn: RedisConnection) -> redis.Redis: ...


@overload
def client(conn: AsyncRedisConnection) -> redis.asyncio.Redis: ...


def client(conn: RedisConnection | AsyncRedisConnection) -> Any:
    """Return a redis-py client whose commands, pipelines and scripts go over a connection. Closing it closes nothing.

    It is to be used as long as the connection is, and by one thread or task at a time. A second call returns it again:
    to make one costs as much as a command or two.

    :param conn: a connection of one of these managers
    """
    if conn.client is None and isinstance(conn, AsyncRedisConnection):
        conn.client = redis.asyncio.Redis(connection_pool=_AsyncPool(conn))
    elif conn.client is None:
        conn.client = redis.Redis(connection_pool=_SyncPool(conn))
    return conn.client
