"""What one user of a PostgreSQL connection leaves behind, and the next must not find: all four managers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest
from peers import Proxy
from pg_drivers import DRIVERS, Asyncpg, AsyncPsycopg, Driver, Psycopg, Psycopg2, done, each_driver, run
from starvation import SOON

from gcp.demo.server import Server

ADVISORY = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"

#: What a session can be left with: how, how to see it, and what a new session shows.
LEFT = {
    'SET': ("SET work_mem = '77MB'", 'SHOW work_mem', '4MB'),
    'SET ROLE': ('SET ROLE pg_monitor', 'SELECT current_user', 'postgres'),
    'SET SESSION AUTHORIZATION': ('SET SESSION AUTHORIZATION pg_monitor', 'SELECT session_user', 'postgres'),
    'advisory lock': ('SELECT pg_advisory_lock(1)', ADVISORY, 0),
    'temporary table': ('CREATE TEMP TABLE left_behind (id int)', "SELECT to_regclass('left_behind')", None),
    'LISTEN': ('LISTEN orders', 'SELECT count(*) FROM pg_listening_channels()', 0),
    'prepared statement': (
        'PREPARE mine AS SELECT 1',
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'",
        0,
    ),
    'cursor': ('DECLARE mine CURSOR WITH HOLD FOR SELECT 1', "SELECT count(*) FROM pg_cursors WHERE name = 'mine'", 0),
}


@pytest.fixture
def proxied(proxy: Proxy, postgres: Server) -> dict[str, Any]:
    return {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port, 'sslmode': 'disable'}


async def commit(pg: Driver, conn: Any) -> None:
    if not isinstance(pg, Asyncpg):
        await done(conn.commit())


@each_driver
def test_discard_all_leaves_nothing(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters, reset='discard all') as (manager, conn):
            for leave, _, _ in LEFT.values():
                await pg.ask(conn, leave)
                await commit(pg, conn)
                if leave.startswith('SET'):  # as another user, the rest would not be allowed
                    await pg.pass_on(manager, conn)
            await pg.ask(conn, "SET work_mem = '77MB'")
            await commit(pg, conn)
            await pg.pass_on(manager, conn)
            for _, look, new in LEFT.values():
                assert await pg.ask(conn, look) == new

    run(body())


@each_driver
def test_a_rollback_leaves_what_a_session_holds(make: type[Driver], postgres: Server) -> None:
    """As documented: only a transaction is ended."""

    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters, reset='rollback') as (manager, conn):
            await pg.ask(conn, "SET work_mem = '77MB'")
            await commit(pg, conn)
            await pg.pass_on(manager, conn)
            assert await pg.ask(conn, 'SHOW work_mem') == '77MB'

    run(body())


@each_driver
@pytest.mark.parametrize('reset', ['rollback', 'discard all'])
@pytest.mark.parametrize('failed', [False, True])
def test_an_open_transaction_is_rolled_back(make: type[Driver], postgres: Server, reset: str, failed: bool) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters, reset=reset) as (manager, conn):
            if pg.name == 'asyncpg':
                await pg.ask(conn, 'BEGIN')
            await pg.ask(conn, 'CREATE TABLE left_open (id int)')
            if failed:
                with pytest.raises(pg.errors):
                    await pg.ask(conn, 'SELECT * FROM no_such')
            await pg.pass_on(manager, conn)
            assert await pg.ask(conn, "SELECT to_regclass('left_open')") is None

    run(body())


@each_driver
def test_statements_that_the_driver_prepared_survive_discard_all(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        parameters = dict(postgres.parameters)
        if pg.name == 'psycopg':
            parameters |= {'prepare_threshold': 0}  # type: ignore[dict-item]
        async with pg.connected(parameters, reset='discard all') as (manager, conn):
            for _ in range(3):
                for number in range(5):
                    assert await pg.ask(conn, f'SELECT {number}') == number
                    await commit(pg, conn)
                await pg.pass_on(manager, conn)

    run(body())


@pytest.mark.parametrize(
    ('make', 'kind'),
    [
        *((make, 'plain') for make in DRIVERS),
        *((make, 'async') for make in (AsyncPsycopg, Asyncpg)),
    ],
)
def test_a_function_is_called_after_the_rollback_and_what_it_opens_is_rolled_back(
    make: type[Driver],
    postgres: Server,
    kind: str,
) -> None:
    async def body() -> None:
        pg = make()
        seen: list[Any] = []

        def plain(conn: Any) -> None:
            seen.append(conn)

        async def using(conn: Any) -> None:
            seen.append(conn)
            await pg.ask(conn, 'BEGIN' if pg.name == 'asyncpg' else 'SELECT 1')
            await pg.ask(conn, 'CREATE TABLE by_reset (id int)')

        def using_plainly(conn: Any) -> None:
            with pytest.raises(StopIteration):
                using(conn).send(None)

        reset = using if kind == 'async' else plain if pg.is_async else using_plainly
        async with pg.connected(postgres.parameters, reset=reset) as (manager, conn):
            await pg.ask(conn, 'SELECT 1')
            await pg.pass_on(manager, conn)
            assert seen == [conn]
            assert await pg.ask(conn, "SELECT to_regclass('by_reset')") is None

    run(body())


@each_driver
def test_a_reset_that_fails_costs_the_connection(make: type[Driver], postgres: Server) -> None:
    def reset(conn: Any) -> None:
        raise ArithmeticError('of no use')

    async def body() -> None:
        pg = make()
        pool = pg.pools.ConnectionPool(pg.manager(postgres.parameters, reset=reset))
        conn = await done(pool.acquire('orders'))
        with pytest.raises(ArithmeticError):
            await done(pool.release(conn, 'orders'))
        assert pg.is_closed(conn)
        assert pool.get_size() == 0
        await done(pool.close())

    run(body())


@each_driver
def test_a_reset_that_is_met_with_silence_runs_out_of_its_time(
    make: type[Driver],
    proxy: Proxy,
    proxied: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr('gcp.contrib._database.RESET_TIMEOUT', 0.2)

    async def body() -> None:
        pg = make()
        async with pg.connected(proxied) as (manager, conn):
            if pg.name == 'asyncpg':
                await pg.ask(conn, 'BEGIN')
            await pg.ask(conn, 'SELECT 1')
            proxy.silent = True
            started = time.monotonic()
            with pytest.raises(TimeoutError, match='reset: not done within 0.2 s'):
                await pg.release(manager, conn)
            assert 0.2 <= time.monotonic() - started < SOON
            assert not await pg.check(manager, conn)

    run(body())


@each_driver
def test_a_clean_release_sends_nothing_and_discard_all_takes_one_round_trip(
    make: type[Driver],
    proxy: Proxy,
    proxied: dict[str, Any],
) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(proxied, reset='rollback') as (manager, conn):
            await pg.ask(conn, 'SELECT 1')
            await commit(pg, conn)
            before = proxy.questions
            await pg.release(manager, conn)
            assert proxy.questions == before
        async with pg.connected(proxied, reset='discard all') as (manager, conn):
            before = proxy.questions
            await pg.release(manager, conn)
            assert proxy.questions == before + 1

    run(body())


# ---- what only the driver knows of


@pytest.mark.parametrize('make', [Psycopg2, Psycopg, AsyncPsycopg])
@pytest.mark.parametrize('reset', ['rollback', 'discard all'])
def test_a_connection_is_set_as_it_was(make: type[Driver], postgres: Server, reset: str) -> None:
    async def body() -> None:
        pg = make()
        read_only = 'readonly' if pg.name == 'psycopg2' else 'read_only'
        async with pg.connected(postgres.parameters, reset=reset) as (manager, conn):
            for changes in (
                {'autocommit': True},
                {'isolation_level': 3, 'deferrable': True, read_only: True},
                {'autocommit': True, 'isolation_level': 3, read_only: True},
                {'cursor_factory': object},
            ):
                then = [getattr(conn, name) for name in changes]
                for name, value in changes.items():
                    if pg.is_async and name != 'cursor_factory':
                        await getattr(conn, f'set_{name}')(value)
                    else:
                        setattr(conn, name, value)
                await pg.pass_on(manager, conn)
                assert [getattr(conn, name) for name in changes] == then
                assert await pg.ask(conn, 'SHOW transaction_read_only') == 'off'
                assert await pg.ask(conn, 'SHOW transaction_isolation') == 'read committed'
                await commit(pg, conn)

    run(body())


@pytest.mark.parametrize('make', [Psycopg, AsyncPsycopg])
def test_what_the_parameters_say_is_kept_for_each_connection(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        asked: list[bool] = []

        def parameters(endpoint: str) -> dict[str, Any]:
            asked.append(True)
            return {**postgres.parameters, 'autocommit': len(asked) == 2}

        manager = pg.make(parameters)
        plain, special = [await pg.create(manager) for _ in range(2)]
        for conn, value in ((plain, False), (special, True)):
            await done(conn.set_autocommit(not value) if pg.is_async else setattr(conn, 'autocommit', not value))
            await pg.pass_on(manager, conn)
            assert conn.autocommit is value
            await pg.dispose(manager, conn)

    run(body())


def test_psycopg2_learns_that_the_encoding_is_again_what_it_was(postgres: Server) -> None:
    async def body() -> None:
        pg = Psycopg2()
        async with pg.connected(postgres.parameters, reset='discard all') as (manager, conn):
            conn.set_client_encoding('LATIN1')
            await pg.pass_on(manager, conn)
            assert await pg.ask(conn, "SELECT 'ü'") == 'ü'

    run(body())


# ---- in the middle of something


@pytest.mark.parametrize('make', [Psycopg, AsyncPsycopg])
@pytest.mark.parametrize('what', ['copy', 'stream', 'pipeline'])
def test_what_is_left_half_way_is_disposed_of(make: type[Driver], postgres: Server, what: str) -> None:
    async def body() -> None:
        pg = make()
        pool = pg.pools.ConnectionPool(pg.manager(postgres.parameters))
        conn = await done(pool.acquire('orders'))
        cursor = conn.cursor()
        if what == 'copy':
            left: Any = cursor.copy('COPY pg_class TO STDOUT')
        elif what == 'stream':
            left = cursor.stream('SELECT generate_series(1, 100)')
        else:
            left = conn.pipeline()
        if what == 'stream':
            await (anext(left) if pg.is_async else done(next(left)))
        else:
            await done(left.__aenter__() if pg.is_async else left.__enter__())
        with pytest.raises(pg.module.InterfaceError, match='in the middle of a command'):
            await done(pool.release(conn, 'orders'))
        assert pg.is_closed(conn)
        assert pool.get_size() == 0
        await done(pool.close())
        with contextlib.suppress(pg.module.Error):
            if what == 'stream':
                await done(left.aclose() if pg.is_async else left.close())
            else:
                await done((left.__aexit__ if pg.is_async else left.__exit__)(None, None, None))

    run(body())


def test_a_copy_that_failed_in_psycopg2_leaves_nothing(postgres: Server) -> None:
    class Broken:
        def read(self, size: int) -> str:
            raise ArithmeticError

    async def body() -> None:
        pg = Psycopg2()
        async with pg.connected(postgres.parameters) as (manager, conn):
            await pg.ask(conn, 'CREATE TEMP TABLE rows (id int)')
            with conn.cursor() as cursor, pytest.raises(pg.errors):
                cursor.copy_expert('COPY rows FROM STDIN', Broken())
            await pg.pass_on(manager, conn)
            assert await pg.ask(conn, 'SELECT 1') == 1

    run(body())


def test_asyncpg_in_the_middle_of_a_command_outside_a_transaction_is_refused(postgres: Server) -> None:
    async def body() -> None:
        pg = Asyncpg()
        async with pg.connected(postgres.parameters) as (manager, conn):
            busy = asyncio.ensure_future(conn.execute('SELECT pg_sleep(60)'))
            await asyncio.sleep(0)
            with pytest.raises(pg.module.InterfaceError, match='in progress'):
                await pg.release(manager, conn)
            await pg.dispose(manager, conn)
            with pytest.raises(pg.errors):
                await busy

    run(body())


def test_asyncpg_hears_the_next_users_channel_after_discard_all(postgres: Server) -> None:
    async def body() -> None:
        pg = Asyncpg()
        heard: asyncio.Queue[str] = asyncio.Queue()
        async with pg.connected(postgres.parameters, reset='discard all') as (manager, conn):
            await conn.add_listener('orders', lambda *news: heard.put_nowait('first user'))
            await pg.pass_on(manager, conn)
            await conn.add_listener('orders', lambda *news: heard.put_nowait('second user'))
            await conn.execute('NOTIFY orders')
            assert await heard.get() == 'second user'
            assert heard.empty()

    run(body())


@pytest.mark.parametrize('make', [AsyncPsycopg, Asyncpg])
def test_a_release_that_is_cancelled_ends_at_once(make: type[Driver], proxy: Proxy, proxied: dict[str, Any]) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(proxied) as (manager, conn):
            if pg.name == 'asyncpg':
                await pg.ask(conn, 'BEGIN')
            await pg.ask(conn, 'SELECT 1')
            proxy.silent = True
            releasing = asyncio.ensure_future(manager.on_release('orders', conn))
            await asyncio.sleep(0.05)
            started = time.monotonic()
            releasing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await releasing
            assert time.monotonic() - started < SOON
            assert not await pg.check(manager, conn)

    run(body())


@each_driver
@pytest.mark.parametrize(
    ('options', 'error', 'words'),
    [
        ({'reset': 'commit'}, ValueError, "reset: 'rollback', 'discard all' or a function was expected, not 'commit'"),
        ({'check_timeout': 0}, ValueError, 'check_timeout: more than 0 seconds was expected, not 0'),
        ({'check_timeout': float('nan')}, ValueError, 'check_timeout: more than 0 seconds was expected, not nan'),
        ({'check_timeout': True}, TypeError, 'check_timeout: a number of seconds was expected, not True'),
        ({'check_timeout': None}, TypeError, 'check_timeout: a number of seconds was expected, not None'),
    ],
)
def test_an_impossible_option_is_told(
    make: type[Driver],
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        make().make({}, **options)


@pytest.mark.parametrize('make', [Psycopg2, Psycopg])
def test_a_coroutine_function_is_none_for_threads(make: type[Driver]) -> None:
    async def reset(conn: Any) -> None: ...

    with pytest.raises(TypeError, match='reset: a plain function was expected, not a coroutine function'):
        make().make({}, reset=reset)
