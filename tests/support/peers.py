"""Peers for the managers' tests: what a connection may meet at its other end. All of them real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import gc
import importlib
import inspect
import os
import queue
import select
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from starvation import SOON, starvation

REQUIRED = os.environ.get('GCP_REQUIRE_SERVERS') == '1'


def driver(name: str) -> Any:
    """Import a driver; skip without it, but fail where the environment says that all are installed."""
    return importlib.import_module(name) if REQUIRED else pytest.importorskip(name, exc_type=ImportError)


def missing(reason: str) -> None:
    """Skip without a server, but fail where the environment says that all are installed."""
    pytest.fail(reason) if REQUIRED else pytest.skip(reason)


def is_served(address: str | tuple[str, int], process: subprocess.Popen[bytes], timeout: float = 20.0) -> bool:
    """Wait until a server accepts connections. What it writes when it is ready differs between its versions.

    :param address: the path of a unix socket, or host and port
    :param process: the server
    :param timeout: seconds
    :return: False when it has ended, or was not ready in time
    """
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
            client.settimeout(1.0)
            if client.connect_ex(address) == 0:
                return True
        time.sleep(0.01)
    return False


def open_descriptors() -> int:
    """Count this process's descriptors."""
    return len(os.listdir('/proc/self/fd'))


def open_sockets(*, tidy: bool = False) -> int:
    """Count this process's sockets. (Event loops open this and that besides, when they please.)

    :param tidy: not those that earlier tests left to the garbage collector
    """
    if tidy:
        gc.collect()
    count = 0
    for fd in os.listdir('/proc/self/fd'):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f'/proc/self/fd/{fd}').startswith('socket:')
    return count


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


def link_local_address() -> str:
    """Return an IPv6 address of this host with a scope; skip without."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path('/proc/net/if_inet6').read_text().splitlines():
            address, _, _, scope, _, name = line.split()
            if scope == '20':
                return f'{IPv6Address(int(address, 16))}%{name}'
    pytest.skip('no link-local address here')


class Service:
    """Serves a socket: each connection is prepared in a thread of its own, and handed to the test by `peer`.

    :param prepare: what to do with each connection; returns the test's end of it, or nothing
    :param listener: where; by default any port of 127.0.0.1
    """

    def __init__(
        self,
        prepare: Callable[[socket.socket], socket.socket | None] = lambda sock: sock,
        listener: socket.socket | None = None,
    ) -> None:
        self._prepare = prepare
        self._listener = listener or socket.create_server(('127.0.0.1', 0), backlog=256)
        self._peers: queue.Queue[socket.socket] = queue.Queue()
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name='service', daemon=True)
        self._acceptor.start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def endpoint(self) -> tuple[str, int]:
        return '127.0.0.1', self.port

    def peer(self) -> Any:
        """Return the other end of the next connection, when it is prepared."""
        return self._peers.get(timeout=60)

    def shut_down(self) -> None:
        """Close all connections, once what goes on with them has ended: that is for the other end to see to."""
        while self._threads:
            thread = self._threads.pop()
            thread.join(60)
            assert not thread.is_alive(), 'a peer goes on'
        while self._ends:
            self._ends.pop().close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(60)
        self._listener.close()
        self.shut_down()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, sock: socket.socket) -> None:
        try:
            peer = self._prepare(sock)
        except OSError:
            peer = None
        if peer is None:
            sock.close()
        else:
            self._ends.append(peer)
            self._peers.put(peer)


def reset(sock: socket.socket) -> None:
    """Close a connection so that the other end is told that it is broken."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    sock.close()


def garbage(sock: socket.socket) -> None:
    """Send garbage."""
    sock.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n' * 8)


def drip(sock: socket.socket) -> None:
    """Say a long TLS message, byte by byte, as long as the other end listens."""
    sock.sendall(b'\x16\x03\x03\x3f\xff')
    poller = select.poll()
    poller.register(sock, select.POLLRDHUP)
    while not poller.poll(10):
        sock.sendall(b'\x02')
    sock.close()


@functools.cache
def authority(name: str) -> Any:
    """A certificate authority."""
    return driver('trustme').CA()


@functools.cache
def server_context(
    *names: str,
    issuer: str = 'good',
    expired: bool = False,
    version: ssl.TLSVersion | None = None,
    alpn: str = '',
) -> ssl.SSLContext:
    """A server's TLS context, with a certificate for some names."""
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    validity = {'not_before': yesterday - datetime.timedelta(days=1), 'not_after': yesterday} if expired else {}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority(issuer).issue_cert(*(names or ('localhost', '127.0.0.1')), **validity).configure_cert(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if alpn:
        context.set_alpn_protocols([alpn])
    return context


def client_context() -> ssl.SSLContext:
    """A client's TLS context that trusts the good authority."""
    context = ssl.create_default_context()
    authority('good').configure_trust(context)
    return context


def shaking_hands(context: ssl.SSLContext) -> Callable[[socket.socket], socket.socket | None]:
    """A preparation: TLS."""

    def prepare(sock: socket.socket) -> socket.socket | None:
        sock.settimeout(10)
        return context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)

    return prepare


def shaking_hands_but_keeping_tickets(context: ssl.SSLContext) -> Callable[[socket.socket], socket.socket]:
    """A preparation: TLS 1.3, but what the server says after the handshake is left in `sock.tickets` for the test."""

    class Keeper(socket.socket):
        tickets = b''

    def prepare(sock: socket.socket) -> socket.socket:
        keeper = Keeper(fileno=sock.detach())
        keeper.settimeout(10)
        heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(heard, said, server_side=True)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                keeper.sendall(said.read())
                heard.write(keeper.recv(65536))
        keeper.tickets = said.read()
        return keeper

    return prepare


def is_uvloops_own(context: dict[str, Any]) -> bool:
    """Tell whether a complaint is about what uvloop does when it is cancelled in the very turn in which it begins a
    handshake: go on with it, on a transport that it has closed."""
    return 'SSL protocol' in context['message'] and 'the handler is closed' in str(context.get('exception'))


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an `async def` test on asyncio's event loop and on uvloop's. Whatever one of them has to complain of is an
    error."""

    @pytest.mark.parametrize('loop_of', ['asyncio', 'uvloop'])
    @functools.wraps(test)
    def wrapper(*args: Any, loop_of: str, **kwargs: Any) -> None:
        complaints: list[Any] = []
        loop = driver(loop_of).new_event_loop()
        loop.set_exception_handler(lambda loop, context: complaints.append(context))
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(asyncio.wait_for(test(*args, **kwargs), 120))
            gc.collect()
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
        assert all(map(is_uvloops_own, complaints)), complaints

    signature = inspect.signature(test)
    choice = inspect.Parameter('loop_of', inspect.Parameter.KEYWORD_ONLY)
    wrapper.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), choice]
    )
    return wrapper


@contextlib.contextmanager
def lasting(seconds: float, *, spare: float = SOON) -> Iterator[None]:
    """Check that something takes as long as it should, and not much longer, but for the time without a core. A timer
    of uvloop, which counts milliseconds, may be early by one."""
    started, starved = time.monotonic(), starvation()
    yield
    took = time.monotonic() - started
    assert seconds - 0.001 <= took < seconds + spare + starvation() - starved, f'took {took:.3f} s'


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
        self._thread.join(60)
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
