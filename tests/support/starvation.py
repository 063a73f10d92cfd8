"""How long this process had to wait for a core: what an upper bound of a duration must allow for on a busy machine."""

from __future__ import annotations

from pathlib import Path

TASKS = Path('/proc/self/task')


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
