"""Unix socket connections for the threading pool. Knows no protocol above them."""

from __future__ import annotations

import contextlib
import math
import socket
import struct

from gcp.contrib._unix import UnixSocketEndpoint, check_endpoint, describe
from gcp.contrib._wire import deadline_in, time_left
from gcp.contrib.socket import PlainSocketManager
from gcp.contrib.socket import SocketAlivenessCheckingMixin as CheckSocketAlivenessMixin

__all__ = ['CheckSocketAlivenessMixin', 'UnixSocketConnectionManager', 'UnixSocketEndpoint']


class UnixSocketConnectionManager(PlainSocketManager[UnixSocketEndpoint]):
    """Connects unix stream sockets. An endpoint is a path (`str`, `bytes` or `pathlib.Path`), or, on Linux, an abstract
    name: a zero byte and up to 107 bytes, as in ``'\\0name'``. (``'@name'``, as some programs write it, is a file.)

    :param unsolicited_data: what data means that arrives while a connection is idle: ``'dead'`` or ``'allowed'``;
        ``None``: the class attribute of the same name decides
    :raises ValueError: for another value
    """

    def create(self, endpoint: UnixSocketEndpoint, timeout: float | None = None) -> socket.socket:
        """Connect to a socket.

        :param endpoint: its path or abstract name
        :param timeout: how long it may take, seconds, including the wait while the listener's backlog is full;
            ``None``: no limit
        :raises TimeoutError: when it took longer
        :raises OSError: when the socket does not exist or refuses
        :raises TypeError: when the endpoint is not a path
        :raises ValueError: when it cannot be an address
        """
        address = check_endpoint(endpoint)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _connect(sock, address, deadline_in(timeout))
            sock.settimeout(socket.getdefaulttimeout())
        except BaseException:
            sock.close()
            raise
        self._fork_guard.record(sock)
        return sock


def _connect(sock: socket.socket, address: bytes, deadline: float) -> None:
    """Connect with a time limit of the kernel's. (Python's time-out uses non-blocking mode, in which a full backlog is
    an error at once, and there is no way to wait for room.)"""
    sock.settimeout(None)
    while True:
        _limit(sock, time_left(deadline, f'connection to {describe(address)}'))
        with contextlib.suppress(BlockingIOError):  # timed out
            sock.connect(address)
            if _is_connected(sock):
                break
    _limit(sock, math.inf)


def _limit(sock: socket.socket, timeout: float) -> None:
    """Set how long a blocking send or connect may take, seconds."""
    microseconds = 0 if timeout == math.inf else math.ceil(timeout * 1e6)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('@ll', *divmod(microseconds, 1_000_000)))


def _is_connected(sock: socket.socket) -> bool:
    """Tell whether a connect that did not raise succeeded. One that a signal interrupted did not: a unix socket, unlike
    a TCP socket, does not go on connecting by itself."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
