"""Your own manager: Redis from scratch, over a plain socket.

    python custom_manager.py                                     starts a server, or a fake one if none is installed
    python custom_manager.py --host redis.internal --port 6379   uses this one; the password comes from REDIS_PASSWORD

A manager must create connections and dispose of them; the other hooks are optional. See docs/managers.md for the rules.
Real programs use `gcp.contrib.redis`."""

import argparse
import contextlib
import os
import select
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from gcp.threading import BaseConnectionManager, ConnectionPool

TIMEOUT = 3.0


class Database(NamedTuple):
    """An endpoint: anything that can be a key of a dictionary."""

    host: str
    port: int
    number: int = 0


class RedisError(Exception):
    """An error that the server returned."""


class RedisConnection:
    """Speaks RESP: the first byte of a line is the value's type; its content follows."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._received = bytearray()
        self._is_in_sync = True

    def ask(self, *words: str) -> object:
        """Send a command and return the reply."""
        self._is_in_sync = False
        packed = b''.join(b'$%d\r\n%s\r\n' % (len(word), word) for word in map(str.encode, words))
        self.sock.sendall(b'*%d\r\n%s' % (len(words), packed))
        reply = self._value()
        self._is_in_sync = True
        if isinstance(reply, RedisError):
            raise reply
        return reply

    def is_in_sync(self) -> bool:
        """Tell whether each command has its reply: the next user would read one that this user did not."""
        return self._is_in_sync and not self._received

    def close(self) -> None:
        self._is_in_sync = False
        self.sock.close()

    def _value(self) -> object:
        line = self._take(b'\r\n')
        kind, rest = line[:1], line[1:]
        if kind == b'+':
            return rest.decode()
        if kind == b'-':
            return RedisError(rest.decode())
        if kind == b':':
            return int(rest)
        if kind in b'$*' and rest == b'-1':
            return None
        if kind == b'$':
            return self._take(size=int(rest) + 2)[:-2]
        if kind == b'*':
            return [self._value() for _ in range(int(rest))]
        raise ConnectionError(f'a reply that begins with {kind!r}')

    def _take(self, end: bytes = b'', size: int = 0) -> bytes:
        """Receive up to a terminator, or a number of bytes."""
        while (end and end not in self._received) or len(self._received) < size:
            if not (data := self.sock.recv(65536)):
                raise ConnectionError('the server ended the connection')
            self._received += data
        if end:
            size = self._received.index(end)
        taken = bytes(self._received[:size])
        del self._received[: size + len(end)]
        return taken


class RedisConnectionManager(BaseConnectionManager[Database, RedisConnection]):
    def __init__(self, password: str | None = None) -> None:
        self._password = password

    def create(self, endpoint: Database, timeout: float | None = None) -> RedisConnection:
        deadline = None if timeout is None else time.monotonic() + timeout
        # (each address of a name gets the whole time; gcp.contrib.socket divides it)
        conn = RedisConnection(socket.create_connection((endpoint.host, endpoint.port), timeout))
        try:
            conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for command in self._greeting(endpoint):
                conn.sock.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
                conn.ask(*command)
            conn.sock.settimeout(TIMEOUT)  # for its users
        except BaseException:
            conn.close()  # the pool owns it only once it is returned
            raise
        return conn

    def dispose(self, endpoint: Database, conn: RedisConnection, timeout: float | None = None) -> None:
        conn.close()

    def check_aliveness(self, endpoint: Database, conn: RedisConnection, timeout: float | None = None) -> bool:
        """Look at the socket without a round trip, because this runs before each reuse. EOF and unsolicited data both
        make it readable; a live idle connection is not."""
        if not conn.is_in_sync():
            return False
        poller = select.poll()
        poller.register(conn.sock, select.POLLIN)
        return not poller.poll(0)

    def _greeting(self, endpoint: Database) -> Iterator[tuple[str, ...]]:
        if self._password is not None:
            yield 'AUTH', self._password
        if endpoint.number:
            yield 'SELECT', str(endpoint.number)
        yield ('PING',)


def use(host: str, port: int) -> None:
    endpoints = [Database(host, port), Database(host, port, number=1)]
    pool = ConnectionPool(
        RedisConnectionManager(os.environ.get('REDIS_PASSWORD')), max_size=2, acquire_timeout=TIMEOUT, name='redis'
    )

    def count(number: int) -> None:
        with pool.connection(endpoints[number % 2]) as conn:
            conn.ask('INCR', 'gcp-example')

    with ThreadPoolExecutor(8) as threads:
        try:
            list(threads.map(count, range(30)))
            for endpoint in endpoints:
                with pool.connection(endpoint) as conn:
                    print(f'database {endpoint.number}: {conn.ask("GETDEL", "gcp-example")!r}')
                    with contextlib.suppress(RedisError):
                        conn.ask('NO-SUCH-COMMAND')  # an error reply: the connection can be used again
            stats = pool.stats()
            print(f'{stats.created} connections served {sum(stats.acquires.values())} acquires')
        finally:
            pool.close(timeout=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description='Eight threads use two databases of a Redis server through one pool.')
    parser.add_argument('--host', help='the server (default: start one)')
    parser.add_argument('--port', type=int, default=6379, help='its port (default: %(default)s)')
    options = parser.parse_args()
    if options.host:
        use(options.host, options.port)
    else:
        with serve_redis() if shutil.which('redis-server') else stand_in() as port:
            use('127.0.0.1', port)


# --- a server for this example ---


@contextlib.contextmanager
def serve_redis() -> Iterator[int]:
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # no KeyboardInterrupt between start and `try`
        server = subprocess.Popen(
            ['redis-server', '--bind', '127.0.0.1', '--port', str(port), '--save', '', '--dir', directory],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            while server.poll() is None:
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(('127.0.0.1', port)):
                    break
                time.sleep(0.01)
            yield port
        finally:
            server.terminate()
            server.wait()


@contextlib.contextmanager
def stand_in() -> Iterator[int]:
    """A fake server that knows the commands of this program."""
    counts: dict[bytes, int] = {}
    lock = threading.Lock()

    class Session(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.database = b'0'
            with contextlib.suppress(ConnectionError):
                while line := self.rfile.readline():
                    words = [self.rfile.read(int(self.rfile.readline()[1:]) + 2)[:-2] for _ in range(int(line[1:]))]
                    with lock:
                        self.wfile.write(self.answer(*words))

        def answer(self, command: bytes, *arguments: bytes) -> bytes:
            if command == b'INCR':
                counts[self.database] = counts.get(self.database, 0) + 1
                return b':%d\r\n' % counts[self.database]
            if command == b'GETDEL':
                value = b'%d' % counts.pop(self.database, 0)
                return b'$%d\r\n%s\r\n' % (len(value), value)
            if command == b'SELECT':
                self.database = arguments[0]
            return b'+OK\r\n' if command in (b'AUTH', b'PING', b'SELECT') else b'-ERR unknown command\r\n'

    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Session) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, RedisError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
