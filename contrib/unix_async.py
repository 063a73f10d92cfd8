"""Unix socket connections for the asyncio pool, as sockets and as streams. Knows no protocol above."""

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

#: How long to wait before asking again for a place in a queue that is full: at first, and at most.
PAUSE, LONGEST_PAUSE = 0.001, 0.05


class UnixSocketConnectionManager(PlainSocketManager[UnixSocketEndpoint]):
    """Connects non-blocking unix stream sockets, for `loop.sock_recv`, `loop.sock_sendall` and the like. An endpoint is
    a path (`str`, `bytes` or `pathlib.Path`), or, on Linux, an abstract name: a zero byte and up to 107 bytes, as in
    ``'\\0name'``. (``'@name'``, as some programs write it, is a file.)

    :param unsolicited_data: what data means that came while nobody used the connection: ``'dead'`` or ``'allowed'``;
        ``None``: what the class says
    :raises ValueError: when it is neither
    """

    async def create(self, endpoint: UnixSocketEndpoint) -> socket.socket:
        """Connect to a socket. Waits where its queue is full.

        :param endpoint: its path or abstract name
        :raises OSError: when nobody listens there
        :raises TypeError: when the endpoint is none
        :raises ValueError: when it is impossible
        """
        sock = await _connect(check_endpoint(endpoint))
        self._births.record(sock)
        return sock


class UnixSocketStreamConnectionManager(StreamManager[UnixSocketEndpoint]):
    """Connects streams over unix sockets. An endpoint is a path (`str`, `bytes` or `pathlib.Path`), or, on Linux, an
    abstract name: a zero byte and up to 107 bytes, as in ``'\\0name'``.

    :param unsolicited_data: what data means that came while nobody used the connection: ``'dead'`` or ``'allowed'``;
        ``None``: what the class says
    :raises ValueError: when it is neither
    """

    async def create(self, endpoint: UnixSocketEndpoint) -> Stream:
        """Connect to a socket. Waits where its queue is full.

        :param endpoint: its path or abstract name
        :raises OSError: when nobody listens there
        :raises TypeError: when the endpoint is none
        :raises ValueError: when it is impossible
        """
        stream = await open_stream(await _connect(check_endpoint(endpoint)), asyncio.open_unix_connection)
        self._births.record(stream[1])
        return stream


async def _connect(address: bytes) -> socket.socket:
    """Return a non-blocking socket that is connected.

    Not by `loop.sock_connect`: where the queue is full, it takes the socket, which says that it is writable, for
    connected. Nothing tells when there is room, so one has to ask again."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    pause = PAUSE
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(address)
                return sock
            except BlockingIOError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
    except BaseException:
        sock.close()
        raise
