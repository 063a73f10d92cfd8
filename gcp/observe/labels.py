"""Endpoint labels: few, freed with their endpoints, free of credentials; and what was counted under each.

The core forgets an endpoint with its last connection; what it counted is then part of the pool's totals only. Here a
label keeps the counts that were last seen under it, so that no series ever steps back; whatever is not accounted for
under a label is `_other`'s: endpoints that got none, those that came and went between two looks, and the last moments
of those that are gone.

A label whose endpoint is gone can be taken by the next endpoint. Until then its counters stay where they are: moving
them to `_other` earlier would look like a burst there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from operator import add, gt
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import urlsplit

from gcp.observe.names import OTHER

__all__ = ['GAUGES', 'Labels', 'clean', 'default_label', 'flat']

#: how many of a row's values are gauges; those come first
GAUGES: Final = 4
LONGEST: Final = 120

Row = list[int]


def flat(counts: dict[str, Any]) -> Row:
    """Lay out what `Core.snapshot` counts of an endpoint, or of a pool, in one row: connections by state and waiters;
    then acquires, releases, connections closed, and leaks."""
    return [
        counts['idle'], counts['used'], counts['creating'], counts['waiting'],
        *counts['acquires'].values(), *counts['releases'].values(), *counts['closed'].values(), counts['leaks'],
    ]


class Place:
    """One label, the endpoints under it, and what those counted that are gone."""

    __slots__ = ('base', 'label', 'members')

    def __init__(self, label: str, width: int) -> None:
        self.label = label
        self.base = [0] * width
        self.members = 0

    def keep(self, row: Row) -> None:
        """Keep what an endpoint counted that is gone."""
        self.base[GAUGES:] = map(add, self.base[GAUGES:], row[GAUGES:])


class Seen:
    """One endpoint that was listed when last looked at. Known by its key's identity: equality is user code."""

    __slots__ = ('key', 'place', 'row')

    def __init__(self, key: object, place: Place | None, row: Row) -> None:
        self.key = key      # kept alive, so that no other object can have its identity
        self.place = place
        self.row = row

    def see(self, row: Row) -> None:
        """Take new counts. Those that are smaller than the last ones are of a new record: it was forgotten between."""
        if self.place is not None and any(map(gt, self.row[GAUGES:], row[GAUGES:])):
            self.place.keep(self.row)
        self.row = row


class Labels:
    """The labels of one pool's endpoints.

    :ivar overflow: how many endpoints got no label of their own, for want of a free one
    """

    def __init__(self) -> None:
        self.overflow = 0
        self._places: dict[str, Place] = {}
        self._vacant: dict[str, None] = {}      # those without endpoints, longest vacant first
        self._seen: dict[tuple[int, int], Seen] = {}

    def assign(
            self, listed: Sequence[tuple[int, Any, dict[str, Any]]], label_of: Callable[[int, Any], str], limit: int,
    ) -> Iterable[tuple[str, Row]]:
        """Take what there is now, and lay it out by label.

        :param listed: the pool's number, the endpoint, and its counts, of all endpoints listed
        :param label_of: makes a label of the pool's number and the endpoint
        :param limit: how many labels, at most
        :return: all but what is `_other`'s. The gauges of a label without endpoints are -1
        """
        present = [(number, id(key)) for number, key, _ in listed]
        arrivals = [    # first, for it calls foreign code, which may raise anything
            (label_of(number, key) if limit else '', number, key, flat(counts))
            for (number, key, counts), identity in zip(listed, present, strict=True) if identity not in self._seen
        ]
        before, self._seen = self._seen, {}
        for (_, _, counts), identity in zip(listed, present, strict=True):
            seen = before.pop(identity, None)
            if seen is not None:
                self._seen[identity] = seen
                if seen.place is not None:
                    seen.see(flat(counts))
        for seen in before.values():
            self._depart(seen)
        arrivals.sort(key=lambda arrival: arrival[0] not in self._places)   # before others take their labels
        for label, number, key, row in arrivals:
            place = self._place(label, limit, len(row))
            self._seen[number, id(key)] = Seen(key, place, row if place is not None else [])
        return self._rows()

    def _depart(self, seen: Seen) -> None:
        """Keep an endpoint's counts, and free its label."""
        place = seen.place
        if place is not None:
            place.keep(seen.row)
            place.members -= 1
            if not place.members:
                self._vacant[place.label] = None

    def _place(self, label: str, limit: int, width: int) -> Place | None:
        """Return an endpoint's place; None: `_other`."""
        if label == OTHER:
            return None
        place = self._places.get(label)
        if place is None:
            while len(self._places) >= limit:
                if not self._evict():
                    self.overflow += 1
                    return None
            place = self._places[label] = Place(label, width)
        self._vacant.pop(label, None)
        place.members += 1
        return place

    def _evict(self) -> bool:
        """Give up the label that has been vacant for longest, if any is."""
        for label in self._vacant:
            del self._vacant[label], self._places[label]
            return True
        return False

    def _rows(self) -> Iterable[tuple[str, Row]]:
        rows = {
            label: place.base[:] if place.members else [-1] * GAUGES + place.base[GAUGES:]
            for label, place in self._places.items()
        }
        for seen in self._seen.values():
            if seen.place is not None:
                label = seen.place.label
                rows[label] = list(map(add, rows[label], seen.row))
        return rows.items()


# --- what is shown of an endpoint ---

HOST: Final = r'[^\W_](?:[\w.,-]{0,78})'
PORT: Final = r'[0-9]{1,5}'
IP6: Final = r'[0-9A-Fa-f:.]{2,45}(?:%\w{1,16})?'
NAME: Final = re.compile(rf'[\w.+~-]{{1,80}}(?::{PORT})?|\[{IP6}\](?::{PORT})?')
PATH: Final = re.compile(r'/[^@=?&\x00-\x1f]{0,107}')
PAIR: Final = r"\w+=[^\s'\\]+"
KEYWORDS: Final = re.compile(rf'\s*{PAIR}(?:\s+{PAIR})*\s*')


def clean(label: Any) -> str:
    """Make what a label function returned a label: a plain string that can be encoded, not too long.

    :raises TypeError: when it is no string
    """
    if not isinstance(label, str):
        raise TypeError(f'endpoint_label must return a string, not {type(label).__name__}')
    return str.encode(label[:LONGEST], 'utf-8', 'replace').decode() or OTHER


def default_label(endpoint: Any) -> str:
    """Show an endpoint by what can carry no credentials: a host and a port, a path, a short name; else its type."""
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
    """Show a host and a port, if that is what they are."""
    host = str(host) if isinstance(host, (IPv4Address, IPv6Address)) else host
    if not isinstance(host, str) or isinstance(port, bool) or not (port is None or isinstance(port, int)):
        return None
    tail = '' if port is None else f':{int(port)}'
    if ':' in host:
        return f'[{host}]{tail}' if re.fullmatch(IP6, host) else None
    return f'{host}{tail}' if re.fullmatch(HOST, host) else None


def label_of_text(text: str) -> str:
    """Show a string, if it is a URL its host and port only, unless it may carry more than a name."""
    unsaid = '<a string>'
    if '://' in text:
        try:
            url = urlsplit(text)
            is_cut = '@' in url.path + url.query + url.fragment     # a password with a slash, say: no host came before
            return unsaid if is_cut else label_of_pair(url.hostname, url.port) or unsaid
        except ValueError:
            return unsaid
    if KEYWORDS.fullmatch(text):
        return label_of_keywords(text) or unsaid
    if NAME.fullmatch(text) or PATH.fullmatch(text) or (text.count(':') > 1 and re.fullmatch(IP6, text)):
        return text
    return unsaid


def label_of_keywords(text: str) -> str | None:
    """Show the host and the port of a connection string such as ``host=... port=...``."""
    found = dict(pair.split('=', 1) for pair in text.split())
    host, port = found.get('host'), found.get('port', '')
    if host is not None and PATH.fullmatch(host):
        return host
    return label_of_pair(host, int(port) if re.fullmatch(PORT, port) else None)
