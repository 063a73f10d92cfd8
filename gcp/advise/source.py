"""Reads what pools did in an interval: from one page since its process started, from two pages, or from Prometheus."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

from gcp.top.page import SERIES, START_TIME, Page, PageError, gather, is_file, load, parse
from gcp.top.watch import PoolFigures, compare, without_credentials

__all__ = ['Observed', 'observe']

#: How far to look back in Prometheus, seconds.
LOOK_BACK: Final = 3600.0
QUERIES: Final = ('{__name__=~"gcpool_.+"}', START_TIME)
#: A line of a page of metrics: a comment, or a name and a value.
METRIC: Final = re.compile(r'# (TYPE|HELP|UNIT|EOF)|[A-Za-z_:][\w:]*(\{.*\})? +[-+.\dNI]')


@dataclasses.dataclass(frozen=True)
class Observed:
    """What a pool did in an interval.

    :ivar figures: its figures, and what they grew by
    :ivar acquires: the acquires of the interval that got a connection or timed out, by endpoint
    """

    figures: PoolFigures
    acquires: Mapping[str, float]

    @property
    def busiest(self) -> tuple[str, float]:
        """The endpoint with the most acquires, and its share of all, 0 to 1."""
        every = sum(self.acquires.values())
        name = max(self.acquires, key=lambda name: self.acquires[name], default='')
        return (name, self.acquires[name] / every) if every else ('', 1.0)


def observe(targets: Sequence[str], interval: float | None) -> list[Observed]:
    """Read the pools.

    :param targets: one page or a Prometheus server, or two pages, the earlier one first
    :param interval: seconds between two readings of a URL, or between two pages; ``None``: one reading, or by the times
        of the files
    :raises PageError: when a page cannot be read or has no pool; names the target
    """
    if len(targets) == 2:
        return _pair(targets, interval)
    target = targets[0]
    found = _read(target, interval)
    if isinstance(found, Page):
        if interval is None or is_file(target) or target == '-':
            return list(_observed(found, None, None))
        time.sleep(interval)
        later = _read(target, interval)
        if isinstance(later, Page):
            return list(_observed(later, found, interval))
        found = later
    return list(_observed(found.now, found.before, found.seconds))


@dataclasses.dataclass(frozen=True)
class History:
    """What a Prometheus server knows: the pages of now and of before, and the seconds between them."""

    now: Page
    before: Page
    seconds: float


def _pair(targets: Sequence[str], interval: float | None) -> list[Observed]:
    """Compare two pages of the same process, by the times of the files unless the interval is given."""
    pages = [_read(target, interval) for target in targets]
    before, now = (page if isinstance(page, Page) else page.now for page in pages)
    seconds = interval or now.written - before.written
    shown = ' and '.join(map(without_credentials, targets))
    if seconds <= 0:
        raise PageError(
            f'{shown}: the second page is not younger than the first; name the earlier one first, or say how '
            'many seconds are between them with --interval'
        )
    if not before.pools.keys() & now.pools.keys():
        raise PageError(f'{shown}: no pool is on both pages')
    return list(_observed(now, before, seconds))


def _observed(now: Page, before: Page | None, seconds: float | None) -> Iterator[Observed]:
    last = None if before is None else (now.written - (seconds or 0), before)
    for figures in compare(now, now.written, last):
        older = None if before is None or figures.is_first else before.pools.get(figures.pool)
        yield Observed(figures, _by_endpoint(figures.now, older))


def _by_endpoint(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the acquires by endpoint. Counts of a label that was given up move to `_other`, and may fall."""
    found: dict[str, float] = {}
    for labels, value in now.get('gcpool_acquires_total', {}).items():
        own = dict(labels)
        if own.get('result') not in ('cancelled', 'error'):
            older = before.get('gcpool_acquires_total', {}).get(labels, 0.0) if before else 0.0
            name = own.get('pool_endpoint', '')
            found[name] = found.get(name, 0.0) + (value - older if value >= older else value)
    return found


# --- reading ---


def _read(target: str, interval: float | None) -> Page | History:
    shown = without_credentials(target)
    try:
        text, written = load(target)
    except PageError as error:
        failure: PageError | None = PageError(f'{shown}: {error}')
    else:
        try:
            page = parse(text, written)
        except PageError as error:
            raise PageError(f'{shown}: {error}') from None
        if page.pools:
            return page
        failure = (
            None
            if any(METRIC.match(line) for line in text.splitlines())
            else PageError(f'{shown}: not a page of metrics')
        )
    if not is_file(target) and target != '-':
        history = _ask(target, LOOK_BACK if interval is None else interval)
        if history is not None:
            if history.now.pools:
                return history
            failure = PageError(f'{shown}: this Prometheus has no metrics of a gcp pool (gcpool_...)')
    raise failure or PageError(f'{shown}: no metrics of a gcp pool on this page (gcpool_...)')


def _ask(target: str, seconds: float) -> History | None:
    """Ask a Prometheus server for its figures of now and of some seconds ago; ``None``: it is none."""
    parts = urlsplit(target if '://' in target else f'http://{target}')
    path = parts.path.rstrip('/').removesuffix('/metrics')
    base = urlunsplit((parts.scheme, parts.netloc, f'{path}/api/v1/query', '', ''))
    now = time.time()
    pages = [_query(base, at) for at in (now, now - seconds)]
    return History(pages[0], pages[1], seconds) if pages[0] is not None and pages[1] is not None else None


def _query(base: str, at: float) -> Page | None:
    samples: list[tuple[str, dict[str, str], float]] = []
    for query in QUERIES:
        try:
            reply = json.loads(load(f'{base}?query={quote(query)}&time={at:.3f}')[0])
            if reply['status'] != 'success':
                return None
            samples += [_sample(found) for found in reply['data']['result']]
        except (PageError, ValueError, KeyError, TypeError):
            return None
    return gather((each for each in samples if each[0] in SERIES or each[0] == START_TIME), at)


def _sample(found: Mapping[str, Any]) -> tuple[str, dict[str, str], float]:
    labels = dict(found['metric'])
    return labels.pop('__name__'), labels, float(found['value'][1])
