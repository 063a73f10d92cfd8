"""TCP connections: every kind of endpoint and of peer, and no descriptor left anywhere."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from peers import await_input, await_left_behind, deaf_server, open_descriptors

from gcp.contrib.socket import SocketAlivenessCheckingMixin, TcpEndpoint, TcpSocketConnectionManager
from gcp.threading import ConnectionPool


@pytest.fixture
def manager() -> TcpSocketConnectionManager:
    return TcpSocketConnectionManager()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(('127.0.0.1', 0)) as listener:
        yield listener


@pytest.fixture
def pair(manager: TcpSocketConnectionManager, listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection of the manager's, and its other end."""
    conn = manager.create(('127.0.0.1', port_of(listener)))
    peer, _ = listener.accept()
    with conn, peer:
        yield conn, peer


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def closed_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as listener:
        return port_of(listener)


def address_of(port: int) -> tuple[Any, ...]:
    return socket.AF_INET, socket.SOCK_STREAM, 6, '', ('127.0.0.1', port)


@pytest.mark.parametrize('host', ['localhost', '127.0.0.1', IPv4Address('127.0.0.1')], ids=repr)
@pytest.mark.parametrize('timeout', [None, 5.0])
def test_connects_to_a_name_and_an_address(
        manager: TcpSocketConnectionManager, listener: socket.socket, host: Any, timeout: float | None,
) -> None:
    with manager.create((host, port_of(listener)), timeout) as conn:
        assert conn.getpeername() == listener.getsockname()
        assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert conn.gettimeout() is None


@pytest.mark.parametrize('host', ['::1', IPv6Address('::1')], ids=repr)
def test_connects_to_an_ipv6_address(manager: TcpSocketConnectionManager, host: Any) -> None:
    try:
        listener = socket.create_server(('::1', 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f'no IPv6 here: {error}')
    with listener, manager.create((host, port_of(listener)), 5.0) as conn:
        assert conn.family == socket.AF_INET6


def test_the_pool_reuses_a_connection_and_replaces_a_dead_one(
        manager: TcpSocketConnectionManager, listener: socket.socket,
) -> None:
    endpoint = ('127.0.0.1', port_of(listener))
    pool: ConnectionPool[TcpEndpoint, socket.socket] = ConnectionPool(manager)
    try:
        with pool.connection(endpoint) as first:
            peer, _ = listener.accept()
        with pool.connection(endpoint) as again:
            assert again is first
        with peer:
            pass
        await_input(first.fileno())
        with pool.connection(endpoint) as other:
            assert other is not first
        assert first.fileno() == -1
    finally:
        pool.close()


@pytest.mark.parametrize('lapse', ['eof', 'half-close', 'reset', 'data', 'closed here'])
def test_whatever_can_be_read_from_an_idle_socket_means_dead(
        manager: TcpSocketConnectionManager, pair: tuple[socket.socket, socket.socket], lapse: str,
) -> None:
    conn, peer = pair
    endpoint = conn.getpeername()
    assert manager.check_aliveness(endpoint, conn)
    if lapse == 'eof':
        peer.close()
    elif lapse == 'half-close':
        peer.shutdown(socket.SHUT_WR)
    elif lapse == 'reset':
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        peer.close()
    elif lapse == 'data':
        peer.sendall(b'!')
    if lapse == 'closed here':
        conn.close()
    else:
        await_input(conn.fileno())
    assert not manager.check_aliveness(endpoint, conn)


@pytest.mark.parametrize('mode', [None, 0, 60])
def test_a_check_neither_waits_nor_touches_the_blocking_mode(
        manager: TcpSocketConnectionManager, pair: tuple[socket.socket, socket.socket], mode: float | None,
) -> None:
    conn, _ = pair
    conn.settimeout(mode)
    started = time.monotonic()
    assert manager.check_aliveness(conn.getpeername(), conn)
    assert time.monotonic() - started < 1
    assert conn.gettimeout() == mode


def test_the_mixin_serves_sockets_of_other_kinds() -> None:
    mixin: SocketAlivenessCheckingMixin[str] = SocketAlivenessCheckingMixin()
    ours, theirs = socket.socketpair()
    with ours:
        assert mixin.check_aliveness('pair', ours)
        theirs.close()
        assert not mixin.check_aliveness('pair', ours)


def test_all_addresses_are_tried(
        manager: TcpSocketConnectionManager, listener: socket.socket, monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses = [address_of(closed_port()), address_of(closed_port()), address_of(port_of(listener))]
    monkeypatch.setattr('socket.getaddrinfo', lambda *args, **kwargs: addresses)
    before = open_descriptors()
    with manager.create(('many.example', 80), 5.0) as conn:
        assert conn.getpeername() == listener.getsockname()
        assert open_descriptors() == before + 1


def test_a_silent_address_leaves_time_for_the_next(
        manager: TcpSocketConnectionManager, listener: socket.socket, monkeypatch: pytest.MonkeyPatch,
) -> None:
    with deaf_server() as deaf:
        addresses = [address_of(deaf), address_of(port_of(listener))]
        monkeypatch.setattr('socket.getaddrinfo', lambda *args, **kwargs: addresses)
        with manager.create(('two.example', 80), 0.4) as conn:
            assert conn.getpeername() == listener.getsockname()


def test_a_peer_that_does_not_accept_costs_the_timeout_and_no_descriptor(manager: TcpSocketConnectionManager) -> None:
    with deaf_server() as port:
        before, started = open_descriptors(), time.monotonic()
        with pytest.raises(TimeoutError, match=f'127.0.0.1 port {port}'):
            manager.create(('127.0.0.1', port), 0.3)
        assert 0.3 <= time.monotonic() - started < 1.3
        assert open_descriptors() == before


def test_a_resolver_that_does_not_answer_costs_the_timeout(
        manager: TcpSocketConnectionManager, listener: socket.socket, monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Event()

    def resolve(*args: object, **kwargs: object) -> list[tuple[Any, ...]]:
        gate.wait(10)
        return [address_of(port_of(listener))]

    monkeypatch.setattr('socket.getaddrinfo', resolve)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match='slow.example'):
        manager.create(('slow.example', 80), 0.2)
    assert 0.2 <= time.monotonic() - started < 1.2
    gate.set()
    await_left_behind()


def test_a_resolver_that_refuses_is_heard(
        manager: TcpSocketConnectionManager, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(*args: object, **kwargs: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')

    monkeypatch.setattr('socket.getaddrinfo', resolve)
    for timeout in (None, 5.0):
        with pytest.raises(socket.gaierror, match='not known'):
            manager.create(('no.example', 80), timeout)


def test_a_hundred_refusals_leave_no_descriptor(manager: TcpSocketConnectionManager) -> None:
    port, before = closed_port(), open_descriptors()
    for _ in range(100):
        with pytest.raises(ConnectionRefusedError):
            manager.create(('127.0.0.1', port), 5.0)
    assert open_descriptors() == before


def test_dispose_tells_the_peer_though_a_forked_child_holds_a_copy(
        manager: TcpSocketConnectionManager, pair: tuple[socket.socket, socket.socket],
) -> None:
    conn, peer = pair
    with conn.dup():
        manager.dispose(conn.getpeername(), conn)
        assert peer.recv(1) == b''
    assert conn.fileno() == -1


def test_dispose_of_a_dead_connection_is_no_error(
        manager: TcpSocketConnectionManager, pair: tuple[socket.socket, socket.socket],
) -> None:
    conn, peer = pair
    endpoint = conn.getpeername()
    peer.close()
    await_input(conn.fileno())
    manager.dispose(endpoint, conn)
    manager.dispose(endpoint, conn)


@pytest.mark.parametrize(
    ('endpoint', 'error', 'words'),
    [
        ('localhost:80', TypeError, "a (host, port) pair was expected, not 'localhost:80'"),
        (('localhost',), TypeError, "a (host, port) pair was expected, not ('localhost',)"),
        ((80, 'localhost'), TypeError, 'a host name or an IP address was expected, not 80'),
        (('localhost', '80'), TypeError, "a port number was expected, not '80'"),
        (('localhost', True), TypeError, 'a port number was expected, not True'),
        (('localhost', 0), ValueError, 'a port number from 1 to 65535 was expected, not 0'),
        (('localhost', 65536), ValueError, 'a port number from 1 to 65535 was expected, not 65536'),
    ],
)
def test_a_wrong_endpoint_is_told(
        manager: TcpSocketConnectionManager, endpoint: Any, error: type[Exception], words: str,
) -> None:
    with pytest.raises(error) as caught:
        manager.create(endpoint)
    assert str(caught.value) == f'endpoint: {words}'
