"""What has happened lately: the last events that the application has told of, or has seen between two looks.

Whatever tells of single events, as a listener of a pool does, calls `Events.record`. Without it, each look at a pool is
compared with the one before: what was counted in between is an event."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

__all__ = ['Events']

KEPT = 200
REMEMBERED = 20_000  # looks at endpoints

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

    :param keep: how many
    """

    def __init__(self, keep: int = KEPT) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=keep)
        self._lock = threading.Lock()
        self._counts: dict[int, Mapping[str, int]] = {}
        self._states: dict[tuple[int, str], tuple[str, bool, bool]] = {}
        self.since = time.time()

    def record(self, pool: str, what: str, endpoint: str | None = None, level: str = 'info') -> None:
        """Add an event.

        :param pool: the name of the pool
        :param what: what has happened, as plain text
        :param endpoint: the endpoint, as it is shown
        :param level: ``'bad'`` or ``'info'``
        """
        self._events.append({'time': time.time(), 'pool': pool, 'endpoint': endpoint, 'what': what, 'level': level})

    def latest(self, count: int) -> list[dict[str, Any]]:
        """Return the last events, the last one first."""
        return list(self._events.copy())[::-1][:count]

    def compare(self, number: int, pool: str, total: Mapping[str, Any]) -> None:
        """Tell what a pool has counted since the last look at it.

        :param number: identifies the pool
        :param pool: its name
        :param total: its counts
        """
        now = flat(total)
        with self._lock:
            before = self._counts.get(number)
            self._counts[number] = now
        if before is None:
            return
        for key, (one, several) in TOLD.items():
            more = now[key] - before[key]
            if more > 0:
                self.record(pool, f'{more:,} {one if more == 1 else several}', level='bad')
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
            before = self._states.get((number, endpoint['id']), ('closed', False, False))
            if len(self._states) > REMEMBERED:
                self._states.clear()
            self._states[number, endpoint['id']] = state
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
