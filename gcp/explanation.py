"""What is to be seen of a pool while it works: why an acquire of an endpoint would wait now, and which acquires do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from gcp._core import describe
from gcp.exceptions import describe_error

__all__ = ['Explanation', 'Waiter']

EndpointT = TypeVar('EndpointT')

#: what is said of each word of `blocked_by` that is no limit
WORDS: Mapping[str, str] = {
    'closed': 'the pool is closed',
    'retiring': 'the endpoint is being retired',
    'suspended': 'the endpoint is suspended',
    'creation': 'a connection is being created',
}

#: units of durations: below how many seconds each is used, and how many seconds it has
UNITS = ((0.9995, 'ms', 0.001), (120, 's', 1), (7200, 'min', 60), (86400, 'h', 3600))


@dataclass(frozen=True)
class Explanation(Generic[EndpointT]):
    """Why an acquire of an endpoint would wait now. As a string: a sentence for logs.

    :ivar endpoint: the endpoint
    :ivar known: whether the pool has connections or waiters of the endpoint, or keeps it; if not, all else is empty
    :ivar blocked_by: what an acquire would wait for, or be refused for: one of those of `AcquireTimeoutError`, or
        ``breaker``, ``suspended``, ``retiring`` or ``closed``; ``None``: it would not wait
    :ivar cap: the limit that blocks, with its value, as ``max_size=5`` or ``total_max_size=3``; ``None``: no limit does
    :ivar expected_wait: how long it would wait, by the times for which connections were used before, seconds; 0: it
        would not; ``None``: that is not known
    :ivar idle: idle connections of the endpoint
    :ivar used: acquired connections of the endpoint
    :ivar creating: connections of the endpoint that are being created
    :ivar waiting: how many acquires of the endpoint wait already
    :ivar max_size: connections of the endpoint, at most
    :ivar oldest_waiter: how long the oldest waiter has been waiting, seconds; 0 without waiters
    :ivar oldest_checkout: how long the connection that was acquired first has been held, seconds; 0 without any
    :ivar breaker: ``closed``, ``open`` or ``half_open``, as in `EndpointStats`
    :ivar failures: connects that have failed since the last one that succeeded
    :ivar last_error: the last error of `create`, as long as it matters
    :ivar retry_at: when the next connect is due, by `time.monotonic()`; ``None``: at any time
    :ivar retry_delay: how long until then, seconds
    :ivar suspended: whether the endpoint, or the pool, is suspended
    :ivar retiring: whether the endpoint is being retired
    """

    endpoint: EndpointT
    known: bool = False
    blocked_by: str | None = None
    cap: str | None = None
    expected_wait: float | None = None
    idle: int = 0
    used: int = 0
    creating: int = 0
    waiting: int = 0
    max_size: int = field(default=0, repr=False)
    oldest_waiter: float = field(default=0.0, repr=False)
    oldest_checkout: float = field(default=0.0, repr=False)
    breaker: str = field(default='closed', repr=False)
    failures: int = field(default=0, repr=False)
    last_error: BaseException | None = field(default=None, repr=False)
    retry_at: float | None = field(default=None, repr=False)
    retry_delay: float = field(default=0.0, repr=False)
    suspended: bool = field(default=False, repr=False)
    retiring: bool = field(default=False, repr=False)

    @property
    def connecting(self) -> int:
        """The number of connects in progress: the same as `creating`."""
        return self.creating

    @property
    def waits(self) -> bool:
        """Whether an acquire would wait, or be refused."""
        return self.blocked_by is not None

    def __str__(self) -> str:
        name = describe(self.endpoint)
        if not self.known:
            return f'{name}: the pool has no connection and no waiter'
        counts = f'{self.idle} idle, {self.used} used, {self.creating} connecting, {self.waiting} waiting'
        if not self.waits:
            return f'{name}: an acquire would {"get an idle connection" if self.idle else "connect"} ({counts})'
        held = f', the longest held for {span(self.oldest_checkout)}' if self.used else ''
        what = 'would be refused' if self.blocked_by in ('closed', 'retiring', 'breaker') else 'would wait'
        soon = f', about {span(self.expected_wait)}' if self.expected_wait and what == 'would wait' else ''
        return f'{name}: an acquire {what}{soon}: {self.reason()} ({counts}{held})'

    def reason(self) -> str:
        """Say what blocks, in a few words; empty if nothing does."""
        if self.blocked_by in ('breaker', 'retry delay'):
            breaker = f'breaker {self.breaker.replace("_", " ")}'
            return f'{breaker if self.blocked_by == "breaker" else self.blocked_by}: {self.failed()}'
        if self.blocked_by == 'reserve':
            return f'{self.cap}: what is free is for acquires with a priority'
        if self.cap is not None:
            return f'{self.cap} ({self.blocked_by})'
        return WORDS.get(self.blocked_by or '', self.blocked_by or '')

    def failed(self) -> str:
        """Say how many connects have failed, with what, and when the next one is due; empty without any."""
        if not self.failures:
            return ''
        several = self.failures > 1
        count = f'the last {self.failures} connects have failed' if several else 'the last connect has failed'
        error = '' if self.last_error is None else f' ({describe_error(self.last_error)})'
        if self.creating:
            return f'{count}{error}, the next one is in progress'
        return f'{count}{error}, the next one is due {f"in {span(self.retry_delay)}" if self.retry_delay else "now"}'


@dataclass(frozen=True)
class Waiter(Generic[EndpointT]):
    """An acquire that waits.

    :ivar endpoint: the endpoint
    :ivar position: its place in the wait queue of the endpoint, from 1
    :ivar age: how long it has waited, seconds
    :ivar remaining: how long it may still wait, seconds; ``None``: without a limit
    :ivar blocked_by: what it waits for: one of those of `AcquireTimeoutError`
    :ivar cap: the limit that blocks, with its value, as ``max_size=5``; ``None``: no limit does
    """

    endpoint: EndpointT
    position: int
    age: float
    remaining: float | None
    blocked_by: str
    cap: str | None


def explanation(endpoint: Any, facts: dict[str, Any] | None) -> Explanation[Any]:
    """Make an explanation of what `gcp._core.explain` returned."""
    if facts is None:
        return Explanation(endpoint)
    names = Explanation.__dataclass_fields__
    return Explanation(
        **{name: value for name, value in facts.items() if name in names},
        known=True,
        max_size=facts['limits'][0],
    )


def span(seconds: float) -> str:
    """Write a duration with its unit."""
    for limit, unit, size in UNITS:
        if seconds < limit:
            return f'{seconds / size:.3g} {unit}'
    return f'{seconds / 86400:.0f} d'
