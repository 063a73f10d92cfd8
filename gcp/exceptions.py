"""The errors of gcp. The pool itself raises a `BaseError`, or a `TypeError` or `ValueError` for a bad argument. An
error of a connection manager reaches the caller unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

__all__ = [
    'AcquireTimeoutError',
    'BaseError',
    'ConnectionNotAcquiredError',
    'ConnectionPoolClosedError',
    'ConnectionPoolIsFull',
    'ConnectionPoolNotFound',
    'DiscardConnection',
    'EndpointRetiredError',
    'EndpointUnavailableError',
    'ErrorClass',
    'PoolNotReadyError',
    'PoolSuspendedError',
    'TooManyWaitersError',
]


class BaseError(Exception):
    """Base class of all errors of this package."""


class ConnectionPoolClosedError(BaseError):
    """The pool is closed, or was closed while an acquire was waiting."""


class ConnectionPoolIsFull(BaseError):
    """The pool is full. Kept for programs that import it; gcp raises `AcquireTimeoutError` instead."""


class ConnectionPoolNotFound(BaseError, LookupError, ValueError):
    """The pool knows no such endpoint. Raised by `retire`."""


class ConnectionNotAcquiredError(BaseError, RuntimeError):
    """A connection was released that is not acquired: of another pool or endpoint, or already released."""


class AcquireTimeoutError(BaseError, TimeoutError):
    """An acquire ran out of time. The message says where and why, and so do the attributes.

    On Python 3.10, where `asyncio.TimeoutError` is not the builtin `TimeoutError`, the asyncio pool raises a subclass
    of both.

    :ivar pool: the name of the pool
    :ivar phase: the phase that ran out of time: ``waiting``, ``creation``, ``check_aliveness`` or ``on_acquire``; or
        ``admission``, if its wait was expected to outlast its time-out, so that it was refused when it came
    :ivar blocked_by: what blocked the acquire: ``endpoint cap``, ``total cap``, ``connect limit`` (`max_connecting`),
                      ``total connect limit``, ``connect workers``, ``retry delay``, ``creation``, ``suspended``,
                      ``reserve`` (free places are for acquires with a priority) or ``None`` (a slow hook)
    :ivar timeout: the time-out of the acquire, seconds
    :ivar idle: idle connections of the endpoint, or of the pool if the total cap blocked
    :ivar used: acquired connections of the same
    :ivar creating: connections of the same that are being created
    :ivar waiting: other acquires of the same that still wait
    :ivar limit: the cap that applies to them
    :ivar oldest_checkout: how long the connection that was acquired first has been held, seconds; 0 without any
    :ivar holders: who holds the connections that were waited for, the longest held three, as `gcp.holders.HolderInfo`.
                   They are looked up when they, or the message, are first read, and are not pickled: the message is
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
        holders: Callable[[], Sequence[Any]] | None = None,
    ) -> None:
        super().__init__(message)
        self._find_holders = holders
        self._holders: tuple[Any, ...] = ()
        self._text: str | None = None
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

    @property
    def holders(self) -> tuple[Any, ...]:
        if self._find_holders is not None:
            find, self._find_holders = self._find_holders, None
            try:
                self._holders = tuple(find())
            except Exception:  # of a task that does not tell its name, say
                pass
        return self._holders

    def __str__(self) -> str:
        if self._text is None:
            self._text = '\n  '.join([super().__str__(), *map(str, self.holders)])
        return self._text

    def __reduce__(self) -> tuple[Any, ...]:
        state = {
            name: value for name, value in vars(self).items() if name not in ('_find_holders', '_holders', '_text')
        }
        # a subclass that only adds asyncio's own class, before Python 3.11, cannot be found by its name
        named = AcquireTimeoutError if type(self).__qualname__ == AcquireTimeoutError.__qualname__ else type(self)
        return named, (str(self),), state


class EndpointUnavailableError(BaseError):
    """The latest connects to an endpoint have failed, and it is not yet time to try again (`breaker_threshold`).

    The cause (``__cause__``) is the last error of `create`.

    :ivar endpoint: the endpoint
    :ivar retry_at: when the next connect is due, by `time.monotonic()`
    :ivar phase: ``waiting``, or ``admission`` if the acquire was refused when it came
    """

    def __init__(
        self,
        message: str = 'the endpoint is unavailable',
        *,
        endpoint: object = None,
        retry_at: float = 0.0,
        phase: str = 'admission',
    ) -> None:
        super().__init__(message)
        self.endpoint = endpoint
        self.retry_at = retry_at
        self.phase = phase


class TooManyWaitersError(BaseError):
    """As many acquires of an endpoint wait as may wait at a time (`max_waiting`).

    :ivar endpoint: the endpoint
    :ivar limit: how many may wait
    """

    def __init__(self, message: str = 'too many acquires wait', *, endpoint: object = None, limit: int = 0) -> None:
        super().__init__(message)
        self.endpoint = endpoint
        self.limit = limit


class PoolNotReadyError(BaseError, TimeoutError):
    """`wait_ready` or `warm_up` ran out of time. The cause (``__cause__``) is the last error of `create`.

    :ivar missing: how many connections are missing, by endpoint
    """

    def __init__(self, message: str = 'the pool is not ready', *, missing: Mapping[Any, int] | None = None) -> None:
        super().__init__(message)
        self.missing = dict(missing or {})


class EndpointRetiredError(BaseError):
    """The endpoint is being retired: it takes no new acquires.

    :ivar endpoint: the endpoint
    """

    def __init__(self, message: str = 'the endpoint is being retired', *, endpoint: object = None) -> None:
        super().__init__(message)
        self.endpoint = endpoint


class PoolSuspendedError(BaseError):
    """The pool or the endpoint is suspended, and acquires do not wait for it (``suspend(mode='raise')``).

    :ivar pool: the name of the pool
    :ivar endpoint: the endpoint
    :ivar phase: ``waiting``, or ``admission`` if the acquire was refused when it came
    """

    def __init__(
        self,
        message: str = 'the pool is suspended',
        *,
        pool: str = '',
        endpoint: object = None,
        phase: str = 'admission',
    ) -> None:
        super().__init__(message)
        self.pool = pool
        self.endpoint = endpoint
        self.phase = phase


class ErrorClass(Enum):
    """What an error says about a connection and its endpoint; returned by a manager's `classify`."""

    #: It may go away by itself: a connect is tried again, if the pool retries.
    TRANSIENT = 'transient'
    #: It stays until an operator changes something, as a wrong password does: a connect is not tried again.
    PERMANENT = 'permanent'
    #: This connection is of no use any more.
    BROKEN = 'broken'
    #: Nor are all others of its endpoint that were opened before now, as after a failover.
    STALE = 'stale'
    #: It says nothing about the connection, which is kept.
    HARMLESS = 'harmless'


class DiscardConnection(BaseError):
    """Raised by a manager's `on_release`: the connection must not be used again, and nothing of its user's is lost.

    The pool disposes of the connection, and logs the message as a warning. The caller gets no error, as from any other
    that `on_release` raises."""


class HookTimeoutError(TimeoutError):
    """An asynchronous hook took longer than it was allowed to."""


#: How many known names the error about an unknown one lists.
NAMES_SHOWN = 50


class UnknownEndpointError(KeyError):
    """There are no connect parameters for an endpoint.

    :ivar endpoint: the endpoint
    :ivar known: the names for which there are parameters
    """

    def __init__(self, endpoint: object, known: Iterable[str]) -> None:
        self.endpoint = endpoint
        self.known = tuple(known)
        super().__init__(endpoint, self.known)

    def __str__(self) -> str:
        shown = ', '.join(map(repr, self.known[:NAMES_SHOWN])) or 'none'
        more = len(self.known) - NAMES_SHOWN
        return f'unknown endpoint {self.endpoint!r}; known: {shown}' + (f' and {more} more' if more > 0 else '')


def describe_error(error: BaseException) -> str:
    """Describe an error in a line of a message."""
    try:
        text = str(error).strip().partition('\n')[0]
    except Exception:
        text = ''
    return f'{type(error).__name__}: {text[:200]}' if text else type(error).__name__
