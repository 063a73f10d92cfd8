"""What the managers of this folder know about descriptors and deadlines. Knows no protocol and no driver."""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Generic, Literal, TypeVar

__all__ = [
    'GOODBYE_TIMEOUT',
    'Births',
    'SocketManager',
    'UnsolicitedData',
    'aside',
    'await_any',
    'await_io',
    'check_unsolicited_data',
    'deadline_in',
    'hang_up',
    'has_ended',
    'is_alive',
    'is_quiet',
    'is_writable',
    'peek',
    'socket_of',
    'time_left',
    'within',
]

ConnectionT = TypeVar('ConnectionT')
ResultT = TypeVar('ResultT')
UnsolicitedData = Literal['dead', 'allowed']

READABLE = select.POLLIN | select.POLLPRI

#: The peer will send no more, seen past whatever waits to be read before that; not known to each platform.
HALF_CLOSED: int = getattr(select, 'POLLRDHUP', 0)

#: How long a goodbye may take where nobody says, before a connection is broken off.
GOODBYE_TIMEOUT = 2.0

#: For how long to wait at a time: poll(2) counts milliseconds in an int.
LONGEST_WAIT = 86400.0


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


def has_ended(fd: int) -> bool:
    """Tell whether the peer will send no more, EOF or error, though data may still wait to be read before that.

    :param fd: the descriptor
    :raises ValueError: when it is negative
    """
    poller = select.poll()
    poller.register(fd, HALF_CLOSED)
    return bool(poller.poll(0)) or (not HALF_CLOSED and not is_quiet(fd) and peek(fd) == b'')


def is_alive(fd: int, unsolicited_data: UnsolicitedData) -> bool:
    """Tell whether an idle connection can still be used, from what waits to be read.

    :param fd: its descriptor; that of a closed socket is negative
    :param unsolicited_data: what data means that nobody asked for
    """
    try:
        return is_quiet(fd) or (unsolicited_data == 'allowed' and not has_ended(fd))
    except ValueError:  # closed
        return False


def is_writable(fd: int) -> bool:
    """Tell whether a few bytes can be sent without waiting.

    :param fd: the descriptor
    :raises ValueError: when it is negative
    """
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return bool(poller.poll(0))


def await_any(socks: Iterable[socket.socket], timeout: float) -> None:
    """Wait until something can be sent through one of some sockets, or an error is known of it.

    :param socks: the sockets
    :param timeout: for how long at most
    """
    poller = select.poll()
    for sock in socks:
        poller.register(sock, select.POLLOUT)
    poller.poll(min(timeout, LONGEST_WAIT) * 1000)


def await_io(fd: int, events: int, deadline: float, what: str) -> None:
    """Wait until a descriptor is ready.

    :param fd: the descriptor
    :param events: for what, as of poll(2)
    :param deadline: until when, as of `deadline_in`
    :param what: what is being done, for the error
    :raises TimeoutError: when it is not ready by then
    """
    poller = select.poll()
    poller.register(fd, events)
    while not poller.poll(min(time_left(deadline, what), LONGEST_WAIT) * 1000):
        pass


def peek(fd: int, size: int = 1) -> bytes:
    """Return the first byte, or bytes, of what waits to be read, and leave them there; nothing at EOF.

    :param fd: the descriptor
    :param size: how many bytes, at most
    :raises BlockingIOError: when nothing waits
    """
    with socket_of(fd) as sock:
        return sock.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)


def hang_up(fd: int) -> None:
    """Break a connection off in both directions, so that whoever waits on it, in any thread, returns at once.

    The descriptor stays open: its owner closes it.

    :param fd: the descriptor; one that is no socket any more is left alone
    """
    with contextlib.suppress(OSError), socket_of(fd) as sock:
        sock.shutdown(socket.SHUT_RDWR)


def socket_of(fd: int) -> socket.socket:
    """Return a socket of one's own for a descriptor.

    :raises OSError: when it is none of a socket
    """
    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except BaseException:  # which leaves the descriptor to us
        os.close(copy)
        raise


class Births(Generic[ConnectionT]):
    """In which process each connection was created.

    One that came through a fork is the parent's: a word said to it in the child, be it the goodbye, lands in the middle
    of the parent's conversation."""

    def __init__(self) -> None:
        self._births: weakref.WeakKeyDictionary[ConnectionT, int] = weakref.WeakKeyDictionary()

    def record(self, conn: ConnectionT) -> None:
        self._births[conn] = os.getpid()

    def was_here(self, conn: ConnectionT) -> bool:
        """Tell whether a connection was created in this process; one that is not known is taken to be."""
        here = os.getpid()
        return self._births.get(conn, here) == here


class SocketManager(Generic[ConnectionT]):
    """What all managers of sockets and streams share.

    :param unsolicited_data: what data means that arrives while a connection is idle: ``'dead'`` or ``'allowed'``;
        ``None``: the class attribute of the same name decides
    :raises ValueError: for another value
    """

    unsolicited_data: UnsolicitedData

    def __init__(self, *, unsolicited_data: UnsolicitedData | None = None) -> None:
        if unsolicited_data is not None:
            self.unsolicited_data = check_unsolicited_data(unsolicited_data)
        self._births = Births[ConnectionT]()


def check_unsolicited_data(value: object) -> UnsolicitedData:
    """Return what data that nobody asked for means to a manager, after a check.

    :param value: ``'dead'`` or ``'allowed'``
    :raises ValueError: when it is neither
    """
    if value == 'dead':
        return 'dead'
    if value == 'allowed':
        return 'allowed'
    raise ValueError(f"unsolicited_data: 'dead' or 'allowed' was expected, not {value!r}")


def deadline_in(timeout: float | None) -> float:
    """Return the time, on the monotonic clock, at which a time-out that starts now will have passed.

    :param timeout: ``None``: never
    """
    return math.inf if timeout is None else time.monotonic() + timeout


def time_left(deadline: float, what: str) -> float:
    """Return how long it is until a deadline.

    :param deadline: as of `deadline_in`
    :param what: what is being done, for the error
    :raises TimeoutError: when it has passed
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f'{what}: not done in time')
    return left


def aside(
        work: Callable[[], ResultT], discard: Callable[[ResultT], object] = lambda result: None,
) -> concurrent.futures.Future[ResultT]:
    """Do work that knows no deadline in a daemon thread, which may be left behind: neither others nor the end of the
    program wait for it, as they would for a thread of an executor.

    :param work: the work
    :param discard: undoes a result that comes when its future has been cancelled; must not raise
    """
    outcome: concurrent.futures.Future[ResultT] = concurrent.futures.Future()
    threading.Thread(target=_work, args=(outcome, work, discard), name='gcp-deadline', daemon=True).start()
    return outcome


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
    outcome = aside(work, discard)
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
