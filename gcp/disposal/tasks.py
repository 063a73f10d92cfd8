"""Disposal in tasks: workers that dispose, one victim at a time, and a timer that notices when one of them is stuck."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from gcp._core import Core, Victim, begin_disposal, describe
from gcp.disposal import COURTESY, origin_of, tell
from gcp.disposal.deadline import Begun, Bounded, HookTimeoutError, unlimited

logger = logging.getLogger('gcp.asyncio')


class Latch:
    """Opens when all victims of a caller are gone."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def count_down(self) -> None:
        self._left -= 1
        if not self._left and not self._open.done():
            self._open.set_result(None)

    async def wait(self, timeout: float | None) -> bool:
        if not self._open.done():
            await asyncio.wait([self._open], timeout=timeout)
        return self._open.done()


class Job:
    """One victim in the hands of a worker."""

    __slots__ = ('latch', 'origin', 'started', 'victim')

    def __init__(self, victim: Victim, latch: Latch | None, origin: object) -> None:
        self.victim = victim
        self.latch = latch
        self.origin = origin    # of its span
        self.started = 0.0

    def end(self) -> None:
        """Let the caller go."""
        if self.latch is not None:
            self.latch.count_down()


class Quiet(Coroutine[Any, Any, None]):
    """A coroutine that may be dropped without a word: its loop can end before its first step."""

    def __init__(self, coro: Coroutine[Any, Any, None]) -> None:
        self._coro = coro

    def __await__(self) -> Generator[Any, Any, None]:
        return self._coro.__await__()

    def send(self, value: Any) -> Any:
        return self._coro.send(value)

    def throw(self, *args: Any) -> Any:
        return self._coro.throw(*args)

    def close(self) -> None:
        self._coro.close()

    def __del__(self) -> None:
        self._coro.close()


class Reaper:
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
        self.start_anew()

    def start_anew(self) -> None:
        """Begin without workers: a forked child, or another event loop, has none."""
        self._jobs: deque[Job] = deque()
        self._busy: dict[asyncio.Task[None], Job | None] = {}
        self._watching: asyncio.TimerHandle | None = None

    # --- in the caller's task ---

    async def reap(self, own: object, wait: float | None) -> None:
        """Dispose of all victims on behalf of a caller.

        Those of the caller's own endpoint are its own business: without a ``dispose_timeout`` it waits for them,
        however long it takes. A caller that is cancelled stops waiting, no more.

        :param own: the caller's endpoint
        :param wait: how long to wait for the others, seconds; ``None``: until they are gone
        """
        victims = deque(iter(self._core.victim, None))
        if not victims:
            return
        mine = all(victim.concerns(own) for victim in victims)
        await self._hand_over(victims).wait(self._timeout if mine else wait)

    async def reap_all(self) -> None:
        """Dispose of all victims, however long it takes."""
        await self.reap_aside(None)

    async def reap_aside(self, wait: float | None) -> None:
        """Have all victims disposed of.

        :param wait: how long to wait for it, seconds; ``None``: until it is done
        """
        latch = self.reap_soon()
        if latch is not None and wait != 0:
            await latch.wait(wait)

    def reap_soon(self) -> Latch | None:
        """Have all victims disposed of, without waiting for it."""
        victims = deque(iter(self._core.victim, None))
        return self._hand_over(victims) if victims else None

    def _hand_over(self, victims: deque[Victim]) -> Latch:
        latch = Latch(len(victims))
        origin = origin_of(self._core)
        while victims:
            self._jobs.append(Job(victims.popleft(), latch, origin))
        self._man()
        if self._watching is None:
            self._watching = asyncio.get_running_loop().call_later(COURTESY, self._watch)
        return latch

    # --- in the workers ---

    def _man(self) -> None:
        """See to it that somebody works who is not stuck."""
        loop = asyncio.get_running_loop()
        if not any(job is None or loop.time() - job.started < COURTESY for job in self._busy.values()):
            task = loop.create_task(Quiet(self._work()), name='gcp-disposer')
            # The loop may end first: no reason for noise.
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            self._busy[task] = None
            task.add_done_callback(self._dismiss)

    def _dismiss(self, task: asyncio.Task[None]) -> None:
        self._busy.pop(task, None)
        if self._jobs:      # it was cancelled from outside
            self._man()

    async def _work(self) -> None:
        me = asyncio.current_task()
        assert me is not None
        loop = asyncio.get_running_loop()
        while self._jobs:
            self._busy[me] = job = self._jobs.popleft()
            job.started = loop.time()
            try:
                rest = begin_disposal(job.victim, self._dispose, unlimited, Begun, job.origin)
                if isinstance(rest, Begun):
                    rest = await self._see_through(job.victim, rest)
                if rest is not None:
                    self._tell_of(job.victim, rest)
            finally:
                if not job.victim.started:      # a signal came first
                    self._core.spare(job.victim)
                job.end()
        self._busy.pop(me, None)

    def _watch(self) -> None:
        """While somebody is stuck: give the rest to another worker, and its promised place to somebody else."""
        loop = asyncio.get_running_loop()
        self._watching = None
        for job in list(self._busy.values()):
            if job is not None and loop.time() - job.started >= COURTESY:
                self._core.overdue(job.victim)
                self.reap_soon()        # somebody else was chosen instead
        if self._jobs:
            self._man()
            self._watching = loop.call_later(COURTESY, self._watch)
        elif any(job is not None and loop.time() - job.started < COURTESY for job in self._busy.values()):
            self._watching = loop.call_later(COURTESY, self._watch)

    async def _see_through(self, victim: Victim, rest: Begun) -> BaseException | None:
        """Await a disposal that has something to wait for; return what went wrong."""
        error: BaseException | None = None
        try:
            await Bounded(rest, self._timeout)
        except BaseException as e:
            error = e
        victim.conclude(error)
        return error

    def _tell_of(self, victim: Victim, error: BaseException) -> None:
        """Log a disposal's error; raise what ends the worker."""
        if isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, SystemExit)):
            raise error
        where = describe(victim.endpoint)
        if isinstance(error, HookTimeoutError):
            tell(logger, logging.ERROR, '%s: disposal of a connection to %s timed out', self._name, where)
        else:
            tell(logger, logging.ERROR, '%s: disposal of a connection to %s failed: %r', self._name, where, error)
