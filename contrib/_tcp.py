"""What the TCP managers for threads and asyncio share: endpoints, socket options, and which address to try when.

Does not wait, except in `look_up`."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import TracebackType
from typing import Any, Generic, TypeVar
from urllib.parse import unquote

from gcp.contrib._wire import LONGEST_TIMEOUT, SocketManager, UnsolicitedData, is_writable

__all__ = [
    'ATTEMPT_DELAY',
    'Address',
    'HappyEyeballs',
    'Hostname',
    'IpAddress',
    'KeepAlive',
    'Port',
    'SocketT',
    'TcpEndpoint',
    'TcpManager',
    'TcpOptions',
    'check_endpoint',
    'decode_scope',
    'is_address',
    'look_up',
]

IpAddress = IPv4Address | IPv6Address
Hostname = str
Port = int
TcpEndpoint = tuple[str | IpAddress, Port]
SocketT = TypeVar('SocketT', bound=socket.socket)
ConnectionT = TypeVar('ConnectionT')
Address = tuple[Any, Any, int, str, Any]  # as of socket.getaddrinfo

#: How long to wait for an address before the next one is tried as well, seconds: RFC 8305's Connection Attempt Delay.
ATTEMPT_DELAY = 0.25


@dataclasses.dataclass(frozen=True, slots=True)
class KeepAlive:
    """TCP keepalive: how the kernel detects that the peer of an idle connection has vanished. The kernel counts whole
    seconds; fractions are rounded up.

    :param idle: seconds without traffic before the first probe, at most 32767
    :param interval: seconds between probes, at most 32767
    :param count: unanswered probes after which the connection is dead, 1 to 127
    :raises TypeError: for a value that is not a number
    :raises ValueError: for a number out of range
    """

    idle: float = 60.0
    interval: float = 15.0
    count: int = 4

    def __post_init__(self) -> None:
        for name in ('idle', 'interval'):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f'{name}: seconds were expected, not {value!r}')
            if not 0 < value <= 32767:
                raise ValueError(f'{name}: more than 0 and at most 32767 seconds were expected, not {value!r}')
        if isinstance(self.count, bool) or not isinstance(self.count, int):
            raise TypeError(f'count: a number of probes was expected, not {self.count!r}')
        if not 1 <= self.count <= 127:
            raise ValueError(f'count: a number of probes from 1 to 127 was expected, not {self.count!r}')

    def apply(self, sock: socket.socket) -> None:
        """Enable it on a socket, as far as the platform supports it.

        :param sock: a TCP socket
        """
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        options = {
            'TCP_KEEPIDLE': math.ceil(self.idle),
            'TCP_KEEPALIVE': math.ceil(self.idle),  # macOS's name of TCP_KEEPIDLE
            'TCP_KEEPINTVL': math.ceil(self.interval),
            'TCP_KEEPCNT': self.count,
        }
        for name, value in options.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class TcpOptions:
    """Opens the sockets of a manager with its options.

    :param keepalive: probes of idle connections; ``None``: none
    :param nodelay: send small packets at once (``TCP_NODELAY``)
    :param source_address: an IP address of this host and a port (0: any) to connect from; ``None``: the kernel chooses
    :param user_timeout: how long sent data may stay unacknowledged before the kernel breaks the connection, seconds;
        ``None``: the kernel's default
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for a source address that is not an address, or a time-out that is not more than 0
    """

    def __init__(
        self,
        keepalive: KeepAlive | None,
        nodelay: bool,
        source_address: tuple[str, Port] | None,
        user_timeout: float | None = None,
    ) -> None:
        if keepalive is not None and not isinstance(keepalive, KeepAlive):
            raise TypeError(f'keepalive: a KeepAlive or None was expected, not {keepalive!r}')
        if not isinstance(nodelay, bool):
            raise TypeError(f'nodelay: a bool was expected, not {nodelay!r}')
        self._keepalive = keepalive
        self._nodelay = nodelay
        self._user_timeout = _check_user_timeout(user_timeout)
        self._source = None if source_address is None else _check_source(source_address)

    def open(self, address: Address) -> socket.socket:
        """Return a new non-blocking socket for an address, not connected yet.

        :param address: a result of `socket.getaddrinfo`
        :raises OSError: when the host does not support this family of addresses
        """
        family, kind, protocol, _, _ = address
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            self.set_delay(sock)
            if self._keepalive is not None:
                self._keepalive.apply(sock)
            if self._user_timeout is not None and hasattr(socket, 'TCP_USER_TIMEOUT'):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._user_timeout)
            if self._source is not None:
                sock.bind(self._local(family))
        except BaseException:
            sock.close()
            raise
        return sock

    def set_delay(self, sock: socket.socket) -> None:
        """Set ``TCP_NODELAY``.

        :param sock: a TCP socket
        """
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, self._nodelay)

    def _local(self, family: int) -> Any:
        assert self._source is not None
        host, port = self._source
        try:
            return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)[0][4]
        except socket.gaierror:
            raise OSError(errno.EADDRNOTAVAIL, f'source_address {host} is of another family than the host') from None


class TcpManager(SocketManager[ConnectionT]):
    """The arguments that all managers of TCP sockets share.

    :param keepalive: how the kernel finds out that an idle peer has vanished; ``None``: no keepalive
    :param nodelay: send small packets at once (``TCP_NODELAY``)
    :param source_address: an IP address of this host and a port (0: any) to connect from; ``None``: the kernel chooses
    :param unsolicited_data: see `SocketManager`
    :param user_timeout: see `TcpOptions`
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for an argument with an impossible value
    """

    def __init__(
        self,
        *,
        keepalive: KeepAlive | None = KeepAlive(),  # it is frozen
        nodelay: bool = True,
        source_address: tuple[str, Port] | None = None,
        unsolicited_data: UnsolicitedData | None = None,
        user_timeout: float | None = None,
    ) -> None:
        super().__init__(unsolicited_data=unsolicited_data)
        self._options = TcpOptions(keepalive, nodelay, source_address, user_timeout)


class HappyEyeballs(Generic[SocketT]):
    """Attempts to connect to several addresses of a host, after RFC 8305, section 5. The first to succeed wins.

    Address families alternate. When an address has not answered within the delay, the next is tried as well. The `with`
    statement closes the attempts that did not win::

        with HappyEyeballs(addresses, options.open) as race:
            while (sock := race.advance()) is None:
                ...  # wait until one of race.attempts is writable, for race.next_attempt_in() seconds at most

    :param addresses: the result of `socket.getaddrinfo`
    :param open_socket: returns a non-blocking socket for an address, not connected
    :param delay: how long to wait for an address before the next one is tried as well, seconds
    :ivar attempts: the sockets that are connecting, and their addresses
    :ivar error: the error of the last attempt that failed
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        open_socket: Callable[[Address], SocketT],
        delay: float = ATTEMPT_DELAY,
    ) -> None:
        self._untried = _interleaved(addresses)
        self._open = open_socket
        self._delay = delay
        self._due = -math.inf
        self.error: OSError | None = None
        self.attempts: dict[SocketT, Address] = {}

    def __enter__(self) -> HappyEyeballs[SocketT]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.error = None  # else the error, its traceback and this object form a reference cycle
        for sock in self.attempts:
            sock.close()

    def next_attempt_in(self) -> float:
        """Return after how many seconds the next attempt is due."""
        return max(0.0, self._due - time.monotonic()) if self._untried else math.inf

    def advance(self) -> SocketT | None:
        """Check the attempts, and start those that are due.

        :return: the first connected socket, non-blocking, now owned by the caller; ``None``: none yet
        :raises OSError: when all have failed: the error of the last one
        """
        while True:
            winner = self._finished_attempt()
            if winner is not None:
                return winner
            if self._untried and (not self.attempts or time.monotonic() >= self._due):
                self._start(self._untried.pop(0))
            elif self.attempts:
                return None
            else:
                raise self.error or OSError('no address found')

    def _finished_attempt(self) -> SocketT | None:
        for sock in [sock for sock in self.attempts if is_writable(sock.fileno())]:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                del self.attempts[sock]
                return sock
            self._fail(sock, code)
        return None

    def _start(self, address: Address) -> None:
        self._due = time.monotonic() + self._delay
        try:
            sock = self._open(address)
        except OSError as error:
            self.error = error
            return
        self.attempts[sock] = address
        code = sock.connect_ex(address[4])
        if code not in (0, errno.EINPROGRESS):
            self._fail(sock, code)

    def _fail(self, sock: SocketT, code: int) -> None:
        host, port, *_ = self.attempts.pop(sock)[4]
        sock.close()
        self.error = OSError(code, f'{os.strerror(code)}: {host} port {port}')  # becomes the subclass for the code


def check_endpoint(endpoint: TcpEndpoint) -> tuple[str, Port]:
    """Check an endpoint and return its host and port.

    :param endpoint: what the user passed
    :raises TypeError: when it, or a part of it, has the wrong type
    :raises ValueError: when the host or the port is impossible
    """
    if not isinstance(endpoint, tuple) or len(endpoint) != 2:
        raise TypeError(f'endpoint: a (host, port) pair was expected, not {endpoint!r}')
    host, port = endpoint
    if not isinstance(host, (str, IPv4Address, IPv6Address)):
        raise TypeError(f'endpoint: a host name or an IP address was expected, not {host!r}')
    if host == '' or str(host)[0] == '[' or '\0' in str(host):  # the C library would ignore what follows a zero byte
        raise ValueError(f'endpoint: a host name or an IP address without brackets was expected, not {host!r}')
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f'endpoint: a port number was expected, not {port!r}')
    if not 0 < port < 65536:
        raise ValueError(f'endpoint: a port number from 1 to 65535 was expected, not {port!r}')
    return _decode_scope_of_address(str(host)), port


def is_address(host: str) -> bool:
    """Tell whether a host is an IP address, which needs no look-up."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def decode_scope(host: str) -> str:
    """Return a host of a URL with the scope of an IPv6 address as the system takes it, ``'fe80::1%eth0'``, whether the
    URL writes ``%25eth0`` (RFC 6874) or ``%eth0``.

    :param host: a name or an address
    """
    address, mark, scope = host.partition('%')
    if not mark or not is_address(address):
        return host
    return f'{address}%{unquote(scope[2:])}' if scope[:2] == '25' and scope != '25' else host


def _decode_scope_of_address(host: str) -> str:
    """Return a host that was not given in a URL with its scope decoded, unless that is the number of an interface."""
    return host if host.partition('%')[2].isdigit() else decode_scope(host)


def look_up(host: str, port: Port) -> list[Address]:
    """Return the addresses of a host. Blocks until the resolver answers, without a limit.

    :param host: a name or an address
    :param port: the port
    :raises socket.gaierror: when there are none, or no resolver answers
    :raises ValueError: when the host cannot be a name
    """
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise socket.gaierror(error.errno, f'{error.strerror}: {host!r}') from None
    except ValueError:  # not encodable: a label of more than 63 characters
        raise ValueError(f'endpoint: a host name was expected, not {host!r}') from None


def _check_user_timeout(timeout: object) -> int | None:
    """Check the argument `user_timeout` and return it as the kernel takes it, in milliseconds."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f'user_timeout: seconds were expected, not {timeout!r}')
    if not timeout > 0:
        raise ValueError(f'user_timeout: more than 0 seconds were expected, not {timeout!r}')
    return math.ceil(min(timeout, LONGEST_TIMEOUT) * 1000)


def _check_source(source: object) -> tuple[str, Port]:
    expected = 'source_address: an (IP address, port) pair of this host, port 0 for any, was expected'
    if not isinstance(source, tuple) or len(source) != 2:
        raise TypeError(f'{expected}, not {source!r}')
    host, port = source
    if not isinstance(host, (str, IPv4Address, IPv6Address)) or not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f'{expected}, not {source!r}')
    if not is_address(str(host)) or not 0 <= port < 65536:
        raise ValueError(f'{expected}, not {source!r}')
    return _decode_scope_of_address(str(host)), port


def _interleaved(addresses: Sequence[Address]) -> list[Address]:
    """Return addresses with their families alternating, beginning with the first one's: RFC 8305, section 4."""
    families: dict[Any, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    turns = itertools.zip_longest(*families.values())
    return [address for turn in turns for address in turn if address is not None]
