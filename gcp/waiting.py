"""Waiting for an event that another thread will set, and not waiting when no thread is left that could.

At interpreter exit Python joins all threads that are not daemons. A thread that waits for a connection which the main
thread held would be joined for ever. So when the main thread has ended and every other thread waits like that, without
a time limit, those threads are ended by `SystemExit`, which is silent in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf

from gcp._core import Event, set_main_thread

PAUSE = 0.05
"""How long to wait, once the main thread has ended, before looking again, seconds."""

LONGEST_WAIT = 1e6
"""The longest single wait on a patched lock, seconds."""

waiting: dict[int, Wait] = {}

serving: set[object] = set()
"""A token of each thread that works for others in the background at this moment, and may serve one that waits."""

exiting = False


def is_patched() -> bool:
    """Return whether `threading` makes something other than threads at this moment: greenlets of gevent or eventlet.

    Then the compiled `Event` must not be waited on: it would stop all greenlets of the thread."""
    return type(threading.Lock()).__module__ != '_thread'


class PatchedEvent:
    """As `Event`, on a lock of a patched `threading`: a wait stops only its greenlet.

    Setting it does not switch to another greenlet, so the core may set it anywhere. The lock is held while the event is
    not set, and nothing else says whether it is: any thread may set it, also several at the same time."""

    __slots__ = ('_has_waiter', '_lock')

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._has_waiter = False

    def set(self) -> None:
        """Wake the waiter, or the next one."""
        if self._lock.locked():
            try:
                self._lock.release()
            except RuntimeError:  # another thread was faster
                pass

    __call__ = set

    def wait(self, seconds: float = inf) -> bool:
        """Wait until the event is set, and clear it.

        :param seconds: how long to wait at most; ``inf``: without a limit
        :return: whether it was set
        """
        self._has_waiter = True
        try:
            if seconds == inf:
                acquired = self._lock.acquire()
            elif seconds > 0:
                acquired = self._lock.acquire(True, min(seconds, LONGEST_WAIT))
            else:
                acquired = self._lock.acquire(False)
            return acquired
        finally:
            self._has_waiter = False

    @property
    def awaited(self) -> bool:
        """Whether a greenlet waits for it at this moment, and has not been woken."""
        return self._has_waiter and self._lock.locked()


AnyEvent = Event | PatchedEvent


def event_class() -> Callable[[], AnyEvent]:
    """Return the class of events that a pool made now waits on."""
    return PatchedEvent if is_patched() else Event


class Wait:
    """One wait of a thread without a time limit.

    ``ended`` belongs to the wait, not to the thread: one that was served meanwhile, and waits again, is not ended."""

    __slots__ = ('ended', 'event')

    def __init__(self, event: AnyEvent) -> None:
        self.event = event
        self.ended = False


def wait_for(event: AnyEvent, seconds: float) -> bool:
    """Wait for an event that another thread will set.

    :param seconds: how long to wait at most; ``inf``: without a limit
    :return: whether it was set
    :raises SystemExit: if the interpreter is exiting and no thread is left that could set it
    """
    if seconds < threading.TIMEOUT_MAX:
        return event.wait(max(0.0, seconds))
    me = threading.get_ident()
    wait = waiting[me] = Wait(event)
    try:
        while not event.wait(PAUSE if exiting else float('inf')):
            end_stuck_threads(me)
    finally:
        waiting.pop(me, None)  # it may be gone: a signal handler may wait during a wait of its thread
    if wait.ended:
        raise SystemExit
    return True


def end_stuck_threads(me: int) -> None:
    """End all threads that wait, if no other thread is left but the pools' own.

    Threads begin and end waiting while this looks at them. So it looks at a copy, and takes a thread for stuck only
    while its event is neither set nor just received.

    :param me: the thread that calls this: it waits as well, but for this look
    """
    main = threading.main_thread()
    waits = waiting.copy()
    others = [thread for thread in threading.enumerate() if thread is not main and not thread.name.startswith('gcp-')]
    stuck = [waits[thread.ident] for thread in others if thread.ident in waits]
    if not serving and len(stuck) == len(others) and all(wait is waits[me] or wait.event.awaited for wait in stuck):
        for wait in stuck:
            wait.ended = True
            wait.event.set()


def begin_exit() -> None:
    """The main thread has ended: threads that wait look again, and from now on now and then."""
    global exiting  # noqa: PLW0603  # it is the process's
    exiting = True
    for wait in list(waiting.values()):
        wait.event.set()


set_main_thread(threading.main_thread().ident or 0)

# Called before Python joins the threads, which atexit's functions are not. concurrent.futures builds on it, too.
if hasattr(threading, '_register_atexit'):
    threading._register_atexit(begin_exit)
