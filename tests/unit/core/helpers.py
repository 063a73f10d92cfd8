"""A bench for the core: a pool on a clock that stands still, connections with names, and a driver that moves an acquire
or a release on by one piece at a time, through the methods that the pools' own drivers use."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Generator, Hashable
from math import inf
from types import SimpleNamespace
from typing import Any, NamedTuple

from gcp import options
from gcp._core import (
    TODO_DISPOSE,
    Acquire,
    BaseConnectionPool,
    Core,
    Release,
    Victim,
    begin_disposal,
    dispose_of,
    gather,
)
from gcp.exceptions import AcquireTimeoutError, ConnectionPoolClosedError
from gcp.limits import LimitsOf
from gcp.options import resolve
from gcp.threading import ConnectionPool

WAIT, CREATE, USE, SHUT = 'wait', 'create', 'use', 'shut'
"""What an acquire is told: to wait, to create, to use a connection, that the pool is closed."""

ARGUMENTS = inspect.signature(ConnectionPool).parameters
DEFAULTS: dict[str, Any] = {
    **vars(resolve({**{name: one.default for name, one in ARGUMENTS.items()}, **options.DEFAULTS})),
    'name': 'bench',
    'background_collector': True,
}

LIMITS: dict[str, Any] = {
    'max_size': 10,
    'total_max_size': 100,
    'min_idle': 1,
    'idle_timeout': 60.0,
    'max_lifetime': 3600.0,
    'lifetime_jitter': 0.0,
    'leak_threshold': inf,
    'max_uses': None,
    'keepalive_interval': inf,
    'check_interval': 0.0,
    'limits': None,
    'refill': False,
    'connect_workers': 0,
    'connect_timeout': None,
    'max_connecting': None,
    'max_connecting_total': None,
    'connect_retry': None,
    'breaker_threshold': None,
    'max_waiting': None,
    'admission': None,
    'reserve': 0,
    'reserve_timeout': inf,
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


class Endless:
    """An awaitable that suspends, and is never resumed."""

    def __await__(self) -> Generator[None, None, None]:
        yield


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

    def set_timeout(self, timeout: float | None) -> None:
        pass


class BenchOptions(SimpleNamespace):
    """A pool's options. Only the limits of single endpoints are checked."""

    def __init__(self, **options: Any) -> None:
        limits = options['limits']
        super().__init__(**options | {'limits_of': None if limits is None else LimitsOf(limits, {})})

    def changed(self, changes: dict[str, Any]) -> BenchOptions:
        return BenchOptions(**vars(self) | changes)


class BenchManager:
    """A manager whose `create` is replaced by a test that calls it."""

    def create(self, endpoint: Any, timeout: float | None) -> Any:
        raise NotImplementedError

    def check_aliveness(self, endpoint: Any, conn: Any, timeout: float | None = None) -> bool:
        return True


class BenchPool(BaseConnectionPool[Any, Any]):
    """A pool without a driver. Its connections are checked before each reuse, so that a test can intervene between the
    verdict of an acquire and its end.

    :param clock: returns seconds
    :param classify: the manager's
    :param options: the core's limits, and ``acquire_timeout``
    """

    def __init__(self, clock: Callable[[], float], classify: Callable[..., Any] | None = None, **options: Any) -> None:
        self.manager = BenchManager()
        hooks = {'check_aliveness': self.manager.check_aliveness} | ({} if classify is None else {'classify': classify})
        self.reported: list[tuple[str, Any, BaseException]] = []
        self._report = lambda *args: self.reported.append(args)
        self._set_up(self.manager, BenchOptions(**DEFAULTS | LIMITS | options), hooks, clock)
        self._disposer = NoDisposer()

    def use_event(self, wake: Callable[[], object] | None) -> None:
        """Say what is called when the wait of an acquire that begins to wait now is over."""
        self._make_event = lambda: wake or do_nothing


def do_nothing() -> None:
    """Serve as an event on which no thread waits."""


class Bench:
    """A pool on an injected clock, and what a driver does with it, piece by piece, without hooks and without waiting.

    :param options: the pool's
    """

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.pool = BenchPool(self.clock, **options)
        self.core: Core = self.pool._core
        self._numbers = itertools.count(1)
        self._kept: list[Acquire] = []

    # --- acquire ---

    def acquire(self, endpoint: Hashable, timeout: float | None = None, priority: int = 0) -> Acquire:
        """Open an acquire that has asked for nothing yet."""
        return self.pool.open_acquire(endpoint, timeout, priority)

    def ask(self, endpoint: Hashable, timeout: float | None = None) -> Acquire:
        """Open an acquire and let it ask."""
        acquire = self.acquire(endpoint, timeout)
        self.request(acquire)
        return acquire

    def request(self, acquire: Acquire, wake: Callable[[], object] | None = None) -> str:
        """Let an acquire ask. Returns its verdict.

        :param wake: called when its wait is over, if it has to wait
        """
        return self.tell(acquire, do_nothing, wake)

    def tell(self, acquire: Acquire, how: Callable[[], object], wake: Callable[[], object] | None = None) -> str:
        """Tell an acquire how what it asked for has ended, and let it go on up to its verdict, which is returned.

        :param how: tells it
        :param wake: as for `request`
        """
        self.pool.use_event(wake)
        try:
            how()
            while acquire.todo != 'done' and acquire.next() == TODO_DISPOSE:
                acquire.completed()  # the tests dispose of victims
        except ConnectionPoolClosedError:
            return SHUT
        return acquire.todo if acquire.todo in (WAIT, CREATE) else USE

    def verdict(self, acquire: Acquire) -> str:
        """Return what an acquire that has asked is to do. One that waits looks whether something has come."""
        if acquire.todo == 'ask':
            return SHUT  # the pool was closed: it could not even ask
        return self.poll(acquire)

    def poll(self, acquire: Acquire) -> str:
        """Have an acquire that waits look whether something has come, as if its event had been set."""
        if acquire.todo != WAIT:
            return self.request(acquire)
        return self.tell(acquire, lambda: acquire.completed(True), acquire.event)

    def expire(self, acquire: Acquire) -> str:
        """Let the time of an acquire that waits run out. Returns WAIT if nothing had come, else its verdict."""
        try:
            return self.tell(acquire, lambda: acquire.completed(False))
        except AcquireTimeoutError:
            return WAIT

    def created(self, acquire: Acquire, conn: object) -> str:
        """Let a creation succeed."""
        return self.tell(acquire, lambda: acquire.completed(conn))

    def failed(self, acquire: Acquire, error: BaseException | None = None) -> None:
        """Let the hook that an acquire has asked for fail."""
        error = error or ValueError()
        try:
            acquire.failed(error)
        except type(error):
            error.__traceback__ = None  # else it would keep the bench alive

    def retry(self, acquire: Acquire, wake: Callable[[], object] | None = None) -> str:
        """Find the connection of an acquire dead, and let it ask again.

        :param wake: as for `request`
        """
        return self.tell(acquire, lambda: acquire.completed(False), wake)

    def finish(self, acquire: Acquire) -> Any:
        """End an acquire well. Returns the connection, which the acquire holds from here on."""
        if acquire.todo == 'check_aliveness':
            acquire.completed(True)
        acquire.next()
        return acquire.conn

    def take(self, acquire: Acquire) -> Acquire:
        """End an acquire that may create or use. It holds the connection from here on."""
        verdict = self.verdict(acquire)
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
        acquire = self.acquire(endpoint)
        self.request(acquire, wake)
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

    def discard(self, held: Acquire, reason: str) -> None:
        """Make a held connection a victim."""
        release = self.begin_release(held.conn, held.endpoint)
        assert release is not None
        release.discard(reason)
        self.core.drain()

    def fail_release(self, release: Release, error: Exception) -> None:
        """Let the `on_release` of a release fail."""
        release.failed(error)
        try:
            self.end_release(release)
        except type(error):
            error.__traceback__ = None

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

    def begin_disposal(self, victim: Victim) -> None:
        """Call the `dispose` of a victim, which does not return."""
        begin_disposal(victim, lambda endpoint, conn: Endless(), Endless.__await__, lambda iterator, waiting: iterator)

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
