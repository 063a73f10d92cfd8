"""TCP and TLS connections for the asyncio pool, as sockets and as streams. Knows no protocol above: to it, bytes that
nobody asked for are a fault, unless it is told otherwise."""

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
    Hostname,
    IpAddress,
    KeepAlive,
    Port,
    Race,
    TcpEndpoint,
    TcpManager,
    TcpOptions,
    check_endpoint,
    is_address,
    look_up,
)
from gcp.contrib._wire import (
    GOODBYE_TIMEOUT,
    SocketManager,
    UnsolicitedData,
    aside,
    hang_up,
    is_alive,
    is_quiet,
    is_writable,
)

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

#: How many turns an event loop needs to read what waits on a TLS connection, and to close one that has ended.
TURNS = 5

#: For how many messages of TLS, one after the other, a check lets the loop read: a server sends two tickets, and more.
TICKETS = 3


class SocketAlivenessCheckingMixin(Generic[EndpointT]):
    """Tells a socket's aliveness from what waits to be read on it, without a packet sent.

    EOF, an error and unexpected data all mean dead: data that came while nobody used the connection would be taken for
    the answer to the next caller's first question.

    :cvar unsolicited_data: ``'allowed'`` where the protocol lets the peer speak unasked: then only EOF and errors mean
        dead, also behind data
    """

    unsolicited_data: UnsolicitedData = 'dead'

    async def check_aliveness(self, endpoint: EndpointT, conn: socket.socket) -> bool:
        """Tell whether an idle socket can still be used.

        :param endpoint: what it is connected to
        :param conn: the socket
        """
        return is_alive(conn.fileno(), self.unsolicited_data)


class PlainSocketManager(
    SocketManager[socket.socket],
    SocketAlivenessCheckingMixin[EndpointT],
    BaseConnectionManager[EndpointT, socket.socket],
):
    """What the managers of TCP and of unix sockets share."""

    async def dispose(self, endpoint: EndpointT, conn: socket.socket) -> None:
        """Close a connection, so that tasks that wait on it hear of it.

        :param endpoint: what it is connected to
        :param conn: the socket
        """
        if self._births.was_here(conn):
            await close_socket(conn)
        else:
            conn.close()


class TcpSocketConnectionManager(TcpManager[socket.socket], PlainSocketManager[TcpEndpoint]):
    """Connects non-blocking TCP sockets, for `loop.sock_recv`, `loop.sock_sendall` and the like. An endpoint is a pair
    of a host (a name or an address) and a port.

    :param keepalive: how the kernel finds out that an idle peer is gone without a word; ``None``: not at all
    :param nodelay: send small packets at once (``TCP_NODELAY``)
    :param source_address: an IP address of this host and a port (0: any) to connect from; ``None``: the kernel chooses
    :param unsolicited_data: what data means that came while nobody used the connection: ``'dead'`` or ``'allowed'``;
        ``None``: what the class says
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for one that is impossible
    """

    async def create(self, endpoint: TcpEndpoint) -> socket.socket:
        """Connect to the first address of a host that accepts.

        :param endpoint: host and port
        :raises OSError: what the last address answered, or the look-up
        :raises TypeError: when the endpoint is none
        :raises ValueError: when a part of it is impossible
        """
        sock = await connect(*check_endpoint(endpoint), self._options)
        self._births.record(sock)
        return sock


class StreamAlivenessCheckingMixin(Generic[EndpointT]):
    """Tells a stream's aliveness from what was read, or waits to be, without a packet sent.

    EOF, an error, a close_notify of TLS and unexpected data all mean dead, and so does a peer that has stopped taking
    in what was written. What TLS tells itself, such as the session tickets that a TLS 1.3 server sends after the
    handshake, is not data.

    :cvar unsolicited_data: ``'allowed'`` where the protocol lets the peer speak unasked: then only EOF and errors mean
        dead, also behind data
    """

    unsolicited_data: UnsolicitedData = 'dead'

    async def check_aliveness(self, endpoint: EndpointT, conn: Stream) -> bool:
        """Tell whether an idle stream can still be used.

        :param endpoint: what it is connected to
        :param conn: the stream
        """
        reader, writer = conn
        if _has_ended(reader, writer) or _is_stuck(writer.transport):
            return False
        fd = _descriptor(writer)
        quiet = is_quiet(fd)
        for _ in range(TICKETS if _is_tls(writer) else 0):
            if quiet:  # once seen, not looked at again: a ticket that comes just now is no reason to take it for dead
                break
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if _has_ended(reader, writer):
                return False
            quiet = is_quiet(fd)
        if self.unsolicited_data == 'allowed':
            return is_alive(fd, 'allowed')
        return quiet and not _internals(reader)._buffer


class StreamManager(
    SocketManager[asyncio.StreamWriter],
    StreamAlivenessCheckingMixin[EndpointT],
    BaseConnectionManager[EndpointT, Stream],
):
    """What the managers of streams over TCP and over unix sockets share."""

    async def dispose(self, endpoint: EndpointT, conn: Stream) -> None:
        """Send what waits to be sent, and close a connection, within two seconds. Does nothing in a process forked off
        since its creation.

        :param endpoint: what it is connected to
        :param conn: the stream
        """
        if self._births.was_here(conn[1]):
            await close_stream(conn[1])


class TcpStreamConnectionManager(TcpManager[asyncio.StreamWriter], StreamManager[TcpStreamEndpoint]):
    """Connects streams over TCP, with TLS if asked for. An endpoint is a pair of a host (a name or an address) and a
    port.

    TLS sessions are not resumed: asyncio has no way to offer one.

    :param ssl: what is trusted and spoken; ``True``: a default context, which verifies the peer's certificate and name;
        ``None`` or ``False``: no TLS
    :param server_hostname: the name to ask for (SNI) and to verify; ``None``: the endpoint's host
    :param alpn_protocols: protocols to offer, best first; set on the context, also on one that was given
    :param keepalive: how the kernel finds out that an idle peer is gone without a word; ``None``: not at all
    :param nodelay: send small packets at once (``TCP_NODELAY``)
    :param source_address: an IP address of this host and a port (0: any) to connect from; ``None``: the kernel chooses
    :param unsolicited_data: what data means that came while nobody used the connection: ``'dead'`` or ``'allowed'``;
        ``None``: what the class says
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for one that is impossible
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
    ) -> None:
        if ssl is not None and not isinstance(ssl, (bool, SSLContext)):
            raise TypeError(f'ssl: an ssl.SSLContext, True for one that verifies, or None was expected, not {ssl!r}')
        if not ssl and (server_hostname is not None or alpn_protocols):
            name = 'alpn_protocols' if server_hostname is None else 'server_hostname'
            raise ValueError(f'{name}: only with ssl')
        self._context = _tls.check_context(None if ssl is True else ssl, alpn_protocols) if ssl else None
        self._server_hostname = _tls.check_server_hostname(server_hostname)
        super().__init__(
            keepalive=keepalive, nodelay=nodelay, source_address=source_address, unsolicited_data=unsolicited_data)

    async def create(self, endpoint: TcpStreamEndpoint) -> Stream:
        """Connect to the first address of a host that accepts, and shake hands.

        :param endpoint: host and port
        :raises ssl.SSLError: when the handshake fails, `ssl.SSLCertVerificationError` when the peer is not who it ought
            to be
        :raises OSError: what the last address answered, or the look-up
        :raises TypeError: when the endpoint is none
        :raises ValueError: when a part of it is impossible
        """
        host, port = check_endpoint(endpoint)
        sock = await connect(host, port, self._options)
        name = None if self._context is None else self._server_hostname or _tls.name_of(host)
        stream = await open_stream(sock, partial(asyncio.open_connection, ssl=self._context, server_hostname=name))
        self._options.set_delay(sock)  # event loops have an opinion of their own
        self._births.record(stream[1])
        return stream


async def connect(host: str, port: Port, options: TcpOptions) -> socket.socket:
    """Return a non-blocking socket that is connected to the first address of a host that accepts.

    RFC 8305 for all event loops alike: uvloop has no `happy_eyeballs_delay`, and asyncio's own, when cancelled, may
    leave a socket that has just been connected to the garbage collector.

    :param host: a name or an address
    :param port: the port
    :param options: the sockets'
    :raises OSError: what the last address answered, or the look-up
    :raises ValueError: when the host cannot be a name
    """
    addresses = await _resolve(host, port)
    with Race(addresses, options.open) as race:
        while (sock := race.step()) is None:
            await _await_any(race.attempts, race.patience())
        return sock


async def close_socket(sock: socket.socket) -> None:
    """Close a socket, so that tasks that wait on it hear of it.

    :param sock: the socket
    """
    try:
        with contextlib.suppress(OSError):  # dead already
            sock.shutdown(socket.SHUT_RDWR)
        await _turn()  # an event loop that is not told of the end before the descriptor goes will wait for ever
    finally:
        sock.close()


async def open_stream(sock: socket.socket, open_connection: Callable[..., Awaitable[Stream]]) -> Stream:
    """Return the stream over a connected socket, which is closed if that fails.

    :param sock: the socket
    :param open_connection: `asyncio.open_connection` or its like
    """
    loop, identity = asyncio.get_running_loop(), _identity(sock)
    try:
        return await open_connection(sock=sock)
    except BaseException:
        if _identity(sock) != identity:
            sock.detach()
        elif not _is_taken_over(sock, loop):
            sock.close()
        raise


async def close_stream(writer: asyncio.StreamWriter) -> None:
    """Close a stream in the way of its protocol, within two seconds; if that cannot be, break it off.

    :param writer: the stream's
    """
    try:
        writer.close()
        # TLS has said its goodbye by now, and would wait for the peer's
        if not _is_tls(writer) or not await _is_all_out(writer):
            await _await_close(writer)
    finally:
        writer.transport.abort()
    await _turn()  # in which the descriptor is closed


async def _resolve(host: str, port: Port) -> list[Address]:
    if is_address(host):
        return look_up(host, port)
    # not in the loop's executor: a resolver that hangs would soon have all of its few threads
    return await asyncio.wrap_future(aside(partial(look_up, host, port)))


async def _await_any(socks: Iterable[socket.socket], timeout: float) -> None:
    """Wait until something can be sent through one of some sockets, or an error is known of it, or time has passed."""
    loop = asyncio.get_running_loop()
    bell = loop.create_future()

    def ring() -> None:
        if not bell.done():
            bell.set_result(None)

    timer = loop.call_later(timeout, ring) if timeout < math.inf else None
    for sock in socks:
        loop.add_writer(sock.fileno(), ring)
    try:
        await bell
    finally:
        for sock in socks:
            loop.remove_writer(sock.fileno())
        if timer is not None:
            timer.cancel()


async def _turn() -> None:
    """Let the event loop see what happened until now, and act on it."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def _is_all_out(writer: asyncio.StreamWriter) -> bool:
    """Tell whether nothing waits to be sent. Where the kernel has room, an event loop needs a turn at most."""
    for _ in range(2):
        if (fd := _descriptor(writer)) < 0:
            break
        if writer.transport.get_write_buffer_size() or not is_writable(fd):
            return False
        await _turn()
    return True


async def _await_close(writer: asyncio.StreamWriter) -> None:
    """Wait until a stream is closed, but not for ever.

    In a task of its own: what `wait_closed` raises is of no interest, be it the `CancelledError` of somebody else, who
    waited there before."""
    closed = asyncio.ensure_future(writer.wait_closed())
    closed.add_done_callback(lambda closed: None if closed.cancelled() else closed.exception())
    try:
        await asyncio.wait([closed], timeout=GOODBYE_TIMEOUT)
    finally:
        closed.cancel()


def _is_taken_over(sock: socket.socket, loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether a transport has a socket. If so, have it find the connection broken, and close it.

    A loop that is cancelled in the turn in which a handshake is about to begin leaves its transport as it is; to close
    the descriptor of that would make it the trouble of whoever is given the same number next."""
    hang_up(sock.fileno())
    try:
        loop.remove_reader(sock.fileno())
    except RuntimeError:
        return not loop.is_closed()
    return False


def _identity(sock: socket.socket) -> tuple[int, int] | None:
    """Return what distinguishes the socket behind a descriptor from all others; nothing when there is none.

    Cancelled in the wrong turn, uvloop closes the descriptor without the socket's knowledge, and the number may be
    somebody else's by the time that the socket closes it again."""
    try:
        status = os.fstat(sock.fileno())
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _has_ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    return (
        writer.is_closing()
        or _descriptor(writer) < 0
        or reader.exception() is not None
        or reader.at_eof()
    )


def _is_stuck(transport: asyncio.WriteTransport) -> bool:
    """Tell whether so much waits to be sent that the next user's `drain` would not return."""
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
    except AttributeError:  # asyncio's transport of a TLS stream that is closed
        return None


def _internals(reader: asyncio.StreamReader) -> Any:
    """The reader, for what nobody can ask it: whether it holds data."""
    return reader
