"""How a check calls a manager's hooks, in either colour: never beyond a limit, and with an eye on what they do there.

The awaitables of the sync colour are finished when they are made, so that one body of a check serves both: nothing in
it ever waits but through here."""

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

__all__ = ['Blocked', 'Colour', 'Misfit', 'Outcome', 'Tasks', 'Threads', 'colour_of']

T = TypeVar('T')

HOOKS = ('create', 'dispose', 'check_aliveness', 'on_acquire', 'on_release', 'on_connection_dead')

#: The sync hooks that take a time-out.
TIMED = ('create', 'dispose', 'check_aliveness')

#: For how long a hook may hold the event loop, seconds. Not less: the machine may be busy.
STALL = 0.5

#: How long a cancelled hook may take to end, seconds.
PARTING = 1.0

#: Methods of a socket that wait when it is in blocking mode.
WAITING = {
    'accept', 'connect', 'do_handshake', 'read', 'recv', 'recv_into', 'recvfrom', 'recvfrom_into', 'recvmsg', 'send',
    'sendall', 'sendmsg', 'sendto', 'shutdown_tls', 'write',
}


class Blocked(BaseException):
    """A hook was about to block the event loop. No `Exception`, lest the hook take it for an error of its own."""


class Misfit(Exception):
    """A hook is not of its manager's colour, or does not take what the pool gives it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended.

    :ivar value: what it returned
    :ivar error: what it raised, without its traceback, which would keep alive what the call left open
    :ivar place: where it was raised
    :ivar seconds: how long it took
    :ivar hung: whether it had not ended at the limit
    """

    value: Any = None
    error: BaseException | None = None
    place: str = ''
    seconds: float = 0.0
    hung: bool = False

    @classmethod
    def of_error(cls, error: BaseException, seconds: float) -> Outcome:
        place = _place_of(error)
        _forget_tracebacks(error)
        return cls(error=error, place=place, seconds=seconds)


class Colour(abc.ABC):
    """A manager, and what is peculiar to its kind.

    :param manager: the manager
    :ivar misfits: what is wrong with the shape of its hooks, by hook
    :ivar blocks: where hooks have blocked the event loop, by hook; these are not called again
    """

    name: str
    base: type[Any]

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self.misfits = {name: wrong for name in HOOKS if (wrong := self._misfit(name))}
        self.blocks: dict[str, str] = {}

    def _misfit(self, name: str) -> str | None:
        if not self.overrides(name):
            return None
        arguments, timeout = self.arguments(name)
        try:
            signature = inspect.signature(getattr(self.manager, name))
        except ValueError:  # a C function, that does not tell
            return None
        try:
            signature.bind(*arguments, **timeout)
            signature.bind(*arguments, *timeout)  # pools do both
        except TypeError:
            return f'{name}{signature} cannot be called with ({", ".join([*arguments, *timeout])})'
        return None

    async def hook(
            self, name: str, *arguments: Any, timeout: float | None, limit: float, cancel_at: int = 0,
    ) -> Outcome:
        """Call a hook.

        :param name: which
        :param arguments: the endpoint, and the connection
        :param timeout: the time-out that it is given; an async one is cancelled then
        :param limit: after how long it is given up
        :param cancel_at: the await at which an async one is cancelled, from 1; 0: none
        """
        if name in self.misfits:
            return Outcome(error=Misfit(self.misfits[name]))
        if name in self.blocks:
            return Outcome(error=Blocked(self.blocks[name]))
        outcome = await self._hook(name, arguments, timeout, limit, cancel_at)
        if isinstance(outcome.error, Misfit):
            self.misfits[name] = str(outcome.error)
        return outcome

    def overrides(self, hook: str) -> bool:
        """Tell whether the manager has a hook of its own."""
        own = getattr(self.manager, hook, None)
        return own is not None and getattr(own, '__func__', None) is not getattr(self.base, hook)

    @abc.abstractmethod
    def arguments(self, hook: str) -> tuple[tuple[str, ...], dict[str, None]]:
        """What the pool calls a hook with: arguments by place, and those that it may as well give by name."""

    @abc.abstractmethod
    def run(self, body: Coroutine[Any, Any, T]) -> Any:
        """Run the body of a check: to its end, or hand it over for the caller to await."""

    @abc.abstractmethod
    async def _hook(
            self, name: str, arguments: tuple[Any, ...], timeout: float | None, limit: float, cancel_at: int,
    ) -> Outcome: ...

    @abc.abstractmethod
    async def call(self, function: Callable[..., Any], *arguments: Any, limit: float) -> Outcome:
        """Call something else: a method of a pool, or what the user gave.

        :param function: what
        :param arguments: with what
        :param limit: after how long it is given up
        """

    @abc.abstractmethod
    async def pause(self, seconds: float) -> None:
        """Let others go on."""

    @abc.abstractmethod
    def pool(self, **arguments: Any) -> Any:
        """Make a pool of the manager."""

class Threads(Colour):
    """A manager for the threading pool: each call in a daemon thread that can be left behind."""

    name = 'threading'
    base = SyncConnectionManager

    def arguments(self, hook: str) -> tuple[tuple[str, ...], dict[str, None]]:
        return _places(hook), {'timeout': None} if hook in TIMED else {}

    def run(self, body: Coroutine[Any, Any, T]) -> T:
        try:
            body.send(None)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            body.close()
        raise RuntimeError('a check that does not run in an event loop has waited for one')

    async def _hook(
            self, name: str, arguments: tuple[Any, ...], timeout: float | None, limit: float, cancel_at: int,
    ) -> Outcome:
        hook = getattr(self.manager, name)

        def call(*arguments: Any) -> Any:
            value = hook(*arguments)
            if inspect.iscoroutine(value):
                value.close()
                raise Misfit(f'{name} returned a coroutine, which the threading pool does not await')
            return value

        return await self.call(call, *arguments, *([timeout] if name in TIMED else []), limit=limit)

    async def call(self, function: Callable[..., Any], *arguments: Any, limit: float) -> Outcome:
        outcomes: list[Outcome] = []

        def work() -> None:
            started = time.monotonic()
            try:
                value = function(*arguments)
                if inspect.iscoroutine(value):
                    value = _run_in_a_loop(value)
            except BaseException as error:
                outcomes.append(Outcome.of_error(error, time.monotonic() - started))
            else:
                outcomes.append(Outcome(value, seconds=time.monotonic() - started))

        thread = threading.Thread(target=work, name='gcp-check', daemon=True)
        thread.start()
        thread.join(limit)
        return outcomes[0] if outcomes else Outcome(seconds=limit, hung=True)

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # here nobody else runs in this thread

    def pool(self, **arguments: Any) -> Any:
        from gcp.threading import ConnectionPool

        return ConnectionPool(self.manager, **arguments)


class Tasks(Colour):
    """A manager for the asyncio pool: each call in a task that can be cancelled."""

    name = 'asyncio'
    base = AsyncConnectionManager

    def arguments(self, hook: str) -> tuple[tuple[str, ...], dict[str, None]]:
        return _places(hook), {}

    def run(self, body: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return body

    async def _hook(
            self, name: str, arguments: tuple[Any, ...], timeout: float | None, limit: float, cancel_at: int,
    ) -> Outcome:
        steps = Steps(name, getattr(self.manager, name), arguments, cancel_at)
        try:
            return await self._in_a_task(_wait_for(steps), limit if timeout is None else timeout, limit)
        finally:
            if steps.blocked:
                self.blocks[name] = steps.blocked

    async def call(self, function: Callable[..., Any], *arguments: Any, limit: float) -> Outcome:
        async def work() -> Any:
            value = function(*arguments)
            return await value if inspect.isawaitable(value) else value

        return await self._in_a_task(work(), limit, limit)

    async def _in_a_task(self, work: Coroutine[Any, Any, Any], timeout: float, limit: float) -> Outcome:
        import asyncio

        started = time.monotonic()
        task = asyncio.get_running_loop().create_task(work)
        try:
            await asyncio.wait([task], timeout=timeout)
            overran = not task.done()
            if overran:
                task.cancel()
                await asyncio.wait([task], timeout=PARTING)
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


class Steps:
    """Awaits an async hook step by step: cancels it at a given one, and sees what blocks the event loop meanwhile.

    :ivar count: how often the hook has awaited something that was not there yet
    :ivar blocked: what blocked, in words
    """

    def __init__(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], cancel_at: int) -> None:
        self._name = name
        self._function = function
        self._arguments = arguments
        self._cancel_at = cancel_at
        self.count = 0
        self.blocked = ''

    def __await__(self) -> Generator[Any, Any, Any]:
        import asyncio

        steps: Generator[Any, Any, Any] | None = None
        error: BaseException | None = None
        value: Any = None
        while True:
            try:
                if steps is None:
                    steps = self._watched(self._begin)
                waiting = self._watched(steps.send, value) if error is None else self._watched(steps.throw, error)
            except StopIteration as stop:
                return stop.value
            finally:
                error = None  # else it and its traceback keep each other alive
            self.count += 1
            if self.count == self._cancel_at and (task := asyncio.current_task()) is not None:
                task.cancel()
            try:
                value = yield waiting
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as exc:
                error = exc

    def _begin(self) -> Generator[Any, Any, Any]:
        result = self._function(*self._arguments)
        if not hasattr(result, '__await__'):
            raise Misfit(f'{self._name} returned {type(result).__name__}, which the asyncio pool cannot await')
        steps: Generator[Any, Any, Any] = result.__await__()
        return steps

    def _watched(self, step: Callable[..., T], *arguments: Any) -> T:
        before, started = sys.getprofile(), time.monotonic()
        sys.setprofile(self._look)
        try:
            return step(*arguments)
        finally:
            sys.setprofile(before)
            stalled = time.monotonic() - started
            if stalled > STALL:
                self.blocked = self.blocked or f'{self._name} held the event loop for {stalled:.1f} s'

    def _look(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == 'c_call' and _waits(argument):
            self.blocked = f'{self._name} calls {_name_of(argument)} at {frame.f_code.co_filename}:{frame.f_lineno}'
            if argument is not time.sleep:  # that one will end
                raise Blocked(self.blocked)


def colour_of(manager: Any) -> Colour:
    """Tell a manager's colour.

    :raises TypeError: when it is no manager
    """
    is_async = isinstance(manager, AsyncConnectionManager) or (
        not isinstance(manager, SyncConnectionManager)
        and inspect.iscoroutinefunction(getattr(manager, 'create', None)))
    colour = (Tasks if is_async else Threads)(manager)
    if isinstance(manager, type):
        raise TypeError(f'manager must be an instance, not the class {manager.__name__}: call it')
    for name in ('create', 'dispose'):
        if not callable(getattr(manager, name, None)):
            raise TypeError(f'manager must have the hooks create and dispose; {type(manager).__name__} has no {name}')
    return colour


def _places(hook: str) -> tuple[str, ...]:
    return ('endpoint',) if hook == 'create' else ('endpoint', 'conn')


async def _wait_for(steps: Awaitable[T]) -> T:
    return await steps


def _run_in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    import asyncio

    return asyncio.run(work)


def _waits(function: Any) -> bool:
    """Tell whether a C function that is about to be called will block its thread."""
    if function is time.sleep:
        return True
    if getattr(function, '__name__', '') not in WAITING:
        return False
    owner = getattr(function, '__self__', None)
    sock = getattr(owner, 'owner', owner)  # the C half of a TLS socket knows the other
    if not isinstance(sock, socket.SocketType) or sock.fileno() < 0:
        return False
    timeout = sock.gettimeout()
    return os.get_blocking(sock.fileno()) if timeout is None else timeout > 0


def _name_of(function: Any) -> str:
    return 'time.sleep' if function is time.sleep else f'{function.__name__} of a blocking socket'


def _place_of(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return '' if traceback is None else f'{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}'


def _forget_tracebacks(error: BaseException | None) -> None:
    seen: set[int] = set()
    chain = [error]
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            chain += [link.__cause__, link.__context__]
