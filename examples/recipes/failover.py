"""Failover: reads go to the first replica that answers, writes wait for the primary.

A breaker refuses an endpoint that is away at once, so that the next one is tried without a delay."""

import os

import psycopg
from psycopg.rows import TupleRow
from typing_extensions import LiteralString

from gcp import EndpointUnavailableError, Retry
from gcp.contrib.psycopg import DbConnectionManager
from gcp.threading import ConnectionPool

PRIMARY = 'primary'
REPLICAS = ('replica-1', 'replica-2')
HOSTS = {
    PRIMARY: os.environ.get('PRIMARY', 'db-1.internal'),
    'replica-1': os.environ.get('REPLICA_1', 'db-2.internal'),
    'replica-2': os.environ.get('REPLICA_2', 'db-3.internal'),
}
manager = DbConnectionManager({name: {'host': host, 'connect_timeout': 2} for name, host in HOSTS.items()})

reads = ConnectionPool(manager, name='reads', max_size=4, acquire_timeout=2.0, breaker_threshold=1)
writes = ConnectionPool(manager, name='writes', max_size=4, acquire_timeout=30.0, connect_retry=Retry(maximum=1.0))


def ask(endpoint: str, query: LiteralString) -> list[TupleRow]:
    with reads.connection(endpoint) as conn:
        return conn.execute(query).fetchall()


def read(query: LiteralString) -> list[TupleRow]:
    """Ask the first endpoint that answers. A read may be repeated, so an error in the middle of one is no loss."""
    for endpoint in REPLICAS:
        try:
            return ask(endpoint, query)
        except (EndpointUnavailableError, psycopg.OperationalError):
            continue  # the breaker is open, or this has just failed: try the next one
    return ask(PRIMARY, query)


def write(statement: LiteralString) -> None:
    """Wait for the primary, as long as the time-out allows. After a write to a demoted primary, the manager replaces
    all connections to it."""
    with writes.connection(PRIMARY) as conn:
        conn.execute(statement)
        conn.commit()


if __name__ == '__main__':
    with reads, writes:
        print(read('SELECT 6 * 7'))
        write('SELECT 1')
