"""What has happened lately: the last events that the application has told of, or has seen between two looks.

Listeners of the pools tell of single events. What they are not told of is counted: each look at a pool is compared with
the one before."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ['Events']

KEPT = 200
REMEMBERED = 20_000  # endpoints of a pool
TOGETHER = 5.0  # seconds in which the same event of a pool is told of once, with its number
HEARD = ('acquires timeout', 'leaks')  # what listeners tell of, and is counted
UNKNOWN = ('closed', False, False)

#: what is told of a count that has grown, one and several
ACQUIRES = {
    'timeout': ('acquire timed out', 'acquires timed out'),
    'rejected': ('acquire was refused', 'acquires were refused'),
    'error': ('acquire failed', 'acquires failed'),
    'cancelled': ('acquire was cancelled', 'acquires were cancelled'),
}
FAILURES = {
    'transient': ('connect failed', 'connects failed'),
    'permanent': ('connect failed permanently', 'connects failed permanently'),
}
LEAKS = ('connection is held for longer than leak_threshold', 'connections are held for longer than leak_threshold')
BREAKER = {
    'open': 'unavailable: its breaker is open',
    'half_open': 'unavailable: a connect finds out whether it is back',
    'closed': 'available again: its breaker is closed',
}


class Events:
    """The last events of all pools.

    What a listener tells of is counted as well, and either may come first: each is told of once.

    :param keep: how many
    :ivar watcher: adds a listener to each new pool; ``None``: no page is mounted
    """

    def __init__(self, keep: int = KEPT) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=keep)
        self._lock = threading.RLock()  # reentrant: a finalizer may run here, and forget a pool
        self._counts: dict[int, dict[str, int]] = {}  # what was told of, and for all else what was counted
        self._ahead: dict[int, dict[str, int]] = {}  # what was counted, and told of before the listener did
        self._open: dict[tuple[int, str], tuple[float, int, dict[str, Any]]] = {}  # since when, and how often
        self._states: dict[int, dict[str, tuple[str, bool, bool]]] = {}  # of the endpoints of each pool
        self.watcher: Callable[[Any], None] | None = None
        self.since = time.time()

    def record(self, pool: str, what: str, endpoint: str | None = None, level: str = 'info') -> dict[str, Any]:
        """Add an event, and return it.

        :param pool: the name of the pool
        :param what: what has happened, as plain text
        :param endpoint: the endpoint, as it is shown
        :param level: ``'bad'`` or ``'info'``
        """
        event = {'time': time.time(), 'pool': pool, 'endpoint': endpoint, 'what': what, 'level': level}
        with self._lock:
            self._events.append(event)
        return event

    def latest(self, count: int) -> list[dict[str, Any]]:
        """Return the last events, the last one first."""
        with self._lock:  # a deque cannot be copied while a thread adds to it, and the last events may yet grow
            events = [event.copy() for event in self._events]
        return sorted(events, key=lambda event: event['time'])[::-1][:count]

    def watch(self, watcher: Callable[[Any], None]) -> bool:
        """Set the watcher. Returns whether there was none."""
        with self._lock:
            if self.watcher is not None:
                return False
            self.watcher = watcher
            return True

    def reset_after_fork(self) -> None:
        """Begin to count anew in a forked child, whose pools do. Another thread may have held the lock at the fork."""
        self._lock = threading.RLock()
        self._counts.clear()
        self._states.clear()
        self._open.clear()
        self._ahead = {number: dict.fromkeys(HEARD, 0) for number in self._ahead}

    # --- by listeners ---

    def begin(self, number: int) -> bool:
        """Note that a pool has a listener from now on. Returns whether it had none.

        :param number: identifies the pool
        """
        with self._lock:
            if number in self._ahead:
                return False
            self._counts.pop(number, None)
            self._ahead[number] = dict.fromkeys(HEARD, 0)
            return True

    def forget(self, number: int) -> None:
        """Forget what was counted and seen of a pool that is gone: another one may get its number."""
        with self._lock:
            self._counts.pop(number, None)
            self._states.pop(number, None)
            self._ahead.pop(number, None)
            for key in TOLD:
                self._open.pop((number, key), None)

    def heard(self, number: int, pool: str, key: str, endpoint: str, detail: str = '') -> None:
        """Tell of something that a listener was told of, unless it was counted before.

        :param key: one of those that are counted
        :param detail: more about it, as plain text
        """
        with self._lock:
            ahead = self._ahead.setdefault(number, dict.fromkeys(HEARD, 0))
            if ahead[key] > 0:
                ahead[key] -= 1
                return
            if number in self._counts:
                self._counts[number][key] += 1
            self._add(number, pool, key, 1, endpoint, detail)

    def _add(self, number: int, pool: str, key: str, count: int, endpoint: str | None, detail: str = '') -> None:
        """Tell of something that has happened a number of times: together with the same of a moment ago."""
        one, several = TOLD[key]
        began, before, event = self._open.get((number, key), (0.0, 0, {}))
        if not 0 <= time.time() - began <= TOGETHER:
            event = self.record(pool, '', endpoint, 'bad')
            began, before = event['time'], 0
        count += before
        self._open[number, key] = began, count, event
        event['what'] = f'{count:,} {one if count == 1 else several}{f", {detail}" if detail and count == 1 else ""}'
        event['time'] = time.time()
        if endpoint != event['endpoint']:
            event['endpoint'] = None  # several, or not known

    def breaker(self, number: int, pool: str, ident: str, endpoint: str, state: str, error: str | None) -> None:
        """Tell of a breaker that has opened or closed, unless that was seen before.

        :param ident: the id of the endpoint
        :param endpoint: the endpoint, as it is shown
        :param state: ``'open'`` or ``'closed'``
        :param error: why, as it is shown
        """
        with self._lock:
            states = self._states.setdefault(number, {})
            before = states.get(ident, UNKNOWN)
            if (before[0] == 'closed') == (state == 'closed'):
                return
            states[ident] = (state, *before[1:])
        said = f' ({error})' if error and state != 'closed' else ''
        self.record(pool, BREAKER[state] + said, endpoint, 'info' if state == 'closed' else 'bad')

    # --- by looks at the pool ---

    def compare(self, number: int, pool: str, total: Mapping[str, Any]) -> None:
        """Tell what a pool has counted since the last look at it.

        :param number: identifies the pool
        :param pool: its name
        :param total: its counts
        """
        now = flat(total)
        with self._lock:
            before = self._counts.setdefault(number, now)
            if before is now:
                return
            # counts only grow: where they are less than before, another look or a listener has come first
            self._counts[number] = {key: max(now[key], before[key]) for key in now}
            for key in TOLD:
                more = now[key] - before[key]
                if more > 0 and key in HEARD and number in self._ahead:
                    self._ahead[number][key] += more
                if more > 0:
                    self._add(number, pool, key, more, None)
        closed = {reason: now[reason] - before[reason] for reason in now if reason.startswith('closed ')}
        said = ', '.join(f'{count:,} {reason[7:]}' for reason, count in closed.items() if count > 0)
        if said:
            self.record(pool, f'connections closed: {said}')
        if now['created'] > before['created']:
            self.record(pool, f'connections opened: {now["created"] - before["created"]:,}')

    def compare_endpoint(self, number: int, pool: str, endpoint: Mapping[str, Any]) -> None:
        """Tell what has become of an endpoint since the last look at it."""
        state = endpoint['breaker'], bool(endpoint['suspended']), bool(endpoint['retiring'])
        with self._lock:
            states = self._states.setdefault(number, {})
            before = states.get(endpoint['id'], UNKNOWN)
            if len(states) > REMEMBERED:
                states.clear()
            states[endpoint['id']] = state
        name = endpoint['endpoint']
        if state[0] != before[0]:
            error = f' ({endpoint["last_error"]})' if endpoint['last_error'] and state[0] != 'closed' else ''
            self.record(pool, BREAKER[state[0]] + error, name, 'info' if state[0] == 'closed' else 'bad')
        if state[1] != before[1]:
            self.record(pool, 'suspended' if state[1] else 'resumed', name)
        if state[2] and not before[2]:
            self.record(pool, 'is being retired', name)


TOLD = {
    **{f'acquires {name}': said for name, said in ACQUIRES.items()},
    **{f'failed {name}': said for name, said in FAILURES.items()},
    'leaks': LEAKS,
}


def flat(total: Mapping[str, Any]) -> dict[str, int]:
    """Return the counts that are compared."""
    return {
        **{f'acquires {name}': total['acquires'][name] for name in ACQUIRES},
        **{f'failed {name}': total['connect_failures'][name] for name in FAILURES},
        **{f'closed {reason}': count for reason, count in total['closed'].items()},
        'leaks': total['leaks'],
        'created': total['created'],
    }
