"""Disposal in threads: workers that dispose, one victim at a time, and a watchdog while one of them is stuck."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable
from math import inf
from typing import Any

from gcp._core import Batch, Core, Event, Victim, Worker, WorkerPool, describe, dispose_here, gather
from gcp.disposal import DISPOSE_GRACE, WORKER_IDLE_TIME, origin_of, tell

logger = logging.getLogger('gcp.threading')


starting = threading.RLock()
going_down = False


def start_daemon(target: Callable[[], object], name: str) -> bool:
    """Start a daemon thread; tell whether that was possible: there may be too many, or the interpreter is going down.

    A thread that is born while CPython takes itself apart may crash it (seen on 3.10), so from then on none is."""
    with starting:
        if going_down:
            return False
        try:
            threading.Thread(target=target, name=name, daemon=True).start()
        except RuntimeError:
            return False
        return True


@atexit.register    # at import, and so after whatever programs have registered
def stop_starting() -> None:
    """The interpreter is going down. Who is just starting a thread is waited for."""
    global going_down  # noqa: PLW0603  # it is the process's
    with starting:
        going_down = True


def after_fork_in_child() -> None:
    """Forget who was starting a thread: it is not here."""
    global starting  # noqa: PLW0603  # it is the process's
    starting = threading.RLock()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=after_fork_in_child)


clock: Callable[[], float] | None = None
"""For tests, a clock of their own: returns seconds."""


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
        """Begin without workers: a forked child has none."""
        self._crew = WorkerPool(self._core, clock)
        self._watching = False

    # --- in the caller's thread ---

    def dispose(self, own: object, wait: float | None) -> None:
        """Dispose of all victims on behalf of a caller.

        Those of the caller's own endpoint are its own business: without a ``dispose_timeout`` they are disposed of
        here, however long it takes. All others go to the workers.

        :param own: the caller's endpoint
        :param wait: how long to wait for the workers, seconds; ``None``: until they are done
        """
        batch = self._gather()
        if batch is None:
            return
        mine = batch.concerns(own)
        if mine and self._timeout is None:
            dispose_here(batch, self._dispose, self.report)
        else:
            self._hand_over(batch, self._timeout if mine else wait)

    def dispose_all(self) -> None:
        """Dispose of all victims, however long it takes: in this thread, unless there is a ``dispose_timeout``."""
        if self._timeout is not None:
            return self.dispose_in_background(None)
        while (batch := gather(self._core)) is not None:
            dispose_here(batch, self._dispose, self.report)

    def dispose_in_background(self, wait: float | None) -> None:
        """Have all victims disposed of by the workers.

        :param wait: how long to wait for it, seconds; ``None``: until it is done
        """
        batch = self._gather()
        if batch is not None:
            self._hand_over(batch, wait)

    def _gather(self) -> Batch | None:
        return gather(self._core, Event(), origin_of(self._core))

    def _hand_over(self, batch: Batch, wait: float | None) -> None:
        soon = DISPOSE_GRACE if wait is None else min(wait, DISPOSE_GRACE)
        if self._crew.hand_over(batch, soon, DISPOSE_GRACE, self._start_worker) or wait == 0:
            return
        self.watch()
        if wait is None or wait > DISPOSE_GRACE:
            batch.wait(inf if wait is None else wait - DISPOSE_GRACE)

    @property
    def is_busy(self) -> bool:
        """Whether disposals are under way."""
        return self._crew.is_busy()

    def watch(self) -> None:
        """Something takes long: keep an eye on it."""
        if not self._watching:
            self._watching = True
            if not start_daemon(self._watch, 'gcp-watchdog'):
                self._watching = False

    # --- in the workers ---

    def _ensure_worker(self) -> None:
        """See to it that somebody works who is not stuck."""
        if not self._crew.call() and not self._crew.has_free_worker(DISPOSE_GRACE):
            self._start_worker()

    def _start_worker(self) -> None:
        if not start_daemon(self._work, 'gcp-disposer') and not going_down:
            self._work(idle_time=0)

    def _work(self, idle_time: float = WORKER_IDLE_TIME) -> None:
        worker_pool = self._crew
        worker = Worker(worker_pool, Event())
        worker.join()
        try:
            while True:
                worker.work(self._dispose, self._timeout, self.report)
                if not idle_time or not worker.rest(idle_time):
                    break
        finally:
            worker.quit()
        if worker_pool.has_work and worker_pool is self._crew:    # it came in just now
            self._ensure_worker()

    def _watch(self) -> None:
        """While somebody is at work: give what waits behind one who is stuck to another, and give up on those past
        their time."""
        pause = threading.Lock()
        pause.acquire()
        while self._needs_watching():
            pause.acquire(timeout=DISPOSE_GRACE)
            for victim, seconds in self._crew.stuck(DISPOSE_GRACE):
                self._give_up_on(victim, seconds)
            if self._crew.has_work:
                self._ensure_worker()
        self._watching = False
        if self._needs_watching():      # it came in just now
            self.watch()

    def _needs_watching(self) -> bool:
        return self._crew.needs_watching(self._timeout is not None)

    def _give_up_on(self, victim: Victim, seconds: float) -> None:
        """Let nobody wait for one whose disposal takes long.

        :param seconds: how long it has taken so far
        """
        if not victim.overdue:
            victim.overdue = True
            self._core.overdue(victim)
            self.dispose_in_background(0)      # somebody else was chosen instead
        if self._timeout is not None and seconds >= self._timeout and victim.give_up():
            where = describe(victim.endpoint)
            tell(logger, logging.ERROR, '%s: disposal of a connection to %s timed out', self._name, where)

    def report(self, victim: Victim, error: BaseException, first: bool = True) -> None:
        """Log a disposal's error; raise what is more than that.

        :param first: whether nobody was told that it takes too long
        """
        if first:
            where = describe(victim.endpoint)
            tell(logger, logging.ERROR, '%s: disposal of a connection to %s failed: %r', self._name, where, error)
        if not isinstance(error, Exception):
            raise error
