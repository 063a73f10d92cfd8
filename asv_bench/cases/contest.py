"""Pools under the same load, in turn: how many each served, and how evenly."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import loads

GCP, PREDECESSOR, PSYCOPG = 'gcp', 'generic-connection-pool', 'psycopg_pool'


def repetitions(effort: float, full: int, least: int = 3) -> int:
    """Return how often to measure: `full` times, or fewer with less effort, but at least once."""
    return max(round(full * effort), least)


def interleave(run: Mapping[str, Callable[[], Any]], times: int) -> dict[str, list[Any]]:
    """Let contenders take turns; return the results of each, in order."""
    seen: dict[str, list[Any]] = {name: [] for name in run}
    for _ in range(times):
        for name, once in run.items():
            seen[name].append(once())
    return seen


@dataclass(frozen=True)
class Contest:
    """The measurements of each pool, round by round."""

    seen: Mapping[str, Sequence[loads.Seen]]

    @property
    def others(self) -> list[str]:
        return [name for name in self.seen if name != GCP]

    def ratio(self, name: str) -> float:
        """How many times as many gcp served as another pool: the median of the rounds' ratios.

        A disturbance slows both in a round."""
        rounds = zip(self.seen[GCP], self.seen[name], strict=True)
        return statistics.median(ours.rate / theirs.rate for ours, theirs in rounds)

    def jain(self) -> dict[str, float]:
        """Jain's fairness index of served counts, by pool; 1: all are served equally often."""
        return {name: statistics.median(one.fairness for one in seen) for name, seen in self.seen.items()}

    def rates(self, names: Iterable[str] = ()) -> dict[str, float]:
        """Served a second, by pool: all of them, or these."""
        return {f'{name}, 1/s': statistics.median(one.rate for one in self.seen[name]) for name in names or self.seen}

    def longest_wait(self) -> float:
        """The longest wait of any worker at gcp in a round, seconds; the median of the rounds."""
        return statistics.median(one.longest_wait for one in self.seen[GCP])
