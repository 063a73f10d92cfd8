"""Peers for the managers' tests: what a connection may meet at its other end. All of them real sockets."""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REQUIRED = os.environ.get('GCP_REQUIRE_SERVERS') == '1'


def driver(name: str) -> Any:
    """Import a driver; skip without it, but fail where the environment promises that all are there."""
    return importlib.import_module(name) if REQUIRED else pytest.importorskip(name, exc_type=ImportError)


def missing(reason: str) -> None:
    """Skip without a server, but fail where the environment promises that all are there."""
    pytest.fail(reason) if REQUIRED else pytest.skip(reason)


def open_descriptors() -> int:
    """Count this process's descriptors."""
    return len(os.listdir('/proc/self/fd'))


def await_input(fd: int, timeout: float = 10.0) -> None:
    """Wait until something, be it EOF, can be read from a descriptor."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    assert poller.poll(timeout * 1000), 'nothing came'


def await_left_behind(timeout: float = 10.0) -> None:
    """Wait until the threads that `within` left behind have ended."""
    for thread in threading.enumerate():
        if thread.name == 'gcp-deadline':
            thread.join(timeout)
            assert not thread.is_alive(), 'a thread that was left behind goes on'


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """Serve a port that accepts and never answers."""
    with socket.create_server(('127.0.0.1', 0), backlog=128) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def deaf_server() -> Iterator[int]:
    """Serve a port that does not even accept: its queue is full, so the kernel drops what comes."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(('127.0.0.1', 0), backlog=0))
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield listener.getsockname()[1]


class Proxy:
    """Stands between a client and a unix socket: counts what the client says, falls silent, and puts words in the
    server's mouth, all on demand."""

    def __init__(self, target: Path) -> None:
        self.questions = 0
        self.silent = False
        self._target = target
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.port: int = self._listener.getsockname()[1]
        self._clients: list[socket.socket] = []
        self._peer_of: dict[socket.socket, socket.socket] = {}
        self._wake, self._alarm = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name='proxy', daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._alarm.close()
        self._thread.join(10)
        for sock in (self._listener, self._wake, *self._peer_of):
            sock.close()

    def say(self, words: bytes) -> None:
        """Send the last client words that its server never said."""
        self._clients[-1].sendall(words)

    def cut(self) -> None:
        """Close the last client's connection without a word."""
        self._clients[-1].shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        while True:
            readable, _, _ = select.select([self._listener, self._wake, *self._peer_of], [], [])
            if self._wake in readable:
                return
            for sock in readable:
                self._admit() if sock is self._listener else self._pass_on(sock)

    def _admit(self) -> None:
        client, _ = self._listener.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self._target))
        self._clients.append(client)
        self._peer_of |= {client: server, server: client}

    def _pass_on(self, sock: socket.socket) -> None:
        if sock not in self._peer_of:
            return
        peer = self._peer_of[sock]
        try:
            words = sock.recv(65536)
        except OSError:
            words = b''
        if sock in self._clients:
            self.questions += 1
        if not words:
            self._part(sock, peer)
        elif not self.silent:
            with contextlib.suppress(OSError):
                peer.sendall(words)

    def _part(self, *pair: socket.socket) -> None:
        for sock in pair:
            del self._peer_of[sock]
            sock.close()
