"""Disposal in tasks: workers that dispose, one victim at a time, and a timer that notices when one of them is stuck."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

from gcp._core import Batch, Core, Victim, Worker, WorkerPool, describe, gather
from gcp.disposal import DISPOSE_GRACE, origin_of, tell
from gcp.disposal.deadline import Bounded, HookTimeoutError, Started, without_limit

logger = logging.getLogger('gcp.asyncio')


class WorkerCoroutine(Coroutine[Any, Any, None]):
    """What a worker's task runs: a coroutine that begins without a frame of its own, for most victims have nothing to
    wait for. It may be dropped without a word: its loop can end before its first step.

    :param disposer: whose victims they are
    :param worker: who disposes of them
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


def set_done(future: asyncio.Future[None]) -> None:
    """Let go whoever waits for a future."""
    if not future.done():
        future.set_result(None)


class Turn:
    """Let each task that is ready have its turn, once."""

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
        self._crew = WorkerPool(self._core)
        self._watching: asyncio.TimerHandle | None = None

    # --- in the caller's task ---

    async def dispose(self, own: object, wait: float | None) -> None:
        """Dispose of all victims on behalf of a caller.

        Those of the caller's own endpoint are its own business: without a ``dispose_timeout`` it waits for them,
        however long it takes. A caller that is cancelled stops waiting, no more.

        :param own: the caller's endpoint
        :param wait: how long to wait for the others, seconds; ``None``: until they are gone
        """
        batch = gather(self._core, None, origin_of(self._core))
        if batch is not None:
            if batch.concerns(own):
                wait = self._timeout
            self._hand_over(batch)
            await self._wait_for(batch, wait)

    async def dispose_all(self) -> None:
        """Dispose of all victims, however long it takes."""
        await self.dispose_in_background(None)

    async def dispose_in_background(self, wait: float | None) -> None:
        """Have all victims disposed of.

        :param wait: how long to wait for it, seconds; ``None``: until it is done
        """
        batch = self.dispose_soon()
        if batch is not None and wait != 0:
            await self._wait_for(batch, wait)

    def dispose_soon(self) -> Batch | None:
        """Have all victims disposed of, without waiting for it."""
        batch = gather(self._core, None, origin_of(self._core))
        if batch is not None:
            self._hand_over(batch)
        return batch

    async def _wait_for(self, batch: Batch, seconds: float | None) -> None:
        """Wait until victims are gone, no longer than so many seconds; ``None``: however long it takes."""
        await Turn()    # of the worker: that may be all that it takes
        if batch.is_gone:
            return
        loop = asyncio.get_running_loop()
        gone = loop.create_future()
        batch.event = partial(set_done, gone)
        timer = None if seconds is None else loop.call_later(seconds, set_done, gone)
        try:
            await gone
        finally:
            if timer is not None:
                timer.cancel()

    def _hand_over(self, batch: Batch) -> None:
        self._crew.offer(batch)
        self._ensure_worker()
        if self._watching is None:
            self._watching = asyncio.get_running_loop().call_later(DISPOSE_GRACE, self._watch)

    # --- in the workers ---

    def _ensure_worker(self) -> None:
        """See to it that somebody works who is not stuck."""
        if not self._crew.has_free_worker(DISPOSE_GRACE):
            worker = Worker(self._crew)
            task = asyncio.get_running_loop().create_task(WorkerCoroutine(self, worker), name='gcp-disposer')
            # The loop may end first: no reason for noise.
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            worker.join()

    def dismiss(self, worker: Worker) -> None:
        """A worker's task has ended."""
        worker.quit()
        if self._crew.has_work:     # it was cancelled from outside
            self._ensure_worker()

    def begin_work(self, worker: Worker) -> Any:
        """Dispose of all that waits, up to what takes an `await`, or goes wrong: then return that."""
        return worker.begin_work(self._dispose, without_limit, Started)

    async def go_on(self, worker: Worker, rest: Any) -> None:
        """Go on from there."""
        while rest is not None:
            victim = worker.victim
            if isinstance(rest, Started):
                rest = await self._see_through(victim, rest)
            if rest is not None:
                self._report(victim, rest)
            rest = self.begin_work(worker)

    def _watch(self) -> None:
        """While somebody is stuck: give the rest to another worker, and its promised place to somebody else."""
        self._watching = None
        for victim, _ in self._crew.stuck(DISPOSE_GRACE):
            victim.overdue = True
            self._core.overdue(victim)
            self.dispose_soon()        # somebody else was chosen instead
        if self._crew.has_work:
            self._ensure_worker()
        if self._watching is None and self._crew.needs_watching(False):
            self._watching = asyncio.get_running_loop().call_later(DISPOSE_GRACE, self._watch)

    async def _see_through(self, victim: Victim, rest: Started) -> BaseException | None:
        """Await a disposal that has something to wait for; return what went wrong."""
        error: BaseException | None = None
        try:
            await Bounded(rest, self._timeout)
        except BaseException as e:
            error = e
        victim.conclude(error)
        return error

    def _report(self, victim: Victim, error: BaseException) -> None:
        """Log a disposal's error; raise what ends the worker."""
        if isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, SystemExit)):
            raise error
        where = describe(victim.endpoint)
        if isinstance(error, HookTimeoutError):
            tell(logger, logging.ERROR, '%s: disposal of a connection to %s timed out', self._name, where)
        else:
            tell(logger, logging.ERROR, '%s: disposal of a connection to %s failed: %r', self._name, where, error)
