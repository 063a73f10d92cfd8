"""Counts of a load, by its own clock and independent of the pools' statistics."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from dataclasses import dataclass

__all__ = ['Reading', 'Tally', 'milliseconds']

PER_DECADE = 40  # buckets per decade: waits are exact to 6 percent
SHORTEST = 1e-6


@dataclass(frozen=True)
class Reading:
    """The counts at one moment.

    :ivar asked: acquires that were started
    :ivar served: acquires that returned a connection
    :ivar done: completed queries
    :ivar retried: queries that failed because of their connection, and were retried
    :ivar failures: other failures, by message
    :ivar waits: acquires by the logarithm of their duration
    """

    asked: int
    served: int
    done: int
    retried: int
    failures: Counter[str]
    waits: Counter[int]


class Tally:
    """Thread-safe counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = self._served = self._done = self._retried = 0
        self._failures: Counter[str] = Counter()
        self._waits: Counter[int] = Counter()

    def begin(self) -> float:
        """Count an acquire that starts. Return the time."""
        with self._lock:
            self._asked += 1
        return time.monotonic()

    def acquired(self, asked: float) -> bool:
        """Count an acquire that returned a connection. Return True.

        :param asked: when it was started
        """
        wait = max(time.monotonic() - asked, SHORTEST)
        with self._lock:
            self._served += 1
            self._waits[round(PER_DECADE * math.log10(wait))] += 1
        return True

    def finish(self) -> None:
        with self._lock:
            self._done += 1

    def retry(self) -> None:
        with self._lock:
            self._retried += 1

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self._failures[f'{type(error).__name__}: {error}'.strip()] += 1

    def read(self) -> Reading:
        with self._lock:
            return Reading(
                self._asked, self._served, self._done, self._retried, self._failures.copy(), self._waits.copy()
            )


def milliseconds(waits: Counter[int], part: float) -> str:
    """Return a quantile of waits, formatted.

    :param waits: those of a reading, or the difference of two
    :param part: the quantile: 0.5 for the median
    """
    left = part * waits.total()
    for bucket in sorted(waits):
        left -= waits[bucket]
        if left <= 0:
            return f'{1e3 * 10 ** (bucket / PER_DECADE):,.1f} ms'
    return '-'
