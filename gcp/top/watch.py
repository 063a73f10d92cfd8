"""The figures of pools on a page, their changes since the previous reading, and their health."""

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

__all__ = ['PoolFigures', 'Watch']

#: a connection held for longer is suspected to leak, seconds
LONG_HELD: Final = 3600.0
#: results of acquires whose callers get an exception
FAILURES: Final = {'timeout': 'timeouts', 'error': 'errors', 'rejected': 'refusals'}


@dataclass(frozen=True)
class PoolFigures:
    """The figures of one pool.

    :ivar pool: its identity
    :ivar now: its current figures
    :ivar change: the growth of its counters and histograms in the interval, summed over endpoints
    :ivar seconds: the length of the interval; None if it is not known
    :ivar is_first: whether the interval began with the pool
    """

    pool: Pool
    now: Figures
    change: Figures
    seconds: float | None
    is_first: bool

    # --- current values ---

    def gauge(self, name: str, **where: str) -> float:
        """Return the sum of a gauge's series."""
        return total(self.now, name, where)

    def greatest(self, name: str) -> float:
        """Return the greatest of a gauge's series, 0 without any."""
        return max((value for _, value in matching(self.now, name, {})), default=0.0)

    def limit(self, name: str, **where: str) -> int | None:
        """Return a limit; None if the page has none, because no pool of this name is open."""
        found = [value for _, value in matching(self.now, name, where)]
        return int(sum(found)) if found else None

    def states(self, endpoint: str | None = None) -> dict[str, int]:
        """Return the number of connections by state, of one endpoint or of all."""
        where = {} if endpoint is None else {'pool_endpoint': endpoint}
        return {state: int(self.gauge('gcpool_connections', state=state, **where)) for state in STATES}

    def endpoints(self) -> list[str]:
        """Return the endpoints with labels of their own, the fullest first."""
        labels = {dict(labels).get('pool_endpoint', '_other') for labels in self.now.get('gcpool_connections', {})}
        return sorted(
            labels - {'_other', ''},
            key=lambda label: (
                -self.gauge('gcpool_waiters', pool_endpoint=label),
                -sum(self.states(label).values()),
                label,
            ),
        )

    def info(self, label: str) -> str:
        """Return the values of a label of `gcpool_info`."""
        found = {dict(labels).get(label, '') for labels in self.now.get('gcpool_info', {})}
        return '+'.join(sorted(found - {''}))

    # --- changes in the interval ---

    def count(self, name: str, **where: str) -> float:
        """Return the growth of a counter."""
        return total(self.change, name, where)

    def rate(self, count: float) -> float | None:
        """Return a count per second; None if the length of the interval is not known."""
        return count / self.seconds if self.seconds else None

    def by(self, name: str, label: str, **where: str) -> dict[str, float]:
        """Return the growth of a counter by the values of a label, without zeros."""
        found: dict[str, float] = {}
        for labels, value in matching(self.change, name, where):
            key = labels.get(label, '')
            found[key] = found.get(key, 0) + value
        return {key: value for key, value in found.items() if value}

    def histogram(self, name: str, **where: str) -> Histogram:
        """Return the growth of a histogram."""
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
            tuple(bound for bound in bounds if isfinite(bound)), tuple(counts), self.count(f'{name}_sum', **where)
        )

    # --- health ---

    @property
    def health(self) -> tuple[int, str]:
        """Return a level from 0 (healthy) to 3 (callers get errors), and a description."""
        results = self.by('gcpool_acquires_total', 'result')
        failing = ' and '.join(word for result, word in FAILURES.items() if results.get(result))
        if failing and not self.is_first:
            return 3, f'callers get {failing}'
        broken = int(self.gauge('gcpool_breaker_open'))
        if broken:
            return 2, '1 endpoint is unavailable' if broken == 1 else f'{broken} endpoints are unavailable'
        suspended = int(self.gauge('gcpool_suspended'))
        if suspended:
            return 2, '1 endpoint is suspended' if suspended == 1 else f'{suspended} endpoints are suspended'
        if self.gauge('gcpool_waiters'):
            return 2, 'acquires are waiting'
        if failing:
            return 1, f'callers got {failing}'
        if self.gauge('gcpool_oldest_checkout_seconds') > LONG_HELD or self.count('gcpool_leaks_detected_total'):
            return 1, 'possible leak'
        if self.gauge('gcpool_missing_connections'):
            return 1, 'below min_idle'
        if any(outcome not in ('ok', 'dead', 'cancelled') for outcome in self.by('gcpool_hook_calls_total', 'outcome')):
            return 1, 'hooks fail'
        return 0, 'closed' if self.limit('gcpool_max_connections') is None else 'healthy'


class Watch:
    """Reads one page again and again.

    :param target: a URL, ``host:port``, a file, or ``-``
    :ivar shown: the target without credentials
    :ivar pools: the pools of the last reading, by name. The order does not depend on their health, so that they keep
        their place on the screen
    :ivar error: why there are no pools, or None
    """

    def __init__(self, target: str) -> None:
        self.shown: Final = without_credentials(target)
        self.pools: list[PoolFigures] = []
        self.error: str | None = None
        self._target = target
        self._before: tuple[float, Page] | None = None
        self._since = time.monotonic()

    def refresh(self) -> None:
        """Read the page, and compare it with the previous one."""
        try:
            page = read(self._target)
        except PageError as error:
            lost = time.monotonic() - self._since
            self.error = f'{self.shown}: {error}' + (f'; last seen {lost:.0f} s ago' if self._before else '')
            self.pools = []
            return
        at = self._since = time.monotonic()
        self.pools = list(compare(page, at, self._before))
        self.error = None if self.pools else f'{self.shown}: no pool on this page'
        self._before = at, page


def compare(page: Page, at: float, before: tuple[float, Page] | None) -> Iterator[PoolFigures]:
    """Yield the figures of the pools on a page, and their changes since a previous page.

    :param at: when the page was read, on the monotonic clock
    :param before: when the previous page was read, and that page
    """
    for pool in sorted(page.pools, key=lambda pool: (pool.target, pool.name)):
        now, last = page.pools[pool], before and before[1].pools.get(pool)
        started, counts = page.started.get(pool.target), counters(now)
        if before is None or last is None:
            seconds = page.written - started if started is not None else None
            yield PoolFigures(pool, now, counts, seconds if seconds and seconds > 0 else None, True)
        else:
            change = difference(counts, counters(last))
            if started != before[1].started.get(pool.target) or has_fallen(change):
                change = counts
            yield PoolFigures(pool, now, change, at - before[0], False)


def counters(figures: Figures) -> Figures:
    """Return counters and histograms, summed over endpoints.

    When a label is reused for another endpoint, its old counts move to `_other`; the sum is not affected."""
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
    """Tell whether a counter has fallen, which means that the process was restarted."""
    return any(value < 0 for series in change.values() for value in series.values())


def total(figures: Figures, name: str, where: Mapping[str, str]) -> float:
    return sum(value for _, value in matching(figures, name, where))


def matching(figures: Figures, name: str, where: Mapping[str, str]) -> Iterator[tuple[dict[str, str], float]]:
    """Yield the series with a name and these labels."""
    for labels, value in figures.get(name, {}).items():
        own = dict(labels)
        if all(own.get(label) == wanted for label, wanted in where.items()):
            yield own, value


def without_credentials(target: str) -> str:
    """Return a target without credentials and control characters."""
    if '://' not in target:
        return 'standard input' if target == '-' else printable(target)
    try:
        parts = urlsplit(target)
    except ValueError:
        return 'the URL'
    return printable(urlunsplit((parts.scheme, parts.netloc.rpartition('@')[2], parts.path, '', '')))
