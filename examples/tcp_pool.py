"""TCP connections for threads: eight threads talk to two servers through the few connections of one pool.

    python tcp_pool.py                                     starts two servers of its own
    python tcp_pool.py --host example.org example.net      talks to these

The pool knows nothing of what is said through its connections. Here that is HTTP by hand, since there is always
a server that speaks it; for HTTP in earnest there is `gcp.contrib.http`."""

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
    with pool.connection(endpoint, timeout=TIMEOUT) as sock:  # to wait in line, look up and connect: in all
        sock.settimeout(TIMEOUT)  # for each step of what follows
        is_reusable = False
        try:
            sock.sendall(f'GET / HTTP/1.1\r\nHost: {host}\r\n\r\n'.encode())
            with HTTPResponse(sock) as response:
                response.begin()
                size = len(response.read())
                is_reusable = not response.will_close
        finally:
            if not is_reusable:
                # The rest of an answer must not be taken for the next one's.
                # What we close, the pool lends to nobody.
                sock.close()
    return f'{host}:{port} says {response.status} {response.reason} and {size} bytes'


def use(endpoints: list[TcpEndpoint]) -> None:
    pool: Pool = ConnectionPool(
        TcpSocketConnectionManager(keepalive=KeepAlive(idle=30.0)),
        min_idle=1,  # of each endpoint, one connection is kept,
        idle_timeout=30.0,  # others for so long after their last use,
        max_lifetime=600.0,  # and none for longer than this
        max_size=2,  # no endpoint has more than two,
        total_max_size=3,  # and all together no more than three
        background_collector=True,  # what has expired is disposed of in the background
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
            pool.close(timeout=1.0)  # idle connections now, others when they come back, or then by force


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


# --- a server, for those who have none at hand ---


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
