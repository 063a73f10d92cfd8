"""psycopg's managers, the sync and the asyncio one, against a real server and one that says what no server would. What
all PostgreSQL managers have in common is in test_postgres_*.py."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import pytest
from peers import Proxy, await_input
from pg_drivers import AsyncPsycopg, Driver, Psycopg, done, run
from starvation import SOON

from gcp.demo.server import Server

both = pytest.mark.parametrize('make', [Psycopg, AsyncPsycopg], ids=['sync', 'asyncio'])

NOTICE = b'N\0\0\0\x14SNOTICE\0Mhello\0\0'
PARAMETER_STATUS = b'S\0\0\0\x18application_name\0x\0\0'


@pytest.fixture
def proxied(proxy: Proxy, postgres: Server) -> dict[str, Any]:
    return {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port, 'sslmode': 'disable'}


def test_without_the_driver_the_extra_is_named(script: Any) -> None:
    script("""
        import sys
        sys.modules['psycopg'] = None
        try:
            import gcp.contrib.psycopg
        except ImportError as error:
            assert 'pip install gcpool[psycopg]' in str(error), error
            assert error.name == 'psycopg'
        else:
            raise SystemExit('imported')
    """).quietly()


def test_neither_front_is_imported(script: Any) -> None:
    script("""
        import sys
        import gcp.contrib.psycopg
        assert not {'gcp.threading', 'gcp.asyncio'} & set(sys.modules)
    """).quietly()


@both
def test_the_pool_serves_queries_and_replaces_a_killed_backend(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        pool = pg.pools.ConnectionPool(pg.manager(postgres.parameters))
        first = await done(pool.acquire('orders'))
        assert await pg.ask(first, 'SELECT 41 + 1') == 42
        await done(pool.release(first, 'orders'))
        again = await done(pool.acquire('orders', 5))
        assert again is first
        await done(pool.release(first, 'orders'))
        async with pg.connected(postgres.parameters) as (_, admin):
            await pg.ask(admin, f'SELECT pg_terminate_backend({pg.backend(first)})')
        await_input(first.fileno())
        other = await done(pool.acquire('orders'))
        assert other is not first
        assert await pg.ask(other, 'SELECT 1') == 1
        await done(pool.release(other, 'orders'))
        await done(pool.close())
        assert first.closed and other.closed

    run(body())


@both
def test_an_unknown_endpoint_and_a_repr_tell_no_password(make: type[Driver]) -> None:
    async def body() -> None:
        pg = make()
        manager = pg.make({'orders': {'password': 'hunter2'}, 'users': {'conninfo': 'password=hunter2'}})
        with pytest.raises(KeyError) as caught:
            await done(manager.create('odrers'))
        assert str(caught.value) == "unknown endpoint 'odrers'; known: 'orders', 'users'"
        assert repr(manager) == f'<{type(manager).__name__}: orders, users>'
        assert 'hunter2' not in repr(caught.value) + repr(vars(manager))

    run(body())


@pytest.mark.parametrize('kind', ['plain', 'async'])
def test_a_function_may_be_plain_or_async(postgres: Server, kind: str) -> None:
    def plain(endpoint: str) -> dict[str, Any]:
        return {**postgres.parameters, 'application_name': endpoint}

    async def later(endpoint: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        return plain(endpoint)

    async def body() -> None:
        pg = AsyncPsycopg()
        manager = pg.make(plain if kind == 'plain' else later)
        conn = await pg.create(manager)
        assert await pg.ask(conn, 'SHOW application_name') == 'orders'
        await pg.dispose(manager, conn)

    run(body())


@both
@pytest.mark.parametrize(
    ('words', 'alive'),
    [
        (NOTICE, True),
        (PARAMETER_STATUS, True),
        (NOTICE + PARAMETER_STATUS, True),
        (NOTICE[:5], True),
        (NOTICE + b'E\0\0\0\x12SFATAL\0Mgone\0\0', False),
        (b'E\0\0\0\x14SFATAL\0Mgone\0\0\0', False),
        (b'D\0\0\0\x0a\0\x01\xff\xff\xff\xff', False),
        (b'HTTP/1.1 400 Bad Request\r\n\r\n', False),
    ],
    ids=['notice', 'parameter', 'both', 'half a notice', 'notice and error', 'error', 'row', 'another protocol'],
)
def test_what_an_idle_connection_is_told_decides(
    make: type[Driver],
    proxy: Proxy,
    proxied: dict[str, Any],
    words: bytes,
    alive: bool,
) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(proxied) as (manager, conn):
            proxy.say(words)
            await_input(conn.fileno())
            assert await pg.check(manager, conn) is alive
            assert await pg.check(manager, conn) is alive

    run(body())


@both
def test_a_notification_is_news_and_reaches_its_user(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        known = postgres.parameters
        async with pg.connected(known) as (manager, conn), pg.connected(known) as (_, admin):
            heard: list[str] = []
            conn.add_notify_handler(lambda notify: heard.append(notify.payload))
            await pg.ask(conn, 'LISTEN orders')
            await done(conn.commit())
            await pg.ask(admin, "NOTIFY orders, 'shipped'")
            await done(admin.commit())
            await_input(conn.fileno())
            assert await pg.check(manager, conn)
            assert await pg.ask(conn, 'SELECT 1') == 1
            assert heard == ['shipped']

    run(body())


@both
@pytest.mark.parametrize('autocommit', [False, True])
def test_a_look_at_the_socket_sends_nothing_and_a_query_takes_one_round_trip(
    make: type[Driver],
    proxy: Proxy,
    proxied: dict[str, Any],
    autocommit: bool,
) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected({**proxied, 'autocommit': autocommit}) as (looks, conn):
            asks = pg.manager(proxied, aliveness='query')
            before = proxy.questions
            for _ in range(100):
                await pg.pass_on(looks, conn)
            assert proxy.questions == before
            for turn in range(1, 4):
                assert await pg.check(asks, conn)
                assert proxy.questions == before + turn
            assert conn.autocommit is autocommit

    run(body())


def test_dispose_does_not_wait_for_a_command_in_another_thread(postgres: Server) -> None:
    async def body() -> None:
        pg = Psycopg()
        async with pg.connected(postgres.parameters) as (manager, conn):
            ended = threading.Event()

            def sleep() -> None:
                with pytest.raises(pg.errors):
                    conn.execute('SELECT pg_sleep(60)')
                ended.set()

            thread = threading.Thread(target=sleep)
            thread.start()
            while conn.pgconn.transaction_status != 1:  # ACTIVE
                pass
            started = time.monotonic()
            manager.dispose('orders', conn)
            thread.join(60)
            assert time.monotonic() - started < SOON
            assert ended.is_set()

    run(body())


@both
@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_forked_child_says_nothing_to_the_parents_server(
    make: type[Driver],
    proxy: Proxy,
    proxied: dict[str, Any],
) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(proxied, aliveness='query') as (manager, conn):
            before = proxy.questions
            child = os.fork()
            if not child:
                # a loop is not to be run in two processes; what these coroutines do, they do before they wait
                alive: Any = manager.check_aliveness('orders', conn)
                disposed = manager.dispose('orders', conn)
                if pg.is_async:
                    try:
                        alive.send(None)
                    except StopIteration as stop:
                        alive = stop.value
                    with pytest.raises(StopIteration):
                        disposed.send(None)
                os._exit(bool(alive))
            assert os.waitpid(child, 0)[1] == 0
            assert proxy.questions == before
            assert await pg.ask(conn, 'SELECT 1') == 1

    run(body())
