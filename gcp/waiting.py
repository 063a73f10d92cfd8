"""Waiting for an event that another thread will set, and not waiting when no thread is left that could.

At interpreter exit Python joins all threads that are not daemons. A thread that waits for a connection which the main
thread held would be joined for ever. So when the main thread has ended and every other thread waits like that, without
a time limit, those threads are ended by `SystemExit`, which is silent in a thread."""

from __future__ import annotations

import threading

from gcp._core import Event

PAUSE = 0.05
"""How long to wait, once the main thread has ended, before looking again, seconds."""

waiting: dict[int, Event] = {}
ended: set[int] = set()
exiting = False


def wait_for(event: Event, seconds: float) -> bool:
    """Wait for an event that another thread will set.

    :param seconds: how long to wait at most; ``inf``: without a limit
    :return: whether it was set
    :raises SystemExit: if the interpreter is exiting and no thread is left that could set it
    """
    if seconds < threading.TIMEOUT_MAX:
        return event.wait(max(0.0, seconds))
    me = threading.get_ident()
    waiting[me] = event
    try:
        while not event.wait(PAUSE if exiting else float('inf')):
            end_stuck_threads()
    finally:
        del waiting[me]
    if me in ended:
        ended.discard(me)
        raise SystemExit
    return True


def end_stuck_threads() -> None:
    """End the threads that wait, if no other thread is left but the pools' own."""
    main = threading.main_thread()
    others = [thread for thread in threading.enumerate() if thread is not main and not thread.name.startswith('gcp-')]
    if all(thread.ident in waiting for thread in others):
        for ident in [thread.ident for thread in others if thread.ident is not None]:
            event = waiting[ident]
            if not event.wait(0):  # one that was set just now has served its thread
                ended.add(ident)
            event.set()


def begin_exit() -> None:
    """The main thread has ended: threads that wait look again, and from now on now and then."""
    global exiting  # noqa: PLW0603  # it is the process's
    exiting = True
    for event in list(waiting.values()):
        event.set()


# Called before Python joins the threads, which atexit's functions are not. concurrent.futures builds on it, too.
if hasattr(threading, '_register_atexit'):
    threading._register_atexit(begin_exit)
