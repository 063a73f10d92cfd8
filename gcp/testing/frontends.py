"""Call the hooks of a manager for either frontend, with a time limit, and detect calls that block the event loop.

The coroutines of the threading frontend never suspend: each call has ended when it is awaited. So one check, written as
a coroutine, serves both frontends, as long as it waits only by means of this module."""

from __future__ import annotations

import abc
import inspect
import os
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

from gcp.managers import AsyncConnectionManager, SyncConnectionManager

__all__ = [
    'AsyncioFrontend',
    'BlockingCall',
    'Frontend',
    'Outcome',
    'SignatureMismatch',
    'ThreadingFrontend',
    'frontend_of',
]

T = TypeVar('T')

HOOKS = ('create', 'dispose', 'check_aliveness', 'on_acquire', 'on_release', 'on_connection_dead')

#: The sync hooks that take a time-out.
TIMED = ('create', 'dispose', 'check_aliveness')

#: How long a hook may occupy the event loop, seconds, not counting the time that its thread waits for a core.
STALL = 0.5

#: The kernel's scheduler statistics of the calling thread. The second field is how long it has waited for a core, ns.
SCHEDSTAT = '/proc/thread-self/schedstat'

#: How long a cancelled hook may take to end, seconds.
CANCEL_TIMEOUT = 1.0

#: Methods of a socket that wait when it is in blocking mode.
BLOCKING_METHODS = {
    'accept',
    'connect',
    'do_handshake',
    'read',
    'recv',
    'recv_into',
    'recvfrom',
    'recvfrom_into',
    'recvmsg',
    'send',
    'sendall',
    'sendmsg',
    'sendto',
    'shutdown_tls',
    'write',
}


class BlockingCall(BaseException):
    """A hook was about to block the event loop. Not an `Exception`, so that the hook does not handle it as its own."""


class SignatureMismatch(Exception):
    """A hook is written for the other frontend, or does not accept the arguments that the pool passes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended.

    :ivar value: what it returned
    :ivar error: what it raised, without its traceback, whose frames would keep open what the call has left open
    :ivar location: the file and line where the error was raised
    :ivar seconds: how long the call took, seconds
    :ivar hung: whether the call had not ended at its limit
    """

    value: Any = None
    error: BaseException | None = None
    location: str = ''
    seconds: float = 0.0
    hung: bool = False

    @classmethod
    def of_error(cls, error: BaseException, seconds: float) -> Outcome:
        """Make the outcome of a call that raised, and clear the error's tracebacks."""
        location = _location_of(error)
        _clear_tracebacks(error)
        return cls(error=error, location=location, seconds=seconds)


class Frontend(abc.ABC):
    """A manager, and how its frontend calls it.

    :param manager: the manager
    :ivar mismatches: what is wrong with the signatures of its hooks, by hook
    :ivar blocking: where hooks have blocked the event loop, by hook; these hooks are not called again
    """

    name: str
    base: type[Any]

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self.mismatches = {name: mismatch for name in HOOKS if (mismatch := self._mismatch(name))}
        self.blocking: dict[str, str] = {}

    def _mismatch(self, name: str) -> str | None:
        if not self.overrides(name):
            return None
        arguments, timeout = self.arguments(name)
        try:
            signature = inspect.signature(getattr(self.manager, name))
        except ValueError:  # a C function without a signature
            return None
        try:
            signature.bind(*arguments, **timeout)
            signature.bind(*arguments, *timeout)  # the pool passes the time-out either way
        except TypeError:
            return f'{name}{signature} cannot be called with ({", ".join([*arguments, *timeout])})'
        return None

    async def hook(
        self,
        name: str,
        *arguments: Any,
        timeout: float | None,
        limit: float,
        cancel_at: int = 0,
    ) -> Outcome:
        """Call a hook.

        :param name: the hook's name
        :param arguments: the endpoint, and the connection
        :param timeout: the time-out that a sync hook is passed, and after which an async one is cancelled, seconds
        :param limit: how long to wait for its end, seconds
        :param cancel_at: the number of the await, from 1, at which an async hook is cancelled; 0: none
        """
        if name in self.mismatches:
            return Outcome(error=SignatureMismatch(self.mismatches[name]))
        if name in self.blocking:
            return Outcome(error=BlockingCall(self.blocking[name]))
        outcome = await self._hook(name, arguments, timeout, limit, cancel_at)
        if isinstance(outcome.error, SignatureMismatch):
            self.mismatches[name] = str(outcome.error)
        return outcome

    def overrides(self, hook: str) -> bool:
        """Tell whether the manager overrides a hook."""
        own = getattr(self.manager, hook, None)
        return own is not None and getattr(own, '__func__', None) is not getattr(self.base, hook)

    @abc.abstractmethod
    def arguments(self, hook: str) -> tuple[tuple[str, ...], dict[str, None]]:
        """Return what the pool passes to a hook: positional arguments, and those that it may also pass by name."""

    @abc.abstractmethod
    def run(self, body: Coroutine[Any, Any, T]) -> Any:
        """Run the coroutine of a check to its end, or return it for the caller to await."""

    @abc.abstractmethod
    async def _hook(
        self,
        name: str,
        arguments: tuple[Any, ...],
        timeout: float | None,
        limit: float,
        cancel_at: int,
    ) -> Outcome: ...

    @abc.abstractmethod
    async def call(self, function: Callable[..., Any], *arguments: Any, limit: float) -> Outcome:
        """Call another function, plain or async: a method of a pool, or a function of the test.

        :param function: the function
        :param arguments: its arguments
        :param limit: how long to wait for its end, seconds
        """

    @abc.abstractmethod
    async def pause(self, seconds: float) -> None:
        """Wait, and let other threads or tasks run."""

    @abc.abstractmethod
    def pool(self, **arguments: Any) -> Any:
        """Make a pool with the manager."""


class ThreadingFrontend(Frontend):
    """A manager for the threading pool. Each call runs in a daemon thread, so that a hung one can be abandoned."""

    name = 'threading'
    base = SyncConnectionManager

    def arguments(self, hook: str) -> tuple[tuple[str, ...], dict[str, None]]:
        return _positional(hook), {'timeout': None} if hook in TIMED else {}

    def run(self, body: Coroutine[Any, Any, T]) -> T:
        try:
            body.send(None)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            body.close()
        raise RuntimeError('a check of a threading manager has waited for an event loop')

    async def _hook(
        self,
        name: str,
        arguments: tuple[Any, ...],
        timeout: float | None,
        limit: float,
        cancel_at: int,
    ) -> Outcome:
        hook = getattr(self.manager, name)

        def call(*arguments: Any) -> Any:
            value = hook(*arguments)
            if inspect.iscoroutine(value):
                value.close()
                raise SignatureMismatch(f'{name} returned a coroutine, which the threading pool does not await')
            return value

        return await self.call(call, *arguments, *([timeout] if name in TIMED else []), limit=limit)

    async def call(self, function: Callable[..., Any], *arguments: Any, limit: float) -> Outcome:
        outcomes: list[Outcome] = []

        def work() -> None:
            started = time.monotonic()
            try:
                value = function(*arguments)
                if inspect.iscoroutine(value):
                    value = _run_in_loop(value)
            except BaseException as error:
                outcomes.append(Outcome.of_error(error, time.monotonic() - started))
            else:
                outcomes.append(Outcome(value, seconds=time.monotonic() - started))

        thread = threading.Thread(target=work, name='gcp-check', daemon=True)
        thread.start()
        thread.join(limit)
        return outcomes[0] if outcomes else Outcome(seconds=limit, hung=True)

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # this coroutine is not run by an event loop

    def pool(self, **arguments: Any) -> Any:
        from gcp.threading import ConnectionPool

        return ConnectionPool(self.manager, **arguments)


class AsyncioFrontend(Frontend):
    """A manager for the asyncio pool. Each call runs in a task that can be cancelled."""

    name = 'asyncio'
    base = AsyncConnectionManager

    def arguments(self, hook: str) -> tuple[tuple[str, ...], dict[str, None]]:
        return _positional(hook), {}

    def run(self, body: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return body

    async def _hook(
        self,
        name: str,
        arguments: tuple[Any, ...],
        timeout: float | None,
        limit: float,
        cancel_at: int,
    ) -> Outcome:
        call = WatchedCall(name, getattr(self.manager, name), arguments, cancel_at)
        try:
            return await self._in_task(_await(call), limit if timeout is None else timeout, limit)
        finally:
            if call.blocked:
                self.blocking[name] = call.blocked

    async def call(self, function: Callable[..., Any], *arguments: Any, limit: float) -> Outcome:
        async def work() -> Any:
            value = function(*arguments)
            return await value if inspect.isawaitable(value) else value

        return await self._in_task(work(), limit, limit)

    async def _in_task(self, work: Coroutine[Any, Any, Any], timeout: float, limit: float) -> Outcome:
        import asyncio

        started = time.monotonic()
        task = asyncio.get_running_loop().create_task(work)
        try:
            await asyncio.wait([task], timeout=timeout)
            overran = not task.done()
            if overran:
                task.cancel()
                await asyncio.wait([task], timeout=CANCEL_TIMEOUT)
        finally:
            task.cancel()
        seconds = time.monotonic() - started
        if not task.done() or (overran and timeout >= limit):
            return Outcome(seconds=seconds, hung=True)
        try:
            return Outcome(task.result(), seconds=seconds)
        except BaseException as error:
            return Outcome.of_error(error, seconds)

    async def pause(self, seconds: float) -> None:
        import asyncio

        await asyncio.sleep(seconds)

    def pool(self, **arguments: Any) -> Any:
        from gcp.asyncio import ConnectionPool

        return ConnectionPool(self.manager, **arguments)


class WatchedCall:
    """Awaits an async hook and watches each part that runs between two awaits: cancels the hook at a given await, and
    detects calls that block the event loop.

    :ivar awaits: how many times the hook has suspended
    :ivar blocked: the call that blocked, in words
    """

    def __init__(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], cancel_at: int) -> None:
        self._name = name
        self._function = function
        self._arguments = arguments
        self._cancel_at = cancel_at
        self.awaits = 0
        self.blocked = ''

    def __await__(self) -> Generator[Any, Any, Any]:
        import asyncio

        iterator: Generator[Any, Any, Any] | None = None
        error: BaseException | None = None
        value: Any = None
        while True:
            try:
                if iterator is None:
                    iterator = self._watch(self._start)
                future = self._watch(iterator.send, value) if error is None else self._watch(iterator.throw, error)
            except StopIteration as stop:
                return stop.value
            finally:
                error = None  # the error's traceback refers to this frame: a cycle
            self.awaits += 1
            if self.awaits == self._cancel_at and (task := asyncio.current_task()) is not None:
                task.cancel()
            try:
                value = yield future
            except GeneratorExit:
                iterator.close()
                raise
            except BaseException as exc:
                error = exc

    def _start(self) -> Generator[Any, Any, Any]:
        result = self._function(*self._arguments)
        if not hasattr(result, '__await__'):
            raise SignatureMismatch(
                f'{self._name} returned {type(result).__name__}, which the asyncio pool cannot await'
            )
        iterator: Generator[Any, Any, Any] = result.__await__()
        return iterator

    def _watch(self, run: Callable[..., T], *arguments: Any) -> T:
        """Run the hook up to its next await, with a profile function that sees each call of a C function."""
        before, started, delay = sys.getprofile(), time.monotonic(), _run_delay()
        sys.setprofile(self._profile)
        try:
            return run(*arguments)
        finally:
            sys.setprofile(before)
            stalled = time.monotonic() - started
            if stalled > STALL and (stalled := stalled - (_run_delay() - delay)) > STALL:
                self.blocked = self.blocked or f'{self._name} held the event loop for {stalled:.1f} s'

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == 'c_call' and _will_block(argument):
            self.blocked = f'{self._name} calls {_name_of(argument)} at {frame.f_code.co_filename}:{frame.f_lineno}'
            if argument is not time.sleep:  # a sleep ends by itself
                raise BlockingCall(self.blocked)


def frontend_of(manager: Any) -> Frontend:
    """Wrap a manager for the frontend that it is written for.

    :raises TypeError: when it is not a manager
    """
    is_async = isinstance(manager, AsyncConnectionManager) or (
        not isinstance(manager, SyncConnectionManager) and inspect.iscoroutinefunction(getattr(manager, 'create', None))
    )
    if isinstance(manager, type):
        raise TypeError(f'manager must be an instance, not the class {manager.__name__}: call it')
    for name in ('create', 'dispose'):
        if not callable(getattr(manager, name, None)):
            raise TypeError(f'manager must have the hooks create and dispose; {type(manager).__name__} has no {name}')
    return AsyncioFrontend(manager) if is_async else ThreadingFrontend(manager)


def _positional(hook: str) -> tuple[str, ...]:
    return ('endpoint',) if hook == 'create' else ('endpoint', 'conn')


async def _await(call: Awaitable[T]) -> T:
    return await call


def _run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    import asyncio

    return asyncio.run(work)


def _run_delay() -> float:
    """Return how long this thread has been ready to run without a core, seconds; 0 where the kernel does not tell."""
    try:
        with open(SCHEDSTAT, encoding='ascii') as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _will_block(function: Any) -> bool:
    """Tell whether a C function that is about to be called will block its thread."""
    if function is time.sleep:
        return True
    if getattr(function, '__name__', '') not in BLOCKING_METHODS:
        return False
    owner = getattr(function, '__self__', None)
    sock = getattr(owner, 'owner', owner)  # the C object of a TLS socket has the socket as its owner
    if not isinstance(sock, socket.SocketType) or sock.fileno() < 0:
        return False
    timeout = sock.gettimeout()
    return os.get_blocking(sock.fileno()) if timeout is None else timeout > 0


def _name_of(function: Any) -> str:
    return 'time.sleep' if function is time.sleep else f'{function.__name__} of a blocking socket'


def _location_of(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return '' if traceback is None else f'{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}'


def _clear_tracebacks(error: BaseException | None) -> None:
    seen: set[int] = set()
    chain = [error]
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            chain += [link.__cause__, link.__context__]
