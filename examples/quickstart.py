"""Thirty seconds with gcp: a server that echoes, a pool of connections to it, and eight threads that share two."""

import socketserver
import threading
from concurrent.futures import ThreadPoolExecutor

from gcp.contrib.socket import TcpSocketConnectionManager
from gcp.threading import ConnectionPool


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1024):
            self.request.sendall(data)


with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Echo) as server:
    threading.Thread(target=server.serve_forever).start()
    endpoint = ('127.0.0.1', server.server_address[1])

    with ConnectionPool(TcpSocketConnectionManager(), max_size=2, name='echo') as pool:

        def greet(number: int) -> str:
            with pool.connection(endpoint, timeout=5.0) as conn:
                conn.sendall(f'hello {number}'.encode())
                return conn.recv(1024).decode()

        with ThreadPoolExecutor(8) as threads:
            print(*threads.map(greet, range(8)), sep=', ')
        print(pool)
        print(pool.stats().created, 'connections served', sum(pool.stats().acquires.values()), 'acquires')

    server.shutdown()
