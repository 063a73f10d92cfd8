"""Disposal in tasks: workers that dispose of one victim at a time, a timer that notices when one of them is stuck, and
a collector of what has expired."""

from __future__ import annotations

import asyncio
import logging
import sys
import weakref
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from math import inf
from types import CodeType, FrameType
from typing import Any

from gcp._core import AsyncPool, Batch, Core, FutureEvent, Victim, Worker, WorkerPool, gather, origin_of
from gcp.disposal import COLLECT_BATCH, DISPOSE_GRACE, SHORTEST_SLEEP, log, report_disposal
from gcp.disposal.deadline import Bounded, Started, wait_for, without_limit
from gcp.exceptions import AcquireTimeoutError, HookTimeoutError

logger = logging.getLogger('gcp.asyncio')

if sys.version_info < (3, 11):

    class TimedOut(AcquireTimeoutError, asyncio.TimeoutError):
        """An `AcquireTimeoutError` that is an `asyncio.TimeoutError`, too: before 3.11 that is a class of its own."""

    TimedOut.__name__ = TimedOut.__qualname__ = AcquireTimeoutError.__name__
    TimedOut.__module__ = AcquireTimeoutError.__module__
else:
    TimedOut = AcquireTimeoutError


class WorkerCoroutine(Coroutine[Any, Any, None]):
    """What a worker's task runs: a coroutine that begins without a frame of its own, for most disposals do not suspend.
    A task factory may wrap it: like a coroutine of the compiler it can be awaited, driven, iterated over and inspected.
    It may be dropped before its first step, because its loop may end: that causes no warning.

    Its worker is enrolled from the beginning until this has ended, was closed or is dropped.

    :param disposer: whose victims they are
    """

    cr_await = None
    cr_origin = None

    def __init__(self, disposer: Disposer) -> None:
        self.__name__ = 'work'
        self.__qualname__ = 'Disposer.work'
        self.cr_running = False
        self._disposer = disposer
        self._coro: Coroutine[Any, Any, None] | None = None
        self._began = False
        self.closing = False
        self._worker: Worker | None = disposer.enrol()  # None: it has ended

    @property
    def cr_code(self) -> CodeType:
        """The code that goes on when a disposal has suspended."""
        return Disposer.go_on.__code__

    @property
    def cr_frame(self) -> FrameType | None:
        """The frame of that code, if there is one."""
        return getattr(self._coro, 'cr_frame', None)

    @property
    def cr_suspended(self) -> bool:
        """Whether a disposal has suspended."""
        return getattr(self._coro, 'cr_frame', None) is not None and not self.cr_running

    def __await__(self) -> Generator[Any, Any, None]:
        return self

    __iter__ = __await__

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        return self._go_on(self._coro.send if self._coro is not None else self._begin, value)

    def throw(self, *args: Any) -> Any:
        return self._go_on(self._coro.throw if self._coro is not None else raise_it, *args)

    def _go_on(self, move: Callable[..., Any], *args: Any) -> Any:
        if self._worker is None:
            raise RuntimeError('cannot reuse already awaited coroutine')
        self.cr_running = True
        try:
            return move(*args)
        except BaseException:
            self._end(self._disposer.dismiss)
            raise
        finally:
            self.cr_running = False

    def _begin(self, value: None) -> Any:
        assert self._worker is not None
        self._began = True
        rest = self._disposer.begin_work(self._worker)
        if rest is None:
            raise StopIteration
        self._coro = self._disposer.go_on(self._worker, rest, self)
        return self._coro.send(None)

    def close(self) -> None:
        self.closing = True
        try:
            if self._coro is not None:
                self._coro.close()
        finally:
            self._end(self._disposer.dismiss)

    def _end(self, dismiss: Callable[[Worker, bool], None]) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            dismiss(worker, self._began)

    def __del__(self) -> None:
        self.closing = True
        if self._coro is not None:
            self._coro.close()
        self._end(self._disposer.dismiss_dropped)


def raise_it(error: Any, value: Any = None, traceback: Any = None) -> None:
    """Raise an error that is thrown into a coroutine: `throw` takes an exception, or its class and value, too."""
    raise error if value is None else value


class Turn:
    """Let each task that is ready run once."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Disposer:
    """Disposes of a pool's victims.

    :param name: the pool's name
    :param core: the pool's core
    :param dispose: the manager's hook
    :param timeout: ``dispose_timeout``, seconds
    """

    def __init__(self, name: str, core: Core, dispose: Callable[..., Any], timeout: float | None) -> None:
        self._name = name
        self._core = core
        self._dispose = dispose
        self._timeout = timeout
        self.reset_after_fork()

    def set_timeout(self, timeout: float | None) -> None:
        """Change the time that a disposal may take from now on, seconds; ``None``: no limit."""
        self._timeout = timeout

    def reset_after_fork(self) -> None:
        """Begin without workers: a forked child, or another event loop, has none."""
        self._worker_pool = WorkerPool(self._core)
        self._watching: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop itself keeps only those that are ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._by_factory = True

    # --- in the caller's task ---

    async def dispose(self, own: object, seconds: float) -> None:
        """Dispose of all victims on behalf of a caller.

        Those of the caller's own endpoint are its own business: without a ``dispose_timeout`` it waits for them,
        however long it takes. A caller that is cancelled stops waiting, no more.

        :param own: the caller's endpoint
        :param seconds: how long to wait for the others at most
        """
        batch = self._submit()
        if batch is not None:
            if batch.belongs_to(own):
                seconds = inf if self._timeout is None else self._timeout
            await self._wait(batch, seconds)

    async def dispose_in_background(self, seconds: float) -> None:
        """Have the workers dispose of all victims.

        :param seconds: how long to wait for it at most
        """
        batch = self._submit()
        if batch is not None:
            await self._wait(batch, seconds)

    dispose_all = dispose_in_background

    def dispose_soon(self, seconds: float = 0.0) -> None:
        """Have the workers dispose of all victims, without waiting for it."""
        self._submit()

    def _submit(self) -> Batch | None:
        batch = gather(self._core, None, origin_of(self._core))
        if batch is not None:
            self._worker_pool.offer(batch)
            self._ensure_worker()
            if self._watching is None:
                self._watch_later()
        return batch

    async def _wait(self, batch: Batch, seconds: float) -> None:
        """Wait until victims are gone, no longer than so many seconds."""
        if seconds <= 0:
            return
        await Turn()  # of the worker: that may be all that it takes
        if not batch.is_gone:
            batch.event = FutureEvent(asyncio.get_running_loop().create_future())
            await wait_for(batch.event, seconds)

    # --- in the workers ---

    def _ensure_worker(self) -> None:
        """See to it that there is a worker that is not stuck."""
        if not self._worker_pool.has_free_worker(DISPOSE_GRACE):
            self._start_worker(WorkerCoroutine(self))

    def _start_worker(self, work: WorkerCoroutine) -> None:
        self._loop = loop = asyncio.get_running_loop()
        make = loop.create_task if self._by_factory else partial(asyncio.Task, loop=loop)
        try:
            task = Context().run(make, work, name='gcp-disposer')
        except Exception as error:
            log(logger, '%s: no task for a disposal by the task factory of the event loop: %r', self._name, error)
            work.close()  # another one is started, not by the factory
            return
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard, context=Context())
            # The loop may end first, which is no error.
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    def enrol(self) -> Worker:
        """Make a worker, and enrol it: before its task is made, for an eager one may have ended by then."""
        worker = Worker(self._worker_pool)
        worker.join()
        return worker

    def dismiss(self, worker: Worker, began: bool) -> None:
        """A worker's task has ended, or it was dropped. If work is left, another one is started by the event loop, not
        here: an eager one would be nested in this one.

        :param began: whether it has begun; otherwise the task factory is not asked again
        """
        worker.quit()
        self._by_factory = self._by_factory and began
        if self._worker_pool.has_work and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon(self._ensure_worker, context=Context())

    def dismiss_dropped(self, worker: Worker, began: bool) -> None:
        """A worker was dropped, perhaps by a garbage collection in another thread."""
        if self._loop is None or self._loop.is_closed():
            self.dismiss(worker, began)
        else:
            self._loop.call_soon_threadsafe(self.dismiss, worker, began, context=Context())

    def begin_work(self, worker: Worker) -> Any:
        """Dispose of all queued victims, up to one whose disposal suspends: then return the rest of it."""
        return worker.begin_work(self._dispose, without_limit, Started, self._report)

    async def go_on(self, worker: Worker, rest: Started | None, work: WorkerCoroutine) -> None:
        """Go on from there, unless it is closed meanwhile."""
        while rest is not None:
            error: BaseException | None = None
            try:
                await Bounded(rest, self._timeout)
            except BaseException as e:
                error = e
            worker.victim.end(error, None if work.closing else self._report)
            rest = None if work.closing else self.begin_work(worker)

    def _report(self, victim: Victim, error: BaseException) -> None:
        """Log a disposal's error; raise what ends the worker."""
        if isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, SystemExit)):
            raise error
        report_disposal(logger, self._name, victim.endpoint, None if isinstance(error, HookTimeoutError) else error)

    def _watch(self) -> None:
        """While a worker is stuck: give the rest to another one, and its reserved place to another waiter."""
        self._watching = None
        for victim, _ in self._worker_pool.stuck(DISPOSE_GRACE):
            victim.mark_overdue()
            self._submit()  # another victim was chosen instead
        if self._worker_pool.has_work:
            self._by_factory = self._by_factory and not self._worker_pool.has_unbegun_worker(DISPOSE_GRACE)
            self._ensure_worker()
        if self._watching is None and self._worker_pool.needs_watching(False):
            self._watch_later()

    def _watch_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._watching = loop.call_later(DISPOSE_GRACE, self._watch, context=Context())


class Collector:
    """A timer that disposes of what has expired. It does not keep its pool alive, and keeps no event loop running."""

    def __init__(self, pool: AsyncPool[Any, Any], disposer: Disposer) -> None:
        self._pool = weakref.ref(pool)
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Begin without a timer: a forked child has none, nor the event loop of its parent."""
        self._timer: asyncio.TimerHandle | None = None
        pool = self._pool()
        if pool is not None:
            pool._core.wake_collector = None  # finalizers call it where no event loop is asked to drain

    def ensure(self) -> None:
        """Set the timer, unless it is set."""
        if self._timer is None:
            self.look()

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self) -> None:
        """Dispose of what has expired, and look again when more will have."""
        pool = self._pool()
        if pool is None or pool._core.closed:
            return
        self.stop()
        core = pool._core
        while core.collect(COLLECT_BATCH):
            pass
        if core.has_victims:
            pool._disposer.dispose_soon()
        wait = max(core.next_expiry() - core.time(), SHORTEST_SLEEP)
        if wait < inf:
            self._timer = pool._loop.call_later(wait, self.look, context=Context())


class DrainRequest:
    """Called by finalizers, in any thread: has the pool's event loop reclaim what they left."""

    def __init__(self, pool: AsyncPool[Any, Any]) -> None:
        self._pool = weakref.ref(pool)
        self._loop = pool._loop

    def __call__(self) -> None:
        # Not a method: the garbage collector may clear this object before the loop gets to it.
        self._loop.call_soon_threadsafe(drain, self._pool, context=Context())


def drain(ref: weakref.ref[AsyncPool[Any, Any]]) -> None:
    """Have a pool reclaim what finalizers left, if it still exists."""
    pool = ref()
    if pool is not None:
        pool._core.drain()
        pool._disposer.dispose_soon()


async def release_later(pool: AsyncPool[Any, Any], conn: Any, endpoint: Any, error: BaseException | None) -> None:
    """Release where the pool's event loop runs: `release` was called elsewhere."""
    loop = asyncio.get_running_loop()
    if pool._loop is not loop:
        pool._attach_loop(loop)
    await AsyncPool.release(pool, conn, endpoint, error)


release_later.__qualname__ = 'ConnectionPool.release'
