"""`check_manager`: correct managers pass all rules; for a broken manager, the report names the rules that it breaks."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from weakref import WeakSet

import pytest
from starvation import SOON

import gcp.asyncio
import gcp.threading
from gcp.testing import AsyncFakeManager, FakeManager, ManagerCheckError, ManagerReport, check_manager, dead

Address = tuple[str, int]
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]

GREETING = b'!'
TIMEOUT = 2.0  # how long a hook of a broken manager may take, seconds
LONG = 30.0  # the same where no rule waits for all of it


def time_of(expected: dict[str, str]) -> float:
    """Return how long a hook of a broken manager may take: long, unless that is how long the test takes."""
    waits = expected.keys() & {'descriptors', 'threads', 'timeout', 'check_healthy'}
    return TIMEOUT if waits or 'still' in expected.get('check_dead', '') else LONG


class Server:
    """Sends a greeting, and echoes what it receives. One thread serves all clients."""

    def __init__(self) -> None:
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.address: Address = self._listener.getsockname()
        self._stop_reader, self._stop_writer = socket.socketpair()
        self._clients: dict[Address, socket.socket] = {}
        self._thread = threading.Thread(target=self._run, name='echo', daemon=True)
        self._thread.start()

    def kill(self, endpoint: Address, conn: Any) -> None:
        sock = conn[1].get_extra_info('socket') if isinstance(conn, tuple) else conn
        self._clients[sock.getsockname()].shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._stop_writer.close()
        self._thread.join(60)
        for sock in (self._listener, self._stop_reader, *self._clients.values()):
            sock.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for sock in (self._listener, self._stop_reader):
                selector.register(sock, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._stop_reader:
                        return
                    if key.fileobj is self._listener:
                        client, address = self._listener.accept()
                        self._clients[address] = client
                        selector.register(client, selectors.EVENT_READ, address)
                        self._send(client, GREETING)
                    elif not self._send(key.fileobj, self._receive(key.fileobj)):
                        selector.unregister(key.fileobj)
                        self._clients.pop(key.data).close()

    @staticmethod
    def _receive(sock: Any) -> bytes:
        try:
            return sock.recv(1024)  # type: ignore[no-any-return]
        except OSError:
            return b''

    @staticmethod
    def _send(sock: Any, data: bytes) -> bool:
        try:
            sock.sendall(data)
        except OSError:
            return False
        return data != b''


@pytest.fixture(scope='module')
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope='module')
def silent() -> Iterator[Address]:
    with socket.create_server(('127.0.0.1', 0), backlog=100) as listener:
        yield listener.getsockname()


@pytest.fixture(scope='module')
def refused() -> Address:
    with socket.create_server(('127.0.0.1', 0)) as listener:
        address: Address = listener.getsockname()
    return address


def ask(conn: socket.socket) -> None:
    conn.settimeout(60)
    conn.sendall(b'ping')
    assert conn.recv(4) == b'ping'
    conn.settimeout(None)


async def ask_stream(conn: Pair) -> None:
    reader, writer = conn
    writer.write(b'ping')
    assert await asyncio.wait_for(reader.readexactly(4), 60) == b'ping'


def is_quiet(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return not poller.poll(0)


class Correct(gcp.threading.BaseConnectionManager[Address, socket.socket]):
    """Follows all rules."""

    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        conn = socket.create_connection(endpoint, timeout)
        try:
            if conn.recv(1) != GREETING:
                raise ConnectionError('no greeting')
            conn.settimeout(None)
        except BaseException:
            conn.close()
            raise
        return conn

    def dispose(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> None:
        conn.close()

    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        return is_quiet(conn.fileno())

    def on_acquire(self, endpoint: Address, conn: socket.socket) -> None:
        assert is_quiet(conn.fileno())

    def on_release(self, endpoint: Address, conn: socket.socket) -> None:
        assert is_quiet(conn.fileno())

    def on_connection_dead(self, endpoint: Address, conn: socket.socket) -> None:
        pass


class AsyncCorrect(gcp.asyncio.BaseConnectionManager[Address, Pair]):
    """Follows all rules."""

    async def create(self, endpoint: Address) -> Pair:
        reader, writer = await asyncio.open_connection(*endpoint)
        try:
            if await reader.read(1) != GREETING:
                raise ConnectionError('no greeting')
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def dispose(self, endpoint: Address, conn: Pair) -> None:
        conn[1].close()

    async def check_aliveness(self, endpoint: Address, conn: Pair) -> bool:
        return not conn[0].at_eof() and not conn[1].is_closing()


# --- correct managers ---


def test_a_correct_manager_passes(server: Server, silent: Address, refused: Address) -> None:
    report = check_manager(
        Correct(), server.address, kill=server.kill, use=ask, silent=silent, refused=refused, fork=True
    )
    assert isinstance(report, ManagerReport)
    assert [check.name for check in report.passed] == [
        'create',
        'check_healthy',
        'hooks',
        'dispose',
        'pool',
        'check_dead',
        'dispose_dead',
        'replacement',
        'refusal',
        'timeout',
        'fork',
        'signatures',
        'descriptors',
        'threads',
    ]
    assert report.skipped == ()
    assert (
        str(report)
        .splitlines()[0]
        .startswith(f"Correct, ('127.0.0.1', {server.address[1]}): 14 rules passed, 0 skipped (")
    )
    assert len(str(report).splitlines()) == 15


def test_a_correct_async_manager_passes(server: Server, silent: Address, refused: Address) -> None:
    async def body() -> ManagerReport:
        return await check_manager(
            AsyncCorrect(), server.address, kill=server.kill, use=ask_stream, silent=silent, refused=refused
        )

    report = asyncio.run(body())
    assert [check.name for check in report.passed] == [
        'create',
        'check_healthy',
        'dispose',
        'pool',
        'check_dead',
        'dispose_dead',
        'replacement',
        'refusal',
        'timeout',
        'cancellation',
        'event_loop',
        'signatures',
        'descriptors',
        'threads',
    ]
    assert [(skipped.name, skipped.reason) for skipped in report.skipped] == [
        ('hooks', 'the manager has no on_acquire and no on_release')
    ]


def test_rules_without_their_argument_are_skipped(server: Server) -> None:
    report = check_manager(Correct(), server.address)
    assert {skipped.name: skipped.reason for skipped in report.skipped} == {
        'check_dead': 'kill= was not given',
        'dispose_dead': 'kill= was not given',
        'replacement': 'kill= was not given',
        'refusal': 'refused= was not given',
        'timeout': 'silent= was not given',
        'fork': 'fork=True was not given',
    }


def test_the_fake_managers_pass() -> None:
    manager, in_tasks = FakeManager(), AsyncFakeManager()
    check_manager(manager, 'db', kill=lambda: manager.check_aliveness.does(dead()))
    asyncio.run(_checked(in_tasks, 'db', kill=lambda: in_tasks.check_aliveness.does(dead())))


async def _checked(manager: Any, endpoint: Any, **options: Any) -> ManagerReport:
    report: ManagerReport = await check_manager(manager, endpoint, **options)
    return report


def test_a_report_shows_no_credentials(server: Server) -> None:
    class Named(Correct):
        def create(self, endpoint: Any, timeout: float | None = None) -> socket.socket:
            return super().create(server.address, timeout)

    report = check_manager(Named(), 'tcp://user:hunter2@host')  # type: ignore[misc]
    assert 'hunter2' not in str(report) + repr(report)
    assert dataclasses.is_dataclass(report)


@pytest.mark.parametrize('kill', ['both', 'conn', 'nothing', 'any', 'async'])
def test_kill_may_take_any_of_the_arguments(server: Server, kill: str) -> None:
    conns: list[socket.socket] = []

    class Recording(Correct):
        def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
            conns.append(super().create(endpoint, timeout))
            return conns[-1]

    async def later(endpoint: Address, conn: socket.socket) -> None:
        await asyncio.sleep(0)
        server.kill(endpoint, conn)

    def kill_all() -> None:
        for conn in conns:
            if conn.fileno() >= 0:
                server.kill(server.address, conn)

    kills: dict[str, Callable[..., object]] = {
        'both': server.kill,
        'conn': lambda conn, server=server: server.kill(server.address, conn),
        'nothing': kill_all,
        'any': lambda *arguments: server.kill(*arguments),
        'async': later,
    }
    report = check_manager(Recording(), server.address, kill=kills[kill])
    assert {'check_dead', 'dispose_dead'} <= {check.name for check in report.passed}


# --- broken managers, and the rules that each breaks ---


class SameTwice(Correct):
    conn: socket.socket | None = None

    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        if self.conn is None or self.conn.fileno() < 0:
            self.conn = super().create(endpoint, timeout)
        return self.conn


class ReturnsNothing(Correct):
    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        super().create(endpoint, timeout).close()
        return None  # type: ignore[return-value]


class Fails(Correct):
    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        raise ConnectionRefusedError('not today')


class TakesNoTimeout(Correct):
    def create(self, endpoint: Address) -> socket.socket:  # type: ignore[override]
        return super().create(endpoint)


class NamesItOtherwise(Correct):
    def dispose(  # type: ignore[override]
        self,
        endpoint: Address,
        conn: socket.socket,
        seconds: float | None = None,
    ) -> None:
        conn.close()


class ForgetsReturn(Correct):
    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        is_quiet(conn.fileno())
        return None  # type: ignore[return-value]


class ChecksOnce(Correct):
    """Its check makes the connection unusable."""

    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        if not is_quiet(conn.fileno()):
            return False
        conn.sendall(b'?')
        return True


class EndsWhatItChecks(Correct):
    """A half-close cannot be seen on this side."""

    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        try:
            conn.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        return True


class ChecksNothing(gcp.threading.BaseConnectionManager[Address, socket.socket]):
    create = Correct.create
    dispose = Correct.dispose


class BelievesAll(Correct):
    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        return True


class RaisesWhenDead(Correct):
    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        if not is_quiet(conn.fileno()):
            raise ConnectionResetError('gone')
        return True


class Revives(Correct):
    """Reports a connection as dead only once."""

    def __init__(self) -> None:
        self.dead: WeakSet[socket.socket] = WeakSet()

    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        if is_quiet(conn.fileno()) or conn in self.dead:
            return True
        self.dead.add(conn)
        return False


class DeadHookRaises(Correct):
    def on_connection_dead(self, endpoint: Address, conn: socket.socket) -> None:
        raise RuntimeError('it is dead')


class AcquireFails(Correct):
    def on_acquire(self, endpoint: Address, conn: socket.socket) -> None:
        raise RuntimeError('not you')


class ReleaseEndsIt(Correct):
    def on_release(self, endpoint: Address, conn: socket.socket) -> None:
        conn.shutdown(socket.SHUT_RDWR)


class DisposeRaises(Correct):
    def dispose(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> None:
        conn.close()
        raise RuntimeError('bye')


class SendsClosingMessage(Correct):
    """Sends a closing message, and expects an answer."""

    def dispose(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> None:
        try:
            conn.sendall(b'bye')
            if conn.recv(3) == b'':
                raise ConnectionResetError('no answer')
        finally:
            conn.close()


class WaitsForThePeer(Correct):
    gate = threading.Event()

    def dispose(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> None:
        if not is_quiet(conn.fileno()):
            self.gate.wait(60)
        conn.close()


class DisposesOfNothing(Correct):
    kept: ClassVar[list[socket.socket]] = []

    def dispose(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> None:
        self.kept.append(conn)


class LeaksWhenChecked(Correct):
    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        DisposesOfNothing.kept.append(conn.dup())
        return super().check_aliveness(endpoint, conn, timeout)


class LeaksWhenRefused(Correct):
    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        spare = socket.socket()
        DisposesOfNothing.kept.append(spare)
        conn = super().create(endpoint, timeout)
        spare.close()
        return conn


class AcceptsRefusal(Correct):
    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        try:
            return super().create(endpoint, timeout)
        except ConnectionRefusedError:
            return socket.socket()


class HasAllTheTime(Correct):
    gate = threading.Event()

    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        conn = socket.create_connection(endpoint)
        while is_quiet(conn.fileno()):
            if self.gate.wait(0.01):
                conn.close()
                raise TimeoutError
        assert conn.recv(1) == GREETING
        return conn


class RaisesWrongError(Correct):
    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        try:
            return super().create(endpoint, timeout)
        except TimeoutError:
            raise RuntimeError('too late') from None


class LeavesThread(Correct):
    gate = threading.Event()

    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        threading.Thread(target=self.gate.wait, args=(20,), name='heartbeat', daemon=True).start()
        return super().create(endpoint, timeout)


class ShutsDown(Correct):
    """Shuts down the connection of its parent."""

    def dispose(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> None:
        try:
            conn.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        conn.close()


class HalfAsync(Correct):
    async def check_aliveness(  # type: ignore[override]
        self,
        endpoint: Address,
        conn: socket.socket,
        timeout: float | None = None,
    ) -> bool:
        return True


GATES = (HasAllTheTime.gate, LeavesThread.gate, WaitsForThePeer.gate)


@pytest.fixture
def closed_afterwards() -> Iterator[None]:
    yield
    for conn in DisposesOfNothing.kept:
        conn.close()
    DisposesOfNothing.kept.clear()
    for gate in GATES:
        gate.set()
    for thread in threading.enumerate():  # they close connections now; that must not be during the next test
        if thread.name in ('gcp-check', 'heartbeat'):
            thread.join(SOON)
    for gate in GATES:
        gate.clear()


def broken_rules(caught: pytest.ExceptionInfo[ManagerCheckError]) -> dict[str, str]:
    return {broken.name: broken.observed for broken in caught.value.broken}


@pytest.mark.usefixtures('closed_afterwards')
@pytest.mark.parametrize(
    ('manager', 'expected'),
    [
        (SameTwice(), {'create': 'create returned the same connection twice'}),
        (ReturnsNothing(), {'create': 'create returned None'}),
        (Fails(), {'create': "create raised ConnectionRefusedError('not today') at "}),
        (TakesNoTimeout(), {'signatures': 'cannot be called with (endpoint, timeout)'}),
        (NamesItOtherwise(), {'signatures': 'cannot be called with (endpoint, conn, timeout)'}),
        (ForgetsReturn(), {'check_healthy': 'check number 1 of a new connection returned None'}),
        (ChecksOnce(), {'check_healthy': 'check number'}),
        (EndsWhatItChecks(), {'check_healthy': 'use(), after the checks, raised'}),
        (ChecksNothing(), {'check_dead': 'the manager has no check_aliveness'}),
        (BelievesAll(), {'check_dead': f'still returned True {TIMEOUT:g} s after kill()'}),
        (RaisesWhenDead(), {'check_dead': "check_aliveness raised ConnectionResetError('gone')"}),
        (Revives(), {'check_dead': 'check_aliveness returned False, and then True'}),
        (DeadHookRaises(), {'check_dead': "on_connection_dead raised RuntimeError('it is dead')"}),
        (AcquireFails(), {'hooks': "on_acquire raised RuntimeError('not you')"}),
        (ReleaseEndsIt(), {'hooks': 'the connection is dead after on_acquire and on_release'}),
        (DisposeRaises(), {'dispose': "dispose raised RuntimeError('bye')", 'dispose_dead': "RuntimeError('bye')"}),
        (SendsClosingMessage(), {'dispose_dead': 'dispose raised '}),
        (
            WaitsForThePeer(),
            {
                'dispose_dead': f'dispose had not returned after {2 * TIMEOUT:.1f} s',
                'descriptors': "after rule 'check_dead'",
            },
        ),
        (DisposesOfNothing(), {'descriptors': "more after rule 'create': "}),
        (LeaksWhenChecked(), {'descriptors': "more after rule 'check_healthy': "}),
        (LeaksWhenRefused(), {'descriptors': "20 more after rule 'refusal': "}),
        (AcceptsRefusal(), {'refusal': 'create returned a connection from an endpoint that refuses'}),
        (
            HasAllTheTime(),
            {
                'timeout': 'create was given 0.2 s and had not returned after 1.4 s',
                'descriptors': "after rule 'timeout'",
            },
        ),
        (RaisesWrongError(), {'timeout': "create raised RuntimeError('too late') when its time was over"}),
        (LeavesThread(), {'threads': "more after rule 'create': heartbeat"}),
        (ShutsDown(), {'fork': "the parent's connection is dead after its disposal in the child"}),
        (HalfAsync(), {'signatures': 'check_aliveness returned a coroutine, which the threading pool does not await'}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_manager_is_reported_by_the_rule(
    server: Server,
    silent: Address,
    refused: Address,
    manager: Any,
    expected: dict[str, str],
) -> None:
    with pytest.raises(ManagerCheckError) as caught:
        check_manager(
            manager,
            server.address,
            kill=server.kill,
            use=ask,
            refused=refused,
            timeout=time_of(expected),
            fork='fork' in expected,
            **({'silent': silent} if 'timeout' in expected else {}),
        )
    found = broken_rules(caught)
    assert {name: found.get(name) for name in expected} == found, str(caught.value)
    assert all(words in found[name] for name, words in expected.items()), str(caught.value)


class PlainFunction(AsyncCorrect):
    def check_aliveness(self, endpoint: Address, conn: Pair) -> bool:  # type: ignore[override]
        return not conn[0].at_eof()


class TakesTimeout(AsyncCorrect):
    async def create(self, endpoint: Address, timeout: float) -> Pair:  # type: ignore[override]
        return await super().create(endpoint)


class Sleeps(AsyncCorrect):
    async def check_aliveness(self, endpoint: Address, conn: Pair) -> bool:
        time.sleep(0.001)
        return await super().check_aliveness(endpoint, conn)


class SleepsAtTheEnd(AsyncCorrect):
    async def dispose(self, endpoint: Address, conn: Pair) -> None:
        time.sleep(0.001)
        await super().dispose(endpoint, conn)


class ReadsBlocking(AsyncCorrect):
    """Would block for an hour."""

    async def check_aliveness(self, endpoint: Address, conn: Pair) -> bool:
        with socket.socket(fileno=os.dup(conn[1].get_extra_info('socket').fileno())) as sock:
            sock.settimeout(3600)
            try:
                return sock.recv(1, socket.MSG_PEEK) != b''
            except Exception:
                return False


class ConnectsBlocking(AsyncCorrect):
    async def create(self, endpoint: Address) -> Pair:
        with socket.socket() as sock:
            sock.connect(endpoint)
        return await super().create(endpoint)


class Stalls(AsyncCorrect):
    """Blocks in a function that is not in the list of blocking methods."""

    async def on_release(self, endpoint: Address, conn: Pair) -> None:
        select.select([], [], [], 0.6)


class LeaksWhenCancelled(AsyncCorrect):
    kept: ClassVar[list[Any]] = []

    async def create(self, endpoint: Address) -> Pair:
        reader, writer = await asyncio.open_connection(*endpoint)
        self.kept.append(writer)
        if await reader.read(1) != GREETING:
            raise ConnectionError('no greeting')
        return reader, writer


class LeaksWhenDisposalIsCancelled(AsyncCorrect):
    async def dispose(self, endpoint: Address, conn: Pair) -> None:
        LeaksWhenCancelled.kept.append(conn[1])
        await asyncio.sleep(0)
        conn[1].close()


class WillNotEnd(AsyncCorrect):
    async def create(self, endpoint: Address) -> Pair:
        try:
            return await super().create(endpoint)
        except asyncio.CancelledError:
            await asyncio.sleep(60)
            raise


@pytest.mark.parametrize(
    ('manager', 'expected'),
    [
        (PlainFunction(), {'signatures': 'check_aliveness returned bool, which the asyncio pool cannot await'}),
        (TakesTimeout(), {'signatures': 'cannot be called with (endpoint)'}),
        (Sleeps(), {'event_loop': f'check_aliveness calls time.sleep at {__file__}:'}),
        (SleepsAtTheEnd(), {'event_loop': f'dispose calls time.sleep at {__file__}:'}),
        (ReadsBlocking(), {'event_loop': 'check_aliveness calls recv of a blocking socket at '}),
        (ConnectsBlocking(), {'event_loop': 'create calls connect of a blocking socket at '}),
        (Stalls(), {'event_loop': 'on_release held the event loop for '}),
        (LeaksWhenCancelled(), {'descriptors': "after rule 'cancellation': "}),
        (LeaksWhenDisposalIsCancelled(), {'descriptors': "1 more after rule 'cancellation': "}),
        (
            WillNotEnd(),
            {'timeout': 'create was cancelled after 0.2 s and had not ended ', 'cancellation': 'and did not end'},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_async_manager_is_reported_by_the_rule(
    server: Server,
    silent: Address,
    refused: Address,
    manager: Any,
    expected: dict[str, str],
) -> None:
    async def body() -> None:
        with pytest.raises(ManagerCheckError) as caught:
            await check_manager(
                manager,
                server.address,
                kill=server.kill,
                use=ask_stream,
                refused=refused,
                timeout=time_of(expected),
                **({'silent': silent} if 'timeout' in expected else {}),
            )
        found = broken_rules(caught)
        assert {name: found.get(name) for name in expected} == found, str(caught.value)
        assert all(words in found[name] for name, words in expected.items()), str(caught.value)
        for writer in LeaksWhenCancelled.kept:
            writer.transport.abort()
        LeaksWhenCancelled.kept.clear()
        await asyncio.sleep(0)

    asyncio.run(body())


def test_an_error_says_what_was_observed_and_how_to_fix_it(server: Server) -> None:
    class Both(BelievesAll, DisposeRaises):
        pass

    with pytest.raises(ManagerCheckError) as caught:
        check_manager(Both(), server.address, kill=server.kill, timeout=TIMEOUT)
    assert isinstance(caught.value, AssertionError)
    assert [broken.name for broken in caught.value.broken] == ['dispose', 'check_dead', 'dispose_dead']
    lines = str(caught.value).splitlines()
    assert lines[:2] == ['Both breaks 3 rules:', '  dispose: dispose closes a healthy connection']
    assert lines[2].startswith("    observed: dispose raised RuntimeError('bye') at ")
    assert lines[3] == '    fix: close the connection within the time-out'
    assert 'check_healthy' in {check.name for check in caught.value.report.passed}


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        ({'manager': Correct}, TypeError, 'an instance, not the class Correct: call it'),
        ({'manager': object()}, TypeError, 'object has no create'),
        ({'kill': 'me'}, TypeError, "kill must be a function, not str: 'me'"),
        (
            {'use': lambda a, b, c: None},
            TypeError,
            r'use must be a function of \(endpoint, conn\), of \(conn\) or of no argument, not of 3',
        ),
        ({'timeout': 0}, ValueError, 'timeout must be a positive number of seconds, not 0'),
        ({'timeout': '5'}, TypeError, 'timeout'),
        ({'count': 0}, ValueError, 'count must be at least 1, not 0'),
        ({'count': True}, TypeError, 'count must be a whole number, not bool: True'),
        ({'count': '3'}, TypeError, "count must be a whole number, not str: '3'"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check_manager(**{'manager': Correct(), 'endpoint': ('127.0.0.1', 1), **arguments})
