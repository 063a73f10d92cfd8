"""A keyed connection pool: many endpoints, one pool, any kind of connection.

The pools are `gcp.threading.ConnectionPool` and `gcp.asyncio.ConnectionPool`. Here is what they share; neither of
them is imported, so that a program pays only for the one it uses. The records of `gcp.stats` come when they are asked
for: dataclasses take longer to import than all the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gcp._core import BaseConnectionPool
from gcp.exceptions import (
    AcquireTimeoutError,
    BaseError,
    ConnectionNotAcquiredError,
    ConnectionPoolClosedError,
    ConnectionPoolIsFull,
    ConnectionPoolNotFound,
)

if TYPE_CHECKING:
    from gcp.stats import EndpointStats, PoolStats
else:
    def __getattr__(name: str) -> object:
        if name in ('EndpointStats', 'PoolStats'):
            from gcp import stats

            return getattr(stats, name)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

__all__ = [
    'AcquireTimeoutError',
    'BaseConnectionPool',
    'BaseError',
    'ConnectionNotAcquiredError',
    'ConnectionPoolClosedError',
    'ConnectionPoolIsFull',
    'ConnectionPoolNotFound',
    'EndpointStats',
    'PoolStats',
    '__version__',
]

__version__ = '0.1.0'
