"""Unix socket connections of both pools: every kind of endpoint and of peer, and no descriptor left anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import Service, await_input, lasting, on_both_loops, open_sockets, reset

import gcp.asyncio
import gcp.threading
from gcp.contrib import unix, unix_async
from gcp.contrib.unix import CheckSocketAlivenessMixin, UnixSocketConnectionManager

Endpoint = Any  # UnixSocketEndpoint


@pytest.fixture
def manager() -> UnixSocketConnectionManager:
    return UnixSocketConnectionManager()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'socket'


@pytest.fixture
def service(path: Path) -> Iterator[Service]:
    with Service(listener=listen(str(path))) as service:
        yield service


@pytest.fixture
def crowded(path: Path) -> Iterator[socket.socket]:
    """A listener whose queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(str(path), backlog=0))
        filler = stack.enter_context(socket.socket(socket.AF_UNIX))
        filler.connect(str(path))
        yield listener


def listen(address: str | bytes, backlog: int = 64) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(backlog)
    return listener


def async_manager(kind: str) -> Any:
    if kind == 'socket':
        return unix_async.UnixSocketConnectionManager()
    return unix_async.UnixSocketStreamConnectionManager()


def descriptor(conn: Any) -> int:
    sock = conn if isinstance(conn, socket.socket) else conn[1].get_extra_info('socket')
    fd: int = sock.fileno()
    return fd


@pytest.fixture(params=['socket', 'stream'])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


# ---- threads


@pytest.mark.parametrize('form', [str, Path, os.fsencode])
@pytest.mark.parametrize('timeout', [None, 5.0])
def test_connects_to_a_path(
    manager: UnixSocketConnectionManager,
    service: Service,
    path: Path,
    form: Any,
    timeout: float | None,
) -> None:
    with manager.create(form(path), timeout) as conn:
        assert conn.getpeername() == str(path)
        assert conn.gettimeout() is None
        assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16) == bytes(16)


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux knows abstract names')
@pytest.mark.parametrize('form', [str, os.fsencode])
@pytest.mark.parametrize('size', [20, 108])
def test_connects_to_an_abstract_name(manager: UnixSocketConnectionManager, form: Any, size: int) -> None:
    name = f'\0gcp-{os.getpid()}'.ljust(size, 'x')
    with listen(name), manager.create(form(name), 5.0) as conn:
        assert conn.getpeername() == name.encode()


def test_a_path_of_the_utmost_length(manager: UnixSocketConnectionManager, path: Path) -> None:
    longest = str(path).ljust(unix_limit() - 1, 'x')
    with listen(longest):
        manager.create(longest).close()
    with pytest.raises(ValueError, match=f'^endpoint: a path of at most {unix_limit() - 1} bytes .*, not of'):
        manager.create(longest + 'x')


def unix_limit() -> int:
    return 108 if sys.platform == 'linux' else 104


def test_the_pool_reuses_a_connection_and_replaces_a_dead_one(
    manager: UnixSocketConnectionManager,
    service: Service,
    path: Path,
) -> None:
    pool: gcp.threading.ConnectionPool[Endpoint, socket.socket] = gcp.threading.ConnectionPool(manager)
    try:
        with pool.connection(path) as first:
            service.peer()
        with pool.connection(path) as again:
            assert again is first
        service.shut_down()
        await_input(first.fileno())
        with pool.connection(path) as other:
            assert other is not first
        assert first.fileno() == -1
    finally:
        pool.close()


@pytest.mark.parametrize('lapse', ['eof', 'half-close', 'data', 'closed here'])
def test_what_means_dead(manager: UnixSocketConnectionManager, service: Service, path: Path, lapse: str) -> None:
    with manager.create(path) as conn, service.peer() as peer:
        assert manager.check_aliveness(path, conn)
        if lapse == 'eof':
            peer.close()
        elif lapse == 'half-close':
            peer.shutdown(socket.SHUT_WR)
        elif lapse == 'data':
            peer.sendall(b'!')
        else:
            conn.close()
        if lapse != 'closed here':
            await_input(conn.fileno())
        assert not manager.check_aliveness(path, conn)


def test_where_the_protocol_allows_it_data_is_fine_and_the_end_behind_it_is_seen(service: Service, path: Path) -> None:
    manager = UnixSocketConnectionManager(unsolicited_data='allowed')
    with manager.create(path) as conn, service.peer() as peer:
        peer.sendall(b'news')
        assert manager.check_aliveness(path, conn)
        peer.shutdown(socket.SHUT_WR)
        assert not manager.check_aliveness(path, conn)


def test_the_mixin_serves_sockets_of_other_managers() -> None:
    mixin: CheckSocketAlivenessMixin[str] = CheckSocketAlivenessMixin()
    ours, theirs = socket.socketpair()
    with ours:
        assert mixin.check_aliveness('pair', ours)
        theirs.close()
        assert not mixin.check_aliveness('pair', ours)


def test_a_full_queue_costs_the_timeout_and_no_descriptor(
    manager: UnixSocketConnectionManager,
    crowded: socket.socket,
    path: Path,
) -> None:
    before = open_sockets(tidy=True)
    with lasting(0.2), pytest.raises(TimeoutError, match=f"connection to '{path}'"):
        manager.create(path, 0.2)
    assert open_sockets() == before


def test_room_in_a_full_queue_is_taken_at_once(
    manager: UnixSocketConnectionManager,
    crowded: socket.socket,
    path: Path,
) -> None:
    timer = threading.Timer(0.1, lambda: crowded.accept()[0].close())
    timer.start()
    with lasting(0), manager.create(path, 60.0) as conn:
        assert conn.getpeername() == str(path)
    timer.join()


def test_a_signal_while_the_queue_is_full_does_not_count_as_connected(
    manager: UnixSocketConnectionManager,
    crowded: socket.socket,
    path: Path,
) -> None:
    heard: list[int] = []
    usual = signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        for timeout in (0.3, None):
            if timeout is None:
                threading.Timer(0.2, lambda: crowded.accept()[0].close()).start()
                manager.create(path, None).close()
            else:
                with lasting(0.3), pytest.raises(TimeoutError):
                    manager.create(path, timeout)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    assert heard


def test_200_refusals_leave_no_descriptor(manager: UnixSocketConnectionManager, path: Path) -> None:
    listen(str(path)).close()
    before = open_sockets(tidy=True)
    for _ in range(200):
        with pytest.raises(ConnectionRefusedError):
            manager.create(path, 5.0)
        with pytest.raises(FileNotFoundError):
            manager.create(path.with_name('other'))
    assert open_sockets() <= before


def test_dispose_tells_the_peer_also_twice(manager: UnixSocketConnectionManager, service: Service, path: Path) -> None:
    conn = manager.create(path)
    with conn.dup(), service.peer() as peer:
        manager.dispose(path, conn)
        assert peer.recv(1) == b''
        manager.dispose(path, conn)
    assert conn.fileno() == -1


def test_a_forked_child_does_not_end_its_parents_connection(
    manager: UnixSocketConnectionManager,
    service: Service,
    path: Path,
) -> None:
    with manager.create(path) as conn, service.peer() as peer:
        child = os.fork()
        if not child:
            manager.dispose(path, conn)
            os._exit(conn.fileno() != -1)
        assert os.waitpid(child, 0)[1] == 0
        conn.sendall(b'ping')
        assert peer.recv(100) == b'ping'


# ---- asyncio


@on_both_loops
async def test_the_asyncio_pool_reuses_a_connection_and_replaces_a_dead_one(
    kind: str,
    service: Service,
    path: Path,
) -> None:
    pool: gcp.asyncio.ConnectionPool[Endpoint, Any] = gcp.asyncio.ConnectionPool(async_manager(kind))
    async with pool.connection(path) as first:
        service.peer()
    async with pool.connection(path) as again:
        assert again is first
    service.shut_down()
    await_input(descriptor(first))
    async with pool.connection(path) as other:
        assert other is not first
    await pool.close()


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux knows abstract names')
@on_both_loops
async def test_asyncio_connects_to_an_abstract_name(kind: str) -> None:
    manager, name = async_manager(kind), f'\0gcp-{os.getpid()}'
    with listen(name):
        for form in (name, name.encode()):
            conn = await manager.create(form)
            await manager.dispose(form, conn)


@on_both_loops
async def test_asyncio_does_not_take_a_full_queue_for_a_connection(
    kind: str,
    crowded: socket.socket,
    path: Path,
) -> None:
    manager = async_manager(kind)
    pool: gcp.asyncio.ConnectionPool[Endpoint, Any] = gcp.asyncio.ConnectionPool(manager)
    before = open_sockets(tidy=True)
    with lasting(0.2), pytest.raises(TimeoutError):
        await pool.acquire(path, timeout=0.2)
    assert open_sockets() == before
    asyncio.get_running_loop().call_later(0.1, lambda: crowded.accept()[0].close())
    with lasting(0):
        async with pool.connection(path, timeout=60) as conn:
            assert await manager.check_aliveness(path, conn)
    await pool.close()


@on_both_loops
async def test_200_refusals_leave_asyncio_no_descriptor(kind: str, path: Path) -> None:
    listen(str(path)).close()
    manager, before = async_manager(kind), open_sockets(tidy=True)
    for _ in range(200):
        with pytest.raises(ConnectionRefusedError):
            await manager.create(path)
    assert open_sockets() == before


@on_both_loops
async def test_a_cancellation_at_whatever_turn_leaves_nothing(kind: str, path: Path) -> None:
    manager, before = async_manager(kind), open_sockets(tidy=True)
    with Service(reset, listen(str(path))):
        for turns in range(8):
            task = asyncio.ensure_future(manager.create(path))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await manager.dispose(path, await task)
        for _ in range(5):
            await asyncio.sleep(0)
    assert open_sockets() == before


@on_both_loops
async def test_dispose_tells_the_peer_and_closes(kind: str, service: Service, path: Path) -> None:
    manager = async_manager(kind)
    conn, peer = await manager.create(path), service.peer()
    before = open_sockets(tidy=True)
    await manager.dispose(path, conn)
    assert open_sockets() == before - 1
    assert peer.recv(1) == b''
    await manager.dispose(path, conn)


# ---- arguments


@pytest.mark.parametrize(
    ('endpoint', 'error', 'words'),
    [
        (('localhost', 80), TypeError, 'endpoint: a path (str, bytes or pathlib.Path) was expected, not ('),
        (None, TypeError, 'endpoint: a path (str, bytes or pathlib.Path) was expected, not None'),
        ('', ValueError, "endpoint: a path was expected, not ''"),
        (b'', ValueError, "endpoint: a path was expected, not b''"),
        ('a\0b', ValueError, "endpoint: a path without zero bytes was expected, not 'a\\x00b'"),
        ('x' * 300, ValueError, f'endpoint: a path of at most {unix_limit() - 1} bytes was expected, not of 300: '),
        ('\0' * 300, ValueError, 'endpoint: '),
    ],
)
def test_a_wrong_endpoint_is_told(
    manager: UnixSocketConnectionManager,
    endpoint: Any,
    error: type[Exception],
    words: str,
) -> None:
    before = open_sockets(tidy=True)
    with pytest.raises(error) as caught:
        manager.create(endpoint)
    assert str(caught.value).startswith(words)
    for kind in ('socket', 'stream'):
        with pytest.raises(error):
            async_manager(kind).create(endpoint).send(None)
    assert open_sockets() == before


@pytest.mark.parametrize(
    'make',
    [
        unix.UnixSocketConnectionManager,
        unix_async.UnixSocketConnectionManager,
        unix_async.UnixSocketStreamConnectionManager,
    ],
)
def test_a_wrong_argument_is_told(make: Any) -> None:
    with pytest.raises(ValueError, match="^unsolicited_data: 'dead' or 'allowed' was expected, not 'no'"):
        make(unsolicited_data='no')
    assert make(unsolicited_data='allowed').unsolicited_data == 'allowed'
