"""What the TCP managers of both fronts share: endpoints, addresses, socket options, which address is tried when.

Decides; never waits, except in `look_up`."""

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

from gcp.contrib._wire import SocketManager, UnsolicitedData, is_writable

__all__ = [
    'ATTEMPT_DELAY',
    'Address',
    'Hostname',
    'IpAddress',
    'KeepAlive',
    'Port',
    'Race',
    'SocketT',
    'TcpEndpoint',
    'TcpManager',
    'TcpOptions',
    'check_endpoint',
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

#: For how long an address is tried before the next is tried beside it: "Connection Attempt Delay" in RFC 8305.
ATTEMPT_DELAY = 0.25


@dataclasses.dataclass(frozen=True, slots=True)
class KeepAlive:
    """How the kernel finds out that the peer of an idle connection is gone without a word. It counts whole seconds, so
    parts of one are rounded up.

    :param idle: after how many seconds without traffic it begins to probe, to 32767
    :param interval: seconds between probes, to 32767
    :param count: how many probes go unanswered until the connection is dead, 1 to 127
    :raises TypeError: for one that is no number
    :raises ValueError: for one out of range
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
        """Turn it on for a socket, as far as the platform has it.

        :param sock: a TCP socket
        """
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        options = {
            'TCP_KEEPIDLE': math.ceil(self.idle),
            'TCP_KEEPALIVE': math.ceil(self.idle),  # the same, on macOS
            'TCP_KEEPINTVL': math.ceil(self.interval),
            'TCP_KEEPCNT': self.count,
        }
        for name, value in options.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class TcpOptions:
    """The sockets of a manager: what is set on each, and where it comes from.

    :param keepalive: probes of idle connections; ``None``: none
    :param nodelay: send small packets at once (``TCP_NODELAY``)
    :param source_address: an IP address of this host and a port (0: any) to connect from; ``None``: the kernel chooses
    :raises TypeError: for one of a wrong type
    :raises ValueError: for a source address that is none
    """

    def __init__(self, keepalive: KeepAlive | None, nodelay: bool, source_address: tuple[str, Port] | None) -> None:
        if keepalive is not None and not isinstance(keepalive, KeepAlive):
            raise TypeError(f'keepalive: a KeepAlive or None was expected, not {keepalive!r}')
        if not isinstance(nodelay, bool):
            raise TypeError(f'nodelay: a bool was expected, not {nodelay!r}')
        self._keepalive = keepalive
        self._nodelay = nodelay
        self._source = None if source_address is None else _check_source(source_address)

    def open(self, address: Address) -> socket.socket:
        """Return a new socket for an address, not connected, in non-blocking mode.

        :param address: as of `socket.getaddrinfo`
        :raises OSError: when that kind of address cannot be reached from here
        """
        family, kind, protocol, _, _ = address
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            self.set_delay(sock)
            if self._keepalive is not None:
                self._keepalive.apply(sock)
            if self._source is not None:
                sock.bind(self._local(family))
        except BaseException:
            sock.close()
            raise
        return sock

    def set_delay(self, sock: socket.socket) -> None:
        """Have small packets sent at once, or held back.

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
    ) -> None:
        super().__init__(unsolicited_data=unsolicited_data)
        self._options = TcpOptions(keepalive, nodelay, source_address)


class Race(Generic[SocketT]):
    """The attempts to connect to one of some addresses: RFC 8305, section 5. The first that succeeds wins.

    Families take turns, and an address that has not answered in a while gets company. To be used in a `with`, whose
    end closes the losers::

        with Race(addresses, options.open) as race:
            while (sock := race.step()) is None:
                ...  # wait until one of race.attempts is writable, for race.patience() seconds at most

    :param addresses: as of `socket.getaddrinfo`
    :param open_socket: makes a socket for an address, not connected, in non-blocking mode
    :param delay: for how long an address is tried before the next is tried beside it
    :ivar attempts: those under way
    :ivar error: what the last of those that failed met
    """

    def __init__(
            self,
            addresses: Sequence[Address],
            open_socket: Callable[[Address], SocketT],
            delay: float = ATTEMPT_DELAY,
    ) -> None:
        self._waiting = _interleaved(addresses)
        self._open = open_socket
        self._delay = delay
        self._due = -math.inf
        self.error: OSError | None = None
        self.attempts: dict[SocketT, Address] = {}

    def __enter__(self) -> Race[SocketT]:
        return self

    def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None,
    ) -> None:
        self.error = None  # else it and its traceback keep each other alive
        for sock in self.attempts:
            sock.close()

    def patience(self) -> float:
        """Return for how many seconds there is nothing to do, unless an attempt ends."""
        return max(0.0, self._due - time.monotonic()) if self._waiting else math.inf

    def step(self) -> SocketT | None:
        """Look what became of the attempts, and start those that are due.

        :return: the winner, connected and non-blocking; from now on it is the caller's
        :raises OSError: when all have failed: what the last one met
        """
        while True:
            winner = self._look()
            if winner is not None:
                return winner
            if self._waiting and (not self.attempts or time.monotonic() >= self._due):
                self._start(self._waiting.pop(0))
            elif self.attempts:
                return None
            else:
                raise self.error or OSError('no address found')

    def _look(self) -> SocketT | None:
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
        self.error = OSError(code, f'{os.strerror(code)}: {host} port {port}')  # of the class that belongs to the code


def check_endpoint(endpoint: TcpEndpoint) -> tuple[str, Port]:
    """Return an endpoint's host and port after a check.

    :param endpoint: what a user takes for one
    :raises TypeError: when it, or a part of it, is of a wrong type
    :raises ValueError: when a part of it is impossible
    """
    if not isinstance(endpoint, tuple) or len(endpoint) != 2:
        raise TypeError(f'endpoint: a (host, port) pair was expected, not {endpoint!r}')
    host, port = endpoint
    if not isinstance(host, (str, IPv4Address, IPv6Address)):
        raise TypeError(f'endpoint: a host name or an IP address was expected, not {host!r}')
    if host == '' or str(host)[0] == '[' or '\0' in str(host):  # the C library would stop at a zero byte
        raise ValueError(f'endpoint: a host name or an IP address without brackets was expected, not {host!r}')
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f'endpoint: a port number was expected, not {port!r}')
    if not 0 < port < 65536:
        raise ValueError(f'endpoint: a port number from 1 to 65535 was expected, not {port!r}')
    return str(host), port


def is_address(host: str) -> bool:
    """Tell whether a host is an IP address, whose look-up asks nobody."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def look_up(host: str, port: Port) -> list[Address]:
    """Return the addresses of a host. Waits for the resolver as long as that likes.

    :param host: a name or an address
    :param port: the port
    :raises socket.gaierror: when there are none, or nobody to ask
    :raises ValueError: when the host cannot be a name
    """
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise socket.gaierror(error.errno, f'{error.strerror}: {host!r}') from None
    except ValueError:  # not encodable: a label of more than 63 characters
        raise ValueError(f'endpoint: a host name was expected, not {host!r}') from None


def _check_source(source: object) -> tuple[str, Port]:
    expected = 'source_address: an (IP address, port) pair of this host, port 0 for any, was expected'
    if not isinstance(source, tuple) or len(source) != 2:
        raise TypeError(f'{expected}, not {source!r}')
    host, port = source
    if not isinstance(host, (str, IPv4Address, IPv6Address)) or not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f'{expected}, not {source!r}')
    if not is_address(str(host)) or not 0 <= port < 65536:
        raise ValueError(f'{expected}, not {source!r}')
    return str(host), port


def _interleaved(addresses: Sequence[Address]) -> list[Address]:
    """Return addresses with their families taking turns, the first one's first: RFC 8305, section 4."""
    families: dict[Any, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    turns = itertools.zip_longest(*families.values())
    return [address for turn in turns for address in turn if address is not None]
