"""Many endpoints in one pool."""

from __future__ import annotations

import time

import gcp.threading

from . import managers


class ManyEndpoints:
    """Times for a thousand acquires and releases, each of another endpoint."""

    params = [1, 100, 100_000]
    param_names = ['endpoints']

    def setup(self, endpoints: int) -> None:
        self.pool = gcp.threading.ConnectionPool(managers.blocking(gcp.threading), total_max_size=max(100, endpoints))
        self.names = [f'endpoint {number}' for number in range(endpoints)]
        for name in self.names:
            self.pool.release(self.pool.acquire(name), name)
        self.first = 0

    def time_acquire_release(self, endpoints: int) -> None:
        pool = self.pool
        names = self.names[self.first:self.first + 1000] * max(1, 1000 // endpoints)
        self.first = (self.first + 1000) % endpoints
        for name in names:
            conn = pool.acquire(name)
            pool.release(conn, name)


class Expiry:
    """Times for a thousand idle connections that expire, in one release of another endpoint's."""

    number = 1
    repeat = (3, 10, 1.0)

    def setup(self) -> None:
        self.pool = gcp.threading.ConnectionPool(
            managers.blocking(gcp.threading), min_idle=0, max_size=1000, total_max_size=2000, idle_timeout=0.02,
            dispose_batch_size=1000)
        self.conn = self.pool.acquire('other')
        held = [self.pool.acquire('db') for _ in range(1000)]
        for conn in held:
            self.pool.release(conn, 'db')
        time.sleep(self.pool.idle_timeout)

    def time_release(self) -> None:
        self.pool.release(self.conn, 'other')
