"""Looks for long waits, leaks and abandoned leases, in one thread for all pools of the process. It runs while there is
something to look for: a pool with a ``leak_threshold``, or an acquire that waits without a time limit."""

from __future__ import annotations

import gc
import logging
import os
import sys
import weakref
from collections import deque
from functools import partial
from math import inf
from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING, Any

from gcp._core import (
    HOLDERS_SHOWN,
    count_reclaim_run,
    find_holders,
    look_at_waits,
    look_for_leaks,
    set_monitored,
    tell_leak,
)
from gcp.disposal import SHORTEST_SLEEP
from gcp.disposal.threads import claim_start, start_daemon
from gcp.holders import describe_holders
from gcp.holders.messages import Messages
from gcp.waiting import AnyEvent, event_class

if TYPE_CHECKING:
    from gcp.holders import HolderInfo
    from gcp.options import Options

__all__ = ['MonitoredPool']

logger = logging.getLogger(__name__)

RECLAIM_INTERVAL = 9.0
"""The garbage collector is run at most so often for abandoned leases, seconds: no place of one is gone for longer than
10 s, with what it takes to look, to collect and to give it back."""

LOOK_INTERVAL = 1.0
"""How often to look whether a leaked connection has come back, or a holder of a pool that reclaims is gone, seconds."""

LONGEST_SLEEP = 3600.0
"""The longest sleep of the monitor, seconds."""

ABANDONED = 100
"""Among how many holders, the longest held first, those that are gone are looked for."""


class MonitoredPool:
    """What the monitor does for one pool. It does not keep the pool alive."""

    def __init__(self, pool: Any, options: Options) -> None:
        self._reclaims = options.reclaim_abandoned
        self._pool = weakref.ref(pool, self.end)
        self._warn_after = options.warn_after
        self._leaks: dict[int, tuple[HolderInfo, float]] = {}
        self._reclaimed_at = -RECLAIM_INTERVAL
        self._messages: Messages | None = None
        pool._core.describe_holders = describe_holders
        pool._core.on_lost = self.tell_lost
        self._begun = False

    def messages(self, pool: Any) -> Messages:
        """Return what logs for the pool. Takes no lock of `import` or `logging`: a signal may interrupt it."""
        if self._messages is None:
            front = next(kind.__module__ for kind in type(pool).__mro__ if kind.__module__.startswith('gcp.'))
            self._messages = Messages(sys.modules[front].logger, pool.name)
        return self._messages

    def begin(self) -> None:
        """Have the pool monitored from now on."""
        monitor.add(self)

    def ensure(self) -> None:
        """A connection is about to be made: have the pool monitored for leaks. Not before, so that a process that makes
        pools, and then forks, has no thread."""
        if not self._begun:
            self.begin()
            self._begun = True  # not before: a signal may come between

    def reset_after_fork(self) -> None:
        """Begin anew: a forked child has no monitor, and holds none of its parent's connections."""
        self._begun = False
        self._leaks.clear()
        pool = self._pool()
        if pool is not None:
            set_monitored(pool, False)

    def end(self, _: object = None) -> None:
        """Have it monitored no more: it is closed, or gone. A pool of a module may outlive the names of this one, at
        the end of the interpreter: there is no monitor then."""
        if monitor is not None:
            monitor.forget(self)

    def tell_nested(self, endpoint: Any) -> None:
        """Tell that an acquire waits for a connection of an endpoint of which its caller holds one."""
        pool = self._pool()
        if pool is not None:
            self.messages(pool).nested(endpoint, partial(find_holders, pool, endpoint, HOLDERS_SHOWN))

    def tell_lost(self, holder: HolderInfo) -> None:
        """Tell that a lease was garbage-collected."""
        pool = self._pool()
        if pool is not None:
            self.messages(pool).abandoned(holder)

    # --- in the monitor's thread ---

    def look(self) -> float | None:
        """Look at the pool once.

        :return: in how many seconds to look again; ``None``: there is nothing to look for any more
        """
        pool = self._pool()
        if pool is None or pool.closed:
            return None
        self._begun = False  # before it looks: a connect that it does not see begins the next look
        again = min(self._look_for_leaks(pool), self._look_at_waits(pool))
        if again == inf:
            return None
        self._begun = True
        return again

    @property
    def has_ended(self) -> bool:
        """Whether the pool is closed, or gone."""
        pool = self._pool()
        return pool is None or bool(pool.closed)

    def _look_for_leaks(self, pool: Any) -> float:
        threshold = pool._options.leak_threshold
        if threshold == inf and not self._leaks:
            return inf
        found, lasting, again = look_for_leaks(pool, self._leaks.keys())
        now = monotonic()
        for lease in self._leaks.keys() - lasting:
            holder, since = self._leaks.pop(lease)
            self.messages(pool).came_back(holder, now - since)
        for lease, holder in found:
            self._leaks[lease] = holder, now - holder.age
            self.messages(pool).leak(holder, threshold)
            tell_leak(pool._core, holder)
        return min(again, LOOK_INTERVAL) if self._leaks else float(again)

    def _look_at_waits(self, pool: Any) -> float:
        any_waits, waiter, block, holds_one = look_at_waits(pool)
        if not any_waits:
            return inf
        again = self._reclaim(pool) if self._reclaims else inf
        if waiter is not None and self._warn_after < inf:
            if waiter.age >= self._warn_after:
                find = partial(find_holders, pool, None, HOLDERS_SHOWN)
                self.messages(pool).long_wait(waiter, block, holds_one, find)
            again = min(again, max(LOOK_INTERVAL, self._warn_after - waiter.age))
        return min(again, max(self._warn_after, LOOK_INTERVAL))

    def _reclaim(self, pool: Any) -> float:
        """Run the garbage collector if the holder of a connection is gone. Returns when to look again, in seconds."""
        left = self._reclaimed_at + RECLAIM_INTERVAL - monotonic()
        if left > 0:
            return min(left, LOOK_INTERVAL)
        gone = [holder for holder in find_holders(pool, None, ABANDONED) if not holder.alive]
        if gone:
            self._reclaimed_at = monotonic()
            count_reclaim_run(pool)
            self.messages(pool).reclaimed(gone[:HOLDERS_SHOWN], gc.collect())
            pool._core.drain()
        return LOOK_INTERVAL


class Monitor:
    """The thread, and what it looks at. No lock is held here: a finalizer may ask it to forget a pool, also when the
    interpreter exits and the thread has ended wherever it was."""

    def __init__(self) -> None:
        self._due: dict[MonitoredPool, float] = {}  # without the one that is looked at now
        self._looked_at: MonitoredPool | None = None
        self._event: AnyEvent | None = None
        self._may_start = deque([True])  # empty while the thread runs

    def add(self, pool: MonitoredPool) -> None:
        """Look at a pool from now on, at once for the first time."""
        self._due[pool] = 0.0
        if self._may_start:
            start_daemon(self._work, 'gcp-monitor')  # one that is not needed ends at once
        else:
            self._wake()

    def forget(self, pool: MonitoredPool) -> None:
        """Look at a pool no more."""
        if self._due.pop(pool, None) is not None:
            self._wake()

    def _wake(self) -> None:
        event = self._event
        if event is not None:
            event.set()

    def _work(self) -> None:
        if not claim_start(self._may_start):
            return
        self._event = event_class()()  # not at import: gevent may patch `threading` after that
        while True:
            while (pool := self._next()) is not None:
                self._look_at(pool)
            self._may_start.append(True)
            if not self._due or not claim_start(self._may_start):
                return

    def _look_at(self, pool: MonitoredPool) -> None:
        try:
            again = pool.look()
        except Exception:
            logger.exception('a pool could not be monitored')
            again = LOOK_INTERVAL
        if again is not None:
            self._due.setdefault(pool, monotonic() + max(again, SHORTEST_SLEEP))  # unless a wait has begun meanwhile
            if pool.has_ended:
                self._due.pop(pool, None)
        self._looked_at = None

    def _next(self) -> MonitoredPool | None:
        """Wait until a pool is to be looked at, and return it; ``None``: there is none left."""
        event = self._event
        assert event is not None
        while due := list(self._due.items()):
            pool, when = min(due, key=itemgetter(1))
            seconds = when - monotonic()
            if seconds > 0:
                event.wait(min(seconds, LONGEST_SLEEP))
            else:
                self._looked_at = pool  # first: a fork at any moment finds it here or there
                if self._due.pop(pool, None) is not None:
                    return pool
                self._looked_at = None
        return None


monitor = Monitor()


def reset_after_fork() -> None:
    """A forked child has no monitor. One begins when something is to be monitored there."""
    global monitor  # noqa: PLW0603  # it is the process's
    pools = [monitor._looked_at, *monitor._due]
    monitor = Monitor()
    for one in pools:
        if one is not None:
            one.reset_after_fork()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=reset_after_fork)
