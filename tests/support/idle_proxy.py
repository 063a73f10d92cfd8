"""A TCP proxy that drops connections which were idle for a while, as firewalls do, before a server that answers each
byte with itself. A program of its own, so that it takes no time from the pool that is tested: it writes the port to its
standard output, ends with its standard input, and writes then how many connections it has dropped."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

SWEEP = 0.02
"""How often the proxy looks for idle connections, seconds."""


def raise_limit() -> int:
    """Allow this process as many descriptors as it may have. Returns how many those are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Behind:
    """What a proxy has done.

    :ivar endpoint: where it listens
    :ivar dropped: how many connections it has dropped, once it has ended
    """

    def __init__(self, port: int) -> None:
        self.endpoint = ('127.0.0.1', port)
        self.dropped = 0


@contextlib.contextmanager
def idle_proxy(seconds: float) -> Iterator[Behind]:
    """Run the proxy.

    :param seconds: how long a connection may be idle
    """
    with subprocess.Popen(
        [sys.executable, __file__, str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        behind = Behind(int(process.stdout.readline()))
        try:
            yield behind
        finally:
            process.stdin.close()
            behind.dropped = int(process.stdout.readline())


class Proxy:
    """The proxy, and the server behind it.

    :param seconds: how long a connection may be idle
    """

    def __init__(self, seconds: float) -> None:
        self.dropped = 0
        self._seconds = seconds
        self._selector = selectors.DefaultSelector()
        self._server = socket.create_server(('127.0.0.1', 0), backlog=4096)
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=4096)
        self._peer: dict[socket.socket, socket.socket] = {}
        self._clients: dict[socket.socket, float] = {}  # when each was used last
        self._selector.register(self._server, selectors.EVENT_READ, self._serve)
        self._selector.register(self._listener, selectors.EVENT_READ, self._admit)
        self._selector.register(sys.stdin, selectors.EVENT_READ, None)

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def run(self) -> None:
        """Serve until the standard input ends."""
        sweep = time.monotonic()
        while True:
            ready = self._selector.select(SWEEP)
            for key, _ in ready:
                if key.data is None:
                    return
                if key.fileobj in self._selector.get_map():
                    key.data(key.fileobj)
            if time.monotonic() - sweep > SWEEP:
                sweep = time.monotonic()
                self._drop_idle()

    def _drop_idle(self) -> None:
        limit = time.monotonic() - self._seconds
        for client, used in list(self._clients.items()):
            if used < limit:
                self.dropped += 1
                self._close(client)

    def _serve(self, server: socket.socket) -> None:
        self._selector.register(server.accept()[0], selectors.EVENT_READ, self._echo)

    def _echo(self, sock: socket.socket) -> None:
        data = sock.recv(1024)
        if data:
            sock.sendall(data)
        else:
            self._selector.unregister(sock)
            sock.close()

    def _admit(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        server = socket.create_connection(self._server.getsockname())
        self._peer |= {client: server, server: client}
        self._clients[client] = time.monotonic()
        for sock in (client, server):
            self._selector.register(sock, selectors.EVENT_READ, self._pass_on)

    def _pass_on(self, sock: socket.socket) -> None:
        peer = self._peer[sock]
        try:
            data = sock.recv(1024)
            peer.sendall(data)
        except OSError:
            data = b''
        if not data:
            self._close(sock)
            return
        self._clients[sock if sock in self._clients else peer] = time.monotonic()

    def _close(self, sock: socket.socket) -> None:
        for each in (sock, self._peer[sock]):
            self._selector.unregister(each)
            self._clients.pop(each, None)
            del self._peer[each]
            each.close()


def main(seconds: Any) -> None:
    """Run the proxy in this process."""
    raise_limit()
    proxy = Proxy(float(seconds))
    print(proxy.port, flush=True)
    proxy.run()
    print(proxy.dropped, flush=True)


if __name__ == '__main__':
    assert threading.active_count() == 1
    main(*sys.argv[1:])
