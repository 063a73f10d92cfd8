"""Celery with prefork workers: one pool for each worker process, made when the module is imported.

celery --app celery_app worker --concurrency 4   BROKER_URL, and PGHOST, PGUSER, PGDATABASE, PGPASSWORD say where"""

import os
from typing import Any

from celery import Celery
from celery.signals import worker_process_shutdown

from gcp import Retry
from gcp.contrib.psycopg import DbConnectionManager
from gcp.threading import ConnectionPool

app = Celery(
    'orders', broker=os.environ.get('BROKER_URL', 'redis://'), backend=os.environ.get('BROKER_URL', 'redis://')
)

# No connection is opened before the first task, so each worker process opens its own after the fork. A prefork worker
# does one task at a time: one connection for each endpoint is enough.
pool = ConnectionPool(
    DbConnectionManager({'orders': {}}), name='orders', max_size=1, acquire_timeout=30.0, connect_retry=Retry()
)


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def close(**_: Any) -> None:
    pool.close(timeout=5.0)


@app.task(name='orders.count')  # type: ignore[untyped-decorator]
def count(customer: int) -> int:
    with pool.connection('orders') as conn:
        return len(conn.execute('SELECT generate_series(1, %s::int)', [customer]).fetchall())
