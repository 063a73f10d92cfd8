"""What the managers do in a process that has reached a limit: SIGPIPE set to its default, no descriptor left, no thread
to be had, a resolver that does not answer."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from peers import Proxy, silent_server
from pg_drivers import Driver, Psycopg, Psycopg2
from starvation import SOON

from gcp.contrib import _libpq
from gcp.contrib.socket import TcpSocketConnectionManager
from gcp.contrib.socket_async import TcpSocketConnectionManager as AsyncTcpSocketConnectionManager
from gcp.demo.server import Server
from gcp.threading import ConnectionPool

Script = Callable[..., Any]

# ---- SIGPIPE set to its default, as command-line tools do

SIGPIPE = """
    import signal
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    import asyncio, socket, ssl, struct, threading
    from peers import Service, await_input, client_context, server_context, shaking_hands
    from gcp.contrib.http import HttpConnectionManager
    from gcp.contrib.socket import SslSocketConnectionManager
    from gcp.contrib.socket_async import TcpStreamConnectionManager

    def reset(service, fd):
        '''Reset a connection from the other end: what both ends have sent is lost.'''
        peer = service.peer()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        peer.close()
        service._ends.clear()
        await_input(fd)
"""


@pytest.mark.parametrize('version', ['TLSv1_2', 'TLSv1_3'])
def test_closing_tls_to_a_peer_that_has_reset_it_does_not_end_the_process(script: Script, version: str) -> None:
    script(f"""
{SIGPIPE}
    with Service(shaking_hands(server_context(version=ssl.TLSVersion.{version}))) as service:
        manager = SslSocketConnectionManager(client_context())
        conn = manager.create(service.endpoint, 5)
        reset(service, conn.fileno())
        conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # from now on each write raises SIGPIPE
        assert not manager.check_aliveness(service.endpoint, conn)
        manager.dispose(service.endpoint, conn)

        web = HttpConnectionManager(client_context())
        origin = f'https://127.0.0.1:{{service.port}}'
        conn = web.create(origin, 5)
        reset(service, conn.sock.fileno())
        conn.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        web.dispose(origin, conn)
    """).quietly()


def test_a_reset_just_before_close_notify_does_not_end_the_process(script: Script) -> None:
    """The look at the connection comes before the write; the peer may reset it in between."""
    script(f"""
{SIGPIPE}
    from gcp.contrib import _tls
    _tls.has_ended = lambda fd: False
    with Service(shaking_hands(server_context())) as service:
        manager = SslSocketConnectionManager(client_context())
        conn = manager.create(service.endpoint, 5)
        reset(service, conn.fileno())
        conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        manager.dispose(service.endpoint, conn)
        assert not signal.sigpending() and not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    """).quietly()


def test_closing_a_stream_to_a_peer_that_has_reset_it_does_not_end_the_process(script: Script) -> None:
    script(f"""
{SIGPIPE}
    async def main():
        manager = TcpStreamConnectionManager(client_context())
        reader, writer = await manager.create(service.endpoint)
        sock = writer.get_extra_info('socket')
        reset(service, sock.fileno())
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # the event loop has not read that yet
        await manager.dispose(service.endpoint, (reader, writer))
        assert sock.fileno() == -1

    with Service(shaking_hands(server_context())) as service:
        asyncio.run(main())
    """).quietly()


def test_closing_an_asyncpg_connection_that_was_reset_does_not_end_the_process(script: Script, proxy: Any) -> None:
    pytest.importorskip('asyncpg')
    script(f"""
    import signal
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    import asyncio, os, socket
    from gcp.contrib.asyncpg import DbConnectionManager

    async def main():
        manager = DbConnectionManager({{'db': {{'host': '127.0.0.1', 'port': {proxy.port}, 'user': 'postgres'}}}})
        conn = await manager.create('db')
        sock = conn._transport.get_extra_info('socket')
        copy = socket.socket(fileno=os.dup(sock.fileno()))
        copy.shutdown(socket.SHUT_RDWR)  # from now on each write raises SIGPIPE
        await manager.dispose('db', conn)

    asyncio.run(main())
    """).quietly()


# ---- no descriptor left

NO_DESCRIPTOR = """
    import os, resource, socket, threading, time

    def use_up(left=0):
        '''Leave so many descriptors.'''
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        fds = []
        try:
            while True:
                fds.append(os.dup(0))
        except OSError:
            pass
        for fd in fds[len(fds) - left:]:
            os.close(fd)
"""


def test_a_time_limit_holds_where_no_descriptor_is_left(script: Script) -> None:
    script(f"""
{NO_DESCRIPTOR}
    from gcp.contrib._watchdog import Watchdog
    from gcp.contrib._wire import is_alive, peek, shut_down
    ours, theirs = socket.socketpair()
    others, _ = socket.socketpair()
    theirs.send(b'x')
    use_up()
    assert peek(ours.fileno()) == b'x' and is_alive(ours.fileno(), 'allowed')
    assert ours.recv(1) == b'x'
    ours.settimeout(10)
    try:
        with Watchdog(ours.fileno(), 0.05, what='nap'):
            assert ours.recv(1) == b''
        raise AssertionError
    except TimeoutError as error:
        assert 'nap' in str(error)
    shut_down(others.fileno())
    assert others.recv(1) == b''
    """).quietly()


@pytest.mark.parametrize('driver', ['psycopg2', 'psycopg'])
def test_a_connect_is_aborted_where_no_descriptor_is_left(script: Script, driver: str) -> None:
    """libpq itself would wait on for a second or two."""
    pytest.importorskip(driver)
    script(f"""
{NO_DESCRIPTOR}
    from gcp.contrib.{driver} import DbConnectionManager
    from starvation import attempts
    with socket.create_server(('127.0.0.1', 0)) as silent:
        parameters = {{'host': '127.0.0.1', 'port': silent.getsockname()[1], 'user': 'me'}}
        manager = DbConnectionManager({{'db': parameters}})
        use_up(left=2)
        for _ in attempts(0.95):
            try:
                manager.create('db', 0.1)
                raise AssertionError
            except TimeoutError:
                pass
            for thread in threading.enumerate():
                if thread.name == 'gcp-deadline':
                    thread.join(60)
    """).quietly()


# ---- no thread to be had


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    start_others = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith('gcp-'):
            raise RuntimeError("can't start new thread")
        start_others(thread)

    monkeypatch.setattr(threading.Thread, 'start', start)


def test_a_look_up_goes_on_in_the_callers_thread(no_threads: None) -> None:
    with socket.create_server(('127.0.0.1', 0)) as listener:
        pool = ConnectionPool[Any, Any](TcpSocketConnectionManager())
        with pool.connection(('localhost', listener.getsockname()[1]), timeout=5):
            pass
        pool.close()


def test_an_asyncio_look_up_goes_on_in_the_loops_thread(no_threads: None) -> None:
    async def main() -> None:
        manager = AsyncTcpSocketConnectionManager()
        conn = await manager.create(('localhost', listener.getsockname()[1]))
        await manager.dispose(('localhost', 1), conn)

    with socket.create_server(('127.0.0.1', 0)) as listener:
        asyncio.run(main())


@pytest.mark.parametrize('make', [Psycopg2, Psycopg])
def test_a_database_is_connected_in_the_callers_thread(
    make: type[Driver], no_threads: None, postgres: Server, proxy: Proxy
) -> None:
    manager = make().manager({**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port})
    pool = ConnectionPool[str, Any](manager, acquire_timeout=5, dispose_timeout=1, background_collector=True)
    for _ in range(2):
        with pool.connection('orders') as conn:
            conn.cursor().execute('SELECT 1')
    pool.close()


@pytest.mark.parametrize('make', [Psycopg2, Psycopg])
def test_libpqs_own_limit_ends_a_connect_in_the_callers_thread(make: type[Driver], no_threads: None) -> None:
    with silent_server() as port:
        manager = make().manager({'host': '127.0.0.1', 'port': port, 'user': 'me'})
        started = time.monotonic()
        with pytest.raises((make().module.OperationalError, TimeoutError)):
            manager.create('orders', 0.5)
        assert time.monotonic() - started < SOON


# ---- a resolver that does not answer


class Resolver:
    """Hangs until it is opened, then finds 127.0.0.1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        self.asked = 0
        self._look_up = socket.getaddrinfo
        monkeypatch.setattr('socket.getaddrinfo', self.look_up)

    def look_up(self, host: str, *args: Any, **kwargs: Any) -> Any:
        if host == 'db.example.com':
            self.asked += 1
            self.gate.wait(60)
            host = '127.0.0.1'
        return self._look_up(host, *args, **kwargs)


def deadline_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == 'gcp-deadline']


def test_look_ups_that_were_given_up_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch)
    with socket.create_server(('127.0.0.1', 0)) as listener:
        endpoint = 'db.example.com', listener.getsockname()[1]
        pool = ConnectionPool[Any, Any](TcpSocketConnectionManager(), max_size=3)

        def fail() -> None:
            for _ in range(4):
                with pytest.raises(TimeoutError):
                    pool.acquire(endpoint, 0.02)

        with ThreadPoolExecutor(3) as threads:
            for failing in [threads.submit(fail) for _ in range(3)]:
                failing.result(60)
            while resolver.asked < len(deadline_threads()):  # one that has just been started
                time.sleep(0.001)
            assert resolver.asked == len(deadline_threads()) <= 3
            waiting = threads.submit(pool.acquire, endpoint, 10)
            resolver.gate.set()
            pool.release(waiting.result(60), endpoint)
            for thread in deadline_threads():
                thread.join(60)
            asked = resolver.asked
            with pool.connection(endpoint), pool.connection(endpoint, 5):
                assert resolver.asked == asked + 1  # an answer that came too late is not kept
        pool.close()


def test_asyncio_look_ups_that_were_given_up_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch)

    async def main() -> None:
        endpoint = 'db.example.com', listener.getsockname()[1]
        manager = AsyncTcpSocketConnectionManager()
        rounds = 0
        while rounds < 3 or resolver.asked < 2:  # on a busy machine the first are given up before their threads begin
            rounds += 1
            tries = [asyncio.wait_for(manager.create(endpoint), 0.02) for _ in range(2)]
            errors = await asyncio.gather(*tries, return_exceptions=True)
            assert all(isinstance(error, asyncio.TimeoutError) for error in errors), errors
        assert resolver.asked == 2
        waiting = asyncio.ensure_future(manager.create(endpoint))
        await asyncio.sleep(0)
        resolver.gate.set()
        conn = await asyncio.wait_for(waiting, 60)
        assert resolver.asked == 2
        await manager.dispose(endpoint, conn)

    with socket.create_server(('127.0.0.1', 0)) as listener:
        asyncio.run(main())


def test_connects_that_were_given_up_are_taken_over(
    monkeypatch: pytest.MonkeyPatch, postgres: Server, proxy: Proxy
) -> None:
    """libpq looks up names itself."""
    gate, began = threading.Event(), []
    connect = Psycopg2().module.connect

    def connect_late(**parameters: Any) -> Any:
        began.append(parameters)
        gate.wait(60)
        return connect(**parameters)

    monkeypatch.setattr('psycopg2.connect', connect_late)
    manager = Psycopg2().manager({**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port})
    rounds = 0
    while rounds < 5 or not began:  # on a busy machine the first are given up before their threads begin
        rounds += 1
        with pytest.raises(TimeoutError):
            manager.create('orders', 0.02)
    assert len(began) == 1
    assert len(deadline_threads()) == 2  # the connect, and the thread that looks for its socket
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(manager.create, 'orders', 10)
        gate.set()
        conn = waiting.result(60)
    assert len(began) == 1
    conn.cursor().execute('SELECT 1')
    manager.dispose('orders', conn)
    for thread in deadline_threads():
        thread.join(60)


def test_looking_for_sockets_that_do_not_come_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    began: list[Any] = []
    looks: list[float] = []
    look = _libpq._sockets

    def connect(**parameters: Any) -> Any:
        began.append(parameters)
        gate.wait(60)

    def count() -> Any:
        looks.append(time.monotonic())
        return look()

    monkeypatch.setattr('psycopg2.connect', connect)
    monkeypatch.setattr(_libpq, '_sockets', count)
    managers = [Psycopg2().manager({'host': f'db{number}.example.com'}) for number in range(5)]
    for number, manager in enumerate(managers, 1):
        while len(began) < number:  # on a busy machine the first may be given up before its thread begins
            with pytest.raises(TimeoutError):
                manager.create('orders', 0.02)
    assert len(deadline_threads()) == len(managers) + 1
    begun = len(looks)
    while len(looks) < begun + 4:
        assert not gate.wait(0.01)
    last = looks[-4:]  # by one thread, for all of them: in intervals of 50 ms at least, each twice the one before
    assert last[3] - last[0] >= 0.05 + 0.1 + 0.2
    gate.set()
    for thread in deadline_threads():
        thread.join(60)
