"""What the managers of unix sockets share: endpoints. Opens no connection."""

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
    """Return an endpoint's address after a check.

    :param endpoint: what a user takes for one
    :raises TypeError: when it is of a wrong type
    :raises ValueError: when it is empty, too long, or has zero bytes where none can be
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
        raise ValueError(f'endpoint: an abstract name of at most {LIMIT} bytes was expected, '
                         f'not of {len(address)}: {endpoint!r}')
    return address


def describe(address: bytes) -> str:
    """Return how to name an address in an error.

    :param address: as of `check_endpoint`
    """
    return repr(os.fsdecode(address))


def _check_path(endpoint: UnixSocketEndpoint, address: bytes) -> None:
    if b'\0' in address:
        raise ValueError(f'endpoint: a path without zero bytes was expected, not {endpoint!r}')
    if len(address) >= LIMIT:
        raise ValueError(f'endpoint: a path of at most {LIMIT - 1} bytes was expected, '
                         f'not of {len(address)}: {endpoint!r}')
