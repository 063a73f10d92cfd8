"""HTTP servers for the manager's tests: the standard library's, plain or over TLS, and one that plays a script."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import trustme


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self) -> None:
        size = int(self.headers.get('Content-Length') or 0)
        body = self.rfile.read(size)
        getattr(self, 'answer_' + self.path.strip('/').replace('-', '_'))(body)

    do_POST = do_HEAD = do_GET  # noqa: N815  # http.server's names

    def answer_peer(self, body: bytes) -> None:
        self._answer(str(self.client_address[1]).encode())

    def answer_echo(self, body: bytes) -> None:
        self._answer(body)

    def answer_large(self, body: bytes) -> None:
        self._answer(b'x' * 100_000)

    def answer_chunked(self, body: bytes) -> None:
        self._begin(200, {'Transfer-Encoding': 'chunked', 'Trailer': 'Sum'})
        if self.command != 'HEAD':
            self.wfile.write(b'3\r\nabc\r\n2\r\nde\r\n0\r\nSum: 5\r\n\r\n')

    def answer_nothing(self, body: bytes) -> None:
        self._begin(204, {})

    def answer_not_modified(self, body: bytes) -> None:
        self._begin(304, {'Content-Length': '5'})

    def answer_close(self, body: bytes) -> None:
        self._answer(b'bye', {'Connection': 'close'})

    def answer_briefly(self, body: bytes) -> None:
        self._answer(b'', {'Keep-Alive': 'timeout=0, max=5'})

    def answer_patiently(self, body: bytes) -> None:
        self._answer(b'', {'Keep-Alive': 'timeout=60'})

    def _answer(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._begin(200, {'Content-Length': str(len(body)), **(headers or {})})
        if self.command != 'HEAD':
            self.wfile.write(body)

    def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        pass  # clients of these tests break off as they like


@contextlib.contextmanager
def http_server(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve on a port."""
    with Server(('127.0.0.1', 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name='http', daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(60)


def contexts(*names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for these names, and a client's that trusts it."""
    authority = trustme.CA()
    serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(*names).configure_cert(serving)
    authority.configure_trust(trusting)
    return serving, trusting


class Scripted:
    """A server that answers each request of a connection with the next words of its script, whatever was asked."""

    def __init__(self, *script: bytes | str) -> None:
        self._script = script
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=128)
        self.origin = f'http://127.0.0.1:{self._listener.getsockname()[1]}'
        self.clients: list[socket.socket] = []
        self.go_on = threading.Event()

    def __enter__(self) -> Scripted:
        self._thread = threading.Thread(target=self._run, name='scripted', daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.go_on.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in self.clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _hear(self, client: socket.socket) -> bool:
        """Read a request, whose body, if any, is one of those that the tests send."""
        words = b''
        while heard := client.recv(65536):
            words += heard
            if b'\r\n\r\n' in words and (words[:4] != b'POST' or words.endswith((b'hello', b'0\r\n\r\n', b'!'))):
                return True
        return False

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            for act in self._script:
                if not self._hear(client):
                    return
                if isinstance(act, bytes):
                    client.sendall(act)
                elif act == 'reset':
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                    return
                elif act == 'half-close':
                    client.shutdown(socket.SHUT_WR)
                elif act == 'close':
                    return
                elif act == 'drip':
                    while True:
                        client.sendall(b'H')
                        time.sleep(0.02)
            self.go_on.wait(30)
