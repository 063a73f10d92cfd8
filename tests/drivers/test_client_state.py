"""What a user changes on the client's side of a connection is restored at its release, without a round trip: time-outs
and blocking modes, an event loop's callbacks, the limits and the reading of streams."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peers import Service, client_context, on_both_loops, server_context, shaking_hands

import gcp.asyncio
import gcp.threading
from gcp.contrib import socket as sync
from gcp.contrib import socket_async, unix, unix_async

LIMIT = 60.0


def service_of(transport: str, directory: Path) -> tuple[Service, Any]:
    if transport == 'unix':
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / 'socket'))
        listener.listen()
        return Service(listener=listener), str(directory / 'socket')
    service = Service(shaking_hands(server_context())) if transport == 'tls' else Service()
    return service, ('localhost', service.port)


def sync_manager(transport: str) -> Any:
    if transport == 'unix':
        return unix.UnixSocketConnectionManager()
    return (
        sync.SslSocketConnectionManager(client_context()) if transport == 'tls' else sync.TcpSocketConnectionManager()
    )


CHANGES: list[Callable[[socket.socket], None]] = [
    lambda conn: conn.settimeout(0.1),
    lambda conn: conn.setblocking(False),
    lambda conn: os.set_blocking(conn.fileno(), False),
]


@pytest.mark.parametrize('transport', ['tcp', 'tls', 'unix'])
@pytest.mark.parametrize('change', CHANGES, ids=['time-out', 'non-blocking', 'non-blocking descriptor'])
def test_a_socket_gets_its_time_out_back(change: Callable[[Any], None], transport: str, tmp_path: Path) -> None:
    service, endpoint = service_of(transport, tmp_path)
    with service:
        pool: Any = gcp.threading.ConnectionPool(sync_manager(transport))
        with pool.connection(endpoint, timeout=LIMIT) as conn:
            change(conn)
        with pool.connection(endpoint, timeout=LIMIT) as again:
            assert again is conn
            assert again.gettimeout() is None and os.get_blocking(again.fileno())
        pool.close()


def test_a_time_out_of_a_subclass_is_kept() -> None:
    class Manager(sync.TcpSocketConnectionManager):
        def create(self, endpoint: Any, timeout: float | None = None) -> socket.socket:
            conn = super().create(endpoint, timeout)
            conn.settimeout(30)
            return conn

    with Service() as service:
        pool: Any = gcp.threading.ConnectionPool(Manager())
        for _ in range(2):
            with pool.connection(service.endpoint, timeout=LIMIT) as conn:
                assert conn.gettimeout() == 30
                conn.settimeout(1)
        assert pool.stats().created == 1
        pool.close()


def test_a_socket_that_its_user_closed_is_released() -> None:
    with Service() as service:
        pool: Any = gcp.threading.ConnectionPool(sync.TcpSocketConnectionManager())
        with pool.connection(service.endpoint, timeout=LIMIT) as conn:
            conn.close()
        pool.close()


@pytest.mark.parametrize('transport', ['tcp', 'unix'])
@on_both_loops
async def test_a_socket_of_an_event_loop_is_non_blocking_again(transport: str, tmp_path: Path) -> None:
    managers: Any = {
        'tcp': socket_async.TcpSocketConnectionManager,
        'unix': unix_async.UnixSocketConnectionManager,
    }
    service, endpoint = service_of(transport, tmp_path)
    with service:
        pool: Any = gcp.asyncio.ConnectionPool(managers[transport]())
        for change in (lambda conn: conn.settimeout(5), lambda conn: os.set_blocking(conn.fileno(), True)):
            async with pool.connection(endpoint, timeout=LIMIT) as conn:
                change(conn)
            assert conn.gettimeout() == 0 and not os.get_blocking(conn.fileno())
        assert pool.stats().created == 1
        await pool.close()


@on_both_loops
async def test_callbacks_of_an_event_loop_are_removed() -> None:
    loop, heard = asyncio.get_running_loop(), []
    with Service() as service:
        pool: Any = gcp.asyncio.ConnectionPool(socket_async.TcpSocketConnectionManager())
        async with pool.connection(service.endpoint, timeout=LIMIT) as conn:
            loop.add_reader(conn.fileno(), lambda: heard.append(conn.recv(100)))
            peer = await asyncio.to_thread(service.peer)
        async with pool.connection(service.endpoint, timeout=LIMIT) as again:
            assert again is conn
            peer.sendall(b'for the second')
            assert await loop.sock_recv(again, 100) == b'for the second' and not heard
        await pool.close()


@pytest.mark.parametrize('transport', ['tcp', 'tls', 'unix'])
@on_both_loops
async def test_the_transport_of_a_stream_is_restored(transport: str, tmp_path: Path) -> None:
    managers: Any = {
        'tcp': socket_async.TcpStreamConnectionManager,
        'tls': lambda: socket_async.TcpStreamConnectionManager(client_context()),
        'unix': unix_async.UnixSocketStreamConnectionManager,
    }
    service, endpoint = service_of(transport, tmp_path)
    with service:
        pool: Any = gcp.asyncio.ConnectionPool(managers[transport]())
        async with pool.connection(endpoint, timeout=LIMIT) as (reader, writer):
            limits = writer.transport.get_write_buffer_limits()
            peer = await asyncio.to_thread(service.peer)
            writer.transport.set_write_buffer_limits(0)
            writer.transport.pause_reading()
            writer.transport.set_protocol(asyncio.Protocol())
        async with pool.connection(endpoint, timeout=LIMIT) as again:
            assert again[0] is reader
            assert writer.transport.get_write_buffer_limits() == limits
            peer.sendall(b'hello')
            assert await asyncio.wait_for(reader.read(100), LIMIT) == b'hello'
        await pool.close()


@on_both_loops
async def test_a_stream_on_which_a_task_still_reads_is_replaced() -> None:
    with Service() as service:
        pool: Any = gcp.asyncio.ConnectionPool(socket_async.TcpStreamConnectionManager())
        async with pool.connection(service.endpoint, timeout=LIMIT) as (reader, _):
            task = asyncio.ensure_future(reader.read(100))
            await asyncio.sleep(0)
        async with pool.connection(service.endpoint, timeout=LIMIT) as (other, _):
            assert other is not reader
        await pool.close()
        await asyncio.wait([task])
        task.cancelled() or task.exception()


class Wrapped:
    """What a subclass makes of a connection."""

    def __init__(self, conn: Any) -> None:
        self.conn = conn


@pytest.mark.parametrize('transport', ['tcp', 'tls', 'unix'])
def test_a_subclass_may_wrap_its_sockets(transport: str, tmp_path: Path) -> None:
    class Manager(type(sync_manager(transport))):  # type: ignore[misc]
        def create(self, endpoint: Any, timeout: float | None = None) -> Any:
            return Wrapped(super().create(endpoint, timeout))

        def check_aliveness(self, endpoint: Any, conn: Any, timeout: float | None = None) -> bool:
            return True

        def dispose(self, endpoint: Any, conn: Any, timeout: float | None = None) -> None:
            conn.conn.close()

    service, endpoint = service_of(transport, tmp_path)
    with service:
        pool: Any = gcp.threading.ConnectionPool(Manager(client_context()) if transport == 'tls' else Manager())
        for _ in range(2):
            with pool.connection(endpoint, timeout=LIMIT) as conn:
                assert isinstance(conn, Wrapped)
        assert pool.stats().created == 1
        pool.close()


@pytest.mark.parametrize('base', [socket_async.TcpSocketConnectionManager, socket_async.TcpStreamConnectionManager])
@on_both_loops
async def test_an_asyncio_subclass_may_wrap_its_connections(base: Any) -> None:
    class Manager(base):  # type: ignore[misc]
        async def create(self, endpoint: Any) -> Any:
            return Wrapped(await super().create(endpoint))

        async def check_aliveness(self, endpoint: Any, conn: Any) -> bool:
            return True

        async def dispose(self, endpoint: Any, conn: Any) -> None:
            await super().dispose(endpoint, conn.conn)

    with Service() as service:
        pool: Any = gcp.asyncio.ConnectionPool(Manager())
        for _ in range(2):
            async with pool.connection(service.endpoint, timeout=LIMIT) as conn:
                assert isinstance(conn, Wrapped)
        assert pool.stats().created == 1
        await pool.close()
