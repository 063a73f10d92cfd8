"""Origins: the endpoints of the HTTP managers."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from gcp.contrib._tcp import decode_scope

__all__ = ['MARGIN', 'Origin', 'keep_alive', 'split_origin']

Origin = str

#: How long before the end of a server's keep-alive time-out a connection is no longer reused, seconds, at most: the
#: server could close it while a request is on its way.
MARGIN = 1.0


def keep_alive(header: str) -> float:
    """Return for how many seconds a connection can be reused, by a ``Keep-Alive`` header; ``inf``: it does not say.

    :param header: the header's value, or an empty text
    """
    hint = re.search(r'\btimeout *= *"?(\d+)', header)
    if hint is None:
        return float('inf')
    seconds = float(hint[1])
    return seconds - min(MARGIN, seconds / 2)


def split_origin(endpoint: Origin) -> tuple[str, str, int]:
    """Return scheme, host and port of an origin. Errors do not quote parts that may contain a secret."""
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint: an origin such as 'https://example.org' was expected, not {endpoint!r}")
    expected = "endpoint: an origin, 'http://host[:port]' or 'https://host[:port]', was expected"
    if '@' in endpoint:
        raise ValueError(f'{expected}, without user name and password: those belong in a header of the request')
    place = re.split('[?#]', endpoint)[0]
    try:
        parts = urlsplit(endpoint)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        raise ValueError(f'{expected}, not {place!r}') from None
    if scheme not in ('http', 'https') or not host or endpoint != endpoint.strip():
        raise ValueError(f'{expected}, not {place!r}')
    if parts.path or place != endpoint:
        raise ValueError(f'{expected}, without path and query, unlike that for {host!r}')
    return scheme, decode_scope(host), (80 if scheme == 'http' else 443) if port is None else port
