"""A program: one process of a fleet behind PgBouncer. Several workers use one pool, in and out of transactions.

Usage: bouncer_load.py <class of pg_drivers> <parameters as JSON> <options as JSON>"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import Any

import pg_drivers
from pg_drivers import Driver, done

WORKERS = 6
TURNS = 40


async def work(pg: Driver, pool: Any, number: int) -> None:
    for turn in range(TURNS):
        conn = await done(pool.acquire('orders', 20))
        try:
            value = number * TURNS + turn
            if turn % 2:  # one statement, again and again: a driver would like to prepare it
                assert await ask(pg, conn, value) == value
            else:
                await transaction(pg, conn, value)
        finally:
            await done(pool.release(conn, 'orders'))


async def ask(pg: Driver, conn: Any, value: int) -> Any:
    if pg.name == 'asyncpg':
        return await conn.fetchval('SELECT $1::int', value)
    cursor = conn.cursor()
    await done(cursor.execute('SELECT %s::int', [value]))
    return (await done(cursor.fetchone()))[0]


async def transaction(pg: Driver, conn: Any, value: int) -> None:
    """See that it is one server's session from begin to end; leave it open now and then."""
    if pg.name == 'asyncpg':
        await conn.execute('BEGIN')
    await pg.ask(conn, f'SET LOCAL gcp.value = {value}')
    assert await ask(pg, conn, value) == value
    assert await pg.ask(conn, 'SHOW gcp.value') == str(value)
    if value % 4 == 0:
        return
    await done(conn.execute('COMMIT') if pg.name == 'asyncpg' else conn.commit())


def main(name: str, parameters: str, options: str) -> None:
    pg: Driver = getattr(pg_drivers, name)()
    pool = pg.pools.ConnectionPool(pg.make({'orders': json.loads(parameters)}, **json.loads(options)), max_size=WORKERS)

    async def together() -> None:
        await asyncio.gather(*(work(pg, pool, number) for number in range(WORKERS)))
        await pool.close()

    if pg.is_async:
        asyncio.run(together())
        print(WORKERS * TURNS)
        return
    served: list[int] = []

    def alone(number: int) -> None:
        asyncio.run(work(pg, pool, number))
        served.append(TURNS)

    threads = [threading.Thread(target=alone, args=(number,)) for number in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.close()
    print(sum(served))


if __name__ == '__main__':
    main(*sys.argv[1:])
