"""What the managers of this folder know about descriptors and deadlines. Knows no protocol and no driver."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ['hang_up', 'is_quiet', 'is_writable', 'peek', 'within']

ResultT = TypeVar('ResultT')

READABLE = select.POLLIN | select.POLLPRI


def is_quiet(fd: int) -> bool:
    """Tell whether nothing at all waits to be read: no data, no EOF, no error. Sends nothing, never waits.

    poll(2) and not recv(2): it takes a bare descriptor of any number, in whatever blocking mode, and says "nothing" by
    a value, where `recv` would raise on each and every healthy connection (1 microsecond against 2).

    :param fd: the descriptor
    :raises ValueError: when it is negative, as that of a closed socket is
    """
    poller = select.poll()
    poller.register(fd, READABLE)
    return not poller.poll(0)


def is_writable(fd: int) -> bool:
    """Tell whether a few bytes can be sent without waiting.

    :param fd: the descriptor
    :raises ValueError: when it is negative
    """
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return bool(poller.poll(0))


def peek(fd: int) -> bytes:
    """Return the first byte that waits to be read, and leave it there; nothing at EOF.

    :param fd: the descriptor
    :raises BlockingIOError: when nothing waits
    """
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)


def hang_up(fd: int) -> None:
    """Break a connection off in both directions, so that whoever waits on it, in any thread, returns at once.

    The descriptor stays open: its owner closes it.

    :param fd: the descriptor; one that is no socket any more is left alone
    """
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
        sock.shutdown(socket.SHUT_RDWR)


def within(
        timeout: float,
        work: Callable[[], ResultT],
        *,
        what: str,
        discard: Callable[[ResultT], object] = lambda result: None,
) -> ResultT:
    """Do work that knows no deadline in a daemon thread, and wait for it until the deadline.

    Past that the thread is left behind; should it still come to a result, it discards it.

    :param timeout: how long it may take
    :param work: the work
    :param what: what is being done, for the error
    :param discard: undoes a result that came too late; must not raise
    :raises TimeoutError: when it took longer
    """
    outcome: concurrent.futures.Future[ResultT] = concurrent.futures.Future()
    threading.Thread(target=_work, args=(outcome, work, discard), name='gcp-deadline', daemon=True).start()
    try:
        concurrent.futures.wait([outcome], min(timeout, threading.TIMEOUT_MAX))
        if outcome.cancel():  # refused once the work has ended, so that each result has exactly one owner
            raise TimeoutError(f'{what}: not done within {timeout:g} s')
        return outcome.result()
    except BaseException:
        # Ctrl-C may end the wait just when the result arrives
        if not outcome.cancel() and outcome.exception() is None:
            discard(outcome.result())
        raise
    finally:
        del outcome  # else an error and its own traceback keep each other alive


def _work(
        outcome: concurrent.futures.Future[ResultT],
        work: Callable[[], ResultT],
        discard: Callable[[ResultT], object],
) -> None:
    try:
        result = work()
    except BaseException as error:
        if outcome.set_running_or_notify_cancel():
            outcome.set_exception(error)
    else:
        if outcome.set_running_or_notify_cancel():
            outcome.set_result(result)
        else:
            discard(result)
