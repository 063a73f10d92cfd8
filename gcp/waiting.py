"""Waiting on a lock that another thread will release, and not waiting when no thread is left that could.

At interpreter exit Python joins all threads that are not daemons. One that waits for a connection which the main
thread held, say, would be waited for for ever. So when the main thread has ended and every other thread waits like
that, without a time limit, those threads are ended by `SystemExit`, which is silent in a thread."""

from __future__ import annotations

import threading

from gcp._core import Event

PAUSE = 0.05
"""How long to wait, once the main thread has ended, before looking around, seconds."""

blocked: dict[int, threading.Lock | Event] = {}
ended: set[int] = set()
exiting = False


def acquire_within(lock: threading.Lock | Event, timeout: float) -> bool:
    """Wait for a lock that somebody else will release.

    :param timeout: seconds; ``inf``: for ever
    :return: whether it was released
    :raises SystemExit: when the interpreter is going down and there is nobody left who could release it
    """
    if timeout < threading.TIMEOUT_MAX:
        return lock.acquire(timeout=max(0.0, timeout))
    me = threading.get_ident()
    blocked[me] = lock
    try:
        while not lock.acquire(timeout=PAUSE if exiting else -1):
            end_stuck_threads()
    finally:
        del blocked[me]
    if me in ended:
        ended.discard(me)
        raise SystemExit
    return True


def set_event(lock: threading.Lock | Event) -> None:
    """Release a lock that somebody may be waiting for. Once or twice is the same."""
    try:
        lock.release()
    except RuntimeError:
        pass


def end_stuck_threads() -> None:
    """End the threads that wait, if no other thread is left but the pools' own."""
    main = threading.main_thread()
    others = [t for t in threading.enumerate() if t is not main and not t.name.startswith('gcp-')]
    if all(thread.ident in blocked for thread in others):
        for ident in [thread.ident for thread in others if thread.ident is not None]:
            ended.add(ident)
            set_event(blocked[ident])


def leave() -> None:
    """The main thread has ended: those who wait look again, and from now on look around now and then."""
    global exiting  # noqa: PLW0603  # it is the process's
    exiting = True
    for lock in list(blocked.values()):
        set_event(lock)


# Called before Python joins the threads, which atexit's functions are not. concurrent.futures stands on it too.
if hasattr(threading, '_register_atexit'):
    threading._register_atexit(leave)
