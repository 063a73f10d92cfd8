"""HTTP connections: no response reaches any but the one who asked for it, whatever servers and users do."""

from __future__ import annotations

import http.client
import io
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from http_peers import Scripted, contexts, http_server
from peers import (
    await_input,
    await_left_behind,
    deaf_server,
    link_local_address,
    open_descriptors,
    silent_server,
)
from redis_peers import settled_descriptors
from starvation import SOON

from gcp.contrib.http import HttpConnection, HttpConnectionManager, KeepAlive
from gcp.threading import ConnectionPool

LIMIT = 60.0
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'


@pytest.fixture(scope='module')
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return contexts('localhost')


@pytest.fixture(scope='module')
def plain_origin() -> Iterator[str]:
    with http_server() as port:
        yield f'http://127.0.0.1:{port}'


@pytest.fixture(scope='module')
def tls_origin(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[str]:
    with http_server(tls[0]) as port:
        yield f'https://localhost:{port}'


@pytest.fixture
def manager(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> HttpConnectionManager:
    return HttpConnectionManager(tls[1], request_timeout=LIMIT)


@pytest.fixture(params=['http', 'https'])
def origin(request: pytest.FixtureRequest) -> str:
    origin: str = request.getfixturevalue('plain_origin' if request.param == 'http' else 'tls_origin')
    return origin


@pytest.fixture
def conn(manager: HttpConnectionManager, origin: str) -> Iterator[HttpConnection]:
    conn = manager.create(origin, LIMIT)
    yield conn
    manager.dispose(origin, conn)


def ask(conn: HttpConnection, path: str = '/peer', method: str = 'GET', **options: Any) -> bytes:
    conn.request(method, path, **options)
    answer: bytes = conn.getresponse().read()
    return answer


def released(manager: HttpConnectionManager, conn: HttpConnection) -> bool:
    """Release a connection; tell whether the next user may have it. If not, its descriptor is free already."""
    fd = conn.transport.fileno()
    manager.on_release('', conn)
    alive = manager.check_aliveness('', conn)
    if not alive and conn.sock is None:
        with pytest.raises(OSError):
            os.fstat(fd)
    return alive


# ---- what may be used again


def test_the_pool_reuses_a_connection(manager: HttpConnectionManager, origin: str) -> None:
    pool: ConnectionPool[str, HttpConnection] = ConnectionPool(manager)
    try:
        with pool.connection(origin) as first:
            peer = ask(first)
        with pool.connection(origin, timeout=5) as again:
            assert again is first and ask(again) == peer
        with pool.connection(origin) as conn:
            conn.request('GET', '/large')
            held = conn.getresponse()
        with pool.connection(origin) as other:
            assert other is not first and ask(other) != peer
            with pytest.raises(ValueError):
                held.read()
    finally:
        pool.close()


@pytest.mark.parametrize(
    ('method', 'path', 'expected'),
    [
        ('GET', '/peer', None),
        ('GET', '/chunked', b'abcde'),
        ('HEAD', '/large', b''),
        ('HEAD', '/chunked', b''),
        ('GET', '/nothing', b''),
        ('GET', '/not-modified', b''),
        ('GET', '/patiently', b''),
        ('POST', '/echo', b'hello'),
    ],
)
def test_an_exchange_that_came_to_its_end_leaves_the_connection_to_the_next(
    manager: HttpConnectionManager,
    conn: HttpConnection,
    method: str,
    path: str,
    expected: bytes | None,
) -> None:
    answer = ask(conn, path, method, body=b'hello' if method == 'POST' else None)
    assert expected is None or answer == expected
    assert released(manager, conn)
    assert ask(conn)
    assert released(manager, conn)


@pytest.mark.parametrize(
    ('method', 'path'),
    [
        ('HEAD', '/large'),
        ('HEAD', '/chunked'),
        ('GET', '/nothing'),
        ('GET', '/not-modified'),
        ('GET', '/patiently'),
    ],
)
def test_a_response_without_a_body_need_not_be_read(
    manager: HttpConnectionManager,
    conn: HttpConnection,
    method: str,
    path: str,
) -> None:
    conn.request(method, path)
    conn.getresponse()
    assert released(manager, conn)
    assert ask(conn)


@pytest.mark.parametrize('way', ['read', 'parts', 'lines', 'into', 'read1'])
def test_all_ways_of_reading_to_the_end(manager: HttpConnectionManager, conn: HttpConnection, way: str) -> None:
    conn.request('POST', '/echo', body=b'ab\ncd\n')
    response = conn.getresponse()
    if way == 'read':
        response.read()
    elif way == 'parts':
        assert response.read(3) + response.read(3) == b'ab\ncd\n'
    elif way == 'lines':
        assert list(response) == [b'ab\n', b'cd\n']
    elif way == 'into':
        assert response.readinto(bytearray(6)) == 6
    else:
        while response.read1(100):
            pass
    assert released(manager, conn)
    assert ask(conn)


def test_a_new_connection_that_was_never_used_is_reused(manager: HttpConnectionManager, conn: HttpConnection) -> None:
    assert released(manager, conn)
    assert ask(conn)


@pytest.mark.parametrize('body', ['bytes', 'file', 'iterable', 'chunks', 'announced', 'array'])
def test_all_kinds_of_bodies(manager: HttpConnectionManager, body: str) -> None:
    with Scripted(OK, OK) as peer:
        conn = manager.create(peer.origin, LIMIT)
        conn.sock.settimeout(LIMIT)
        if body == 'announced':
            conn.putrequest('POST', '/')
            conn.putheader('Content-Length', '5')
            conn.endheaders()
            conn.send(b'hel')
            conn.send(bytearray(b'lo'))
        elif body == 'chunks':
            conn.putrequest('POST', '/')
            conn.putheader('Transfer-Encoding', 'chunked')
            conn.endheaders(b'5\r\nhello\r\n0\r\n\r\n')
        else:
            conn.request(
                'POST',
                '/',
                body={
                    'bytes': b'hello',
                    'file': io.BytesIO(b'hello'),
                    'iterable': iter([b'he', b'llo']),
                    'array': memoryview(b'hello'),
                }[body],
            )
        assert conn.getresponse().read() == b'ok'
        assert released(manager, conn)
        manager.dispose(peer.origin, conn)


def test_a_setting_of_the_users_does_not_outlast_him(manager: HttpConnectionManager, conn: HttpConnection) -> None:
    assert conn.sock.gettimeout() == LIMIT and not conn.auto_open
    ask(conn)
    conn.sock.settimeout(1)
    assert released(manager, conn)
    assert conn.sock.gettimeout() == LIMIT


# ---- what may not


@pytest.mark.parametrize(
    'left',
    [
        'request begun',
        'headers not sent',
        'request not answered',
        'response not read',
        'response read in part',
        'response closed',
        'line read',
        'connection closed',
    ],
)
def test_an_exchange_that_is_not_over_costs_the_connection_at_once(
    manager: HttpConnectionManager,
    conn: HttpConnection,
    left: str,
) -> None:
    ask(conn)
    if left == 'request begun':
        conn.putrequest('GET', '/peer')
    elif left == 'headers not sent':
        conn.putrequest('GET', '/peer')
        conn.putheader('Accept', '*/*')
    else:
        conn.request('GET', '/large')
    if left.startswith(('response', 'line')):
        response = conn.getresponse()
        if left == 'response read in part':
            response.read(10)
        elif left == 'line read':
            response.readline(10)
        elif left == 'response closed':
            response.close()
    elif left == 'connection closed':
        conn.close()
    assert not released(manager, conn)
    assert conn.sock is None


def test_a_response_that_was_closed_early_is_not_read_by_the_next_request_either(conn: HttpConnection) -> None:
    conn.request('GET', '/large')
    conn.getresponse().close()
    with pytest.raises(http.client.NotConnected):
        ask(conn)


@pytest.mark.parametrize('path', ['/close', '/briefly'])
def test_a_server_that_means_to_close_is_taken_at_its_word(
    manager: HttpConnectionManager,
    conn: HttpConnection,
    path: str,
) -> None:
    ask(conn, path)
    assert not released(manager, conn)


def test_a_server_that_closes_after_a_while_is_left_before_that(
    manager: HttpConnectionManager,
    conn: HttpConnection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask(conn, '/patiently')
    assert released(manager, conn)
    now = time.monotonic()
    for later, alive in ((58.0, True), (59.5, False)):
        monkeypatch.setattr('gcp.contrib.http.time.monotonic', lambda later=later: now + later)
        assert manager.check_aliveness('', conn) is alive


RESPONSES = {
    'old': b'HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok',
    'until eof': b'HTTP/1.1 200 OK\r\n\r\nok',
    'upgrade': b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n',
    'early hints': b'HTTP/1.1 103 Early Hints\r\n\r\n',
    'garbage behind it': OK + b'garbage',
    'another behind it': OK + OK,
    'line end behind it': OK + b'\r\n',
    'behind a head': b'HTTP/1.1 204 No Content\r\n\r\nbody',
    'behind chunks': b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nx',
    'not http': b'220 smtp.example.org\r\n',
    'bad header': b'HTTP/1.1 200 OK\r\n' + b'x: y\r\n' * 200 + b'\r\n',
    'bad chunk': b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n',
    'less than announced': b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok',
}


@pytest.mark.parametrize('response', RESPONSES)
@pytest.mark.parametrize('read', [True, False])
def test_what_cannot_be_followed_by_another_response(
    manager: HttpConnectionManager,
    response: str,
    read: bool,
) -> None:
    with Scripted(RESPONSES[response], 'close') as peer:
        conn = manager.create(peer.origin, LIMIT)
        conn.sock.settimeout(0.2)
        try:
            conn.request('GET', '/')
            found = conn.getresponse()
            if read:
                found.read()
        except (http.client.HTTPException, OSError):
            pass
        assert not released(manager, conn)


def test_a_connect_request_leaves_a_tunnel(manager: HttpConnectionManager) -> None:
    with Scripted(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n') as peer:
        conn = manager.create(peer.origin, LIMIT)
        assert ask(conn, 'example.org:443', 'CONNECT') == b''
        assert not released(manager, conn)


def test_a_100_continue_is_no_response(manager: HttpConnectionManager) -> None:
    with Scripted(b'HTTP/1.1 100 Continue\r\n\r\n' + OK, OK) as peer:
        conn = manager.create(peer.origin, LIMIT)
        assert ask(conn, '/', 'POST', body=b'!', headers={'Expect': '100-continue'}) == b'ok'
        assert released(manager, conn)
        assert ask(conn) == b'ok'
        manager.dispose(peer.origin, conn)


@pytest.mark.parametrize(
    'lie',
    [
        'too short',
        'too long',
        'two lengths',
        'chunks without end',
        'no number',
        'raw chunk',
        'nothing but raw chunk',
    ],
)
@pytest.mark.parametrize('again', [False, True])
def test_a_request_of_another_length_than_announced_costs_the_connection(
    manager: HttpConnectionManager,
    lie: str,
    again: bool,
) -> None:
    """Else the server takes the beginning of the next user's request for the end of this body."""
    with Scripted(OK, OK) as peer:
        conn = manager.create(peer.origin, LIMIT)
        if lie.endswith('raw chunk'):
            if lie == 'raw chunk':
                assert ask(conn) == b'ok'
            conn.send(b'GET ')
        else:
            conn.putrequest('POST', '/')
            if lie == 'chunks without end':
                conn.putheader('Transfer-Encoding', 'chunked')
            else:
                length = {'too short': '6', 'too long': '4', 'two lengths': '5', 'no number': 'five'}[lie]
                conn.putheader('Content-Length', length)
            if lie == 'two lengths':
                conn.putheader('Content-Length', '7')
            conn.endheaders(b'hello')
            assert conn.getresponse().read() == b'ok'
        if again:
            assert ask(conn) == b'ok'
        assert not released(manager, conn)


@pytest.mark.parametrize('lapse', ['eof', 'half-close', 'reset', 'data', 'an answer'])
def test_whatever_is_heard_on_an_idle_connection_means_dead(manager: HttpConnectionManager, lapse: str) -> None:
    with Scripted(OK, 'close') as peer:
        conn = manager.create(peer.origin, LIMIT)
        ask(conn)
        assert released(manager, conn)
        client = peer.clients[0]
        if lapse == 'reset':
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
            client.close()
            peer.go_on.set()
        if lapse in ('eof', 'half-close', 'reset'):
            if lapse != 'reset':
                client.shutdown(socket.SHUT_RDWR if lapse == 'eof' else socket.SHUT_WR)
        else:
            client.sendall(b'!' if lapse == 'data' else OK)
        if lapse != 'reset':
            await_input(conn.sock.fileno())
            assert not manager.check_aliveness(peer.origin, conn)
        manager.dispose(peer.origin, conn)


def test_no_connection_comes_back_to_life_behind_the_pools_back(
    manager: HttpConnectionManager,
    conn: HttpConnection,
    origin: str,
) -> None:
    ask(conn, '/close')
    with pytest.raises(http.client.NotConnected):
        ask(conn)
    with pytest.raises(http.client.NotConnected):
        conn.connect()
    manager.dispose(origin, conn)
    with pytest.raises(http.client.NotConnected, match='acquire another one'):
        ask(conn)
    assert not manager.check_aliveness(origin, conn)


def test_a_response_that_is_held_reads_nothing_that_is_anothers(manager: HttpConnectionManager) -> None:
    with Scripted(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nmine') as peer:
        conn = manager.create(peer.origin, LIMIT)
        conn.request('GET', '/')
        held = conn.getresponse()
        assert not released(manager, conn)
        for read in (held.read, held.read1, held.readline, lambda: held.read(1), lambda: held.readinto(bytearray(1))):
            with pytest.raises(ValueError):
                read()


def test_a_response_until_eof_ends_with_its_user_too(manager: HttpConnectionManager) -> None:
    with Scripted(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nthe beginning') as peer:
        conn = manager.create(peer.origin, LIMIT)
        conn.request('GET', '/')
        held = conn.getresponse()
        before = open_descriptors()
        manager.on_release(peer.origin, conn)
        assert open_descriptors() < before
        with pytest.raises(ValueError):
            held.read()


# ---- time


def test_a_request_timeout(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    manager = HttpConnectionManager(tls[1], request_timeout=0.2)
    with Scripted() as peer:
        conn = manager.create(peer.origin, LIMIT)
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            ask(conn)
        assert 0.2 <= time.monotonic() - started < SOON
        assert not released(manager, conn)


@pytest.mark.parametrize(
    ('scheme', 'lapse'),
    [
        ('http', 'deaf'),
        ('http', 'unresolvable'),
        ('https', 'deaf'),
        ('https', 'unresolvable'),
        ('https', 'silent'),
    ],
)
def test_a_create_costs_the_timeout_and_no_descriptor(
    manager: HttpConnectionManager,
    scheme: str,
    lapse: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Event()
    if lapse == 'unresolvable':
        monkeypatch.setattr('socket.getaddrinfo', lambda *args, **kwargs: gate.wait(LIMIT) and [])
    with silent_server() if lapse == 'silent' else deaf_server() as port:
        before, started = open_descriptors(), time.monotonic()
        with pytest.raises(TimeoutError):
            host = 'slow.example' if lapse == 'unresolvable' else '127.0.0.1'
            manager.create(f'{scheme}://{host}:{port}', 0.2)
        assert 0.2 <= time.monotonic() - started < SOON
        gate.set()
        await_left_behind()
        assert open_descriptors() <= before


def test_dispose_ends_a_read_in_another_thread(manager: HttpConnectionManager) -> None:
    with Scripted(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun') as peer:
        conn = manager.create(peer.origin, LIMIT)
        conn.request('GET', '/')
        response = conn.getresponse()
        reading = threading.Event()
        ended: list[object] = []

        def read() -> None:
            reading.set()
            try:
                ended.append(response.read())
            except Exception as error:
                ended.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        assert reading.wait(LIMIT)
        started = time.monotonic()
        manager.dispose(peer.origin, conn, 1.0)
        thread.join(LIMIT)
        assert not thread.is_alive() and len(ended) == 1
        assert time.monotonic() - started < SOON


def test_dispose_does_not_wait_for_a_peer_that_takes_nothing(manager: HttpConnectionManager, tls_origin: str) -> None:
    conn = manager.create(tls_origin, LIMIT)
    fd = conn.sock.fileno()
    started = time.monotonic()
    manager.dispose(tls_origin, conn, 0.2)
    manager.dispose(tls_origin, conn, 0.2)
    assert time.monotonic() - started < SOON
    with pytest.raises(OSError):
        os.fstat(fd)


def test_close_notify_is_sent_only_by_idle_connections(
    manager: HttpConnectionManager,
    tls_origin: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two threads in one TLS connection would corrupt memory."""
    said: list[Any] = []
    monkeypatch.setattr('gcp.contrib._tls.close_notify', lambda *args: said.append(args))
    for idle in (False, True):
        conn = manager.create(tls_origin, LIMIT)
        manager.on_acquire(tls_origin, conn)
        if idle:
            manager.on_release(tls_origin, conn)
        manager.dispose(tls_origin, conn)
        assert len(said) == idle


# ---- failures


def closed_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_a_certificate_for_another_name(tls_origin: str, tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    before = open_descriptors()
    with pytest.raises(ssl.SSLCertVerificationError):
        HttpConnectionManager().create(tls_origin, LIMIT)
    with pytest.raises(ssl.SSLCertVerificationError):
        HttpConnectionManager(tls[1]).create(tls_origin.replace('localhost', '127.0.0.1'), LIMIT)
    assert settled_descriptors(before) <= before
    manager = HttpConnectionManager(tls[1], server_hostname='localhost')
    origin = tls_origin.replace('localhost', '127.0.0.1')
    conn = manager.create(origin, LIMIT)
    assert ask(conn)
    manager.dispose(origin, conn)


def test_two_hundred_failures_leave_no_descriptor(
    manager: HttpConnectionManager,
    plain_origin: str,
    tls_origin: str,
) -> None:
    refused = f'127.0.0.1:{closed_port()}'
    origins = [
        f'http://{refused}',
        f'https://{refused}',
        tls_origin.replace('localhost', '127.0.0.1'),
        plain_origin.replace('http', 'https').replace('127.0.0.1', 'localhost'),
    ]
    before = open_descriptors()
    for turn in range(200):
        with pytest.raises(OSError):
            manager.create(origins[turn % 4], LIMIT)
    assert settled_descriptors(before) <= before


def test_two_hundred_broken_exchanges_leave_no_descriptor(manager: HttpConnectionManager, origin: str) -> None:
    with Scripted('reset') as peer:
        ours: set[str] = set()
        for turn in range(200):
            to = origin if turn % 2 else peer.origin
            conn = manager.create(to, LIMIT)
            ours.add(str(conn.sock.fileno()))
            conn.request('GET', '/large')
            try:
                response = conn.getresponse()
                response.read(10)
            except (OSError, http.client.HTTPException):
                pass
            assert not released(manager, conn)
        assert len(ours) < 20  # each is free again before the next


def test_the_sockets_options(tls: tuple[ssl.SSLContext, ssl.SSLContext], origin: str) -> None:
    manager = HttpConnectionManager(tls[1], keepalive=KeepAlive(idle=7))
    conn = manager.create(origin, LIMIT)
    assert conn.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
    assert conn.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert conn.sock.gettimeout() is None
    assert isinstance(conn, http.client.HTTPSConnection) is origin.startswith('https')
    manager.dispose(origin, conn)


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_forked_child_says_nothing_to_the_parents_server(
    manager: HttpConnectionManager,
    conn: HttpConnection,
    origin: str,
) -> None:
    peer = ask(conn)
    child = os.fork()
    if not child:
        manager.dispose(origin, conn)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert released(manager, conn)
    assert ask(conn) == peer


# ---- bad input


@pytest.mark.parametrize(
    ('endpoint', 'error', 'chunk'),
    [
        (('localhost', 80), TypeError, "an origin such as 'https://example.org' was expected, not ('localhost', 80)"),
        ('localhost:80', ValueError, "'http://host[:port]' or 'https://host[:port]', was expected, not 'localhost:80'"),
        ('ftp://localhost', ValueError, "was expected, not 'ftp://localhost'"),
        ('http://', ValueError, "was expected, not 'http://'"),
        ('http://localhost:port', ValueError, "was expected, not 'http://localhost:port'"),
        ('http://localhost:99999', ValueError, "was expected, not 'http://localhost:99999'"),
        ('http://[::1', ValueError, "was expected, not 'http://[::1'"),
        (' http://localhost', ValueError, "was expected, not ' http://localhost'"),
        ('http://localhost/', ValueError, "without path and query, unlike that for 'localhost'"),
        ('http://localhost?key=hunter2', ValueError, "without path and query, unlike that for 'localhost'"),
        ('http://me:hunter2@localhost', ValueError, 'without user name and password'),
        ('http:/me:hunter2@localhost', ValueError, 'without user name and password'),
    ],
)
def test_a_wrong_endpoint_is_told(
    manager: HttpConnectionManager,
    endpoint: Any,
    error: type[Exception],
    chunk: str,
) -> None:
    with pytest.raises(error) as caught:
        manager.create(endpoint)
    assert chunk in str(caught.value)
    assert 'hunter2' not in str(caught.value)


@pytest.mark.parametrize(
    ('options', 'error', 'chunk'),
    [
        ({'ssl': True}, TypeError, 'ssl: an SSLContext or None was expected, not True'),
        ({'request_timeout': 0}, ValueError, 'request_timeout: more than 0 seconds were expected, not 0'),
        ({'request_timeout': '5'}, TypeError, "request_timeout: seconds were expected, not '5'"),
        ({'keepalive': 5}, TypeError, 'keepalive: '),
    ],
)
def test_impossible_options_are_told(options: dict[str, Any], error: type[Exception], chunk: str) -> None:
    with pytest.raises(error) as caught:
        HttpConnectionManager(**options)
    assert chunk in str(caught.value)


# ---- errors, and what a user changes


def test_a_connection_that_refused_a_request_is_not_reused(
    manager: HttpConnectionManager, conn: HttpConnection
) -> None:
    assert ask(conn)  # the server has accepted it, and will not reuse the number of its descriptor
    with pytest.raises(http.client.InvalidURL):
        conn.request('GET', '/a path')
    assert not manager.clean_after_error('', conn, ValueError())
    assert not released(manager, conn)


def test_after_an_error_only_a_connection_between_two_requests_is_clean(
    manager: HttpConnectionManager,
    conn: HttpConnection,
) -> None:
    error = ValueError()
    assert manager.clean_after_error('', conn, error)  # unused
    assert ask(conn)
    assert manager.clean_after_error('', conn, error)
    conn.putrequest('GET', '/peer')
    assert not manager.clean_after_error('', conn, error)  # not sent
    conn.endheaders()
    assert not manager.clean_after_error('', conn, error)  # not answered
    response = conn.getresponse()
    assert not manager.clean_after_error('', conn, error)  # not read
    response.read()
    assert manager.clean_after_error('', conn, error)
    conn.request('GET', '/large')
    conn.getresponse().read(10)
    assert not manager.clean_after_error('', conn, error)  # half read
    conn.close()
    assert not manager.clean_after_error('', conn, error)


def test_the_pool_keeps_what_is_clean_after_an_error_and_closes_the_rest(
    manager: HttpConnectionManager,
    origin: str,
) -> None:
    pool: ConnectionPool[str, HttpConnection] = ConnectionPool(manager, max_size=1)
    with pytest.raises(KeyError), pool.connection(origin, timeout=LIMIT) as first:
        ask(first)
        raise KeyError
    with pytest.raises(KeyError), pool.connection(origin, timeout=LIMIT) as again:
        assert again is first
        again.request('GET', '/large')
        raise KeyError
    with pytest.raises(KeyError), pool.connection(origin, timeout=LIMIT) as other:
        assert other is not first
        other.request('GET', '/large')
        other.getresponse().read(10)
        raise KeyError
    with pool.connection(origin, timeout=LIMIT) as last:
        assert last is not other and ask(last)
    assert pool.stats().created == 3
    pool.close()


def test_a_response_that_timed_out_is_not_clean(manager: HttpConnectionManager) -> None:
    with silent_server() as port:
        conn = manager.create(f'http://127.0.0.1:{port}', LIMIT)
        conn.sock.settimeout(0.01)
        conn.request('GET', '/')
        with pytest.raises(TimeoutError) as caught:
            conn.getresponse()
        assert not manager.clean_after_error('', conn, caught.value)
        manager.dispose('', conn)


CHANGES = {
    'debuglevel': 1,
    'timeout': 0.1,
    'blocksize': 1,
    'host': 'elsewhere',
    'port': 1,
    'auto_open': 1,
    'response_class': http.client.HTTPResponse,
    '_http_vsn': 10,
    '_http_vsn_str': 'HTTP/1.0',
}


def test_what_a_user_changed_is_restored(manager: HttpConnectionManager, conn: HttpConnection) -> None:
    before = {name: getattr(conn, name) for name in CHANGES}
    for name, value in CHANGES.items():
        setattr(conn, name, value)
    conn.sock.settimeout(0.1)
    assert released(manager, conn)
    assert {name: getattr(conn, name) for name in CHANGES} == before
    assert conn.sock.gettimeout() == LIMIT


@pytest.mark.parametrize('seconds', [1e10, sys.maxsize, 10**400])
def test_a_huge_limit_of_a_request_is_one(plain_origin: str, seconds: float) -> None:
    manager = HttpConnectionManager(request_timeout=seconds)
    conn = manager.create(plain_origin, seconds)
    assert ask(conn)
    assert released(manager, conn)
    manager.dispose('', conn, seconds)


@pytest.mark.parametrize('written', ['%25', '%'])
def test_the_scope_of_an_address_is_understood_in_both_forms(written: str) -> None:
    address, _, scope = link_local_address().partition('%')
    with socket.create_server(('::', 0), family=socket.AF_INET6) as listener:
        origin = f'http://[{address}{written}{scope}]:{listener.getsockname()[1]}'
        conn = HttpConnectionManager().create(origin, LIMIT)
        peer, _ = listener.accept()
        with peer:
            conn.request('GET', '/')
            request = peer.recv(1000)
            if sys.version_info >= (3, 11):  # http.client of 3.10 sends the scope, too
                assert f'\r\nHost: [{address}]:'.encode() in request
        conn.close()


@pytest.mark.parametrize('origin', ['plain_origin', 'tls_origin'])
def test_the_limit_of_unacknowledged_data_reaches_the_kernel(
    request: pytest.FixtureRequest,
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
    origin: str,
) -> None:
    manager = HttpConnectionManager(tls[1], user_timeout=1.5)
    conn = manager.create(request.getfixturevalue(origin), LIMIT)
    assert conn.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1500
    manager.dispose('', conn)
