"""Connecting to PostgreSQL: a server that falls silent at whatever step, what it costs, and what is said of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import socket
import struct
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import Proxy, open_descriptors, silent_server
from pg_drivers import Asyncpg, AsyncPsycopg, Driver, Psycopg, Psycopg2, done, each_driver, run
from starvation import SOON, attempts

from gcp.demo.server import Server

SECRET = 'hunter2'

SSL_REQUEST, GSS_REQUEST = 80877103, 80877104
ASK_FOR_PASSWORD = b'R' + struct.pack('!ii', 8, 3)
WORDS = b'SFATAL\0C28P01\0Mwrong password for you\0\0'
REFUSE = b'E' + struct.pack('!i', 4 + len(WORDS)) + WORDS

#: What a server does before it falls silent: what it answers to a wish for TLS, and to the startup message.
STEPS: dict[str, tuple[bytes, bytes]] = {
    'says nothing': (b'', b''),
    'agrees to TLS': (b'S', b''),
    'refuses TLS': (b'N', b''),
    'asks for a password': (b'N', ASK_FOR_PASSWORD),
}


@contextlib.contextmanager
def server(on_wish: bytes, on_startup: bytes) -> Iterator[int]:
    """Serve a port that answers so far, and no further."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        threading.Thread(target=_serve, args=(listener, on_wish, on_startup), name='server', daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket, on_wish: bytes, on_startup: bytes) -> None:
    kept = []
    with contextlib.suppress(OSError):
        while True:
            sock, _ = listener.accept()
            kept.append(sock)
            while message := sock.recv(8192):
                code = struct.unpack('!i', message[4:8])[0]
                answer = b'N' if code == GSS_REQUEST else on_wish if code == SSL_REQUEST else on_startup
                sock.sendall(answer)
                if answer not in (b'N',):
                    break
    for sock in kept:
        sock.close()


def at(port: int, **more: Any) -> dict[str, Any]:
    return {'host': '127.0.0.1', 'port': port, 'user': 'me', 'password': SECRET, 'dbname': 'postgres', **more}


def everything(error: BaseException | None) -> str:
    """All that an error says, and all that hangs on it."""
    if error is None:
        return ''
    said = [str(error), repr(error), *traceback.format_exception(error)]
    return '\n'.join(said) + everything(error.__cause__) + everything(error.__context__)


@each_driver
@pytest.mark.parametrize('step', STEPS)
def test_a_server_that_falls_silent_costs_exactly_the_timeout(make: type[Driver], step: str) -> None:
    async def body() -> None:
        pg = make()
        before = open_descriptors()
        with server(*STEPS[step]) as port:
            mode = 'require' if STEPS[step][0] == b'S' else 'prefer'
            manager = pg.manager(at(port, sslmode=mode))
            for _ in attempts(1.9):  # libpq itself waits 2 s at least
                started = time.monotonic()
                with pytest.raises((TimeoutError, asyncio.TimeoutError)) as caught:
                    await pg.create(manager, 0.2)
                assert 0.2 <= time.monotonic() - started < SOON
                assert SECRET not in everything(caught.value)
        await pg.settle()
        for thread in threading.enumerate():
            if thread.name == 'server':
                thread.join(60)
        assert open_descriptors() == before

    run(body())


@pytest.mark.parametrize('make', [Psycopg2, Psycopg])
def test_no_thread_waits_on_for_a_server_that_was_given_up(make: type[Driver]) -> None:
    """libpq itself would wait on until its next whole second, or the one after."""

    async def body() -> None:
        pg = make()
        with silent_server() as port:
            manager = pg.manager(at(port))
            before = open_descriptors()
            for _ in attempts(0.95):
                with pytest.raises(TimeoutError):
                    await pg.create(manager, 0.05)
                await pg.settle()
                assert open_descriptors() == before

    run(body())


@pytest.mark.parametrize('make', [Psycopg, AsyncPsycopg, Asyncpg])
def test_a_look_up_that_hangs_costs_the_timeout(make: type[Driver], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def look_up(*args: Any, **kwargs: Any) -> Any:
        gate.wait(60)
        raise socket.gaierror(socket.EAI_NONAME, 'unknown')

    monkeypatch.setattr('socket.getaddrinfo', look_up)

    async def body() -> None:
        pg = make()
        started = time.monotonic()
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await pg.create(pg.manager({'host': 'db.example.com', 'user': 'me'}), 0.2)
        assert 0.2 <= time.monotonic() - started < SOON
        gate.set()
        await pg.settle()

    run(body())


@pytest.mark.parametrize('make', [Psycopg2, Psycopg])
def test_what_a_function_takes_to_find_the_parameters_counts(make: type[Driver]) -> None:
    async def body() -> None:
        pg = make()
        with silent_server() as port:
            gate = threading.Event()

            def find(endpoint: str) -> dict[str, Any]:
                gate.wait(1)
                return at(port)

            for _ in attempts(1.9):
                started = time.monotonic()
                with pytest.raises(TimeoutError):
                    await pg.create(pg.make(find), 1.1)
                assert 1.1 <= time.monotonic() - started < SOON

    run(body())


@pytest.mark.parametrize('make', [Psycopg2, Psycopg, AsyncPsycopg])
def test_the_drivers_own_time_out_leaves_no_descriptor_either(make: type[Driver]) -> None:
    async def body() -> None:
        pg = make()
        with silent_server() as port:
            manager = pg.manager(at(port, connect_timeout=1))
            before = open_descriptors()
            with pytest.raises(pg.module.OperationalError, match='timeout expired'):
                await done(manager.create('orders'))
            assert open_descriptors() == before

    gc.disable()
    try:
        run(body())
    finally:
        gc.enable()


def test_a_socket_that_comes_to_light_late_is_broken_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine: the thread gets to connect when its caller has given up."""
    pg = Psycopg2()
    gate = threading.Event()
    connect = pg.module.connect

    def connect_late(**parameters: Any) -> Any:
        gate.wait(60)
        return connect(**parameters)

    monkeypatch.setattr('psycopg2.connect', connect_late)

    async def body() -> None:
        with silent_server() as port:
            before = open_descriptors()
            for _ in attempts(0.95):  # libpq's own limit is a second at least
                gate.clear()
                with pytest.raises(TimeoutError):
                    await pg.create(pg.manager(at(port)), 0.05)
                gate.set()
                await pg.settle()
                assert open_descriptors() == before

    run(body())


@each_driver
def test_two_hundred_failures_leave_no_descriptor(make: type[Driver]) -> None:
    async def body() -> None:
        pg = make()
        with silent_server() as port:
            manager = pg.manager(at(port))
            loop = asyncio.get_running_loop()
            with concurrent.futures.ThreadPoolExecutor(20) as threads:
                before = open_descriptors()
                for _ in range(10):
                    tries = [
                        pg.create(manager, 0.1)
                        if pg.is_async
                        else loop.run_in_executor(threads, manager.create, 'orders', 0.1)
                        for _ in range(20)
                    ]
                    errors = await asyncio.gather(*tries, return_exceptions=True)
                    others = [one for one in errors if not isinstance(one, (TimeoutError, asyncio.TimeoutError))]
                    assert not others, others
                    del tries, errors
                await pg.settle()
                assert open_descriptors() == before

    run(body())


@pytest.mark.parametrize('make', [Psycopg2, Psycopg])
@pytest.mark.parametrize('wanted', [0, 4321])
def test_a_socket_is_as_its_user_wants_it(make: type[Driver], proxy: Proxy, postgres: Server, wanted: int) -> None:
    """What the time-out needs to know it again by is gone."""

    async def body() -> None:
        pg = make()
        parameters = {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port, 'tcp_user_timeout': wanted}
        async with pg.connected(parameters) as (manager, conn):
            with socket.socket(fileno=os.dup(conn.fileno())) as sock:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == wanted

    run(body())


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a service with limits of its own."""
    (tmp_path / 'services').write_text(
        '[shop]\nhost=db.example.com\nport=1,2\ntcp_user_timeout=4321\nconnect_timeout=7\n'
    )
    monkeypatch.setenv('PGSERVICEFILE', str(tmp_path / 'services'))
    return 'shop'


@pytest.mark.parametrize('make', [Psycopg2, Psycopg])
@pytest.mark.parametrize('source', ['service', 'service in a DSN', 'PGSERVICE', 'DSN', 'parameter before service'])
def test_a_socket_is_as_libpq_resolved_it(
    make: type[Driver],
    proxy: Proxy,
    postgres: Server,
    service: str,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body() -> None:
        pg = make()
        key = 'dsn' if pg.name == 'psycopg2' else 'conninfo'
        parameters = {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port}
        wanted = 4321
        if source == 'service':
            parameters['service'] = service
        elif source == 'service in a DSN':
            parameters[key] = f'service={service}'
        elif source == 'PGSERVICE':
            monkeypatch.setenv('PGSERVICE', service)
        elif source == 'DSN':
            parameters[key] = 'tcp_user_timeout=4321'
        else:
            parameters |= {'service': service, 'tcp_user_timeout': 1234}
            wanted = 1234
        async with pg.connected(parameters) as (manager, conn):
            with socket.socket(fileno=os.dup(conn.fileno())) as sock:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == wanted

    run(body())


@pytest.mark.parametrize('make', [Psycopg2, Psycopg])
@pytest.mark.parametrize('source', ['environment', 'service'])
def test_a_shorter_time_out_of_libpqs_own_holds(
    make: type[Driver], source: str, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        pg = make()
        if source == 'environment':
            monkeypatch.setenv('PGCONNECT_TIMEOUT', '1')
        else:
            (tmp_path / 'services').write_text('[shop]\nconnect_timeout=1\n')
            monkeypatch.setenv('PGSERVICE', service)
        with silent_server() as port, pytest.raises(pg.module.OperationalError, match='timeout expired'):
            await pg.create(pg.manager(at(port)), 30)

    run(body())


@pytest.mark.parametrize('make', [Psycopg2, Psycopg])
def test_an_unknown_service_is_told_by_libpq(make: type[Driver], service: str) -> None:
    async def body() -> None:
        pg = make()
        with pytest.raises(pg.module.Error, match='no_such'):
            await pg.create(pg.manager({'service': 'no_such', 'host': '/nowhere'}), 30)

    run(body())


@each_driver
def test_a_refusal_tells_no_secret(make: type[Driver]) -> None:
    async def body() -> None:
        pg = make()
        with server(b'N', REFUSE) as port:
            with pytest.raises(pg.errors) as caught:
                await pg.create(pg.manager(at(port)), 5)
        assert SECRET not in everything(caught.value)

    run(body())


@each_driver
@pytest.mark.parametrize(
    'dsn',
    [
        f'host=x {SECRET}',
        f'postgresql://me:{SECRET}%zz@host/db',
        f'postgresql://me:pass/{SECRET}@host:{SECRET}/db',
        f'{SECRET}://me@host',
    ],
)
def test_a_connection_string_that_is_none_is_not_quoted(make: type[Driver], dsn: str) -> None:
    async def body() -> None:
        pg = make()
        key = {'psycopg': 'conninfo'}.get(pg.name, 'dsn')
        manager = pg.make({'orders': {key: dsn}})
        with pytest.raises(Exception) as caught:
            await pg.create(manager, 1)
        assert SECRET not in everything(caught.value)
        assert SECRET not in repr(manager)

    run(body())


@each_driver
def test_a_connection_string_connects_and_keywords_have_precedence(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        key = {'psycopg': 'conninfo'}.get(pg.name, 'dsn')
        dsn = f'postgresql://postgres@/nowhere?host={postgres.directory}'
        keywords = pg.keywords({'dbname': 'postgres'})
        manager = pg.make({'orders': {key: dsn, **keywords}})
        conn = await pg.create(manager)
        assert await pg.ask(conn, 'SELECT current_database()') == 'postgres'
        await pg.dispose(manager, conn)

    run(body())


@each_driver
@pytest.mark.parametrize('endpoint', [None, 1, ('host', 5432), b'orders'])
def test_an_endpoint_of_a_wrong_type_is_told(make: type[Driver], endpoint: Any) -> None:
    async def body() -> None:
        pg = make()
        manager = pg.make(lambda endpoint: {})
        with pytest.raises(TypeError, match='endpoint: the name of a database was expected, not an instance of'):
            created = manager.create(endpoint)
            if pg.is_async:
                await created

    run(body())


def test_asyncpg_names_an_option_that_it_does_not_know() -> None:
    async def body() -> None:
        pg = Asyncpg()
        with pytest.raises(TypeError, match='pasword') as caught:
            await pg.create(pg.make({'orders': {'pasword': SECRET}}))
        assert SECRET not in everything(caught.value)

    run(body())


@pytest.mark.parametrize('make', [Psycopg2, Psycopg])
def test_libpq_names_an_option_that_it_does_not_know(make: type[Driver]) -> None:
    async def body() -> None:
        pg = make()
        with pytest.raises(pg.module.ProgrammingError, match='pasword') as caught:
            await pg.create(pg.make({'orders': {'pasword': SECRET}}))
        assert SECRET not in everything(caught.value)

    run(body())


@pytest.mark.parametrize('make', [Psycopg2, Psycopg])
@pytest.mark.parametrize('name', ['connect_timeout', 'tcp_user_timeout'])
def test_a_time_out_that_is_no_number_is_told(make: type[Driver], name: str) -> None:
    async def body() -> None:
        pg = make()
        with pytest.raises(ValueError, match=f"endpoint 'orders': {name}: a number was expected, not 'soon'"):
            await pg.create(pg.make({'orders': {name: 'soon'}}))

    run(body())


@each_driver
@pytest.mark.parametrize('source', ['parameters', 'DSN'])
def test_a_network_that_swallows_packets_is_noticed_as_the_parameters_say(
    make: type[Driver], proxy: Proxy, postgres: Server, source: str
) -> None:
    async def body() -> None:
        pg = make()
        options: dict[str, Any] = {
            'keepalives_idle': 11,
            'keepalives_interval': 7,
            'keepalives_count': 3,
            'tcp_user_timeout': 4321,
        }
        at_proxy = {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port}
        if source == 'DSN':
            query = '&'.join(f'{name}={value}' for name, value in options.items())
            key = 'conninfo' if pg.name == 'psycopg' else 'dsn'
            parameters = {key: f'postgresql://postgres@127.0.0.1:{proxy.port}/postgres?application_name=mine&{query}'}
        else:
            parameters = {**at_proxy, **options}
        async with pg.connected(parameters) as (manager, conn):
            with socket.socket(fileno=os.dup(pg.descriptor(conn))) as sock:
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 11
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 7
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 4321

    run(body())


def test_options_of_the_socket_that_make_no_sense_are_told() -> None:
    async def body() -> None:
        pg = Asyncpg()
        with pytest.raises(ValueError, match="'orders': tcp_user_timeout: a number was expected, not 'soon'"):
            await pg.create(pg.make({'orders': {'host': '127.0.0.1', 'tcp_user_timeout': 'soon'}}))

    run(body())


# ---- what to write instead


@each_driver
@pytest.mark.parametrize('kind', [str, str.encode])
def test_a_dsn_in_the_place_of_a_mapping_is_told_with_what_to_write(make: type[Driver], kind: Any) -> None:
    async def body() -> None:
        pg = make()
        key = 'conninfo' if pg.name == 'psycopg' else 'dsn'
        dsn = kind(f'postgresql://me:{SECRET}@db.example.com/shop')
        with pytest.raises(TypeError, match=f"^dsn_params of endpoint 'orders': .* write {{'{key}': ...}}") as caught:
            pg.make({'orders': dsn})
        assert SECRET not in everything(caught.value)
        with pytest.raises(TypeError, match=f"^dsn_params of endpoint 'orders': .* write {{'{key}': ...}}") as caught:
            await pg.create(pg.make(lambda endpoint: dsn))
        assert SECRET not in everything(caught.value)
        with pytest.raises(TypeError, match=f"^dsn_params: .* write {{'orders': {{'{key}': ...}}}}") as caught:
            pg.make(dsn)
        assert SECRET not in everything(caught.value)

    run(body())


@each_driver
@pytest.mark.parametrize('flat', [{'host': 'db', 'port': 5432}, {'dsn': 'x'}, {'user': 'me', 'password': SECRET}])
def test_the_parameters_of_one_endpoint_are_told_with_what_to_write(make: type[Driver], flat: dict[str, Any]) -> None:
    shown = ', '.join(f"'{name}': ..." for name in sorted(flat))
    with pytest.raises(TypeError, match=f"write {{'orders': {{{shown}}}}} for an endpoint 'orders'") as caught:
        make().make(flat)
    assert SECRET not in everything(caught.value)


@each_driver
def test_an_endpoint_may_have_the_name_of_a_parameter(make: type[Driver]) -> None:
    make().make({'host': {}, 'user': {}})


@pytest.mark.parametrize(
    ('make', 'name', 'better'),
    [
        (Psycopg2, 'conninfo', 'dsn'),
        (Psycopg, 'dsn', 'conninfo'),
        (AsyncPsycopg, 'database', 'dbname'),
        (Asyncpg, 'conninfo', 'dsn'),
        (Asyncpg, 'dbname', 'database'),
        (Asyncpg, 'sslmode', 'ssl'),
    ],
)
def test_another_drivers_word_is_told_with_what_to_write(make: type[Driver], name: str, better: str) -> None:
    with pytest.raises(TypeError, match=f"endpoint 'orders': this driver knows no '{name}'; write '{better}'"):
        make().make({'orders': {name: 'x'}})
