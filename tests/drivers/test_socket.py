"""TCP connections: every kind of endpoint and of peer, and no descriptor left anywhere."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from peers import (
    Service,
    await_input,
    await_left_behind,
    deaf_server,
    lasting,
    link_local_address,
    open_descriptors,
)
from starvation import SOON

from gcp.contrib import _tcp
from gcp.contrib.socket import KeepAlive, SocketAlivenessCheckingMixin, TcpEndpoint, TcpSocketConnectionManager
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
    manager: TcpSocketConnectionManager,
    listener: socket.socket,
    host: Any,
    timeout: float | None,
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
    manager: TcpSocketConnectionManager,
    listener: socket.socket,
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


def test_where_the_protocol_allows_it_data_is_fine_and_the_end_behind_it_is_seen(listener: socket.socket) -> None:
    manager = TcpSocketConnectionManager(unsolicited_data='allowed')
    with manager.create(listener.getsockname()) as conn, listener.accept()[0] as peer:
        assert manager.check_aliveness(listener.getsockname(), conn)
        peer.sendall(b'news')
        await_input(conn.fileno())
        assert manager.check_aliveness(listener.getsockname(), conn)
        peer.shutdown(socket.SHUT_WR)
        poller = select.poll()
        poller.register(conn, select.POLLRDHUP)
        assert poller.poll(10_000)
        assert not manager.check_aliveness(listener.getsockname(), conn)
        conn.close()
        assert not manager.check_aliveness(listener.getsockname(), conn)


def test_a_subclass_may_allow_data(listener: socket.socket) -> None:
    class Chatty(TcpSocketConnectionManager):
        unsolicited_data = 'allowed'

    manager = Chatty()
    with manager.create(listener.getsockname()) as conn, listener.accept()[0] as peer:
        peer.sendall(b'news')
        await_input(conn.fileno())
        assert manager.check_aliveness(listener.getsockname(), conn)


@pytest.mark.parametrize('lapse', ['eof', 'half-close', 'reset', 'data', 'closed here'])
def test_whatever_can_be_read_from_an_idle_socket_means_dead(
    manager: TcpSocketConnectionManager,
    pair: tuple[socket.socket, socket.socket],
    lapse: str,
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
    manager: TcpSocketConnectionManager,
    pair: tuple[socket.socket, socket.socket],
    mode: float | None,
) -> None:
    conn, _ = pair
    conn.settimeout(mode)
    started = time.monotonic()
    assert manager.check_aliveness(conn.getpeername(), conn)
    assert time.monotonic() - started < SOON
    assert conn.gettimeout() == mode


def test_the_mixin_serves_sockets_of_other_kinds() -> None:
    mixin: SocketAlivenessCheckingMixin[str] = SocketAlivenessCheckingMixin()
    ours, theirs = socket.socketpair()
    with ours:
        assert mixin.check_aliveness('pair', ours)
        theirs.close()
        assert not mixin.check_aliveness('pair', ours)


def test_all_addresses_are_tried(
    manager: TcpSocketConnectionManager,
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses = [address_of(closed_port()), address_of(closed_port()), address_of(port_of(listener))]
    monkeypatch.setattr('socket.getaddrinfo', lambda *args, **kwargs: addresses)
    before = open_descriptors()
    with manager.create(('many.example', 80), 5.0) as conn:
        assert conn.getpeername() == listener.getsockname()
        assert open_descriptors() == before + 1


def created(manager: TcpSocketConnectionManager, host: str, timeout: float) -> socket.socket:
    """Connect within a time that a busy machine may need several times."""
    for _ in range(20):
        with contextlib.suppress(TimeoutError):
            return manager.create((host, 80), timeout)
    return manager.create((host, 80), timeout)


def test_a_silent_address_leaves_time_for_the_next(
    manager: TcpSocketConnectionManager,
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with deaf_server() as deaf:
        addresses = [address_of(deaf), address_of(port_of(listener))]
        monkeypatch.setattr('socket.getaddrinfo', lambda *args, **kwargs: addresses)
        with created(manager, 'two.example', 0.4) as conn:
            assert conn.getpeername() == listener.getsockname()


def test_a_peer_that_does_not_accept_costs_the_timeout_and_no_descriptor(manager: TcpSocketConnectionManager) -> None:
    with deaf_server() as port:
        before, started = open_descriptors(), time.monotonic()
        with pytest.raises(TimeoutError, match=f'127.0.0.1 port {port}'):
            manager.create(('127.0.0.1', port), 0.3)
        assert 0.3 <= time.monotonic() - started < SOON
        assert open_descriptors() == before


def test_a_resolver_that_does_not_answer_costs_the_timeout(
    manager: TcpSocketConnectionManager,
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Event()

    def resolve(*args: object, **kwargs: object) -> list[tuple[Any, ...]]:
        gate.wait(60)
        return [address_of(port_of(listener))]

    monkeypatch.setattr('socket.getaddrinfo', resolve)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match='slow.example'):
        manager.create(('slow.example', 80), 0.2)
    assert 0.2 <= time.monotonic() - started < SOON
    gate.set()
    await_left_behind()


def test_a_resolver_that_refuses_is_heard(
    manager: TcpSocketConnectionManager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(*args: object, **kwargs: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')

    monkeypatch.setattr('socket.getaddrinfo', resolve)
    for timeout in (None, 5.0):
        with pytest.raises(socket.gaierror, match='not known'):
            manager.create(('no.example', 80), timeout)


def test_families_take_turns_and_the_first_comes_first() -> None:
    v6, v4 = [(10, 1, 6, '', n) for n in 'abc'], [(2, 1, 6, '', n) for n in 'de']
    assert [address[4] for address in _tcp._interleaved(v6 + v4)] == ['a', 'd', 'b', 'e', 'c']  # type: ignore[arg-type]
    assert _tcp._interleaved(v4) == v4  # type: ignore[arg-type]


def test_the_next_address_gets_its_chance_while_the_first_is_silent(
    manager: TcpSocketConnectionManager,
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with deaf_server() as deaf:
        addresses = [address_of(deaf), address_of(deaf), address_of(closed_port()), address_of(port_of(listener))]
        monkeypatch.setattr('socket.getaddrinfo', lambda *args, **kwargs: addresses)
        before = open_descriptors()
        for timeout, expected in [(60.0, 2 * _tcp.ATTEMPT_DELAY), (0.2, 0.1)]:
            with lasting(expected), created(manager, 'many.example', timeout) as conn:
                assert conn.getpeername() == listener.getsockname()
                assert open_descriptors() == before + 1


def test_a_family_that_the_host_does_not_have_is_passed_over(
    manager: TcpSocketConnectionManager,
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses = [(12345, socket.SOCK_STREAM, 6, '', ('x', 1)), address_of(port_of(listener))]
    monkeypatch.setattr('socket.getaddrinfo', lambda *args, **kwargs: addresses)
    with manager.create(('strange.example', 80), 5.0) as conn:
        assert conn.getpeername() == listener.getsockname()


def test_an_ipv6_address_with_a_scope(manager: TcpSocketConnectionManager) -> None:
    address = link_local_address()
    with socket.create_server(socket.getaddrinfo(address, 0)[0][4], family=socket.AF_INET6) as listener:
        for host in (address, IPv6Address(address)):
            with manager.create((host, port_of(listener)), 5.0) as conn:
                assert conn.getpeername()[3] == listener.getsockname()[3] != 0


def test_what_production_wants_is_set_on_each_socket(listener: socket.socket) -> None:
    keepalive = KeepAlive(idle=30, interval=4.5, count=3)
    manager = TcpSocketConnectionManager(keepalive=keepalive, source_address=('127.0.0.2', 0))
    with manager.create(listener.getsockname()) as conn:
        assert conn.getsockname()[0] == '127.0.0.2'
        assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5
        assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
    with TcpSocketConnectionManager(keepalive=None, nodelay=False).create(listener.getsockname()) as conn:
        assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
        assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_a_source_address_of_another_family_is_told(manager: TcpSocketConnectionManager) -> None:
    manager, before = TcpSocketConnectionManager(source_address=('::1', 0)), open_descriptors()
    with pytest.raises(OSError, match='source_address ::1 is of another family than the host'):
        manager.create(('127.0.0.1', closed_port()))
    assert open_descriptors() == before


def test_200_refusals_leave_no_descriptor(manager: TcpSocketConnectionManager) -> None:
    port, before = closed_port(), open_descriptors()
    for _ in range(200):
        with pytest.raises(ConnectionRefusedError):
            manager.create(('127.0.0.1', port), 5.0)
    assert open_descriptors() == before


def test_dispose_tells_the_peer_though_a_forked_child_holds_a_copy(
    manager: TcpSocketConnectionManager,
    pair: tuple[socket.socket, socket.socket],
) -> None:
    conn, peer = pair
    with conn.dup():
        manager.dispose(conn.getpeername(), conn)
        assert peer.recv(1) == b''
    assert conn.fileno() == -1


def test_dispose_of_a_dead_connection_is_no_error(
    manager: TcpSocketConnectionManager,
    pair: tuple[socket.socket, socket.socket],
) -> None:
    conn, peer = pair
    endpoint = conn.getpeername()
    peer.close()
    await_input(conn.fileno())
    manager.dispose(endpoint, conn)
    manager.dispose(endpoint, conn)


def test_a_thread_that_waits_for_an_answer_is_released_by_close(manager: TcpSocketConnectionManager) -> None:
    with Service() as service:
        pool: ConnectionPool[TcpEndpoint, socket.socket] = ConnectionPool(manager)
        heard: list[bytes] = []
        waits = threading.Event()

        def use() -> None:
            with pool.connection(service.endpoint) as conn:
                waits.set()
                try:
                    heard.append(conn.recv(100))
                except OSError:  # it was closed before the thread came to wait
                    heard.append(b'')

        thread = threading.Thread(target=use)
        thread.start()
        assert waits.wait(10)
        pool.close(0)
        thread.join(60)
        assert heard == [b'']


def test_a_forked_child_does_not_end_its_parents_connection(
    manager: TcpSocketConnectionManager,
    pair: tuple[socket.socket, socket.socket],
) -> None:
    conn, peer = pair
    child = os.fork()
    if not child:
        manager.dispose(conn.getpeername(), conn)
        os._exit(conn.fileno() != -1)
    assert os.waitpid(child, 0)[1] == 0
    conn.sendall(b'ping')
    assert peer.recv(100) == b'ping'


@pytest.mark.parametrize(
    ('endpoint', 'error', 'words'),
    [
        ('localhost:80', TypeError, "a (host, port) pair was expected, not 'localhost:80'"),
        (('localhost',), TypeError, "a (host, port) pair was expected, not ('localhost',)"),
        ((80, 'localhost'), TypeError, 'a host name or an IP address was expected, not 80'),
        (('', 80), ValueError, "a host name or an IP address without brackets was expected, not ''"),
        (('[::1]', 80), ValueError, "a host name or an IP address without brackets was expected, not '[::1]'"),
        (('a' * 64 + '.example', 80), ValueError, f"a host name was expected, not '{'a' * 64}.example'"),
        (('nu\0l', 80), ValueError, "a host name or an IP address without brackets was expected, not 'nu\\x00l'"),
        (('localhost', '80'), TypeError, "a port number was expected, not '80'"),
        (('localhost', True), TypeError, 'a port number was expected, not True'),
        (('localhost', 0), ValueError, 'a port number from 1 to 65535 was expected, not 0'),
        (('localhost', 65536), ValueError, 'a port number from 1 to 65535 was expected, not 65536'),
    ],
)
def test_a_wrong_endpoint_is_told(
    manager: TcpSocketConnectionManager,
    endpoint: Any,
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error) as caught:
        manager.create(endpoint)
    assert str(caught.value) == f'endpoint: {words}'


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        ({'keepalive': True}, TypeError, 'keepalive: a KeepAlive or None was expected, not True'),
        ({'nodelay': 1}, TypeError, 'nodelay: a bool was expected, not 1'),
        ({'source_address': '127.0.0.1'}, TypeError, 'source_address: an (IP address, port) pair'),
        ({'source_address': ('127.0.0.1', True)}, TypeError, 'source_address: an (IP address, port) pair'),
        ({'source_address': ('localhost', 0)}, ValueError, 'source_address: an (IP address, port) pair'),
        ({'source_address': ('127.0.0.1', 65536)}, ValueError, 'source_address: an (IP address, port) pair'),
        ({'unsolicited_data': True}, ValueError, "unsolicited_data: 'dead' or 'allowed' was expected, not True"),
    ],
)
def test_a_wrong_argument_is_told(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        TcpSocketConnectionManager(**arguments)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        ({'idle': '60'}, TypeError, "idle: seconds were expected, not '60'"),
        ({'idle': True}, TypeError, 'idle: seconds were expected, not True'),
        ({'idle': 0}, ValueError, 'idle: more than 0 and at most 32767 seconds were expected, not 0'),
        ({'idle': float('nan')}, ValueError, 'idle: more than 0 and at most 32767 seconds were expected, not nan'),
        ({'interval': -1}, ValueError, 'interval: more than 0 and at most 32767 seconds were expected, not -1'),
        ({'count': 1.0}, TypeError, 'count: a number of probes was expected, not 1.0'),
        ({'count': 128}, ValueError, 'count: a number of probes from 1 to 127 was expected, not 128'),
    ],
)
def test_a_wrong_part_of_keepalive_is_told(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        KeepAlive(**arguments)
    assert str(caught.value) == words


def test_the_limits_of_keepalive_are_those_of_the_kernel(listener: socket.socket) -> None:
    for keepalive in (KeepAlive(idle=0.1, interval=0.1, count=1), KeepAlive(idle=32767, interval=32767, count=127)):
        TcpSocketConnectionManager(keepalive=keepalive).create(listener.getsockname()).close()


@pytest.mark.parametrize('seconds', [1.5, 1e10, sys.maxsize])
def test_the_limit_of_unacknowledged_data_reaches_the_kernel(listener: socket.socket, seconds: float) -> None:
    manager = TcpSocketConnectionManager(user_timeout=seconds)
    with manager.create(('127.0.0.1', port_of(listener)), 5) as conn:
        set_to = conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert set_to == (1500 if seconds == 1.5 else 2147483000)


@pytest.mark.parametrize(('seconds', 'error'), [(0, ValueError), (-1, ValueError), ('1', TypeError), (True, TypeError)])
def test_an_impossible_limit_of_unacknowledged_data_is_refused(seconds: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match='user_timeout: .*expected'):
        TcpSocketConnectionManager(user_timeout=seconds)


@pytest.mark.parametrize(
    ('host', 'decoded'),
    [
        ('fe80::1%25eth0', 'fe80::1%eth0'),
        ('fe80::1%eth0', 'fe80::1%eth0'),
        ('fe80::1%25', 'fe80::1%25'),
        ('fe80::1%251', 'fe80::1%251'),  # the number of an interface
        ('fe80::1%25eb0', 'fe80::1%eb0'),
        ('fe80::1%eb0', 'fe80::1%eb0'),
        ('fe80::1%25a%2Db', 'fe80::1%a-b'),
        ('name%25eth0', 'name%25eth0'),
        ('example.org', 'example.org'),
    ],
)
def test_a_scope_is_understood_in_both_forms(host: str, decoded: str) -> None:
    assert _tcp.check_endpoint((host, 80)) == (decoded, 80)
