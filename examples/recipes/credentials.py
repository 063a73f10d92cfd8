"""Credentials that rotate: a function reads them for each new connection, and `expire` replaces the old connections."""

import json
import os
import threading
from pathlib import Path
from typing import Any

from gcp import Retry
from gcp.contrib.psycopg import DbConnectionManager
from gcp.threading import ConnectionPool

SECRET = Path(os.environ.get('DB_SECRET', '/run/secrets/orders.json'))  # written by Vault's agent, or a CSI driver


def parameters(endpoint: str) -> dict[str, Any]:
    """Return connect parameters. It is called for each new connection, with the acquire's time-out."""
    secret: dict[str, Any] = json.loads(SECRET.read_text())
    return {'application_name': endpoint, **secret}  # {'user': ..., 'password': ...}


pool = ConnectionPool(
    DbConnectionManager(parameters),
    name='orders',
    max_size=4,
    acquire_timeout=10.0,
    connect_retry=Retry(),
    max_lifetime=3600.0,  # connections with old credentials end with this, whatever happens
)


def watch(stop: threading.Event, interval: float = 5.0) -> None:
    """Replace the connections when the file changes: idle ones now, used ones when they are released."""
    seen = SECRET.stat().st_mtime_ns
    while not stop.wait(interval):
        now = SECRET.stat().st_mtime_ns
        if now != seen:
            seen = now
            pool.expire()


def whoami() -> str:
    with pool.connection('orders') as conn:
        row = conn.execute('SELECT current_user').fetchone()
    assert row is not None
    return str(row[0])


if __name__ == '__main__':
    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(stop,), daemon=True)
    watcher.start()
    with pool:
        print(whoami())
    stop.set()
