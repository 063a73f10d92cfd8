"""Guarantee 27 (docs/guarantees.md): a restart of PostgreSQL between `suspend` and `resume`, under load. No caller gets
an error, of `acquire` or of a query."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from peers import missing
from pg_drivers import Asyncpg, AsyncPsycopg, Driver, Psycopg, Psycopg2

from gcp.demo.server import Server, ServerError, serve

PATIENCE = 120.0  # seconds; the deadline of an acquire covers the restart


@pytest.fixture(scope='module')
def restarted() -> Iterator[Server]:
    """A server that no other test uses."""
    try:
        with serve(max_connections=20) as server:
            yield server
    except ServerError as error:
        missing(str(error))


@pytest.mark.parametrize('make', [Psycopg2, Psycopg], ids=['psycopg2', 'psycopg'])
@pytest.mark.parametrize('check_interval', [None, 60])
@pytest.mark.parametrize('target', ['orders', None], ids=['endpoint', 'pool'])
def test_threads(make: type[Driver], check_interval: float | None, target: Any, restarted: Server) -> None:
    pg = make()
    uses = [0] * 8
    errors: list[BaseException] = []
    stop = threading.Event()

    def work(number: int) -> None:
        try:
            while not stop.is_set():
                with pool.connection('orders') as conn:
                    asyncio.run(pg.ask(conn, 'SELECT 1'))
                uses[number] += 1
        except BaseException as error:
            errors.append(error)

    def until_all_were_served() -> None:
        before, deadline = list(uses), time.monotonic() + PATIENCE
        while any(now <= then for now, then in zip(uses, before, strict=True)):
            assert not errors, errors
            assert time.monotonic() < deadline, pool
            time.sleep(0.001)

    with pg.pools.ConnectionPool(
        pg.manager(restarted.parameters), max_size=4, acquire_timeout=PATIENCE, check_interval=check_interval
    ) as pool:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        until_all_were_served()
        pool.suspend(target, wait=True, timeout=PATIENCE)
        restarted.stop()
        restarted.start()
        pool.resume(target)
        until_all_were_served()
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert errors == []


@pytest.mark.parametrize('make', [AsyncPsycopg, Asyncpg], ids=['psycopg', 'asyncpg'])
@pytest.mark.parametrize('check_interval', [None, 60])
@pytest.mark.parametrize('target', ['orders', None], ids=['endpoint', 'pool'])
def test_tasks(make: type[Driver], check_interval: float | None, target: Any, restarted: Server) -> None:
    pg = make()

    async def main() -> None:
        uses = [0] * 100
        stop = asyncio.Event()

        async def work(number: int) -> None:
            while not stop.is_set():
                async with pool.connection('orders') as conn:
                    await pg.ask(conn, 'SELECT 1')
                uses[number] += 1

        async def until_all_were_served() -> None:
            before = list(uses)
            while any(now <= then for now, then in zip(uses, before, strict=True)):
                for task in tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.001)

        async with pg.pools.ConnectionPool(
            pg.manager(restarted.parameters), max_size=4, acquire_timeout=PATIENCE, check_interval=check_interval
        ) as pool:
            tasks = [asyncio.create_task(work(number)) for number in range(100)]
            await asyncio.wait_for(until_all_were_served(), PATIENCE)
            await pool.suspend(target, wait=True, timeout=PATIENCE)
            await asyncio.to_thread(restarted.stop)
            restarted.start()  # in this thread: the server does not outlive the one that starts it
            pool.resume(target)
            await asyncio.wait_for(until_all_were_served(), PATIENCE)
            stop.set()
            await asyncio.gather(*tasks)

    asyncio.run(main())
