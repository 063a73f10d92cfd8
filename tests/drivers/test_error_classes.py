"""What each manager of gcp.contrib says of an error: of a connect that failed, and of one in the block of a holder."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import errno
import functools
import inspect
import re
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from http_peers import http_server
from peers import Proxy, authority, await_input, client_context, driver, missing, server_context
from pg_drivers import Driver, done, each_driver, run
from redis_peers import PASSWORD, Misbehaving, RedisServer, redis_server
from servers import DEBIAN, Bouncer, free_port

import gcp.asyncio
import gcp.threading
from gcp import ErrorClass, Retry
from gcp.contrib import socket as sockets
from gcp.contrib import socket_async, unix, unix_async
from gcp.contrib._endpoints import UnknownEndpointError
from gcp.contrib.http import HttpConnectionManager
from gcp.demo.server import Server, ServerError, serve
from gcp.exceptions import AcquireTimeoutError, EndpointUnavailableError

TRANSIENT, PERMANENT = ErrorClass.TRANSIENT, ErrorClass.PERMANENT
BROKEN, STALE = ErrorClass.BROKEN, ErrorClass.STALE

UNKNOWN = 'unknown.invalid'


def refused() -> tuple[str, int]:
    """An address at which nothing listens."""
    return '127.0.0.1', free_port()


async def failure(manager: Any, endpoint: Any) -> ErrorClass:
    """Return the class of the error of a create."""
    with pytest.raises(Exception) as caught:
        if inspect.iscoroutinefunction(manager.create):
            await asyncio.wait_for(manager.create(endpoint), 60)
        else:
            await asyncio.to_thread(manager.create, endpoint, 10)
    found: ErrorClass = manager.classify(endpoint, caught.value)
    return found


# ---- PostgreSQL

HBA = b'local all postgres trust\nlocal all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n'


@pytest.fixture(scope='module')
def strict_postgres() -> Iterator[dict[str, Any]]:
    """A server with passwords, few connections and an expired certificate; the parameters of its unix socket."""
    driver('trustme')
    versions = sorted(DEBIAN.glob('*/bin/postgres'), key=lambda path: int(path.parts[-3]))
    if not versions:
        missing(f'no PostgreSQL with TLS in {DEBIAN}')
    port = free_port()
    expired = expired_certificate()
    try:
        with serve(
            max_connections=5,
            settings={'listen_addresses': '127.0.0.1', 'port': port, 'ssl': 'on', 'superuser_reserved_connections': 0},
            files={
                'server.key': expired.private_key_pem.bytes(),
                'server.crt': expired.cert_chain_pems[0].bytes(),
                'pg_hba.conf': HBA,
            },
            programs=versions[-1].parent,
        ) as server:
            yield {**server.parameters, 'port': port}
    except ServerError as error:
        missing(str(error))


def expired_certificate() -> Any:
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    validity = {'not_before': yesterday - datetime.timedelta(days=1), 'not_after': yesterday}
    return authority('good').issue_cert('localhost', **validity)


CONNECTS = {
    'wrong password': ({'host': '127.0.0.1', 'password': 'wrong'}, PERMANENT),
    'unknown role': ({'user': 'unknown', 'password': 'wrong'}, PERMANENT),
    'unknown database': ({'dbname': 'unknown'}, PERMANENT),
    'unknown host': ({'host': UNKNOWN}, PERMANENT),
    'expired certificate': ({'host': 'localhost', 'password': 'x', 'sslmode': 'verify-full'}, PERMANENT),
    'unknown parameter': ({'colour': 'red'}, PERMANENT),
    'down': ({'host': '127.0.0.1', 'port': 1}, TRANSIENT),
    'no socket': ({'host': '/var/empty'}, TRANSIENT),
}


@each_driver
@pytest.mark.parametrize('case', CONNECTS)
def test_a_connect_to_postgres(make: type[Driver], strict_postgres: dict[str, Any], case: str, tmp_path: Path) -> None:
    pg = make()
    manager = pg.manager(connect_parameters(pg, strict_postgres, case, tmp_path))
    assert asyncio.run(failure(manager, 'orders')) is CONNECTS[case][1]


def connect_parameters(pg: Driver, server: dict[str, Any], case: str, folder: Path) -> dict[str, Any]:
    """Return the parameters of a case, in libpq's words."""
    changes = CONNECTS[case][0]
    if 'sslmode' not in changes:
        return {**server, **changes}
    if pg.name == 'asyncpg':
        return {**server, **changes, 'sslmode': client_context()}
    authority('good').cert_pem.write_to_path(folder / 'ca.pem')
    return {**server, **changes, 'sslrootcert': str(folder / 'ca.pem')}


@each_driver
def test_an_endpoint_without_parameters_is_permanent(make: type[Driver]) -> None:
    manager = make().manager({})
    assert asyncio.run(failure(manager, 'unknown')) is PERMANENT
    assert manager.classify('unknown', UnknownEndpointError('unknown', [])) is PERMANENT


@each_driver
def test_too_many_clients_are_transient(make: type[Driver], strict_postgres: dict[str, Any]) -> None:
    async def body() -> None:
        pg = make()
        manager, held = pg.manager(strict_postgres), []
        try:
            for _ in range(5):
                with contextlib.suppress(*pg.errors):
                    held.append(await pg.create(manager))
            assert await failure(manager, 'orders') is TRANSIENT
        finally:
            for conn in held:
                await pg.dispose(manager, conn)

    run(body())


def error_response(state: str, text: str, severity: str = 'FATAL') -> bytes:
    fields = f'S{severity}\0VFATAL\0C{state}\0M{text}\0\0'.encode()
    return b'E' + (len(fields) + 4).to_bytes(4, 'big') + fields


@contextlib.contextmanager
def answering(words: bytes) -> Iterator[dict[str, Any]]:
    """A server that refuses TLS, and answers each start of a session with some words, and an EOF; its parameters."""

    def serve_all() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, contextlib.suppress(OSError):
                    if client.recv(8)[4:] == b'\x04\xd2\x16\x2f':  # SSLRequest
                        client.sendall(b'N')
                        client.recv(8)
                    client.recv(1000)
                    client.sendall(words)

    with socket.create_server(('127.0.0.1', 0)) as listener:
        thread = threading.Thread(target=serve_all, daemon=True)
        thread.start()
        yield {'host': '127.0.0.1', 'port': listener.getsockname()[1], 'user': 'me', 'dbname': 'shop'}
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)


ANSWERS = [
    ('57P03', 'the database system is starting up', TRANSIENT),
    ('57P03', 'the database system is shutting down', TRANSIENT),
    ('57P03', 'das Datenbanksystem startet', TRANSIENT),
    ('57P01', 'terminating connection due to administrator command', TRANSIENT),
    ('57P02', 'terminating connection because of crash of another server process', TRANSIENT),
    ('53300', 'remaining connection slots are reserved', TRANSIENT),
    ('53300', 'too many connections for database "certificate verify failed"', TRANSIENT),
    ('XX000', 'out of order', TRANSIENT),
    ('28000', 'role "me" is not permitted to log in', PERMANENT),
    ('28000', 'no pg_hba.conf entry for host "127.0.0.1", user "me", database "shop", no encryption', PERMANENT),
    ('28P01', 'Passwort-Authentifizierung für Benutzer »me« fehlgeschlagen', PERMANENT),
    ('28P01', "authentification par mot de passe échouée pour l'utilisateur  « me »", PERMANENT),
    ('28P01', 'пользователь "me" не прошёл проверку подлинности (по паролю)', PERMANENT),
    ('28000', 'kein pg_hba.conf-Eintrag für Host »127.0.0.1«, Benutzer »me«, Datenbank »shop«', PERMANENT),
    ('3D000', 'Datenbank »shop« existiert nicht', PERMANENT),
    ('3D000', 'no existe la base de datos «shop»', PERMANENT),
    ('3D000', 'データベース"shop"は存在しません', PERMANENT),
    ('3D000', '数据库 "shop" 不存在', PERMANENT),
    ('42501', 'permission denied for database "shop"', PERMANENT),
    ('08P01', 'no such database: shop', PERMANENT),
    ('08P01', 'no more connections allowed (max_client_conn)', TRANSIENT),
]


@each_driver
@pytest.mark.parametrize('state, text, expected', ANSWERS)
def test_what_a_server_answers_to_a_connect(make: type[Driver], state: str, text: str, expected: ErrorClass) -> None:
    with answering(error_response(state, text)) as parameters:
        assert asyncio.run(failure(make().manager(parameters), 'orders')) is expected


@each_driver
def test_a_connect_that_is_cut_is_transient(make: type[Driver]) -> None:
    """As by a server that restarts."""
    with answering(b'') as parameters:
        assert asyncio.run(failure(make().manager(parameters), 'orders')) is TRANSIENT


@each_driver
def test_a_database_that_pgbouncer_does_not_know_is_permanent(make: type[Driver], bouncer: Bouncer) -> None:
    manager = make().manager({**bouncer.parameters, 'dbname': 'unknown'})
    assert asyncio.run(failure(manager, 'orders')) is PERMANENT


@each_driver
@pytest.mark.parametrize('how', ['terminated', 'in a query', 'cut', 'closed'])
def test_a_session_that_ends_in_a_block_is_broken(make: type[Driver], postgres: Server, proxy: Proxy, how: str) -> None:
    async def body() -> None:
        pg = make()
        parameters = {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port, 'sslmode': 'disable'}
        async with pg.connected(postgres.parameters) as (_, other), pg.connected(parameters) as (manager, conn):
            question = f'SELECT pg_terminate_backend({pg.backend(conn)}, 5000)'
            with pytest.raises(pg.errors) as caught:
                if how == 'in a query':
                    await pg.ask(conn, 'SELECT pg_terminate_backend(pg_backend_pid())')
                elif how == 'terminated':
                    await pg.ask(other, question)
                elif how == 'cut':
                    proxy.cut()
                else:
                    await done(conn.close())
                await pg.ask(conn, 'SELECT 1')
            assert manager.classify('orders', caught.value) is BROKEN
            with pytest.raises(pg.errors) as again:
                await pg.ask(conn, 'SELECT 1')
            assert manager.classify('orders', again.value) is BROKEN

    run(body())


@pytest.fixture(scope='module')
def standby() -> Iterator[dict[str, Any]]:
    """A server in recovery, as a primary that was demoted."""
    settings = {'wal_level': 'replica', 'hot_standby': 'on', 'max_wal_senders': 1}
    try:
        with serve(max_connections=10, settings=settings) as server:
            assert server._process is not None
            server._process.send_signal(signal.SIGINT)
            server._process.wait(30)  # a clean end: else it would wait for more of the log
            server._launch.write('standby.signal', b'')
            server.start()
            yield server.parameters
    except ServerError as error:
        missing(str(error))


@each_driver
def test_a_server_in_recovery_makes_all_connections_stale(make: type[Driver], standby: dict[str, Any]) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(standby) as (manager, conn):
            with pytest.raises(pg.errors) as caught:
                await pg.ask(conn, 'CREATE TABLE orders ()')
            assert manager.classify('orders', caught.value) is STALE

    run(body())


@each_driver
def test_a_server_that_was_made_read_only_makes_all_connections_stale(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        read_only = {'default_transaction_read_only': 'on'}
        words = (
            {'server_settings': read_only}
            if pg.name == 'asyncpg'
            else {'options': '-c ' + '='.join(*read_only.items())}
        )
        async with pg.connected({**postgres.parameters, **words}) as (manager, conn):
            with pytest.raises(pg.errors) as caught:
                await pg.ask(conn, 'CREATE TABLE orders ()')
            assert manager.classify('orders', caught.value) is STALE

    run(body())


@each_driver
@pytest.mark.parametrize('state', ['57P02', '57P04', '25P03', '25P04', '57P05', '08006'])
def test_an_error_that_ends_sessions(make: type[Driver], postgres: Server, state: str) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters) as (manager, conn):
            with pytest.raises(pg.errors) as caught:
                await pg.ask(conn, f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$")
            assert manager.classify('orders', caught.value) is (STALE if state in ('57P02', '57P04') else BROKEN)

    run(body())


@each_driver
@pytest.mark.parametrize('state', ['23505', '40001', '40P01', '42601', '57014', 'P0001', '22012', '0A000', '55P03'])
def test_an_ordinary_error_leaves_the_decision_to_the_state_of_the_connection(
    make: type[Driver], postgres: Server, state: str
) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters) as (manager, conn):
            with pytest.raises(pg.errors) as caught:
                await pg.ask(conn, f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$")
            assert manager.classify('orders', caught.value) is TRANSIENT
            assert manager.clean_after_error('orders', conn, caught.value) is True

    run(body())


@each_driver
def test_the_error_of_another_connection_in_a_block_is_no_reason_to_discard_this_one(make: type[Driver]) -> None:
    manager = make().manager({})
    for error in (ConnectionResetError(errno.ECONNRESET, 'reset'), BrokenPipeError(), TimeoutError(), KeyError('x')):
        assert manager.classify('orders', error) is TRANSIENT
    assert manager.classify('orders', asyncio.CancelledError()) is TRANSIENT


# ---- Redis

MANAGERS = ('RedisConnectionManager', 'AsyncRedisConnectionManager')


@pytest.fixture(scope='module')
def redis_peer() -> Iterator[RedisServer]:
    driver('redis')
    with redis_server() as server:
        yield server


@pytest.fixture(params=MANAGERS)
def make_redis(request: pytest.FixtureRequest) -> Callable[..., Any]:
    driver('redis')
    import gcp.contrib.redis

    made: Callable[..., Any] = getattr(gcp.contrib.redis, request.param)
    return made


async def call(conn: Any, *words: Any) -> Any:
    from gcp.contrib.redis import client

    return await done(client(conn).execute_command(*words))


@contextlib.asynccontextmanager
async def connected(manager: Any, endpoint: Any) -> AsyncIterator[Any]:
    conn = await done(manager.create(endpoint))
    try:
        yield conn
    finally:
        await done(manager.dispose(endpoint, conn))


REDIS_CONNECTS = {
    'wrong password': ({'password': 'wrong'}, PERMANENT),
    'unknown user': ({'username': 'unknown', 'password': 'wrong'}, PERMANENT),
    'no password with RESP 3': ({'protocol': 3}, PERMANENT),
    'wrong password with RESP 3': ({'protocol': 3, 'password': 'wrong'}, PERMANENT),
    'unknown database': ({'password': PASSWORD, 'db': 77}, PERMANENT),
}


@pytest.mark.parametrize('case', REDIS_CONNECTS)
def test_a_connect_to_redis(make_redis: Callable[..., Any], redis_peer: RedisServer, case: str) -> None:
    options, expected = REDIS_CONNECTS[case]
    assert asyncio.run(failure(make_redis(**options), ('127.0.0.1', redis_peer.port))) is expected


@pytest.mark.parametrize('password', [None, 'Error', '-2'])
def test_a_redis_host_that_is_not_known_is_permanent(make_redis: Callable[..., Any], password: str | None) -> None:
    """Also where a password that the text contains was taken out of it."""
    assert asyncio.run(failure(make_redis(password=password), (UNKNOWN, 6379))) is PERMANENT


def test_a_redis_that_is_down_is_transient(make_redis: Callable[..., Any]) -> None:
    assert asyncio.run(failure(make_redis(), refused())) is TRANSIENT
    assert asyncio.run(failure(make_redis(), '/var/empty/redis.sock')) is TRANSIENT


def test_an_endpoint_that_redis_does_not_have_is_permanent(make_redis: Callable[..., Any]) -> None:
    assert asyncio.run(failure(make_redis(), 'unknown')) is PERMANENT


def test_a_redis_with_an_expired_certificate_is_permanent(make_redis: Callable[..., Any]) -> None:
    with tls_server(server_context('localhost', expired=True)) as port:
        manager = make_redis(ssl=client_context(), password='Error')
        assert asyncio.run(failure(manager, ('localhost', port))) is PERMANENT


REDIS_ANSWERS = {
    '-LOADING Redis is loading the dataset in memory': TRANSIENT,
    '-MASTERDOWN Link with MASTER is down': TRANSIENT,
    '-CLUSTERDOWN Hash slot not served': TRANSIENT,
    '-BUSY Redis is busy running a script': TRANSIENT,
    '-TRYAGAIN Multiple keys request during rehashing of slot': TRANSIENT,
    '-ERR max number of clients reached': TRANSIENT,
    '-DENIED Redis is running in protected mode': PERMANENT,
    '-NOPERM this user has no permissions to run the select command': PERMANENT,
    '-ERR invalid DB index': PERMANENT,
}


@pytest.mark.parametrize('answer', REDIS_ANSWERS)
def test_what_redis_answers_to_a_connect(make_redis: Callable[..., Any], answer: str) -> None:
    with Misbehaving('SELECT', answer.encode() + b'\r\n') as server:
        assert asyncio.run(failure(make_redis(db=1), ('127.0.0.1', server.port))) is REDIS_ANSWERS[answer]


@pytest.mark.parametrize('lapse', ['close', 'reset'])
def test_a_connect_to_redis_that_is_cut_is_transient(make_redis: Callable[..., Any], lapse: str) -> None:
    with Misbehaving('SELECT', lapse) as server:
        assert asyncio.run(failure(make_redis(db=1), ('127.0.0.1', server.port))) is TRANSIENT


def test_errors_of_redis_in_a_block(make_redis: Callable[..., Any]) -> None:
    async def body() -> None:
        driver('redis')
        import redis

        with redis_server() as server:
            manager, endpoint = make_redis(password=PASSWORD), ('127.0.0.1', server.port)

            async def seen(*words: Any) -> ErrorClass:
                async with connected(manager, endpoint) as conn:
                    with pytest.raises(redis.RedisError) as caught:
                        await call(conn, *words)
                    found: ErrorClass = manager.classify(endpoint, caught.value)
                    return found

            assert await seen('INCRBY', 'x', 'y') is TRANSIENT
            async with connected(manager, endpoint) as conn, connected(manager, endpoint) as admin:
                await call(admin, 'ACL', 'SETUSER', 'default', '-get')
                with pytest.raises(redis.exceptions.NoPermissionError) as denied:
                    await call(conn, 'GET', 'x')
                assert manager.classify(endpoint, denied.value) is PERMANENT
                assert manager.clean_after_error(endpoint, conn, denied.value) is True

                await call(admin, 'REPLICAOF', *refused())
                assert await seen('SET', 'x', 1) is STALE
                from gcp.contrib.redis import client

                for transaction in (True, False):
                    pipeline = client(conn).pipeline(transaction=transaction)
                    pipeline.set('x', 1)
                    with pytest.raises(redis.RedisError) as caught:
                        await done(pipeline.execute())
                    assert manager.classify(endpoint, caught.value) is STALE

                await call(admin, 'CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes')
                for _ in range(2):
                    with pytest.raises(redis.ConnectionError) as caught:
                        await call(conn, 'PING')
                    assert manager.classify(endpoint, caught.value) is BROKEN

    run(body())


def test_a_redis_that_is_demoted_while_a_command_is_blocked(make_redis: Callable[..., Any]) -> None:
    driver('redis')
    import redis

    text = 'UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)'
    assert make_redis().classify('cache', redis.ResponseError(text)) is STALE


# ---- sockets and HTTP


@contextlib.contextmanager
def tls_server(context: ssl.SSLContext) -> Iterator[int]:
    def serve_all() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with contextlib.suppress(OSError), context.wrap_socket(client, server_side=True):
                    pass

    with socket.create_server(('127.0.0.1', 0)) as listener:
        thread = threading.Thread(target=serve_all, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)


class Http:
    """The HTTP manager behind the face of the socket managers: endpoints are pairs."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._manager = HttpConnectionManager(context)
        self._scheme = 'https' if context else 'http'

    def create(self, endpoint: tuple[str, int], timeout: float) -> Any:
        return self._manager.create(f'{self._scheme}://{endpoint[0]}:{endpoint[1]}', timeout)

    def classify(self, endpoint: tuple[str, int], error: BaseException) -> ErrorClass:
        return self._manager.classify('http://example.org', error)


TCP: list[Callable[[], Any]] = [
    sockets.TcpSocketConnectionManager,
    socket_async.TcpSocketConnectionManager,
    socket_async.TcpStreamConnectionManager,
    Http,
]
TLS: list[Callable[[ssl.SSLContext], Any]] = [
    sockets.SslSocketConnectionManager,
    socket_async.TcpStreamConnectionManager,
    Http,
]
UNIX: list[Callable[[], Any]] = [
    unix.UnixSocketConnectionManager,
    unix_async.UnixSocketConnectionManager,
    unix_async.UnixSocketStreamConnectionManager,
]


@pytest.mark.parametrize('make', TCP)
def test_a_connect_over_tcp(make: Callable[[], Any]) -> None:
    assert asyncio.run(failure(make(), (UNKNOWN, 80))) is PERMANENT
    assert asyncio.run(failure(make(), ('x' * 300, 80))) is PERMANENT
    assert asyncio.run(failure(make(), ('127.0.0.1', 99999))) is PERMANENT
    assert asyncio.run(failure(make(), refused())) is TRANSIENT


@pytest.mark.parametrize('make', TLS)
def test_a_connect_over_tls(make: Callable[[ssl.SSLContext], Any]) -> None:
    with tls_server(server_context('localhost', expired=True)) as port:
        assert asyncio.run(failure(make(client_context()), ('localhost', port))) is PERMANENT
    with tls_server(server_context('localhost', issuer='other')) as port:
        assert asyncio.run(failure(make(client_context()), ('localhost', port))) is PERMANENT
    with tls_server(server_context('other.example')) as port:
        assert asyncio.run(failure(make(client_context()), ('localhost', port))) is PERMANENT
    with answering(b'-ERR\r\n') as plain:
        assert asyncio.run(failure(make(client_context()), ('localhost', plain['port']))) is PERMANENT
    with answering(b'') as cut:
        assert asyncio.run(failure(make(client_context()), ('localhost', cut['port']))) is TRANSIENT


@pytest.mark.parametrize('make', UNIX)
def test_a_connect_to_a_unix_socket(make: Callable[[], Any], tmp_path: Path) -> None:
    assert asyncio.run(failure(make(), tmp_path / 'missing')) is TRANSIENT
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_behind:
        left_behind.bind(str(tmp_path / 'left'))
    assert asyncio.run(failure(make(), tmp_path / 'left')) is TRANSIENT
    (tmp_path / 'file').touch()
    assert asyncio.run(failure(make(), tmp_path / 'file' / 'below')) is PERMANENT
    assert asyncio.run(failure(make(), 'x' * 200)) is PERMANENT
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / 'datagrams'))
        assert asyncio.run(failure(make(), tmp_path / 'datagrams')) is PERMANENT


@pytest.mark.parametrize('make', [*TCP, *UNIX])
def test_errors_of_sockets_in_a_block(make: Callable[[], Any]) -> None:
    manager = make()
    for broken in (
        ConnectionResetError(errno.ECONNRESET, 'reset'),
        ConnectionResetError('Connection lost'),
        BrokenPipeError(errno.EPIPE, 'broken pipe'),
        OSError(errno.ENOTCONN, 'not connected'),
        ssl.SSLEOFError(8, 'EOF occurred'),
    ):
        assert manager.classify(('localhost', 1), broken) is BROKEN
    for other in (TimeoutError(), ValueError('x'), asyncio.CancelledError(), OSError('text'), GeneratorExit()):
        assert manager.classify(('localhost', 1), other) is TRANSIENT
    assert manager.classify(('localhost', 1), PermissionError(errno.EACCES, 'denied')) is PERMANENT


@pytest.mark.parametrize(
    'make', [socket_async.TcpStreamConnectionManager, unix_async.UnixSocketStreamConnectionManager]
)
def test_the_end_of_a_stream_in_a_block(make: Callable[[], Any]) -> None:
    assert make().classify(('localhost', 1), asyncio.IncompleteReadError(b'', 1)) is BROKEN


def test_errors_of_http_in_a_block() -> None:
    manager = HttpConnectionManager()
    for answer in (b'', b'nonsense\r\n\r\n', b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc'):
        with answering(answer) as server:
            origin = f'http://127.0.0.1:{server["port"]}'
            conn = manager.create(origin, 10)
            conn.request('GET', '/')
            with pytest.raises(Exception) as caught:
                conn.getresponse().read()
            assert manager.classify(origin, caught.value) is BROKEN
            with pytest.raises(Exception) as again:
                conn.request('GET', '/')
            assert manager.classify(origin, again.value) in (BROKEN, TRANSIENT)
            assert not manager.clean_after_error(origin, conn, again.value)
            manager.dispose(origin, conn)


def test_http_that_goes_on_is_not_broken() -> None:
    with http_server() as port:
        manager = HttpConnectionManager()
        origin = f'http://127.0.0.1:{port}'
        conn = manager.create(origin, 10)
        conn.request('GET', '/peer')
        conn.getresponse().read()
        assert manager.classify(origin, LookupError('404')) is TRANSIENT
        manager.dispose(origin, conn)


# ---- errors within errors


def raised(error: BaseException, cause: BaseException | None = None, context: BaseException | None = None) -> Any:
    error.__context__ = context
    if cause is not None:
        error.__cause__ = cause
    return error


RESET, DENIED = ConnectionResetError(errno.ECONNRESET, 'reset'), PermissionError(errno.EACCES, 'denied')


def test_the_nearest_error_that_is_known_counts() -> None:
    manager = sockets.TcpSocketConnectionManager()

    def seen(error: BaseException) -> ErrorClass:
        return manager.classify(('localhost', 1), error)

    assert seen(raised(LookupError(), cause=RESET)) is BROKEN
    assert seen(raised(LookupError(), context=RESET)) is BROKEN
    assert seen(raised(LookupError(), cause=raised(KeyError(), context=DENIED))) is PERMANENT
    assert seen(raised(ConnectionRefusedError(errno.ECONNREFUSED, ''), cause=DENIED)) is TRANSIENT
    hidden = raised(LookupError(), context=RESET)
    hidden.__suppress_context__ = True
    assert seen(hidden) is TRANSIENT


def test_errors_that_cause_each_other_end() -> None:
    one, other = LookupError(), KeyError()
    one.__cause__, other.__cause__ = other, one
    assert sockets.TcpSocketConnectionManager().classify(('localhost', 1), one) is TRANSIENT


def test_the_error_of_another_pool_says_nothing_of_this_endpoint() -> None:
    manager = sockets.TcpSocketConnectionManager()
    assert manager.classify(('localhost', 1), raised(AcquireTimeoutError(), cause=RESET)) is TRANSIENT


@pytest.mark.parametrize(
    'members, expected',
    [
        ((DENIED, RESET), BROKEN),
        ((DENIED, PermissionError(errno.EPERM, 'denied')), PERMANENT),
        ((DENIED, TimeoutError(errno.ETIMEDOUT, 'timed out')), TRANSIENT),
        ((DENIED, KeyError()), TRANSIENT),
        ((KeyError(), LookupError()), TRANSIENT),
        ((KeyError(), raised(LookupError(), cause=RESET)), BROKEN),
    ],
)
def test_a_group_of_errors(members: tuple[Exception, ...], expected: ErrorClass) -> None:
    class Group(Exception):  # as that of Python 3.11
        exceptions = members

    manager = sockets.TcpSocketConnectionManager()
    assert manager.classify(('localhost', 1), Group()) is expected
    assert manager.classify(('localhost', 1), raised(RuntimeError(), cause=Group())) is expected


# ---- what a pool makes of it


async def attempts(manager: Any, endpoint: Any, workers: int) -> tuple[int, list[BaseException]]:
    """Let eight acquires retry a connect that cannot succeed; return how many connects there were, and their errors."""
    is_async = inspect.iscoroutinefunction(manager.create)
    pools: Any = gcp.asyncio if is_async else gcp.threading
    pool = pools.ConnectionPool(
        manager, connect_retry=Retry(60, 60), max_connecting=1, connect_workers=workers, acquire_timeout=60, name='shop'
    )
    acquire = pool.acquire if is_async else functools.partial(asyncio.to_thread, pool.acquire)
    errors = await asyncio.wait_for(asyncio.gather(*(acquire(endpoint) for _ in range(8)), return_exceptions=True), 120)
    made = pool.stats().hook_calls['create']
    await done(pool.close())
    return sum(made.values()), [error for error in errors if isinstance(error, BaseException)]


def check_permanent(manager: Any, endpoint: Any) -> None:
    for workers in (0, 2):
        made, errors = asyncio.run(attempts(manager, endpoint, workers))
        assert (made, len(errors)) == (1, 8), workers
        for error in errors:
            cause = error.__cause__ if isinstance(error, EndpointUnavailableError) else error
            assert cause is not None and manager.classify(endpoint, cause) is PERMANENT


@each_driver
@pytest.mark.parametrize('case', ['wrong password', 'unknown database', 'unknown host', 'expired certificate'])
def test_a_permanent_error_of_postgres_takes_one_attempt(
    make: type[Driver], strict_postgres: dict[str, Any], case: str, tmp_path: Path
) -> None:
    pg = make()
    check_permanent(pg.manager(connect_parameters(pg, strict_postgres, case, tmp_path)), 'orders')


@pytest.mark.parametrize('case', ['wrong password', 'unknown database', 'unknown host', 'expired certificate'])
def test_a_permanent_error_of_redis_takes_one_attempt(
    make_redis: Callable[..., Any], redis_peer: RedisServer, case: str
) -> None:
    with tls_server(server_context('localhost', expired=True)) as port:
        options: dict[str, Any]
        options, endpoint = {
            'wrong password': ({'password': 'wrong'}, ('127.0.0.1', redis_peer.port)),
            'unknown database': ({'password': PASSWORD, 'db': 77}, ('127.0.0.1', redis_peer.port)),
            'unknown host': ({}, (UNKNOWN, 6379)),
            'expired certificate': ({'ssl': client_context()}, ('localhost', port)),
        }[case]
        check_permanent(make_redis(**options), endpoint)


def test_a_permanent_error_of_http_takes_one_attempt() -> None:
    with tls_server(server_context('localhost', expired=True)) as port:
        check_permanent(HttpConnectionManager(client_context()), f'https://localhost:{port}')
    check_permanent(HttpConnectionManager(), f'http://{UNKNOWN}')


@each_driver
def test_a_pool_waits_for_a_server_that_restarts(make: type[Driver], restarting: Server) -> None:
    async def body() -> None:
        pg = make()
        restarting.stop()
        pool = pg.pools.ConnectionPool(pg.manager(restarting.parameters), connect_retry=Retry(0.02, 0.1))
        acquire = pool.acquire if pg.is_async else functools.partial(asyncio.to_thread, pool.acquire)
        waiting = [asyncio.ensure_future(acquire('orders', timeout=40)) for _ in range(3)]
        while not pool.stats().hook_calls['create']['error']:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(restarting.start)
        for conn in await asyncio.gather(*waiting):
            await done(pool.release(conn, 'orders'))
        await done(pool.close())

    run(body())


@pytest.fixture(scope='module')
def restarting() -> Iterator[Server]:
    try:
        with serve(max_connections=20) as server:
            yield server
    except ServerError as error:
        missing(str(error))


@each_driver
@pytest.mark.parametrize('found', [BROKEN, STALE, TRANSIENT])
def test_what_becomes_of_the_connections(make: type[Driver], postgres: Server, found: ErrorClass) -> None:
    statement = {
        BROKEN: 'SELECT pg_terminate_backend(pg_backend_pid())',
        STALE: "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '25006'; END $$",
        TRANSIENT: 'SELECT 1 / 0',
    }[found]

    async def body() -> None:
        pg = make()
        pool = pg.pools.ConnectionPool(pg.manager(postgres.parameters), min_idle=2)
        conns = [await done(pool.acquire('orders')) for _ in range(2)]
        with pytest.raises(pg.errors) as caught:
            await pg.ask(conns[0], statement)
        await done(pool.release(conns[1], 'orders'))
        await done(pool.release(conns[0], 'orders', error=caught.value))
        kept = {BROKEN: {conns[1]}, STALE: set(), TRANSIENT: set(conns)}[found]
        taken = [await done(pool.acquire('orders')) for _ in range(2)]
        assert set(taken) & set(conns) == kept
        for conn in taken:
            await done(pool.release(conn, 'orders'))
        await done(pool.close())

    run(body())


# ---- keepalive


@each_driver
def test_a_keepalive_of_postgres_asks_the_server_once(make: type[Driver], postgres: Server, proxy: Proxy) -> None:
    async def body() -> None:
        pg = make()
        parameters = {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port, 'sslmode': 'disable'}
        async with pg.connected(parameters, check_timeout=0.2) as (manager, conn):
            await pg.pass_on(manager, conn)
            await pg.release(manager, conn)
            before = proxy.questions
            for number in range(1, 4):
                assert await done(manager.keepalive('orders', conn)) is True
                assert proxy.questions == before + number
            assert await pg.check(manager, conn)
            assert await pg.ask(conn, 'SELECT 1') == 1
            await pg.release(manager, conn)
            proxy.silent = True
            assert await done(manager.keepalive('orders', conn)) is False

    run(body())


@each_driver
def test_a_keepalive_of_postgres_finds_a_session_that_has_ended(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        async with (
            pg.connected(postgres.parameters) as (_, other),
            pg.connected(postgres.parameters) as (manager, conn),
        ):
            await pg.release(manager, conn)
            assert await pg.ask(other, f'SELECT pg_terminate_backend({pg.backend(conn)}, 5000)')
            assert await done(manager.keepalive('orders', conn)) is False

    run(body())


def test_a_message_after_a_keepalive_of_asyncpg_is_still_noticed(postgres: Server, proxy: Proxy) -> None:
    from pg_drivers import Asyncpg

    async def body() -> None:
        pg = Asyncpg()
        parameters = {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port, 'sslmode': 'disable'}
        async with pg.connected(parameters) as (manager, conn):
            await pg.release(manager, conn)
            assert await manager.keepalive('orders', conn)
            proxy.say(error_response('XX000', 'unexpected', 'ERROR'))
            await_input(pg.descriptor(conn))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not await pg.check(manager, conn)

    run(body())


@each_driver
def test_a_pool_keeps_connections_to_postgres_alive(make: type[Driver], postgres: Server, proxy: Proxy) -> None:
    async def body() -> None:
        pg = make()
        parameters = {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port, 'sslmode': 'disable'}
        pool = pg.pools.ConnectionPool(pg.manager(parameters, check_timeout=0.2), max_size=1, keepalive_interval=0.05)
        conn = await done(pool.acquire('orders'))
        await done(pool.release(conn, 'orders'))
        before = proxy.questions
        while proxy.questions < before + 3:
            await asyncio.sleep(0.01)
        again = await done(pool.acquire('orders', timeout=10))
        assert again is conn and await pg.ask(conn, 'SELECT 1') == 1
        await done(pool.release(conn, 'orders'))
        proxy.silent = True
        while not pool.stats().closed['dead']:
            await asyncio.sleep(0.01)
        await done(pool.close())

    run(body())


def test_a_keepalive_of_redis(make_redis: Callable[..., Any], redis_peer: RedisServer) -> None:
    async def body() -> None:
        manager, endpoint = make_redis(password=PASSWORD), ('127.0.0.1', redis_peer.port)
        async with connected(manager, endpoint) as conn, connected(manager, endpoint) as admin:
            await call(admin, 'CONFIG', 'RESETSTAT')
            await done(manager.on_release(endpoint, conn))
            assert await done(manager.keepalive(endpoint, conn)) is True
            assert (await call(admin, 'INFO', 'commandstats'))['cmdstat_ping']['calls'] == 1
            await done(manager.on_acquire(endpoint, conn))
            assert await call(conn, 'ECHO', 'x') == b'x'
            await call(admin, 'CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes')
            assert await done(manager.keepalive(endpoint, conn)) is False

    run(body())


def test_a_keepalive_of_redis_does_not_wait_for_ever(
    make_redis: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gcp.contrib.redis

    monkeypatch.setattr(gcp.contrib.redis, 'KEEPALIVE_TIMEOUT', 0.05)

    async def body() -> None:
        with Misbehaving('PING', 'stall') as server:
            manager, endpoint = make_redis(), ('127.0.0.1', server.port)
            async with connected(manager, endpoint) as conn:
                assert await done(manager.keepalive(endpoint, conn)) is False
                assert await done(manager.check_aliveness(endpoint, conn)) is False

    run(body())


# ---- the tables in the guides

DOCS = Path(__file__).parents[2] / 'docs'


def table(page: str, heading: str) -> list[list[str]]:
    section = (DOCS / page).read_text().partition(f'# {heading}\n')[2].partition('\n#')[0]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in section.splitlines() if line[:1] == '|']


@pytest.mark.skipif(not DOCS.exists(), reason='no docs beside the tests: this is not a checkout')
def test_the_tables_are_those_of_the_code() -> None:
    driver('redis')
    from gcp.contrib import _errors, _postgres_errors, _redis_errors

    rows = table('postgres.md', 'Classes of errors')
    shown = {cells[0].strip('`.'): cells[2].strip('`') for cells in rows if re.match(r'`\d', cells[0])}
    assert shown == {state: found.name for state, found in _postgres_errors.SQLSTATES.items()}

    rows = table('redis-http.md', 'Classes of errors')
    shown = {cells[0].strip('`'): cells[2].strip('`') for cells in rows if re.fullmatch('`[A-Z]+`', cells[0])}
    assert shown == {word: found.name for word, found in _redis_errors.ERRORS.items()}

    rows = table('redis-http.md', 'Errors of the operating system')
    shown = {name: cells[1].strip('`') for cells in rows for name in re.findall('`(E[A-Z_]+)`', cells[0])}
    assert shown == {name: found.name for name, found in {**_errors.ERRNOS, **_errors.LOOK_UPS}.items()}
