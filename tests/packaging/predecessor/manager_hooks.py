"""A manager that counts in Prometheus what its hooks are told, and knows a connection again by itself."""

import ssl
import sys
import time
from typing import Any

import prometheus_client as prom
from generic_connection_pool.contrib.socket import SslSocketConnectionManager
from generic_connection_pool.threading import ConnectionPool

Endpoint = tuple[str, int]

acquires = prom.Counter('acquires', 'acquires', labelnames=['hostname'])
dead = prom.Counter('dead', 'connections found dead', labelnames=['hostname'])
use_time = prom.Histogram('use_time', 'seconds', labelnames=['hostname'])


class CountingConnectionManager(SslSocketConnectionManager):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._acquired: dict[ssl.SSLSocket, float] = {}

    def on_acquire(self, endpoint: Endpoint, conn: ssl.SSLSocket) -> None:
        hostname, _ = endpoint
        acquires.labels(hostname).inc()
        self._acquired[conn] = time.time()

    def on_release(self, endpoint: Endpoint, conn: ssl.SSLSocket) -> None:
        hostname, _ = endpoint
        use_time.labels(hostname).observe(time.time() - self._acquired.pop(conn))

    def on_connection_dead(self, endpoint: Endpoint, conn: ssl.SSLSocket) -> None:
        hostname, _ = endpoint
        dead.labels(hostname).inc()


pool = ConnectionPool[Endpoint, ssl.SSLSocket](CountingConnectionManager(ssl.create_default_context()))

for _ in range(3):
    with pool.connection(endpoint=('localhost', int(sys.argv[1]))) as sock:
        pass
sock.close()
with pool.connection(endpoint=('localhost', int(sys.argv[1]))):
    pass
for metric, sample in ((acquires, 'acquires_total'), (dead, 'dead_total'), (use_time, 'use_time_count')):
    value = next(each.value for each in metric.collect()[0].samples if each.name == sample)
    print(sample, value)
pool.close()
