"""What a user changes on the client's side of a PostgreSQL connection, and the next user must not find."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from peers import Proxy
from pg_drivers import Asyncpg, AsyncPsycopg, Driver, Psycopg, Psycopg2, done, each_driver, run

from gcp.demo.server import Server


@pytest.fixture
def proxied(proxy: Proxy, postgres: Server) -> dict[str, Any]:
    return {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port, 'sslmode': 'disable'}


async def set_autocommit(pg: Driver, conn: Any) -> None:
    await done(conn.set_autocommit(True) if pg.is_async else setattr(conn, 'autocommit', True))


def ignore(*news: object) -> None: ...


# ---- psycopg2


def test_psycopg2_is_left_with_nothing_of_its_user_and_nothing_is_sent(proxy: Proxy, proxied: dict[str, Any]) -> None:
    async def body() -> None:
        pg = Psycopg2()
        from psycopg2.extensions import new_type, register_type
        from psycopg2.extras import RealDictCursor

        async with pg.connected(proxied) as (manager, conn):
            conn.autocommit = True
            conn.cursor_factory = RealDictCursor
            register_type(new_type((23,), 'SECRET', lambda value, cursor: 'secret'), conn)
            register_type(new_type((17,), 'BINARY', lambda value, cursor: 'secret'), conn)
            with conn.cursor() as cursor:
                cursor.execute("DO $$ BEGIN RAISE NOTICE 'secret'; END $$")
                cursor.execute("LISTEN orders; NOTIFY orders, 'secret'")
            conn.poll()
            assert conn.notices
            assert conn.notifies
            kept = conn.notices
            before = proxy.questions
            await pg.pass_on(manager, conn)
            assert proxy.questions == before
            assert kept  # the user's own list is not emptied
            assert not conn.notices
            assert not conn.notifies
            assert await pg.ask(conn, 'SELECT 42') == 42

    run(body())


@pytest.mark.parametrize('name', ['notices', 'notifies'])
def test_psycopg2_gets_its_own_lists_back(postgres: Server, name: str) -> None:
    async def body() -> None:
        pg = Psycopg2()
        heard: list[Any] = []

        class Log:
            def append(self, news: object) -> None:
                heard.append(news)

        async with pg.connected(postgres.parameters) as (manager, conn):
            setattr(conn, name, Log())
            await pg.pass_on(manager, conn)
            assert getattr(conn, name) == []
            with conn.cursor() as cursor:
                cursor.execute("DO $$ BEGIN RAISE NOTICE 'mine'; END $$; LISTEN orders; NOTIFY orders")
                conn.commit()
            assert len(getattr(conn, name)) == 1
            assert heard == []

    run(body())


# ---- psycopg


@pytest.mark.parametrize('make', [Psycopg, AsyncPsycopg])
def test_psycopg_is_left_with_nothing_of_its_user_and_nothing_is_sent(
    make: type[Driver], proxy: Proxy, proxied: dict[str, Any]
) -> None:
    async def body() -> None:
        pg = make()
        from psycopg.rows import dict_row
        from psycopg.types import TypeInfo
        from psycopg.types.string import StrDumper, TextLoader

        heard: list[Any] = []
        async with pg.connected(proxied) as (manager, conn):
            for _ in range(2):  # what was restored is not changed by the next user either
                await set_autocommit(pg, conn)
                conn.row_factory = dict_row
                conn.prepared_max = 7
                conn.add_notice_handler(heard.append)
                conn.add_notify_handler(heard.append)
                conn.adapters.register_loader('int4', TextLoader)
                conn.adapters.register_dumper(int, StrDumper)
                TypeInfo('mine', 1234567, 1234568).register(conn)
                before = proxy.questions
                await pg.pass_on(manager, conn)
                assert proxy.questions == before
                assert conn.prepared_max == 100
                assert conn.adapters.types.get('mine') is None
                assert await pg.ask(conn, 'SELECT 42') == 42
                cursor = await done(conn.execute('SELECT %s + 1', [41]))
                assert await done(cursor.fetchone()) == (42,)
                await done(conn.commit())
                await done(conn.execute("DO $$ BEGIN RAISE NOTICE 'mine'; END $$"))
                await done(conn.execute("LISTEN orders; NOTIFY orders, 'mine'"))
                await done(conn.commit())
                assert heard == []

    run(body())


@pytest.mark.parametrize('make', [Psycopg, AsyncPsycopg])
def test_psycopg_does_not_hand_on_notifications(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters) as (manager, conn):
            await set_autocommit(pg, conn)
            await pg.ask(conn, "LISTEN orders; NOTIFY orders, 'secret'")
            await pg.ask(conn, 'SELECT 1')
            await pg.pass_on(manager, conn)
            await set_autocommit(pg, conn)
            heard = conn.notifies(timeout=0)
            assert [each async for each in heard] == [] if pg.is_async else list(heard) == []

    run(body())


# ---- encodings


@each_driver
@pytest.mark.parametrize('reset', ['rollback', 'discard all'])
def test_the_encoding_is_as_it_was(make: type[Driver], postgres: Server, reset: str) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters, reset=reset) as (manager, conn):
            for by_hand in (True, False) if pg.name == 'psycopg2' else (False,):
                if by_hand:
                    conn.set_client_encoding('LATIN1')
                else:
                    await pg.ask(conn, "SET client_encoding TO 'LATIN1'")
                    if pg.name != 'asyncpg':
                        await done(conn.commit())
                await pg.pass_on(manager, conn)
                assert await pg.ask(conn, 'SHOW client_encoding') == 'UTF8'
                assert await pg.ask(conn, "SELECT 'ü€'") == 'ü€'
                await pg.release(manager, conn)

    run(body())


@pytest.mark.parametrize('make', [Psycopg2, Psycopg, AsyncPsycopg, Asyncpg])
def test_an_encoding_is_restored_in_one_round_trip(make: type[Driver], proxy: Proxy, proxied: dict[str, Any]) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(proxied, reset='rollback') as (manager, conn):
            if pg.name != 'asyncpg':
                await set_autocommit(pg, conn)
            await pg.ask(conn, "SET client_encoding TO 'LATIN1'")
            before = proxy.questions
            await pg.release(manager, conn)
            assert proxy.questions == before + 1
            await pg.release(manager, conn)
            assert proxy.questions == before + 1

    run(body())


# ---- asyncpg


@pytest.mark.parametrize('reset', ['rollback', 'reset', 'discard all'])
def test_asyncpg_is_left_with_no_callbacks_of_its_user(postgres: Server, reset: str) -> None:
    async def body() -> None:
        pg = Asyncpg()
        heard: list[Any] = []
        async with pg.connected(postgres.parameters, reset=reset) as (manager, conn):
            await conn.add_listener('orders', lambda *news: heard.append(news))
            conn.add_log_listener(lambda *news: heard.append(news))
            conn.add_termination_listener(lambda *news: heard.append(news))
            conn.add_query_logger(lambda *news: heard.append(news))
            await pg.pass_on(manager, conn)
            mine: asyncio.Queue[str] = asyncio.Queue()
            await conn.add_listener('orders', lambda *news: mine.put_nowait('mine'))
            await conn.execute("DO $$ BEGIN RAISE NOTICE 'mine'; END $$; NOTIFY orders")
            assert await mine.get() == 'mine'
            await pg.dispose(manager, conn)
            await asyncio.sleep(0)
            assert heard == []

    run(body())


def test_asyncpg_is_left_with_no_codecs_of_its_user_and_nothing_is_sent(proxy: Proxy, proxied: dict[str, Any]) -> None:
    async def body() -> None:
        pg = Asyncpg()
        async with pg.connected(proxied, reset='rollback') as (manager, conn):
            await conn.execute("CREATE TYPE pg_temp.mood AS ENUM ('good'); CREATE TYPE pg_temp.pair AS (a int, b int)")
            schema = await conn.fetchval('SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()')
            moods = f"SELECT 'good'::{schema}.mood"
            assert await pg.ask(conn, moods) == 'good'

            def secret(value: object) -> str:
                return 'secret'

            for _ in range(2):
                await conn.set_type_codec('mood', schema=schema, encoder=str, decoder=secret)
                await conn.set_builtin_type_codec('mood', schema=schema, codec_name='text')
                await conn.set_type_codec(
                    'pair', schema=schema, encoder=lambda pair: pair, decoder=secret, format='tuple'
                )
                await conn.set_type_codec('int4', schema='pg_catalog', encoder=str, decoder=secret)
                assert await pg.ask(conn, 'SELECT 42') == 'secret'
                before = proxy.questions
                await pg.pass_on(manager, conn)
                assert proxy.questions == before
                assert await pg.ask(conn, 'SELECT 42') == 42
                assert await pg.ask(conn, moods) == 'good'
                assert await pg.ask(conn, f'SELECT (1, 2)::{schema}.pair') == (1, 2)

    run(body())


def test_asyncpg_keeps_the_class_of_its_connections(postgres: Server) -> None:
    async def body() -> None:
        pg = Asyncpg()

        class Mine(pg.module.Connection):  # type: ignore[name-defined, misc]
            def get_reset_query(self) -> str:
                return 'SET work_mem = DEFAULT'

        async with pg.connected({**postgres.parameters, 'connection_class': Mine}) as (manager, conn):
            assert isinstance(conn, Mine)
            assert type(conn).__name__ == 'Mine'
            await conn.execute("SET work_mem = '77MB'; SET search_path = pg_catalog")
            await pg.pass_on(manager, conn)
            assert await pg.ask(conn, 'SHOW work_mem') == '4MB'
            assert await pg.ask(conn, 'SHOW search_path') == 'pg_catalog'

    run(body())


# ---- what a subclass sets belongs to the connection


def test_what_a_subclass_of_the_psycopg2_manager_sets_in_create_is_kept(postgres: Server) -> None:
    pg = Psycopg2()
    from gcp.contrib.psycopg2 import DbConnectionManager

    class Manager(DbConnectionManager):
        def create(self, endpoint: str, timeout: float | None = None) -> Any:
            conn = super().create(endpoint, timeout)
            conn.autocommit = True
            return conn

    async def body() -> None:
        manager = Manager({'orders': postgres.parameters})
        conn = await pg.create(manager)
        conn.autocommit = False
        await pg.pass_on(manager, conn)
        assert conn.autocommit
        await pg.dispose(manager, conn)

    run(body())


@pytest.mark.parametrize('reset', ['rollback', 'reset', 'discard all'])
def test_what_a_subclass_of_the_asyncpg_manager_sets_in_create_is_kept(postgres: Server, reset: Any) -> None:
    pg = Asyncpg()
    from gcp.contrib.asyncpg import DbConnectionManager

    heard: asyncio.Queue[str] = asyncio.Queue()

    def upper(value: str) -> str:
        return value.upper()

    class Manager(DbConnectionManager[Any]):
        async def create(self, endpoint: str) -> Any:
            conn = await super().create(endpoint)
            await conn.set_type_codec('text', schema='pg_catalog', encoder=str, decoder=upper)
            await conn.add_listener('orders', lambda *news: heard.put_nowait('heard'))
            return conn

    async def body() -> None:
        manager = Manager({'orders': pg.keywords(postgres.parameters)}, reset=reset)
        conn = await pg.create(manager)
        for change in ('set', 'reset', None):
            if change == 'set':
                await conn.set_type_codec('text', schema='pg_catalog', encoder=str, decoder=lambda value: 'secret')
            elif change == 'reset':
                await conn.reset_type_codec('text', schema='pg_catalog')
            await pg.pass_on(manager, conn)
            assert await pg.ask(conn, "SELECT 'shout'::text") == 'SHOUT'
            await conn.execute('NOTIFY orders')
            assert await heard.get() == 'heard'
        await pg.dispose(manager, conn)

    run(body())
