"""Guarantee 17 (docs/guarantees.md): a block that ends with an error costs a raw connection, however it ends, over TCP,
TLS and unix sockets, with threads and asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import Service, client_context, server_context

import gcp.asyncio
import gcp.threading
from gcp.contrib import socket as sync
from gcp.contrib import socket_async, unix, unix_async

LIMIT = 60.0


class Unreliable:
    """A server that answers each request with itself, but only once the gate is open.

    :ivar gate: open it to have the answers sent
    """

    def __init__(self, transport: str, directory: Path) -> None:
        self.gate = threading.Event()
        self._context = server_context() if transport == 'tls' else None
        listener = None
        if transport == 'unix':
            path = str(directory / 'socket')
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen()
        self._service = Service(self._serve, listener)
        self.endpoint: Any = path if transport == 'unix' else ('localhost', self._service.port)

    def __enter__(self) -> Unreliable:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.gate.set()
        self._service.__exit__(*exc_info)

    def _serve(self, sock: socket.socket) -> None:
        conn: Any = sock if self._context is None else self._context.wrap_socket(sock, server_side=True)
        with conn:
            while words := conn.recv(100):
                self.gate.wait(LIMIT)
                conn.sendall(b'to ' + words)


class Interrupted(BaseException):
    """Neither an `Exception` nor one that an event loop ends with."""


# ---- threads

ASK = Callable[[Any], bytes]


def sync_manager(transport: str) -> Any:
    if transport == 'unix':
        return unix.UnixSocketConnectionManager()
    return (
        sync.SslSocketConnectionManager(client_context()) if transport == 'tls' else sync.TcpSocketConnectionManager()
    )


def abandon(conn: Any) -> None:
    """Ask, and do not wait long for the answer."""
    conn.settimeout(0.01)
    conn.sendall(b'alice')
    conn.recv(100)


def by_with(pool: Any, endpoint: Any) -> None:
    with pytest.raises(TimeoutError), pool.connection(endpoint, timeout=LIMIT) as conn:
        abandon(conn)


def by_error(pool: Any, endpoint: Any) -> None:
    with pytest.raises(KeyError), pool.connection(endpoint, timeout=LIMIT) as conn:
        conn.sendall(b'alice')
        raise KeyError('a bug')


def by_base_exception(pool: Any, endpoint: Any) -> None:
    with pytest.raises(Interrupted), pool.connection(endpoint, timeout=LIMIT) as conn:
        conn.sendall(b'alice')
        raise Interrupted


def by_decorator(pool: Any, endpoint: Any) -> None:
    def lending(function: Callable[[Any], None]) -> Callable[[], None]:
        @functools.wraps(function)
        def call() -> None:
            with pool.connection(endpoint, timeout=LIMIT) as conn:
                function(conn)

        return call

    with pytest.raises(TimeoutError):
        lending(abandon)()


def by_context_manager(pool: Any, endpoint: Any) -> None:
    @contextlib.contextmanager
    def lent() -> Iterator[Any]:
        with pool.connection(endpoint, timeout=LIMIT) as conn:
            yield conn

    with pytest.raises(TimeoutError), lent() as conn:
        abandon(conn)


def by_exit_stack(pool: Any, endpoint: Any) -> None:
    with pytest.raises(TimeoutError), contextlib.ExitStack() as stack:
        abandon(stack.enter_context(pool.connection(endpoint, timeout=LIMIT)))


def by_closed_generator(pool: Any, endpoint: Any) -> None:
    def answers() -> Iterator[None]:
        with pool.connection(endpoint, timeout=LIMIT) as conn:
            conn.sendall(b'alice')
            yield

    generator: Any = answers()
    next(generator)
    generator.close()


def by_release(pool: Any, endpoint: Any) -> None:
    conn = pool.acquire(endpoint, LIMIT)
    with pytest.raises(TimeoutError) as caught:
        abandon(conn)
    pool.release(conn, endpoint, error=caught.value)


def by_discard(pool: Any, endpoint: Any) -> None:
    conn = pool.acquire(endpoint, LIMIT)
    conn.sendall(b'alice')
    pool.discard(conn, endpoint)


SYNC = [
    by_with,
    by_error,
    by_base_exception,
    by_decorator,
    by_context_manager,
    by_exit_stack,
    by_closed_generator,
    by_release,
    by_discard,
]


@pytest.mark.parametrize('transport', ['tcp', 'tls', 'unix'])
@pytest.mark.parametrize('end', SYNC, ids=lambda end: end.__name__)
def test_the_next_thread_gets_its_own_answer(end: Callable[..., None], transport: str, tmp_path: Path) -> None:
    with Unreliable(transport, tmp_path) as server:
        pool: Any = gcp.threading.ConnectionPool(sync_manager(transport), max_size=1)
        try:
            end(pool, server.endpoint)
            with pool.connection(server.endpoint, timeout=LIMIT) as conn:
                conn.sendall(b'bob')
                server.gate.set()
                assert conn.recv(100) == b'to bob'
            assert pool.stats().created == 2
            with pool.connection(server.endpoint, timeout=LIMIT) as again:
                assert again is conn  # a body without an error costs nothing
        finally:
            pool.close(timeout=1)


# ---- asyncio


def async_manager(kind: str, transport: str) -> Any:
    if transport == 'unix':
        stream = unix_async.UnixSocketStreamConnectionManager
        return stream() if kind == 'stream' else unix_async.UnixSocketConnectionManager()
    if kind == 'stream':
        return socket_async.TcpStreamConnectionManager(client_context() if transport == 'tls' else None)
    return socket_async.TcpSocketConnectionManager()


async def send(conn: Any, words: bytes) -> None:
    if isinstance(conn, socket.socket):
        await asyncio.get_running_loop().sock_sendall(conn, words)
    else:
        conn[1].write(words)
        await conn[1].drain()


async def receive(conn: Any) -> bytes:
    if isinstance(conn, socket.socket):
        return await asyncio.get_running_loop().sock_recv(conn, 100)
    return bytes(await conn[0].read(100))


async def abandon_async(conn: Any) -> None:
    await send(conn, b'alice')
    await asyncio.wait_for(receive(conn), 0.01)


async def async_with(pool: Any, endpoint: Any) -> None:
    with pytest.raises(asyncio.TimeoutError):
        async with pool.connection(endpoint, timeout=LIMIT) as conn:
            await abandon_async(conn)


async def async_error(pool: Any, endpoint: Any) -> None:
    with pytest.raises(KeyError):
        async with pool.connection(endpoint, timeout=LIMIT) as conn:
            await send(conn, b'alice')
            raise KeyError('a bug')


async def async_base_exception(pool: Any, endpoint: Any) -> None:
    with pytest.raises(Interrupted):
        async with pool.connection(endpoint, timeout=LIMIT) as conn:
            await send(conn, b'alice')
            raise Interrupted


async def async_cancelled(pool: Any, endpoint: Any) -> None:
    asked = asyncio.Event()

    async def use() -> None:
        async with pool.connection(endpoint, timeout=LIMIT) as conn:
            await send(conn, b'alice')
            asked.set()
            await receive(conn)

    task = asyncio.ensure_future(use())
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def async_timed_out(pool: Any, endpoint: Any) -> None:
    async def use() -> None:
        async with pool.connection(endpoint, timeout=LIMIT) as conn:
            await send(conn, b'alice')
            await receive(conn)

    await pool.warm_up(endpoint, size=1)  # an idle connection is lent and asked before the event loop looks at the time
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(use(), 0.1)


async def async_context_manager(pool: Any, endpoint: Any) -> None:
    @contextlib.asynccontextmanager
    async def lent() -> AsyncIterator[Any]:
        async with pool.connection(endpoint, timeout=LIMIT) as conn:
            yield conn

    with pytest.raises(asyncio.TimeoutError):
        async with lent() as conn:
            await abandon_async(conn)


async def async_exit_stack(pool: Any, endpoint: Any) -> None:
    with pytest.raises(asyncio.TimeoutError):
        async with contextlib.AsyncExitStack() as stack:
            await abandon_async(await stack.enter_async_context(pool.connection(endpoint, timeout=LIMIT)))


async def async_closed_generator(pool: Any, endpoint: Any) -> None:
    async def answers() -> AsyncIterator[None]:
        async with pool.connection(endpoint, timeout=LIMIT) as conn:
            await send(conn, b'alice')
            yield

    generator: Any = answers()
    await generator.__anext__()
    await generator.aclose()


async def async_release(pool: Any, endpoint: Any) -> None:
    conn = await pool.acquire(endpoint, LIMIT)
    with pytest.raises(asyncio.TimeoutError) as caught:
        await abandon_async(conn)
    await pool.release(conn, endpoint, error=caught.value)


async def async_discard(pool: Any, endpoint: Any) -> None:
    conn = await pool.acquire(endpoint, LIMIT)
    await send(conn, b'alice')
    await pool.discard(conn, endpoint)


ASYNC = [
    async_with,
    async_error,
    async_base_exception,
    async_cancelled,
    async_timed_out,
    async_context_manager,
    async_exit_stack,
    async_closed_generator,
    async_release,
    async_discard,
]
KINDS = [('socket', 'tcp'), ('socket', 'unix'), ('stream', 'tcp'), ('stream', 'tls'), ('stream', 'unix')]


@pytest.mark.parametrize(('kind', 'transport'), KINDS, ids=map(' '.join, KINDS))
@pytest.mark.parametrize('end', ASYNC, ids=lambda end: end.__name__)
def test_the_next_task_gets_its_own_answer(end: Any, kind: str, transport: str, tmp_path: Path) -> None:
    async def body(server: Unreliable) -> None:
        pool: Any = gcp.asyncio.ConnectionPool(async_manager(kind, transport), max_size=1)
        try:
            await end(pool, server.endpoint)
            async with pool.connection(server.endpoint, timeout=LIMIT) as conn:
                await send(conn, b'bob')
                server.gate.set()
                assert await receive(conn) == b'to bob'
            assert pool.stats().created == 2
            async with pool.connection(server.endpoint, timeout=LIMIT) as again:
                assert again is conn
        finally:
            await pool.close(timeout=1)

    with Unreliable(transport, tmp_path) as server:
        asyncio.run(asyncio.wait_for(body(server), 120))


# ---- the hook


@pytest.mark.parametrize('error', [TimeoutError(), ValueError(), GeneratorExit(), asyncio.CancelledError()], ids=repr)
def test_no_manager_of_raw_connections_calls_one_clean_after_an_error(error: BaseException) -> None:
    managers = [sync_manager(transport) for transport in ('tcp', 'tls', 'unix')]
    managers += [async_manager(*kind) for kind in KINDS]
    for manager in managers:
        assert manager.clean_after_error('', None, error) is False
