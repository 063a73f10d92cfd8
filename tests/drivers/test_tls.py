"""TLS connections of the threading pool: what a peer may do in the handshake, while idle, and at the end."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from peers import (
    Service,
    await_input,
    client_context,
    drip,
    garbage,
    lasting,
    open_descriptors,
    reset,
    server_context,
    shaking_hands,
)

from gcp.contrib import _tls
from gcp.contrib.socket import (
    KeepAlive,
    SslEndpoint,
    SslSocketAlivenessCheckingMixin,
    SslSocketConnectionManager,
)
from gcp.threading import ConnectionPool

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
Pair = tuple[ssl.SSLSocket, ssl.SSLSocket]


@pytest.fixture
def manager() -> SslSocketConnectionManager:
    return SslSocketConnectionManager(client_context())


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with Service(shaking_hands(server_context(version=request.param))) as service:
        yield service


@pytest.fixture
def pair(manager: SslSocketConnectionManager, service: Service) -> Iterator[Pair]:
    """A connection of the manager's, and its other end."""
    conn = manager.create(service.endpoint, 5.0)
    peer = service.peer()
    peer.settimeout(10)
    with conn, peer:
        yield conn, peer


def exchange(conn: ssl.SSLSocket, peer: ssl.SSLSocket) -> None:
    conn.sendall(b'ping')
    assert peer.recv(100) == b'ping'
    peer.sendall(b'pong')
    assert conn.recv(100) == b'pong'


def raw(sock: ssl.SSLSocket) -> socket.socket:
    """The same connection without TLS."""
    return socket.socket(fileno=os.dup(sock.fileno()))


# ---- creation


@pytest.mark.parametrize('host', ['localhost', '127.0.0.1'])
@pytest.mark.parametrize('timeout', [None, 5.0])
def test_connects_and_verifies(
    manager: SslSocketConnectionManager,
    service: Service,
    host: str,
    timeout: float | None,
) -> None:
    with manager.create((host, service.port), timeout) as conn, service.peer() as peer:
        exchange(conn, peer)
        assert conn.gettimeout() is None
        assert conn.getpeercert()
        assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_name_is_sent_and_a_final_dot_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[Any] = []
    context = server_context('sni.example')
    context.sni_callback = lambda sock, name, context: names.append(name)
    with Service(shaking_hands(context)) as service:
        addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, '', service.endpoint)]
        monkeypatch.setattr('socket.getaddrinfo', lambda *args, **kwargs: addresses)
        SslSocketConnectionManager(client_context()).create(('sni.example.', 443), 5.0).close()
        manager = SslSocketConnectionManager(client_context(), server_hostname='other.example')
        with pytest.raises(ssl.SSLCertVerificationError):
            manager.create(('sni.example', 443), 5.0)
    assert names == ['sni.example', 'other.example']


@pytest.mark.parametrize(
    ('context', 'words'),
    [
        (server_context('elsewhere.example'), 'IP address mismatch'),
        (server_context(issuer='evil'), 'certificate verify failed'),
        (server_context(expired=True), 'has expired'),
    ],
    ids=['name', 'issuer', 'expired'],
)
def test_a_wrong_certificate_is_refused(
    manager: SslSocketConnectionManager,
    context: ssl.SSLContext,
    words: str,
) -> None:
    with Service(shaking_hands(context)) as service:
        with pytest.raises(ssl.SSLCertVerificationError, match=words):
            manager.create(service.endpoint, 5.0)


def test_a_name_that_was_given_is_verified_in_place_of_the_host() -> None:
    manager = SslSocketConnectionManager(client_context(), server_hostname='elsewhere.example')
    with Service(shaking_hands(server_context('elsewhere.example'))) as service:
        manager.create(service.endpoint, 5.0).close()


def test_the_default_verifies() -> None:
    with Service(shaking_hands(server_context())) as service:
        with pytest.raises(ssl.SSLCertVerificationError):
            SslSocketConnectionManager().create(service.endpoint, 5.0)


def test_a_protocol_is_agreed_on() -> None:
    manager = SslSocketConnectionManager(client_context(), alpn_protocols=['h2', 'http/1.1'])
    with Service(shaking_hands(server_context(alpn='http/1.1'))) as service:
        with manager.create(service.endpoint, 5.0) as conn:
            assert conn.selected_alpn_protocol() == 'http/1.1'


@pytest.mark.parametrize('behaviour', ['silent', 'drip'])
def test_a_handshake_that_does_not_end_costs_the_timeout(manager: SslSocketConnectionManager, behaviour: str) -> None:
    with Service(drip if behaviour == 'drip' else lambda sock: sock) as service:
        words = f'TLS handshake with 127.0.0.1 port {service.port}'
        with lasting(0.2), pytest.raises(TimeoutError, match=words):
            manager.create(service.endpoint, 0.2)


@pytest.mark.parametrize('behaviour', ['silent', 'drip', 'garbage', 'reset', 'eof', 'wrong certificate'])
def test_200_failures_leave_no_descriptor(manager: SslSocketConnectionManager, behaviour: str) -> None:
    prepare = {
        'silent': lambda sock: sock,
        'drip': drip,
        'garbage': garbage,
        'reset': reset,
        'eof': lambda sock: sock.close(),
        'wrong certificate': shaking_hands(server_context('elsewhere.example')),
    }[behaviour]
    before = open_descriptors()
    with Service(prepare) as service:
        for _ in range(200):
            with pytest.raises(OSError):
                manager.create(service.endpoint, 0.01 if behaviour in ('silent', 'drip') else 60.0)
    assert open_descriptors() == before


def test_a_failed_handshake_closes_the_socket_though_the_error_is_kept(manager: SslSocketConnectionManager) -> None:
    before, errors = open_descriptors(), []
    with Service(reset) as service:
        for _ in range(50):
            with pytest.raises(OSError) as caught:
                manager.create(service.endpoint, 5.0)
            errors.append(caught.value)
    assert open_descriptors() == before


# ---- sessions


def test_a_session_is_resumed(manager: SslSocketConnectionManager, service: Service) -> None:
    pool: ConnectionPool[SslEndpoint, ssl.SSLSocket] = ConnectionPool(manager)
    try:
        with pool.connection(service.endpoint) as first:
            exchange(first, service.peer())
            assert not first.session_reused
        with pool.connection(service.endpoint), pool.connection(service.endpoint) as second:
            assert second.session_reused
            exchange(second, service.peer())
    finally:
        pool.close()


def test_a_session_outlives_a_connection_that_was_only_made_and_disposed_of(
    manager: SslSocketConnectionManager,
    service: Service,
) -> None:
    conn = manager.create(service.endpoint)
    exchange(conn, service.peer())
    manager.dispose(service.endpoint, conn)
    with manager.create(service.endpoint) as conn:
        assert conn.session_reused


def test_no_session_is_resumed_where_that_is_not_wanted(service: Service) -> None:
    manager = SslSocketConnectionManager(client_context(), session_reuse=False)
    for _ in range(2):
        conn = manager.create(service.endpoint)
        exchange(conn, service.peer())
        assert not conn.session_reused
        manager.dispose(service.endpoint, conn)


def test_a_session_is_for_its_endpoint_only(manager: SslSocketConnectionManager, pair: Pair, service: Service) -> None:
    conn, peer = pair
    exchange(conn, peer)
    manager.dispose(service.endpoint, conn)
    with manager.create(('localhost', service.port)) as conn:
        assert not conn.session_reused


def test_a_session_that_a_handshake_failed_with_is_not_offered_again(manager: SslSocketConnectionManager) -> None:
    handshake, fails = shaking_hands(server_context()), threading.Event()
    with Service(lambda sock: garbage(sock) if fails.is_set() else handshake(sock)) as service:
        conn = manager.create(service.endpoint)
        exchange(conn, service.peer())
        manager.dispose(service.endpoint, conn)
        fails.set()
        with pytest.raises(OSError):
            manager.create(service.endpoint, 5.0)
        fails.clear()
        with manager.create(service.endpoint) as conn:
            assert not conn.session_reused


def offers_session(hello: bytes) -> bool:
    """Tell whether a ClientHello offers a session: by a ticket (TLS 1.2) or a pre-shared key (TLS 1.3)."""
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]  # session id
    at += 2 + int.from_bytes(hello[at : at + 2], 'big')  # cipher suites
    at += 1 + hello[at] + 2  # compression methods, and the length of the extensions
    while at < len(hello):
        kind, size = struct.unpack('!HH', hello[at : at + 4])
        if kind == 41 or (kind == 35 and size):
            return True
        at += 4 + size
    return False


@pytest.mark.parametrize('version', VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize('refuse', [reset, garbage, socket.socket.close], ids=['reset', 'alert', 'EOF'])
def test_a_server_that_refuses_sessions_is_connected_without(
    manager: SslSocketConnectionManager,
    version: ssl.TLSVersion,
    refuse: Any,
) -> None:
    handshake = shaking_hands(server_context(version=version))
    refused = []

    def prepare(sock: socket.socket) -> socket.socket | None:
        if offers_session(sock.recv(65536, socket.MSG_PEEK)):
            refused.append(sock)
            refuse(sock)
            return None
        return handshake(sock)

    with Service(prepare) as service:
        for number in range(4):
            conn = manager.create(service.endpoint, 5.0)
            exchange(conn, service.peer())
            manager.on_release(service.endpoint, conn)
            manager.dispose(service.endpoint, conn)
            assert len(refused) == number


def test_the_second_try_is_within_the_same_deadline(manager: SslSocketConnectionManager) -> None:
    handshake, fails = shaking_hands(server_context()), threading.Event()
    tries = []

    def prepare(sock: socket.socket) -> socket.socket | None:
        if not fails.is_set():
            return handshake(sock)
        tries.append(sock)
        if len(tries) > 1:
            drip(sock)
        else:
            sock.recv(65536)
            reset(sock)
        return None

    with Service(prepare) as service:
        conn = manager.create(service.endpoint, 5.0)
        exchange(conn, service.peer())
        manager.dispose(service.endpoint, conn)
        fails.set()
        with lasting(0.2), pytest.raises(TimeoutError):
            manager.create(service.endpoint, 0.2)
        assert len(tries) == 2


def test_100_000_endpoints_leave_a_bounded_number_of_sessions(pair: Pair) -> None:
    conn, peer = pair
    exchange(conn, peer)
    sessions = _tls.Sessions()
    session = conn.session

    class Conn:  # a copy of the real session for each would take a minute
        version = staticmethod(conn.version)

        @property
        def session(self) -> Any:
            return session

    for port in range(100_000):
        sessions.keep(('127.0.0.1', port), Conn())  # type: ignore[arg-type]
    assert len(sessions._sessions) == _tls.MAX_SESSIONS
    assert sessions.find(('127.0.0.1', 99_999)) is session
    assert sessions.find(('127.0.0.1', 0)) is None


# ---- aliveness


def test_tickets_are_no_data(manager: SslSocketConnectionManager) -> None:
    with Service(shaking_hands(server_context(version=ssl.TLSVersion.TLSv1_3))) as service:
        with manager.create(service.endpoint, 5.0) as conn, service.peer():
            await_input(conn.fileno())  # else this shows nothing
            assert manager.check_aliveness(service.endpoint, conn)
            assert manager.check_aliveness(service.endpoint, conn)
            assert conn.session is not None and conn.session.has_ticket


@pytest.mark.parametrize('mode', [None, 0, 60])
def test_a_check_neither_waits_nor_touches_the_blocking_mode(
    manager: SslSocketConnectionManager,
    pair: Pair,
    mode: float | None,
) -> None:
    conn, peer = pair
    conn.settimeout(mode)
    with lasting(0):
        assert manager.check_aliveness(conn.getpeername(), conn)
        assert conn.gettimeout() == mode
        peer.sendall(b'!')
        await_input(conn.fileno())
        assert not manager.check_aliveness(conn.getpeername(), conn)
    assert conn.gettimeout() == mode


@pytest.mark.parametrize(
    'lapse',
    [
        'data',
        'close_notify',
        'close_notify after use',
        'eof',
        'half-close',
        'reset',
        'half a record',
        'rest',
        'closed here',
        'unwrapped here',
    ],
)
def test_what_means_dead(manager: SslSocketConnectionManager, pair: Pair, lapse: str) -> None:
    conn, peer = pair
    endpoint = conn.getpeername()
    if lapse not in ('close_notify', 'eof', 'half-close', 'reset'):
        exchange(conn, peer)
    assert manager.check_aliveness(endpoint, conn)
    with raw(peer) as wire:
        if lapse == 'data':
            peer.sendall(b'!')
        elif lapse.startswith('close_notify'):
            peer.settimeout(0)
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.unwrap()
        elif lapse == 'eof':
            wire.shutdown(socket.SHUT_RDWR)
        elif lapse == 'half-close':
            wire.shutdown(socket.SHUT_WR)
        elif lapse == 'reset':
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            wire.close()
            peer.close()
        elif lapse == 'half a record':
            wire.sendall(b'\x17\x03\x03\x01\x00' + bytes(100))
        elif lapse == 'rest':
            peer.sendall(b'too much')
            assert conn.recv(3) == b'too'
        elif lapse == 'closed here':
            conn.close()
        else:
            conn.settimeout(0)
            with contextlib.suppress(ssl.SSLWantReadError):
                conn.unwrap()
            wire.shutdown(socket.SHUT_RDWR)
        if lapse not in ('rest', 'closed here'):
            await_input(conn.fileno())
        assert not manager.check_aliveness(endpoint, conn)


def test_where_the_protocol_allows_it_data_is_fine_and_the_end_behind_it_is_seen(service: Service) -> None:
    manager = SslSocketConnectionManager(client_context(), unsolicited_data='allowed')
    with manager.create(service.endpoint) as conn, service.peer() as peer:
        exchange(conn, peer)
        peer.sendall(b'news')
        await_input(conn.fileno())
        assert manager.check_aliveness(service.endpoint, conn)
        assert conn.recv(2) == b'ne'
        assert manager.check_aliveness(service.endpoint, conn)
        peer.sendall(b'more')
        peer.shutdown(socket.SHUT_WR)
        poller = select.poll()
        poller.register(conn, select.POLLRDHUP)
        assert poller.poll(10_000)
        assert not manager.check_aliveness(service.endpoint, conn)


def test_the_pool_replaces_a_connection_that_the_server_ended(
    manager: SslSocketConnectionManager,
    service: Service,
) -> None:
    pool: ConnectionPool[SslEndpoint, ssl.SSLSocket] = ConnectionPool(manager)
    try:
        with pool.connection(service.endpoint) as first:
            exchange(first, service.peer())
        with pool.connection(service.endpoint) as again:
            assert again is first
        service.shut_down()
        await_input(first.fileno())
        with pool.connection(service.endpoint) as other:
            assert other is not first
            exchange(other, service.peer())
        assert first.fileno() == -1
    finally:
        pool.close()


# ---- disposal


def test_dispose_sends_close_notify(manager: SslSocketConnectionManager, pair: Pair) -> None:
    conn, peer = pair
    exchange(conn, peer)
    with lasting(0):
        manager.dispose(conn.getpeername(), conn)
    assert conn.fileno() == -1
    assert peer.recv(100) == b''  # at an EOF alone, this raises: ragged ones are not suppressed here


def test_dispose_of_what_is_dead_or_disposed_of_is_no_error(manager: SslSocketConnectionManager, pair: Pair) -> None:
    conn, peer = pair
    endpoint = conn.getpeername()
    with raw(peer) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    peer.close()
    await_input(conn.fileno())
    manager.dispose(endpoint, conn)
    manager.dispose(endpoint, conn)


def test_a_peer_that_does_not_read_delays_the_close_no_longer_than_the_timeout(
    manager: SslSocketConnectionManager,
    pair: Pair,
) -> None:
    conn, _ = pair
    conn.settimeout(0)
    with pytest.raises(ssl.SSLWantWriteError):
        while True:
            conn.send(bytes(65536))
    endpoint = conn.getpeername()
    with lasting(0.2):
        manager.dispose(endpoint, conn, 0.2)
    assert conn.fileno() == -1


def test_a_thread_that_waits_for_an_answer_is_released_by_close(
    manager: SslSocketConnectionManager,
    service: Service,
) -> None:
    pool: ConnectionPool[SslEndpoint, ssl.SSLSocket] = ConnectionPool(manager)
    waits, ended = threading.Event(), threading.Event()

    def use() -> None:
        with pool.connection(service.endpoint) as conn:
            exchange(conn, service.peer())
            waits.set()
            with contextlib.suppress(OSError, ValueError):
                conn.recv(100)
            ended.set()

    thread = threading.Thread(target=use)
    thread.start()
    assert waits.wait(10)
    pool.close(0)
    assert ended.wait(10)
    thread.join(60)


def test_a_connection_in_use_is_broken_off_without_a_word_in_the_midst_of_its_users(
    manager: SslSocketConnectionManager,
    pair: Pair,
) -> None:
    conn, peer = pair
    endpoint = conn.getpeername()
    manager.on_acquire(endpoint, conn)
    manager.dispose(endpoint, conn)
    with pytest.raises(OSError, match=r'EOF|reset|Broken pipe'):
        peer.recv(100)


def test_a_released_connection_is_sent_close_notify(manager: SslSocketConnectionManager, pair: Pair) -> None:
    conn, peer = pair
    endpoint = conn.getpeername()
    manager.on_acquire(endpoint, conn)
    manager.on_release(endpoint, conn)
    manager.dispose(endpoint, conn)
    assert peer.recv(100) == b''


def test_a_forked_child_says_nothing_to_its_parents_peer(manager: SslSocketConnectionManager, pair: Pair) -> None:
    conn, peer = pair
    exchange(conn, peer)
    endpoint = conn.getpeername()
    child = os.fork()
    if not child:
        manager.dispose(endpoint, conn)
        os._exit(conn.fileno() != -1)
    assert os.waitpid(child, 0)[1] == 0
    exchange(conn, peer)


def test_a_signal_during_a_handshake_is_heard_and_leaves_nothing(manager: SslSocketConnectionManager) -> None:
    class Heard(Exception):
        pass

    def hear(*args: object) -> None:
        raise Heard

    usual = signal.signal(signal.SIGALRM, hear)
    before = open_descriptors()
    try:
        with Service() as service:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(Heard):
                manager.create(service.endpoint, None)
        assert open_descriptors() == before
    finally:
        signal.signal(signal.SIGALRM, usual)


def test_nothing_is_kept_of_a_connection_that_is_gone(manager: SslSocketConnectionManager, service: Service) -> None:
    for _ in range(3):
        conn = manager.create(service.endpoint)
        manager.dispose(service.endpoint, conn)
    del conn
    gc.collect()
    assert not len(manager._states)


# ---- arguments


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        ({'ssl': True}, TypeError, 'ssl: an ssl.SSLContext, or None for one that verifies, was expected, not True'),
        ({'ssl': ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}, ValueError, 'ssl: a client'),
        ({'server_hostname': 1}, TypeError, 'server_hostname: a host name, or None for that of the endpoint, was'),
        ({'server_hostname': ''}, ValueError, "server_hostname: a host name was expected, not ''"),
        ({'server_hostname': '.x'}, ValueError, "server_hostname: a host name was expected, not '.x'"),
        ({'server_hostname': 'a' * 64}, ValueError, 'server_hostname: a host name was expected'),
        ({'alpn_protocols': 'h2'}, TypeError, "alpn_protocols: a sequence of names was expected, not 'h2'"),
        ({'alpn_protocols': [b'h2']}, TypeError, 'alpn_protocols: a sequence of names was expected'),
        ({'alpn_protocols': ['']}, ValueError, 'alpn_protocols: names of 1 to 255 ASCII characters were expected'),
        ({'alpn_protocols': ['\xe4']}, ValueError, 'alpn_protocols: names of 1 to 255 ASCII characters were expected'),
        ({'keepalive': 60}, TypeError, 'keepalive: a KeepAlive or None was expected, not 60'),
        ({'unsolicited_data': 'maybe'}, ValueError, "unsolicited_data: 'dead' or 'allowed' was expected, not 'maybe'"),
    ],
)
def test_a_wrong_argument_is_told(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        SslSocketConnectionManager(**arguments)
    assert str(caught.value).startswith(words)


def test_keepalive_can_be_left_out(service: Service) -> None:
    for keepalive in (None, KeepAlive(idle=1, interval=1, count=1)):
        with SslSocketConnectionManager(client_context(), keepalive=keepalive).create(service.endpoint) as conn:
            assert bool(conn.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is (keepalive is not None)


def test_the_mixin_serves_connections_of_other_managers(pair: Pair) -> None:
    conn, peer = pair
    mixin: SslSocketAlivenessCheckingMixin[str] = SslSocketAlivenessCheckingMixin()
    assert mixin.check_aliveness('any', conn)
    peer.close()
    await_input(conn.fileno())
    deadline = time.monotonic() + 60
    while mixin.check_aliveness('any', conn):  # first the tickets, then the end
        assert time.monotonic() < deadline
