"""`check_manager`: sound managers pass; of those that break a promise, each is told by that promise's name."""

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

import pytest

import gcp.asyncio
import gcp.threading
from gcp.testing import AsyncFakeManager, FakeManager, ManagerCheckError, ManagerReport, check_manager, dead

Address = tuple[str, int]
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]

GREETING = b'!'
TIMEOUT = 0.25  # what a step of a broken manager may take


class Server:
    """Greets, and says again what it is told. One thread for all."""

    def __init__(self) -> None:
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.address: Address = self._listener.getsockname()
        self._wake, self._alarm = socket.socketpair()
        self._clients: dict[Address, socket.socket] = {}
        self._thread = threading.Thread(target=self._run, name='echo', daemon=True)
        self._thread.start()

    def kill(self, endpoint: Address, conn: Any) -> None:
        sock = conn[1].get_extra_info('socket') if isinstance(conn, tuple) else conn
        self._clients[sock.getsockname()].shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._alarm.close()
        self._thread.join(10)
        for sock in (self._listener, self._wake, *self._clients.values()):
            sock.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for sock in (self._listener, self._wake):
                selector.register(sock, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._wake:
                        return
                    if key.fileobj is self._listener:
                        client, address = self._listener.accept()
                        self._clients[address] = client
                        selector.register(client, selectors.EVENT_READ, address)
                        self._tell(client, GREETING)
                    elif not self._tell(key.fileobj, self._hear(key.fileobj)):
                        selector.unregister(key.fileobj)
                        self._clients.pop(key.data).close()

    @staticmethod
    def _hear(sock: Any) -> bytes:
        try:
            return sock.recv(1024)  # type: ignore[no-any-return]
        except OSError:
            return b''

    @staticmethod
    def _tell(sock: Any, words: bytes) -> bool:
        try:
            sock.sendall(words)
        except OSError:
            return False
        return words != b''


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
    conn.settimeout(5)
    conn.sendall(b'ping')
    assert conn.recv(4) == b'ping'
    conn.settimeout(None)


async def ask_stream(conn: Pair) -> None:
    reader, writer = conn
    writer.write(b'ping')
    assert await asyncio.wait_for(reader.readexactly(4), 5) == b'ping'


def is_quiet(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return not poller.poll(0)


class Sound(gcp.threading.BaseConnectionManager[Address, socket.socket]):
    """Keeps all promises."""

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


class AsyncSound(gcp.asyncio.BaseConnectionManager[Address, Pair]):
    """Keeps all promises."""

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


# ---- sound ones


def test_a_sound_manager_passes(server: Server, silent: Address, refused: Address) -> None:
    report = check_manager(
        Sound(), server.address, kill=server.kill, use=ask, silent=silent, refused=refused, fork=True)
    assert isinstance(report, ManagerReport)
    assert [check.name for check in report.checks] == [
        'create', 'alive', 'hooks', 'dispose', 'pool', 'death', 'farewell', 'replacement', 'refusal', 'timeout', 'fork',
        'signatures', 'descriptors', 'threads']
    assert report.skipped == ()
    assert str(report).splitlines()[0].startswith(
        f"Sound, ('127.0.0.1', {server.address[1]}): 14 promises kept, 0 not looked at (")
    assert len(str(report).splitlines()) == 15


def test_a_sound_async_manager_passes(server: Server, silent: Address, refused: Address) -> None:
    async def body() -> ManagerReport:
        return await check_manager(
            AsyncSound(), server.address, kill=server.kill, use=ask_stream, silent=silent, refused=refused)

    report = asyncio.run(body())
    assert [check.name for check in report.checks] == [
        'create', 'alive', 'dispose', 'pool', 'death', 'farewell', 'replacement', 'refusal', 'timeout', 'cancellation',
        'loop', 'signatures', 'descriptors', 'threads']
    assert [(skipped.name, skipped.reason) for skipped in report.skipped] == [
        ('hooks', 'the manager has no on_acquire and no on_release')]


def test_what_was_not_given_is_not_looked_at(server: Server) -> None:
    report = check_manager(Sound(), server.address)
    assert {skipped.name: skipped.reason for skipped in report.skipped} == {
        'death': 'there is no kill=',
        'farewell': 'there is no kill=',
        'replacement': 'there is no kill=',
        'refusal': 'there is no refused=',
        'timeout': 'there is no silent=',
        'fork': 'not asked for, with fork=True',
    }


def test_the_doubles_pass() -> None:
    manager, in_tasks = FakeManager(), AsyncFakeManager()
    check_manager(manager, 'db', kill=lambda: manager.check_aliveness.does(dead()))
    asyncio.run(_checked(in_tasks, 'db', kill=lambda: in_tasks.check_aliveness.does(dead())))


async def _checked(manager: Any, endpoint: Any, **options: Any) -> ManagerReport:
    report: ManagerReport = await check_manager(manager, endpoint, **options)
    return report


def test_a_report_shows_no_secrets(server: Server) -> None:
    class Named(Sound):
        def create(self, endpoint: Any, timeout: float | None = None) -> socket.socket:
            return super().create(server.address, timeout)

    report = check_manager(Named(), 'tcp://user:hunter2@host')  # type: ignore[misc]
    assert 'hunter2' not in str(report) + repr(report)
    assert dataclasses.is_dataclass(report)


@pytest.mark.parametrize('kill', ['both', 'conn', 'nothing', 'any', 'async'])
def test_kill_may_take_what_it_likes(server: Server, kill: str) -> None:
    conns: list[socket.socket] = []

    class Noting(Sound):
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
    report = check_manager(Noting(), server.address, kill=kills[kill])
    assert {'death', 'farewell'} <= {check.name for check in report.checks}


# ---- broken ones: a manager, and the promises that it breaks


class SameTwice(Sound):
    conn: socket.socket | None = None

    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        if self.conn is None or self.conn.fileno() < 0:
            self.conn = super().create(endpoint, timeout)
        return self.conn


class ReturnsNothing(Sound):
    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        super().create(endpoint, timeout).close()
        return None  # type: ignore[return-value]


class Fails(Sound):
    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        raise ConnectionRefusedError('not today')


class TakesNoTimeout(Sound):
    def create(self, endpoint: Address) -> socket.socket:  # type: ignore[override]
        return super().create(endpoint)


class NamesItOtherwise(Sound):
    def dispose(  # type: ignore[override]
            self, endpoint: Address, conn: socket.socket, seconds: float | None = None,
    ) -> None:
        conn.close()


class ForgetsReturn(Sound):
    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        is_quiet(conn.fileno())
        return None  # type: ignore[return-value]


class ChecksOnce(Sound):
    """Its check uses the connection up."""

    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        if not is_quiet(conn.fileno()):
            return False
        conn.sendall(b'?')
        return True


class EndsWhatItChecks(Sound):
    """A half-close cannot be seen on this side."""

    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        try:
            conn.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        return True


class ChecksNothing(gcp.threading.BaseConnectionManager[Address, socket.socket]):
    create = Sound.create
    dispose = Sound.dispose


class BelievesAll(Sound):
    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        return True


class RaisesWhenDead(Sound):
    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        if not is_quiet(conn.fileno()):
            raise ConnectionResetError('gone')
        return True


class Revives(Sound):
    """Finds out by reading, and forgets."""

    def __init__(self) -> None:
        self.dead: set[int] = set()

    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        if is_quiet(conn.fileno()) or id(conn) in self.dead:
            return True
        self.dead.add(id(conn))
        return False


class MournsAloud(Sound):
    def on_connection_dead(self, endpoint: Address, conn: socket.socket) -> None:
        raise RuntimeError('it is dead')


class AcquireFails(Sound):
    def on_acquire(self, endpoint: Address, conn: socket.socket) -> None:
        raise RuntimeError('not you')


class ReleaseEndsIt(Sound):
    def on_release(self, endpoint: Address, conn: socket.socket) -> None:
        conn.shutdown(socket.SHUT_RDWR)


class DisposeRaises(Sound):
    def dispose(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> None:
        conn.close()
        raise RuntimeError('bye')


class SaysGoodbye(Sound):
    """Waits for the answer to a goodbye."""

    def dispose(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> None:
        try:
            conn.sendall(b'bye')
            if conn.recv(3) == b'':
                raise ConnectionResetError('no goodbye')
        finally:
            conn.close()


class WaitsForGoodbye(Sound):
    gate = threading.Event()

    def dispose(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> None:
        if not is_quiet(conn.fileno()):
            self.gate.wait(10)
        conn.close()


class DisposesOfNothing(Sound):
    kept: ClassVar[list[socket.socket]] = []

    def dispose(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> None:
        self.kept.append(conn)


class LeaksWhenChecked(Sound):
    def check_aliveness(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> bool:
        DisposesOfNothing.kept.append(conn.dup())
        return super().check_aliveness(endpoint, conn, timeout)


class LeaksWhenRefused(Sound):
    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        spare = socket.socket()
        DisposesOfNothing.kept.append(spare)
        conn = super().create(endpoint, timeout)
        spare.close()
        return conn


class AcceptsRefusal(Sound):
    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        try:
            return super().create(endpoint, timeout)
        except ConnectionRefusedError:
            return socket.socket()


class HasAllTheTime(Sound):
    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        return super().create(endpoint, 3)


class RaisesWrongError(Sound):
    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        try:
            return super().create(endpoint, timeout)
        except TimeoutError:
            raise RuntimeError('too late') from None


class LeavesThread(Sound):
    gate = threading.Event()

    def create(self, endpoint: Address, timeout: float | None = None) -> socket.socket:
        threading.Thread(target=self.gate.wait, args=(20,), name='heartbeat', daemon=True).start()
        return super().create(endpoint, timeout)


class ShutsDown(Sound):
    """Says goodbye on behalf of its parent."""

    def dispose(self, endpoint: Address, conn: socket.socket, timeout: float | None = None) -> None:
        try:
            conn.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        conn.close()


class HalfAsync(Sound):
    async def check_aliveness(  # type: ignore[override]
            self, endpoint: Address, conn: socket.socket, timeout: float | None = None,
    ) -> bool:
        return True


@pytest.fixture
def swept() -> Iterator[None]:
    yield
    for conn in DisposesOfNothing.kept:
        conn.close()
    DisposesOfNothing.kept.clear()
    for gate in (LeavesThread.gate, WaitsForGoodbye.gate):
        gate.set()
        gate.clear()


def breaches(caught: pytest.ExceptionInfo[ManagerCheckError]) -> dict[str, str]:
    return {breach.name: breach.observed for breach in caught.value.breaches}


@pytest.mark.usefixtures('swept')
@pytest.mark.parametrize(
    ('manager', 'told'),
    [
        (SameTwice(), {'create': 'create returned the same connection twice'}),
        (ReturnsNothing(), {'create': 'create returned None'}),
        (Fails(), {'create': "create raised ConnectionRefusedError('not today') at "}),
        (TakesNoTimeout(), {'signatures': 'cannot be called with (endpoint, timeout)'}),
        (NamesItOtherwise(), {'signatures': 'cannot be called with (endpoint, conn, timeout)'}),
        (ForgetsReturn(), {'alive': 'check number 1 of a fresh connection returned None'}),
        (ChecksOnce(), {'alive': 'check number'}),
        (EndsWhatItChecks(), {'alive': 'use(), after the checks, raised'}),
        (ChecksNothing(), {'death': 'the manager has no check_aliveness'}),
        (BelievesAll(), {'death': f'still said that it is alive {TIMEOUT:g} s after kill()'}),
        (RaisesWhenDead(), {'death': "check_aliveness raised ConnectionResetError('gone')"}),
        (Revives(), {'death': 'check_aliveness said dead, and then alive'}),
        (MournsAloud(), {'death': "on_connection_dead raised RuntimeError('it is dead')"}),
        (AcquireFails(), {'hooks': "on_acquire raised RuntimeError('not you')"}),
        (ReleaseEndsIt(), {'hooks': 'the connection is dead after on_acquire and on_release'}),
        (DisposeRaises(), {'dispose': "dispose raised RuntimeError('bye')", 'farewell': "RuntimeError('bye')"}),
        (SaysGoodbye(), {'farewell': 'dispose raised '}),
        (WaitsForGoodbye(), {
            'farewell': f'dispose had not returned after {2 * TIMEOUT:.1f} s', 'descriptors': "look at 'death'"}),
        (DisposesOfNothing(), {'descriptors': "3 more after the look at 'create': "}),
        (LeaksWhenChecked(), {'descriptors': "more after the look at 'alive': "}),
        (LeaksWhenRefused(), {'descriptors': "20 more after the look at 'refusal': "}),
        (AcceptsRefusal(), {'refusal': 'create returned a connection from an endpoint that refuses'}),
        (HasAllTheTime(), {
            'timeout': 'create was given 0.2 s and had not returned after 1.4 s', 'descriptors': "look at 'timeout'"}),
        (RaisesWrongError(), {'timeout': "create raised RuntimeError('too late') when its time was over"}),
        (LeavesThread(), {'threads': "more after the look at 'create': heartbeat"}),
        (ShutsDown(), {'fork': "the parent's connection is dead after its disposal in the child"}),
        (HalfAsync(), {'signatures': 'check_aliveness returned a coroutine, which the threading pool does not await'}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_manager_is_told_by_the_promise(
        server: Server, silent: Address, refused: Address, manager: Any, told: dict[str, str],
) -> None:
    with pytest.raises(ManagerCheckError) as caught:
        check_manager(
            manager, server.address, kill=server.kill, use=ask, refused=refused, timeout=TIMEOUT,
            fork='fork' in told, **({'silent': silent} if 'timeout' in told else {}))
    found = breaches(caught)
    assert {name: found.get(name) for name in told} == found, str(caught.value)
    assert all(words in found[name] for name, words in told.items()), str(caught.value)


class PlainFunction(AsyncSound):
    def check_aliveness(self, endpoint: Address, conn: Pair) -> bool:  # type: ignore[override]
        return not conn[0].at_eof()


class TakesTimeout(AsyncSound):
    async def create(self, endpoint: Address, timeout: float) -> Pair:  # type: ignore[override]
        return await super().create(endpoint)


class Sleeps(AsyncSound):
    async def check_aliveness(self, endpoint: Address, conn: Pair) -> bool:
        time.sleep(0.001)
        return await super().check_aliveness(endpoint, conn)


class SleepsAtTheEnd(AsyncSound):
    async def dispose(self, endpoint: Address, conn: Pair) -> None:
        time.sleep(0.001)
        await super().dispose(endpoint, conn)


class ReadsBlocking(AsyncSound):
    """Would wait for ever, were it let."""

    async def check_aliveness(self, endpoint: Address, conn: Pair) -> bool:
        with socket.socket(fileno=os.dup(conn[1].get_extra_info('socket').fileno())) as sock:
            sock.settimeout(3600)
            try:
                return sock.recv(1, socket.MSG_PEEK) != b''
            except Exception:
                return False


class ConnectsBlocking(AsyncSound):
    async def create(self, endpoint: Address) -> Pair:
        with socket.socket() as sock:
            sock.connect(endpoint)
        return await super().create(endpoint)


class Stalls(AsyncSound):
    """Blocks in a call that cannot be known by its name."""

    async def on_release(self, endpoint: Address, conn: Pair) -> None:
        select.select([], [], [], 0.6)


class LeaksWhenCancelled(AsyncSound):
    kept: ClassVar[list[Any]] = []

    async def create(self, endpoint: Address) -> Pair:
        reader, writer = await asyncio.open_connection(*endpoint)
        self.kept.append(writer)
        if await reader.read(1) != GREETING:
            raise ConnectionError('no greeting')
        return reader, writer


class LeaksWhenDisposalIsCancelled(AsyncSound):
    async def dispose(self, endpoint: Address, conn: Pair) -> None:
        LeaksWhenCancelled.kept.append(conn[1])
        await asyncio.sleep(0)
        conn[1].close()


class WillNotEnd(AsyncSound):
    async def create(self, endpoint: Address) -> Pair:
        try:
            return await super().create(endpoint)
        except asyncio.CancelledError:
            await asyncio.sleep(5)
            raise


@pytest.mark.parametrize(
    ('manager', 'told'),
    [
        (PlainFunction(), {'signatures': 'check_aliveness returned bool, which the asyncio pool cannot await'}),
        (TakesTimeout(), {'signatures': 'cannot be called with (endpoint)'}),
        (Sleeps(), {'loop': f'check_aliveness calls time.sleep at {__file__}:'}),
        (SleepsAtTheEnd(), {'loop': f'dispose calls time.sleep at {__file__}:'}),
        (ReadsBlocking(), {'loop': 'check_aliveness calls recv of a blocking socket at '}),
        (ConnectsBlocking(), {'loop': 'create calls connect of a blocking socket at '}),
        (Stalls(), {'loop': 'on_release held the event loop for 0.6 s'}),
        (LeaksWhenCancelled(), {'descriptors': "after the look at 'cancellation': "}),
        (LeaksWhenDisposalIsCancelled(), {'descriptors': "1 more after the look at 'cancellation': "}),
        (WillNotEnd(), {'timeout': 'had not ended 1.0 s later', 'cancellation': 'and did not end'}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_async_manager_is_told_by_the_promise(
        server: Server, silent: Address, refused: Address, manager: Any, told: dict[str, str],
) -> None:
    async def body() -> None:
        with pytest.raises(ManagerCheckError) as caught:
            await check_manager(
                manager, server.address, kill=server.kill, use=ask_stream, refused=refused, timeout=TIMEOUT,
                **({'silent': silent} if 'timeout' in told else {}))
        found = breaches(caught)
        assert {name: found.get(name) for name in told} == found, str(caught.value)
        assert all(words in found[name] for name, words in told.items()), str(caught.value)
        for writer in LeaksWhenCancelled.kept:
            writer.transport.abort()
        LeaksWhenCancelled.kept.clear()
        await asyncio.sleep(0)

    asyncio.run(body())


def test_an_error_says_what_was_seen_and_how_to_mend_it(server: Server) -> None:
    class Both(BelievesAll, DisposeRaises):
        pass

    with pytest.raises(ManagerCheckError) as caught:
        check_manager(Both(), server.address, kill=server.kill, timeout=TIMEOUT)
    assert isinstance(caught.value, AssertionError)
    assert [breach.name for breach in caught.value.breaches] == ['dispose', 'death', 'farewell']
    lines = str(caught.value).splitlines()
    assert lines[:2] == ['Both breaks 3 promises:', '  dispose: dispose closes a healthy connection']
    assert lines[2].startswith("    observed: dispose raised RuntimeError('bye') at ")
    assert lines[3] == '    mend: close the connection, within its time'
    assert 'alive' in {check.name for check in caught.value.report.checks}


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        ({'manager': Sound}, TypeError, 'an instance, not the class Sound: call it'),
        ({'manager': object()}, TypeError, 'object has no create'),
        ({'kill': 'me'}, TypeError, 'kill: a function was expected, not str'),
        ({'use': lambda a, b, c: None}, TypeError, r'use: a function of \(endpoint, conn\), of \(conn\) or of nothing'),
        ({'timeout': 0}, ValueError, 'timeout must be a positive number of seconds, not 0'),
        ({'timeout': '5'}, TypeError, 'timeout'),
        ({'count': 0}, ValueError, 'count must be at least 1, not 0'),
    ],
)
def test_a_bad_argument_is_told(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check_manager(**{'manager': Sound(), 'endpoint': ('127.0.0.1', 1), **arguments})
