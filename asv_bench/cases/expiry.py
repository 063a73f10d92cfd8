"""Idle connections that all expire at once: what each costs the pool until it is disposed of.

Processor time of the whole process, with the collector's thread, and the acquires and releases that dispose. The
manager's `dispose` does nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import expiry

from .contest import interleave, repetitions
from .rows import Row, at_most


def case_expiry(effort: float) -> Iterator[Row]:
    """20,000 idle connections expire, by the collector and by releases; processor time of the whole process"""
    run = {
        f'{front}, by {"the " if collector else ""}{name}': lambda expire=expire, how=(collector, sweeper): expire(*how)
        for name, (collector, sweeper) in expiry.HOW.items()
        for front, expire in expiry.FRONTS.items()
    }
    for what, seconds in interleave(run, repetitions(effort, 7)).items():
        each = statistics.median(seconds) * 1e6
        yield at_most(f'expiry of {expiry.MANY:,} idle connections, {what}: each', 1.5, each, ' us')
