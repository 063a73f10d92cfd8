"""Many tenants: one endpoint for each, all under one cap, with limits by contract.

Connections to tenants that are quiet are closed to make room for those that are not."""

import os

from gcp import EndpointLimits, Retry
from gcp.contrib.psycopg import DbConnectionManager
from gcp.threading import ConnectionPool

LARGE = {'acme', 'globex'}


def parameters(tenant: str) -> dict[str, str]:
    """Return where a tenant's data is. It is called for each new connection, so it may ask a directory."""
    return {'dbname': os.environ.get('PGDATABASE', 'shop'), 'options': f'-c search_path={tenant}'}


def limits(tenant: str) -> EndpointLimits:
    """Return the limits of a tenant. It is called when the tenant gets its first connection or waiter."""
    if tenant in LARGE:
        return EndpointLimits(max_size=8, min_idle=2, weight=3.0, floor=2)
    return EndpointLimits(max_size=2, min_idle=0, max_waiting=20)


pool = ConnectionPool(
    DbConnectionManager(parameters),
    name='tenants',
    total_max_size=20,  # what the server can take from this process
    limits=limits,
    idle_timeout=30.0,
    acquire_timeout=5.0,
    connect_retry=Retry(),
    endpoint_labels=50,  # tenants beyond that share a label in the metrics
)


def search_path(tenant: str) -> str:
    with pool.connection(tenant) as conn:
        row = conn.execute('SHOW search_path').fetchone()
    assert row is not None
    return str(row[0])


def leave(tenant: str) -> None:
    """Close what a tenant has, when it has moved or left."""
    pool.retire(tenant, timeout=10.0)


if __name__ == '__main__':
    with pool:
        for tenant in ('acme', 'initech', 'umbrella'):
            print(search_path(tenant))
        leave('umbrella')
        print(pool.get_size(), 'connections')
