"""TCP connections for the threading pool. Knows no protocol: to it, bytes that nobody asked for are a fault."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Generic

from gcp.contrib._wire import is_quiet, within
from gcp.threading import BaseConnectionManager, EndpointT

__all__ = ['IpAddress', 'Port', 'SocketAlivenessCheckingMixin', 'TcpEndpoint', 'TcpSocketConnectionManager']

IpAddress = IPv4Address | IPv6Address
Port = int
TcpEndpoint = tuple[str | IpAddress, Port]
Address = tuple[Any, Any, int, str, Any]  # as of socket.getaddrinfo


class SocketAlivenessCheckingMixin(Generic[EndpointT]):
    """Tells a socket's aliveness from what waits to be read on it, without a packet sent.

    EOF, an error and unexpected data all mean dead: data that came while nobody used the connection would be taken for
    the answer to the next caller's first question."""

    def check_aliveness(self, endpoint: EndpointT, conn: socket.socket, timeout: float | None = None) -> bool:
        """Tell whether an idle socket can still be used.

        :param endpoint: what it is connected to
        :param conn: the socket, in whatever blocking mode
        :param timeout: not needed: this never waits
        """
        try:
            return is_quiet(conn.fileno())
        except ValueError:  # closed
            return False


class TcpSocketConnectionManager(
    SocketAlivenessCheckingMixin[TcpEndpoint],
    BaseConnectionManager[TcpEndpoint, socket.socket],
):
    """Connects TCP sockets. An endpoint is a pair of a host (a name or an address) and a port."""

    def create(self, endpoint: TcpEndpoint, timeout: float | None = None) -> socket.socket:
        """Connect to the first address of a host that accepts.

        :param endpoint: host and port
        :param timeout: how long it may take in all, the look-up of the name and all addresses tried included;
            ``None``: no limit
        :return: a socket with ``TCP_NODELAY`` set
        :raises TimeoutError: when it took longer
        :raises OSError: what the last address answered, or the look-up
        """
        host, port = _checked(endpoint)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        addresses = _resolve(host, port, deadline)
        error: OSError | None = None
        try:
            for tried, address in enumerate(addresses):
                try:
                    # an even share of what is left, so that a silent address leaves time for those after it
                    return _connect(address, (deadline - time.monotonic()) / (len(addresses) - tried))
                except OSError as exc:
                    error = exc
            if isinstance(error, TimeoutError):
                raise TimeoutError(f'no connection to {host} port {port} in time') from error
            raise error or OSError(f'no address of {host} found')
        finally:
            del error  # else it and its traceback keep each other alive

    def dispose(self, endpoint: TcpEndpoint, conn: socket.socket, timeout: float | None = None) -> None:
        """Close a connection, also in the hands of another thread that waits on it.

        :param endpoint: what it is connected to
        :param conn: the socket
        :param timeout: not needed: this never waits
        """
        with contextlib.suppress(OSError):  # dead already
            conn.shutdown(socket.SHUT_RDWR)
        conn.close()


def _checked(endpoint: TcpEndpoint) -> tuple[str, Port]:
    if not isinstance(endpoint, tuple) or len(endpoint) != 2:
        raise TypeError(f'endpoint: a (host, port) pair was expected, not {endpoint!r}')
    host, port = endpoint
    if not isinstance(host, (str, IPv4Address, IPv6Address)):
        raise TypeError(f'endpoint: a host name or an IP address was expected, not {host!r}')
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f'endpoint: a port number was expected, not {port!r}')
    if not 0 < port < 65536:
        raise ValueError(f'endpoint: a port number from 1 to 65535 was expected, not {port!r}')
    return str(host), port


def _resolve(host: str, port: Port, deadline: float) -> list[Address]:
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    if deadline == math.inf or _is_address(host):
        return look_up()
    # the resolver knows no deadline of ours
    return within(deadline - time.monotonic(), look_up, what=f'look-up of {host}')


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _connect(address: Address, timeout: float) -> socket.socket:
    family, kind, protocol, _, target = address
    if timeout <= 0:  # to a socket, 0 would mean: do not wait, and be neither connected nor refused
        raise TimeoutError('no time left')
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        usual = sock.gettimeout()
        sock.settimeout(None if timeout == math.inf else timeout)
        sock.connect(target)
        sock.settimeout(usual)
    except BaseException:
        sock.close()
        raise
    return sock
