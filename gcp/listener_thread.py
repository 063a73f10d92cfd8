"""The thread that tells listeners of a pool's events. It begins with the first event, and ends with the pool."""

from __future__ import annotations

import inspect
import logging
import weakref
from collections import deque
from math import inf
from typing import Any

from gcp._core import EVENTS, count_listener_error, has_events, listen, take_events
from gcp.disposal import log
from gcp.disposal.threads import claim_start, start_daemon
from gcp.listener import PoolListener
from gcp.waiting import event_class, wait_for

__all__ = ['ListenerThread']

logger = logging.getLogger('gcp.listener')


def overridden(listener: PoolListener) -> list[str]:
    """Return the names of the methods that a listener overrides."""
    return [name for name in EVENTS if _function(getattr(listener, name)) is not getattr(PoolListener, name)]


def _function(method: Any) -> Any:
    return getattr(method, '__func__', method)


def check_listener(listener: object) -> None:
    """Check what a caller passes to `add_listener`.

    :raises TypeError: if it is no listener, or has a coroutine function
    """
    if not isinstance(listener, PoolListener):
        hint = (
            ': call it to make a listener' if inspect.isclass(listener) and issubclass(listener, PoolListener) else ''
        )
        raise TypeError(f'listener must be a gcp.PoolListener, not {type(listener).__name__}: {listener!r}{hint}')
    for name in overridden(listener):
        if inspect.iscoroutinefunction(getattr(listener, name)):
            raise TypeError(f'{type(listener).__name__}.{name} must be a plain function: it is called in a thread')


class ListenerThread:
    """Tells listeners of the events of one pool. It does not keep the pool alive."""

    def __init__(self, pool: Any) -> None:
        self._core = pool._core
        self._name = pool.name
        self._listeners: dict[int, PoolListener] = {}  # by id, in the order in which they were added
        self._logged: set[tuple[int, str]] = set()
        self.reset_after_fork()
        self._pool = weakref.ref(pool, lambda _: self.wake())

    def reset_after_fork(self) -> None:
        """Begin without a thread: a forked child has none."""
        self._event = event_class()()
        self._may_start = deque([True])  # empty while the thread runs

    def add(self, listener: PoolListener) -> None:
        """Tell a listener from now on."""
        check_listener(listener)
        self._listeners.setdefault(id(listener), listener)
        self._listen()

    def remove(self, listener: PoolListener) -> None:
        """Tell it no more."""
        self._listeners.pop(id(listener), None)
        self._logged.difference_update([(id(listener), name) for name in EVENTS])
        self._listen()
        self._event.set()

    def _listen(self) -> None:
        """Have those events queued of which a listener is told. It looks again afterwards: another thread may have
        added a listener, and have done this first."""
        while True:
            listeners = list(self._listeners.values())
            listen(self._core, {name for listener in listeners for name in overridden(listener)})
            if list(map(id, listeners)) == list(self._listeners):
                return

    def wake(self) -> None:
        """Have it look at what is queued. Takes no lock: it is called by any thread, and by signal handlers."""
        if self._may_start:
            start_daemon(self._run, 'gcp-listener')  # if that is not possible, the next event tries again
        self._event.set()

    # --- in the thread ---

    def _run(self) -> None:
        event, may_start = self._event, self._may_start
        if not claim_start(may_start):
            return
        while event is self._event:  # otherwise a listener has forked, and this is the child
            if events := take_events(self._core):
                self._tell(events, event)
            elif self._core.closed or self._pool() is None or not self._listeners:
                break
            else:
                wait_for(event, inf)
        may_start.append(True)
        if event is self._event and has_events(self._core):  # one came in meanwhile
            self.wake()

    def _tell(self, events: list[tuple[str, tuple[Any, ...]]], event: object) -> None:
        for name, arguments in events:
            for listener in list(self._listeners.values()):
                try:
                    getattr(listener, name)(*arguments)
                except BaseException as error:
                    self._report(listener, name, error)
                if event is not self._event:
                    return

    def _report(self, listener: PoolListener, name: str, error: BaseException) -> None:
        """Count an error of a listener; log the first one of each of its methods."""
        count_listener_error(self._core)
        if (id(listener), name) not in self._logged:
            self._logged.add((id(listener), name))
            log(logger, '%s: %s.%s failed: %r', self._name, type(listener).__name__, name, error)
