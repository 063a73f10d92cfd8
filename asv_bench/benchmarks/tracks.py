"""What `track_` benchmarks return: in which unit, whether more of it is better or less, and to four digits.

asv itself always takes less for better; `compare.py` reads these declarations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Track = Callable[..., float]


def less(unit: str) -> Callable[[Track], Track]:
    """Declare the unit of a value of which less is better."""
    return functools.partial(mark, unit=unit, more_is_better=False)


def more(unit: str) -> Callable[[Track], Track]:
    """Declare the unit of a value of which more is better."""
    return functools.partial(mark, unit=unit, more_is_better=True)


def mark(track: Track, unit: str, more_is_better: bool) -> Track:
    @functools.wraps(track)
    def rounded(*args: Any) -> float:
        return float(f'{track(*args):.4g}')

    vars(rounded).update(unit=unit, more_is_better=more_is_better)
    return rounded
