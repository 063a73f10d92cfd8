"""A keyed connection pool: many endpoints, one pool, any kind of connection.

The pools are `gcp.threading.ConnectionPool` and `gcp.asyncio.ConnectionPool`. This module has what they share and
imports neither of them, so a program imports only the one that it uses. What is a dataclass (`PoolStats`,
`EndpointStats`, `Explanation`, `Waiter`) is imported on first access: dataclasses take longer to import than the rest
of the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    from gcp._core import AsyncLease, BaseConnectionPool, Lease
except ImportError as error:
    from gcp.core_error import explained

    raise explained(error) from error.__cause__
from gcp.exceptions import (
    AcquireTimeoutError,
    BaseError,
    ConnectionNotAcquiredError,
    ConnectionPoolClosedError,
    ConnectionPoolIsFull,
    ConnectionPoolNotFound,
    DiscardConnection,
    EndpointRetiredError,
    EndpointUnavailableError,
    ErrorClass,
    HookTimeoutError,
    PoolNotReadyError,
    PoolSuspendedError,
    TooManyWaitersError,
    UnknownEndpointError,
)
from gcp.limits import EndpointLimits, Retry
from gcp.listener import PoolListener

if TYPE_CHECKING:
    from gcp.explanation import Explanation, Waiter
    from gcp.stats import EndpointStats, PoolStats
else:

    def __getattr__(name: str) -> object:
        if name in ('Explanation', 'Waiter'):
            from gcp import explanation

            return getattr(explanation, name)
        if name in ('EndpointStats', 'PoolStats'):
            from gcp import stats

            return getattr(stats, name)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


__all__ = [
    'AcquireTimeoutError',
    'AsyncLease',
    'BaseConnectionPool',
    'BaseError',
    'ConnectionNotAcquiredError',
    'ConnectionPoolClosedError',
    'ConnectionPoolIsFull',
    'ConnectionPoolNotFound',
    'DiscardConnection',
    'EndpointLimits',
    'EndpointRetiredError',
    'EndpointStats',
    'EndpointUnavailableError',
    'ErrorClass',
    'Explanation',
    'HookTimeoutError',
    'Lease',
    'PoolListener',
    'PoolNotReadyError',
    'PoolStats',
    'PoolSuspendedError',
    'Retry',
    'TooManyWaitersError',
    'UnknownEndpointError',
    'Waiter',
    '__version__',
]

__version__ = '0.1.0'
