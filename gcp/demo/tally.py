"""What the workload has seen, by its own clock: the pools' statistics are not asked here."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from dataclasses import dataclass

__all__ = ['Reading', 'Tally', 'milliseconds']

PER_DECADE = 40  # waits are told to within 6 percent
SHORTEST = 1e-6


@dataclass(frozen=True)
class Reading:
    """A tally at one moment.

    :ivar asked: acquires begun
    :ivar served: acquires that got a connection
    :ivar done: pieces of work done
    :ivar lost: queries that failed with their connection, and were tried again
    :ivar failures: what went wrong and was not tried again, and how often
    :ivar waits: how many acquires waited how long, by the logarithm of their wait
    """

    asked: int
    served: int
    done: int
    lost: int
    failures: Counter[str]
    waits: Counter[int]


class Tally:
    """Counts, for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = self._served = self._done = self._lost = 0
        self._failures: Counter[str] = Counter()
        self._waits: Counter[int] = Counter()

    def ask(self) -> float:
        """Count an acquire that begins; return the time."""
        with self._lock:
            self._asked += 1
        return time.monotonic()

    def serve(self, asked: float) -> bool:
        """Count an acquire that got its connection. It is served: true.

        :param asked: when it began
        """
        wait = max(time.monotonic() - asked, SHORTEST)
        with self._lock:
            self._served += 1
            self._waits[round(PER_DECADE * math.log10(wait))] += 1
        return True

    def finish(self) -> None:
        with self._lock:
            self._done += 1

    def lose(self) -> None:
        with self._lock:
            self._lost += 1

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self._failures[f'{type(error).__name__}: {error}'.strip()] += 1

    def read(self) -> Reading:
        with self._lock:
            return Reading(
                self._asked, self._served, self._done, self._lost, self._failures.copy(), self._waits.copy())


def milliseconds(waits: Counter[int], part: float) -> str:
    """Tell how long a part of the acquires waited at most.

    :param waits: those of a reading, or the difference of two
    :param part: 0.5 for the median
    """
    left = part * waits.total()
    for bucket in sorted(waits):
        left -= waits[bucket]
        if left <= 0:
            return f'{1e3 * 10 ** (bucket / PER_DECADE):,.1f} ms'
    return '-'
