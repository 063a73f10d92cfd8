"""What is seen of pools: the figures of one look, or what has changed since the look before.

Decides what the interval is, what began anew, and who is in trouble; draws nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from gcp.observe.names import STATES
from gcp.stats import Histogram
from gcp.top.page import SERIES, Figures, Page, PageError, Pool, printable, read

__all__ = ['Sight', 'Watch']

#: what is held for longer looks like a leak, seconds
LONG: Final = 3600.0


@dataclass(frozen=True)
class Sight:
    """One pool.

    :ivar pool: which
    :ivar now: its figures
    :ivar change: by how much its counters and histograms have grown in the interval, endpoints taken together
    :ivar seconds: how long the interval is; None: not known
    :ivar is_first: whether the interval is all the time since the pool began
    """

    pool: Pool
    now: Figures
    change: Figures
    seconds: float | None
    is_first: bool

    # --- as it is ---

    def gauge(self, name: str, **where: str) -> float:
        """Add up the series of a gauge."""
        return total(self.now, name, where)

    def limit(self, name: str) -> int | None:
        """Return a limit; None where the page has none: no such pool is open."""
        return int(total(self.now, name, {})) if self.now.get(name) else None

    def states(self, endpoint: str | None = None) -> dict[str, int]:
        """Count connections by state, of all endpoints or of one."""
        where = {} if endpoint is None else {'pool_endpoint': endpoint}
        return {state: int(self.gauge('gcpool_connections', state=state, **where)) for state in STATES}

    def endpoints(self) -> list[str]:
        """Return the endpoints that have a label of their own, the fullest first."""
        labels = {dict(labels).get('pool_endpoint', '_other') for labels in self.now.get('gcpool_connections', {})}
        return sorted(labels - {'_other', ''}, key=lambda label: (
            -self.gauge('gcpool_waiters', pool_endpoint=label), -sum(self.states(label).values()), label))

    def info(self, label: str) -> str:
        """Return what the pool says of itself."""
        found = {dict(labels).get(label, '') for labels in self.now.get('gcpool_info', {})}
        return '+'.join(sorted(found - {''}))

    # --- in the interval ---

    def count(self, name: str, **where: str) -> float:
        """Count what happened."""
        return total(self.change, name, where)

    def rate(self, count: float) -> float | None:
        """Tell how many that is a second."""
        return count / self.seconds if self.seconds else None

    def by(self, name: str, label: str, **where: str) -> dict[str, float]:
        """Count what happened, by the values of a label; only what did."""
        found: dict[str, float] = {}
        for labels, value in matching(self.change, name, where):
            key = labels.get(label, '')
            found[key] = found.get(key, 0) + value
        return {key: value for key, value in found.items() if value}

    def histogram(self, name: str, **where: str) -> Histogram:
        """Return a histogram of what happened."""
        cumulative: dict[float, float] = {}
        for labels, value in matching(self.change, f'{name}_bucket', where):
            bound = float(labels['le'])
            cumulative[bound] = cumulative.get(bound, 0) + value
        bounds = sorted(cumulative)
        below = [0.0, *(cumulative[bound] for bound in bounds)]
        counts = [max(0, round(above - under)) for under, above in pairwise(below)]
        if not bounds or isfinite(bounds[-1]):
            counts.append(0)
        return Histogram(
            tuple(bound for bound in bounds if isfinite(bound)), tuple(counts), self.count(f'{name}_sum', **where))

    # --- how it fares ---

    @property
    def health(self) -> tuple[int, str]:
        """Tell how it is: from 0, all is well, to 3, its callers get errors."""
        results = self.by('gcpool_acquires_total', 'result')
        failing = ' and '.join(f'{result}s' for result in ('timeout', 'error') if results.get(result))
        if failing and not self.is_first:
            return 3, f'callers get {failing}'
        if self.gauge('gcpool_waiters'):
            return 2, 'acquires wait in line'
        if failing:
            return 1, f'callers got {failing}'
        if self.gauge('gcpool_oldest_checkout_seconds') > LONG or self.count('gcpool_leaks_detected_total'):
            return 1, 'is there a leak?'
        if any(outcome not in ('ok', 'dead', 'cancelled') for outcome in self.by('gcpool_hook_calls_total', 'outcome')):
            return 1, 'hooks fail'
        return 0, 'closed' if self.limit('gcpool_max_connections') is None else 'healthy'


class Watch:
    """Looks at one page again and again.

    :param target: where it is
    :ivar shown: the same, as it can be shown
    :ivar sights: the pools seen last, by name; those in trouble are not put first: they would jump about
    :ivar trouble: why there are none, or None
    """

    def __init__(self, target: str) -> None:
        self.shown: Final = without_credentials(target)
        self.sights: list[Sight] = []
        self.trouble: str | None = None
        self._target = target
        self._before: tuple[float, Page] | None = None
        self._since = time.monotonic()

    def look(self) -> None:
        """Look at the page; compare it with the last one."""
        try:
            page = read(self._target)
        except PageError as error:
            lost = time.monotonic() - self._since
            self.trouble = f'{self.shown}: {error}' + (f'; last seen {lost:.0f} s ago' if self._before else '')
            self.sights = []
            return
        at = self._since = time.monotonic()
        self.sights = list(compare(page, at, self._before))
        self.trouble = None if self.sights else f'{self.shown}: no pool on this page'
        self._before = at, page


def compare(page: Page, at: float, before: tuple[float, Page] | None) -> Iterator[Sight]:
    """Tell what is on a page, and what has changed since another.

    :param at: when it was read, on the monotonic clock
    :param before: the other, and when it was read
    """
    for pool in sorted(page.pools, key=lambda pool: (pool.target, pool.name)):
        now, last = page.pools[pool], before and before[1].pools.get(pool)
        born, counts = page.born.get(pool.target), counters(now)
        if before is None or last is None:
            seconds = page.written - born if born is not None else None
            yield Sight(pool, now, counts, seconds if seconds and seconds > 0 else None, True)
        else:
            change = difference(counts, counters(last))
            if born != before[1].born.get(pool.target) or has_fallen(change):
                change = counts
            yield Sight(pool, now, change, at - before[0], False)


def counters(figures: Figures) -> Figures:
    """Return what only grows, endpoints taken together: a label that passes from one endpoint to another takes what was
    counted under it to `_other`, and the sum of both stays what it was."""
    found: Figures = {}
    for name, series in figures.items():
        if SERIES[name].kind in ('counter', 'histogram'):
            sums = found[name] = {}
            for labels, value in series.items():
                own = tuple(item for item in labels if item[0] != 'pool_endpoint')
                sums[own] = sums.get(own, 0.0) + value
    return found


def difference(now: Figures, last: Figures) -> Figures:
    return {
        name: {labels: value - last.get(name, {}).get(labels, 0.0) for labels, value in series.items()}
        for name, series in now.items()
    }


def has_fallen(change: Figures) -> bool:
    """Tell whether a pool has begun anew: its process did, if any of its counters is less than it was."""
    return any(value < 0 for series in change.values() for value in series.values())


def total(figures: Figures, name: str, where: Mapping[str, str]) -> float:
    return sum(value for _, value in matching(figures, name, where))


def matching(figures: Figures, name: str, where: Mapping[str, str]) -> Iterator[tuple[dict[str, str], float]]:
    """Return the series of a name that have these labels."""
    for labels, value in figures.get(name, {}).items():
        own = dict(labels)
        if all(own.get(label) == wanted for label, wanted in where.items()):
            yield own, value


def without_credentials(target: str) -> str:
    """Return a target as it can be shown."""
    if '://' not in target:
        return 'standard input' if target == '-' else printable(target)
    try:
        parts = urlsplit(target)
    except ValueError:
        return 'the URL'
    return printable(urlunsplit((parts.scheme, parts.netloc.rpartition('@')[2], parts.path, '', '')))
