"""Statistics of a pool: frozen dataclasses made from one consistent snapshot of the core."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import nan
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from gcp._core import AGE_BOUNDS, USE_BOUNDS, WAIT_BOUNDS, EndpointCounts
from gcp.limits import EndpointLimits

__all__ = ['EndpointStats', 'Histogram', 'PoolStats']

EndpointT = TypeVar('EndpointT')


@dataclass(frozen=True)
class Counts:
    """Connections by state, waiters, and counters since the pool was built.

    :ivar idle: idle connections
    :ivar used: acquired connections, including those whose check or other hook is running
    :ivar creating: connections that are being created
    :ivar disposing: connections that are being disposed of
    :ivar waiting: acquires in the wait queue
    :ivar created: connections created so far
    :ivar closed: connections closed so far, by reason
    :ivar acquires: acquires that have ended, by result: hit, created, waited, timeout, rejected, cancelled, error
    :ivar releases: releases so far, by outcome: idle, handoff, discarded
    :ivar leaks: connections that were held for longer than the pool's ``leak_threshold``
    :ivar connect_failures: connects that have failed, by the class of their error: transient, permanent
    :ivar suspended: whether the endpoint is suspended, by itself or with its pool; of a pool: as a whole
    :ivar stale: connections that were opened before `expire`, and are not gone yet
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
    connect_failures: Mapping[str, int] = field(repr=False)
    suspended: bool = field(repr=False)
    stale: int = field(repr=False)

    @property
    def size(self) -> int:
        """The number of connections in any state, including those that are being created or disposed of."""
        return self.idle + self.used + self.creating + self.disposing


@dataclass(frozen=True)
class EndpointStats(Counts, Generic[EndpointT]):
    """The statistics of one endpoint.

    :ivar endpoint: the endpoint, as it was first given
    :ivar breaker: ``closed``; ``open``: acquires that find no idle connection fail at once; ``half_open``: so they do,
        and a connect is in progress that may close it
    :ivar failures: connects that have failed since the last one that succeeded
    :ivar retry_delay: how long until the next connect may begin, seconds; 0: it may now
    :ivar connect_queue: acquires that wait until a connect may begin: for the limits of connects, or the retry delay
    :ivar missing: how many connections it lacks of its `min_idle` that the pool is to open: where it was warmed up and
                   `refill` is on, or a warm-up is in progress; else 0
    :ivar limits: the limits that hold for it: its own, else the pool's; `max_waiting` is ``None`` without a limit, and
        `reserve` without one
    """

    endpoint: EndpointT
    breaker: str = field(repr=False)
    failures: int = field(repr=False)
    retry_delay: float = field(repr=False)
    connect_queue: int = field(repr=False)
    missing: int = field(repr=False)
    limits: EndpointLimits = field(repr=False)

    @property
    def connecting(self) -> int:
        """The number of connects in progress: the same as `creating`."""
        return self.creating


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram of durations.

    :ivar bounds: the upper bounds of the buckets, seconds, inclusive, ascending; the last bucket has no bound
    :ivar counts: the number of observations in each bucket, not cumulative; one more than there are bounds
    :ivar sum: the sum of all observations, seconds
    """

    bounds: tuple[float, ...] = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)
    sum: float

    @property
    def count(self) -> int:
        """The number of observations."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """Estimate a quantile as Prometheus' `histogram_quantile` does: it assumes that observations are spread evenly
        within a bucket, and returns the highest bound for those above it.

        :param q: from 0 to 1
        :return: seconds; NaN without observations
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


class EndpointMapping(Mapping[EndpointT, EndpointStats[EndpointT]]):
    """The statistics of endpoints, by endpoint. They are those of the moment of the snapshot, and become Python objects
    when they are asked for: a snapshot of thousands of endpoints takes about a millisecond.

    :param counts: the counts of all endpoints
    """

    __slots__ = ('_counts', '_indexes')

    def __init__(self, counts: EndpointCounts) -> None:
        self._counts = counts
        self._indexes: dict[EndpointT, int] | None = None

    def __getitem__(self, endpoint: EndpointT) -> EndpointStats[EndpointT]:
        if self._indexes is None:
            self._indexes = {each: index for index, each in enumerate(self._counts.endpoints)}
        return of_endpoint(*self._counts[self._indexes[endpoint]])

    def __iter__(self) -> Iterator[EndpointT]:
        return iter(self._counts.endpoints)

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(frozen=True)
class PoolStats(Counts, Generic[EndpointT]):
    """The statistics of a pool. Counters include endpoints that the pool no longer holds.

    :ivar name: the name of the pool
    :ivar is_closed: whether the pool is closed
    :ivar endpoints: the statistics of each endpoint that has a connection or a waiter now. They are made when they are
        asked for, from the same snapshot
    :ivar hook_calls: calls of the manager's hooks that have ended, by hook and outcome: ok, error, timeout, cancelled;
        for `check_aliveness` also dead
    :ivar hook_time: durations of hook calls, whatever their outcome, seconds, by hook
    :ivar wait_time: durations of acquires, whatever their result, seconds; a hit counts as 0
    :ivar use_time: times from acquire to release, seconds
    :ivar age: ages of connections when they were closed, seconds
    :ivar oldest_waiter: how long the oldest waiter has been waiting, seconds; 0 without waiters
    :ivar oldest_checkout: how long the connection that was acquired first has been held, seconds; 0 without any
    :ivar limits_errors: how often the function `limits` has failed, so that the pool's limits hold for an endpoint
    :ivar abandoned_leases: leases that were garbage-collected before they were released
    :ivar reclaim_runs: how often the garbage collector was run because the holder of a connection is gone
    :ivar listener_errors: how many calls of listeners have raised
    :ivar listener_events_dropped: events that no listener was told of, because too many were queued
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
    limits_errors: int = field(repr=False)
    abandoned_leases: int = field(repr=False)
    reclaim_runs: int = field(repr=False)
    listener_errors: int = field(repr=False)
    listener_events_dropped: int = field(repr=False)


def snapshot(
    name: str,
    is_closed: bool,
    total: dict[str, Any],
    endpoints: EndpointCounts,
) -> PoolStats[EndpointT]:
    """Make the statistics of a pool from a snapshot of its core."""
    hook_time, wait, use, age = (total.pop(key) for key in ('hook_time', 'wait', 'use', 'age'))
    return PoolStats(
        name=name,
        is_closed=is_closed,
        endpoints=EndpointMapping(endpoints),
        hook_time=MappingProxyType({hook: summed(timed.values()) for hook, timed in hook_time.items()}),
        wait_time=Histogram(WAIT_BOUNDS, *wait),
        use_time=Histogram(USE_BOUNDS, *use),
        age=Histogram(AGE_BOUNDS, *age),
        **frozen(total),
    )


def of_endpoint(endpoint: EndpointT, counts: dict[str, Any]) -> EndpointStats[EndpointT]:
    """Make the statistics of an endpoint."""
    limits = EndpointLimits(*counts.pop('limits'))
    return EndpointStats(endpoint=endpoint, limits=limits, **frozen(counts))


def summed(parts: Iterable[tuple[tuple[int, ...], float]]) -> Histogram:
    """Add histograms up."""
    counts, sums = zip(*parts, strict=True)
    return Histogram(WAIT_BOUNDS, tuple(map(sum, zip(*counts, strict=True))), sum(sums))


def frozen(value: Any) -> Any:
    """Make the mappings within a mapping read-only."""
    if not isinstance(value, dict):
        return value
    return {key: MappingProxyType(frozen(inner)) if isinstance(inner, dict) else inner for key, inner in value.items()}
