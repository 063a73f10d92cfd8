"""Aggregation of all pools of one Prometheus registry, one meter provider or one process.

Pools of one name are summed. The totals of pools that are gone are kept, so no counter decreases when a pool is dropped
and created again. Pools are read when an exporter asks; nothing happens in between."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import sub
from typing import Any, Final
from weakref import WeakSet

from gcp._core import Core
from gcp.observe.labels import GAUGES, Labels, Row, State, clean, default_label, flat, state_of
from gcp.observe.names import OTHER
from gcp.observe.telemetry import Errors, Telemetry

__all__ = ['Aggregation', 'Reading']

#: how many names of pools that are gone are kept; older ones are merged under the name `_other`
REMEMBERED: Final = 10

#: the totals of a pool that has counted nothing, as `Core.snapshot` returns them
NOTHING: Final[Mapping[str, Any]] = Core().snapshot()[0]
#: totals of which the greatest is taken, not the sum
AGES: Final = ('oldest_waiter', 'oldest_checkout')


@dataclass(slots=True)
class Reading:
    """The figures of all pools of one name at one moment. Plain values: formatting them needs no lock.

    :ivar pool: the name
    :ivar total: as `Core.snapshot` returns it, including pools that are gone
    :ivar rows: connections, waiters and counts by endpoint label, in the order of `flat`; `_other` comes last. The
        gauges of a label without endpoints are -1. Without endpoint labels there is one row, under None
    :ivar states: states of endpoints by endpoint label, or under None. A label without endpoints has none, `_other`
        always has one
    :ivar endpoints: how many endpoints have a connection or a waiter
    :ivar limits: `total_max_size`, `max_size` and `min_idle`, summed over the open pools; None without any
    :ivar capacity: how many connections the open pools could hold for their current endpoints, in each the smaller of
        `total_max_size` and the sum of the endpoints' `max_size`; None without any open pool
    :ivar frontends: the front ends of the open pools
    :ivar overflow: how many endpoints got no label of their own
    :ivar errors: how many errors of telemetry there were
    :ivar exemplars: see `Telemetry`
    """

    pool: str
    total: Mapping[str, Any]
    rows: Mapping[str | None, Row]
    states: Mapping[str | None, State]
    endpoints: int
    limits: tuple[int, ...] | None
    capacity: int | None
    frontends: tuple[str, ...]
    overflow: int
    errors: int
    exemplars: Mapping[tuple[str, str | None, int], tuple[dict[str, str], float, float]]


def plus(one: Any, other: Any) -> Any:
    """Add two totals of the same shape: mappings and tuples of numbers."""
    if isinstance(one, dict):
        return {key: plus(value, other[key]) for key, value in one.items()}
    if isinstance(one, tuple):
        return tuple(map(plus, one, other))
    return one + other


def total_of(totals: list[Any]) -> Any:
    """Sum totals up; of the ages, take the greatest."""
    first, *rest = totals
    for more in rest:
        ages = {age: max(first[age], more[age]) for age in AGES}
        first = {**plus(first, more), **ages}
    return first


class NamedPools:
    """All pools of one name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.automatic = True
        self.latest = 0  # the number of the pool that was added last
        self.members: dict[Telemetry, None] = {}
        self.retired: Any = NOTHING
        self.errors = 0
        self.labels = Labels()
        self.last: Reading | None = None

    def retire(self) -> None:
        """Move the final totals of pools that are gone into `retired`. A lease that is still held keeps its pool's core
        alive; until it is released, the core is read like any other."""
        for member in list(self.members):
            final = member.final_counts.read()
            if final is not None:
                del self.members[member]
                self.retired = plus(self.retired, final)
                self.errors += member.errors.count

    def absorb(self, other: NamedPools) -> None:
        """Add the totals of another name, without its endpoint labels."""
        self.retired = plus(self.retired, other.retired)
        self.errors += other.errors
        self.labels.overflow += other.labels.overflow

    def read(self, labelled: bool) -> Reading:
        """Read all its pools.

        :param labelled: whether to count by endpoint
        """
        self.retire()
        totals, listed, is_open = [self.retired], [], []
        capacity = 0
        label_of: dict[int, tuple[Telemetry, Any]] = {}
        exemplars: dict[tuple[str, str | None, int], tuple[dict[str, str], float, float]] = {}
        for member in self.members:
            core = member.final_counts.core
            if core is None:  # the pool went away since `retire`
                totals.append(member.final_counts.read())
                continue
            total, endpoints = core.snapshot()
            totals.append(total)
            exemplars.update(member.exemplars)
            listed += [(member.number, key, counts) for key, counts in endpoints]
            pool = member.pool()
            if pool is not None and not core.closed:
                is_open.append((member, core.limits))
                capacity += min(core.limits[0], sum(counts['limits'][0] for _, counts in endpoints))
            label_of[member.number] = member, default_label if pool is None else pool._options.endpoint_label
            del core, pool, endpoints
        total = total_of(totals)
        return Reading(
            pool=self.name,
            total=total,
            rows=self._rows(total, listed, label_of) if labelled else {None: flat(total)},
            states=self._states(listed, labelled),
            endpoints=len(listed),
            limits=tuple(map(sum, zip(*(limits for _, limits in is_open), strict=True))) or None,
            capacity=capacity if is_open else None,
            frontends=tuple(sorted({member.frontend for member, _ in is_open})),
            overflow=self.labels.overflow,
            errors=self.errors + sum(member.errors.count for member in self.members),
            exemplars=exemplars,
        )

    def _rows(
        self,
        total: dict[str, Any],
        listed: list[tuple[int, Any, dict[str, Any]]],
        label_of: dict[int, tuple[Telemetry, Any]],
    ) -> Mapping[str | None, Row]:
        """Arrange counts by endpoint label. The remainder goes to `_other`."""
        limit = max((member.endpoint_labels for member in self.members), default=0)
        rest = flat(total)
        rows: dict[str | None, Row] = {}
        for label, row in self.labels.assign(listed, lambda number, key: self._label(*label_of[number], key), limit):
            rows[label] = row
            rest = list(map(sub, rest, row)) if row[0] >= 0 else rest[:GAUGES] + list(map(sub, rest, row))[GAUGES:]
        rows[OTHER] = rest
        return rows

    def _states(self, listed: list[tuple[int, Any, dict[str, Any]]], labelled: bool) -> Mapping[str | None, State]:
        """Arrange the states of endpoints by endpoint label."""
        sharing: dict[str | None, list[dict[str, Any]]] = {OTHER if labelled else None: []}
        for number, key, counts in listed:
            sharing.setdefault(self.labels.label_of(number, key) if labelled else None, []).append(counts)
        return {label: state_of(several) for label, several in sharing.items()}

    def _label(self, member: Telemetry, function: Callable[[Any], Any] | None, key: Any) -> str:
        """Return an endpoint's label; `_other` if the label function fails."""
        try:
            return clean((function or default_label)(key))
        except Exception as error:
            member.errors.record('endpoint_label', error)
            return OTHER


class Aggregation:
    """All pools of one registry, meter provider or process, by name.

    :param labelled: whether to count by endpoint
    """

    def __init__(self, *, labelled: bool) -> None:
        self.errors: Final = Errors('gcp.observe')
        self._labelled = labelled
        self._by_name: dict[str, NamedPools] = {}
        self._arrived: deque[Telemetry] = deque()
        self._threshold = 64
        self._lock = threading.RLock()
        self._busy = False
        aggregations.add(self)

    def add(self, telemetry: Telemetry) -> None:
        """Add a pool."""
        self._arrived.append(telemetry)
        if len(self._arrived) > self._threshold and self._lock.acquire(blocking=False):
            try:  # pools come and go, and no exporter reads: drop those that are gone
                if not self._busy:
                    self._update()
                    self._threshold = 64 + sum(len(pools.members) for pools in self._by_name.values())
            finally:
                self._lock.release()

    def read(self) -> list[Reading]:
        """Read all pools, and return a reading for each name. A nested call returns nothing."""
        with self._lock:
            if self._busy:  # called by a label function or a finalizer
                return []
            self._busy = True
            try:
                self._update()
                return list(self._readings())
            finally:
                self._busy = False

    def record_error(self, where: str, error: Exception, pool: str | None = None) -> None:
        """Count an error of an exporter.

        :param where: what failed
        :param pool: the name of the pool at which it failed; None if it concerned all pools
        """
        self.errors.record(where, error)
        with self._lock:
            pools = self._by_name.get(pool or '') or next(iter(self._by_name.values()), None)
            if pools is not None:
                pools.errors += 1

    def telemetries(self) -> list[Telemetry]:
        """Return all pools."""
        with self._lock:
            return self._all_members()

    def _all_members(self) -> list[Telemetry]:
        return [*(member for pools in self._by_name.values() for member in pools.members), *self._arrived]

    def _readings(self) -> Iterator[Reading]:
        for pools in list(self._by_name.values()):
            try:
                pools.last = pools.read(self._labelled)
            except Exception as error:
                self.record_error('reading', error, pools.name)
            if pools.last is not None:
                yield pools.last

    def _update(self) -> None:
        """Enter the pools that were added, and retire those that are gone."""
        while self._arrived:
            telemetry = self._arrived[0]
            pools = self._by_name.setdefault(telemetry.name, NamedPools(telemetry.name))
            pools.members[telemetry] = None
            pools.automatic = pools.automatic and telemetry.automatic
            pools.latest = telemetry.number
            self._arrived.popleft()  # last, so that a fork at any moment finds the pool in one of both
        for pools in self._by_name.values():
            pools.retire()
        gone = [pools for pools in self._by_name.values() if not pools.members and pools.name != OTHER]
        gone.sort(key=lambda pools: (not pools.automatic, pools.latest))
        for pools in gone[: max(0, len(gone) - REMEMBERED)]:
            del self._by_name[pools.name]
            if OTHER not in self._by_name:
                self._by_name[OTHER] = NamedPools(OTHER)
            self._by_name[OTHER].absorb(pools)

    def reset_after_fork(self) -> None:
        """Restart the counts at 0 in a forked child, and keep only the pools that are alive."""
        alive = [member for member in self._all_members() if member.pool() is not None]
        self._lock = threading.RLock()
        self._busy = False
        self._by_name = {}
        self._arrived = deque(alive)
        self.errors.reset_after_fork()
        for member in alive:
            member.errors.reset_after_fork()
            member.exemplars.clear()


aggregations: Final[WeakSet[Aggregation]] = WeakSet()


def reset_after_fork() -> None:
    """Reset all aggregations in a forked child."""
    for aggregation in list(aggregations):
        aggregation.reset_after_fork()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=reset_after_fork)
