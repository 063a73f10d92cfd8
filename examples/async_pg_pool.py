"""PostgreSQL for asyncio, with asyncpg: a primary and its replicas in one pool, under one limit.

    python async_pg_pool.py                                         starts a server of its own: pip install gcpool[demo]
    python async_pg_pool.py --host db-1.internal db-2.internal      uses these; the password comes from PGPASSWORD

The counterpart of pg_pool.py."""

import argparse
import asyncio
import sys
from collections.abc import Mapping

import asyncpg

from gcp.asyncio import ConnectionPool
from gcp.contrib.asyncpg import DbConnectionManager, DbEndpoint
from gcp.demo.server import ServerError, serve

Pool = ConnectionPool[DbEndpoint, 'asyncpg.Connection[asyncpg.Record]']

NUMBERS = range(16)


async def square(pool: Pool, number: int) -> int:
    async with pool.connection('replica') as conn:
        result: int = await conn.fetchval('SELECT $1::int * $1::int', number, timeout=5.0)
        return result


async def count(pool: Pool) -> int:
    async with pool.connection('primary', timeout=10.0) as conn, conn.transaction():
        await conn.execute('CREATE TEMPORARY TABLE orders ON COMMIT DROP AS SELECT generate_series(1, 100)')
        result: int = await conn.fetchval('SELECT count(*) FROM orders')
        return result


async def fail(pool: Pool) -> str:
    try:
        async with pool.connection('primary') as conn:
            await conn.execute('BEGIN')  # without ROLLBACK: the manager rolls back on release
            await conn.execute('SELECT 1 / 0')
    except asyncpg.PostgresError as error:
        return str(error)
    return ''


async def give_up(pool: Pool) -> str:
    try:
        async with pool.connection('primary') as conn:
            await asyncio.wait_for(conn.execute('SELECT pg_sleep(60)'), 0.1)  # also cancels it on the server
    except asyncio.TimeoutError:
        return 'a query that took too long'
    return ''


async def use(parameters: Mapping[str, object]) -> None:
    pool: Pool = ConnectionPool(
        DbConnectionManager(
            {
                'primary': {**parameters, 'target_session_attrs': 'read-write'},
                'replica': {**parameters, 'target_session_attrs': 'prefer-standby'},
            }
        ),
        acquire_timeout=5.0,  # the default time-out of an acquire, including the connect
        max_size=3,
        total_max_size=4,  # this process's share of the server's `max_connections`
        max_lifetime=600.0,
        lifetime_jitter=0.2,  # spreads the ends of connections that were created together
        background_collector=True,
        name='orders',
    )
    try:
        print('squares:', *await asyncio.gather(*(square(pool, number) for number in NUMBERS)))
        print('orders:', await count(pool))
        print('failed:', await fail(pool))
        print('cancelled:', await give_up(pool))
        print('orders:', await count(pool))
        stats = pool.stats()
        print(f'{stats.created} connections served {sum(stats.acquires.values())} acquires')
    finally:
        await pool.close(timeout=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description='Sixteen tasks use a PostgreSQL server through one pool.')
    parser.add_argument('--host', nargs='+', help='the server, or the primary and its replicas (default: start one)')
    parser.add_argument('--port', type=int, default=5432, help='their port (default: %(default)s)')
    parser.add_argument('--user', default='postgres', help='whom to connect as (default: %(default)s)')
    parser.add_argument('--database', default='postgres', help='the database (default: %(default)s)')
    options = parser.parse_args()
    if options.host:
        asyncio.run(use(vars(options)))
    else:
        with serve() as server:
            named = server.parameters  # with libpq's names
            asyncio.run(use({'host': named['host'], 'user': named['user'], 'database': named['dbname']}))


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, asyncio.TimeoutError, ServerError, asyncpg.PostgresError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
