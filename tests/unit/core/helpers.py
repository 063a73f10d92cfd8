"""A bench for the core: a pool on a clock that stands still, connections with names, and a driver that does one step of
an acquire or a release at a time, through the doors that the pools' own drivers use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from types import SimpleNamespace
from typing import Any, NamedTuple

from gcp._core import (
    TODO_DISPOSE,
    Acquire,
    BaseConnectionPool,
    Core,
    Release,
    Victim,
    dispose_of,
    gather,
)
from gcp.exceptions import AcquireTimeoutError, ConnectionPoolClosedError

WAIT, CREATE, USE, SHUT = 'wait', 'create', 'use', 'shut'
"""What an acquire is told: to wait, to create, to use a connection, that the pool is closed."""

LIMITS: dict[str, Any] = {
    'max_size': 10, 'total_max_size': 100, 'min_idle': 1, 'idle_timeout': 60.0, 'max_lifetime': 3600.0,
    'lifetime_jitter': 0.0, 'leak_threshold': float('inf'),
}


class Clock:
    """Seconds, by hand. Does not begin at zero, as no clock does."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Conn:
    """A connection that is equal to itself only. Named after its endpoint and its place among all that were created."""

    def __init__(self, endpoint: Hashable, number: int) -> None:
        self.endpoint = endpoint
        self.number = number

    def __repr__(self) -> str:
        return f'{self.endpoint}{self.number}'


class Shape(NamedTuple):
    """How many connections are in which state, and how many acquires wait."""

    idle: int = 0
    used: int = 0
    creating: int = 0
    disposing: int = 0
    waiting: int = 0


class NoDisposer:
    """Leaves victims where they are: the tests dispose of them."""

    def dispose_soon(self, seconds: float) -> None:
        pass


class BenchPool(BaseConnectionPool[Any, Any]):
    """A pool without a driver, whose connections are checked before each reuse: so a test has a say between the core's
    verdict and the end of the acquire.

    :param clock: returns seconds
    """

    def __init__(self, clock: Callable[[], float], **limits: Any) -> None:
        options = SimpleNamespace(
            **LIMITS | limits, acquire_timeout=None, name='bench', background_collector=True, dispose_batch_size=0)
        self._set_up(None, options, {'check_aliveness': lambda endpoint, conn, timeout=None: True}, clock)
        self._disposer = NoDisposer()

    def use_event(self, event: Callable[[], object] | None) -> None:
        """Say what the next acquire that waits is woken by."""
        self._make_event = lambda: event or (lambda: None)


class Bench:
    """A pool on an injected clock, and what a driver does with it, step by step, without hooks and without waiting.

    :param limits: the core's
    """

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.pool = BenchPool(self.clock, **limits)
        self.core: Core = self.pool._core
        self._numbers = itertools.count(1)
        self._kept: list[Acquire] = []
        self.pool.use_event(None)

    # --- acquire ---

    def acquire(self, endpoint: Hashable, timeout: float | None = None) -> Acquire:
        """Open an acquire that has asked for nothing yet."""
        return self.pool.open_acquire(endpoint, timeout)

    def request(self, acquire: Acquire) -> str:
        """Let an acquire ask. Returns what it is told."""
        try:
            while acquire.todo != 'done' and acquire.next() == TODO_DISPOSE:
                acquire.completed()         # the tests dispose of victims
        except ConnectionPoolClosedError:
            return SHUT
        return self.verdict(acquire)

    def verdict(self, acquire: Acquire) -> str:
        """Return what an acquire was told last."""
        return acquire.todo if acquire.todo in (WAIT, CREATE) else USE

    def ask(self, endpoint: Hashable, timeout: float | None = None) -> Acquire:
        """Open an acquire and let it ask once."""
        acquire = self.acquire(endpoint, timeout)
        self.request(acquire)
        return acquire

    def poll(self, acquire: Acquire) -> str:
        """Look what has come for an acquire meanwhile."""
        if acquire.todo != WAIT:
            return self.request(acquire)
        try:
            acquire.completed(True)
        except ConnectionPoolClosedError:
            return SHUT
        return self.request(acquire)

    def expire(self, acquire: Acquire) -> str:
        """Let the time of an acquire that waits run out. Returns WAIT if nothing had come, else what had."""
        try:
            acquire.completed(False)
        except AcquireTimeoutError:
            return WAIT
        except ConnectionPoolClosedError:
            return SHUT
        return self.request(acquire)

    def created(self, acquire: Acquire, conn: object) -> str:
        """Let a creation succeed."""
        try:
            acquire.completed(conn)
        except ConnectionPoolClosedError:
            return SHUT
        return USE

    def failed(self, acquire: Acquire, error: Exception | None = None) -> None:
        """Let a creation fail."""
        error = error or ValueError()
        try:
            acquire.failed(error)
        except type(error):
            pass

    def retry(self, acquire: Acquire) -> str:
        """Find the connection of an acquire dead, and let it ask again."""
        acquire.completed(False)
        return self.request(acquire)

    def finish(self, acquire: Acquire) -> Any:
        """End an acquire well. Returns the connection, which the acquire holds from here on."""
        if acquire.todo == 'check_aliveness':
            acquire.completed(True)
        acquire.next()
        return acquire.conn

    def take(self, acquire: Acquire) -> Acquire:
        """End an acquire that may create or use. It holds the connection from here on."""
        verdict = self.poll(acquire)
        if verdict == CREATE:
            verdict = self.created(acquire, Conn(acquire.endpoint, next(self._numbers)))
        assert verdict == USE, verdict
        self.finish(acquire)
        return acquire

    def get(self, endpoint: Hashable) -> Acquire:
        """Acquire, at once."""
        return self.take(self.ask(endpoint))

    def keep(self, acquire: Acquire) -> Acquire:
        """Hold a connection for good: an acquire that is dropped costs its connection."""
        self._kept.append(acquire)
        return acquire

    def hold(self, endpoint: Hashable) -> Acquire:
        """Acquire, at once and for good."""
        return self.keep(self.get(endpoint))

    def wait(self, endpoint: Hashable, wake: Callable[[], object] | None = None) -> Acquire:
        """Acquire, and have to wait.

        :param wake: called when the wait is over
        """
        self.pool.use_event(wake)
        acquire = self.ask(endpoint)
        self.pool.use_event(None)
        assert acquire.todo == WAIT, acquire.todo
        return acquire

    # --- release ---

    def begin_release(self, conn: object, endpoint: Hashable) -> Release | None:
        """Begin to release by name."""
        return self.pool.open_release(conn, endpoint)

    def end_release(self, release: Release) -> None:
        """Put the connection back."""
        while release.next() == TODO_DISPOSE:
            release.completed()

    def discard(self, held: Acquire | Release, reason: str) -> None:
        """Take a held connection away for disposal."""
        release = held if isinstance(held, Release) else self.begin_release(held.conn, held.endpoint)
        assert release is not None
        release.discard(reason)
        self.core.drain()

    def put(self, *held: Acquire) -> None:
        """Release by name, in order."""
        for acquire in held:
            release = self.begin_release(acquire.conn, acquire.endpoint)
            assert release is not None
            self.end_release(release)

    def fill(self, endpoint: Hashable, count: int) -> list[Any]:
        """Leave so many connections idle: they come back in the order of the result, that of their creation."""
        held = [self.get(endpoint) for _ in range(count)]
        conns = [acquire.conn for acquire in held]
        self.put(*held)
        return conns

    # --- disposal ---

    def victims(self) -> list[Victim]:
        """Take all victims, as a disposer does."""
        batch = gather(self.core)
        return [] if batch is None else list(iter(batch.take, None))

    def disposed(self, victim: Victim) -> None:
        """Dispose of a victim."""
        dispose_of(victim, lambda endpoint, conn, timeout: None)

    def dispose_all(self) -> list[tuple[str, str]]:
        """Dispose of all victims; give their names and the reasons."""
        gone: list[tuple[str, str]] = []
        while victims := self.victims():
            for victim in victims:
                gone.append((repr(victim.conn), victim.reason))
                self.disposed(victim)
        return gone

    # --- looking ---

    @property
    def shape(self) -> Shape:
        shape = Shape(*self.core.counts())
        assert self.core.size == sum(shape[:4])
        return shape

    @property
    def total(self) -> dict[str, Any]:
        """The pool's counts."""
        return self.core.snapshot()[0]

    @property
    def endpoints(self) -> dict[Any, dict[str, Any]]:
        """The counts of each endpoint that has a record."""
        return dict(self.core.snapshot()[1])

    def of(self, endpoint: Hashable) -> Shape:
        """One endpoint's part of the shape."""
        counts = self.endpoints.get(endpoint)
        return Shape() if counts is None else Shape(*(counts[field] for field in Shape._fields))
