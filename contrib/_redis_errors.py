"""What an error of Redis says about a connection and its endpoint: by the first word of the server's reply, or by the
class that redis-py makes of it. Does no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import redis

from gcp.contrib._errors import BROKEN, PERMANENT, STALE, TRANSIENT, UNKNOWN_HOST, is_of_create, look_at_os
from gcp.exceptions import ErrorClass

__all__ = ['ERRORS', 'look_at_redis']

#: What the first words of error replies mean. All others, such as WRONGTYPE or OOM, are TRANSIENT: the connection is
#: kept if all replies were read.
ERRORS: Mapping[str, ErrorClass] = MappingProxyType(
    {
        'WRONGPASS': PERMANENT,
        'NOAUTH': PERMANENT,
        'NOPERM': PERMANENT,
        'DENIED': PERMANENT,  # protected mode
        'NOPROTO': PERMANENT,
        'READONLY': STALE,  # a replica: the primary was demoted
        'UNBLOCKED': STALE,  # the same, while a command was blocked
        'LOADING': TRANSIENT,
        'MASTERDOWN': TRANSIENT,
        'CLUSTERDOWN': TRANSIENT,
        'TRYAGAIN': TRANSIENT,
        'BUSY': TRANSIENT,
    }
)

#: redis-py drops the first word where it has a class for it.
CLASSES: Mapping[str, str] = MappingProxyType(
    {
        'AuthenticationError': 'WRONGPASS',
        'AuthorizationError': 'NOPERM',
        'NoPermissionError': 'NOPERM',
        'ReadOnlyError': 'READONLY',
        'BusyLoadingError': 'LOADING',
        'MasterDownError': 'MASTERDOWN',
        'ClusterDownError': 'CLUSTERDOWN',
        'TryAgainError': 'TRYAGAIN',
    }
)

#: Parts of the texts of errors without a word of their own (``ERR``) that stay until something is changed.
REFUSALS = (
    'invalid DB index',
    'DB index is out of range',
    'SELECT is not allowed in cluster mode',
    'invalid password',
    'invalid username-password pair',
    'Client sent AUTH, but no password is set',
    'AUTH <password> called without any password configured',
    "unknown command 'HELLO'",
    'unknown command `HELLO`',
)

#: How redis-py begins the text of a connect that failed.
CONNECTING = re.compile(r'Error (-?\d+ )?(while )?connecting to ')

#: Parts of the text of a connect that stays without success until something is changed.
CONNECT_REFUSALS = ('CERTIFICATE', 'UNKNOWN_CA', 'Permission denied', *UNKNOWN_HOST)

#: What a pipeline of redis-py puts before a server's text.
IN_PIPELINE = re.compile(r'Command # \d+ \(.*\) of pipeline caused error: ', re.DOTALL)


def look_at_redis(error: BaseException) -> ErrorClass | None:
    """Say what an error means."""
    if not isinstance(error, redis.RedisError):
        return look_at_os(error)
    found = _look_at_reply(error)
    if found is None and isinstance(error, redis.InvalidResponse):
        return BROKEN  # what follows cannot be understood
    if found is None and isinstance(error, redis.ConnectionError):
        return _look_at_loss(error)
    return found


def _look_at_reply(error: BaseException) -> ErrorClass | None:
    word = next((CLASSES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in CLASSES), None)
    text = IN_PIPELINE.sub('', str(error))
    if any(part in text for part in REFUSALS):
        return PERMANENT
    found = ERRORS.get(word or text.partition(' ')[0])
    return TRANSIENT if found is STALE and is_of_create(error) else found


def _look_at_loss(error: BaseException) -> ErrorClass | None:
    """Say what a connection's end means. Of a connect, the system's error is redis-py's context, but not where a
    password was taken out of the text."""
    text = str(error)
    if not (is_of_create(error) or CONNECTING.match(text)):
        return BROKEN
    if error.__context__ is not None:
        return None
    return PERMANENT if any(part in text for part in CONNECT_REFUSALS) else TRANSIENT
