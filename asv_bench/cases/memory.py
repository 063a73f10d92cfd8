"""The memory of an idle connection and of an endpoint in a pool, without the connection and the key themselves.

The growth of the resident memory of a fresh process for 50,000 of them, with allocations in C and what allocators
waste. An endpoint is counted with its one idle connection."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import interpreter, memory

from .contest import interleave, repetitions
from .rows import Row, at_most, unmeasured

COUNT = 50_000

WHAT = {
    'of_idle_connection': ('an idle connection: all acquired, then all released', 250),
    'of_endpoint': ('an endpoint with one idle connection: one after the other', 1500),
    'of_endpoint_at_once': ('an endpoint with one idle connection: all acquired, then all released', 1500),
}


def grow(fill: str) -> float:
    """Measure in a process of its own; return bytes for each."""
    size: float = interpreter.run(f'from benchmarks import memory; print(memory.growth(memory.{fill}, {COUNT}))')
    return size


def case_memory(effort: float) -> Iterator[Row]:
    """bytes for each of 50,000 idle connections, and endpoints, beyond connection and key objects; resident"""
    if not memory.STATM.exists():
        yield from (unmeasured(f'memory of {what}', bound, ' B', f'no {memory.STATM}') for what, bound in WHAT.values())
        return
    seen = interleave({fill: lambda fill=fill: grow(fill) for fill in WHAT}, repetitions(effort, 7))
    for fill, (what, bound) in WHAT.items():
        yield at_most(f'memory of {what}', bound, statistics.median(seen[fill]), ' B')
