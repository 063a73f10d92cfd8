"""One test body for both fronts.

A body is an `async def` that takes the `front` fixture. On the asyncio front it runs in an event loop, against the
asyncio pool. On the threads front the very same coroutine runs in a plain thread, against the threading pool behind a
face whose awaitables are finished when they are made: an await blocks the thread, and nothing ever yields to a loop.
Actors are tasks there and threads here.

No body sleeps to let something happen: it waits with `front.until` on the pool's own counts, or on a `front.gate`."""

from __future__ import annotations

import abc
import asyncio
import gc
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar, cast

from starvation import SOON, starvation

from gcp.testing import AsyncBareFakeManager, AsyncFakeManager, BareFakeManager, FakeManager

T = TypeVar('T')
T_co = TypeVar('T_co', covariant=True)

PATIENCE = 60.0  # seconds after which something that should have happened is a failure


class Pool(Protocol):
    """A pool as test bodies see it: the asyncio pool itself, or the face of a threading one."""

    def acquire(self, endpoint: Any, timeout: float | None = None) -> Awaitable[Any]: ...
    def release(self, conn: Any, endpoint: Any, error: BaseException | None = None) -> Awaitable[None]: ...
    def discard(self, conn: Any, endpoint: Any) -> Awaitable[None]: ...
    def connection(self, endpoint: Any, timeout: float | None = None) -> AbstractAsyncContextManager[Any]: ...
    def close(self, timeout: float | None = None) -> Awaitable[None]: ...
    def warm_up(self, *endpoints: Any, size: int | None = None, timeout: float | None = None) -> Awaitable[None]: ...
    def wait_ready(self, timeout: float | None = None) -> Awaitable[None]: ...
    def retire(self, endpoint: Any, timeout: float | None = None) -> Awaitable[None]: ...
    def expire(self, endpoint: Any = None) -> None: ...
    def wait_expired(self, timeout: float | None = None) -> Awaitable[None]: ...
    def suspend(self, endpoint: Any = None, mode: Any = 'wait', **arguments: Any) -> Awaitable[None]: ...
    def resume(self, endpoint: Any = None) -> None: ...
    def get_endpoint_pool_size(self, endpoint: Any, acquired: bool | None = None) -> Awaitable[int]: ...
    def get_size(self) -> int: ...
    def stats(self) -> Any: ...
    def reconfigure(self, **changes: Any) -> None: ...
    async def __aenter__(self) -> Pool: ...
    async def __aexit__(self, *error: Any) -> None: ...

    @property
    def name(self) -> str: ...
    @property
    def closed(self) -> bool: ...
    @property
    def is_full(self) -> bool: ...


class Actor(Protocol[T_co]):
    """Somebody who does something at the same time: a task or a thread. Awaited, it gives its result or raises."""

    def __await__(self) -> Generator[Any, None, T_co]: ...
    def done(self) -> bool: ...


class Gate(Protocol):
    """Closed until opened, then open for good."""

    def open(self) -> None: ...
    async def passed(self) -> None: ...


class Front(abc.ABC):
    """The world that a body runs in."""

    name: str

    def __init__(self) -> None:
        self.pools: list[Any] = []  # all that were made here, audited at the end
        self.managers: list[Any] = []
        self.patience = 3 * PATIENCE  # seconds that a body may take

    # -- what a body uses

    def manager(self, *, bare: bool = False) -> Any:
        """Make a fake manager of this colour; it is let go and checked when the body is over.

        :param bare: one that overrides create and dispose only, so that idle hits call no hook
        """
        manager = self._make_manager(bare)
        self.managers.append(manager)
        return manager

    def pool(self, manager: Any, **arguments: Any) -> Pool:
        """Make a pool of this colour; it is closed and audited when the body is over."""
        pool = self.pool_class(manager, **arguments)
        self.pools.append(pool)
        return self.face(pool)

    @abc.abstractmethod
    def spawn(self, doing: Awaitable[T]) -> Actor[T]:
        """Do something at the same time. Its errors must be awaited."""

    @abc.abstractmethod
    def gate(self) -> Gate: ...

    @abc.abstractmethod
    async def sleep(self, seconds: float) -> None:
        """For bodies that are about time."""

    async def until(self, predicate: Callable[[], object], patience: float = PATIENCE) -> None:
        """Wait until the predicate holds.

        :raises AssertionError: when it does not within `patience` seconds
        """
        deadline = time.monotonic() + patience
        while not predicate():
            assert time.monotonic() < deadline, f'in vain; {self.pools}'
            await self.sleep(0.0005)

    async def waiting(self, pool: Pool, count: int) -> None:
        """Wait until so many acquires are in line."""
        await self.until(lambda: pool.stats().waiting == count)

    async def line_up(self, pool: Pool, endpoint: Any, count: int) -> list[Actor[Any]]:
        """Put so many actors in line, one behind the other."""
        before = pool.stats().waiting
        actors = []
        for position in range(1, count + 1):
            actors.append(self.spawn(pool.acquire(endpoint)))
            await self.waiting(pool, before + position)
        return actors

    async def fill(self, pool: Pool, endpoint: Any, count: int) -> list[Any]:
        """Acquire so many connections."""
        return [await pool.acquire(endpoint) for _ in range(count)]

    async def give_back(self, pool: Pool, connections: list[Any]) -> None:
        """Release fake connections, in order."""
        for connection in connections:
            await pool.release(connection, connection.endpoint)

    def hook(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        """Make a coroutine function a hook of this colour, for `gcp.testing.calling`."""
        return function

    # -- what the conftest uses

    @abc.abstractmethod
    def run(self, body: Coroutine[Any, Any, None]) -> None:
        """Run a body, with a deadline; then close and audit its pools."""

    @property
    @abc.abstractmethod
    def pool_class(self) -> Any: ...

    @abc.abstractmethod
    def face(self, pool: Any) -> Pool: ...

    @abc.abstractmethod
    def _make_manager(self, bare: bool) -> Any: ...

    async def finish(self, body: Coroutine[Any, Any, None]) -> None:
        """Run the body, then see that nothing was left behind: no slot, no connection, no breach of the rules."""
        try:
            await body
        finally:
            for manager in self.managers:
                manager.unblock()
        for pool in self.pools:
            await self.audit(self.face(pool))
        for manager in self.managers:
            manager.check()

    async def audit(self, pool: Pool) -> None:
        """See that a pool's counts agree with each other, and that it lets all go when it is closed."""
        await self.until(lambda: (stats := pool.stats()).disposing == stats.creating == 0)  # also in the background
        audit(pool.stats())
        await pool.close(timeout=0)
        await self.until(lambda: pool.stats().size == 0)
        audit(pool.stats())


def audit(stats: Any) -> None:
    """See that the counts of a quiet pool agree with each other."""
    got = sum(stats.acquires[result] for result in ('hit', 'created', 'waited'))
    assert got - sum(stats.releases.values()) == stats.used, stats
    assert stats.hook_calls['create']['ok'] == stats.created, stats
    assert stats.wait_time.count == sum(stats.acquires.values()), stats
    assert stats.use_time.count == sum(stats.releases.values()), stats
    assert stats.age.count == sum(stats.closed.values()), stats
    for step, outcomes in stats.hook_calls.items():
        assert stats.hook_time[step].count == sum(outcomes.values()), (step, stats)
    assert stats.created - sum(stats.closed.values()) == stats.idle + stats.used, stats
    assert stats.creating == stats.waiting == 0, stats
    for count in ('idle', 'used', 'creating', 'disposing', 'waiting'):
        assert getattr(stats, count) == sum(getattr(each, count) for each in stats.endpoints.values()), (count, stats)


class AsyncioFront(Front):
    name = 'asyncio'

    def __init__(self) -> None:
        super().__init__()
        self._actors: list[TaskActor] = []

    @property
    def pool_class(self) -> Any:
        from gcp.asyncio import ConnectionPool

        return ConnectionPool

    def face(self, pool: Any) -> Pool:
        return cast(Pool, pool)

    def _make_manager(self, bare: bool) -> Any:
        return AsyncBareFakeManager() if bare else AsyncFakeManager()

    def spawn(self, doing: Awaitable[T]) -> Actor[T]:
        self._actors.append(actor := TaskActor(asyncio.ensure_future(doing)))
        return actor

    def gate(self) -> Gate:
        return TaskGate()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def run(self, body: Coroutine[Any, Any, None]) -> None:
        complaints: list[dict[str, Any]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
            me = asyncio.current_task()
            await asyncio.wait_for(self.finish(body), self.patience)
            for actor in self._actors:
                actor.cancel()
            await self.until(lambda: asyncio.all_tasks() <= {me})  # the pool leaves no task behind
            gc.collect()  # of tasks whose error nobody saw
            await asyncio.sleep(0)

        asyncio.run(main())
        assert not complaints, complaints


class TaskActor:
    def __init__(self, task: asyncio.Future[Any]) -> None:
        self.task = task

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result().__await__()

    async def _result(self) -> Any:
        done, _ = await asyncio.wait({self.task}, timeout=PATIENCE)
        assert done, f'{self.task} is still running'
        return self.task.result()

    def done(self) -> bool:
        return self.task.done()

    def cancel(self) -> None:
        """Cancel it. For bodies of the asyncio front only."""
        self.task.cancel()


class TaskGate:
    def __init__(self) -> None:
        self._event = asyncio.Event()

    def open(self) -> None:
        self._event.set()

    async def passed(self) -> None:
        await asyncio.wait_for(self._event.wait(), PATIENCE)


class ThreadsFront(Front):
    name = 'threads'

    @property
    def pool_class(self) -> Any:
        from gcp.threading import ConnectionPool

        return ConnectionPool

    def face(self, pool: Any) -> Pool:
        return cast(Pool, ThreadsPool(pool))

    def _make_manager(self, bare: bool) -> Any:
        return BareFakeManager() if bare else FakeManager()

    def hook(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        return lambda *args: drive(function(*args))

    def spawn(self, doing: Awaitable[T]) -> Actor[T]:
        return ThreadActor(doing)

    def gate(self) -> Gate:
        return ThreadGate()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def run(self, body: Coroutine[Any, Any, None]) -> None:
        ThreadActor(self.finish(body)).result(self.patience)


def drive(doing: Awaitable[T]) -> T:
    """Run a coroutine whose awaits never yield."""
    try:
        next(doing.__await__())
    except StopIteration as done:
        return cast(T, done.value)
    raise AssertionError(f'{doing} yielded: it waits for an event loop')


class ThreadActor:
    def __init__(self, doing: Awaitable[Any]) -> None:
        self._doing = doing
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)  # a stuck one must not keep pytest from ending
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = drive(self._doing)
        except BaseException as e:
            self._error = e

    def result(self, patience: float) -> Any:
        self._thread.join(patience)
        if self._thread.is_alive():
            raise AssertionError(f'still running after {patience} s:\n{stack_of(self._thread)}')
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._result

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result(PATIENCE)
        yield  # makes this a generator, as __await__ must be

    def done(self) -> bool:
        return not self._thread.is_alive()


class ThreadGate:
    def __init__(self) -> None:
        self._event = threading.Event()

    def open(self) -> None:
        self._event.set()

    async def passed(self) -> None:
        assert self._event.wait(PATIENCE), 'the gate stayed closed'


class ThreadsPool:
    """The face of a threading pool: awaitables that are finished when they are made. The rest is the pool's own."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    async def acquire(self, *args: Any, **kwargs: Any) -> Any:
        return self.raw.acquire(*args, **kwargs)

    async def release(self, *args: Any, **kwargs: Any) -> None:
        self.raw.release(*args, **kwargs)

    async def discard(self, *args: Any, **kwargs: Any) -> None:
        self.raw.discard(*args, **kwargs)

    async def close(self, *args: Any, **kwargs: Any) -> None:
        self.raw.close(*args, **kwargs)

    async def warm_up(self, *args: Any, **kwargs: Any) -> None:
        self.raw.warm_up(*args, **kwargs)

    async def wait_ready(self, *args: Any, **kwargs: Any) -> None:
        self.raw.wait_ready(*args, **kwargs)

    async def retire(self, *args: Any, **kwargs: Any) -> None:
        self.raw.retire(*args, **kwargs)

    async def wait_expired(self, *args: Any, **kwargs: Any) -> None:
        self.raw.wait_expired(*args, **kwargs)

    async def suspend(self, *args: Any, **kwargs: Any) -> None:
        self.raw.suspend(*args, **kwargs)

    async def get_endpoint_pool_size(self, *args: Any, **kwargs: Any) -> int:
        return cast(int, self.raw.get_endpoint_pool_size(*args, **kwargs))

    def connection(self, *args: Any, **kwargs: Any) -> AbstractAsyncContextManager[Any]:
        return ThreadsLease(self.raw.connection(*args, **kwargs))

    async def __aenter__(self) -> ThreadsPool:
        self.raw.__enter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.raw.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def __repr__(self) -> str:
        return repr(self.raw)


class ThreadsLease(AbstractAsyncContextManager[Any]):
    def __init__(self, raw: Any) -> None:
        self.raw = raw

    async def __aenter__(self) -> Any:
        return self.raw.__enter__()

    async def discard(self) -> None:
        self.raw.discard()

    async def __aexit__(self, *error: Any) -> bool | None:
        return cast('bool | None', self.raw.__exit__(*error))


def stack_of(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return ''.join(traceback.format_stack(frame)) if frame else 'gone'


@asynccontextmanager
async def elapsed(*, least: float = 0.0, most: float = SOON) -> AsyncIterator[None]:
    """See that the body takes at least `least` and at most `most` seconds, not counting the time without a core."""
    began, starved = time.monotonic(), starvation()
    yield
    took, starved = time.monotonic() - began, starvation() - starved
    assert least - 0.002 <= took <= most + starved, f'took {took:.3f} s, expected {least} to {most} s'
