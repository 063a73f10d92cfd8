"""Endpoints overload the total cap: how evenly they share it, and how much of it is lost to reconnecting."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import total_cap

from .rows import Row, at_least, at_most


def case_sharing(effort: float) -> Iterator[Row]:
    """5 endpoints overload a total cap of 10; 20 endpoints overload one of 5: shares, evictions, time in use"""
    few, many = total_cap.LOADS
    for front, share in total_cap.FRONTS.items():
        seen = share(total_cap.LOADS[few])
        equal = statistics.mean(seen.served)
        yield at_least(f'{few}, {front}: least served / equal share', 80, 100 * min(seen.served) / equal, ' %')
        yield at_most(f'{few}, {front}: most served / equal share', 120, 100 * max(seen.served) / equal, ' %')
        yield at_most(f'{few}, {front}: evictions / acquires', 1, 100 * seen.evicted / sum(seen.served), ' %')
        seen = share(total_cap.LOADS[many])
        equal = statistics.mean(seen.served)
        yield at_least(f'{many}, {front}: least served / equal share', 50, 100 * min(seen.served) / equal, ' %')
        yield at_least(f'{many}, {front}: time in use', 80, 100 * seen.used, ' %')
