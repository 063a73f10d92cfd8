"""Endpoint labels, limited in number and free of credentials, and the counts under each.

The core adds the counts of endpoints up by label. It drops an endpoint's record with its last connection; its counts
are then part of the pool's totals only. A label keeps the counts that were last read under it, so no series decreases.
The remainder of the totals goes to `_other`: endpoints without a label, endpoints that came and went between two reads,
and what happened to an endpoint after the last read.

A label without endpoints is reused for the next endpoint. Until then its counters stay: moving them to `_other` at once
would look like a burst there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from operator import add
from pathlib import PurePath
from time import perf_counter, sleep
from types import MappingProxyType
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from gcp._core import OUTCOMES, REASONS, RESULTS, LabelReader
from gcp.observe.names import BY_NAME, OTHER

__all__ = ['COLUMNS', 'GAUGES', 'STATES', 'Labels', 'State', 'clean', 'combined', 'default_label', 'flat', 'yielding']

#: how many values of a row are gauges; they come first
GAUGES: Final = 4
LONGEST: Final = 120
#: after how long a reading yields to other threads, seconds
YIELD_INTERVAL: Final = 0.0005
#: how many items are handled between two looks at the clock
BATCH: Final = 32

Row = list[int]
ItemT = TypeVar('ItemT')

#: metrics by endpoint: the index of their first value in a row
COLUMNS: Final[Mapping[str, int]] = MappingProxyType(
    {
        'gcpool_connections': 0,
        'gcpool_waiters': 3,
        'gcpool_acquires_total': (ACQUIRES := GAUGES),
        'gcpool_releases_total': (RELEASES := ACQUIRES + len(RESULTS)),
        'gcpool_connections_closed_total': (CLOSED := RELEASES + len(OUTCOMES)),
        'gcpool_leaks_detected_total': (LEAKS := CLOSED + len(REASONS)),
        'gcpool_connect_failures_total': LEAKS + 1,
    }
)
WIDTH: Final = COLUMNS['gcpool_connect_failures_total'] + 2


def flat(counts: dict[str, Any]) -> Row:
    """Arrange what `Core.snapshot` counts of a pool in one row: connections by state, waiters, acquires, releases,
    closed connections, leaks, failed connects."""
    return [
        counts['idle'],
        counts['used'],
        counts['creating'],
        counts['waiting'],
        *counts['acquires'].values(),
        *counts['releases'].values(),
        *counts['closed'].values(),
        counts['leaks'],
        *counts['connect_failures'].values(),
    ]


State = dict[str, float]
"""Values of endpoints at one moment, by metric. Unlike counts, they are not kept of endpoints that are gone."""

#: metrics of the state of endpoints, in the order of what `LabelReader.sums` returns
STATES: Final = (
    'gcpool_connect_waiters',
    'gcpool_breaker_open',
    'gcpool_retry_delay_seconds',
    'gcpool_missing_connections',
    'gcpool_suspended',
    'gcpool_stale_connections',
    'gcpool_endpoint_max_connections',
)
COMBINE: Final = tuple(max if BY_NAME[metric].merge == 'max' else add for metric in STATES)


def combined(readers: Iterable[LabelReader], number: int) -> tuple[Row, State]:
    """Return the counts and states of the endpoints that share a label. They are added up; of delays, the greatest is
    taken.

    :param number: the label's number; -1: of the endpoints without a label
    """
    row: Row = [0] * WIDTH
    states: Sequence[float] = [0] * len(STATES)
    for reader in readers:
        more, values = reader.sums(number)
        row = list(map(add, row, more))
        states = [combine(one, other) for combine, one, other in zip(COMBINE, states, values, strict=True)]
    return row, dict(zip(STATES, states, strict=True))


def yielding(items: Iterable[ItemT]) -> Iterator[ItemT]:
    """Iterate, and yield to other threads twice a millisecond: the interpreter does so after 5 ms only."""
    since = perf_counter()
    for index, item in enumerate(items):
        yield item
        if index % BATCH == 0 and perf_counter() - since > YIELD_INTERVAL:
            sleep(0)
            since = perf_counter()


class LabelEntry:
    """One label: its number, how many endpoints have it, and the counts of those that had it and are gone."""

    __slots__ = ('base', 'label', 'members', 'number')

    def __init__(self, label: str, number: int) -> None:
        self.label = label
        self.number = number
        self.base = [0] * (WIDTH - GAUGES)
        self.members = 0


class Labels:
    """The labels of the endpoints of all pools of one name.

    :ivar overflow: how many endpoints got no label of their own because all were taken
    """

    def __init__(self) -> None:
        self.overflow = 0
        self._entries: dict[str, LabelEntry] = {}
        self._by_number: dict[int, LabelEntry] = {}
        self._free: list[int] = []  # numbers of labels that were dropped
        self._unused: dict[str, None] = {}  # labels without endpoints, longest unused first

    def assign(
        self,
        arrived: Sequence[tuple[LabelReader, Sequence[Any]]],
        label_of: Callable[[LabelReader, Any], str],
        limit: int,
    ) -> None:
        """Give the endpoints that readers have found their labels, and keep the counts of those that are gone.

        :param arrived: each reader, and the endpoints that it has not read before
        :param label_of: returns the label for an endpoint
        :param limit: the maximal number of labels
        """
        labels = [  # first, since it calls user code, which may raise anything
            [label_of(reader, key) if limit else '' for key in yielding(keys)] for reader, keys in arrived
        ]
        for reader, _ in arrived:
            self.depart(reader.departed())
        numbers = [[-1] * len(keys) for _, keys in arrived]
        known: list[tuple[int, int, str]] = []  # these come first, before their labels are reused
        new: list[tuple[int, int, str]] = []
        for which, listed in enumerate(labels):
            for index, label in enumerate(yielding(listed)):
                (known if label in self._entries else new).append((which, index, label))
        for which, index, label in yielding([*known, *new]):
            entry = self._entry(label, limit)
            if entry is not None:
                numbers[which][index] = entry.number
        for (reader, _), chosen in zip(arrived, numbers, strict=True):
            reader.settle(chosen)

    def read(self, readers: Sequence[LabelReader]) -> tuple[dict[str | None, Row], dict[str | None, State]]:
        """Return counts and states by label, without `_other`. The gauges of a label without endpoints are -1, and it
        has no states."""
        rows: dict[str | None, Row] = {}
        states: dict[str | None, State] = {}
        for label, entry in self._entries.items():
            if entry.members:
                row, states[label] = combined(readers, entry.number)
                rows[label] = row[:GAUGES] + list(map(add, row[GAUGES:], entry.base))
            else:
                rows[label] = [-1] * GAUGES + entry.base
        return rows, states

    def depart(self, departed: Mapping[int, tuple[int, Row]]) -> None:
        """Keep the counts of endpoints that are gone, and mark labels that no endpoint has any more as unused.

        :param departed: how many had a label, and their counts, by the label's number
        """
        for number, (count, row) in departed.items():
            entry = self._by_number[number]
            entry.base = list(map(add, entry.base, row))
            entry.members -= count
            if not entry.members:
                self._unused[entry.label] = None

    def _entry(self, label: str, limit: int) -> LabelEntry | None:
        """Return the label entry for a new endpoint; None for `_other`."""
        if label == OTHER:
            return None
        entry = self._entries.get(label)
        if entry is None:
            entry = self._new_entry(label, limit)
            if entry is None:
                self.overflow += 1
                return None
        self._unused.pop(label, None)
        entry.members += 1
        return entry

    def _new_entry(self, label: str, limit: int) -> LabelEntry | None:
        """Return an entry for a new label; None if all labels have endpoints."""
        while len(self._entries) >= limit:
            if not self._evict():
                return None
        number = self._free.pop() if self._free else len(self._by_number)
        entry = self._entries[label] = self._by_number[number] = LabelEntry(label, number)
        return entry

    def _evict(self) -> bool:
        """Drop the label that has been unused for longest. Return False if all are used."""
        for label in self._unused:
            del self._unused[label]
            self._free.append(self._entries.pop(label).number)
            return True
        return False


# --- the default label ---

HOST: Final = r'[^\W_](?:[\w.,-]{0,78})'
PORT: Final = r'[0-9]{1,5}'
IP6: Final = r'[0-9A-Fa-f:.]{2,45}(?:%\w{1,16})?'
NAME: Final = re.compile(rf'[\w.+~-]{{1,80}}(?::{PORT})?|\[{IP6}\](?::{PORT})?')
PATH: Final = re.compile(r'/[^@=?&\x00-\x1f]{0,107}')
PAIR: Final = r"\w+=[^\s'\\]+"
KEYWORDS: Final = re.compile(rf'\s*{PAIR}(?:\s+{PAIR})*\s*')


def clean(label: Any) -> str:
    """Return the result of a label function as a plain string, truncated to 120 characters, that UTF-8 can encode.

    :raises TypeError: when it is not a string
    """
    if not isinstance(label, str):
        raise TypeError(f'endpoint_label must return a string, not {type(label).__name__}')
    return str.encode(label[:LONGEST], 'utf-8', 'replace').decode() or OTHER


def default_label(endpoint: Any) -> str:
    """Return a host and port, a path or a short name: what cannot contain credentials. Otherwise return the type."""
    if isinstance(endpoint, str):
        return label_of_text(endpoint)
    if isinstance(endpoint, PurePath):
        return label_of_text(str(endpoint))
    if isinstance(endpoint, bytes):
        return label_of_text(endpoint.decode('ascii', 'replace'))
    if isinstance(endpoint, Enum):
        return endpoint.name
    if endpoint is None or isinstance(endpoint, (int, float, IPv4Address, IPv6Address)):
        return str(endpoint)
    if isinstance(endpoint, (tuple, list)) and not hasattr(endpoint, 'host'):
        shown = label_of_pair(*endpoint[:2]) if len(endpoint) >= 2 else None
    else:
        shown = label_of_pair(getattr(endpoint, 'host', None), getattr(endpoint, 'port', None))
    return shown or f'<{type(endpoint).__name__}>'


def label_of_pair(host: Any, port: Any) -> str | None:
    """Return ``host:port``, or None if these are not a host and a port."""
    host = str(host) if isinstance(host, (IPv4Address, IPv6Address)) else host
    if not isinstance(host, str) or isinstance(port, bool) or not (port is None or isinstance(port, int)):
        return None
    tail = '' if port is None else f':{int(port)}'
    if ':' in host:
        return f'[{host}]{tail}' if re.fullmatch(IP6, host) else None
    return f'{host}{tail}' if re.fullmatch(HOST, host) else None


def label_of_text(text: str) -> str:
    """Return a string, or a URL's host and port, unless it may contain credentials."""
    hidden = '<a string>'
    if '://' in text:
        try:
            url = urlsplit(text)
            is_cut = '@' in url.path + url.query + url.fragment  # a password with a slash: the host comes later
            host = url.hostname and re.sub('%25(?=.)', '%', url.hostname)  # a URL may write %25 before a scope
            return hidden if is_cut else label_of_pair(host, url.port) or hidden
        except ValueError:
            return hidden
    if KEYWORDS.fullmatch(text):
        return label_of_keywords(text) or hidden
    if NAME.fullmatch(text) or PATH.fullmatch(text) or (text.count(':') > 1 and re.fullmatch(IP6, text)):
        return text
    return hidden


def label_of_keywords(text: str) -> str | None:
    """Return the host and port of a connection string such as ``host=... port=...``."""
    found = dict(pair.split('=', 1) for pair in text.split())
    host, port = found.get('host'), found.get('port', '')
    if host is not None and PATH.fullmatch(host):
        return host
    return label_of_pair(host, int(port) if re.fullmatch(PORT, port) else None)
