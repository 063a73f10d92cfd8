"""Awaiting a hook, but not beyond its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from contextvars import Context
from math import inf
from typing import Any

from gcp._core import FutureEvent, time_out
from gcp.exceptions import HookTimeoutError


class Bounded:
    """Await a hook's coroutine in the same task, for so many seconds at most; then `HookTimeoutError` is raised.

    At the deadline, what the coroutine is waiting for is cancelled, as `asyncio.Task.cancel` would do it, but the task
    itself is not: a cancellation from outside stays distinct, on all versions of Python. A coroutine that never
    suspends costs no timer.

    :param hook: what the hook returned
    :param timeout: seconds; ``None``: no limit
    """

    def __init__(self, hook: Awaitable[Any], timeout: float | None) -> None:
        if not hasattr(hook, '__await__'):
            raise TypeError(
                f'an asynchronous hook must return an awaitable, not {type(hook).__name__}: is the manager'
                f' for gcp.threading.ConnectionPool?'
            )
        self._hook = hook
        self._timeout = timeout
        self._waiting: asyncio.Future[Any] | None = None
        self._expired = False
        self._missed = False  # at the deadline there was nothing to cancel
        self._cancelled = False  # from outside, although there was nothing to cancel

    def __await__(self) -> Generator[Any, Any, Any]:
        if self._timeout is None:
            return self._hook.__await__()
        return self._limited(self._hook.__await__())

    def _limited(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        try:
            self._waiting = next(steps)
        except StopIteration as stop:
            return stop.value
        assert self._timeout is not None
        before = cancellations()
        timer = asyncio.get_running_loop().call_later(max(0.0, self._timeout), self._expire, context=Context())
        try:
            return (yield from self._go_on(steps))
        except asyncio.CancelledError:
            if self._expired and not self._cancelled and cancellations() == before:
                raise HookTimeoutError(f'a hook took longer than {self._timeout:.3g} s') from None
            raise
        finally:
            timer.cancel()

    def _go_on(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        try:
            while True:
                try:
                    yield self._waiting  # an event loop sends nothing back
                except GeneratorExit:
                    close(steps)
                    raise
                except BaseException as error:
                    self._cancelled = self._missed and isinstance(error, asyncio.CancelledError)
                    self._waiting = throw(steps, self._cancellation() or error)
                else:
                    cancellation = self._cancellation()
                    self._waiting = next(steps) if cancellation is None else throw(steps, cancellation)
        except StopIteration as stop:
            return stop.value

    def _expire(self) -> None:
        self._expired = True
        # After a bare yield, or when the awaited future is done, nothing is left to cancel: the cancellation is raised
        # when the coroutine goes on, as in a task.
        self._missed = self._waiting is None or not self._waiting.cancel()

    def _cancellation(self) -> BaseException | None:
        """Return the cancellation that is still to be delivered, once."""
        missed, self._missed = self._missed, False
        return asyncio.CancelledError() if missed else None


class Started:
    """The rest of an awaitable that was begun elsewhere.

    :param steps: its iterator
    :param waiting: what it waits for
    """

    def __init__(self, steps: Generator[Any, Any, Any], waiting: Any) -> None:
        self._steps = steps
        self._waiting = waiting

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            yield self._waiting
        except GeneratorExit:
            close(self._steps)
            raise
        except BaseException as error:
            try:
                self._waiting = throw(self._steps, error)
            except StopIteration as stop:
                return stop.value
            return (yield from self.__await__())
        return (yield from self._steps)


async def wait_for(event: FutureEvent, seconds: float) -> bool:
    """Wait for an event.

    :param seconds: how long to wait at most; ``inf``: without a limit
    :return: whether it was set
    """
    if seconds <= 0:
        return False
    timer = None
    if seconds < inf:
        timer = asyncio.get_running_loop().call_later(seconds, time_out, event.future, context=Context())
    try:
        return bool(await event.future)
    finally:
        if timer is not None:
            timer.cancel()


def without_limit(hook: Awaitable[Any]) -> Generator[Any, Any, Any]:
    """Begin to await a hook, however long it takes."""
    return Bounded(hook, None).__await__()


def throw(steps: Generator[Any, Any, Any], error: BaseException) -> Any:
    """Go on with an error. An awaitable's iterator need not be a generator (PEP 492): then the error is raised here."""
    if not hasattr(steps, 'throw'):
        raise error
    return steps.throw(error)


def close(steps: Generator[Any, Any, Any]) -> None:
    """Close an iterator, if it can be closed."""
    if hasattr(steps, 'close'):
        steps.close()


def cancellations() -> int:
    """Return how many requests to cancel the current task it has not taken back with `uncancel`, 0 before Python 3.11.
    A task that has swallowed a cancellation keeps its count for good, so only a difference says that it is cancelled.
    """
    task = asyncio.current_task()
    return 0 if task is None else getattr(task, 'cancelling', int)()
