"""The books of all pools that are seen together: in one Prometheus registry, by one meter provider, in one process.

Owns who belongs to them, and what pools have counted that are gone. Pools of one name are one account: their figures
are summed, and one that is dropped and made again goes on where it was, so that nothing ever steps back. Reads when it
is asked; between two looks it does nothing."""

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
from gcp.observe.labels import GAUGES, Labels, Row, clean, default_label, flat
from gcp.observe.names import OTHER
from gcp.observe.telemetry import Errors, Telemetry

__all__ = ['Books', 'Reading']

#: how many names of pools that are gone are remembered; what is older is one account, `_other`
REMEMBERED: Final = 10

#: what a pool shows that has counted nothing, as `Core.snapshot` has it
NOTHING: Final[Mapping[str, Any]] = Core().snapshot()[0]
#: of several pools, the greatest is shown, not the sum
AGES: Final = ('oldest_waiter', 'oldest_checkout')


@dataclass(slots=True)
class Reading:
    """What all pools of one name show at one moment. Plain values: whoever formats them holds nothing.

    :ivar pool: the name
    :ivar total: as `Core.snapshot` has it, pools that are gone included
    :ivar rows: connections, waiters and counts by endpoint label, as `flat` lays them out, `_other` last. The gauges of
        a label without endpoints are -1. Where nobody asked for labels, all is in one row, under None
    :ivar endpoints: how many endpoints have a connection or a waiter
    :ivar limits: connections of all endpoints, and of one, at most; idle connections that each endpoint keeps; summed
        over the pools that are open; None where none is
    :ivar frontends: of the pools that are open
    :ivar overflow: how many endpoints got no label of their own
    :ivar errors: how many errors of telemetry there were
    :ivar exemplars: see `Telemetry`
    """

    pool: str
    total: Mapping[str, Any]
    rows: Mapping[str | None, Row]
    endpoints: int
    limits: tuple[int, ...] | None
    frontends: tuple[str, ...]
    overflow: int
    errors: int
    exemplars: Mapping[tuple[str, str | None, int], tuple[dict[str, str], float, float]]


def plus(one: Any, other: Any) -> Any:
    """Add totals: of the same shape, in which all that is not a mapping or a tuple is a number."""
    if isinstance(one, dict):
        return {key: plus(value, other[key]) for key, value in one.items()}
    if isinstance(one, tuple):
        return tuple(map(plus, one, other))
    return one + other


def total_of(totals: list[Any]) -> Any:
    """Sum totals up. Of the ages, the greatest."""
    first, *rest = totals
    for more in rest:
        ages = {age: max(first[age], more[age]) for age in AGES}
        first = {**plus(first, more), **ages}
    return first


class Account:
    """All pools of one name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.automatic = True
        self.latest = 0         # the number of the pool that came last
        self.members: dict[Telemetry, None] = {}
        self.retired: Any = NOTHING
        self.errors = 0
        self.labels = Labels()
        self.last: Reading | None = None

    def settle(self) -> None:
        """Take the final totals of those that are gone. A pool's core may outlive it, in the hands of who holds a
        lease: it is looked at until then."""
        for member in list(self.members):
            final = member.final_counts.read()
            if final is not None:
                del self.members[member]
                self.retired = plus(self.retired, final)
                self.errors += member.errors.count

    def take_over(self, other: Account) -> None:
        """Take what another account has counted, and forget by which endpoints."""
        self.retired = plus(self.retired, other.retired)
        self.errors += other.errors
        self.labels.overflow += other.labels.overflow

    def read(self, labelled: bool) -> Reading:
        """Look at all its pools.

        :param labelled: whether to tell endpoints apart
        """
        self.settle()
        totals, listed, is_open = [self.retired], [], []
        label_of: dict[int, tuple[Telemetry, Any]] = {}
        exemplars: dict[tuple[str, str | None, int], tuple[dict[str, str], float, float]] = {}
        for member in self.members:
            core = member.final_counts.core
            if core is None:        # gone this very moment
                totals.append(member.final_counts.read())
                continue
            total, endpoints = core.snapshot()
            totals.append(total)
            exemplars.update(member.exemplars)
            listed += [(member.number, key, counts) for key, counts in endpoints]
            pool = member.pool()
            if pool is not None and not core.closed:
                is_open.append(member)
            label_of[member.number] = member, default_label if pool is None else pool._options.endpoint_label
            del core, pool, endpoints
        total = total_of(totals)
        return Reading(
            pool=self.name,
            total=total,
            rows=self._rows(total, listed, label_of) if labelled else {None: flat(total)},
            endpoints=len(listed),
            limits=tuple(map(sum, zip(*(member.limits for member in is_open), strict=True))) or None,
            frontends=tuple(sorted({member.frontend for member in is_open})),
            overflow=self.labels.overflow,
            errors=self.errors + sum(member.errors.count for member in self.members),
            exemplars=exemplars,
        )

    def _rows(
            self, total: dict[str, Any], listed: list[tuple[int, Any, dict[str, Any]]],
            label_of: dict[int, tuple[Telemetry, Any]],
    ) -> Mapping[str | None, Row]:
        """Lay counts out by endpoint label; what is left is `_other`'s."""
        limit = max((member.endpoint_labels for member in self.members), default=0)
        rest = flat(total)
        rows: dict[str | None, Row] = {}
        for label, row in self.labels.assign(listed, lambda number, key: self._label(*label_of[number], key), limit):
            rows[label] = row
            rest = list(map(sub, rest, row)) if row[0] >= 0 else rest[:GAUGES] + list(map(sub, rest, row))[GAUGES:]
        rows[OTHER] = rest
        return rows

    def _label(self, member: Telemetry, function: Callable[[Any], Any] | None, key: Any) -> str:
        """Make an endpoint's label."""
        try:
            return clean((function or default_label)(key))
        except Exception as error:
            member.errors.note('endpoint_label', error)
            return OTHER


class Books:
    """All accounts of one registry, meter provider or process.

    :param labelled: whether endpoints are told apart
    """

    def __init__(self, *, labelled: bool) -> None:
        self.errors: Final = Errors('gcp.observe')
        self._labelled = labelled
        self._accounts: dict[str, Account] = {}
        self._arrived: deque[Telemetry] = deque()
        self._enough = 64
        self._lock = threading.RLock()
        self._busy = False
        every.add(self)

    def add(self, telemetry: Telemetry) -> None:
        """Let a pool be seen."""
        self._arrived.append(telemetry)
        if len(self._arrived) > self._enough and self._lock.acquire(blocking=False):
            try:                # nobody looks, and pools come and go: keep no more than needed
                if not self._busy:
                    self._settle()
                    self._enough = 64 + sum(len(account.members) for account in self._accounts.values())
            finally:
                self._lock.release()

    def read(self) -> list[Reading]:
        """Look at all pools, one reading for each name. Within itself: nothing."""
        with self._lock:
            if self._busy:      # a label function, or a finalizer, that looks
                return []
            self._busy = True
            try:
                self._settle()
                return list(self._readings())
            finally:
                self._busy = False

    def note(self, where: str, error: Exception, pool: str | None = None) -> None:
        """Count an error in what exports.

        :param where: what failed
        :param pool: the name of the pool with which it did; None: it was about all of them
        """
        self.errors.note(where, error)
        with self._lock:
            account = self._accounts.get(pool or '') or next(iter(self._accounts.values()), None)
            if account is not None:
                account.errors += 1

    def telemetries(self) -> list[Telemetry]:
        """Return those who belong here."""
        with self._lock:
            return self._everybody()

    def _everybody(self) -> list[Telemetry]:
        return [*(member for account in self._accounts.values() for member in account.members), *self._arrived]

    def _readings(self) -> Iterator[Reading]:
        for account in list(self._accounts.values()):
            try:
                account.last = account.read(self._labelled)
            except Exception as error:
                self.note('reading', error, account.name)
            if account.last is not None:
                yield account.last

    def _settle(self) -> None:
        """Enter those who came, and take the totals of those who are gone."""
        while self._arrived:
            telemetry = self._arrived[0]
            account = self._accounts.setdefault(telemetry.name, Account(telemetry.name))
            account.members[telemetry] = None
            account.automatic = account.automatic and telemetry.automatic
            account.latest = telemetry.number
            self._arrived.popleft()     # last: at any moment, a fork finds it somewhere
        for account in self._accounts.values():
            account.settle()
        gone = [account for account in self._accounts.values() if not account.members and account.name != OTHER]
        gone.sort(key=lambda account: (not account.automatic, account.latest))
        for account in gone[:max(0, len(gone) - REMEMBERED)]:
            del self._accounts[account.name]
            if OTHER not in self._accounts:
                self._accounts[OTHER] = Account(OTHER)
            self._accounts[OTHER].take_over(account)

    def start_anew(self) -> None:
        """In a forked child, counts begin at 0, and only the pools that are alive go on."""
        alive = [member for member in self._everybody() if member.pool() is not None]
        self._lock = threading.RLock()
        self._busy = False
        self._accounts = {}
        self._arrived = deque(alive)
        self.errors.start_anew()
        for member in alive:
            member.errors.start_anew()
            member.exemplars.clear()


every: Final[WeakSet[Books]] = WeakSet()


def start_anew() -> None:
    for books in list(every):
        books.start_anew()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=start_anew)
