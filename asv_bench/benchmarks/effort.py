"""How much is measured. By default little, in minutes; with ``GCP_BENCH=full`` in the environment, everything."""

from __future__ import annotations

import os
import time
from typing import TypeVar

T = TypeVar('T')

LEVELS = ('once', 'small', 'full')
"""The first is for tests of the suite itself."""

level = os.environ.get('GCP_BENCH') or 'small'
if level not in LEVELS:
    raise ValueError(f'GCP_BENCH must be one of {", ".join(LEVELS)}, not {level!r}')


def choose(once: T, small: T, full: T) -> T:
    """Return what fits the level."""
    return {'once': once, 'small': small, 'full': full}[level]


class Timed:
    """How the `time_` benchmarks of one thread are timed: by processor time, which other processes do not add to.

    asv runs `setup` before each sample, so a sample is one call; short operations are repeated a thousand times in it.
    """

    timer = time.process_time
    repeat = choose((1, 1, 1.0), (5, 100, 0.3), (10, 200, 5.0))
    warmup_time = choose(0.0, 0.05, 0.1)
