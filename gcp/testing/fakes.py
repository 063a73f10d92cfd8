"""Fake managers: each hook can be told what to do, and every call of the pool is recorded.

    manager = FakeManager()
    manager.create.does(error(ConnectionRefusedError()), ok())  # the first call fails, all later ones succeed
    manager.dispose.does(never(), endpoint='db')                # blocks until manager.unblock()
    pool = ConnectionPool(manager, max_size=2)
    ...
    assert manager.story() == ['create db', 'create db#1', 'on_acquire db#1']
    manager.check(max_size=2)                                   # raises AssertionError with the calls that led to it

A manager appends to a single log and takes no lock, so any thread, signal handler, finalizer or forked child may call
it. Counts, peaks and violations are computed from the log on request. Times are in seconds."""

from __future__ import annotations

import itertools
import math
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from gcp.error_copies import copy_error
from gcp.exceptions import ErrorClass
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
    """A connection that connects to nothing. Ordered by its number; equal to itself only.

    :param endpoint: the endpoint that it was created for
    :param number: the number of the connection within its manager, from 1
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

    :ivar act: called with the endpoint and the connection (``None`` in ``create``); the hook returns its result
    :ivar seconds: how long the hook waits first, seconds
    :ivar honours_timeout: raise `TimeoutError` if the wait is longer than the time-out that the pool passed
    """

    act: Callable[[Any, Any], Any]
    seconds: float = 0.0
    honours_timeout: bool = False


def ok(result: Any = None) -> Behaviour:
    """Succeed.

    :param result: what the hook returns; ``None``: a new connection from ``create``, `True` from
        ``check_aliveness`` and ``keepalive``, ``TRANSIENT`` from ``classify``
    """
    return Behaviour(lambda endpoint, connection: result)


def dead() -> Behaviour:
    """Report the connection as dead. For ``check_aliveness`` and ``keepalive``."""
    return ok(False)


def error(exception: BaseException | type[BaseException]) -> Behaviour:
    """Raise an exception.

    :param exception: any `BaseException`, an instance or a class. An instance is raised each time; without the GIL,
                      where no two threads may raise one object, it is raised once, and then copies of it
    """
    has_gil = getattr(sys, '_is_gil_enabled', lambda: True)()
    kept = None if has_gil or isinstance(exception, type) else copy_error(exception)
    unraised = [exception]

    def act(endpoint: Any, connection: Any) -> None:
        if kept is None:
            raise exception
        try:
            mine = unraised.pop()
        except IndexError:
            mine = copy_error(kept)
        raise mine

    return Behaviour(act)


def calling(function: Callable[[Any, Any], Any]) -> Behaviour:
    """Call a function with the endpoint and the connection. An asyncio manager awaits its result if it is awaitable."""
    return Behaviour(function)


def slow(seconds: float, then: Behaviour | None = None, *, honours_timeout: bool = False) -> Behaviour:
    """Wait, then do something.

    :param seconds: how long to wait
    :param then: what to do after the wait; ``None``: succeed
    :param honours_timeout: raise `TimeoutError` if the wait is longer than the time-out that the pool passed
    """
    return replace(then or ok(), seconds=seconds, honours_timeout=honours_timeout)


def never(then: Behaviour | None = None) -> Behaviour:
    """Block until `unblock` is called, then do something; ``None``: succeed."""
    return slow(math.inf, then)


@dataclass(eq=False)
class Call:
    """One call of a hook by the pool.

    :ivar hook: the hook's name, or ``hold`` for a use of `hold`
    :ivar endpoint: the endpoint that it was called with
    :ivar connection: the connection that it was called with; for ``create``, the one that it returned
    :ivar timeout: the time-out that the pool passed, seconds
    :ivar outcome: ``running``, ``ok``, or the `repr` of the error
    """

    hook: str
    endpoint: Any
    connection: Any = None
    timeout: float | None = None
    outcome: str = 'running'

    def __str__(self) -> str:
        return f'{self.hook} {self.endpoint if self.connection is None else self.connection}'


Script = tuple[list[Behaviour], Behaviour]
"""The behaviours of single calls, the next one last, and that of all later calls."""


class FakeHook(Generic[P, R]):
    """A hook of a fake manager. The pool calls it; a test sets what it does, and reads its calls."""

    def __init__(self, name: str, body: Callable[P, R], recorder: _Recorder) -> None:
        self.name = name
        self._body = body
        self._recorder = recorder
        self._gates = [threading.Event()]  # the last one is that of calls that begin now
        self._futures: set[Future[None]] = set()
        self._unblocked = False
        self.does(ok())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._body(*args, **kwargs)

    def does(self, *script: Behaviour, endpoint: Any = ...) -> None:
        """Set what the hook does from now on.

        :param script: one behaviour per call; the last one is repeated for all later calls
        :param endpoint: apply to calls with this endpoint only (default: to all, also where an endpoint has its own)
        """
        behaviours = list(script[-2::-1]), script[-1]
        if endpoint is ...:
            self._script: Script = behaviours
            self._scripts: dict[Any, Script] = {}
        else:
            self._scripts[endpoint] = behaviours

    def next_behaviour(self, endpoint: Any) -> Behaviour:
        """Return the next behaviour of the script."""
        once, ever_after = self._scripts.get(endpoint, self._script)
        try:
            return once.pop()  # no iterator: without the GIL it gives an item to two threads
        except IndexError:
            return ever_after

    def unblock(self, *, forever: bool = False) -> None:
        """End the waits of all running calls. For an asyncio manager, call it in the thread of the event loop.

        :param forever: later calls do not wait either
        """
        self._unblocked = self._unblocked or forever
        self._gates.append(threading.Event())
        for gate in self._gates[:-1]:
            gate.set()
            with suppress(ValueError):  # another thread unblocks, too
                self._gates.remove(gate)
        for future in list(self._futures):
            _resolve(future)

    @property
    def gate(self) -> threading.Event:
        """What the next `unblock` opens. A call takes it before it is known to run: who sees it run may unblock."""
        return self._gates[-1]

    def wait(self, behaviour: Behaviour, timeout: float | None, gate: threading.Event) -> None:
        """Wait as the behaviour says, in this thread."""
        patience = behaviour.seconds
        if behaviour.honours_timeout and timeout is not None:
            patience = min(patience, timeout)
        # after the gate was looked at: unblock() sets the flag before it replaces the gate
        if self._unblocked or patience <= 0 or gate.wait(None if patience == math.inf else patience):
            return
        if patience < behaviour.seconds:
            raise TimeoutError(f'{self.name} took longer than {timeout} s')

    async def wait_async(self, behaviour: Behaviour) -> None:
        """Wait as the behaviour says, in this task."""
        if self._unblocked or not behaviour.seconds:
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
        """The calls of this hook, in the order in which they began."""
        return [call for call in self._recorder.calls if call.hook == self.name]

    @property
    def running(self) -> int:
        """The number of calls of this hook that have not ended."""
        return sum(call.outcome == 'running' for call in self.calls)


def _resolve(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _hook(Generic[P, R]):
    """Decorates a hook in a manager's class. An instance of the class has a `FakeHook` of its own in its place."""

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
    """The log of a manager's calls, and what is computed from it."""

    def __init__(self) -> None:
        self.hooks: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._log: list[tuple[Call, bool]] = []  # (call, whether it begins or ends here), in order

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
        """Declare, in a test, that its caller is the only holder of an acquired connection; `check` verifies it.

        Do not use it across a close() that times out: that disposes of connections that are still held.

        :param connection: the acquired connection
        """
        with self._logged(Call('hold', getattr(connection, 'endpoint', None), connection)):
            yield

    def unblock(self) -> None:
        """End the waits of all running and all later calls of all hooks."""
        for hook in list(self.hooks.values()):
            hook.unblock(forever=True)

    @property
    def calls(self) -> list[Call]:
        """All calls, in the order in which they began."""
        return [call for call, begins in tuple(self._log) if begins]

    def story(self, *hooks: str) -> list[str]:
        """Return the calls as strings, in the order in which they began.

        :param hooks: the hooks to include (default: all)
        """
        return [str(call) for call in self.calls if not hooks or call.hook in hooks]

    @property
    def created(self) -> list[Any]:
        """The connections that were created, in order."""
        return [
            call.connection
            for call, begins in tuple(self._log)
            if call.hook == 'create' and call.outcome == 'ok' and not begins
        ]

    @property
    def disposed(self) -> list[Any]:
        """The connections whose disposal has begun, in order."""
        return [call.connection for call in self.calls if call.hook == 'dispose']

    @property
    def live(self) -> list[Any]:
        """The connections that were created and whose disposal has not begun."""
        gone = {id(connection) for connection in self.disposed}
        return [connection for connection in self.created if id(connection) not in gone]

    def size(self, endpoint: Any = ...) -> int:
        """Return how many connections exist, including those that are being created or disposed of.

        :param endpoint: count this endpoint's only (default: all)
        """
        return self._replay().sizes[endpoint]

    def peak(self, endpoint: Any = ...) -> int:
        """Return the highest `size` so far.

        :param endpoint: count this endpoint's only (default: all)
        """
        return self._replay().peaks[endpoint]

    def check(self, *, max_size: float = math.inf, total_max_size: float = math.inf) -> None:
        """Verify that the pool treated every connection correctly.

        A connection never has two hooks running at a time, two holders, a hook call after its disposal has begun, or a
        hook call before it was created.

        :param max_size: the cap per endpoint that must not have been exceeded
        :param total_max_size: the total cap that must not have been exceeded
        :raises AssertionError: with every violation and the calls that led to it
        """
        replay = self._replay()
        violations = replay.violations + [
            f'{"all" if endpoint is ... else endpoint}: {peak} connections at a time, the cap is {limit}'
            for endpoint, peak in replay.peaks.items()
            if peak > (limit := total_max_size if endpoint is ... else max_size)
        ]
        if violations:
            raise AssertionError('\n'.join(violations))

    def _replay(self) -> _Replay:
        replay = _Replay()
        for call, begins in tuple(self._log):
            (replay.begin if begins else replay.end)(call)
        return replay


class _Replay:
    """Replays the log: which connections existed, which were held, and what was called at a wrong moment."""

    def __init__(self) -> None:
        self.sizes: Counter[Any] = Counter()  # by endpoint; `...`: all
        self.peaks: Counter[Any] = Counter()
        self.violations: list[str] = []
        self._states: dict[int, _ConnectionState] = {}

    def begin(self, call: Call) -> None:
        if call.hook == 'create':
            self._add(call.endpoint, 1)
            return
        state = self._states.setdefault(id(call.connection), _ConnectionState(known=False))
        state.story.append(str(call))
        if not state.known:
            self._report(call, state, 'was not created by this manager')
        if state.disposed:
            self._report(call, state, f'saw {call.hook} after its disposal')
        if call.hook in ('on_acquire', 'check_aliveness') and state.acquired or call.hook == 'hold' and state.holders:
            self._report(call, state, 'got a second holder')
        if call.hook == 'on_release' and not state.acquired:
            self._report(call, state, 'was released without being held')
        if call.hook == 'hold':
            state.holders += 1
            return
        if state.running:
            self._report(call, state, f'saw {call.hook} during {", ".join(state.running)}')
        if call.hook == 'dispose':
            state.disposed = True
            if state.holders:
                self._report(call, state, 'was disposed of while it was held')
        state.running.append(call.hook)

    def end(self, call: Call) -> None:
        if call.hook == 'create':
            if call.outcome == 'ok':
                self._states[id(call.connection)] = _ConnectionState(known=True, story=['create'])
            else:
                self._add(call.endpoint, -1)
            return
        state = self._states[id(call.connection)]
        if call.hook == 'hold':
            state.holders -= 1
            return
        state.running.remove(call.hook)
        if call.hook in ('on_acquire', 'on_release'):
            state.acquired = call.hook == 'on_acquire' and call.outcome == 'ok'
        elif call.hook == 'dispose' and not state.gone:
            state.gone = True
            self._add(call.endpoint, -1)

    def _add(self, endpoint: Any, change: int) -> None:
        for key in (endpoint, ...):
            self.sizes[key] += change
            self.peaks[key] = max(self.peaks[key], self.sizes[key])

    def _report(self, call: Call, state: _ConnectionState, what: str) -> None:
        self.violations.append(f'{call.connection} {what}: {"; ".join(state.story[-8:])}')


class _ConnectionState:
    """The state of one connection in a replay."""

    def __init__(self, *, known: bool, story: list[str] | None = None) -> None:
        self.known = known
        self.story = story or []
        self.running: list[str] = []
        self.acquired = False
        self.disposed = False  # the disposal has begun
        self.gone = False  # the disposal has ended
        self.holders = 0


class BareFakeManager(_Recorder, SyncConnectionManager[Any, FakeConnection]):
    """A manager for the threading pool that overrides `create` and `dispose` only: an idle hit calls no hook."""

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
        gate = hook.gate
        with self._logged(Call(name, endpoint, connection, timeout)) as call:
            behaviour = hook.next_behaviour(endpoint)
            hook.wait(behaviour, timeout, gate)
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
        """Record that a connection is acquired."""
        self._play('on_acquire', endpoint, conn)

    @_hook
    def on_release(self, endpoint: Any, conn: FakeConnection) -> None:
        """Record that a connection is released."""
        self._play('on_release', endpoint, conn)

    @_hook
    def on_connection_dead(self, endpoint: Any, conn: FakeConnection) -> None:
        """Record that a connection was found dead."""
        self._play('on_connection_dead', endpoint, conn)

    @_hook
    def keepalive(self, endpoint: Any, conn: FakeConnection, timeout: float | None = None) -> bool:
        """Keep an idle connection alive."""
        return self._play('keepalive', endpoint, conn, timeout) is not False

    @_hook
    def classify(self, endpoint: Any, error: BaseException) -> ErrorClass:
        """Say what an error means; `ok` may give another class. It only looks, so it is not recorded."""
        return self.hooks['classify'].next_behaviour(endpoint).act(endpoint, error) or ErrorClass.TRANSIENT


class AsyncBareFakeManager(_Recorder, AsyncConnectionManager[Any, FakeConnection]):
    """A manager for the asyncio pool that overrides `create` and `dispose` only: an idle hit calls no hook."""

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
            behaviour = hook.next_behaviour(endpoint)
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
        """Record that a connection is acquired."""
        await self._play('on_acquire', endpoint, conn)

    @_hook
    async def on_release(self, endpoint: Any, conn: FakeConnection) -> None:
        """Record that a connection is released."""
        await self._play('on_release', endpoint, conn)

    @_hook
    async def on_connection_dead(self, endpoint: Any, conn: FakeConnection) -> None:
        """Record that a connection was found dead."""
        await self._play('on_connection_dead', endpoint, conn)

    @_hook
    async def keepalive(self, endpoint: Any, conn: FakeConnection) -> bool:
        """Keep an idle connection alive."""
        return await self._play('keepalive', endpoint, conn) is not False

    @_hook
    def classify(self, endpoint: Any, error: BaseException) -> ErrorClass:
        """Say what an error means; `ok` may give another class. It only looks, so it is not recorded."""
        return self.hooks['classify'].next_behaviour(endpoint).act(endpoint, error) or ErrorClass.TRANSIENT
