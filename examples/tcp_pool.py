"""TCP connections for threads: eight threads share a few connections to two servers.

    python tcp_pool.py                                     starts two servers of its own
    python tcp_pool.py --host example.org example.net      talks to these

The pool does not know the protocol. Here it is a minimal HTTP, because servers for it are easy to find; real programs
use `gcp.contrib.http`."""

import argparse
import contextlib
import socket
import socketserver
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPResponse

from gcp.contrib.socket import KeepAlive, TcpEndpoint, TcpSocketConnectionManager
from gcp.threading import ConnectionPool

Pool = ConnectionPool[TcpEndpoint, socket.socket]

REQUESTS = 20
TIMEOUT = 3.0


def fetch(pool: Pool, endpoint: TcpEndpoint) -> str:
    host, port = endpoint
    with pool.connection(endpoint, timeout=TIMEOUT) as sock:  # includes the wait, the look-up and the connect
        sock.settimeout(TIMEOUT)  # of each read and write
        is_reusable = False
        try:
            sock.sendall(f'GET / HTTP/1.1\r\nHost: {host}\r\n\r\n'.encode())
            with HTTPResponse(sock) as response:
                response.begin()
                size = len(response.read())
                is_reusable = not response.will_close
        finally:
            if not is_reusable:
                # The next user would read the rest of this response. The pool does not reuse a closed connection.
                sock.close()
    return f'{host}:{port} says {response.status} {response.reason} and {size} bytes'


def use(endpoints: list[TcpEndpoint]) -> None:
    pool: Pool = ConnectionPool(
        TcpSocketConnectionManager(keepalive=KeepAlive(idle=30.0)),
        min_idle=1,  # idle connections kept per endpoint
        idle_timeout=30.0,  # seconds until others are closed
        max_lifetime=600.0,  # seconds until any connection is replaced
        max_size=2,  # connections per endpoint
        total_max_size=3,  # connections of all endpoints together
        background_collector=True,  # close expired connections in the background
        name='web',
    )
    requests = [endpoints[number % len(endpoints)] for number in range(REQUESTS)]
    with ThreadPoolExecutor(8) as threads:
        try:
            answers = Counter(threads.map(lambda endpoint: fetch(pool, endpoint), requests))
            for answer, times in sorted(answers.items()):
                print(f'{answer}, {times} times')
            stats = pool.stats()
            print(f'{stats.created} connections served {sum(stats.acquires.values())} acquires')
            print(pool)
        finally:
            pool.close(timeout=1.0)  # used connections are closed at the time-out


def main() -> None:
    parser = argparse.ArgumentParser(description='Eight threads talk to HTTP servers through one pool.')
    parser.add_argument('--host', nargs='+', help='servers to talk to (default: start two)')
    parser.add_argument('--port', type=int, default=80, help='their port (default: %(default)s)')
    options = parser.parse_args()
    if options.host:
        use([(host, options.port) for host in options.host])
    else:
        with serve('one') as one, serve('the other') as other:
            use([one, other])


# --- a server for this example ---


@contextlib.contextmanager
def serve(name: str) -> Iterator[TcpEndpoint]:
    body = f'Hello from {name}.\n'.encode()

    class Web(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                while self.rfile.readline():
                    while self.rfile.readline().strip():
                        pass
                    self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s' % (len(body), body))

    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield '127.0.0.1', server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, HTTPException) as error:
        sys.exit(f'{type(error).__name__}: {error}')
