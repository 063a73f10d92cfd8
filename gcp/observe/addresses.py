"""The address of an endpoint, as OpenTelemetry's attributes `server.address` and `server.port`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import PurePath
from typing import Any

__all__ = ['address_of', 'location']

NAME = r'(?P<host>[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,252}))'
ADDRESS = r'\[(?P<v6>[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,32})?)\]'
PORT = r'(?P<port>[0-9]{1,5})'
HOST_RE = re.compile(rf'(?:{NAME}|(?P<v6>[0-9A-Fa-f:.]{{2,45}}(?:%[A-Za-z0-9_.-]{{1,32}})?))')
ORIGIN_RE = re.compile(rf'(?:(?P<scheme>https?)://)?(?:{NAME}|{ADDRESS})(?::{PORT})?/?')
PATH_RE = re.compile(r'/[^@=?&]{0,107}')  # as long as a socket's path can be
DEFAULT_PORTS = {'http': 80, 'https': 443}


def location(endpoint: object) -> Iterator[tuple[str, Any]]:
    """Yield an endpoint's address as attributes."""
    address, port = address_of(endpoint)
    if address is not None:
        yield 'server.address', address
        if port is not None:
            yield 'server.port', port


def address_of(endpoint: object) -> tuple[str | None, int | None]:
    """Return an endpoint's address and port, or None for each that is not known.

    Recognised are ``(host, port)``, ``'host:port'``, an origin such as ``'https://host'``, the path of a socket, an IP
    address, a host name with a dot, and an object with `host` and `port`. Anything that may contain credentials is
    rejected, and so is a name without a dot, which need not be a host."""
    if isinstance(endpoint, str):
        return address_of_text(endpoint)
    if isinstance(endpoint, PurePath):
        return address_of_text(str(endpoint))
    if isinstance(endpoint, (IPv4Address, IPv6Address)):
        return str(endpoint), None
    if isinstance(endpoint, (tuple, list)):
        return pair(*endpoint[:2]) if len(endpoint) >= 2 else (None, None)
    return pair(getattr(endpoint, 'host', None), getattr(endpoint, 'port', None))


def pair(host: object, port: object) -> tuple[str | None, int | None]:
    """Return a host and a port if they are valid."""
    if isinstance(host, (IPv4Address, IPv6Address)):
        host = str(host)
    if not isinstance(host, str) or not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        return None, None
    return (str(host), int(port)) if HOST_RE.fullmatch(host) else (None, None)


def address_of_text(text: str) -> tuple[str | None, int | None]:
    """Return the address and port in a string."""
    if PATH_RE.fullmatch(text):
        return text, None
    found = ORIGIN_RE.fullmatch(text)
    if found is None:
        return (text, None) if ':' in text and is_ip(text) else (None, None)
    host = found['host'] or re.sub('%25(?=.)', '%', found['v6'])  # a URL may write %25 before a scope
    port = int(found['port']) if found['port'] else DEFAULT_PORTS.get(found['scheme'])
    if port is None and not ('.' in host or found['v6'] or host == 'localhost'):
        return None, None
    return (host, port) if port is None or 0 < port < 65536 else (None, None)


def is_ip(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True
