"""Hooks: a manager that extends another one with measurements and settings.

    python manager_hooks.py                                     starts two servers of its own
    python manager_hooks.py --host example.org example.net      talks to these

Override only the hooks that you need; the others cost nothing. The pool holds no lock during a hook, and never runs two
hooks of one connection at a time. When a hook raises, the pool disposes of the connection."""

import argparse
import contextlib
import logging
import socket
import socketserver
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPResponse

from gcp.contrib.socket import TcpEndpoint, TcpSocketConnectionManager
from gcp.threading import ConnectionPool

REQUESTS = 20
TIMEOUT = 3.0

logger = logging.getLogger('hooks')


class Meter:
    """Counts events and their time. In a service, use the counters and histograms of your metrics library."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: Counter[tuple[TcpEndpoint, str]] = Counter()
        self._seconds: defaultdict[tuple[TcpEndpoint, str], float] = defaultdict(float)

    def count(self, what: str, endpoint: TcpEndpoint, seconds: float = 0.0) -> None:
        with self._lock:
            self._events[endpoint, what] += 1
            self._seconds[endpoint, what] += seconds

    def __iter__(self) -> Iterator[str]:
        for ((host, port), what), times in sorted(self._events.items()):
            seconds = self._seconds[(host, port), what]
            yield f'{host}:{port} {what}: {times}' + (f' in {seconds:.3f} s' if seconds else '')


class MeasuredConnectionManager(TcpSocketConnectionManager):
    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter
        self._acquired: dict[socket.socket, float] = {}

    def create(self, endpoint: TcpEndpoint, timeout: float | None = None) -> socket.socket:
        started = time.perf_counter()
        try:
            conn = super().create(endpoint, timeout)
        except Exception:
            self._meter.count('failed', endpoint)
            raise
        self._meter.count('connected', endpoint, time.perf_counter() - started)
        return conn

    def on_acquire(self, endpoint: TcpEndpoint, conn: socket.socket) -> None:
        """Prepare a connection, new or reused, for its next user."""
        conn.settimeout(TIMEOUT)
        self._acquired[conn] = time.perf_counter()

    def on_release(self, endpoint: TcpEndpoint, conn: socket.socket) -> None:
        """Reset the connection here: no one else can acquire it yet."""
        self._meter.count('used', endpoint, time.perf_counter() - self._acquired.pop(conn))

    def on_connection_dead(self, endpoint: TcpEndpoint, conn: socket.socket) -> None:
        self._meter.count('found dead', endpoint)
        logger.info('a connection to %s:%s is dead', *endpoint)

    def dispose(self, endpoint: TcpEndpoint, conn: socket.socket, timeout: float | None = None) -> None:
        super().dispose(endpoint, conn, timeout)
        self._acquired.pop(conn, None)  # a close with a time-out may dispose of it while it is in use
        self._meter.count('disposed of', endpoint)


Pool = ConnectionPool[TcpEndpoint, socket.socket]


def fetch(pool: Pool, endpoint: TcpEndpoint) -> None:
    with pool.connection(endpoint, timeout=TIMEOUT) as sock:
        is_reusable = False
        try:
            sock.sendall(f'GET / HTTP/1.1\r\nHost: {endpoint[0]}\r\n\r\n'.encode())
            with HTTPResponse(sock) as response:
                response.begin()
                response.read()
                is_reusable = not response.will_close
        finally:
            if not is_reusable:
                sock.close()  # the next check finds a closed connection dead


def use(endpoints: list[TcpEndpoint]) -> None:
    meter = Meter()
    pool: Pool = ConnectionPool(MeasuredConnectionManager(meter), max_size=2, name='web')
    requests = [endpoints[number % len(endpoints)] for number in range(REQUESTS)]
    with ThreadPoolExecutor(8) as threads:
        try:
            list(threads.map(lambda endpoint: fetch(pool, endpoint), requests))
        finally:
            pool.close(timeout=1.0)
    print(*meter, sep='\n')
    # what the pool counts itself
    stats = pool.stats()
    print('acquires:', ', '.join(f'{times} {result}' for result, times in stats.acquires.items() if times))
    print('closed:', ', '.join(f'{times} {reason}' for reason, times in stats.closed.items() if times))


def main() -> None:
    parser = argparse.ArgumentParser(description='Counts what happens to the connections to HTTP servers.')
    parser.add_argument('--host', nargs='+', help='servers to talk to (default: start two)')
    parser.add_argument('--port', type=int, default=80, help='their port (default: %(default)s)')
    parser.add_argument('--verbose', action='store_true', help='tell of each dead connection')
    options = parser.parse_args()
    logging.basicConfig(format='%(message)s', level=logging.INFO if options.verbose else logging.WARNING)
    if options.host:
        use([(host, options.port) for host in options.host])
    else:
        with serve() as one, serve() as other:
            use([one, other])


# --- a server for this example, which closes each connection after three responses ---


class Web(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            for persistence in (b'keep-alive', b'keep-alive', b'close'):
                if not self.rfile.readline():
                    break
                while self.rfile.readline().strip():
                    pass
                self.wfile.write(b'HTTP/1.1 200 OK\r\nConnection: %s\r\nContent-Length: 5\r\n\r\nHello' % persistence)


@contextlib.contextmanager
def serve() -> Iterator[TcpEndpoint]:
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
