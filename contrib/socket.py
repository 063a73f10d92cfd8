"""TCP and TLS connections for the threading pool. Knows no protocol above: to it, bytes that nobody asked for are a
fault, unless it is told otherwise."""

from __future__ import annotations

import contextlib
import math
import socket
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from ssl import SSLContext, SSLSocket
from typing import Generic

from gcp.contrib import _tls
from gcp.contrib._tcp import (
    ATTEMPT_DELAY,
    Address,
    Hostname,
    IpAddress,
    KeepAlive,
    Port,
    Race,
    SocketT,
    TcpEndpoint,
    TcpManager,
    check_endpoint,
    is_address,
    look_up,
)
from gcp.contrib._wire import (
    GOODBYE_TIMEOUT,
    SocketManager,
    UnsolicitedData,
    await_any,
    deadline_in,
    is_alive,
    is_quiet,
    time_left,
    within,
)
from gcp.threading import BaseConnectionManager, EndpointT

__all__ = [
    'Hostname',
    'IpAddress',
    'KeepAlive',
    'Port',
    'SocketAlivenessCheckingMixin',
    'SslEndpoint',
    'SslSocketAlivenessCheckingMixin',
    'SslSocketConnectionManager',
    'TcpEndpoint',
    'TcpSocketConnectionManager',
]

SslEndpoint = TcpEndpoint


class SocketAlivenessCheckingMixin(Generic[EndpointT]):
    """Tells a socket's aliveness from what waits to be read on it, without a packet sent.

    EOF, an error and unexpected data all mean dead: data that came while nobody used the connection would be taken for
    the answer to the next caller's first question.

    :cvar unsolicited_data: ``'allowed'`` where the protocol lets the peer speak unasked: then only EOF and errors mean
        dead, also behind data
    """

    unsolicited_data: UnsolicitedData = 'dead'

    def check_aliveness(self, endpoint: EndpointT, conn: socket.socket, timeout: float | None = None) -> bool:
        """Tell whether an idle socket can still be used.

        :param endpoint: what it is connected to
        :param conn: the socket, in whatever blocking mode
        :param timeout: not needed: this never waits
        """
        return is_alive(conn.fileno(), self.unsolicited_data)


class PlainSocketManager(
    SocketManager[socket.socket],
    SocketAlivenessCheckingMixin[EndpointT],
    BaseConnectionManager[EndpointT, socket.socket],
):
    """What the managers of TCP and of unix sockets share."""

    def dispose(self, endpoint: EndpointT, conn: socket.socket, timeout: float | None = None) -> None:
        """Close a connection, also in the hands of another thread that waits on it.

        :param endpoint: what it is connected to
        :param conn: the socket
        :param timeout: not needed: this never waits
        """
        if self._births.was_here(conn):
            with contextlib.suppress(OSError):  # dead already
                conn.shutdown(socket.SHUT_RDWR)
        conn.close()


class TcpSocketConnectionManager(TcpManager[socket.socket], PlainSocketManager[TcpEndpoint]):
    """Connects TCP sockets. An endpoint is a pair of a host (a name or an address) and a port.

    :param keepalive: how the kernel finds out that an idle peer is gone without a word; ``None``: not at all
    :param nodelay: send small packets at once (``TCP_NODELAY``)
    :param source_address: an IP address of this host and a port (0: any) to connect from; ``None``: the kernel chooses
    :param unsolicited_data: what data means that came while nobody used the connection: ``'dead'`` or ``'allowed'``;
        ``None``: what the class says
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for one that is impossible
    """

    def create(self, endpoint: TcpEndpoint, timeout: float | None = None) -> socket.socket:
        """Connect to the first address of a host that accepts.

        :param endpoint: host and port
        :param timeout: how long it may take in all, the look-up of the name and all addresses tried included;
            ``None``: no limit
        :raises TimeoutError: when it took longer
        :raises OSError: what the last address answered, or the look-up
        :raises TypeError: when the endpoint is none
        :raises ValueError: when a part of it is impossible
        """
        host, port = check_endpoint(endpoint)
        sock = _connect(host, port, self._options.open, deadline_in(timeout))
        sock.settimeout(socket.getdefaulttimeout())
        self._births.record(sock)
        return sock


class SslSocketAlivenessCheckingMixin(Generic[EndpointT]):
    """Tells a TLS connection's aliveness from what waits to be read on it, without a packet sent.

    EOF, an error, the peer's close_notify and unexpected data all mean dead. What TLS tells itself, such as the session
    tickets that a TLS 1.3 server sends after the handshake, is not data.

    :cvar unsolicited_data: ``'allowed'`` where the protocol lets the peer speak unasked: then only EOF and errors mean
        dead, also behind data. (A close_notify looks like data until it is read; the EOF behind it is seen.)
    """

    unsolicited_data: UnsolicitedData = 'dead'

    def check_aliveness(self, endpoint: EndpointT, conn: SSLSocket, timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: what it is connected to
        :param conn: the connection, in whatever blocking mode
        :param timeout: not needed: this never waits
        """
        try:
            if self.unsolicited_data == 'allowed':
                return is_alive(conn.fileno(), 'allowed')
            return not conn.pending() and (is_quiet(conn.fileno()) or _tls.heard_no_data(conn))
        except (OSError, ValueError):  # closed, or broken
            return False


class SslSocketConnectionManager(
    TcpManager[SSLSocket],
    SslSocketAlivenessCheckingMixin[SslEndpoint],
    BaseConnectionManager[SslEndpoint, SSLSocket],
):
    """Connects TLS over TCP. An endpoint is a pair of a host (a name or an address) and a port.

    :param ssl: what is trusted and spoken; ``None``: a default context, which verifies the peer's certificate and name
    :param server_hostname: the name to ask for (SNI) and to verify; ``None``: the endpoint's host
    :param alpn_protocols: protocols to offer, best first; set on the context, also on one that was given
    :param session_reuse: resume the last TLS session with the endpoint, which saves most of a handshake's work
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
            ssl: SSLContext | None = None,
            *,
            server_hostname: str | None = None,
            alpn_protocols: Sequence[str] = (),
            session_reuse: bool = True,
            keepalive: KeepAlive | None = KeepAlive(),  # noqa: B008  # it is frozen
            nodelay: bool = True,
            source_address: tuple[str, Port] | None = None,
            unsolicited_data: UnsolicitedData | None = None,
    ) -> None:
        self._context = _tls.check_context(ssl, alpn_protocols)
        self._server_hostname = _tls.check_server_hostname(server_hostname)
        self._sessions = _tls.Sessions() if session_reuse else None
        super().__init__(
            keepalive=keepalive, nodelay=nodelay, source_address=source_address, unsolicited_data=unsolicited_data)
        self._standings: weakref.WeakKeyDictionary[SSLSocket, _tls.Standing] = weakref.WeakKeyDictionary()

    def create(self, endpoint: SslEndpoint, timeout: float | None = None) -> SSLSocket:
        """Connect to the first address of a host that accepts, and shake hands.

        :param endpoint: host and port
        :param timeout: how long it may take in all, the look-up of the name, all addresses tried and the handshake
            included; ``None``: no limit
        :raises TimeoutError: when it took longer
        :raises ssl.SSLError: when the handshake fails, `ssl.SSLCertVerificationError` when the peer is not who it ought
            to be
        :raises OSError: what the last address answered, or the look-up
        :raises TypeError: when the endpoint is none
        :raises ValueError: when a part of it is impossible
        """
        host, port = check_endpoint(endpoint)
        deadline = deadline_in(timeout)
        wrap = partial(
            self._context.wrap_socket,
            do_handshake_on_connect=False,
            server_hostname=self._server_hostname or _tls.name_of(host),
            session=None if self._sessions is None else self._sessions.find((host, port)),
        )
        # wrapped before it is connected: a peer that resets the connection in between makes the wrapping leak it
        conn = _connect(host, port, lambda address: wrap(self._options.open(address)), deadline)
        try:
            _tls.shake_hands(conn, deadline, f'TLS handshake with {host} port {port}')
            conn.settimeout(socket.getdefaulttimeout())
        except BaseException:
            conn.close()
            if self._sessions is not None:
                self._sessions.forget((host, port))
            raise
        if self._sessions is not None:
            self._sessions.keep((host, port), conn)
        self._births.record(conn)
        self._standings[conn] = _tls.Standing((host, port))
        return conn

    def dispose(self, endpoint: SslEndpoint, conn: SSLSocket, timeout: float | None = None) -> None:
        """Close a connection. Says goodbye (close_notify), but does not wait for the peer's. One that somebody still
        uses, in another thread, is broken off: two threads in one TLS connection would corrupt memory.

        :param endpoint: what it is connected to
        :param conn: the connection
        :param timeout: how long a peer that takes nothing in may hold up the goodbye; ``None``: 2 seconds
        """
        if self._births.was_here(conn):
            standing = self._standings.get(conn)
            if standing is None or not standing.in_use:
                self._keep_session(standing, conn)
                with contextlib.suppress(OSError, ValueError):  # dead already
                    _tls.say_goodbye(conn, deadline_in(GOODBYE_TIMEOUT if timeout is None else timeout))
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)
        conn.close()

    def check_aliveness(self, endpoint: SslEndpoint, conn: SSLSocket, timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used; if so, somebody is about to.

        :param endpoint: what it is connected to
        :param conn: the connection, in whatever blocking mode
        :param timeout: not needed: this never waits
        """
        alive = super().check_aliveness(endpoint, conn, timeout)
        if alive and (standing := self._standings.get(conn)) is not None:
            standing.in_use = True
        return alive

    def on_acquire(self, endpoint: SslEndpoint, conn: SSLSocket) -> None:
        """Take note that somebody uses a connection.

        :param endpoint: what it is connected to
        :param conn: the connection
        """
        standing = self._standings.get(conn)
        if standing is not None:
            standing.in_use = True

    def on_release(self, endpoint: SslEndpoint, conn: SSLSocket) -> None:
        """Take note that nobody uses a connection, and of its session: by now TLS 1.3 has read its tickets.

        :param endpoint: what it is connected to
        :param conn: the connection
        """
        standing = self._standings.get(conn)
        if standing is not None:
            standing.in_use = False
            if not standing.session_seen:
                standing.session_seen = True
                self._keep_session(standing, conn)

    def _keep_session(self, standing: _tls.Standing | None, conn: SSLSocket) -> None:
        if standing is not None and self._sessions is not None:
            self._sessions.keep(standing.endpoint, conn)


def _connect(
        host: str, port: Port, open_socket: Callable[[Address], SocketT], deadline: float,
) -> SocketT:
    """Return a socket that is connected to the first address that accepts, in non-blocking mode."""
    what = f'connection to {host} port {port}'
    addresses = _resolve(host, port, deadline)
    # with little time, an address that is silent must leave some for those after it
    delay = min(ATTEMPT_DELAY, time_left(deadline, what) / max(1, len(addresses)))
    with Race(addresses, open_socket, delay) as race:
        while (sock := race.step()) is None:
            try:
                wait = min(race.patience(), time_left(deadline, what))
            except TimeoutError as error:
                raise error from race.error
            await_any(race.attempts, wait)
        return sock


def _resolve(host: str, port: Port, deadline: float) -> list[Address]:
    if deadline == math.inf or is_address(host):
        return look_up(host, port)
    # the resolver knows no deadline of ours
    what = f'look-up of {host}'
    return within(time_left(deadline, what), partial(look_up, host, port), what=what)
