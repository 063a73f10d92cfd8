"""Descriptors, deadlines and forks, for all managers of this package. Knows no protocol and no driver."""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import math
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, TypeVar, overload

__all__ = [
    'CLOSE_TIMEOUT',
    'LONGEST_TIMEOUT',
    'ForkGuard',
    'SocketManager',
    'UnsolicitedData',
    'check_unsolicited_data',
    'clamp',
    'deadline_in',
    'has_ended',
    'is_alive',
    'is_quiet',
    'is_writable',
    'peek',
    'restore_timeout',
    'run_in_thread',
    'shut_down',
    'socket_of',
    'time_left',
    'wait_ready',
    'wait_writable',
    'within',
]

ConnectionT = TypeVar('ConnectionT')
ResultT = TypeVar('ResultT')
UnsolicitedData = Literal['dead', 'allowed']

READABLE = select.POLLIN | select.POLLPRI

#: The peer has shut down its sending side, even if unread data comes before that. Not every platform has it.
HALF_CLOSED: int = getattr(select, 'POLLRDHUP', 0)

#: How long an orderly close may take before the connection is aborted, seconds.
CLOSE_TIMEOUT = 2.0

#: The longest single wait, seconds: poll(2) takes milliseconds in an int.
LONGEST_WAIT = 86400.0

#: The longest time-out that a socket takes, seconds: poll(2) again, 24 days. Longer ones count as no limit.
LONGEST_TIMEOUT = 2147483.0


def is_quiet(fd: int) -> bool:
    """Tell whether there is nothing to read: no data, no EOF, no error. Sends nothing and does not wait.

    poll, not recv: it works on a bare descriptor of any number, in any blocking mode, and reports "nothing" as a value,
    where `recv` would raise for every healthy connection (1 microsecond instead of 2).

    :param fd: the descriptor
    :raises ValueError: when it is negative, as that of a closed socket
    """
    poller = select.poll()
    poller.register(fd, READABLE)
    return not poller.poll(0)


def has_ended(fd: int) -> bool:
    """Tell whether the peer will send no more (EOF or error), even if unread data comes before that.

    :param fd: the descriptor
    :raises ValueError: when it is negative
    """
    poller = select.poll()
    poller.register(fd, HALF_CLOSED)
    return bool(poller.poll(0)) or (not HALF_CLOSED and not is_quiet(fd) and peek(fd) == b'')


def is_alive(fd: int, unsolicited_data: UnsolicitedData) -> bool:
    """Tell whether an idle connection can still be used, judging by what there is to read.

    :param fd: its descriptor; negative when the socket is closed
    :param unsolicited_data: what unsolicited data means
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


def wait_writable(socks: Iterable[socket.socket], timeout: float) -> None:
    """Wait until one of the sockets is writable or has failed.

    :param socks: the sockets
    :param timeout: how long to wait at most, seconds
    """
    poller = select.poll()
    for sock in socks:
        poller.register(sock, select.POLLOUT)
    poller.poll(min(timeout, LONGEST_WAIT) * 1000)


def wait_ready(fd: int, events: int, deadline: float, what: str) -> None:
    """Wait until a descriptor is ready.

    :param fd: the descriptor
    :param events: the events to wait for, as for poll(2)
    :param deadline: when to give up, see `deadline_in`
    :param what: the operation, for the error
    :raises TimeoutError: when it is not ready by then
    """
    poller = select.poll()
    poller.register(fd, events)
    while not poller.poll(min(time_left(deadline, what), LONGEST_WAIT) * 1000):
        pass


def peek(fd: int, size: int = 1) -> bytes:
    """Return the next bytes without consuming them; empty at EOF.

    :param fd: the descriptor
    :param size: how many bytes at most
    :raises BlockingIOError: when there is nothing to read
    """
    with socket_of(fd) as sock:
        return sock.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)


def shut_down(fd: int) -> None:
    """Shut a connection down in both directions, so that every thread that waits on it returns at once.

    The descriptor stays open; its owner closes it.

    :param fd: the descriptor; ignored when it is not a socket (any more)
    """
    with contextlib.suppress(OSError), socket_of(fd) as sock:
        sock.shutdown(socket.SHUT_RDWR)


def socket_of(fd: int) -> socket.socket:
    """Return a new socket object on a duplicate of a descriptor.

    :raises OSError: when the descriptor is not a socket
    """
    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except BaseException:  # the socket does not own the copy yet
        os.close(copy)
        raise


def restore_timeout(sock: socket.socket, timeout: float | None) -> None:
    """Restore the time-out and the blocking mode of a socket, if its user changed them, even by its descriptor.

    :param sock: the socket; nothing happens when it is closed
    :param timeout: its original time-out, seconds; ``None``: blocking; 0: non-blocking
    """
    try:
        if sock.gettimeout() != timeout or os.get_blocking(sock.fileno()) is not (timeout is None):
            sock.settimeout(timeout)
    except OSError:  # closed. (`suppress` costs as much as all the rest)
        pass


class ForkGuard(Generic[ConnectionT]):
    """Remembers in which process each connection was created.

    A connection inherited through a fork is still in use by the parent: anything sent from the child, even a close
    message, would corrupt the parent's session."""

    def __init__(self) -> None:
        self._pids: weakref.WeakKeyDictionary[ConnectionT, int] = weakref.WeakKeyDictionary()

    def record(self, conn: ConnectionT) -> None:
        """Remember a new connection."""
        self._pids[conn] = os.getpid()

    def is_inherited(self, conn: ConnectionT) -> bool:
        """Tell whether a connection was created in another process. An unknown one is taken for this process's."""
        here = os.getpid()
        return self._pids.get(conn, here) != here


class SocketManager(Generic[ConnectionT]):
    """What all managers of sockets and streams share.

    :param unsolicited_data: what data means that arrives while a connection is idle: ``'dead'`` or ``'allowed'``;
        ``None``: the class attribute of the same name decides
    :raises ValueError: for another value
    """

    unsolicited_data: UnsolicitedData
    _has_originals = False

    def __init__(self, *, unsolicited_data: UnsolicitedData | None = None) -> None:
        if unsolicited_data is not None:
            self.unsolicited_data = check_unsolicited_data(unsolicited_data)
        self._fork_guard = ForkGuard[ConnectionT]()
        #: Time-out or write limits of each connection when it was first acquired, so after the `create` of a subclass.
        self._originals: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def _remember_timeout(self, conn: Any) -> None:
        """Remember the time-out of a new socket, if it is not the usual one: an entry costs 1 microsecond a look.

        A subclass may return something else than a socket from `create`."""
        if not isinstance(conn, socket.socket):
            return
        if conn.gettimeout() != socket.getdefaulttimeout() and conn not in self._originals:
            self._originals[conn] = conn.gettimeout()
            self._has_originals = True

    def _restore_timeout(self, conn: Any) -> None:
        """Restore the time-out and the blocking mode of a socket."""
        if isinstance(conn, socket.socket):
            usual = socket.getdefaulttimeout()
            restore_timeout(conn, self._originals.get(conn, usual) if self._has_originals else usual)

    def clean_after_error(self, endpoint: Any, conn: Any, error: BaseException) -> bool:
        """Tell whether a connection can be reused although an error left the block that used it: never. Nothing shows
        where the last response ends, so the next user could read the rest of it.

        :param endpoint: its endpoint
        :param conn: the connection
        :param error: the error
        """
        return False


def check_unsolicited_data(value: object) -> UnsolicitedData:
    """Check the argument `unsolicited_data` and return it.

    :param value: ``'dead'`` or ``'allowed'``
    :raises ValueError: when it is neither
    """
    if value == 'dead':
        return 'dead'
    if value == 'allowed':
        return 'allowed'
    raise ValueError(f"unsolicited_data: 'dead' or 'allowed' was expected, not {value!r}")


def deadline_in(timeout: float | None) -> float:
    """Return when a time-out that starts now expires, on the monotonic clock.

    :param timeout: seconds; ``None``, or more than `LONGEST_TIMEOUT`: never
    """
    return math.inf if timeout is None or timeout > LONGEST_TIMEOUT else time.monotonic() + timeout


@overload
def clamp(timeout: float) -> float: ...


@overload
def clamp(timeout: None) -> None: ...


def clamp(timeout: float | None) -> float | None:
    """Return a time-out as a socket takes it.

    :param timeout: seconds; ``None``: no limit
    """
    return None if timeout is None else min(timeout, LONGEST_TIMEOUT)


def time_left(deadline: float, what: str) -> float:
    """Return how many seconds are left until a deadline.

    :param deadline: see `deadline_in`
    :param what: the operation, for the error
    :raises TimeoutError: when it has passed
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f'{what}: not done in time')
    return left


def run_in_thread(
    work: Callable[[], ResultT],
    discard: Callable[[ResultT], object] = lambda result: None,
) -> concurrent.futures.Future[ResultT]:
    """Run a function in a daemon thread of its own, in a copy of the caller's context, and return its future.

    Not in an executor: the function may hang, which would use up the executor's threads and delay interpreter exit.

    :param work: the function
    :param discard: called with the result when the future was cancelled; must not raise
    """
    outcome: concurrent.futures.Future[ResultT] = concurrent.futures.Future()
    run = contextvars.copy_context().run  # the function may read context variables
    threading.Thread(target=run, args=(_work, outcome, work, discard), name='gcp-deadline', daemon=True).start()
    return outcome


def within(
    timeout: float,
    work: Callable[[], ResultT],
    *,
    what: str,
    discard: Callable[[ResultT], object] = lambda result: None,
) -> ResultT:
    """Run a function that takes no time-out in a daemon thread, and wait for its result.

    After the time-out the thread goes on by itself, and discards its result.

    :param timeout: how long to wait, seconds
    :param work: the function
    :param what: the operation, for the error
    :param discard: called with a result that came too late; must not raise
    :raises TimeoutError: when it took longer
    """
    outcome = run_in_thread(work, discard)
    try:
        concurrent.futures.wait([outcome], min(timeout, threading.TIMEOUT_MAX))
        if outcome.cancel():  # fails once the function has returned, so each result has exactly one owner
            raise TimeoutError(f'{what}: not done within {timeout:g} s')
        return outcome.result()
    except BaseException:
        # KeyboardInterrupt may end the wait just when the result arrives
        if not outcome.cancel() and outcome.exception() is None:
            discard(outcome.result())
        raise
    finally:
        del outcome  # else the error, its traceback and this frame form a reference cycle


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
