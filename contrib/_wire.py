"""Descriptors, deadlines and forks, for all managers of this package. Knows no protocol and no driver."""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import functools
import math
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, Literal, TypeVar, overload

from gcp._core import peek, poll_now, shut_down
from gcp.contrib._errors import classify_error, look_at_socket
from gcp.exceptions import ErrorClass

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
    'start_call',
    'time_left',
    'wait_for_outcome',
    'wait_ready',
    'wait_writable',
    'within',
]

ConnectionT = TypeVar('ConnectionT')
ResultT = TypeVar('ResultT')
WorkT = TypeVar('WorkT', bound=Callable[[], Any])
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
    where `recv` would raise for every healthy connection. The kernel's poll, not that of `select`: gevent replaces it
    by one that switches to other greenlets, and eventlet removes it.

    :param fd: the descriptor
    :raises ValueError: when it is negative, as that of a closed socket
    """
    return not poll_now(fd, READABLE)


def has_ended(fd: int) -> bool:
    """Tell whether the peer will send no more (EOF or error), even if unread data comes before that.

    :param fd: the descriptor
    :raises ValueError: when it is negative
    """
    return bool(poll_now(fd, HALF_CLOSED)) or (not HALF_CLOSED and not is_quiet(fd) and peek(fd) == b'')


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
    return bool(poll_now(fd, select.POLLOUT))


def wait_writable(socks: Iterable[socket.socket], timeout: float) -> None:
    """Wait until one of the sockets is writable or has failed.

    :param socks: the sockets
    :param timeout: how long to wait at most, seconds
    """
    _wait([sock.fileno() for sock in socks], select.POLLOUT, timeout)


def wait_ready(fd: int, events: int, deadline: float, what: str) -> None:
    """Wait until a descriptor is ready.

    :param fd: the descriptor
    :param events: the events to wait for, as for poll(2)
    :param deadline: when to give up, see `deadline_in`
    :param what: the operation, for the error
    :raises TimeoutError: when it is not ready by then
    """
    while not _wait([fd], events, time_left(deadline, what)):
        pass


def _wait(fds: list[int], events: int, timeout: float) -> bool:
    """Wait until one of the descriptors is ready; tell whether one is.

    :param fds: the descriptors
    :param events: the events to wait for, as for poll(2)
    :param timeout: how long to wait at most, seconds
    """
    timeout = min(timeout, LONGEST_WAIT)
    if not hasattr(select, 'poll'):  # eventlet has removed it
        reading, writing = (fds if events & event else [] for event in (select.POLLIN, select.POLLOUT))
        return any(select.select(reading, writing, [], timeout))
    poller = select.poll()
    for fd in fds:
        poller.register(fd, events)
    return bool(poller.poll(timeout * 1000))


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

    def classify(self, endpoint: Any, error: BaseException) -> ErrorClass:
        """Say what an error means, by the error of the system or of TLS in it. It only looks.

        :param endpoint: the endpoint
        :param error: the error of a create, or one that leaves the block of a connection's holder
        """
        return classify_error(error, self._look_at_error)

    def _look_at_error(self, error: BaseException) -> ErrorClass | None:
        return look_at_socket(error)


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
    key: Hashable = None,
) -> concurrent.futures.Future[ResultT]:
    """Run a function in a daemon thread of its own, in a copy of the caller's context, and return its future.

    Not in an executor: the function may hang, which would use up the executor's threads and delay interpreter exit.
    Where no thread can be started, run it in the caller's.

    :param work: the function
    :param discard: called with the result when the future was cancelled; must not raise
    :param key: see `start_call`
    """
    return start_call(work, discard, key)[0]


def start_call(
    work: WorkT,
    discard: Callable[[Any], object],
    key: Hashable = None,
) -> tuple[concurrent.futures.Future[Any], WorkT]:
    """As `run_in_thread`, but also return the function that runs: it may be an earlier call's.

    A function that hangs keeps its thread when its caller has given up, and the next caller starts the next one. So
    calls with the same key stand for each other: while one runs that its caller has given up, a new call takes it over
    and starts none. There are never more threads with a key than there were callers at a time.

    :param work: the function
    :param discard: called with the result when the future was cancelled; must not raise
    :param key: ``None``, or what cannot be hashed: the call stands for itself
    """
    outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()
    call = _calls.take_over(key, outcome) or _Call(work, discard, key, outcome)
    outcome.add_done_callback(functools.partial(_calls.abandon_if_cancelled, call))
    if call.work is work:
        context = contextvars.copy_context()  # the function may read context variables
        try:
            threading.Thread(target=context.run, args=(call.run,), name='gcp-deadline', daemon=True).start()
        except RuntimeError:  # there are too many threads, or the interpreter is exiting
            call.run()
    return outcome, call.work


def within(
    timeout: float,
    work: Callable[[], ResultT],
    *,
    what: str,
    discard: Callable[[ResultT], object] = lambda result: None,
    key: Hashable = None,
) -> ResultT:
    """Run a function that takes no time-out in a daemon thread, and wait for its result.

    After the time-out the thread goes on by itself, and discards its result, unless a call with the same key takes it
    over. Where no thread can be started, the function runs in the caller's, without a limit.

    :param timeout: how long to wait, seconds
    :param work: the function
    :param what: the operation, for the error
    :param discard: called with a result that came too late; must not raise
    :param key: see `start_call`
    :raises TimeoutError: when it took longer
    """
    return wait_for_outcome(run_in_thread(work, discard, key), timeout, what=what, discard=discard)


def wait_for_outcome(
    outcome: concurrent.futures.Future[ResultT],
    timeout: float,
    *,
    what: str,
    discard: Callable[[ResultT], object],
) -> ResultT:
    """Wait for the result of `run_in_thread`. Cancels it when that takes too long.

    :param outcome: the future
    :param timeout: how long to wait, seconds
    :param what: the operation, for the error
    :param discard: called with a result that came too late; must not raise
    :raises TimeoutError: when it took longer
    """
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


class _Call:
    """A function that runs in a thread of its own.

    :ivar outcome: the future of the caller that waits for it; ``None``: it was given up
    :ivar is_running: whether it has not returned yet
    """

    __slots__ = ('_discard', 'is_running', 'key', 'outcome', 'work')

    def __init__(self, work: Callable[[], Any], discard: Callable[[Any], object], key: Hashable, outcome: Any) -> None:
        self.work: Any = work
        self._discard = discard
        self.key = key
        self.outcome: concurrent.futures.Future[Any] | None = outcome
        self.is_running = True

    def run(self) -> None:
        try:
            result = self.work()
        except BaseException as error:
            outcome = _calls.finish(self)
            if outcome is not None and outcome.set_running_or_notify_cancel():
                outcome.set_exception(error)
            outcome = None  # else the error, its traceback and this frame form a reference cycle
        else:
            outcome = _calls.finish(self)
            if outcome is not None and outcome.set_running_or_notify_cancel():
                outcome.set_result(result)
            else:
                self._discard(result)


class _Calls:
    """The calls that run although their callers have given them up, by key."""

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Start empty: a forked child has no threads, and inherits a lock that may be held."""
        self._lock = threading.RLock()  # reentrant: a signal handler may use the pool
        self._abandoned: dict[Hashable, list[_Call]] = {}

    def take_over(self, key: Hashable, outcome: concurrent.futures.Future[Any]) -> _Call | None:
        """Return a call that was given up, now with a new future; ``None``: there is none."""
        try:
            hash(key)
        except TypeError:
            return None
        with self._lock:
            calls = self._abandoned.get(key)
            if not calls:
                return None
            call = calls.pop()
            if not calls:
                del self._abandoned[key]
            call.outcome = outcome
            return call

    def abandon_if_cancelled(self, call: _Call, outcome: concurrent.futures.Future[Any]) -> None:
        """Give up a call whose caller has cancelled its future, or forget one that nothing can take over."""
        if outcome.cancelled():
            with self._lock:
                if call.is_running and call.outcome is outcome:
                    call.outcome = None
                    if call.key is not None:
                        self._keep(call)

    def _keep(self, call: _Call) -> None:
        with contextlib.suppress(TypeError):  # the key cannot be hashed
            self._abandoned.setdefault(call.key, []).append(call)

    def finish(self, call: _Call) -> concurrent.futures.Future[Any] | None:
        """Note that a call has returned. Return the future that waits for it, if any."""
        with self._lock:
            call.is_running = False
            outcome, call.outcome = call.outcome, None
            if outcome is None and call.key is not None:
                self._drop(call)
            return outcome

    def _drop(self, call: _Call) -> None:
        with contextlib.suppress(TypeError, KeyError, ValueError):
            calls = self._abandoned[call.key]
            calls.remove(call)
            if not calls:
                del self._abandoned[call.key]


_calls = _Calls()

if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_calls.reset_after_fork)
