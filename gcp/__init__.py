"""A keyed connection pool: many endpoints, one pool, any kind of connection.

The pools are `gcp.threading.ConnectionPool` and `gcp.asyncio.ConnectionPool`. Here is what they share; neither of
them is imported, so that a program pays only for the one it uses."""

from __future__ import annotations

from gcp._core import BaseConnectionPool
from gcp.exceptions import (
    AcquireTimeoutError,
    BaseError,
    ConnectionNotAcquiredError,
    ConnectionPoolClosedError,
    ConnectionPoolIsFull,
    ConnectionPoolNotFound,
)
from gcp.stats import EndpointStats, PoolStats

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
