"""Unix socket connections for the asyncio pool, as sockets and as streams. Knows no protocol above them."""

from __future__ import annotations

import asyncio
import socket

from gcp.contrib._unix import UnixSocketEndpoint, check_endpoint
from gcp.contrib.socket_async import PlainSocketManager, Stream, StreamManager, open_stream

__all__ = [
    'Stream',
    'UnixSocketConnectionManager',
    'UnixSocketEndpoint',
    'UnixSocketStreamConnectionManager',
]

#: How long to wait before the next attempt while the listener's backlog is full, seconds: at first, and at most.
BACKOFF, MAX_BACKOFF = 0.001, 0.05


class UnixSocketConnectionManager(PlainSocketManager[UnixSocketEndpoint]):
    """Connects non-blocking unix stream sockets, for `loop.sock_recv`, `loop.sock_sendall` and the like. An endpoint is
    a path (`str`, `bytes` or `pathlib.Path`), or, on Linux, an abstract name: a zero byte and up to 107 bytes, as in
    ``'\\0name'``. (``'@name'``, as some programs write it, is a file.)

    :param unsolicited_data: what data means that arrives while a connection is idle: ``'dead'`` or ``'allowed'``;
        ``None``: the class attribute of the same name decides
    :raises ValueError: for another value
    """

    async def create(self, endpoint: UnixSocketEndpoint) -> socket.socket:
        """Connect to a socket. Waits while its backlog is full.

        :param endpoint: its path or abstract name
        :raises OSError: when the socket does not exist or refuses
        :raises TypeError: when the endpoint is not a path
        :raises ValueError: when it cannot be an address
        """
        sock = await _connect(check_endpoint(endpoint))
        self._fork_guard.record(sock)
        return sock


class UnixSocketStreamConnectionManager(StreamManager[UnixSocketEndpoint]):
    """Connects streams over unix sockets. An endpoint is a path (`str`, `bytes` or `pathlib.Path`), or, on Linux, an
    abstract name: a zero byte and up to 107 bytes, as in ``'\\0name'``.

    :param unsolicited_data: what data means that arrives while a connection is idle: ``'dead'`` or ``'allowed'``;
        ``None``: the class attribute of the same name decides
    :raises ValueError: for another value
    """

    async def create(self, endpoint: UnixSocketEndpoint) -> Stream:
        """Connect to a socket. Waits while its backlog is full.

        :param endpoint: its path or abstract name
        :raises OSError: when the socket does not exist or refuses
        :raises TypeError: when the endpoint is not a path
        :raises ValueError: when it cannot be an address
        """
        stream = await open_stream(await _connect(check_endpoint(endpoint)), asyncio.open_unix_connection)
        self._fork_guard.record(stream[1])
        return stream


async def _connect(address: bytes) -> socket.socket:
    """Return a non-blocking socket that is connected.

    Not with `loop.sock_connect`: when the backlog is full, the socket is writable, and it takes that for connected.
    There is no event for room in the backlog, so this polls."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    backoff = BACKOFF
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(address)
                return sock
            except BlockingIOError:
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, MAX_BACKOFF)
    except BaseException:
        sock.close()
        raise
