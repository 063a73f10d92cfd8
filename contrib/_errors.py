"""What an error of the operating system or of TLS says about a connection and its endpoint, and how an error
is found in the ones around it. The tables of PostgreSQL and of Redis are in modules of their own. Does no I/O."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from gcp.exceptions import BaseError, ErrorClass, UnknownEndpointError

__all__ = ['Look', 'classify_error', 'is_of_create', 'look_at_os', 'look_at_socket']

#: Says what one error means by itself; ``None``: it is not known.
Look = Callable[[BaseException], ErrorClass | None]

TRANSIENT, PERMANENT = ErrorClass.TRANSIENT, ErrorClass.PERMANENT
BROKEN, STALE = ErrorClass.BROKEN, ErrorClass.STALE

#: What the numbers of the system's errors mean, by name: not every platform has all of them. Those that mean BROKEN are
#: TRANSIENT in a connect. ENOENT is a unix socket whose server restarts; EADDRNOTAVAIL, that no local port is free.
ERRNOS: Mapping[str, ErrorClass] = MappingProxyType(
    {
        'EACCES': PERMANENT,
        'EPERM': PERMANENT,
        'ENOTDIR': PERMANENT,
        'ELOOP': PERMANENT,
        'ENAMETOOLONG': PERMANENT,
        'EPROTOTYPE': PERMANENT,
        'EAFNOSUPPORT': PERMANENT,
        'ECONNREFUSED': TRANSIENT,
        'ETIMEDOUT': TRANSIENT,
        'EHOSTUNREACH': TRANSIENT,
        'EHOSTDOWN': TRANSIENT,
        'ENETUNREACH': TRANSIENT,
        'ENETDOWN': TRANSIENT,
        'ENOENT': TRANSIENT,
        'EAGAIN': TRANSIENT,
        'EADDRNOTAVAIL': TRANSIENT,
        'EMFILE': TRANSIENT,
        'ENFILE': TRANSIENT,
        'ENOBUFS': TRANSIENT,
        'ENOMEM': TRANSIENT,
        'ECONNRESET': BROKEN,
        'ECONNABORTED': BROKEN,
        'ENETRESET': BROKEN,
        'EPIPE': BROKEN,
        'ENOTCONN': BROKEN,
        'ESHUTDOWN': BROKEN,
    }
)

#: What the numbers of a look-up's errors mean, by name.
LOOK_UPS: Mapping[str, ErrorClass] = MappingProxyType(
    {
        'EAI_NONAME': PERMANENT,
        'EAI_NODATA': PERMANENT,
        'EAI_ADDRFAMILY': PERMANENT,
        'EAI_FAMILY': PERMANENT,
        'EAI_SERVICE': PERMANENT,
        'EAI_AGAIN': TRANSIENT,
        'EAI_FAIL': TRANSIENT,
        'EAI_MEMORY': TRANSIENT,
        'EAI_SYSTEM': TRANSIENT,
    }
)

#: Parts of the reasons of a handshake that fails until a certificate or a configuration is changed.
TLS_REASONS = (
    'CERTIFICATE',
    'UNKNOWN_CA',
    'WRONG_VERSION_NUMBER',
    'UNSUPPORTED_PROTOCOL',
    'NO_PROTOCOLS_AVAILABLE',
    'PROTOCOL_VERSION',
    'HANDSHAKE_FAILURE',
    'UNRECOGNIZED_NAME',
)

#: Parts of texts that say that a host's name is not known.
UNKNOWN_HOST = (
    'Name or service not known',
    'No address associated with hostname',
    'nodename nor servname provided',
    'Name does not resolve',
    'Name has no usable address',
    'Unknown host',
)

#: What a `create` raises for an argument that cannot be used; elsewhere it is an error of the program's own.
WRONG_ARGUMENTS = (TypeError, ValueError)

_ERRNOS = {getattr(errno, name): found for name, found in ERRNOS.items() if hasattr(errno, name)}
_LOOK_UPS = {getattr(socket, name): found for name, found in LOOK_UPS.items() if hasattr(socket, name)}


def classify_error(error: BaseException, look: Look) -> ErrorClass:
    """Return what an error means: itself, or else the nearest one that caused it.

    :param error: the error. Of a group: ``STALE`` or ``BROKEN`` if one member is, ``PERMANENT`` if all are
    :param look: says what one error means
    :return: ``TRANSIENT`` if it is not known
    """
    return _find(error, look, set()) or TRANSIENT


def _find(error: BaseException | None, look: Look, seen: set[int]) -> ErrorClass | None:
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, BaseError):
            return TRANSIENT  # of another pool; its cause is about another connection
        members = _members(error)
        known = _of_all([_find(member, look, set(seen)) for member in members]) if members else look(error)
        if known is not None:
            return known
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _members(error: BaseException) -> list[BaseException]:
    """Return the errors of an exception group; on Python 3.10 it is that of the package exceptiongroup."""
    members: Any = getattr(error, 'exceptions', None)
    if not isinstance(members, tuple):
        return []
    return [member for member in members if isinstance(member, BaseException)]


def _of_all(found: list[ErrorClass | None]) -> ErrorClass | None:
    """Return what a group means, by what its members mean."""
    for one in (STALE, BROKEN):
        if one in found:
            return one
    if found and all(each is PERMANENT for each in found):
        return PERMANENT
    return TRANSIENT if TRANSIENT in found or PERMANENT in found else None


def is_of_create(error: BaseException) -> bool:
    """Tell whether an error was raised in the `create` of one of these managers: its frame is in the traceback.

    The same error means something else there: a reset of a connection that is being made says that the server is
    restarting; one in the block of a holder, that its connection is of no use any more."""
    return any(
        frame.f_code.co_name == 'create' and str(frame.f_globals.get('__name__')).startswith('gcp.contrib.')
        for frame in _frames(error)
    )


def _frames(error: BaseException) -> Iterator[Any]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def look_at_os(error: BaseException) -> ErrorClass | None:
    """Say what an error of the system or of TLS means, for a driver that wraps those of its own connections: outside of
    a connect, a connection that was lost is another one, such as that of a web server's client."""
    found = look_at_socket(error)
    return TRANSIENT if found is BROKEN else found


def look_at_socket(error: BaseException) -> ErrorClass | None:
    """Say what an error of the system or of TLS means, for a manager whose users read and write a socket themselves."""
    found = _look(error)
    return TRANSIENT if found is BROKEN and is_of_create(error) else found


def _look(error: BaseException) -> ErrorClass | None:
    if isinstance(error, ssl.SSLError):
        return _look_at_tls(error)
    if isinstance(error, socket.gaierror):
        return _LOOK_UPS.get(error.errno or 0, TRANSIENT)
    if isinstance(error, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)):
        return BROKEN  # asyncio raises them without a number, too
    if isinstance(error, OSError) and error.errno is not None:
        return _ERRNOS.get(error.errno, TRANSIENT)
    # an endpoint or a parameter that cannot be used
    is_refused = isinstance(error, UnknownEndpointError) or (isinstance(error, WRONG_ARGUMENTS) and is_of_create(error))
    return PERMANENT if is_refused else None


def _look_at_tls(error: ssl.SSLError) -> ErrorClass | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return PERMANENT
    if isinstance(error, (ssl.SSLWantReadError, ssl.SSLWantWriteError)):
        return None
    reason = getattr(error, 'reason', None) or ''
    return PERMANENT if is_of_create(error) and any(part in reason for part in TLS_REASONS) else BROKEN
