"""What becomes of a PostgreSQL connection when an error leaves the body that used it: all four managers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from peers import Proxy
from pg_drivers import Asyncpg, AsyncPsycopg, Driver, Psycopg, Psycopg2, done, each_driver, run
from starvation import SOON

from gcp.demo.server import Server
from gcp.exceptions import DiscardConnection


@pytest.fixture
def proxied(proxy: Proxy, postgres: Server) -> dict[str, Any]:
    return {**postgres.parameters, 'host': '127.0.0.1', 'port': proxy.port, 'sslmode': 'disable'}


def is_clean(manager: Any, conn: Any, error: BaseException | None = None) -> bool:
    clean: bool = manager.clean_after_error('orders', conn, error or ArithmeticError())
    return clean


# ---- kept


async def nothing(pg: Driver, conn: Any) -> None: ...


async def open_transaction(pg: Driver, conn: Any) -> None:
    await pg.ask(conn, 'BEGIN' if pg.name == 'asyncpg' else 'SELECT 1')


async def failed_transaction(pg: Driver, conn: Any) -> None:
    await open_transaction(pg, conn)
    with pytest.raises(pg.errors):
        await pg.ask(conn, 'SELECT * FROM no_such')


async def failed_statement(pg: Driver, conn: Any) -> None:
    with pytest.raises(pg.errors):
        await pg.ask(conn, 'SELEC')


@each_driver
@pytest.mark.parametrize('use', [nothing, open_transaction, failed_transaction, failed_statement])
def test_a_connection_between_commands_is_kept(
    make: type[Driver], postgres: Server, use: Callable[[Driver, Any], Awaitable[None]]
) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters) as (manager, conn):
            await use(pg, conn)
            for error in (ArithmeticError(), TimeoutError(), asyncio.CancelledError(), KeyboardInterrupt()):
                assert is_clean(manager, conn, error) is True
            await pg.pass_on(manager, conn)
            assert await pg.ask(conn, 'SELECT 42') == 42

    run(body())


# ---- not kept


@each_driver
def test_a_broken_connection_is_not_kept(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        async with (
            pg.connected(postgres.parameters) as (manager, conn),
            pg.connected(postgres.parameters) as (_, other),
        ):
            await pg.ask(other, f'SELECT pg_terminate_backend({pg.backend(conn)})')
            with pytest.raises(pg.errors) as caught:
                await pg.ask(conn, 'SELECT 1')
            assert not is_clean(manager, conn, caught.value)
            assert not is_clean(manager, conn)

    run(body())


@each_driver
def test_a_connection_that_its_user_closed_is_not_kept(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters) as (manager, conn):
            await done(conn.close())
            assert not is_clean(manager, conn)

    run(body())


@each_driver
@pytest.mark.parametrize('state', ['57P01', '57P05', '08006', '25P03'])
def test_an_error_after_which_the_server_ends_the_session_costs_the_connection(
    make: type[Driver], postgres: Server, state: str
) -> None:
    """The server's EOF may take its time."""

    class Ends(Exception):
        sqlstate = pgcode = state

    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters) as (manager, conn):
            assert not is_clean(manager, conn, Ends())
            Ends.sqlstate = Ends.pgcode = '57014'
            assert is_clean(manager, conn, Ends())

    run(body())


@pytest.mark.parametrize('make', [Psycopg, AsyncPsycopg])
@pytest.mark.parametrize('what', ['copy', 'stream', 'pipeline', 'transaction'])
def test_psycopg_in_the_middle_of_something_is_not_clean(make: type[Driver], postgres: Server, what: str) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters) as (manager, conn):
            cursor = conn.cursor()
            if what == 'copy':
                left: Any = cursor.copy('COPY pg_class TO STDOUT')
            elif what == 'stream':
                left = cursor.stream('SELECT generate_series(1, 100)')
            else:
                left = getattr(conn, what)()
            if what == 'stream':
                await (anext(left) if pg.is_async else done(next(left)))
            else:
                await done(left.__aenter__() if pg.is_async else left.__enter__())
            assert not is_clean(manager, conn)
            await pg.dispose(manager, conn)
            with contextlib.suppress(pg.module.Error):
                if what == 'stream':
                    await done(left.aclose() if pg.is_async else left.close())
                else:
                    await done((left.__aexit__ if pg.is_async else left.__exit__)(None, None, None))

    run(body())


@pytest.mark.parametrize('make', [Psycopg2, Psycopg])
def test_a_command_in_another_thread_is_in_progress(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        async with (
            pg.connected(postgres.parameters) as (manager, conn),
            pg.connected(postgres.parameters) as (_, other),
        ):
            lines: list[threading.Thread] = []

            def sleep() -> None:
                with contextlib.suppress(*pg.errors), conn.cursor() as cursor:
                    cursor.execute('SELECT pg_sleep(60)')

            lines.append(threading.Thread(target=sleep))
            lines[0].start()
            busy = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pg.backend(conn)} AND state = 'active'"
            while not await pg.ask(other, busy):
                other.rollback()
            deadline = time.monotonic() + SOON
            while is_clean(manager, conn):  # libpq notes the command a moment after the server has it
                assert time.monotonic() < deadline
            await pg.dispose(manager, conn)
            lines[0].join(60)

    run(body())


@pytest.mark.parametrize('make', [AsyncPsycopg, Asyncpg])
def test_a_command_in_another_task_is_in_progress(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters) as (manager, conn):
            busy = asyncio.ensure_future(pg.ask(conn, 'SELECT pg_sleep(60)'))
            await asyncio.sleep(0)
            assert not is_clean(manager, conn)
            await pg.dispose(manager, conn)
            with pytest.raises(pg.errors):
                await busy

    run(body())


@pytest.mark.parametrize('how', ['cancel', 'timeout'])
def test_asyncpg_that_is_cancelling_a_command_is_not_clean(postgres: Server, how: str) -> None:
    async def body() -> None:
        pg = Asyncpg()
        async with pg.connected(postgres.parameters) as (manager, conn):
            if how == 'timeout':
                with pytest.raises(asyncio.TimeoutError):
                    await conn.execute('SELECT pg_sleep(60)', timeout=0.05)
            else:
                busy = asyncio.ensure_future(conn.execute('SELECT pg_sleep(60)'))
                await asyncio.sleep(0.05)
                busy.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await busy
            assert not is_clean(manager, conn, asyncio.CancelledError())

    run(body())


def test_a_two_phase_transaction_is_not_clean(postgres: Server) -> None:
    async def body() -> None:
        pg = Psycopg()
        async with pg.connected(postgres.parameters) as (manager, conn):
            conn.tpc_begin('order')
            assert not is_clean(manager, conn)

    run(body())


@pytest.mark.parametrize('make', [Psycopg, AsyncPsycopg])
def test_a_wait_for_notifications_in_another_task_is_in_progress(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(postgres.parameters) as (manager, conn):
            await done(conn.set_autocommit(True) if pg.is_async else setattr(conn, 'autocommit', True))
            await pg.ask(conn, 'LISTEN orders')
            if pg.is_async:
                waiting = asyncio.ensure_future(anext(conn.notifies()))
                await asyncio.sleep(0)
                assert not is_clean(manager, conn)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            else:
                with conn.lock:
                    assert not is_clean(manager, conn)

    run(body())


# ---- a session that the server ended while its user was idle in a transaction


@each_driver
@pytest.mark.parametrize('reset', ['rollback', 'discard all', 'default'])
def test_a_session_that_the_server_ended_is_discarded_at_release_without_an_error(
    make: type[Driver], postgres: Server, reset: str
) -> None:
    async def body() -> None:
        pg = make()
        options = {} if reset == 'default' else {'reset': reset}
        async with (
            pg.connected(postgres.parameters, **options) as (manager, conn),
            pg.connected(postgres.parameters) as (_, other),
        ):
            await pg.ask(conn, 'BEGIN' if pg.name == 'asyncpg' else 'SELECT 1')
            await pg.ask(other, f'SELECT pg_terminate_backend({pg.backend(conn)}, 60000)')
            with pytest.raises(DiscardConnection, match='terminating connection due to administrator command'):
                await pg.release(manager, conn)

    run(body())


@each_driver
def test_a_connection_that_was_cut_in_a_transaction_is_discarded_at_release_without_an_error(
    make: type[Driver], proxy: Proxy, proxied: dict[str, Any]
) -> None:
    async def body() -> None:
        pg = make()
        async with pg.connected(proxied) as (manager, conn):
            await pg.ask(conn, 'BEGIN' if pg.name == 'asyncpg' else 'SELECT 1')
            proxy.cut()
            await asyncio.sleep(0)
            with pytest.raises(DiscardConnection, match='the connection broke'):
                await pg.release(manager, conn)

    run(body())


@each_driver
def test_a_pool_discards_it_and_logs_the_servers_words(
    make: type[Driver], postgres: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        pg = make()
        pool = pg.pools.ConnectionPool(pg.manager(postgres.parameters), max_size=1)
        async with pg.connected(postgres.parameters) as (_, other):
            conn = await done(pool.acquire('orders'))
            await pg.ask(conn, 'BEGIN' if pg.name == 'asyncpg' else 'SELECT 1')
            await pg.ask(other, f'SELECT pg_terminate_backend({pg.backend(conn)}, 60000)')
            await done(pool.release(conn, 'orders'))
            assert pg.is_closed(conn)
            assert pool.get_size() == 0
        await done(pool.close())

    run(body())
    warnings = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
    assert any('terminating connection due to administrator command' in warning for warning in warnings)


# ---- what the pool does


@each_driver
def test_a_pool_keeps_what_is_clean_after_an_error(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        pool = pg.pools.ConnectionPool(pg.manager(postgres.parameters), max_size=1)

        async def fail() -> None:
            async with held(pool, pg) as conn:
                await failed_transaction(pg, conn)
                conns.append(conn)
                raise ArithmeticError

        conns: list[Any] = []
        for _ in range(2):
            with pytest.raises(ArithmeticError):
                await fail()
        assert conns[0] is conns[1]
        async with held(pool, pg) as conn:
            assert await pg.ask(conn, 'SELECT 42') == 42
        await done(pool.close())

    run(body())


@pytest.mark.parametrize('make', [AsyncPsycopg, Asyncpg])
def test_a_cancelled_user_leaves_no_answer_to_the_next(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        pool = pg.pools.ConnectionPool(pg.manager(postgres.parameters), max_size=1)

        async def alice() -> None:
            async with pool.connection('orders', timeout=5) as conn:
                started.set()
                await pg.ask(conn, "SELECT 'secret' FROM pg_sleep(0.2)")

        for _ in range(3):
            started = asyncio.Event()
            task = asyncio.ensure_future(alice())
            await started.wait()
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with pool.connection('orders', timeout=5) as conn:
                assert await pg.ask(conn, "SELECT 'mine'") == 'mine'
        await done(pool.close())

    run(body())


@contextlib.asynccontextmanager
async def held(pool: Any, pg: Driver) -> AsyncIterator[Any]:
    if pg.is_async:
        async with pool.connection('orders') as conn:
            yield conn
    else:
        with pool.connection('orders') as conn:
            yield conn
