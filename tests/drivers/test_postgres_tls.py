"""PostgreSQL through TLS, where a look at the socket tells nothing of what is said: all managers."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
from peers import await_input, driver
from pg_drivers import Asyncpg, Driver, done, each_driver, run

from gcp.demo.server import Server


def keywords(pg: Driver, parameters: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(pg, Asyncpg):
        return parameters
    context = ssl.create_default_context(cafile=parameters['sslrootcert'])
    kept = {name: value for name, value in parameters.items() if name not in ('sslmode', 'sslrootcert')}
    return {**pg.keywords(kept), 'ssl': context}


async def heard(pg: Driver, conn: Any) -> None:
    """Wait until something has come on an idle connection."""
    if pg.name == 'asyncpg':
        await asyncio.sleep(0.05)  # the event loop reads by itself, and does not report it
    else:
        await_input(conn.fileno())


@each_driver
def test_a_connection_is_encrypted_and_alive(make: type[Driver], tls_postgres: Any) -> None:
    async def body() -> None:
        pg = make()
        manager = pg.make({'orders': keywords(pg, tls_postgres.parameters)})
        conn = await pg.create(manager)
        encrypted = 'SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()'
        assert await pg.ask(conn, encrypted) is True
        await pg.release(manager, conn)
        assert await pg.check(manager, conn)
        assert await pg.ask(conn, encrypted) is True
        await pg.dispose(manager, conn)
        assert pg.is_closed(conn)

    run(body())


@each_driver
def test_a_killed_backend_is_noticed(make: type[Driver], tls_postgres: Any) -> None:
    async def body() -> None:
        pg = make()
        manager = pg.make({'orders': keywords(pg, tls_postgres.parameters)})
        conn, other = await pg.create(manager), await pg.create(manager)
        await pg.release(manager, conn)
        await pg.ask(other, f'SELECT pg_terminate_backend({pg.backend(conn)})')
        await heard(pg, conn)
        assert not await pg.check(manager, conn)
        for each in (conn, other):
            await pg.dispose(manager, each)

    run(body())


@each_driver
def test_a_notification_is_news(make: type[Driver], tls_postgres: Any) -> None:
    async def body() -> None:
        pg = make()
        manager = pg.make({'orders': keywords(pg, tls_postgres.parameters)})
        conn, other = await pg.create(manager), await pg.create(manager)
        for each, statement in ((conn, 'LISTEN orders'), (other, 'NOTIFY orders')):
            await pg.ask(each, statement)
            if pg.name != 'asyncpg':
                await done(each.commit())
            await pg.release(manager, each)
        await heard(pg, conn)
        assert await pg.check(manager, conn)
        assert await pg.ask(conn, 'SELECT 1') == 1
        for each in (conn, other):
            await pg.dispose(manager, each)

    run(body())


@each_driver
def test_a_server_that_another_authority_vouches_for_is_refused(make: type[Driver], tls_postgres: Any) -> None:
    async def body() -> None:
        pg = make()
        parameters = {**tls_postgres.parameters, 'sslrootcert': str(tls_postgres.stranger)}
        with pytest.raises(pg.errors, match='certificate verify failed'):
            await pg.create(pg.make({'orders': keywords(pg, parameters)}))

    run(body())


@pytest.mark.parametrize('front', ['asyncpg', 'psycopg'])
@pytest.mark.parametrize('aliveness', ['socket', 'query'])
def test_uvloop_tells_the_same(front: str, aliveness: str, postgres: Server) -> None:
    uvloop = driver('uvloop')
    from pg_drivers import AsyncPsycopg

    async def body() -> None:
        pg = Asyncpg() if front == 'asyncpg' else AsyncPsycopg()
        pool = pg.pools.ConnectionPool(pg.manager(postgres.parameters, aliveness=aliveness))
        async with pool.connection('orders') as conn:
            assert await pg.ask(conn, 'SELECT 1') == 1
        async with pool.connection('orders') as again:
            assert again is conn
        admin = await pg.create(pg.manager(postgres.parameters))
        await pg.ask(admin, f'SELECT pg_terminate_backend({pg.backend(conn)})')
        await heard(pg, conn)
        async with pool.connection('orders') as other:
            assert other is not conn
            assert await pg.ask(other, 'SELECT 1') == 1
        await pool.close()
        await done(admin.close())

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(body(), 120))
    finally:
        loop.close()
