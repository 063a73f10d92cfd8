"""Aggregation of all pools of one Prometheus registry, one meter provider or one process.

Pools of one name are summed. The totals of pools that are gone are kept, so no counter decreases when a pool is dropped
and created again. Pools are read when an exporter asks; nothing happens in between."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import sub
from time import sleep
from typing import Any, Final
from weakref import WeakSet

from gcp._core import Core, LabelReader
from gcp.observe.labels import GAUGES, Labels, Row, State, clean, combined, default_label, flat
from gcp.observe.names import OTHER
from gcp.observe.telemetry import Errors, Telemetry

__all__ = ['Aggregation', 'Reading']

#: how many names of pools that are gone are kept; older ones are merged under the name `_other`
REMEMBERED: Final = 10
#: before and after a pool of more endpoints is read, this thread yields to others
MANY: Final = 1000

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


Rows = Mapping[str | None, Row]
States = Mapping[str | None, State]


@dataclass(slots=True)
class PoolReading:
    """What was read of one pool.

    :ivar reader: it holds the counts of endpoints; None of a pool that is gone
    :ivar arrived: the endpoints that were listed since the last reading
    :ivar limits: `total_max_size`, `max_size` and `min_idle`; None if it is not open
    """

    member: Telemetry
    reader: LabelReader | None
    total: Any
    arrived: list[Any] = field(default_factory=list)
    endpoints: int = 0
    capacity: int = 0
    limits: tuple[int, int, int] | None = None
    label_of: Callable[[Any], Any] = default_label
    exemplars: Mapping[tuple[str, str | None, int], tuple[dict[str, str], float, float]] = field(default_factory=dict)


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
        self.members: dict[Telemetry, LabelReader] = {}
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
                reader = self.members.pop(member)
                self.retired = plus(self.retired, final)
                self.errors += member.errors.count
                self.labels.depart(reader.drop())

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
        taken = [self._read_pool(member, reader, labelled) for member, reader in self.members.items()]
        total = total_of([self.retired, *(pool.total for pool in taken)])
        is_open = [pool for pool in taken if pool.limits is not None]
        rows, states = self._by_label(total, taken) if labelled else self._in_one(total, taken)
        return Reading(
            pool=self.name,
            total=total,
            rows=rows,
            states=states,
            endpoints=sum(pool.endpoints for pool in taken),
            limits=tuple(map(sum, zip(*(pool.limits for pool in is_open if pool.limits), strict=True))) or None,
            capacity=sum(pool.capacity for pool in is_open) if is_open else None,
            frontends=tuple(sorted({pool.member.frontend for pool in is_open})),
            overflow=self.labels.overflow,
            errors=self.errors + sum(member.errors.count for member in self.members),
            exemplars={key: found for pool in taken for key, found in pool.exemplars.items()},
        )

    def _read_pool(self, member: Telemetry, reader: LabelReader, labelled: bool) -> PoolReading:
        """Read one pool, at one moment."""
        core = member.final_counts.core
        if core is None:  # the pool went away since `retire`
            self.labels.depart(reader.drop())
            return PoolReading(member, None, member.final_counts.read())
        if reader.endpoints > MANY:
            sleep(0)
        total, arrived, capacity = reader.read(core, labelled)
        if reader.endpoints > MANY:
            sleep(0)
        taken = PoolReading(member, reader, total, arrived, reader.endpoints, exemplars=dict(member.exemplars))
        pool = member.pool()
        if pool is not None:
            taken.label_of = pool._options.endpoint_label or default_label
            if not core.closed:
                taken.limits = core.limits
                taken.capacity = min(core.limits[0], capacity)
        return taken

    def _by_label(self, total: dict[str, Any], taken: list[PoolReading]) -> tuple[Rows, States]:
        """Arrange counts and states by endpoint label. The remainder of the counts goes to `_other`."""
        by_reader = {id(pool.reader): pool for pool in taken}
        readers = [pool.reader for pool in taken if pool.reader is not None]
        self.labels.assign(
            [(pool.reader, pool.arrived) for pool in taken if pool.reader is not None],
            lambda reader, key: self._label(by_reader[id(reader)], key),
            max((member.endpoint_labels for member in self.members), default=0),
        )
        labelled, states_of_labelled = self.labels.read(readers)
        rest = flat(total)
        for row in labelled.values():
            less = list(map(sub, rest, row))
            rest = less if row[0] >= 0 else rest[:GAUGES] + less[GAUGES:]
        return {**labelled, OTHER: rest}, {OTHER: combined(readers, -1)[1], **states_of_labelled}

    def _in_one(self, total: dict[str, Any], taken: list[PoolReading]) -> tuple[Rows, States]:
        """Return the counts and states of all endpoints together."""
        readers = [pool.reader for pool in taken if pool.reader is not None]
        return {None: flat(total)}, {None: combined(readers, -1)[1]}

    def _label(self, taken: PoolReading, key: Any) -> str:
        """Return an endpoint's label; `_other` if the label function fails."""
        try:
            return clean(taken.label_of(key))
        except Exception as error:
            taken.member.errors.record('endpoint_label', error)
            return OTHER


class Aggregation:
    """All pools of one registry, meter provider or process, by name.

    :param labelled: whether to count by endpoint
    """

    def __init__(self, *, labelled: bool) -> None:
        self.errors: Final = Errors('gcp.observe')
        self._labelled = labelled
        self._by_name: dict[str, NamedPools] = {}
        self._arrived: list[Telemetry] = []  # no deque: a copy of that fails while a thread adds to it
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
            pools.members.setdefault(telemetry, LabelReader())  # two threads may have found that it follows a provider
            pools.automatic = pools.automatic and telemetry.automatic
            pools.latest = telemetry.number
            del self._arrived[0]  # last, so that a fork at any moment finds the pool in one of both
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
        self._arrived = alive.copy()
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
