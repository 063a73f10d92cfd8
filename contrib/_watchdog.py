"""Time limits for operations of drivers that take none, or that react to a cancellation late: at the limit, the
connection is aborted. Knows no protocol."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from gcp.contrib._wire import shut_down
from gcp.waiting import is_patched

__all__ = ['Watchdog', 'run_with_watchdog']

ResultT = TypeVar('ResultT')

#: How long a coroutine may take to return once its connection is aborted, before it is cancelled, seconds.
ABORT_WAIT = 0.1


class Watchdog:
    """Limit how long a block may work on a connection: ``with Watchdog(conn.fileno(), 5.0, what='rollback'): ...``.

    At the limit the connection is shut down, which ends the block; `TimeoutError` is raised, whatever the block raised.
    The block must not close the descriptor. Costs a few microseconds: one thread serves all watchdogs, and sleeps until
    the first deadline.

    :param fd: the connection's descriptor
    :param limit: how long the block may take, seconds
    :param what: the operation, for the error
    """

    __slots__ = ('_fd', '_inode', '_limit', '_what', 'deadline', 'expired')

    def __init__(self, fd: int, limit: float, *, what: str) -> None:
        self._fd = fd
        self._limit = limit
        self._what = what
        self.deadline = math.inf
        self.expired = False

    def __enter__(self) -> None:
        self._inode = os.fstat(self._fd).st_ino
        self.deadline = time.monotonic() + self._limit
        try:
            _watchdog_thread.add(self)
        except BaseException:  # raised by a signal handler
            _watchdog_thread.remove(self)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _watchdog_thread.remove(self)
        if self.expired and (error is None or isinstance(error, Exception)):
            raise TimeoutError(f'{self._what}: not done within {self._limit:g} s') from error

    def expire(self) -> None:
        """Shut the connection down."""
        self.expired = True
        with contextlib.suppress(OSError):
            # a signal may have kept the block from removing its watchdog, and the descriptor may be reused
            if os.fstat(self._fd).st_ino == self._inode:
                shut_down(self._fd)


async def run_with_watchdog(
    work: Coroutine[Any, Any, ResultT],
    abort: Callable[[], object],
    limit: float,
    *,
    what: str,
) -> ResultT:
    """Limit how long a coroutine may work on a connection. At the limit, or when the caller is cancelled, abort the
    connection and raise; do not wait for what the driver does first, such as asking the server to cancel a command.

    :param work: the coroutine
    :param abort: aborts its connection
    :param limit: how long it may take, seconds
    :param what: the operation, for the error
    :raises TimeoutError: when it took longer
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=limit)
        if task.done():
            return task.result()
        await _abort(task, abort)
    except asyncio.CancelledError:
        if not task.done():
            await _abort(task, abort)
        raise
    raise TimeoutError(f'{what}: not done within {limit:g} s')


async def _abort(task: asyncio.Task[Any], abort: Callable[[], object]) -> None:
    task.add_done_callback(_forget_error)
    abort()
    try:
        await asyncio.wait([task], timeout=ABORT_WAIT)
    finally:
        task.cancel()


def _forget_error(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # else asyncio logs that it was never retrieved


class _WatchdogThread:
    """Keeps the active watchdogs, and a thread while there are any. The thread ends at its first idle wake-up."""

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Start empty: a forked child inherits a lock that may be held, but not the thread."""
        self._changed = threading.Condition()  # on an RLock: a signal handler may need it, too
        self._is_patched = is_patched()
        self._watchdogs: set[Watchdog] = set()
        self._is_awake = False
        self._wakes_at = math.inf

    def add(self, watchdog: Watchdog) -> None:
        if self._is_patched is not is_patched():  # gevent was loaded later: the condition would stop all greenlets
            self.reset_after_fork()
        with self._changed:
            self._watchdogs.add(watchdog)
            if not self._is_awake:
                self._wake()
            elif watchdog.deadline < self._wakes_at:
                self._changed.notify()

    def remove(self, watchdog: Watchdog) -> None:
        # the thread is not notified: an occasional useless wake-up costs less than a notification each time
        with self._changed:
            self._watchdogs.discard(watchdog)

    def _wake(self) -> None:
        try:
            threading.Thread(target=self._run, name='gcp-watchdog', daemon=True).start()
        except RuntimeError:  # the interpreter is shutting down and starts no threads
            return
        self._is_awake = True

    def _run(self) -> None:
        with self._changed:
            while self._watchdogs:
                now = time.monotonic()
                for watchdog in [watchdog for watchdog in self._watchdogs if watchdog.deadline <= now]:
                    self._watchdogs.discard(watchdog)
                    watchdog.expire()  # under the lock: once it is removed, its descriptor may be reused
                self._wakes_at = min((watchdog.deadline for watchdog in self._watchdogs), default=now)
                self._changed.wait(min(self._wakes_at - now, threading.TIMEOUT_MAX))
            self._is_awake = False


_watchdog_thread = _WatchdogThread()

if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_watchdog_thread.reset_after_fork)
