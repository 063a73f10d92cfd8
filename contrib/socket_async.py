"""TCP and TLS connections for the asyncio pool, as sockets and as streams. Knows no protocol above them, so unsolicited
data means that a connection cannot be used again, unless `unsolicited_data` says otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from ssl import SSLContext
from typing import Any, Generic

from gcp.asyncio import BaseConnectionManager, EndpointT
from gcp.contrib import _tls
from gcp.contrib._tcp import (
    Address,
    HappyEyeballs,
    Hostname,
    IpAddress,
    KeepAlive,
    Port,
    TcpEndpoint,
    TcpManager,
    TcpOptions,
    check_endpoint,
    is_address,
    look_up,
)
from gcp.contrib._wire import (
    CLOSE_TIMEOUT,
    SocketManager,
    UnsolicitedData,
    has_ended,
    is_alive,
    is_quiet,
    is_writable,
    restore_timeout,
    run_in_thread,
    shut_down,
)
from gcp.exceptions import ErrorClass

__all__ = [
    'Hostname',
    'IpAddress',
    'KeepAlive',
    'Port',
    'SocketAlivenessCheckingMixin',
    'Stream',
    'StreamAlivenessCheckingMixin',
    'TcpEndpoint',
    'TcpSocketConnectionManager',
    'TcpStreamConnectionManager',
    'TcpStreamEndpoint',
]

TcpStreamEndpoint = TcpEndpoint
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

#: How many iterations an event loop needs to read what a TLS connection has received, and to close one at EOF.
TURNS = 5

#: How many TLS messages, such as session tickets, a check lets the event loop read; a server sends two or more.
MAX_TICKETS = 3


class SocketAlivenessCheckingMixin(Generic[EndpointT]):
    """Checks a socket by what there is to read, without sending anything.

    EOF, an error and unsolicited data all mean dead: the next user would take data that arrived before its first
    request for the response.

    :cvar unsolicited_data: ``'allowed'`` for a protocol in which the peer may send at any time: only EOF and errors
        mean dead then, also after data
    """

    unsolicited_data: UnsolicitedData = 'dead'

    async def check_aliveness(self, endpoint: EndpointT, conn: socket.socket) -> bool:
        """Tell whether an idle socket can still be used.

        :param endpoint: its endpoint
        :param conn: the socket
        """
        return is_alive(conn.fileno(), self.unsolicited_data)


class PlainSocketManager(
    SocketManager[socket.socket],
    SocketAlivenessCheckingMixin[EndpointT],
    BaseConnectionManager[EndpointT, socket.socket],
):
    """What the managers of TCP and of unix sockets share."""

    async def on_release(self, endpoint: EndpointT, conn: socket.socket) -> None:
        """Restore the non-blocking mode, if the user changed it, and remove the user's `loop.add_reader` and
        `loop.add_writer`.

        :param endpoint: its endpoint
        :param conn: the socket
        """
        if not isinstance(conn, socket.socket):  # by the `create` of a subclass
            return
        restore_timeout(conn, 0.0)
        loop, fd = asyncio.get_running_loop(), conn.fileno()
        with contextlib.suppress(RuntimeError):  # a transport owns it
            if fd >= 0:
                loop.remove_reader(fd)
                loop.remove_writer(fd)

    async def dispose(self, endpoint: EndpointT, conn: socket.socket) -> None:
        """Close a connection. Tasks that wait on it are woken up.

        :param endpoint: its endpoint
        :param conn: the socket
        """
        if not self._fork_guard.is_inherited(conn):
            await close_socket(conn)
        else:
            conn.close()


class TcpSocketConnectionManager(TcpManager[socket.socket], PlainSocketManager[TcpEndpoint]):
    """Connects non-blocking TCP sockets, for `loop.sock_recv`, `loop.sock_sendall` and the like. An endpoint is a pair
    of a host (a name or an address) and a port.

    :param keepalive: how the kernel detects that an idle peer has vanished; ``None``: no keepalive
    :param nodelay: send small packets at once (``TCP_NODELAY``)
    :param source_address: an IP address of this host and a port (0: any) to connect from; ``None``: the kernel chooses
    :param unsolicited_data: what data means that arrives while a connection is idle: ``'dead'`` or ``'allowed'``;
        ``None``: the class attribute of the same name decides
    :param user_timeout: how long sent data may stay unacknowledged before the kernel breaks the connection, seconds
        (``TCP_USER_TIMEOUT``, on Linux); ``None``: the kernel's default, about 15 minutes
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for an argument with an impossible value
    """

    async def create(self, endpoint: TcpEndpoint) -> socket.socket:
        """Connect to the first address of a host that accepts.

        :param endpoint: host and port
        :raises OSError: the error of the last address, or of the look-up
        :raises TypeError: when the endpoint is not a pair of host and port
        :raises ValueError: when the host or the port is impossible
        """
        sock = await connect(*check_endpoint(endpoint), self._options)
        self._fork_guard.record(sock)
        return sock


class StreamAlivenessCheckingMixin(Generic[EndpointT]):
    """Checks a stream by what was read, or can be, without sending anything.

    EOF, an error, a close_notify and unsolicited data all mean dead, and so does a full write buffer, whose peer has
    stopped reading. TLS's own messages, such as the session tickets that a TLS 1.3 server sends after the handshake,
    are not data.

    :cvar unsolicited_data: ``'allowed'`` for a protocol in which the peer may send at any time: only EOF and errors
        mean dead then, also after data
    """

    unsolicited_data: UnsolicitedData = 'dead'

    async def check_aliveness(self, endpoint: EndpointT, conn: Stream) -> bool:
        """Tell whether an idle stream can still be used.

        :param endpoint: its endpoint
        :param conn: the stream
        """
        reader, writer = conn
        if _has_ended(reader, writer) or _is_write_buffer_full(writer.transport):
            return False
        fd = _descriptor(writer)
        quiet = is_quiet(fd)
        for _ in range(MAX_TICKETS if _is_tls(writer) else 0):
            if quiet:  # do not look again: a ticket that arrives just now does not mean that it is dead
                break
            await let_loop_read()
            if _has_ended(reader, writer):
                return False
            quiet = is_quiet(fd)
        if self.unsolicited_data == 'allowed':
            return is_alive(fd, 'allowed')
        return quiet and not _internals(reader)._buffer and _internals(reader)._waiter is None


class StreamManager(
    SocketManager[asyncio.StreamWriter],
    StreamAlivenessCheckingMixin[EndpointT],
    BaseConnectionManager[EndpointT, Stream],
):
    """What the managers of streams over TCP and over unix sockets share."""

    def _look_at_error(self, error: BaseException) -> ErrorClass | None:
        return ErrorClass.BROKEN if isinstance(error, asyncio.IncompleteReadError) else super()._look_at_error(error)

    async def on_acquire(self, endpoint: EndpointT, conn: Stream) -> None:
        """Remember the write limits of a new connection.

        :param endpoint: its endpoint
        :param conn: the stream
        """
        if not _is_stream(conn):
            return
        writer = conn[1]
        if writer not in self._originals and not writer.is_closing():
            self._originals[writer] = writer.transport.get_write_buffer_limits()

    async def on_release(self, endpoint: EndpointT, conn: Stream) -> None:
        """Restore the write limits, the reading and the protocol of the transport, if the user changed them.

        :param endpoint: its endpoint
        :param conn: the stream
        """
        if not _is_stream(conn):
            return
        reader, writer = conn[:2]
        if not writer.is_closing():
            _restore_transport(reader, writer, self._originals.get(writer))

    async def dispose(self, endpoint: EndpointT, conn: Stream) -> None:
        """Flush and close a connection within two seconds. Does nothing in a process forked since its creation.

        :param endpoint: its endpoint
        :param conn: the stream
        """
        if not self._fork_guard.is_inherited(conn[1]):
            await close_stream(conn[1])


class TcpStreamConnectionManager(TcpManager[asyncio.StreamWriter], StreamManager[TcpStreamEndpoint]):
    """Connects streams over TCP, optionally with TLS. An endpoint is a pair of a host (a name or an address) and a
    port.

    TLS sessions are not resumed: asyncio does not support it.

    :param ssl: the TLS context; ``True``: a default one, which verifies the peer's certificate and name; ``None`` or
        ``False``: no TLS
    :param server_hostname: the name to send (SNI) and to verify; ``None``: the endpoint's host
    :param alpn_protocols: protocols to offer, preferred first; set on the context, even if it is the caller's
    :param keepalive: how the kernel detects that an idle peer has vanished; ``None``: no keepalive
    :param nodelay: send small packets at once (``TCP_NODELAY``)
    :param source_address: an IP address of this host and a port (0: any) to connect from; ``None``: the kernel chooses
    :param unsolicited_data: what data means that arrives while a connection is idle: ``'dead'`` or ``'allowed'``;
        ``None``: the class attribute of the same name decides
    :param user_timeout: how long sent data may stay unacknowledged before the kernel breaks the connection, seconds
        (``TCP_USER_TIMEOUT``, on Linux); ``None``: the kernel's default, about 15 minutes
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for an argument with an impossible value
    """

    def __init__(
        self,
        ssl: SSLContext | bool | None = None,
        *,
        server_hostname: str | None = None,
        alpn_protocols: Sequence[str] = (),
        keepalive: KeepAlive | None = KeepAlive(),  # noqa: B008  # it is frozen
        nodelay: bool = True,
        source_address: tuple[str, Port] | None = None,
        unsolicited_data: UnsolicitedData | None = None,
        user_timeout: float | None = None,
    ) -> None:
        if ssl is not None and not isinstance(ssl, (bool, SSLContext)):
            raise TypeError(f'ssl: an ssl.SSLContext, True for one that verifies, or None was expected, not {ssl!r}')
        if not ssl and (server_hostname is not None or alpn_protocols):
            name = 'alpn_protocols' if server_hostname is None else 'server_hostname'
            raise ValueError(f'{name}: only with ssl')
        self._context = _tls.check_context(None if ssl is True else ssl, alpn_protocols) if ssl else None
        self._server_hostname = _tls.check_server_hostname(server_hostname)
        super().__init__(
            keepalive=keepalive,
            nodelay=nodelay,
            source_address=source_address,
            unsolicited_data=unsolicited_data,
            user_timeout=user_timeout,
        )

    async def create(self, endpoint: TcpStreamEndpoint) -> Stream:
        """Connect to the first address of a host that accepts, and do the TLS handshake.

        :param endpoint: host and port
        :raises ssl.SSLError: when the handshake fails; `ssl.SSLCertVerificationError` when the certificate does not
            verify
        :raises OSError: the error of the last address, or of the look-up
        :raises TypeError: when the endpoint is not a pair of host and port
        :raises ValueError: when the host or the port is impossible
        """
        host, port = check_endpoint(endpoint)
        sock = await connect(host, port, self._options)
        name = None if self._context is None else self._server_hostname or _tls.certificate_name(host)
        stream = await open_stream(sock, partial(asyncio.open_connection, ssl=self._context, server_hostname=name))
        self._options.set_delay(sock)  # event loops set it as they like
        self._fork_guard.record(stream[1])
        return stream


async def connect(host: str, port: Port, options: TcpOptions) -> socket.socket:
    """Return a non-blocking socket that is connected to the first address of a host that accepts.

    Implements RFC 8305 for all event loops: uvloop has no `happy_eyeballs_delay`, and asyncio's own, when cancelled,
    may leave a newly connected socket to the garbage collector.

    :param host: a name or an address
    :param port: the port
    :param options: the options of its sockets
    :raises OSError: the error of the last address, or of the look-up
    :raises ValueError: when the host cannot be a name
    """
    addresses = await _resolve(host, port)
    with HappyEyeballs(addresses, options.open) as race:
        while (sock := race.advance()) is None:
            await _wait_writable(race.attempts, race.next_attempt_in())
        return sock


async def close_socket(sock: socket.socket) -> None:
    """Close a socket. Tasks that wait on it are woken up.

    :param sock: the socket
    """
    try:
        with contextlib.suppress(OSError):  # disconnected already
            sock.shutdown(socket.SHUT_RDWR)
        await _yield_to_loop()  # the loop must see the EOF before the descriptor is closed, or its tasks wait for ever
    finally:
        sock.close()


async def open_stream(sock: socket.socket, open_connection: Callable[..., Awaitable[Stream]]) -> Stream:
    """Return a stream over a connected socket. If that fails, close the socket.

    :param sock: the socket
    :param open_connection: `asyncio.open_connection` or its like
    """
    loop, identity = asyncio.get_running_loop(), _identity(sock)
    try:
        return await open_connection(sock=sock)
    except BaseException:
        if _identity(sock) != identity:
            sock.detach()
        elif not _is_owned_by_transport(sock, loop):
            sock.close()
        raise


def _restore_transport(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    limits: tuple[int, int] | None,
) -> None:
    """Restore the write limits, the reading and the protocol of a stream's transport, if its user changed them.

    :param reader: the stream's reader
    :param writer: the stream's writer
    :param limits: the write limits, low and high; ``None``: not known
    """
    transport: Any = writer.transport
    if limits is not None and transport.get_write_buffer_limits() != limits:
        low, high = limits
        transport.set_write_buffer_limits(high, low)
    protocol = _internals(writer)._protocol
    if transport.get_protocol() is not protocol:
        transport.set_protocol(protocol)
    # uvloop's TLS transports do not tell that they are paused; a reader that has too much to read resumes by itself
    if not _internals(reader)._paused and (_is_tls(writer) or not transport.is_reading()):
        transport.resume_reading()


async def let_loop_read() -> None:
    """Let the event loop read what connections have received, and close those that have ended."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def close_stream(writer: asyncio.StreamWriter) -> None:
    """Close a stream in order, or abort it after two seconds.

    :param writer: the stream's writer
    """
    try:
        # a close_notify to a peer that has reset the connection may end the process by SIGPIPE
        if not (_is_tls(writer) and _is_ended_by_peer(writer)):
            writer.close()
            # TLS has sent its close_notify, and would wait for the peer's
            if not _is_tls(writer) or not await _is_flushed(writer):
                await _wait_closed(writer)
    finally:
        writer.transport.abort()
    await _yield_to_loop()  # the loop closes the descriptor in its next iteration


async def _resolve(host: str, port: Port) -> list[Address]:
    if is_address(host):
        return look_up(host, port)
    # not in the loop's executor: look-ups that hang would soon occupy all of its threads
    return await asyncio.wrap_future(run_in_thread(partial(look_up, host, port), key=(look_up, host, port)))


async def _wait_writable(socks: Iterable[socket.socket], timeout: float) -> None:
    """Wait until one of the sockets is writable or has failed, or the time is over."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def set_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    timer = loop.call_later(timeout, set_ready) if timeout < math.inf else None
    for sock in socks:
        loop.add_writer(sock.fileno(), set_ready)
    try:
        await ready
    finally:
        for sock in socks:
            loop.remove_writer(sock.fileno())
        if timer is not None:
            timer.cancel()


async def _yield_to_loop() -> None:
    """Let the event loop process pending events and their callbacks."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def _is_flushed(writer: asyncio.StreamWriter) -> bool:
    """Tell whether all data is sent. If the kernel's buffer has room, the event loop needs one iteration at most."""
    for _ in range(2):
        if (fd := _descriptor(writer)) < 0:
            break
        if writer.transport.get_write_buffer_size() or not is_writable(fd):
            return False
        await _yield_to_loop()
    return True


async def _wait_closed(writer: asyncio.StreamWriter) -> None:
    """Wait until a stream is closed, two seconds at most.

    In a task of its own, whose error is ignored: `wait_closed` may even raise the `CancelledError` of another task that
    waited there before."""
    closed = asyncio.ensure_future(writer.wait_closed())
    closed.add_done_callback(lambda closed: None if closed.cancelled() else closed.exception())
    try:
        await asyncio.wait([closed], timeout=CLOSE_TIMEOUT)
    finally:
        closed.cancel()


def _is_owned_by_transport(sock: socket.socket, loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether a transport owns a socket. If so, the shutdown makes it close the socket itself.

    When a task is cancelled just before the handshake begins, the loop leaves the transport open. Closing its
    descriptor here would make the loop act on the next socket that gets the same number."""
    shut_down(sock.fileno())
    try:
        loop.remove_reader(sock.fileno())
    except RuntimeError:
        return not loop.is_closed()
    return False


def _identity(sock: socket.socket) -> tuple[int, int] | None:
    """Return device and inode of the socket behind a descriptor; ``None`` when it is closed.

    uvloop, when cancelled at the wrong moment, closes the descriptor behind the socket object's back, and the number
    may be reused by the time the object closes it again."""
    try:
        status = os.fstat(sock.fileno())
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_stream(conn: object) -> bool:
    """Tell whether a connection is a stream; `create` of a subclass may return something else."""
    return isinstance(conn, tuple) and len(conn) > 1 and isinstance(conn[1], asyncio.StreamWriter)


def _has_ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    return writer.is_closing() or _descriptor(writer) < 0 or reader.exception() is not None or reader.at_eof()


def _is_ended_by_peer(writer: asyncio.StreamWriter) -> bool:
    fd = _descriptor(writer)
    return fd >= 0 and has_ended(fd)


def _is_write_buffer_full(transport: asyncio.WriteTransport) -> bool:
    """Tell whether the write buffer is over its limit, so that the next user's `drain` would block."""
    _, high = transport.get_write_buffer_limits()
    return transport.get_write_buffer_size() > high


def _is_tls(writer: asyncio.StreamWriter) -> bool:
    return _extra(writer, 'ssl_object') is not None


def _descriptor(writer: asyncio.StreamWriter) -> int:
    """Return a stream's descriptor; negative when it is closed."""
    sock = _extra(writer, 'socket')
    return -1 if sock is None else int(sock.fileno())


def _extra(writer: asyncio.StreamWriter, name: str) -> Any:
    try:
        return writer.get_extra_info(name)
    except AttributeError:  # asyncio's TLS transport, once it is closed
        return None


def _internals(end: asyncio.StreamReader | asyncio.StreamWriter) -> Any:
    """Return a reader or a writer untyped: there is no public way to ask for its data, its waiter or its protocol."""
    return end
