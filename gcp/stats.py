"""What a pool looked like at one moment: frozen records over one consistent snapshot of the core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from gcp._core import AGE_BOUNDS, USE_BOUNDS, WAIT_BOUNDS

__all__ = ['EndpointStats', 'Histogram', 'PoolStats']

EndpointT = TypeVar('EndpointT')


@dataclass(frozen=True)
class Counts:
    """Connections by state, waiters, and what has happened so far.

    :ivar idle: connections that wait to be acquired
    :ivar used: connections that are checked out (a check or a hook in progress counts)
    :ivar creating: connections that are being created
    :ivar disposing: connections that are being disposed of
    :ivar waiting: acquires that wait in line
    :ivar created: connections created, ever
    :ivar closed: connections closed, ever, by reason
    :ivar acquires: acquires that ended, ever, by result: hit, created, waited, timeout, cancelled, error
    :ivar releases: releases, ever, by outcome: idle, handoff, discarded
    :ivar leaks: connections that were held for longer than the pool's ``leak_threshold``, ever
    """

    idle: int
    used: int
    creating: int
    disposing: int
    waiting: int
    created: int
    closed: Mapping[str, int] = field(repr=False)
    acquires: Mapping[str, int] = field(repr=False)
    releases: Mapping[str, int] = field(repr=False)
    leaks: int = field(repr=False)

    @property
    def size(self) -> int:
        """Places taken: connections in any state, those being created and disposed of included."""
        return self.idle + self.used + self.creating + self.disposing


@dataclass(frozen=True)
class EndpointStats(Counts, Generic[EndpointT]):
    """One endpoint's part.

    :ivar endpoint: the endpoint, as it was first given
    """

    endpoint: EndpointT


@dataclass(frozen=True, slots=True)
class Histogram:
    """How long something took, by buckets.

    :ivar bounds: the buckets' upper bounds, inclusive, ascending; the last bucket has none
    :ivar counts: how many were in each bucket, one more than there are bounds; not cumulative
    :ivar sum: the sum of all that was observed
    """

    bounds: tuple[float, ...] = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)
    sum: float

    @property
    def count(self) -> int:
        """How many were observed."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """Estimate a quantile, as Prometheus' `histogram_quantile` does: observations are taken to be spread evenly
        within a bucket, and none to exceed the highest bound.

        :param q: from 0 to 1
        :return: NaN when nothing was observed
        :raises ValueError: when `q` is out of range
        """
        if not 0 <= q <= 1:
            raise ValueError(f'q must be from 0 to 1, not {q!r}')
        rank = q * self.count
        below, lower = 0, 0.0
        for upper, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return lower + (upper - lower) * (rank - below) / count
            below, lower = below + count, upper
        return lower if self.count else nan


@dataclass(frozen=True)
class PoolStats(Counts, Generic[EndpointT]):
    """The whole pool, endpoints that are gone included in what has happened so far.

    :ivar name: the pool's name
    :ivar is_closed: whether the pool was closed
    :ivar endpoints: by endpoint, those that have a connection or a waiter now
    :ivar hook_calls: calls of the manager's hooks that ended, ever, by hook and outcome: ok, error, timeout, cancelled;
        for `check_aliveness` also dead
    :ivar hook_time: how long they took, seconds, by hook
    :ivar wait_time: from the call of an acquire to its end, however it ended, seconds; a hit counts as 0
    :ivar use_time: from acquire to release, seconds
    :ivar age: how old connections were when they were closed, seconds
    :ivar oldest_waiter: for how long the oldest of the waiting acquires has waited, seconds; 0 without any
    :ivar oldest_checkout: for how long the longest held connection has been held, seconds; 0 without any
    """

    name: str
    is_closed: bool
    endpoints: Mapping[EndpointT, EndpointStats[EndpointT]] = field(repr=False)
    hook_calls: Mapping[str, Mapping[str, int]] = field(repr=False)
    hook_time: Mapping[str, Histogram] = field(repr=False)
    wait_time: Histogram = field(repr=False)
    use_time: Histogram = field(repr=False)
    age: Histogram = field(repr=False)
    oldest_waiter: float = field(repr=False)
    oldest_checkout: float = field(repr=False)


def snapshot(
        name: str, is_closed: bool, total: dict[str, Any], endpoints: list[tuple[EndpointT, dict[str, Any]]],
) -> PoolStats[EndpointT]:
    """Make the records of a core's snapshot."""
    hook_time, wait, use, age = (total.pop(key) for key in ('hook_time', 'wait', 'use', 'age'))
    return PoolStats(
        name=name,
        is_closed=is_closed,
        endpoints=MappingProxyType({key: EndpointStats(endpoint=key, **frozen(counts)) for key, counts in endpoints}),
        hook_time=MappingProxyType({hook: Histogram(WAIT_BOUNDS, *timed) for hook, timed in hook_time.items()}),
        wait_time=Histogram(WAIT_BOUNDS, *wait),
        use_time=Histogram(USE_BOUNDS, *use),
        age=Histogram(AGE_BOUNDS, *age),
        **frozen(total),
    )


def frozen(value: Any) -> Any:
    """Make mappings of mappings unchangeable."""
    if not isinstance(value, dict):
        return value
    return {key: MappingProxyType(frozen(inner)) if isinstance(inner, dict) else inner for key, inner in value.items()}
