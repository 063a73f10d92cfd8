"""TCP and TLS connections of the asyncio pool, as sockets and as streams, on both event loops. The same page as
test_socket.py and test_tls.py, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from peers import (
    Service,
    await_input,
    await_left_behind,
    client_context,
    deaf_server,
    drip,
    garbage,
    lasting,
    link_local_address,
    on_both_loops,
    open_sockets,
    reset,
    server_context,
    shaking_hands,
    shaking_hands_but_keeping_tickets,
)

from gcp.asyncio import ConnectionPool
from gcp.contrib import socket_async
from gcp.contrib._tcp import ATTEMPT_DELAY
from gcp.contrib.socket_async import (
    KeepAlive,
    SocketAlivenessCheckingMixin,
    StreamAlivenessCheckingMixin,
    TcpSocketConnectionManager,
    TcpStreamConnectionManager,
)

KINDS = ['socket', 'stream', 'tls']
Manager = Any  # one of those above


def manager_of(kind: str, **options: Any) -> Manager:
    if kind == 'socket':
        return TcpSocketConnectionManager(**options)
    return TcpStreamConnectionManager(client_context() if kind == 'tls' else None, **options)


def service_of(kind: str, **options: Any) -> Service:
    return Service(shaking_hands(server_context(**options))) if kind == 'tls' else Service()


def descriptor(conn: Any) -> int:
    """The descriptor of a connection; after its end, what it was, or -1."""
    sock = conn if isinstance(conn, socket.socket) else conn[1].get_extra_info('socket')
    fd: int = sock.fileno()
    return fd


def option(conn: Any, level: int, name: int) -> Any:
    sock = conn if isinstance(conn, socket.socket) else conn[1].get_extra_info('socket')
    return sock.getsockopt(level, name)


async def read(conn: Any) -> bytes:
    if isinstance(conn, socket.socket):
        return await asyncio.get_running_loop().sock_recv(conn, 100)
    return bytes(await conn[0].read(100))


async def write(conn: Any, words: bytes) -> None:
    if isinstance(conn, socket.socket):
        await asyncio.get_running_loop().sock_sendall(conn, words)
    else:
        conn[1].write(words)
        await conn[1].drain()


async def run_in_thread(work: Callable[[], Any]) -> Any:
    """Do something that waits, while the event loop goes on."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


async def exchange(conn: Any, peer: Any) -> None:
    await write(conn, b'ping')
    assert await run_in_thread(lambda: peer.recv(100)) == b'ping'
    peer.sendall(b'pong')
    assert await read(conn) == b'pong'


async def found_dead(manager: Manager, endpoint: Any, conn: Any) -> None:
    """Wait until the event loop, too, knows that a connection is dead."""
    while await manager.check_aliveness(endpoint, conn):
        await asyncio.sleep(0)


async def cancelled(work: Awaitable[Any], turns: int | None = None, seconds: float = 0.0) -> Any:
    """Cancel something after some turns of the event loop, or some time; return its result if it came first."""
    task = asyncio.ensure_future(work)
    if turns is None:
        await asyncio.wait([task], timeout=seconds)
    for _ in range(turns or 0):
        await asyncio.sleep(0)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None


@contextlib.asynccontextmanager
async def connected(kind: str, **options: Any) -> AsyncIterator[tuple[Manager, Any, Any]]:
    """A manager, a connection of its own, and the other end."""
    manager = manager_of(kind, **options)
    with service_of(kind) as service:
        conn = await manager.create(service.endpoint)
        peer = await run_in_thread(service.peer)
        peer.settimeout(10)
        try:
            yield manager, conn, peer
        finally:
            if isinstance(conn, socket.socket):
                conn.close()
            else:
                conn[1].transport.abort()
            await settle()


async def settle() -> None:
    """Let the event loop close what is to be closed."""
    for _ in range(5):
        await asyncio.sleep(0)


def closed_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def address_of(port: int) -> tuple[Any, ...]:
    return socket.AF_INET, socket.SOCK_STREAM, 6, '', ('127.0.0.1', port)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each look-up answers."""
    addresses: list[Any] = []
    monkeypatch.setattr('socket.getaddrinfo', lambda *args, **kwargs: addresses)
    return addresses


# ---- creation


@pytest.mark.parametrize('host', ['localhost', '127.0.0.1', IPv4Address('127.0.0.1')], ids=repr)
@on_both_loops
async def test_connects_to_a_name_and_an_address(kind: str, host: Any) -> None:
    manager = manager_of(kind)
    with service_of(kind) as service:
        conn = await manager.create((host, service.port))
        await exchange(conn, await run_in_thread(service.peer))
        assert option(conn, socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert option(conn, socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await manager.dispose((host, service.port), conn)


@on_both_loops
async def test_an_ipv6_address_with_a_scope() -> None:
    address = link_local_address()
    with socket.create_server(socket.getaddrinfo(address, 0)[0][4], family=socket.AF_INET6) as listener:
        for host in (address, IPv6Address(address)):
            manager = TcpSocketConnectionManager()
            with await manager.create((host, listener.getsockname()[1])) as conn:
                assert conn.getpeername()[3] == listener.getsockname()[3] != 0


@on_both_loops
async def test_what_production_wants_is_set(kind: str) -> None:
    keepalive = KeepAlive(idle=30, interval=5, count=3)
    async with connected(kind, keepalive=keepalive, source_address=('127.0.0.2', 0)) as (_, conn, peer):
        assert peer.getpeername()[0] == '127.0.0.2'
        assert option(conn, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert option(conn, socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5
        assert option(conn, socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
    async with connected(kind, keepalive=None, nodelay=False) as (_, conn, peer):
        assert not option(conn, socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not option(conn, socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@on_both_loops
async def test_the_next_address_gets_its_chance_while_the_first_is_silent(kind: str, addresses: list[Any]) -> None:
    manager = manager_of(kind, **({'server_hostname': 'localhost'} if kind == 'tls' else {}))
    with deaf_server() as deaf, service_of(kind) as service:
        addresses += [address_of(deaf), address_of(closed_port()), address_of(service.port)]
        before = open_sockets(tidy=True)
        with lasting(ATTEMPT_DELAY):
            conn = await manager.create(('many.example', 80))
        peer = await run_in_thread(service.peer)
        await settle()
        assert open_sockets() == before + 2
        await exchange(conn, peer)
        await manager.dispose(('many.example', 80), conn)


@on_both_loops
async def test_all_refuse(kind: str, addresses: list[Any]) -> None:
    addresses += [address_of(closed_port()), address_of(closed_port())]
    before = open_sockets(tidy=True)
    with pytest.raises(ConnectionRefusedError, match=f'refused: 127.0.0.1 port {addresses[1][4][1]}'):
        await manager_of(kind).create(('many.example', 80))
    assert open_sockets() == before


@on_both_loops
async def test_a_resolver_that_refuses_is_heard(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*args: object, **kwargs: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')

    monkeypatch.setattr('socket.getaddrinfo', resolve)
    with pytest.raises(socket.gaierror, match=r"not known: 'no\.example'"):
        await manager_of(kind).create(('no.example', 80))


@on_both_loops
async def test_resolvers_that_hang_delay_no_other_look_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    usual = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == 'slow.example':
            gate.wait(60)
        return usual('127.0.0.1', *args, **kwargs)

    monkeypatch.setattr('socket.getaddrinfo', resolve)
    manager = manager_of(kind)
    with service_of(kind) as service, lasting(0):
        hanging = [asyncio.ensure_future(manager.create(('slow.example', service.port))) for _ in range(64)]
        await settle()
        conn = await manager.create(('localhost', service.port))
        await manager.dispose(('localhost', service.port), conn)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
    gate.set()
    await_left_behind()
    await settle()


@on_both_loops
async def test_a_silent_peer_costs_the_timeout_of_the_pool(kind: str) -> None:
    before = open_sockets(tidy=True)
    with deaf_server() as deaf, Service() as silent:
        pool: ConnectionPool[Any, Any] = ConnectionPool(manager_of(kind))
        for port in (deaf, silent.port) if kind == 'tls' else (deaf,):
            with lasting(0.2), pytest.raises(TimeoutError):
                await pool.acquire(('127.0.0.1', port), timeout=0.2)
        await pool.close()
        await settle()
    assert open_sockets() == before


@pytest.mark.parametrize('behaviour', ['silent', 'drip', 'garbage', 'reset', 'eof', 'wrong certificate'])
@on_both_loops
async def test_200_failed_handshakes_leave_no_descriptor(behaviour: str) -> None:
    prepare: Any = {
        'silent': lambda sock: sock,
        'drip': drip,
        'garbage': garbage,
        'reset': reset,
        'eof': lambda sock: sock.close(),
        'wrong certificate': shaking_hands(server_context('elsewhere.example')),
    }[behaviour]
    manager = manager_of('tls')
    before = open_sockets(tidy=True)
    with Service(prepare) as service:
        for _ in range(200):
            if behaviour in ('silent', 'drip'):
                assert await cancelled(manager.create(service.endpoint), seconds=0.005) is None
            else:
                with pytest.raises(OSError):
                    await manager.create(service.endpoint)
        await settle()
    assert open_sockets() == before


@on_both_loops
async def test_200_refusals_leave_no_descriptor(kind: str) -> None:
    manager, endpoint, before = manager_of(kind), ('127.0.0.1', closed_port()), open_sockets(tidy=True)
    for _ in range(200):
        with pytest.raises(ConnectionRefusedError):
            await manager.create(endpoint)
    assert open_sockets() == before


@on_both_loops
async def test_a_cancellation_at_whatever_turn_leaves_nothing(kind: str, addresses: list[Any]) -> None:
    manager = manager_of(kind, **({'server_hostname': 'localhost'} if kind == 'tls' else {}))
    before, came = open_sockets(tidy=True), 0
    with service_of(kind) as service, deaf_server() as deaf:
        addresses += [address_of(service.port), address_of(deaf)]
        for host in ('127.0.0.1', 'many.example'):
            for turns in range(25):
                conn = await cancelled(manager.create((host, service.port)), turns)
                if conn is not None:
                    came += 1
                    await manager.dispose((host, service.port), conn)
            await_left_behind()
        await settle()
    assert open_sockets() == before
    assert came or kind == 'tls'  # else this was not the whole way


@on_both_loops
async def test_a_socket_that_a_loop_still_watches_is_not_closed_behind_its_back() -> None:
    """The next connection is given the same descriptor, and would be the one to suffer."""

    async def fail_after_close(sock: socket.socket) -> Any:
        await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=sock)
        raise asyncio.CancelledError

    manager, before = TcpSocketConnectionManager(), open_sockets(tidy=True)
    with Service() as service:
        with pytest.raises(asyncio.CancelledError):
            await socket_async.open_stream(await manager.create(service.endpoint), fail_after_close)
        first = await run_in_thread(service.peer)
        conn = await manager.create(service.endpoint)
        await exchange(conn, await run_in_thread(service.peer))
        assert first.recv(1) == b''
        await manager.dispose(service.endpoint, conn)
        await settle()
    assert open_sockets() == before


@pytest.mark.parametrize(
    ('context', 'words'),
    [
        (server_context('elsewhere.example'), 'IP address mismatch'),
        (server_context(issuer='evil'), 'certificate verify failed'),
        (server_context(expired=True), 'has expired'),
    ],
    ids=['name', 'issuer', 'expired'],
)
@on_both_loops
async def test_a_wrong_certificate_is_refused(context: ssl.SSLContext, words: str) -> None:
    with Service(shaking_hands(context)) as service:
        with pytest.raises(ssl.SSLCertVerificationError, match=words):
            await manager_of('tls').create(service.endpoint)
        await settle()


@on_both_loops
async def test_true_means_that_peers_are_verified() -> None:
    with Service(shaking_hands(server_context())) as service:
        with pytest.raises(ssl.SSLCertVerificationError):
            await TcpStreamConnectionManager(True).create(service.endpoint)
        await settle()


@on_both_loops
async def test_a_name_and_a_protocol_are_agreed_on() -> None:
    manager = manager_of('tls', server_hostname='elsewhere.example', alpn_protocols=['h2', 'http/1.1'])
    with Service(shaking_hands(server_context('elsewhere.example', alpn='http/1.1'))) as service:
        conn = await manager.create(service.endpoint)
        assert conn[1].get_extra_info('ssl_object').selected_alpn_protocol() == 'http/1.1'
        await manager.dispose(service.endpoint, conn)


# ---- aliveness


@on_both_loops
async def test_the_pool_reuses_a_connection_and_replaces_a_dead_one(kind: str) -> None:
    with service_of(kind) as service:
        pool: ConnectionPool[Any, Any] = ConnectionPool(manager_of(kind))
        async with pool.connection(service.endpoint) as first:
            await exchange(first, await run_in_thread(service.peer))
        async with pool.connection(service.endpoint) as again:
            assert again is first
        service.shut_down()
        await_input(descriptor(first))
        async with pool.connection(service.endpoint) as other:
            assert other is not first
            await exchange(other, await run_in_thread(service.peer))
        await pool.close()


@pytest.mark.parametrize('seen', ['by the kernel', 'by the loop'])
@pytest.mark.parametrize('lapse', ['data', 'close_notify', 'half-close', 'reset', 'rest', 'closed here'])
@on_both_loops
async def test_what_means_dead(kind: str, lapse: str, seen: str) -> None:
    async with connected(kind) as (manager, conn, peer):
        endpoint = peer.getsockname()
        await exchange(conn, peer)
        assert await manager.check_aliveness(endpoint, conn)
        if lapse == 'data':
            peer.sendall(b'!')
        elif lapse == 'close_notify':
            peer.settimeout(0)
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.unwrap() if kind == 'tls' else peer.shutdown(socket.SHUT_RDWR)
        elif lapse == 'half-close':
            peer.shutdown(socket.SHUT_WR)
        elif lapse == 'reset':
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            peer.close()
        elif lapse == 'rest':
            peer.sendall(b'too much')
            if kind == 'socket':
                await asyncio.get_running_loop().sock_recv(conn, 3)
            else:
                await conn[0].readexactly(3)
        elif kind == 'socket':
            conn.close()
        else:
            conn[1].close()
        if seen == 'by the loop':
            await asyncio.wait_for(found_dead(manager, endpoint, conn), 60)
        elif lapse not in ('rest', 'closed here'):
            await_input(descriptor(conn))  # no turn of the loop in between
        assert not await manager.check_aliveness(endpoint, conn)


@on_both_loops
async def test_tickets_are_no_data() -> None:
    manager, context = manager_of('tls'), server_context(version=ssl.TLSVersion.TLSv1_3)
    with Service(shaking_hands_but_keeping_tickets(context)) as service:
        conn = await manager.create(service.endpoint)
        peer = await run_in_thread(service.peer)
        assert peer.tickets
        assert await manager.check_aliveness(service.endpoint, conn)
        peer.sendall(peer.tickets)
        await_input(descriptor(conn))  # no turn of the loop in between
        assert await manager.check_aliveness(service.endpoint, conn)
        peer.close()
        await manager.dispose(service.endpoint, conn)


@on_both_loops
async def test_a_ticket_that_comes_during_the_check_is_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket was quiet at first, and no more a moment later: a healthy connection was taken for dead."""
    looks = [True]
    async with connected('tls') as (manager, conn, peer):
        monkeypatch.setattr('gcp.contrib.socket_async.is_quiet', lambda fd: bool(looks and looks.pop()))
        assert await manager.check_aliveness(peer.getsockname(), conn)


@on_both_loops
async def test_where_the_protocol_allows_it_data_is_fine_and_the_end_behind_it_is_seen(kind: str) -> None:
    async with connected(kind, unsolicited_data='allowed') as (manager, conn, peer):
        endpoint = peer.getsockname()
        await exchange(conn, peer)
        peer.sendall(b'news')
        await_input(descriptor(conn))
        assert await manager.check_aliveness(endpoint, conn)
        await settle()
        assert await manager.check_aliveness(endpoint, conn)
        peer.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(found_dead(manager, endpoint, conn), 60)
        assert (await read(conn))[:4] == b'news'


@on_both_loops
async def test_a_reader_at_its_end_is_dead() -> None:
    async with connected('stream') as (manager, conn, peer):
        conn[0].feed_eof()
        assert not await manager.check_aliveness(peer.getsockname(), conn)


@on_both_loops
async def test_a_peer_that_takes_nothing_in_is_dead() -> None:
    async with connected('stream') as (manager, conn, peer):
        assert await manager.check_aliveness(peer.getsockname(), conn)
        conn[1].write(bytes(64 << 20))
        assert not await manager.check_aliveness(peer.getsockname(), conn)


@on_both_loops
async def test_the_mixins_serve_connections_of_other_managers() -> None:
    mixin: SocketAlivenessCheckingMixin[str] = SocketAlivenessCheckingMixin()
    streams: StreamAlivenessCheckingMixin[str] = StreamAlivenessCheckingMixin()
    with Service() as service:
        reader, writer = await asyncio.open_connection(*service.endpoint)
        assert await streams.check_aliveness('any', (reader, writer))
        writer.close()
        assert not await streams.check_aliveness('any', (reader, writer))
        await writer.wait_closed()
    ours, theirs = socket.socketpair()
    with ours:
        assert await mixin.check_aliveness('pair', ours)
        theirs.close()
        assert not await mixin.check_aliveness('pair', ours)


# ---- disposal


@on_both_loops
async def test_dispose_sends_close_notify_and_closes(kind: str) -> None:
    async with connected(kind) as (manager, conn, peer):
        await exchange(conn, peer)
        heard = asyncio.ensure_future(run_in_thread(lambda: (peer.recv(100), peer.close())))
        before = open_sockets(tidy=True)
        with lasting(0):
            await manager.dispose(peer.getsockname(), conn)
        assert (await heard)[0] == b''  # of TLS, an EOF alone raises: ragged ones are not suppressed here
        assert open_sockets() == before - 2


@pytest.mark.parametrize('mood', ['silent', 'stuck'])
@on_both_loops
async def test_a_peer_that_does_not_read_delays_the_close_for_a_bounded_time(
    kind: str,
    mood: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket_async, 'CLOSE_TIMEOUT', 0.2 if mood == 'stuck' else 60)
    async with connected(kind) as (manager, conn, peer):
        endpoint = peer.getsockname()
        if mood == 'stuck' and kind != 'socket':
            conn[1].write(bytes(64 << 20))
        before = open_sockets(tidy=True)
        with lasting(0):
            await manager.dispose(endpoint, conn)
        assert open_sockets() == before - 1
        await manager.dispose(endpoint, conn)


@pytest.mark.parametrize('turns', range(1, 5))
@on_both_loops
async def test_a_disposal_that_is_cancelled_closes_too(kind: str, turns: int) -> None:
    async with connected(kind) as (manager, conn, peer):
        before = open_sockets(tidy=True)
        await cancelled(manager.dispose(peer.getsockname(), conn), turns)
        await settle()
        assert open_sockets() == before - 1


@on_both_loops
async def test_dispose_of_what_is_dead_is_no_error(kind: str) -> None:
    async with connected(kind) as (manager, conn, peer):
        endpoint = peer.getsockname()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        peer.close()
        await_input(descriptor(conn))
        if kind != 'socket':
            conn[1].write(b'into the void')
        await manager.dispose(endpoint, conn)
        await manager.dispose(endpoint, conn)


@on_both_loops
async def test_a_task_that_waits_for_an_answer_is_released_by_close(kind: str) -> None:
    with service_of(kind) as service:
        pool: ConnectionPool[Any, Any] = ConnectionPool(manager_of(kind))
        waits, heard = asyncio.Event(), []

        async def use() -> None:
            async with pool.connection(service.endpoint) as conn:
                waits.set()
                heard.append(await read(conn))

        task = asyncio.ensure_future(use())
        await waits.wait()
        await settle()
        await pool.close(0)
        await asyncio.wait_for(task, 60)
        assert heard == [b'']


@on_both_loops
async def test_a_forked_child_says_nothing_to_its_parents_peer(kind: str) -> None:
    async with connected(kind) as (manager, conn, peer):
        await exchange(conn, peer)
        child = os.fork()
        if not child:
            with contextlib.suppress(StopIteration):
                manager.dispose(('127.0.0.1', 1), conn).send(None)
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        await exchange(conn, peer)


# ---- arguments


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        ({'ssl': 'yes'}, TypeError, 'ssl: an ssl.SSLContext, True for one that verifies, or None was expected'),
        ({'ssl': 0}, TypeError, 'ssl: an ssl.SSLContext, True for one that verifies, or None was expected, not 0'),
        ({'server_hostname': 'a.example'}, ValueError, 'server_hostname: only with ssl'),
        ({'alpn_protocols': ['h2']}, ValueError, 'alpn_protocols: only with ssl'),
        ({'ssl': True, 'server_hostname': 7}, TypeError, 'server_hostname: a host name'),
        ({'keepalive': 60}, TypeError, 'keepalive: a KeepAlive or None was expected, not 60'),
        ({'unsolicited_data': 1}, ValueError, "unsolicited_data: 'dead' or 'allowed' was expected, not 1"),
    ],
)
def test_a_wrong_argument_is_told(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        TcpStreamConnectionManager(**arguments)
    assert str(caught.value).startswith(words)
    if 'ssl' not in words:
        with pytest.raises(error):
            TcpSocketConnectionManager(**{name: value for name, value in arguments.items() if name != 'ssl'})


@pytest.mark.parametrize(
    ('endpoint', 'error'),
    [
        ('localhost:80', TypeError),
        (('localhost', '80'), TypeError),
        (('localhost', 0), ValueError),
        (('', 80), ValueError),
        (('a' * 64 + '.example', 80), ValueError),
    ],
)
@on_both_loops
async def test_a_wrong_endpoint_is_told(kind: str, endpoint: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match='^endpoint: a'):
        await manager_of(kind).create(endpoint)


@pytest.mark.parametrize('kind', KINDS)
@on_both_loops
async def test_the_limit_of_unacknowledged_data_reaches_the_kernel(kind: str) -> None:
    with service_of(kind) as service:
        manager = manager_of(kind, user_timeout=1.5)
        conn = await manager.create(('localhost', service.port))
        assert option(conn, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1500
        await manager.dispose(('localhost', service.port), conn)
