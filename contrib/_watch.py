"""Ends what knows no deadline of its own, or cannot be cancelled at once, by breaking off the connection that it waits
on. Knows no protocol."""

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

from gcp.contrib._wire import hang_up

__all__ = ['Watch', 'watched']

ResultT = TypeVar('ResultT')

#: How long work may take to notice that its connection is gone, before it is cancelled and left to itself.
NOTICE = 0.1


class Watch:
    """Watch over work on a connection: ``with Watch(conn.fileno(), 5.0, what='rollback'): conn.rollback()``.

    At the limit the connection is broken off, which ends the work; whatever the work then says, `TimeoutError` is
    raised. The work must not close the descriptor. Costs a few microseconds: one thread watches all, and sleeps until
    the first deadline that there is.

    :param fd: the connection's descriptor
    :param limit: how long the work may take, seconds
    :param what: what is being done, for the error
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
            _watchman.add(self)
        except BaseException:  # a signal's
            _watchman.remove(self)
            raise

    def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None,
    ) -> None:
        _watchman.remove(self)
        if self.expired and (error is None or isinstance(error, Exception)):
            raise TimeoutError(f'{self._what}: not done within {self._limit:g} s') from error

    def expire(self) -> None:
        """Break the connection off."""
        self.expired = True
        with contextlib.suppress(OSError):
            # a watch that a signal kept from ending may have outlived its connection
            if os.fstat(self._fd).st_ino == self._inode:
                hang_up(self._fd)


async def watched(
        work: Coroutine[Any, Any, ResultT], break_off: Callable[[], object], limit: float, *, what: str,
) -> ResultT:
    """Watch over work of an asyncio driver: at the limit, or when the caller is cancelled, break its connection off and
    raise, whatever the driver would like to do first (such as to ask the server, politely, to cancel a command).

    :param work: the work
    :param break_off: breaks its connection off
    :param limit: how long it may take, seconds
    :param what: what is being done, for the error
    :raises TimeoutError: when it took longer
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=limit)
        if task.done():
            return task.result()
        await _break_off(task, break_off)
    except asyncio.CancelledError:
        if not task.done():
            await _break_off(task, break_off)
        raise
    raise TimeoutError(f'{what}: not done within {limit:g} s')


async def _break_off(task: asyncio.Task[Any], break_off: Callable[[], object]) -> None:
    task.add_done_callback(_forget_error)
    break_off()
    try:
        await asyncio.wait([task], timeout=NOTICE)
    finally:
        task.cancel()


def _forget_error(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # else asyncio complains that nobody looked


class _Watchman:
    """Keeps the watches that are on, and a thread as long as there are any, or nearly so."""

    def __init__(self) -> None:
        self.start_anew()

    def start_anew(self) -> None:
        """Forget all: a fork brings locks along, but no thread."""
        self._changed = threading.Condition()  # on a lock that a signal handler may take again
        self._watches: set[Watch] = set()
        self._is_awake = False
        self._wakes_at = math.inf

    def add(self, watch: Watch) -> None:
        with self._changed:
            self._watches.add(watch)
            if not self._is_awake:
                self._wake()
            elif watch.deadline < self._wakes_at:
                self._changed.notify()

    def remove(self, watch: Watch) -> None:
        # the thread is left asleep: that it wakes up for nothing once in a while costs less than to tell it each time
        with self._changed:
            self._watches.discard(watch)

    def _wake(self) -> None:
        try:
            threading.Thread(target=self._run, name='gcp-watch', daemon=True).start()
        except RuntimeError:  # the interpreter goes down, and starts none any more
            return
        self._is_awake = True

    def _run(self) -> None:
        with self._changed:
            while self._watches:
                now = time.monotonic()
                for watch in [watch for watch in self._watches if watch.deadline <= now]:
                    self._watches.discard(watch)
                    watch.expire()  # under the lock: once removed, its descriptor may be another's
                self._wakes_at = min((watch.deadline for watch in self._watches), default=now)
                self._changed.wait(min(self._wakes_at - now, threading.TIMEOUT_MAX))
            self._is_awake = False


_watchman = _Watchman()

if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_watchman.start_anew)
