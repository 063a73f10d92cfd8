"""The errors of gcp. Everything the pool itself raises is a `BaseError`, or a plain `TypeError`/`ValueError` for a bad
argument; what a connection manager raises reaches the caller as it is."""

from __future__ import annotations

__all__ = [
    'AcquireTimeoutError',
    'BaseError',
    'ConnectionNotAcquiredError',
    'ConnectionPoolClosedError',
    'ConnectionPoolIsFull',
    'ConnectionPoolNotFound',
]


class BaseError(Exception):
    """Base of all errors of this package."""


class ConnectionPoolClosedError(BaseError):
    """The pool is closed: it neither hands out connections nor keeps waiters."""


class ConnectionPoolIsFull(BaseError):
    """The pool has no free place. Kept for the predecessor's importers; gcp reports a full pool by a time-out."""


class ConnectionPoolNotFound(BaseError):
    """The endpoint has no connections. Kept for the predecessor's importers; gcp never raises it."""


class ConnectionNotAcquiredError(BaseError, RuntimeError):
    """A release named a connection that its caller does not hold: foreign, already released, or of another endpoint."""


class AcquireTimeoutError(BaseError, TimeoutError):
    """An acquire ran out of time. The message says where and why; the attributes say it to programs.

    On Python 3.10, where `asyncio.TimeoutError` is a class of its own, the asyncio pool raises a subclass that is one
    too.

    :ivar pool: the pool's name
    :ivar phase: what the time ran out in: ``waiting``, ``creation``, ``check_aliveness`` or ``on_acquire``
    :ivar blocked_by: what stood in the way: ``endpoint cap``, ``total cap``, ``creation`` or ``None`` (a slow hook)
    :ivar timeout: what the caller allowed, seconds
    :ivar idle: idle connections of the endpoint, or of the pool when the total cap blocked
    :ivar used: connections that are checked out, of the same
    :ivar creating: connections being created, of the same
    :ivar waiting: acquires still waiting, of the same
    :ivar limit: the cap that these are counted against
    :ivar oldest_checkout: for how long the longest holder has held its connection, seconds (0 without holders)
    """

    def __init__(
            self,
            message: str = 'acquire timed out',
            *,
            pool: str = '',
            phase: str = 'waiting',
            blocked_by: str | None = None,
            timeout: float | None = None,
            idle: int = 0,
            used: int = 0,
            creating: int = 0,
            waiting: int = 0,
            limit: int = 0,
            oldest_checkout: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.pool = pool
        self.phase = phase
        self.blocked_by = blocked_by
        self.timeout = timeout
        self.idle = idle
        self.used = used
        self.creating = creating
        self.waiting = waiting
        self.limit = limit
        self.oldest_checkout = oldest_checkout


class HookTimeoutError(TimeoutError):
    """An asynchronous hook took longer than it was allowed to."""
