"""Redis servers for the manager's tests: a real one, with users, TLS and a unix socket, and one that misbehaves."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import trustme
from peers import is_served, missing, open_descriptors

PASSWORD = 'hunter2-of-the-server'
USER, USER_PASSWORD = 'ann', 'swordfish-of-ann'


class RedisServer:
    """A real server: plain and TLS ports, a unix socket, and beside the default user one by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / 'redis.sock'
        self.authority = trustme.CA()
        self.port, self.tls_port = free_ports(2)

    @contextlib.contextmanager
    def running(self) -> Iterator[RedisServer]:
        program = shutil.which('redis-server')
        if program is None:
            missing('no redis-server')
        assert program is not None
        log = self.directory / 'log'
        with open(log, 'wb') as said:
            process = subprocess.Popen([program, self._configured()], stdout=said, stderr=said)
        try:
            if not is_served(str(self.path), process):
                missing(f'redis-server does not start: {log.read_text()[-1000:]}')
            yield self
        finally:
            process.kill()
            process.wait()

    def _configured(self) -> Path:
        certificate = self.authority.issue_cert('localhost', '127.0.0.1')
        self.authority.cert_pem.write_to_path(self.directory / 'ca.pem')
        certificate.cert_chain_pems[0].write_to_path(self.directory / 'cert.pem')
        certificate.private_key_pem.write_to_path(self.directory / 'key.pem')
        lines = [
            'bind 127.0.0.1',
            f'port {self.port}',
            f'tls-port {self.tls_port}',
            'tls-ca-cert-file ca.pem',
            'tls-cert-file cert.pem',
            'tls-key-file key.pem',
            'tls-auth-clients no',
            f'unixsocket {self.path}',
            f'dir {self.directory}',
            'save ""',
            'databases 4',
            f'requirepass {PASSWORD}',
            f'user {USER} on >{USER_PASSWORD} ~* &* +@all',
            'user guest on nopass ~* &* +@all',
        ]
        path = self.directory / 'redis.conf'
        path.write_text('\n'.join(lines) + '\n')
        return path


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix='gcp-redis-') as directory:
        with RedisServer(Path(directory)).running() as server:
            yield server


def settled_descriptors(expected: int, timeout: float = 10.0) -> int:
    """Count this process's descriptors, once the servers in it have had time to close theirs."""
    deadline = time.monotonic() + timeout
    while open_descriptors() > expected and time.monotonic() < deadline:
        time.sleep(0.001)
    return open_descriptors()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(('127.0.0.1', 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


REPLIES = {
    'HELLO': b'%1\r\n$5\r\nproto\r\n:3\r\n',
    'PING': b'+PONG\r\n',
    'RESET': b'+RESET\r\n',
}


class Misbehaving:
    """A server that knows its manners, until it hears a certain word.

    :param word: the first word of the command at which it begins
    :param lapse: what it does then: 'hang', 'stall', 'close', 'reset', 'drip', 'echo', or bytes to say
    """

    def __init__(self, word: str, lapse: str | bytes) -> None:
        self._word, self._lapse = word, lapse
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=128)
        self._clients: list[socket.socket] = []
        self._over = threading.Event()
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Misbehaving:
        threading.Thread(target=self._run, name='misbehaving', daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), name='misbehaving', daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while words := client.recv(65536):
                for command in re.findall(rb'\*\d+\r\n\$\d+\r\n(\w+)', words):
                    name = command.decode().upper()
                    if name == self._word:
                        self._misbehave(client, words)
                    else:
                        client.sendall(REPLIES.get(name, b'+OK\r\n'))

    def _misbehave(self, client: socket.socket, words: bytes) -> None:
        if self._lapse == 'close':
            client.shutdown(socket.SHUT_RDWR)
        elif self._lapse == 'reset':
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            client.close()
        elif self._lapse == 'stall':
            self._over.wait(30)
        elif self._lapse == 'drip':
            while True:
                client.sendall(b'+')
                time.sleep(0.02)
        elif self._lapse == 'echo':
            heard = b' '.join(re.findall(rb'\$\d+\r\n([^\r]*)', words))
            client.sendall(b"-ERR unknown command, with args beginning with: '" + heard + b"'\r\n")
        elif isinstance(self._lapse, bytes):
            client.sendall(self._lapse)
