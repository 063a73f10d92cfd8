"""Two requests over one TLS connection, the answers read by the standard library."""

import ssl
import sys
from http.client import HTTPResponse

from generic_connection_pool.contrib.socket import SslSocketConnectionManager
from generic_connection_pool.threading import ConnectionPool

Endpoint = tuple[str, int]

pool = ConnectionPool[Endpoint, ssl.SSLSocket](
    SslSocketConnectionManager(ssl.create_default_context()),
    idle_timeout=30.0,
    max_lifetime=600.0,
    min_idle=3,
    max_size=20,
    total_max_size=100,
    background_collector=True,
)


def get(hostname: str, port: int, path: str) -> tuple[int, bytes]:
    with pool.connection(endpoint=(hostname, port), timeout=5.0) as sock:
        sock.write(f'GET {path} HTTP/1.1\r\nHost: {hostname}\r\n\r\n\r\n'.encode())  # one empty line too many
        response = HTTPResponse(sock)
        response.begin()
        return response.getcode(), response.read(response.length)


try:
    for path in ('/one', '/two'):
        print(*get('localhost', int(sys.argv[1]), path))
    print(pool.get_size())
finally:
    pool.close()
