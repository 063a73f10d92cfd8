"""Guarantee 18 (docs/guarantees.md): what the managers of PostgreSQL say of an error, of a connect that failed and of
one in the block of a holder; what a pool makes of it; what their keepalive finds."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import errno
import functools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from error_cases import BROKEN, PERMANENT, STALE, TRANSIENT, UNKNOWN, answering, check_permanent, failure
from peers import Proxy, authority, await_input, client_context, driver, missing
from pg_drivers import Asyncpg, Driver, done, each_driver, run
from servers import DEBIAN, Bouncer, free_port

from gcp import ErrorClass, Retry
from gcp.contrib._endpoints import UnknownEndpointError
from gcp.demo.server import Server, ServerError, serve

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
            question = f'SELECT pg_terminate_backend({pg.backend(conn)}, 60000)'
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


def test_asyncpg_that_is_out_of_step_is_broken() -> None:
    """What it says now and then when the session ended while no query was in progress."""
    asyncpg = driver('asyncpg')
    error = asyncpg.InternalClientError('cannot switch to state 12; protocol is in the "failed" state')
    assert Asyncpg().manager({}).classify('orders', error) is BROKEN


@each_driver
@pytest.mark.parametrize('case', ['wrong password', 'unknown database', 'unknown host', 'expired certificate'])
def test_a_permanent_error_of_postgres_takes_one_attempt(
    make: type[Driver], strict_postgres: dict[str, Any], case: str, tmp_path: Path
) -> None:
    pg = make()
    check_permanent(pg.manager(connect_parameters(pg, strict_postgres, case, tmp_path)), 'orders')


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
            assert await pg.ask(other, f'SELECT pg_terminate_backend({pg.backend(conn)}, 60000)')
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
