"""Disposal in threads: workers that dispose, one victim at a time, and a watchdog while one of them is stuck."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from gcp._core import Core, Victim, describe, dispose_of
from gcp.disposal import COURTESY, LINGER, origin_of, tell

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


class Latch:
    """Opens when all victims of a caller are gone."""

    def __init__(self, count: int) -> None:
        self._last = [True] + [False] * (count - 1)
        self._lock = threading.Lock()
        self._lock.acquire()

    def count_down(self) -> None:
        if self._last.pop():
            self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        return self._lock.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))


class Job:
    """One victim in the hands of a worker."""

    __slots__ = ('done', 'latch', 'origin', 'overdue', 'started', 'told', 'victim')

    def __init__(self, victim: Victim, latch: Latch | None, origin: object = None) -> None:
        self.victim = victim
        self.latch = latch
        self.origin = origin    # of its span, in the background
        self.started = 0.0
        self.overdue = False    # nobody counts on its place any more
        self.told = False       # its caller was let go
        self.done = False

    def end(self) -> bool:
        """Let the caller go, once; tell whether this was the first time."""
        first, self.told = not self.told, True
        if first and self.latch is not None:
            self.latch.count_down()
        return first


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
        """Begin without workers: a forked child has none."""
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._busy: dict[int, Job | None] = {}
        self._open: set[Job] = set()        # queued or in work
        self._watching = False

    # --- in the caller's thread ---

    def reap(self, own: object, wait: float | None) -> None:
        """Dispose of all victims on behalf of a caller.

        Those of the caller's own endpoint are its own business: without a ``dispose_timeout`` they are disposed of
        here, however long it takes. All others go to the workers.

        :param own: the caller's endpoint
        :param wait: how long to wait for the workers, seconds; ``None``: until they are done
        """
        victims = deque(iter(self._core.victim, None))
        mine = all(victim.concerns(own) for victim in victims)
        if mine and self._timeout is None:
            while victims:
                self._dispose_of(Job(victims.popleft(), None))
        elif victims:
            self._hand_over(victims, self._timeout if mine else wait)

    def reap_all(self) -> None:
        """Dispose of all victims, however long it takes: in this thread, unless there is a ``dispose_timeout``."""
        if self._timeout is not None:
            return self.reap_aside(None)
        while (victim := self._core.victim()) is not None:
            self._dispose_of(Job(victim, None))

    def reap_aside(self, wait: float | None) -> None:
        """Have all victims disposed of by the workers.

        :param wait: how long to wait for it, seconds; ``None``: until it is done
        """
        victims = deque(iter(self._core.victim, None))
        if victims:
            self._hand_over(victims, wait)

    def _hand_over(self, victims: deque[Victim], wait: float | None) -> None:
        latch = Latch(len(victims))
        origin = origin_of(self._core)
        self._man()     # before and after: neither a signal nor a worker that just goes may leave a job to nobody
        while victims:
            job = Job(victims.popleft(), latch, origin)
            self._jobs.put(job)     # before it is entered: a signal between the two then costs no more than a watch
            self._open.add(job)
            if job.done:
                self._open.discard(job)
        self._man()
        if wait == 0 or latch.wait(COURTESY if wait is None else min(wait, COURTESY)):
            return
        self.watch()
        if wait is None or wait > COURTESY:
            latch.wait(None if wait is None else wait - COURTESY)

    @property
    def is_busy(self) -> bool:
        """Whether disposals are under way."""
        return any(not job.done for job in list(self._open))

    def watch(self) -> None:
        """Something takes long: keep an eye on it."""
        if not self._watching:
            self._watching = True
            self._start(self._watch, 'gcp-watchdog')

    # --- in the workers ---

    def _man(self) -> None:
        """See to it that somebody works who is not stuck."""
        if not any(self._is_free(job) for job in list(self._busy.values())):
            self._start(self._work, 'gcp-disposer')

    def _is_free(self, job: Job | None) -> bool:
        return job is None or time.monotonic() - job.started < COURTESY

    def _start(self, target: Callable[[], None], name: str) -> None:
        if start_daemon(target, name):
            return
        self._watching = False
        if target == self._work and not going_down:
            self._work(linger=0)

    def _work(self, linger: float = LINGER) -> None:
        me = threading.get_ident()
        busy, jobs = self._busy, self._jobs
        while True:
            busy[me] = None
            try:
                job = jobs.get(timeout=linger) if linger else jobs.get_nowait()
            except queue.Empty:
                break
            job.started = time.monotonic()
            busy[me] = job
            try:
                self._dispose_of(job)
            except BaseException:
                pass            # logged; a worker has nobody to raise it to
            del job
        busy.pop(me, None)
        if not jobs.empty():    # it came in just now
            self._man()

    def _watch(self) -> None:
        """While somebody is at work: give what waits behind one who is stuck to another, and give up on those past
        their time."""
        pause = threading.Lock()
        pause.acquire()
        while any(self._needs_watching(job) for job in list(self._open)):
            pause.acquire(timeout=COURTESY)
            for job in list(self._open):
                if job.started and not self._is_free(job):
                    self._give_up_on(job)
            if not self._jobs.empty():
                self._man()
        self._watching = False
        if any(self._needs_watching(job) for job in list(self._open)):     # it came in just now
            self.watch()

    def _needs_watching(self, job: Job) -> bool:
        return not (job.done or (job.told if self._timeout is not None else job.overdue))

    def _give_up_on(self, job: Job) -> None:
        """Let nobody wait for one who is stuck."""
        if not job.overdue:
            job.overdue = True
            self._core.overdue(job.victim)
            self.reap_aside(0)      # somebody else was chosen instead
        if self._timeout is not None and time.monotonic() - job.started >= self._timeout and job.end():
            job.victim.give_up()
            where = describe(job.victim.endpoint)
            tell(logger, logging.ERROR, '%s: disposal of a connection to %s timed out', self._name, where)

    def _dispose_of(self, job: Job) -> None:
        victim = job.victim
        error: BaseException | None = None
        try:
            error = dispose_of(victim, self._dispose, self._timeout, job.origin)
        finally:
            if not victim.started:      # a signal came first
                self._core.spare(victim)
            job.done = True
            self._open.discard(job)
            first = job.end()
        if error is not None:
            self.tell_of(victim, error, first)

    def tell_of(self, victim: Victim, error: BaseException, first: bool = True) -> None:
        """Log a disposal's error; raise what is more than that.

        :param first: whether nobody was told that it takes too long
        """
        if first:
            where = describe(victim.endpoint)
            tell(logger, logging.ERROR, '%s: disposal of a connection to %s failed: %r', self._name, where, error)
        if not isinstance(error, Exception):
            raise error
