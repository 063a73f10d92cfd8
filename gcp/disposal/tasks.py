"""Disposal in tasks: workers that dispose of one victim at a time, a timer that notices when one of them is stuck, and
a collector of what has expired."""

from __future__ import annotations

import asyncio
import logging
import sys
import weakref
from collections.abc import Callable, Coroutine, Generator
from math import inf
from typing import Any

from gcp._core import AsyncPool, Batch, Core, FutureEvent, Victim, Worker, WorkerPool, gather, origin_of
from gcp.disposal import COLLECT_BATCH, DISPOSE_GRACE, SHORTEST_SLEEP, report_disposal
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
    It may be dropped before its first step, because its loop may end: that causes no warning.

    :param disposer: whose victims they are
    :param worker: the worker
    """

    def __init__(self, disposer: Disposer, worker: Worker) -> None:
        self._disposer = disposer
        self._worker = worker
        self._coro: Coroutine[Any, Any, None] | None = None

    def __await__(self) -> Generator[Any, Any, None]:
        return self  # type: ignore[return-value]

    def send(self, value: Any) -> Any:
        try:
            if self._coro is None:
                rest = self._disposer.begin_work(self._worker)
                if rest is None:
                    raise StopIteration
                self._coro = self._disposer.go_on(self._worker, rest)
            return self._coro.send(value)
        except BaseException:
            self._disposer.dismiss(self._worker)
            raise

    def throw(self, *args: Any) -> Any:
        try:
            if self._coro is None:
                raise args[0]
            return self._coro.throw(*args)
        except BaseException:
            self._disposer.dismiss(self._worker)
            raise

    def close(self) -> None:
        if self._coro is not None:
            self._coro.close()

    def __del__(self) -> None:
        self.close()


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

    def reset_after_fork(self) -> None:
        """Begin without workers: a forked child, or another event loop, has none."""
        self._worker_pool = WorkerPool(self._core)
        self._watching: asyncio.TimerHandle | None = None

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
                self._watching = asyncio.get_running_loop().call_later(DISPOSE_GRACE, self._watch)
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
            worker = Worker(self._worker_pool)
            task = asyncio.get_running_loop().create_task(WorkerCoroutine(self, worker), name='gcp-disposer')
            # The loop may end first, which is no error.
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            worker.join()

    def dismiss(self, worker: Worker) -> None:
        """A worker's task has ended."""
        worker.quit()
        if self._worker_pool.has_work:  # it was cancelled from outside
            self._ensure_worker()

    def begin_work(self, worker: Worker) -> Any:
        """Dispose of all queued victims, up to one whose disposal suspends or fails: then return that."""
        return worker.begin_work(self._dispose, without_limit, Started)

    async def go_on(self, worker: Worker, rest: Any) -> None:
        """Go on from there."""
        while rest is not None:
            victim = worker.victim
            if isinstance(rest, Started):
                rest = await self._await_disposal(victim, rest)
            if rest is not None:
                self._report(victim, rest)
            rest = self.begin_work(worker)

    async def _await_disposal(self, victim: Victim, rest: Started) -> BaseException | None:
        """Await a disposal that has suspended. Returns the error that it raised."""
        error: BaseException | None = None
        try:
            await Bounded(rest, self._timeout)
        except BaseException as e:
            error = e
        victim.end(error)
        return error

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
            self._ensure_worker()
        if self._watching is None and self._worker_pool.needs_watching(False):
            self._watching = asyncio.get_running_loop().call_later(DISPOSE_GRACE, self._watch)


class Collector:
    """A timer that disposes of what has expired. It does not keep its pool alive, and keeps no event loop running."""

    def __init__(self, pool: AsyncPool[Any, Any], disposer: Disposer) -> None:
        self._pool = weakref.ref(pool)
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Begin without a timer: a forked child has none."""
        self._timer: asyncio.TimerHandle | None = None

    def ensure(self) -> None:
        """Set the timer, unless it is set."""
        if self._timer is None:
            self.look()

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()

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
            self._timer = pool._loop.call_later(wait, self.look)


class DrainRequest:
    """Called by finalizers, in any thread: has the pool's event loop reclaim what they left."""

    def __init__(self, pool: AsyncPool[Any, Any]) -> None:
        self._pool = weakref.ref(pool)
        self._loop = pool._loop

    def __call__(self) -> None:
        # Not a method: the garbage collector may clear this object before the loop gets to it.
        self._loop.call_soon_threadsafe(drain, self._pool)


def drain(ref: weakref.ref[AsyncPool[Any, Any]]) -> None:
    """Have a pool reclaim what finalizers left, if it still exists."""
    pool = ref()
    if pool is not None:
        pool._core.drain()
        pool._disposer.dispose_soon()
