"""A master and its replicas by asyncpg."""

import asyncio
import sys

import asyncpg
from generic_connection_pool.asyncio import ConnectionPool
from generic_connection_pool.contrib.asyncpg import DbConnectionManager

dsn_params = {'database': 'postgres', 'user': 'postgres', 'password': 'secret'}


async def main() -> None:
    pool = ConnectionPool[str, 'asyncpg.Connection[asyncpg.Record]'](
        DbConnectionManager[asyncpg.Record](
            dsn_params={
                'master': dict(dsn_params, host=sys.argv[1]),
                'replica-1': dict(dsn_params, host=sys.argv[1]),
            },
        ),
        acquire_timeout=2.0,
        idle_timeout=60.0,
        max_lifetime=600.0,
        min_idle=3,
        max_size=10,
        total_max_size=15,
        background_collector=True,
    )
    try:
        for name in ('master', 'replica-1', 'master'):
            async with pool.connection(endpoint=name) as conn:
                print(await conn.fetchval('SELECT $1::text', name))
        print(pool.get_size())
    finally:
        await pool.close()


asyncio.run(main())
