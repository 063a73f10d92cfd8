"""Working in small steps: the page must not keep other threads from running."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import perf_counter, sleep
from typing import TypeVar

__all__ = ['Pace']

T = TypeVar('T')

STEP = 0.0005  # how long to work before others may run, seconds
REST = 0.00005  # how long to sleep then: enough for a thread that waits for the GIL to get it, seconds


class Pace:
    """Lets other threads run about every half millisecond. A thread that waits for the GIL asks for it only after
    `sys.getswitchinterval`, 5 ms; a thread that sleeps gives it up at once."""

    def __init__(self) -> None:
        self._since = perf_counter()

    def step(self) -> None:
        """Rest, if the last rest was long ago. To be called between pieces of work that are short."""
        if perf_counter() - self._since > STEP:
            sleep(REST)
            self._since = perf_counter()

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield each item, with a rest in between where it is due."""
        for item in items:
            self.step()
            yield item
