"""Two commands over one TCP connection, by address."""

import socket
import sys
from ipaddress import IPv4Address, IPv6Address

from generic_connection_pool.contrib.socket import TcpSocketConnectionManager
from generic_connection_pool.threading import ConnectionPool

Endpoint = tuple[IPv4Address | IPv6Address, int]

pool = ConnectionPool[Endpoint, socket.socket](
    TcpSocketConnectionManager(),
    idle_timeout=30.0,
    max_lifetime=600.0,
    min_idle=3,
    max_size=20,
    total_max_size=100,
    background_collector=True,
)


def tell(address: IPv4Address | IPv6Address, port: int, line: str) -> str:
    with pool.connection(endpoint=(address, port), timeout=5.0) as sock:
        sock.sendall(line.encode() + b'\n')
        return sock.recv(1024).decode().strip()


try:
    for line in ('PING', 'ECHO hello'):
        print(tell(IPv4Address('127.0.0.1'), int(sys.argv[1]), line))
    print(pool.get_size())
finally:
    pool.close()
