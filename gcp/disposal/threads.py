"""Disposal in threads: workers that dispose of one victim at a time, a watchdog while one of them is stuck, and a
collector of what has expired."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from math import inf
from threading import get_ident
from time import monotonic, sleep
from typing import Any

from gcp._core import NO_ENDPOINT, Core, SyncPool, Victim, Worker, WorkerPool, dispose_here, gather
from gcp.disposal import COLLECT_BATCH, DISPOSE_GRACE, SHORTEST_SLEEP, WORKER_IDLE_TIME, report_disposal
from gcp.waiting import AnyEvent, event_class, wait_for

logger = logging.getLogger('gcp.threading')

starting: list[int] = []
"""The threads that start others now, by their idents. No lock: one stays locked if a signal comes just after it was
taken and the handler raises (Python 3.14)."""

exiting = False

START_PATIENCE = 5.0
"""How long the interpreter's exit waits for a thread that is being started, seconds."""

clock: Callable[[], float] | None = None
"""For tests: returns seconds."""


def start_daemon(target: Callable[[], object], name: str) -> bool:
    """Start a daemon thread. Returns whether that was possible: there may be too many, or the interpreter is exiting.

    A thread that starts while CPython finalizes may crash it (seen on 3.10), so from then on none is started."""
    ident = get_ident()
    starting.append(ident)
    try:
        if exiting:
            return False
        threading.Thread(target=target, name=name, daemon=True).start()
    except RuntimeError:
        return False
    finally:
        starting.remove(ident)
    return True


def claim_start(may_start: deque[bool]) -> bool:
    """Take the token of a thread of which one is enough; the thread calls this when it begins. Its starter does not: a
    signal may interrupt it, and then no thread would ever begin.

    :param may_start: holds the token while no thread has it
    :return: whether no other thread has it; otherwise the caller ends
    """
    try:
        return may_start.pop()
    except IndexError:
        return False


@atexit.register  # at import, so it runs after what programs have registered
def stop_starting() -> None:
    """The interpreter is exiting. A thread that is just being started is waited for."""
    global exiting  # noqa: PLW0603  # it is the process's
    exiting = True
    ident, deadline = get_ident(), monotonic() + START_PATIENCE
    while any(one != ident for one in starting.copy()) and monotonic() < deadline:
        sleep(0.001)


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=starting.clear)  # those threads do not exist in the child


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
        """Begin without workers: a forked child has none."""
        self._make_event = event_class()
        self._worker_pool = WorkerPool(self._core, clock, self._make_event)
        self._may_watch = deque([True])  # empty while the watchdog runs

    # --- in the caller's thread ---

    def dispose(self, own: object, seconds: float) -> None:
        """Dispose of all victims on behalf of a caller.

        Those of the caller's own endpoint are its own business: without a ``dispose_timeout`` they are disposed of in
        this thread, however long it takes. All others go to the workers.

        :param own: the caller's endpoint
        :param seconds: how long to wait for the workers at most
        """
        batch = self._worker_pool.dispose(own, seconds, self._dispose, self._timeout, self._start_worker, self.report)
        if batch is not None:
            self._watch()
            if batch.patience > 0:
                batch.wait(batch.patience)

    def dispose_all(self, seconds: float) -> None:
        """Dispose of all victims.

        :param seconds: how long to wait at most; ``inf``: dispose of them in this thread, if there is no
                        ``dispose_timeout``
        """
        if self._timeout is not None or seconds < inf:
            return self.dispose_in_background(seconds)
        while (batch := gather(self._core)) is not None:
            dispose_here(batch, self._dispose, self.report)

    def dispose_in_background(self, seconds: float) -> None:
        """Have the workers dispose of all victims.

        :param seconds: how long to wait for it at most
        """
        self.dispose(NO_ENDPOINT, seconds)

    dispose_soon = dispose_in_background

    def wait_for(self, event: AnyEvent, seconds: float) -> bool:
        """Wait in the queue. If that may be for a disposal that takes long, the watchdog looks after it.

        :param seconds: how long to wait at most; ``inf``: without a limit
        :return: whether the event was set
        """
        if self._core.disposing:
            grace = min(seconds, DISPOSE_GRACE)
            if wait_for(event, grace):
                return True
            if self._worker_pool.is_busy():
                self._watch()
            seconds -= grace
        return wait_for(event, seconds)

    # --- in the workers ---

    def _ensure_worker(self) -> None:
        """See to it that there is a worker that is not stuck."""
        if not self._worker_pool.wake_worker() and not self._worker_pool.has_free_worker(DISPOSE_GRACE):
            self._start_worker()

    def _start_worker(self) -> None:
        if not start_daemon(self._work, 'gcp-disposer') and not exiting:
            self._work(idle_time=0)

    def _work(self, idle_time: float = WORKER_IDLE_TIME) -> None:
        pool = self._worker_pool
        worker = Worker(pool, self._make_event())
        worker.join()
        try:
            while True:
                worker.work(self._dispose, self._timeout, self.report)
                if not idle_time or not worker.rest(idle_time):
                    break
        finally:
            worker.quit()
        if pool.has_work and pool is self._worker_pool:  # a batch came in meanwhile
            self._ensure_worker()

    def report(self, victim: Victim, error: BaseException, first: bool = True) -> None:
        """Log a disposal's error; raise it if it is no `Exception`.

        :param first: whether it was not given up before
        """
        if first:
            report_disposal(logger, self._name, victim.endpoint, error)
        if not isinstance(error, Exception):
            raise error

    # --- the watchdog ---

    def _watch(self) -> None:
        """Start the watchdog, unless it runs. If that is not possible now, the next wait tries again."""
        if self._may_watch:
            start_daemon(self._run_watchdog, 'gcp-watchdog')  # one that is not needed ends at once

    def _run_watchdog(self) -> None:
        """While disposals are in progress: give the work behind one that is stuck to another worker, and give up on
        those past their time."""
        may_watch = self._may_watch  # a fork replaces it
        if not claim_start(may_watch):
            return
        pause = self._make_event()
        while self._needs_watching():
            pause.wait(DISPOSE_GRACE)
            for victim, seconds in self._worker_pool.stuck(DISPOSE_GRACE):
                self._look_at(victim, seconds)
            if self._worker_pool.has_work:
                self._ensure_worker()
        may_watch.append(True)
        if self._needs_watching():  # a batch came in meanwhile
            self._watch()

    def _needs_watching(self) -> bool:
        return self._worker_pool.needs_watching(self._timeout is not None)

    def _look_at(self, victim: Victim, seconds: float) -> None:
        """Let no caller wait for a victim whose disposal takes long.

        :param seconds: how long it has taken so far
        """
        if not victim.overdue:
            victim.mark_overdue()
            self.dispose_in_background(0)  # another victim was chosen instead
        if self._timeout is not None and seconds >= self._timeout and victim.give_up():
            report_disposal(logger, self._name, victim.endpoint, None)


class Collector:
    """A daemon thread that disposes of what has expired. It does not keep its pool alive, and ends with it."""

    def __init__(self, pool: SyncPool[Any, Any], disposer: Disposer) -> None:
        self._core = pool._core
        self._disposer = disposer
        self.reset_after_fork()
        self._pool = weakref.ref(pool, lambda _: self.wake())
        self.ensure()

    def reset_after_fork(self) -> None:
        """Begin without a thread: a forked child has none."""
        self._event = event_class()()
        self._core.wake_collector = self._event.set  # compiled: no signal handler can run in it
        self._may_start = deque([True])  # empty while the thread runs

    def ensure(self) -> None:
        """Start the thread, unless it runs. If that is not possible now, the next creation tries again."""
        if self._may_start and not self._core.closed:
            start_daemon(self._run, 'gcp-collector')

    def wake(self) -> None:
        """Have it look again."""
        self._event.set()

    stop = wake  # it ends when it finds its pool closed

    def _run(self) -> None:
        core, disposer, event = self._core, self._disposer, self._event
        if not claim_start(self._may_start):
            return
        while not core.closed and self._pool() is not None:
            core.collect(COLLECT_BATCH)
            if core.has_victims:
                disposer.dispose_in_background(DISPOSE_GRACE)
            else:
                wait_for(event, max(core.next_expiry() - core.time(), SHORTEST_SLEEP))
