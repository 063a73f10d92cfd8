"""The deadline of an acquire holds for all that a PostgreSQL manager does: a user's functions, and huge time-outs."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from peers import silent_server
from pg_drivers import Asyncpg, AsyncPsycopg, Driver, done, each_driver, run
from starvation import SOON

from gcp.demo.server import Server
from gcp.exceptions import AcquireTimeoutError


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opened at the end of the test."""
    gate = threading.Event()
    yield gate
    gate.set()


async def acquire_in_vain(pg: Driver, parameters: Any, timeout: float = 0.2) -> None:
    pool = pg.pools.ConnectionPool(pg.make(parameters))
    began = time.monotonic()
    with pytest.raises(AcquireTimeoutError):
        await done(pool.acquire('orders', timeout=timeout))
    assert time.monotonic() - began < SOON
    assert pool.get_size() == 0
    await done(pool.close())


@each_driver
def test_a_function_of_parameters_that_blocks_is_bounded(make: type[Driver], gate: threading.Event) -> None:
    def parameters(endpoint: str) -> dict[str, Any]:
        gate.wait(60)
        return {}

    run(acquire_in_vain(make(), parameters))


@each_driver
def test_a_mapping_that_blocks_is_bounded(make: type[Driver], gate: threading.Event) -> None:
    class Vault(dict[str, Any]):
        def __getitem__(self, endpoint: str) -> Any:
            gate.wait(60)
            return {}

    run(acquire_in_vain(make(), Vault(orders={})))


@pytest.mark.parametrize('make', [AsyncPsycopg, Asyncpg])
@pytest.mark.parametrize('kind', ['async', 'returns a coroutine'])
def test_a_coroutine_of_parameters_is_bounded(make: type[Driver], kind: str) -> None:
    async def parameters(endpoint: str) -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    run(acquire_in_vain(make(), parameters if kind == 'async' else lambda endpoint: parameters(endpoint)))


@pytest.mark.parametrize('kind', ['plain', 'async', 'object'])
def test_asyncpgs_function_of_the_password_is_bounded(postgres: Server, gate: threading.Event, kind: str) -> None:
    class Vault:
        async def __call__(self) -> str:
            await asyncio.sleep(60)
            return ''

    async def ask() -> str:
        await asyncio.sleep(60)
        return ''

    def wait() -> str:
        gate.wait(60)
        return ''

    pg = Asyncpg()
    password = {'plain': wait, 'async': ask, 'object': Vault()}[kind]
    run(acquire_in_vain(pg, {'orders': {**pg.keywords(postgres.parameters), 'password': password}}))


@each_driver
def test_what_a_function_takes_is_missing_from_the_time_to_connect(make: type[Driver]) -> None:
    async def body() -> None:
        pg = make()
        with silent_server() as port:

            def parameters(endpoint: str) -> dict[str, Any]:
                time.sleep(0.2)
                return pg.keywords({'host': '127.0.0.1', 'port': port, 'dbname': 'postgres', 'user': 'postgres'})

            await acquire_in_vain(pg, parameters, timeout=0.4)

    run(body())


@each_driver
def test_a_function_sees_its_callers_context_and_its_errors_reach_the_caller(
    make: type[Driver], postgres: Server
) -> None:
    async def body() -> None:
        pg = make()
        tenant = contextvars.ContextVar[str]('tenant')

        def parameters(endpoint: str) -> dict[str, Any]:
            return pg.keywords({**postgres.parameters, 'dbname': tenant.get()})

        pool = pg.pools.ConnectionPool(pg.make(parameters))
        with pytest.raises(LookupError):
            await done(pool.acquire('orders', timeout=10))
        tenant.set('postgres')
        conn = await done(pool.acquire('orders', timeout=10))
        assert await pg.ask(conn, 'SELECT current_database()') == 'postgres'
        await done(pool.release(conn, 'orders'))
        await done(pool.close())

    run(body())


@pytest.mark.parametrize('make', [AsyncPsycopg, Asyncpg])
def test_a_plain_function_may_use_the_running_loop(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()

        async def parameters() -> dict[str, Any]:
            return pg.keywords(postgres.parameters)

        manager = pg.make(lambda endpoint: asyncio.get_running_loop().create_task(parameters()))
        conn = await pg.create(manager)
        await pg.dispose(manager, conn)

    run(body())


# ---- huge time-outs

HUGE = [1e10, 1e300, float('inf'), sys.maxsize, 10**400]


@each_driver
@pytest.mark.parametrize('huge', HUGE, ids=['1e10', '1e300', 'inf', 'maxsize', '10**400'])
def test_huge_time_outs_are_clamped(make: type[Driver], postgres: Server, huge: Any) -> None:
    async def body() -> None:
        pg = make()
        manager = pg.manager(postgres.parameters, aliveness='query', check_timeout=huge, reset='discard all')
        if pg.is_async:
            conn = await manager.create('orders')
        else:
            conn = manager.create('orders', huge)
            assert manager.check_aliveness('orders', conn, huge)
        assert await pg.check(manager, conn)
        await pg.release(manager, conn)
        if pg.is_async:
            await manager.dispose('orders', conn)
        else:
            manager.dispose('orders', conn, huge)

    run(body())


@each_driver
@pytest.mark.parametrize('huge', HUGE[:4], ids=['1e10', '1e300', 'inf', 'maxsize'])
@pytest.mark.parametrize('timeout', [None, 10.0])
def test_huge_time_outs_among_the_parameters_are_clamped(
    make: type[Driver], postgres: Server, huge: Any, timeout: Any
) -> None:
    async def body() -> None:
        pg = make()
        names = {'timeout': huge, 'command_timeout': huge} if pg.name == 'asyncpg' else {'connect_timeout': huge}
        manager = pg.make({'orders': {**pg.keywords(postgres.parameters), **names}})
        conn = await (manager.create('orders') if pg.is_async else done(manager.create('orders', timeout)))
        assert await pg.ask(conn, 'SELECT 42') == 42
        await pg.dispose(manager, conn)

    run(body())


@each_driver
def test_a_pool_takes_huge_time_outs(make: type[Driver], postgres: Server) -> None:
    async def body() -> None:
        pg = make()
        pool = pg.pools.ConnectionPool(pg.manager(postgres.parameters))
        for huge in (1e10, sys.maxsize):
            conn = await done(pool.acquire('orders', timeout=huge))
            await done(pool.release(conn, 'orders'))
        await done(pool.close())

    run(body())
