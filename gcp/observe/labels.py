"""Endpoint labels, limited in number and free of credentials, and the counts under each.

The core drops an endpoint's record with its last connection; its counts are then part of the pool's totals only. A
label keeps the counts that were last read under it, so no series decreases. The remainder of the totals goes to
`_other`: endpoints without a label, endpoints that came and went between two reads, and what happened to an endpoint
after the last read.

A label without endpoints is reused for the next endpoint. Until then its counters stay: moving them to `_other` at once
would look like a burst there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from operator import add, gt
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from gcp._core import OUTCOMES, REASONS, RESULTS
from gcp.observe.names import BY_NAME, OTHER

__all__ = ['COLUMNS', 'GAUGES', 'STATES', 'Labels', 'State', 'clean', 'default_label', 'flat', 'state_of']

#: how many values of a row are gauges; they come first
GAUGES: Final = 4
LONGEST: Final = 120

Row = list[int]

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


def flat(counts: dict[str, Any]) -> Row:
    """Arrange what `Core.snapshot` counts of an endpoint or a pool in one row: connections by state, waiters, acquires,
    releases, closed connections, leaks, failed connects."""
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

#: metrics of the state of endpoints: their values in what `Core.snapshot` says of an endpoint
STATES: Final[Mapping[str, Callable[[dict[str, Any]], float]]] = MappingProxyType(
    {
        'gcpool_connect_waiters': lambda counts: counts['connect_queue'],
        'gcpool_breaker_open': lambda counts: counts['breaker'] != 'closed',
        'gcpool_retry_delay_seconds': lambda counts: counts['retry_delay'],
        'gcpool_missing_connections': lambda counts: counts['missing'],
        'gcpool_endpoint_max_connections': lambda counts: counts['limits'][0],
    }
)


def state_of(listed: Iterable[dict[str, Any]]) -> State:
    """Return the state of endpoints that share a label. Their values are added up; of delays, the greatest is taken.

    :param listed: what `Core.snapshot` says of each
    """
    combined: State = dict.fromkeys(STATES, 0)
    for counts in listed:
        for metric, value_of in STATES.items():
            value = value_of(counts)
            before = combined[metric]
            combined[metric] = max(before, value) if BY_NAME[metric].merge == 'max' else before + value
    return combined


class LabelEntry:
    """One label: how many endpoints have it, and the counts of those that had it and are gone."""

    __slots__ = ('base', 'label', 'members')

    def __init__(self, label: str, width: int) -> None:
        self.label = label
        self.base = [0] * width
        self.members = 0

    def keep(self, row: Row) -> None:
        """Keep the counts of an endpoint that is gone."""
        self.base[GAUGES:] = map(add, self.base[GAUGES:], row[GAUGES:])


class Seen:
    """One endpoint of the last read, identified by its key's `id`: comparing keys would run user code."""

    __slots__ = ('entry', 'key', 'row')

    def __init__(self, key: object, entry: LabelEntry | None, row: Row) -> None:
        self.key = key  # keeps the key alive, so that no other object gets its id
        self.entry = entry
        self.row = row

    def see(self, row: Row) -> None:
        """Take new counts. If one has fallen, the core has dropped the record in between and begun a new one."""
        if self.entry is not None and any(map(gt, self.row[GAUGES:], row[GAUGES:])):
            self.entry.keep(self.row)
        self.row = row


class Labels:
    """The labels of one pool's endpoints.

    :ivar overflow: how many endpoints got no label of their own because all were taken
    """

    def __init__(self) -> None:
        self.overflow = 0
        self._entries: dict[str, LabelEntry] = {}
        self._unused: dict[str, None] = {}  # labels without endpoints, longest unused first
        self._seen: dict[tuple[int, int], Seen] = {}

    def assign(
        self,
        listed: Sequence[tuple[int, Any, dict[str, Any]]],
        label_of: Callable[[int, Any], str],
        limit: int,
    ) -> Iterable[tuple[str, Row]]:
        """Take the current endpoints and their counts, and return the counts by label.

        :param listed: the pool's number, the endpoint, and its counts, of each endpoint
        :param label_of: returns the label for a pool's number and an endpoint
        :param limit: the maximal number of labels
        :return: rows by label, without `_other`. The gauges of a label without endpoints are -1
        """
        present = [(number, id(key)) for number, key, _ in listed]
        arrivals = [  # first, since it calls user code, which may raise anything
            (label_of(number, key) if limit else '', number, key, flat(counts))
            for (number, key, counts), identity in zip(listed, present, strict=True)
            if identity not in self._seen
        ]
        before, self._seen = self._seen, {}
        for (_, _, counts), identity in zip(listed, present, strict=True):
            seen = before.pop(identity, None)
            if seen is not None:
                self._seen[identity] = seen
                if seen.entry is not None:
                    seen.see(flat(counts))
        for seen in before.values():
            self._depart(seen)
        arrivals.sort(key=lambda arrival: arrival[0] not in self._entries)  # before known labels are reused
        for label, number, key, row in arrivals:
            entry = self._entry(label, limit, len(row))
            self._seen[number, id(key)] = Seen(key, entry, row if entry is not None else [])
        return self._rows()

    def label_of(self, number: int, key: object) -> str:
        """Return the label of an endpoint that was in the last list."""
        entry = self._seen[number, id(key)].entry
        return OTHER if entry is None else entry.label

    def _depart(self, seen: Seen) -> None:
        """Keep an endpoint's counts, and mark its label as unused if it was the last one."""
        entry = seen.entry
        if entry is not None:
            entry.keep(seen.row)
            entry.members -= 1
            if not entry.members:
                self._unused[entry.label] = None

    def _entry(self, label: str, limit: int, width: int) -> LabelEntry | None:
        """Return the label entry for a new endpoint; None for `_other`."""
        if label == OTHER:
            return None
        entry = self._entries.get(label)
        if entry is None:
            while len(self._entries) >= limit:
                if not self._evict():
                    self.overflow += 1
                    return None
            entry = self._entries[label] = LabelEntry(label, width)
        self._unused.pop(label, None)
        entry.members += 1
        return entry

    def _evict(self) -> bool:
        """Drop the label that has been unused for longest. Return False if all are used."""
        for label in self._unused:
            del self._unused[label], self._entries[label]
            return True
        return False

    def _rows(self) -> Iterable[tuple[str, Row]]:
        rows = {
            label: entry.base[:] if entry.members else [-1] * GAUGES + entry.base[GAUGES:]
            for label, entry in self._entries.items()
        }
        for seen in self._seen.values():
            if seen.entry is not None:
                label = seen.entry.label
                rows[label] = list(map(add, rows[label], seen.row))
        return rows.items()


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
