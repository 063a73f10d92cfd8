"""Test doubles: managers whose every hook can be told what to do, and that remember all that the pool asked of them.

    manager = FakeManager()
    manager.create.does(error(ConnectionRefusedError()), ok())  # the first call fails, all later ones succeed
    manager.dispose.does(never(), endpoint='db')                # blocks until manager.let_go()
    pool = ConnectionPool(manager, max_size=2)
    ...
    assert manager.story() == ['create db', 'create db#1', 'on_acquire db#1']
    manager.check(max_size=2)                                   # raises AssertionError, with the story of each breach

A manager only appends to one log, and takes no lock: any thread, signal handler, finalizer or forked child may call it.
Counts, high-water marks and breaches are read off the log afterwards. Times are in seconds."""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from gcp.managers import AsyncConnectionManager, SyncConnectionManager

if TYPE_CHECKING:
    from asyncio import Future

__all__ = [
    'AsyncBareFakeManager',
    'AsyncFakeManager',
    'BareFakeManager',
    'Behaviour',
    'Call',
    'FakeConnection',
    'FakeHook',
    'FakeManager',
    'calling',
    'dead',
    'error',
    'never',
    'ok',
    'slow',
]

P = ParamSpec('P')
R = TypeVar('R')


class FakeConnection:
    """A connection to nothing. Knows its endpoint and its number; ordered by the latter, equal to itself only.

    :param endpoint: what it is connected to
    :param number: its place among the connections of its manager, from 1
    """

    def __init__(self, endpoint: Any, number: int) -> None:
        self.endpoint = endpoint
        self.number = number

    @property
    def name(self) -> str:
        return f'{self.endpoint}#{self.number}'

    def __lt__(self, other: FakeConnection) -> bool:
        return self.number < other.number

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Behaviour:
    """What a hook does when it is called: wait, then act. Made by `ok`, `dead`, `error`, `calling`, `slow`, `never`.

    :ivar act: called with the endpoint and the connection (``None`` in ``create``); its result is the hook's
    :ivar seconds: for how long the hook waits first
    :ivar honours_timeout: raise `TimeoutError` when the wait outlasts the time-out that the pool passed
    """

    act: Callable[[Any, Any], Any]
    seconds: float = 0.0
    honours_timeout: bool = False


def ok(result: Any = None) -> Behaviour:
    """Succeed. ``None`` is what the pool hopes for: a new connection, or `True` from ``check_aliveness``."""
    return Behaviour(lambda endpoint, connection: result)


def dead() -> Behaviour:
    """Find the connection dead. For ``check_aliveness``."""
    return ok(False)


def error(exception: BaseException | type[BaseException]) -> Behaviour:
    """Raise the exception, any `BaseException`."""
    def act(endpoint: Any, connection: Any) -> None:
        raise exception

    return Behaviour(act)


def calling(function: Callable[[Any, Any], Any]) -> Behaviour:
    """Call a function with the endpoint and the connection. An asyncio manager awaits an awaitable result."""
    return Behaviour(function)


def slow(seconds: float, then: Behaviour | None = None, *, honours_timeout: bool = False) -> Behaviour:
    """Take the given time, also when the pool allows less, unless told to honour its time-out; then succeed."""
    return replace(then or ok(), seconds=seconds, honours_timeout=honours_timeout)


def never(then: Behaviour | None = None) -> Behaviour:
    """Block until let go; then succeed."""
    return slow(math.inf, then)


@dataclass(eq=False)
class Call:
    """One call of one hook, as the pool made it.

    :ivar hook: the hook's name, or ``hold`` (see `hold`)
    :ivar endpoint: the endpoint it was called with
    :ivar connection: the connection it was called with; of ``create``, the one it made
    :ivar timeout: the time-out that the pool passed
    :ivar outcome: ``running``, ``ok``, or the `repr` of the error
    """

    hook: str
    endpoint: Any
    connection: Any = None
    timeout: float | None = None
    outcome: str = 'running'

    def __str__(self) -> str:
        return f'{self.hook} {self.endpoint if self.connection is None else self.connection}'


class FakeHook(Generic[P, R]):
    """One hook of one manager. The pool calls it; a test tells it what to do, and asks what it did."""

    def __init__(self, name: str, body: Callable[P, R], recorder: _Recorder) -> None:
        self.name = name
        self._body = body
        self._recorder = recorder
        self._gate = threading.Event()
        self._futures: set[Future[None]] = set()
        self._never_waits = False
        self.does(ok())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._body(*args, **kwargs)

    def does(self, *script: Behaviour, endpoint: Any = ...) -> None:
        """Do this from now on.

        :param script: one behaviour per call; the last one goes on for ever
        :param endpoint: for calls with this endpoint only (default: for all, whatever they were told before)
        """
        steps = itertools.chain(script[:-1], itertools.repeat(script[-1]))
        if endpoint is ...:
            self._script: Iterator[Behaviour] = steps
            self._scripts: dict[Any, Iterator[Behaviour]] = {}
        else:
            self._scripts[endpoint] = steps

    def step(self, endpoint: Any) -> Behaviour:
        """Take the next step of the script."""
        return next(self._scripts.get(endpoint, self._script))

    def let_go(self, *, for_good: bool = False) -> None:
        """End the waits of the calls that wait now. An asyncio manager's: in its loop's thread.

        :param for_good: and those of all later calls
        """
        self._never_waits = self._never_waits or for_good
        gate, self._gate = self._gate, threading.Event()
        gate.set()
        for future in tuple(self._futures):
            _resolve(future)

    def wait(self, behaviour: Behaviour, timeout: float | None) -> None:
        """Wait as told, in this thread."""
        gate, patience = self._gate, behaviour.seconds  # the gate first: let_go() raises the flag before it swaps gates
        if behaviour.honours_timeout and timeout is not None:
            patience = min(patience, timeout)
        if self._never_waits or patience <= 0 or gate.wait(None if patience == math.inf else patience):
            return
        if patience < behaviour.seconds:
            raise TimeoutError(f'{self.name} took longer than {timeout} s')

    async def wait_async(self, behaviour: Behaviour) -> None:
        """Wait as told, in this task."""
        if self._never_waits or not behaviour.seconds:
            return
        from asyncio import get_running_loop

        loop = get_running_loop()
        future: Future[None] = loop.create_future()
        self._futures.add(future)
        timer = None if behaviour.seconds == math.inf else loop.call_later(behaviour.seconds, _resolve, future)
        try:
            await future
        finally:
            self._futures.discard(future)
            if timer is not None:
                timer.cancel()

    @property
    def calls(self) -> list[Call]:
        """The calls of this hook so far, in the order in which they began."""
        return [call for call in self._recorder.calls if call.hook == self.name]

    @property
    def running(self) -> int:
        """The number of calls of this hook that have not ended."""
        return sum(call.outcome == 'running' for call in self.calls)


def _resolve(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _hook(Generic[P, R]):
    """A hook as it is written in a manager's class; taken from an instance, that manager's `FakeHook`."""

    def __init__(self, body: Callable[Concatenate[Any, P], R]) -> None:
        self._body = body
        self.__doc__ = body.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, manager: None, owner: type) -> _hook[P, R]: ...

    @overload
    def __get__(self, manager: _Recorder, owner: type) -> FakeHook[P, R]: ...

    def __get__(self, manager: _Recorder | None, owner: type) -> _hook[P, R] | FakeHook[P, R]:
        if manager is None:
            return self
        hook: FakeHook[P, R] | None = manager.hooks.get(self._name)
        if hook is None:
            body: Callable[P, R] = self._body.__get__(manager)  # functions are descriptors
            hook = manager.hooks.setdefault(self._name, FakeHook(self._name, body, manager))
        return hook


class _Recorder:
    """The log of a manager, and what can be read off it."""

    def __init__(self) -> None:
        self.hooks: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._log: list[tuple[Call, bool]] = []  # (call, whether it begins here), in order

    @contextmanager
    def _logged(self, call: Call) -> Iterator[Call]:
        self._log.append((call, True))
        try:
            yield call
            call.outcome = 'ok'
        except BaseException as e:
            call.outcome = repr(e)
            raise
        finally:
            self._log.append((call, False))

    def _connect(self, call: Call, made: Any) -> Any:
        call.connection = FakeConnection(call.endpoint, next(self._numbers)) if made is None else made
        return call.connection

    @contextmanager
    def hold(self, connection: Any) -> Iterator[None]:
        """Claim, in a test, to be the only holder of an acquired connection; `check` verifies it.

        Not across a close that does not wait for its holders: that disposes of what they hold."""
        with self._logged(Call('hold', getattr(connection, 'endpoint', None), connection)):
            yield

    def let_go(self) -> None:
        """End all waits of all hooks, now and from now on."""
        for hook in tuple(self.hooks.values()):
            hook.let_go(for_good=True)

    @property
    def calls(self) -> list[Call]:
        """All calls so far, in the order in which they began."""
        return [call for call, begins in tuple(self._log) if begins]

    def story(self, *hooks: str) -> list[str]:
        """The calls so far as strings, in the order in which they began.

        :param hooks: of these hooks only
        """
        return [str(call) for call in self.calls if not hooks or call.hook in hooks]

    @property
    def created(self) -> list[Any]:
        """The connections that were created, in order."""
        return [call.connection for call, begins in tuple(self._log)
                if call.hook == 'create' and call.outcome == 'ok' and not begins]

    @property
    def disposed(self) -> list[Any]:
        """The connections whose disposal has begun, in order."""
        return [call.connection for call in self.calls if call.hook == 'dispose']

    @property
    def live(self) -> list[Any]:
        """The connections that were created and whose disposal has not begun."""
        gone = {id(connection) for connection in self.disposed}
        return [connection for connection in self.created if id(connection) not in gone]

    def places(self, endpoint: Any = ...) -> int:
        """Tell how many connections exist, those that are being created or disposed of included.

        :param endpoint: of this endpoint only
        """
        return self._replay().places[endpoint]

    def peak(self, endpoint: Any = ...) -> int:
        """Tell the high-water mark of `places`."""
        return self._replay().peaks[endpoint]

    def check(self, *, max_size: float = math.inf, total_max_size: float = math.inf) -> None:
        """Verify that the pool kept the rules of a connection's life.

        No two hooks of a connection at a time, no two holders, no hook after its disposal, no strangers.

        :param max_size: the cap per endpoint that must have been kept
        :param total_max_size: the total cap that must have been kept
        :raises AssertionError: with the story of each breach
        """
        replay = self._replay()
        breaches = replay.breaches + [
            f'{"all" if endpoint is ... else endpoint}: {peak} connections at a time where {limit} are allowed'
            for endpoint, peak in replay.peaks.items()
            if peak > (limit := total_max_size if endpoint is ... else max_size)
        ]
        if breaches:
            raise AssertionError('\n'.join(breaches))

    def _replay(self) -> _Replay:
        replay = _Replay()
        for call, begins in tuple(self._log):
            (replay.begin if begins else replay.end)(call)
        return replay


class _Replay:
    """The log, lived through once more: who existed, who held what, and which rule was broken."""

    def __init__(self) -> None:
        self.places: Counter[Any] = Counter()  # by endpoint; `...` is the total
        self.peaks: Counter[Any] = Counter()
        self.breaches: list[str] = []
        self._lives: dict[int, _Life] = {}

    def begin(self, call: Call) -> None:
        if call.hook == 'create':
            self._occupy(call.endpoint, 1)
            return
        life = self._lives.setdefault(id(call.connection), _Life(known=False))
        life.story.append(str(call))
        if not life.known:
            self._breach(call, life, 'was not created here')
        if life.disposed:
            self._breach(call, life, f'saw {call.hook} after its disposal')
        if call.hook in ('on_acquire', 'check_aliveness') and life.acquired or call.hook == 'hold' and life.holders:
            self._breach(call, life, 'got a second holder')
        if call.hook == 'on_release' and not life.acquired:
            self._breach(call, life, 'was released by nobody')
        if call.hook == 'hold':
            life.holders += 1
            return
        if life.running:
            self._breach(call, life, f'saw {call.hook} during {", ".join(life.running)}')
        if call.hook == 'dispose':
            life.disposed = True
            if life.holders:
                self._breach(call, life, 'was disposed of while it was held')
        life.running.append(call.hook)

    def end(self, call: Call) -> None:
        if call.hook == 'create':
            if call.outcome == 'ok':
                self._lives[id(call.connection)] = _Life(known=True, story=['create'])
            else:
                self._occupy(call.endpoint, -1)
            return
        life = self._lives[id(call.connection)]
        if call.hook == 'hold':
            life.holders -= 1
            return
        life.running.remove(call.hook)
        if call.hook in ('on_acquire', 'on_release'):
            life.acquired = call.hook == 'on_acquire' and call.outcome == 'ok'
        elif call.hook == 'dispose' and not life.gone:
            life.gone = True
            self._occupy(call.endpoint, -1)

    def _occupy(self, endpoint: Any, change: int) -> None:
        for key in (endpoint, ...):
            self.places[key] += change
            self.peaks[key] = max(self.peaks[key], self.places[key])

    def _breach(self, call: Call, life: _Life, what: str) -> None:
        self.breaches.append(f'{call.connection} {what}: {"; ".join(life.story[-8:])}')


class _Life:
    """The state of one connection during a replay."""

    def __init__(self, *, known: bool, story: list[str] | None = None) -> None:
        self.known = known
        self.story = story or []
        self.running: list[str] = []
        self.acquired = False
        self.disposed = False  # its disposal has begun
        self.gone = False  # and has ended
        self.holders = 0


class BareFakeManager(_Recorder, SyncConnectionManager[Any, FakeConnection]):
    """A manager for the threading pool that overrides the two mandatory hooks only: an idle hit calls none."""

    @_hook
    def create(self, endpoint: Any, timeout: float | None = None) -> FakeConnection:
        """Create a connection."""
        connection: FakeConnection = self._play('create', endpoint, None, timeout)
        return connection

    @_hook
    def dispose(self, endpoint: Any, conn: FakeConnection, timeout: float | None = None) -> None:
        """Dispose of a connection."""
        self._play('dispose', endpoint, conn, timeout)

    def _play(self, name: str, endpoint: Any, connection: Any, timeout: float | None = None) -> Any:
        hook = self.hooks[name]
        with self._logged(Call(name, endpoint, connection, timeout)) as call:
            behaviour = hook.step(endpoint)
            hook.wait(behaviour, timeout)
            result = behaviour.act(endpoint, connection)
            return self._connect(call, result) if name == 'create' else result


class FakeManager(BareFakeManager):
    """A manager for the threading pool that overrides all hooks."""

    @_hook
    def check_aliveness(self, endpoint: Any, conn: FakeConnection, timeout: float | None = None) -> bool:
        """Tell whether a connection is alive."""
        return self._play('check_aliveness', endpoint, conn, timeout) is not False

    @_hook
    def on_acquire(self, endpoint: Any, conn: FakeConnection) -> None:
        """Be told that a connection is acquired."""
        self._play('on_acquire', endpoint, conn)

    @_hook
    def on_release(self, endpoint: Any, conn: FakeConnection) -> None:
        """Be told that a connection is released."""
        self._play('on_release', endpoint, conn)

    @_hook
    def on_connection_dead(self, endpoint: Any, conn: FakeConnection) -> None:
        """Be told that a connection is dead."""
        self._play('on_connection_dead', endpoint, conn)


class AsyncBareFakeManager(_Recorder, AsyncConnectionManager[Any, FakeConnection]):
    """A manager for the asyncio pool that overrides the two mandatory hooks only: an idle hit calls none."""

    @_hook
    async def create(self, endpoint: Any) -> FakeConnection:
        """Create a connection."""
        connection: FakeConnection = await self._play('create', endpoint, None)
        return connection

    @_hook
    async def dispose(self, endpoint: Any, conn: FakeConnection) -> None:
        """Dispose of a connection."""
        await self._play('dispose', endpoint, conn)

    async def _play(self, name: str, endpoint: Any, connection: Any) -> Any:
        hook = self.hooks[name]
        with self._logged(Call(name, endpoint, connection)) as call:
            behaviour = hook.step(endpoint)
            await hook.wait_async(behaviour)
            result = behaviour.act(endpoint, connection)
            if isinstance(result, Awaitable):
                result = await result
            return self._connect(call, result) if name == 'create' else result


class AsyncFakeManager(AsyncBareFakeManager):
    """A manager for the asyncio pool that overrides all hooks."""

    @_hook
    async def check_aliveness(self, endpoint: Any, conn: FakeConnection) -> bool:
        """Tell whether a connection is alive."""
        return await self._play('check_aliveness', endpoint, conn) is not False

    @_hook
    async def on_acquire(self, endpoint: Any, conn: FakeConnection) -> None:
        """Be told that a connection is acquired."""
        await self._play('on_acquire', endpoint, conn)

    @_hook
    async def on_release(self, endpoint: Any, conn: FakeConnection) -> None:
        """Be told that a connection is released."""
        await self._play('on_release', endpoint, conn)

    @_hook
    async def on_connection_dead(self, endpoint: Any, conn: FakeConnection) -> None:
        """Be told that a connection is dead."""
        await self._play('on_connection_dead', endpoint, conn)
