"""A manager that logs in and asks each connection whether it is alive before its reuse."""

import socket
import sys
from ipaddress import IPv4Address

from generic_connection_pool.threading import BaseConnectionManager, ConnectionPool

Endpoint = tuple[IPv4Address, int]


class LoggedInConnectionManager(BaseConnectionManager[Endpoint, socket.socket]):
    def __init__(self, username: str, password: str) -> None:
        self._username = username
        self._password = password

    def create(self, endpoint: Endpoint, timeout: float | None = None) -> socket.socket:
        address, port = endpoint
        sock = socket.socket(family=socket.AF_INET, type=socket.SOCK_STREAM)
        sock.connect((str(address), port))
        if ask(sock, f'AUTH {self._username} {self._password}') != '+OK':
            raise RuntimeError('not let in')
        return sock

    def dispose(self, endpoint: Endpoint, conn: socket.socket, timeout: float | None = None) -> None:
        try:
            conn.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        conn.close()

    def check_aliveness(self, endpoint: Endpoint, conn: socket.socket, timeout: float | None = None) -> bool:
        try:
            return ask(conn, 'PING') == '+PONG'
        except OSError:
            return False


def ask(sock: socket.socket, command: str) -> str:
    sock.sendall(command.encode() + b'\r\n')
    return sock.recv(1024).decode().rstrip()


pool = ConnectionPool[Endpoint, socket.socket](
    LoggedInConnectionManager('ann', 'secret'),
    idle_timeout=30.0,
    max_lifetime=600.0,
    min_idle=3,
    max_size=20,
    total_max_size=100,
    background_collector=True,
)

try:
    for line in ('PING', 'ECHO hello'):
        with pool.connection(endpoint=(IPv4Address('127.0.0.1'), int(sys.argv[1])), timeout=5.0) as sock:
            print(ask(sock, line))
    print(pool.get_size())
finally:
    pool.close()
