"""A master and its replicas by psycopg2; transactions are left open."""

import sys

import psycopg2.extensions
from generic_connection_pool.contrib.psycopg2 import DbConnectionManager
from generic_connection_pool.threading import ConnectionPool

dsn_params = {'dbname': 'postgres', 'user': 'postgres', 'password': 'secret'}

pool = ConnectionPool[str, psycopg2.extensions.connection](
    DbConnectionManager(
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
        with pool.connection(endpoint=name) as conn:
            cursor = conn.cursor()
            cursor.execute('SELECT %s::text', (name,))
            print(*cursor.fetchone())
    print(pool.get_size())
finally:
    pool.close()
