"""Guarantee 18 (docs/guarantees.md): what the managers of sockets and HTTP say of an error, of a connect that failed
and of one in the block of a holder."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from error_cases import BROKEN, PERMANENT, TRANSIENT, UNKNOWN, answering, check_permanent, failure, refused, tls_server
from http_peers import http_server
from peers import client_context, server_context

from gcp import ErrorClass
from gcp.contrib import socket as sockets
from gcp.contrib import socket_async, unix, unix_async
from gcp.contrib.http import HttpConnectionManager


class Http:
    """The HTTP manager behind the face of the socket managers: endpoints are pairs."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._manager = HttpConnectionManager(context)
        self._scheme = 'https' if context else 'http'

    def create(self, endpoint: tuple[str, int], timeout: float) -> Any:
        return self._manager.create(f'{self._scheme}://{endpoint[0]}:{endpoint[1]}', timeout)

    def classify(self, endpoint: tuple[str, int], error: BaseException) -> ErrorClass:
        return self._manager.classify('http://example.org', error)


TCP: list[Callable[[], Any]] = [
    sockets.TcpSocketConnectionManager,
    socket_async.TcpSocketConnectionManager,
    socket_async.TcpStreamConnectionManager,
    Http,
]
TLS: list[Callable[[ssl.SSLContext], Any]] = [
    sockets.SslSocketConnectionManager,
    socket_async.TcpStreamConnectionManager,
    Http,
]
UNIX: list[Callable[[], Any]] = [
    unix.UnixSocketConnectionManager,
    unix_async.UnixSocketConnectionManager,
    unix_async.UnixSocketStreamConnectionManager,
]


@pytest.mark.parametrize('make', TCP)
def test_a_connect_over_tcp(make: Callable[[], Any]) -> None:
    assert asyncio.run(failure(make(), (UNKNOWN, 80))) is PERMANENT
    assert asyncio.run(failure(make(), ('x' * 300, 80))) is PERMANENT
    assert asyncio.run(failure(make(), ('127.0.0.1', 99999))) is PERMANENT
    assert asyncio.run(failure(make(), refused())) is TRANSIENT


@pytest.mark.parametrize('make', TLS)
def test_a_connect_over_tls(make: Callable[[ssl.SSLContext], Any]) -> None:
    with tls_server(server_context('localhost', expired=True)) as port:
        assert asyncio.run(failure(make(client_context()), ('localhost', port))) is PERMANENT
    with tls_server(server_context('localhost', issuer='other')) as port:
        assert asyncio.run(failure(make(client_context()), ('localhost', port))) is PERMANENT
    with tls_server(server_context('other.example')) as port:
        assert asyncio.run(failure(make(client_context()), ('localhost', port))) is PERMANENT
    with answering(b'-ERR\r\n') as plain:
        assert asyncio.run(failure(make(client_context()), ('localhost', plain['port']))) is PERMANENT
    with answering(b'') as cut:
        assert asyncio.run(failure(make(client_context()), ('localhost', cut['port']))) is TRANSIENT


@pytest.mark.parametrize('make', UNIX)
def test_a_connect_to_a_unix_socket(make: Callable[[], Any], tmp_path: Path) -> None:
    assert asyncio.run(failure(make(), tmp_path / 'missing')) is TRANSIENT
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_behind:
        left_behind.bind(str(tmp_path / 'left'))
    assert asyncio.run(failure(make(), tmp_path / 'left')) is TRANSIENT
    (tmp_path / 'file').touch()
    assert asyncio.run(failure(make(), tmp_path / 'file' / 'below')) is PERMANENT
    assert asyncio.run(failure(make(), 'x' * 200)) is PERMANENT
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / 'datagrams'))
        assert asyncio.run(failure(make(), tmp_path / 'datagrams')) is PERMANENT


@pytest.mark.parametrize('make', [*TCP, *UNIX])
def test_errors_of_sockets_in_a_block(make: Callable[[], Any]) -> None:
    manager = make()
    for broken in (
        ConnectionResetError(errno.ECONNRESET, 'reset'),
        ConnectionResetError('Connection lost'),
        BrokenPipeError(errno.EPIPE, 'broken pipe'),
        OSError(errno.ENOTCONN, 'not connected'),
        ssl.SSLEOFError(8, 'EOF occurred'),
    ):
        assert manager.classify(('localhost', 1), broken) is BROKEN
    for other in (TimeoutError(), ValueError('x'), asyncio.CancelledError(), OSError('text'), GeneratorExit()):
        assert manager.classify(('localhost', 1), other) is TRANSIENT
    assert manager.classify(('localhost', 1), PermissionError(errno.EACCES, 'denied')) is PERMANENT


@pytest.mark.parametrize(
    'make', [socket_async.TcpStreamConnectionManager, unix_async.UnixSocketStreamConnectionManager]
)
def test_the_end_of_a_stream_in_a_block(make: Callable[[], Any]) -> None:
    assert make().classify(('localhost', 1), asyncio.IncompleteReadError(b'', 1)) is BROKEN


def test_errors_of_http_in_a_block() -> None:
    manager = HttpConnectionManager()
    for answer in (b'', b'nonsense\r\n\r\n', b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc'):
        with answering(answer) as server:
            origin = f'http://127.0.0.1:{server["port"]}'
            conn = manager.create(origin, 10)
            conn.request('GET', '/')
            with pytest.raises(Exception) as caught:
                conn.getresponse().read()
            assert manager.classify(origin, caught.value) is BROKEN
            with pytest.raises(Exception) as again:
                conn.request('GET', '/')
            assert manager.classify(origin, again.value) in (BROKEN, TRANSIENT)
            assert not manager.clean_after_error(origin, conn, again.value)
            manager.dispose(origin, conn)


def test_http_that_goes_on_is_not_broken() -> None:
    with http_server() as port:
        manager = HttpConnectionManager()
        origin = f'http://127.0.0.1:{port}'
        conn = manager.create(origin, 10)
        conn.request('GET', '/peer')
        conn.getresponse().read()
        assert manager.classify(origin, LookupError('404')) is TRANSIENT
        manager.dispose(origin, conn)


def test_a_permanent_error_of_http_takes_one_attempt() -> None:
    with tls_server(server_context('localhost', expired=True)) as port:
        check_permanent(HttpConnectionManager(client_context()), f'https://localhost:{port}')
    check_permanent(HttpConnectionManager(), f'http://{UNKNOWN}')
