"""The endpoints of the managers of unix sockets. Opens no connection."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import PurePath

if not hasattr(socket, 'AF_UNIX'):
    raise ImportError('gcp.contrib.unix and gcp.contrib.unix_async need a platform with unix sockets')

__all__ = ['UnixSocketEndpoint', 'check_endpoint', 'describe']

UnixSocketEndpoint = str | bytes | PurePath

IS_LINUX = sys.platform == 'linux'

#: The size of `sun_path` in the kernel's address: unix(7). A path in it ends with a zero byte.
LIMIT = 108 if IS_LINUX else 104


def check_endpoint(endpoint: UnixSocketEndpoint) -> bytes:
    """Check an endpoint and return its address.

    :param endpoint: what the user passed
    :raises TypeError: when it has the wrong type
    :raises ValueError: when it is empty, too long, or has zero bytes within a path
    """
    if not isinstance(endpoint, (str, bytes, PurePath)):
        raise TypeError(f'endpoint: a path (str, bytes or pathlib.Path) was expected, not {endpoint!r}')
    address = os.fsencode(endpoint)
    if not address:
        raise ValueError(f'endpoint: a path was expected, not {endpoint!r}')
    if address[0]:
        _check_path(endpoint, address)
    elif not IS_LINUX:
        raise ValueError(f'endpoint: only Linux knows abstract names such as {endpoint!r}')
    elif len(address) > LIMIT:
        raise ValueError(
            f'endpoint: an abstract name of at most {LIMIT} bytes was expected, not of {len(address)}: {endpoint!r}'
        )
    return address


def describe(address: bytes) -> str:
    """Return an address as text for an error.

    :param address: the result of `check_endpoint`
    """
    return repr(os.fsdecode(address))


def _check_path(endpoint: UnixSocketEndpoint, address: bytes) -> None:
    if b'\0' in address:
        raise ValueError(f'endpoint: a path without zero bytes was expected, not {endpoint!r}')
    if len(address) >= LIMIT:
        raise ValueError(
            f'endpoint: a path of at most {LIMIT - 1} bytes was expected, not of {len(address)}: {endpoint!r}'
        )
