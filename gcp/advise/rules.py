"""Decides how big a pool should be from what it did. Pure: figures in, advice out.

Little's law: connections in use on average = acquires per second x mean seconds of a use. More are needed because
arrivals are uneven; how many more, Erlang's formula says for arrivals at random."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from gcp.advise.source import Observed
from gcp.stats import Histogram

__all__ = ['Advice', 'Finding', 'Load', 'advise', 'connections_for', 'share_that_waits']

TOO_SMALL: Final = 'too small'
TOO_LARGE: Final = 'too large'
CREATIONS: Final = 'too many creations'
NO_SIZE: Final = 'waits that no size cures'
FINE: Final = 'fine'
UNUSED: Final = 'not enough data'

#: The worst is the verdict.
ORDER: Final = (NO_SIZE, TOO_SMALL, CREATIONS, TOO_LARGE)

#: Fewer acquires than these say nothing.
ENOUGH: Final = 20
#: The share of acquires that may wait: the target of the recommended size, and from where on waits are a finding.
TARGET: Final = 0.01
#: A wait at the 99th percentile below this is none, seconds.
SHORT_WAIT: Final = 0.001
#: From this share of a cap on, it is the cap that makes acquires wait.
BUSY: Final = 0.7
#: Creations per acquire from where on they are a finding.
MANY_CREATIONS: Final = 0.1
#: On a page since the start, the share of acquires that wait from where on it is the size, not bursts: the mean use of
#: connections says little there, as there was less to do at other times.
MOST_WAIT: Final = 0.2
#: The share of all waits that slow creates or checks must have to be their cause.
MAIN_CAUSE: Final = 0.5
#: A cap is too large from this multiple of what is needed on, and this many connections above it.
LARGE_FACTOR, LARGE_EXCESS = 5, 15
#: A checkout is long from this many seconds and this multiple of the mean use on.
LONG_USE, LONG_FACTOR = 10.0, 100.0


@dataclass(frozen=True)
class Finding:
    """What was found, why, and what to do.

    :ivar verdict: its kind
    :ivar reason: the reasoning, with its numbers
    :ivar action: what to do
    """

    verdict: str
    reason: str
    action: str


@dataclass(frozen=True)
class Advice:
    """What is advised for one pool.

    :ivar load: what the pool did
    :ivar verdict: the worst finding, or ``fine``, or ``not enough data``
    :ivar findings: all findings, the worst first
    :ivar options: recommended values of the pool's arguments
    """

    load: Load
    verdict: str
    findings: tuple[Finding, ...] = ()
    options: Mapping[str, int] = field(default_factory=dict)


class Load:
    """What a pool did in an interval.

    :ivar seconds: its length; ``None``: not known
    :ivar busiest: the endpoint with the most acquires
    :ivar share: its share of all acquires
    """

    def __init__(self, observed: Observed) -> None:
        self.figures = observed.figures
        self.seconds = self.figures.seconds
        self.busiest, self.share = observed.busiest

    @cached_property
    def results(self) -> dict[str, float]:
        return self.figures.by('gcpool_acquires_total', 'result')

    @property
    def timeouts(self) -> float:
        return self.results.get('timeout', 0.0)

    @property
    def refused(self) -> float:
        """Acquires that timed out, or were refused because too many waited."""
        return self.timeouts + self.results.get('rejected', 0.0)

    @property
    def acquires(self) -> float:
        """Acquires that got a connection, or were refused one."""
        return sum(self.results.get(result, 0.0) for result in ('hit', 'created', 'waited')) + self.refused

    @property
    def hit_ratio(self) -> float:
        return self.results.get('hit', 0.0) / self.acquires if self.acquires else 0.0

    @property
    def waited(self) -> float:
        """The share of acquires that waited for a connection, or in vain."""
        return (self.results.get('waited', 0.0) + self.refused) / self.acquires if self.acquires else 0.0

    @cached_property
    def waits(self) -> Histogram:
        return self.figures.histogram('gcpool_acquire_wait_seconds')

    @cached_property
    def uses(self) -> Histogram:
        return self.figures.histogram('gcpool_use_seconds')

    @property
    def mean_use(self) -> float:
        return self.uses.sum / self.uses.count if self.uses.count else 0.0

    @property
    def rate(self) -> float | None:
        """Acquires per second."""
        return self.acquires / self.seconds if self.seconds else None

    @property
    def in_use(self) -> float:
        """Connections in use on average, by Little's law; what is in use now, if the interval is not known."""
        held = self.figures.gauge('gcpool_connections', state='used')
        if self.seconds is None:
            return held
        return self.uses.sum / self.seconds if self.uses.count else held

    @property
    def offered(self) -> float:
        """What would be in use if all who asked had got a connection."""
        served = self.acquires - self.refused
        return self.in_use * (self.acquires / served if served else 1.0)

    @cached_property
    def creates(self) -> Histogram:
        return self.figures.histogram('gcpool_hook_seconds', hook='create', result='ok')

    @property
    def failed_creates(self) -> float:
        outcomes = self.figures.by('gcpool_hook_calls_total', 'outcome', hook='create')
        return outcomes.get('error', 0.0) + outcomes.get('timeout', 0.0)

    @property
    def creations(self) -> float:
        """Creations per acquire, save those that fill an empty pool: as many as are open now."""
        if not self.acquires:
            return 0.0
        surplus = self.creates.count - (self.opened if self.figures.is_first else 0)
        return max(0.0, surplus) / self.acquires

    @property
    def opened(self) -> int:
        states = self.figures.states()
        return states.get('idle', 0) + states.get('used', 0)

    @cached_property
    def checks(self) -> Histogram:
        return self.figures.histogram('gcpool_hook_seconds', hook='check_aliveness')

    @property
    def endpoint_opened(self) -> int:
        """Connections of the busiest endpoint that are open now."""
        states = self.figures.states(self.busiest)
        return states.get('idle', 0) + states.get('used', 0)

    @property
    def burst(self) -> int | None:
        """How many connections would have served all at once who waited: those ahead of a waiter, in uses."""
        waited = self.results.get('waited', 0.0)
        if not waited or not self.mean_use or not self.max_size:
            return None
        created = self.creates.sum if self.results.get('created') else 0.0
        mean_wait = max(0.0, self.waits.sum - created) / waited
        return math.ceil(self.max_size * (1 + mean_wait / self.mean_use))

    @property
    def closed(self) -> dict[str, float]:
        return self.figures.by('gcpool_connections_closed_total', 'reason')

    @property
    def max_size(self) -> int | None:
        """The limit of the busiest endpoint: its own, else the pool's. Older pages show none but that of the pool, and
        that of a single endpoint by what the pool could hold."""
        own = self.figures.gauge('gcpool_endpoint_max_connections', pool_endpoint=self.busiest)
        if own and self.busiest != '_other':  # that label shows the sum of several
            return int(own)
        capacity, total = self.figures.limit('gcpool_capacity'), self.total_max_size
        if self.endpoints == 1 and capacity and total and capacity < total:
            return capacity
        return self.figures.limit('gcpool_max_connections_per_endpoint')

    @property
    def endpoints(self) -> int:
        return int(self.figures.gauge('gcpool_endpoints'))

    @property
    def has_own_limits(self) -> bool:
        """Whether some of several endpoints have limits of their own that the page does not show."""
        if self.figures.gauge('gcpool_endpoint_max_connections'):
            return False
        capacity, total = self.figures.limit('gcpool_capacity'), self.total_max_size
        if self.endpoints < 2 or not capacity or total is None:
            return False
        return capacity != min(total, self.endpoints * (self.max_size or 0))

    @property
    def total_max_size(self) -> int | None:
        return self.figures.limit('gcpool_max_connections')

    @property
    def min_idle(self) -> int | None:
        return self.figures.limit('gcpool_min_idle_connections')

    @property
    def longest(self) -> float:
        """How long the connection held longest has been held, seconds."""
        return self.figures.gauge('gcpool_oldest_checkout_seconds')

    @property
    def leaks(self) -> float:
        return self.figures.count('gcpool_leaks_detected_total')

    def wait(self, quantile: float) -> float:
        """Return a quantile of the waits, seconds; 0 without any."""
        found = self.waits.quantile(quantile) if self.waits.count else 0.0
        return 0.0 if math.isnan(found) else found


# --- how many connections ---


def share_that_waits(size: int, in_use: float) -> float:
    """Return the share of acquires that wait, by Erlang's formula C, if they arrive at random.

    :param size: how many connections there are
    :param in_use: how many would be in use on average if there were enough
    """
    if in_use >= size:
        return 1.0
    blocked = 1.0
    for count in range(1, size + 1):
        blocked = in_use * blocked / (count + in_use * blocked)
    return blocked / (1 - in_use / size * (1 - blocked))


def connections_for(in_use: float) -> int:
    """Return how many connections are needed for fewer than 1 acquire in 100 to wait, at least 2."""
    size = max(2, math.ceil(in_use))
    while share_that_waits(size, in_use) > TARGET:
        size += 1 if size < 1000 else size // 100
    return size


# --- findings ---


def advise(observed: Observed) -> Advice:
    """Say how big a pool should be, and why."""
    load = Load(observed)
    if load.acquires < ENOUGH and not load.refused:
        return Advice(load, UNUSED)
    options: dict[str, int] = {}
    findings = sorted(_findings(load, options), key=lambda finding: ORDER.index(finding.verdict))
    return Advice(load, findings[0].verdict if findings else FINE, tuple(findings), options)


def _findings(load: Load, options: dict[str, int]) -> Iterator[Finding]:
    waits = load.refused > 0 or (load.waited >= TARGET and load.wait(0.99) >= SHORT_WAIT)
    yield from _creations(load, options)
    if waits:
        yield from _waits(load, options)
    else:
        yield from _slow_hooks(load)
        yield from _too_large(load, options)


def _waits(load: Load, options: dict[str, int]) -> Iterator[Finding]:
    """Say why acquires wait: the first cause that holds, and slow hooks."""
    for rule in (_failing, _held_up, _leaks, _busy, _slow_hooks, _full):
        found = list(rule(load, options))
        yield from found
        if found:
            return
    yield _herd(load)


def _failing(load: Load, options: dict[str, int]) -> Iterator[Finding]:
    rejected = load.results.get('rejected', 0.0)
    is_away = load.failed_creates >= load.creates.count or rejected >= load.results.get('waited', 0.0) + load.timeouts
    if load.failed_creates and is_away:
        yield Finding(
            NO_SIZE,
            f'{load.failed_creates:.0f} connects failed and {load.creates.count} succeeded, and {_waiting(load)}: the '
            'server is away, or refuses.',
            'See the errors of create. breaker_threshold tells callers at once while the server is away.',
        )


def _held_up(load: Load, options: dict[str, int]) -> Iterator[Finding]:
    waiting, waiters = load.figures.gauge('gcpool_connect_waiters'), load.figures.gauge('gcpool_waiters')
    if waiting and waiting >= MAIN_CAUSE * waiters:
        took = f' (a connect takes {duration(load.creates.sum / load.creates.count)})' if load.creates.count else ''
        yield Finding(
            NO_SIZE,
            f'{waiting:.0f} of {waiters:.0f} acquires that wait now wait until a connect may begin{took}: limits of '
            'connects hold them up, not the size.',
            'Raise max_connecting, max_connecting_total or connect_workers if the server can take it; warm_up and '
            'refill connect before they are asked.',
        )


def _leaks(load: Load, options: dict[str, int]) -> Iterator[Finding]:
    is_long = load.longest >= LONG_USE and load.longest >= LONG_FACTOR * load.mean_use
    if load.leaks or is_long:
        seen = [f'{load.leaks:g} leaks were detected'] * bool(load.leaks)
        seen += [f'one connection has been held for {duration(load.longest)}'] * is_long
        yield Finding(
            NO_SIZE,
            f'{" and ".join(seen)}, while a use takes {duration(load.mean_use)} on average: connections are held that '
            'do no work, and more of them would be held, too.',
            'Find who holds them: leak_threshold, the oldest checkout, the stacks of the holders. Give long work a '
            'pool of its own.',
        )


def _busy(load: Load, options: dict[str, int]) -> Iterator[Finding]:
    """Say that a cap is used up, by Little's law."""
    if load.seconds is None:
        return
    for argument, limit, whose, share in (
        ('max_size', load.max_size, f'of endpoint {load.busiest!r}', load.share),
        ('total_max_size', load.total_max_size, 'of all endpoints together', 1.0),
    ):
        in_use = load.in_use * share
        if limit is not None and in_use >= BUSY * limit:
            options[argument] = max(connections_for(load.offered * share), limit + 1)
            yield Finding(
                TOO_SMALL,
                f'{in_use:.1f} connections {whose} are in use on average, {in_use / limit:.0%} of {argument}={limit}, '
                f'and {_waiting(load)}.',
                f'{argument}={options[argument]}: fewer than 1 acquire in 100 would wait for it at this load, if the '
                'server can do that much at a time. Or shorten the uses.',
            )


def _full(load: Load, options: dict[str, int]) -> Iterator[Finding]:
    """Say that a cap is too small by the share of acquires that wait, where the time is not that of the load."""
    if (load.seconds is not None and not load.figures.is_first) or load.waited < MOST_WAIT:
        return
    is_total = load.total_max_size is not None and load.opened >= load.total_max_size
    argument, limit = ('total_max_size', load.total_max_size) if is_total else ('max_size', load.max_size)
    if limit is not None:
        options[argument] = max(load.burst or 0, limit + 1)
        yield Finding(
            TOO_SMALL,
            f'{_waiting(load)}: {argument}={limit} is used up while there is work. In a wait, '
            f'{options[argument] - limit} more connections would have done what was ahead.',
            f'{argument}={options[argument]}, if the server can do that much at a time. Then compare two pages of a '
            'busy time (--interval).',
        )


def _slow_hooks(load: Load, options: dict[str, int] | None = None) -> Iterator[Finding]:
    """Say that creates or checks take most of the time that acquires wait."""
    if load.wait(0.99) < SHORT_WAIT:
        return
    for hook, calls, action in (('creates', load.creates, CREATES), ('checks', load.checks, CHECKS)):
        is_told = hook == 'creates' and load.creations >= MANY_CREATIONS
        if calls.count and calls.sum >= MAIN_CAUSE * load.waits.sum and not is_told:
            yield Finding(
                NO_SIZE,
                f'{hook} take {duration(calls.sum / calls.count)} on average, in all '
                f'{min(1.0, calls.sum / load.waits.sum):.0%} of the time that acquires wait.',
                action,
            )


CREATES: Final = (
    'Have connections ready: min_idle, warm_up, a longer idle_timeout; connect_workers lets an acquire take what is '
    'released meanwhile. Find out why the server is slow to connect.'
)
CHECKS: Final = (
    'Check less: check_interval, or a check that only looks at the socket. Find out why the server is slow to answer.'
)


def _herd(load: Load) -> Finding:
    limit, in_use = load.max_size, load.in_use * load.share
    share = f', {in_use / limit:.0%} of max_size={limit}' if limit and load.seconds else ''
    whole = f' ({load.burst} connections)' if load.burst else ''
    return Finding(
        NO_SIZE,
        f'{_waiting(load)}, although only {in_use:.1f} connections of endpoint {load.busiest!r} are in use on '
        f'average{share}: they come in bursts.',
        'Spread the bursts: jitter of timers, fewer tasks at a time, max_waiting. A size for a whole burst'
        f'{whole} helps only if the server can do all of it at a time.',
    )


def _waiting(load: Load) -> str:
    return f'{load.waited:.0%} of the acquires wait or time out (99th percentile {duration(load.wait(0.99))})'


def _creations(load: Load, options: dict[str, int]) -> Iterator[Finding]:
    if load.creations < MANY_CREATIONS:
        return
    closed = {reason: count for reason, count in load.closed.items() if reason in CURES}
    why = max(closed, key=lambda reason: closed[reason], default='')
    told = f'; most are closed by {why} ({closed[why]:g})' if why else ''
    if why == 'evicted' and load.total_max_size is not None:
        options['total_max_size'] = max(
            load.endpoints * connections_for(load.in_use * load.share), load.total_max_size + 1
        )
    yield Finding(
        CREATIONS,
        f'{load.creations:.0%} of the acquires cost a new connection{told}. A connect takes '
        f'{duration(load.creates.sum / load.creates.count)} on average, a use {duration(load.mean_use)}.',
        CURES.get(why, 'Find out why connections are not used again.'),
    )


#: What to do if most connections are closed for a reason.
CURES: Final[Mapping[str, str]] = {
    'idle_timeout': 'Raise idle_timeout, or min_idle to what is in use: connections are closed between two uses.',
    'max_lifetime': 'Raise max_lifetime: connections are closed before they have been used often.',
    'max_uses': 'Raise max_uses: connections are closed before they have been used often.',
    'evicted': 'Raise total_max_size, or use fewer endpoints: the total cap closes idle connections of one endpoint to '
    'make room for another.',
    'dead': 'The server, or something on the way to it, closes idle connections: set idle_timeout below its time-out, '
    'or keepalive_interval.',
    'discarded': 'Connections come back in a state in which they cannot be used again: see the errors in the blocks '
    'that use them.',
    'error': 'Hooks or blocks fail: see the errors that they raise.',
}


def _too_large(load: Load, options: dict[str, int]) -> Iterator[Finding]:
    in_use, limit = load.in_use * load.share, load.max_size
    needed = max(connections_for(in_use), load.endpoint_opened)
    if limit is not None and limit >= LARGE_FACTOR * needed and limit - needed >= LARGE_EXCESS:
        options['max_size'] = needed
        yield Finding(
            TOO_LARGE,
            f'{in_use:.1f} connections of endpoint {load.busiest!r} are in use on average, {load.endpoint_opened} are '
            f'open, and {needed} are enough, but max_size={limit}: after a stall of the server, all who waited connect '
            'at once.',
            f'max_size={needed}, or more if it is busier at other times.',
        )
    kept, needed = load.min_idle or 0, connections_for(in_use)
    if kept - needed >= LARGE_EXCESS and kept >= LARGE_FACTOR * needed:
        options['min_idle'] = needed
        yield Finding(
            TOO_LARGE,
            f'min_idle={kept} connections of each endpoint are kept, and {needed} are enough for the busiest one.',
            f'min_idle={needed} or less.',
        )


def duration(seconds: float) -> str:
    """Return a duration with three digits."""
    for unit, size in (('s', 1.0), ('ms', 1e-3)):
        if seconds >= size:
            return f'{seconds / size:.3g} {unit}'
    return f'{seconds * 1e6:.3g} us'
