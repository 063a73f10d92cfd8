"""Upper bounds of durations that hold on a busy machine."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

TASKS = Path('/proc/self/task')

#: Seconds. What takes longer has waited for something that does not end, or lasts for a minute at least: the only upper
#: bound of a duration that holds however busy the machine is.
SOON = 20.0


def attempts(most: float, number: int = 20) -> Iterator[None]:
    """Repeat the body of a loop until it has taken less than `most` seconds once: a busy machine delays some rounds.

    For a bound that cannot be `SOON`, because what it tells apart takes a second or two by itself.

    :raises AssertionError: when no round took less
    """
    shortest = math.inf
    for _ in range(number):
        began = time.monotonic()
        yield
        shortest = min(shortest, time.monotonic() - began)
        if shortest < most:
            return
    raise AssertionError(f'took {shortest:.3f} s at best, expected less than {most} s')


def starvation() -> float:
    """Return for how many seconds threads of this process were ready to run, and did not: the sum of those that live.

    Linux counts it for each thread ("Scheduler Statistics", second field of ``schedstat``). Elsewhere it is 0.
    """
    total = 0
    for task in TASKS.glob('*'):
        try:
            total += int((task / 'schedstat').read_text().split()[1])
        except (OSError, IndexError, ValueError):  # the thread has ended, or the kernel does not count
            pass
    return total / 1e9
