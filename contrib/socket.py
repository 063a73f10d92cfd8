"""TCP and TLS connections for the threading pool. Knows no protocol above them, so unsolicited data means that a
connection cannot be used again, unless `unsolicited_data` says otherwise."""

from __future__ import annotations

import contextlib
import math
import socket
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from ssl import SSLContext, SSLSession, SSLSocket
from typing import Generic

from gcp.contrib import _tls
from gcp.contrib._tcp import (
    ATTEMPT_DELAY,
    Address,
    HappyEyeballs,
    Hostname,
    IpAddress,
    KeepAlive,
    Port,
    SocketT,
    TcpEndpoint,
    TcpManager,
    check_endpoint,
    is_address,
    look_up,
)
from gcp.contrib._wire import (
    CLOSE_TIMEOUT,
    SocketManager,
    UnsolicitedData,
    deadline_in,
    is_alive,
    is_quiet,
    time_left,
    wait_writable,
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
    """Checks a socket by what there is to read, without sending anything.

    EOF, an error and unsolicited data all mean dead: the next user would take data that arrived before its first
    request for the response.

    :cvar unsolicited_data: ``'allowed'`` for a protocol in which the peer may send at any time: only EOF and errors
        mean dead then, also after data
    """

    unsolicited_data: UnsolicitedData = 'dead'

    def check_aliveness(self, endpoint: EndpointT, conn: socket.socket, timeout: float | None = None) -> bool:
        """Tell whether an idle socket can still be used.

        :param endpoint: its endpoint
        :param conn: the socket, in any blocking mode
        :param timeout: ignored: this does not wait
        """
        return is_alive(conn.fileno(), self.unsolicited_data)


class PlainSocketManager(
    SocketManager[socket.socket],
    SocketAlivenessCheckingMixin[EndpointT],
    BaseConnectionManager[EndpointT, socket.socket],
):
    """What the managers of TCP and of unix sockets share."""

    def on_acquire(self, endpoint: EndpointT, conn: socket.socket) -> None:
        """Remember the time-out and the blocking mode of a new connection.

        :param endpoint: its endpoint
        :param conn: the socket
        """
        self._remember_timeout(conn)

    def on_release(self, endpoint: EndpointT, conn: socket.socket) -> None:
        """Restore the time-out and the blocking mode, if the user changed them.

        :param endpoint: its endpoint
        :param conn: the socket
        """
        self._restore_timeout(conn)

    def mark_in_use(self, conn: socket.socket) -> None:
        """Do nothing: only TLS must know whether a connection is in use.

        :param conn: the socket
        """

    def mark_idle(self, conn: socket.socket) -> None:
        """Do nothing: only TLS must know whether a connection is in use.

        :param conn: the socket
        """

    def dispose(self, endpoint: EndpointT, conn: socket.socket, timeout: float | None = None) -> None:
        """Close a connection. A thread that waits on it returns at once.

        :param endpoint: its endpoint
        :param conn: the socket
        :param timeout: ignored: this does not wait
        """
        if not self._fork_guard.is_inherited(conn):
            with contextlib.suppress(OSError):  # disconnected already
                conn.shutdown(socket.SHUT_RDWR)
        conn.close()


class TcpSocketConnectionManager(TcpManager[socket.socket], PlainSocketManager[TcpEndpoint]):
    """Connects TCP sockets. An endpoint is a pair of a host (a name or an address) and a port.

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

    def create(self, endpoint: TcpEndpoint, timeout: float | None = None) -> socket.socket:
        """Connect to the first address of a host that accepts.

        :param endpoint: host and port
        :param timeout: how long it may take in all, seconds, including the name's look-up and all addresses tried;
            ``None``: no limit
        :raises TimeoutError: when it took longer
        :raises OSError: the error of the last address, or of the look-up
        :raises TypeError: when the endpoint is not a pair of host and port
        :raises ValueError: when the host or the port is impossible
        """
        host, port = check_endpoint(endpoint)
        sock = _connect(host, port, self._options.open, deadline_in(timeout))
        sock.settimeout(socket.getdefaulttimeout())
        self._fork_guard.record(sock)
        return sock


class SslSocketAlivenessCheckingMixin(Generic[EndpointT]):
    """Checks a TLS connection by what there is to read, without sending anything.

    EOF, an error, a close_notify and unsolicited data all mean dead. TLS's own messages, such as the session tickets
    that a TLS 1.3 server sends after the handshake, are not data.

    :cvar unsolicited_data: ``'allowed'`` for a protocol in which the peer may send at any time: only EOF and errors
        mean dead then, also after data. (A close_notify looks like data until it is read; the EOF after it is seen.)
    """

    unsolicited_data: UnsolicitedData = 'dead'

    def check_aliveness(self, endpoint: EndpointT, conn: SSLSocket, timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: its endpoint
        :param conn: the connection, in any blocking mode
        :param timeout: ignored: this does not wait
        """
        try:
            if self.unsolicited_data == 'allowed':
                return is_alive(conn.fileno(), 'allowed')
            return not conn.pending() and (is_quiet(conn.fileno()) or _tls.only_tls_messages(conn))
        except (OSError, ValueError):  # closed, or broken
            return False


class SslSocketConnectionManager(
    TcpManager[SSLSocket],
    SslSocketAlivenessCheckingMixin[SslEndpoint],
    BaseConnectionManager[SslEndpoint, SSLSocket],
):
    """Connects TLS over TCP. An endpoint is a pair of a host (a name or an address) and a port.

    :param ssl: the TLS context; ``None``: a default one, which verifies the peer's certificate and name
    :param server_hostname: the name to send (SNI) and to verify; ``None``: the endpoint's host
    :param alpn_protocols: protocols to offer, preferred first; set on the context, even if it is the caller's
    :param session_reuse: resume the last TLS session with the endpoint, which saves most of a handshake's cost
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
        ssl: SSLContext | None = None,
        *,
        server_hostname: str | None = None,
        alpn_protocols: Sequence[str] = (),
        session_reuse: bool = True,
        keepalive: KeepAlive | None = KeepAlive(),  # noqa: B008  # it is frozen
        nodelay: bool = True,
        source_address: tuple[str, Port] | None = None,
        unsolicited_data: UnsolicitedData | None = None,
        user_timeout: float | None = None,
    ) -> None:
        self._context = _tls.check_context(ssl, alpn_protocols)
        self._server_hostname = _tls.check_server_hostname(server_hostname)
        self._sessions = _tls.Sessions() if session_reuse else None
        super().__init__(
            keepalive=keepalive,
            nodelay=nodelay,
            source_address=source_address,
            unsolicited_data=unsolicited_data,
            user_timeout=user_timeout,
        )
        self._states: weakref.WeakKeyDictionary[SSLSocket, _tls.ConnectionState] = weakref.WeakKeyDictionary()

    def create(self, endpoint: SslEndpoint, timeout: float | None = None) -> SSLSocket:
        """Connect to the first address of a host that accepts, and do the TLS handshake. If that fails with the session
        of an earlier connection, which the server may refuse, connect once more without it.

        :param endpoint: host and port
        :param timeout: how long it may take in all, seconds, including the name's look-up, all addresses tried and
            the handshake; ``None``: no limit
        :raises TimeoutError: when it took longer
        :raises ssl.SSLError: when the handshake fails; `ssl.SSLCertVerificationError` when the certificate does not
            verify
        :raises OSError: the error of the last address, or of the look-up
        :raises TypeError: when the endpoint is not a pair of host and port
        :raises ValueError: when the host or the port is impossible
        """
        host, port = check_endpoint(endpoint)
        deadline = deadline_in(timeout)
        session = None if self._sessions is None else self._sessions.find((host, port))
        while True:
            conn = self._open(host, port, session, deadline)
            try:
                _tls.handshake(conn, deadline, f'TLS handshake with {host} port {port}')
                conn.settimeout(socket.getdefaulttimeout())
                break
            except BaseException as error:
                conn.close()
                if self._sessions is not None:
                    self._sessions.forget((host, port))
                if session is None or not _tls.may_be_refusal(error):
                    raise
                session = None  # the server may have refused it: try once more without
        if self._sessions is not None:
            self._sessions.keep((host, port), conn)
        self._fork_guard.record(conn)
        self._states[conn] = _tls.ConnectionState((host, port))
        return conn

    def _open(self, host: str, port: Port, session: SSLSession | None, deadline: float) -> SSLSocket:
        """Connect, without a handshake."""
        wrap = partial(
            self._context.wrap_socket,
            do_handshake_on_connect=False,
            server_hostname=self._server_hostname or _tls.certificate_name(host),
            session=session,
        )
        # wrapped before it is connected: if the peer resets the connection in between, wrapping it leaks the socket
        return _connect(host, port, lambda address: wrap(self._options.open(address)), deadline)

    def dispose(self, endpoint: SslEndpoint, conn: SSLSocket, timeout: float | None = None) -> None:
        """Close a connection. Sends close_notify, but does not wait for the peer's. One that is still in use in another
        thread is shut down without it: two threads in one TLS connection would corrupt memory.

        :param endpoint: its endpoint
        :param conn: the connection
        :param timeout: how long a peer that does not read may delay close_notify, seconds; ``None``: 2 seconds
        """
        if not self._fork_guard.is_inherited(conn):
            state = self._states.get(conn)
            if state is None or not state.in_use:
                self._keep_session(state, conn)
                with contextlib.suppress(OSError, ValueError):  # disconnected already
                    _tls.close_notify(conn, deadline_in(CLOSE_TIMEOUT if timeout is None else timeout))
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)
        conn.close()

    def check_aliveness(self, endpoint: SslEndpoint, conn: SSLSocket, timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used; if so, mark it as in use.

        :param endpoint: its endpoint
        :param conn: the connection, in any blocking mode
        :param timeout: ignored: this does not wait
        """
        alive = super().check_aliveness(endpoint, conn, timeout)
        if alive and (state := self._states.get(conn)) is not None:
            state.in_use = True
        return alive

    def on_acquire(self, endpoint: SslEndpoint, conn: SSLSocket) -> None:
        """Mark a connection as in use. Remember the time-out and the blocking mode of a new one.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        self._remember_timeout(conn)
        self.mark_in_use(conn)

    def on_release(self, endpoint: SslEndpoint, conn: SSLSocket) -> None:
        """Mark a connection as idle, keep its session, and restore its time-out and blocking mode.

        :param endpoint: its endpoint
        :param conn: the connection
        """
        self.mark_idle(conn)
        self._restore_timeout(conn)

    def mark_in_use(self, conn: SSLSocket) -> None:
        """Mark a connection as in use.

        :param conn: the connection
        """
        state = self._states.get(conn)
        if state is not None:
            state.in_use = True

    def mark_idle(self, conn: SSLSocket) -> None:
        """Mark a connection as idle, and keep its session: by now TLS 1.3 has read its tickets.

        :param conn: the connection
        """
        state = self._states.get(conn)
        if state is not None:
            state.in_use = False
            if not state.session_seen:
                state.session_seen = True
                self._keep_session(state, conn)

    def _keep_session(self, state: _tls.ConnectionState | None, conn: SSLSocket) -> None:
        if state is not None and self._sessions is not None:
            self._sessions.keep(state.endpoint, conn)


def _connect(
    host: str,
    port: Port,
    open_socket: Callable[[Address], SocketT],
    deadline: float,
) -> SocketT:
    """Return a socket that is connected to the first address that accepts, in non-blocking mode."""
    what = f'connection to {host} port {port}'
    addresses = _resolve(host, port, deadline)
    # with little time, an address that does not answer must leave some for the next ones
    delay = min(ATTEMPT_DELAY, time_left(deadline, what) / max(1, len(addresses)))
    with HappyEyeballs(addresses, open_socket, delay) as race:
        while (sock := race.advance()) is None:
            try:
                wait = min(race.next_attempt_in(), time_left(deadline, what))
            except TimeoutError as error:
                raise error from race.error
            wait_writable(race.attempts, wait)
        return sock


def _resolve(host: str, port: Port, deadline: float) -> list[Address]:
    if deadline == math.inf or is_address(host):
        return look_up(host, port)
    # getaddrinfo takes no time-out
    what = f'look-up of {host}'
    return within(time_left(deadline, what), partial(look_up, host, port), what=what, key=(look_up, host, port))
