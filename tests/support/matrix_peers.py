"""The peers of the matrix: servers that echo, and a proxy that does to a conversation whatever a test wants."""

from __future__ import annotations

import array
import contextlib
import fcntl
import queue
import selectors
import socket
import ssl
import struct
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme

Address = Any  # a (host, port) pair, or a path

CHUNK = 65536


class Identities:
    """Certificates for 127.0.0.1 and localhost: of an authority that clients trust, and of one that they do not."""

    def __init__(self, directory: Path) -> None:
        self._trusted, stranger = trustme.CA(), trustme.CA()
        self.sound, self.wrong = self._serving(self._trusted), self._serving(stranger)
        self.file = directory / 'authority.pem'
        self._trusted.cert_pem.write_to_path(self.file)

    def trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
        self._trusted.configure_trust(context)
        return context

    def _serving(self, authority: trustme.CA) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert('localhost', '127.0.0.1').configure_cert(context)
        return context


def echo(conn: socket.socket) -> None:
    """Say again what one is told."""
    while words := conn.recv(CHUNK):
        conn.sendall(words)


def http(conn: socket.socket) -> None:
    """Answer each request with two bytes."""
    heard = b''
    while words := conn.recv(CHUNK):
        heard += words
        while b'\r\n\r\n' in heard:
            heard = heard.partition(b'\r\n\r\n')[2]
            conn.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok')


class TcpServer:
    """Serves each connection in a thread.

    :param serve: the conversation
    :param context: speak TLS
    :param opening: what to say to a client's first words, before TLS begins
    """

    def __init__(
        self,
        serve: Callable[[Any], None],
        context: ssl.SSLContext | None = None,
        opening: bytes = b'',
    ) -> None:
        self._serve = serve
        self._context = context
        self._opening = opening
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=128)
        self.address: Address = self._listener.getsockname()

    def __enter__(self) -> TcpServer:
        threading.Thread(target=self._accept, name='server', daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # else an accept in progress goes on
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, _ = self._listener.accept()
                threading.Thread(target=self._converse, args=(conn,), name='conversation', daemon=True).start()

    def _converse(self, conn: socket.socket) -> None:
        with contextlib.suppress(OSError), conn:
            if self._opening:
                conn.recv(CHUNK)
                conn.sendall(self._opening)
            if self._context is None:
                self._serve(conn)
            else:
                with self._context.wrap_socket(conn, server_side=True) as secured:
                    self._serve(secured)


@dataclass(eq=False)
class Pair:
    """A conversation in the proxy's hands.

    :ivar replies: what to say to the client's next words
    """

    client: socket.socket
    server: socket.socket | None = None
    replies: list[bytes] = field(default_factory=list)


class Proxy:
    """Stands between clients and a server. New connections it treats as `mode` says, present ones as it is told.

    :param upstream: where the server is
    :param path: listen at this path, not at a TCP port
    :ivar mode: ``relay``; ``silent``; ``close`` or ``reset`` at once; ``talk``: give `replies`
    :ivar replies: what to say in ``talk``, one for each time that the client says something; an empty one closes the
        connection, right after the one before; after the last there is silence
    :ivar accepted: connections so far
    """

    def __init__(self, upstream: Address, path: Path | None = None) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=128) if path is None else _listen_at(path)
        self._listener.setblocking(False)
        self.address: Address = self._listener.getsockname()
        self.mode = 'relay'
        self.replies: Sequence[bytes] = ()
        self.accepted = 0
        self._pairs: dict[socket.socket, Pair] = {}
        self._hushed = False
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake, self._alarm = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, name='proxy', daemon=True)

    def __enter__(self) -> Proxy:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
        self._alarm.close()
        self._thread.join(60)
        for sock in (self._listener, self._wake):
            sock.close()
        self._selector.close()

    # --- what tests say ---

    def close(self) -> None:
        """Close all connections."""
        self._do(lambda: self._end_all(reset=False))

    def reset(self) -> None:
        """Reset all connections."""
        self._do(lambda: self._end_all(reset=True))

    def half_close(self) -> None:
        """Say no more to any client."""
        self._do(lambda: self._to_all(lambda pair: pair.client.shutdown(socket.SHUT_WR)))

    def say(self, words: bytes) -> None:
        """Tell all clients something that the server never said, and wait until it is there."""
        self._do(lambda: self._to_all(lambda pair: (pair.client.sendall(words), _await_delivery(pair.client))))

    def hush(self, hushed: bool = True) -> None:
        """Pass on nothing any more; or again."""
        self._do(lambda: setattr(self, '_hushed', hushed))

    @property
    def alive(self) -> int:
        """How many conversations there are."""
        return len(set(map(id, self._pairs.values())))

    # --- in the proxy's thread ---

    def _do(self, order: Callable[[], None]) -> None:
        done = threading.Event()
        self._orders.put(lambda: (order(), done.set())[0])  # type: ignore[func-returns-value]
        self._alarm.send(b'!')
        assert done.wait(10), 'the proxy is stuck'

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock: Any = key.fileobj
                if sock is self._listener:
                    self._admit_all()
                elif sock is not self._wake:
                    self._pass_on(sock)
                elif not sock.recv(1):
                    return
                else:
                    self._admit_all()  # an order concerns all that have connected
                    self._orders.get()()

    def _admit_all(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = self._listener.accept()
                client.setblocking(True)
                self._admit(client)

    def _admit(self, client: socket.socket) -> None:
        self.accepted += 1
        pair = Pair(client, replies=list(self.replies))
        if self.mode in ('close', 'reset'):
            self._end(pair, reset=self.mode == 'reset')
            return
        if self.mode == 'relay':
            pair.server = _connect(self._upstream)
            self._watch(pair.server, pair)
        self._watch(client, pair)

    def _watch(self, sock: socket.socket, pair: Pair) -> None:
        self._pairs[sock] = pair
        self._selector.register(sock, selectors.EVENT_READ)

    def _pass_on(self, sock: socket.socket) -> None:
        pair = self._pairs.get(sock)
        if pair is None:  # ended a moment ago
            return
        try:
            words = sock.recv(CHUNK)
        except OSError:
            words = b''
        if not words:
            self._end(pair)
        elif pair.server is None:
            self._reply(pair)
        elif not self._hushed:
            with contextlib.suppress(OSError):
                (pair.server if sock is pair.client else pair.client).sendall(words)

    def _reply(self, pair: Pair) -> None:
        if self.mode == 'talk' and pair.replies:
            pair.client.sendall(pair.replies.pop(0))
            if pair.replies[:1] == [b'']:
                self._end(pair)

    def _to_all(self, act: Callable[[Pair], object]) -> None:
        for pair in set(self._pairs.values()):
            with contextlib.suppress(OSError):
                act(pair)

    def _end_all(self, reset: bool) -> None:
        for pair in set(self._pairs.values()):
            self._end(pair, reset=reset)

    def _end(self, pair: Pair, reset: bool = False) -> None:
        if reset and pair.client.family != socket.AF_UNIX:
            pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        for sock in (pair.client, pair.server):
            if sock is not None:
                if self._pairs.pop(sock, None) is not None:
                    self._selector.unregister(sock)
                sock.close()


def _listen_at(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(128)
    return listener


def _connect(address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
    sock.connect(address)
    return sock


def _await_delivery(sock: socket.socket) -> None:
    """Wait until the other end's kernel has what was sent."""
    waiting = array.array('i', [1])
    while sock.family == socket.AF_INET and waiting[0]:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, waiting)


@contextlib.contextmanager
def deaf_path(path: Path) -> Iterator[str]:
    """Listen at a path and never accept; the queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(str(path))
        yield str(path)
