"""Guarantees 1, 2 and 5 (docs/guarantees.md): all interleavings of two callers of a threading pool, with up to two
preemptions.

``GCP_PREEMPTIONS`` (default 2) is the limit for two callers without workers; with workers, or with three callers,
it is one less. ``GCP_SCHEDULES`` (default 250, ``inf`` for all) limits the schedules of each of the latter.
`core.explorer` describes how they are found."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

import pytest
from fronts import audit
from gil import HAS_GIL

from core.explorer import Broken, Event, Report, Scenario, Scheduler, explore
from gcp import _core as core
from gcp.disposal import COLLECT_BATCH, DISPOSE_GRACE
from gcp.exceptions import (
    AcquireTimeoutError,
    ConnectionPoolClosedError,
    ConnectionPoolNotFound,
    EndpointRetiredError,
    EndpointUnavailableError,
    TooManyWaitersError,
)
from gcp.limits import EndpointLimits, Retry
from gcp.threading import BaseConnectionManager, ConnectionPool

PREEMPTIONS = int(os.environ.get('GCP_PREEMPTIONS', '2'))
MOST = float(os.environ.get('GCP_SCHEDULES', '250'))
LONG = 1000.0
"""A time-out that passes only for the impatient, seconds."""


class Fault(Exception):
    """What a hook raises."""


REFUSALS = (EndpointUnavailableError, TooManyWaitersError, Fault)


class Conn:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


class Manager(BaseConnectionManager[str, Conn]):
    """Creates and disposes, with a boundary in each, and counts.

    :param scheduler: whose boundaries they are
    :param max_size: of each endpoint, at most
    :param total_max_size: of all, at most
    """

    def __init__(self, scheduler: Scheduler, max_size: int, total_max_size: int) -> None:
        self.scheduler = scheduler
        self.max_size, self.total_max_size = max_size, total_max_size
        self.places: Counter[str] = Counter()  # taken, by endpoint: from the call of create to the return of dispose
        self.created: list[Conn] = []
        self.disposed: list[Conn] = []

    def create(self, endpoint: str, timeout: float | None = None) -> Conn:
        self.places[endpoint] += 1
        assert self.places[endpoint] <= self.max_size, 'more than the cap of the endpoint'
        assert self.places.total() <= self.total_max_size, 'more than the total cap'
        self.scheduler.pause('create')
        self.created.append(Conn(f'{endpoint}{len(self.created) + 1}'))
        return self.created[-1]

    def dispose(self, endpoint: str, conn: Conn, timeout: float | None = None) -> None:
        assert conn not in self.disposed, f'{conn} is disposed of twice'
        self.disposed.append(conn)
        self.scheduler.pause(f'dispose {conn}')
        self.places[endpoint] -= 1


class FailingManager(Manager):
    """One whose first connects fail.

    :param failures: how many
    """

    def __init__(self, scheduler: Scheduler, max_size: int, total_max_size: int, failures: int) -> None:
        super().__init__(scheduler, max_size, total_max_size)
        self.failures = failures
        self.connecting = 0

    def create(self, endpoint: str, timeout: float | None = None) -> Conn:
        self.connecting += 1
        assert self.connecting == 1, 'more connects than at a time'
        try:
            if self.failures == 0:
                return super().create(endpoint, timeout)
            self.failures -= 1
            self.scheduler.pause('fail to create')
            raise Fault
        finally:
            self.connecting -= 1


class HookedManager(Manager):
    """One with two more hooks: a broken connection fails both."""

    def __init__(self, scheduler: Scheduler, max_size: int, total_max_size: int) -> None:
        super().__init__(scheduler, max_size, total_max_size)
        self.broken: set[Conn] = set()

    def check_aliveness(self, endpoint: str, conn: Conn, timeout: float | None = None) -> bool:
        self.scheduler.pause(f'check {conn}')
        return conn not in self.broken

    def on_release(self, endpoint: str, conn: Conn) -> None:
        self.scheduler.pause(f'on_release {conn}')
        if conn in self.broken:
            raise Fault


@dataclass
class World:
    """A pool in which two callers (or three) meet."""

    scheduler: Scheduler
    manager: Manager
    pool: ConnectionPool[str, Conn]
    held: list[Conn] = field(default_factory=list)
    is_closing: bool = False
    is_forced: bool = False
    is_retiring: bool = False
    refusals: tuple[type[Exception], ...] = ()

    def hold(self, conn: Conn) -> None:
        assert conn not in self.held, f'{conn} has two holders'
        assert conn not in self.manager.disposed or self.is_forced, f'{conn} was disposed of'
        self.held.append(conn)

    def use_and_release(self, conn: Conn, endpoint: str) -> None:
        self.hold(conn)
        self.scheduler.pause(f'hold {conn}')
        self.release(conn, endpoint)

    def release(self, conn: Conn, endpoint: str) -> None:
        self.held.remove(conn)
        self.pool.release(conn, endpoint)

    def create(self, endpoint: str) -> core.Acquire:
        """Begin an acquire, up to the creation of its connection."""
        acquire = self.pool.open_acquire(endpoint, None)
        acquire.next()
        assert acquire.todo == 'create'
        acquire.make_call()
        return acquire

    def leave_idle(self, acquire: core.Acquire) -> None:
        """Abandon an acquire that has created: its connection becomes idle, and what has expired is not disposed of, as
        it would be after a release."""
        acquire.abandon(AcquireTimeoutError())

    def break_(self, conn: Conn) -> None:
        """Have the next hook find fault with a connection."""
        assert isinstance(self.manager, HookedManager)
        self.manager.broken.add(conn)

    def verify(self) -> None:
        """See that all is well when all is over."""
        pool, manager = self.pool, self.manager
        pool._core.on_transition = None
        pool._core.drain()
        pool._disposer.dispose_all(inf)
        assert not self.held
        stats = pool.stats()
        audit(stats)
        assert (stats.used, stats.disposing) == (0, 0), stats
        assert stats.idle == len(manager.created) - len(manager.disposed)
        assert self.scheduler.slept == 0.0, f'a caller waited for the clock: {self.scheduler.slept} s'
        pool.close()
        assert pool.get_size() == 0
        assert sorted(manager.disposed, key=repr) == sorted(manager.created, key=repr)


# --- what callers do ---


class Action:
    """What one caller does. Before, `prepare` puts the world in the state that it needs; when all have done so, `leave`
    leaves idle what is to be idle."""

    brings: int = 0
    """How many connections it finds."""
    hooked: bool = False
    """Whether it needs more hooks than create and dispose."""
    expires: bool = False
    """Whether idle connections expire at once."""
    impatience: type[BaseException] | None = None

    def __init__(self, world: World, endpoint: str) -> None:
        self.world = world
        self.endpoint = endpoint
        self.pool = world.pool

    def prepare(self) -> None:
        pass

    def leave(self) -> None:
        pass

    def act(self) -> None:
        raise NotImplementedError

    def __call__(self) -> None:
        try:
            self.act()
        except ConnectionPoolClosedError:
            assert self.world.is_closing
        except EndpointRetiredError:
            assert self.world.is_retiring
        except REFUSALS as error:
            assert isinstance(error, self.world.refusals), error


class Acquire(Action):
    """Acquires, uses, releases."""

    def act(self) -> None:
        conn = self.pool.acquire(self.endpoint)
        self.world.use_and_release(conn, self.endpoint)


class Urgent(Action):
    """Acquires with a priority, uses, releases."""

    def act(self) -> None:
        conn = self.pool.acquire(self.endpoint, priority=1)
        self.world.use_and_release(conn, self.endpoint)


class Release(Action):
    brings = 1

    def prepare(self) -> None:
        self.conn = self.pool.acquire(self.endpoint)
        self.world.hold(self.conn)

    def act(self) -> None:
        self.world.release(self.conn, self.endpoint)


class Discard(Release):
    """Releases a connection whose `on_release` raises."""

    hooked = True

    def prepare(self) -> None:
        super().prepare()
        self.world.break_(self.conn)

    def act(self) -> None:
        try:
            self.world.release(self.conn, self.endpoint)
        except Fault:
            return
        assert self.world.is_forced  # its release did nothing


class Expire(Action):
    """Collects an idle connection that has expired, as a collector does."""

    brings = 1
    expires = True

    def prepare(self) -> None:
        self.creation = self.world.create(self.endpoint)

    def leave(self) -> None:
        self.world.leave_idle(self.creation)

    def act(self) -> None:
        self.pool._core.collect(COLLECT_BATCH)
        if self.pool._core.has_victims:
            self.pool._disposer.dispose_in_background(DISPOSE_GRACE)


class Close(Action):
    def act(self) -> None:
        self.world.is_closing = True
        self.pool.close()
        assert self.pool.get_size() == 0


class Force(Action):
    """A close that does not wait for callers."""

    def act(self) -> None:
        self.world.is_closing = self.world.is_forced = True
        self.pool.close(timeout=0)


class TimeOut(Acquire):
    """An acquire whose time may run out."""

    impatience = TimeoutError

    def act(self) -> None:
        try:
            conn = self.pool.acquire(self.endpoint, LONG)
        except AcquireTimeoutError:
            return
        self.world.use_and_release(conn, self.endpoint)


class Interrupt(Acquire):
    """An acquire in whose waiting a signal handler may raise."""

    impatience = KeyboardInterrupt

    def act(self) -> None:
        try:
            super().act()
        except KeyboardInterrupt:
            pass


class NoWait(Acquire):
    """An acquire that does not wait in the queue."""

    def act(self) -> None:
        try:
            conn = self.pool.acquire(self.endpoint, 0)
        except (AcquireTimeoutError, Fault):  # a connect of its own is not tried again
            return
        self.world.use_and_release(conn, self.endpoint)


class Drop(Action):
    """Drops a lease that was not left."""

    brings = 1

    def prepare(self) -> None:
        self.lease = self.pool.connection(self.endpoint)
        self.lease.__enter__()

    def act(self) -> None:
        del self.lease


class FindDead(Acquire):
    """Acquires, and finds the idle connection dead."""

    brings = 1
    hooked = True

    def prepare(self) -> None:
        self.creation = self.world.create(self.endpoint)
        self.world.break_(self.creation.conn)

    def leave(self) -> None:
        self.world.leave_idle(self.creation)


class Grow(Action):
    """Raises the cap of endpoints by one."""

    def act(self) -> None:
        self.pool.reconfigure(max_size=self.pool.max_size + 1)


class Shrink(Action):
    """Lowers the cap of endpoints by one, but for the last."""

    def act(self) -> None:
        self.pool.reconfigure(max_size=max(1, self.pool.max_size - 1), min_idle=0)


class Retire(Action):
    """Retires the endpoint, which may be unknown."""

    def act(self) -> None:
        self.world.is_retiring = True
        with contextlib.suppress(ConnectionPoolNotFound):
            self.pool.retire(self.endpoint)


class WarmUp(Action):
    """Opens a connection in the background."""

    def act(self) -> None:
        self.pool.warm_up(self.endpoint, size=1)


ACTIONS: dict[str, type[Action]] = {
    'acquire': Acquire,
    'release': Release,
    'discard': Discard,
    'expire': Expire,
    'close': Close,
    'force': Force,
    'time_out': TimeOut,
    'interrupt': Interrupt,
    'no_wait': NoWait,
    'drop': Drop,
    'find_dead': FindDead,
}


OPERATIONS: dict[str, type[Action]] = {
    'grow': Grow,
    'shrink': Shrink,
    'retire': Retire,
    'warm_up': WarmUp,
    'urgent': Urgent,
}


def meeting(
    *names: str, shared: bool, warm: bool = False, alone: bool = False, failures: int = 0, **settings: Any
) -> Scenario:
    """Make a scenario: callers that do these things at the same time.

    :param shared: on one endpoint, under its cap; otherwise each on an endpoint of its own, under the total cap
    :param warm: with an idle connection to begin with
    :param alone: dispose of victims in the callers' threads, always, so that there are no others
    :param failures: so many connects fail, and are tried again at once, one at a time
    :param settings: limits that hold from when the callers begin
    """
    if 'drop' in names and not HAS_GIL:
        pytest.skip('without the GIL, what one thread made and another drops is finalized when the first runs again')
    actions = [(ACTIONS | OPERATIONS)[name] for name in names]
    endpoints = 'a' * len(names) if shared else 'abc'[: len(names)]
    places = max(1, sum(action.brings for action in actions))
    expires = any(action.expires for action in actions)

    def scenario(scheduler: Scheduler) -> Callable[[], None]:
        manager_class = HookedManager if any(action.hooked for action in actions) else Manager
        most = max(places + names.count('grow'), settings.get('max_size', 0))
        manager = manager_class(scheduler, most, most)
        if failures:
            manager = FailingManager(scheduler, most, most, failures)
        arguments: dict[str, Any] = {
            'max_size': places, 'total_max_size': most + shared, 'min_idle': 0 if expires else 1,
            'idle_timeout': 0.0 if expires else None, 'max_connecting': 1 if failures else None,
            'connect_retry': Retry(1e-9, 1e-9) if failures else None, 'warn_after': None,
        }  # fmt: skip
        pool = ConnectionPool[str, Conn](manager, **arguments)
        if alone:
            disposer: Any = pool._disposer
            disposer.dispose_in_background = disposer.dispose_soon = lambda seconds: disposer.dispose_all(inf)
            disposer.dispose = lambda own, seconds: disposer.dispose_all(inf)
        world = World(scheduler, manager, pool, refusals=refusals(settings))
        callers = [action(world, endpoint) for action, endpoint in zip(actions, endpoints, strict=True)]
        for caller in callers:
            caller.prepare()
        for caller in callers:
            caller.leave()
        if warm:
            world.leave_idle(world.create('a'))
        pool.reconfigure(**settings)
        pool._core.on_transition = scheduler.pause
        for name, caller in zip(names, callers, strict=True):
            scheduler.spawn(name, caller, impatience=caller.impatience)
        return world.verify

    return scenario


def refusals(settings: dict[str, Any]) -> tuple[type[Exception], ...]:
    """The errors that an acquire may raise with these settings."""
    refused: list[type[Exception]] = []
    if settings.get('max_waiting'):
        refused.append(TooManyWaitersError)
    if settings.get('breaker_threshold'):
        refused += [EndpointUnavailableError, Fault]
    return tuple(refused)


# --- the tests ---

PAIRS = list(itertools.combinations_with_replacement(ACTIONS, 2))
TRIPLES = [
    ('acquire', 'acquire', 'close'),
    ('acquire', 'time_out', 'time_out'),
    ('acquire', 'release', 'force'),
    ('find_dead', 'time_out', 'no_wait'),
    ('time_out', 'acquire', 'discard'),
    ('time_out', 'acquire', 'drop'),
    ('time_out', 'acquire', 'release'),
    ('time_out', 'close', 'release'),
    ('close', 'close', 'drop'),
    ('close', 'close', 'release'),
    ('close', 'discard', 'interrupt'),
    ('discard', 'drop', 'acquire'),
    ('expire', 'acquire', 'time_out'),
    ('expire', 'no_wait', 'release'),
    ('no_wait', 'acquire', 'release'),
    ('interrupt', 'time_out', 'release'),
]


class Tally:
    """What the explorations of this module have run; the conftest prints it."""

    scenarios = 0
    schedules = 0
    longest = 0

    @classmethod
    def add(cls, report: Report) -> None:
        cls.scenarios += 1
        cls.schedules += report.total
        cls.longest = max(cls.longest, report.longest)

    @classmethod
    def told(cls) -> str:
        return f'{cls.schedules:,} schedules of {cls.scenarios} scenarios, with up to {cls.longest} choices each'


def meet(*names: str, alone: bool, preemptions: int, most: float = inf) -> int:
    """Explore a meeting under the cap of an endpoint, under the total cap, and with an idle connection there."""
    worlds = [{'shared': True}, {'shared': False}]
    if not any(ACTIONS[name].brings for name in names):
        worlds.append({'shared': True, 'warm': True})
    schedules = 0
    for world in worlds:
        report = explore(meeting(*names, alone=alone, **world), preemptions=preemptions, most=most)
        Tally.add(report)
        schedules += report.total
    return schedules


@pytest.mark.sample(12)
@pytest.mark.parametrize('pair', PAIRS, ids='+'.join)
def test_two_callers(pair: tuple[str, str]) -> None:
    """All schedules. Callers dispose of the victims that they find, so that there are no other threads."""
    assert meet(*pair, alone=True, preemptions=PREEMPTIONS) >= 4


@pytest.mark.sample(10)
@pytest.mark.parametrize('pair', PAIRS, ids='+'.join)
def test_two_callers_and_the_workers(pair: tuple[str, str]) -> None:
    """Workers dispose of victims, as in production. That makes three threads, or four, or five."""
    assert meet(*pair, alone=False, preemptions=PREEMPTIONS - 1, most=MOST) >= 4


@pytest.mark.sample(3)
@pytest.mark.parametrize('triple', TRIPLES, ids='+'.join)
def test_three_callers(triple: tuple[str, str, str]) -> None:
    assert meet(*triple, alone=True, preemptions=PREEMPTIONS - 1, most=2 * MOST) >= 12


@pytest.mark.parametrize('failures', [1, 2])
@pytest.mark.parametrize('shared', [True, False], ids=['shared', 'apart'])
@pytest.mark.parametrize(
    'names',
    [
        ('acquire', 'acquire'),
        ('acquire', 'time_out'),
        ('acquire', 'interrupt'),
        ('acquire', 'no_wait'),
        ('acquire', 'close'),
        ('time_out', 'time_out', 'acquire'),
        ('interrupt', 'acquire', 'acquire'),
    ],
    ids='+'.join,
)
def test_connects_that_fail(names: tuple[str, ...], shared: bool, failures: int) -> None:
    """One connect at a time, which fails at first: whoever gives up, the next one takes over."""
    scenario = meeting(*names, shared=shared, alone=True, failures=failures)
    report = explore(scenario, preemptions=PREEMPTIONS if len(names) == 2 else PREEMPTIONS - 1, most=2 * MOST)
    assert report.total >= 4


SETTINGS: dict[str, dict[str, Any]] = {
    'inline': {},
    'a worker': {'connect_workers': 1},
    'two workers': {'connect_workers': 2, 'max_connecting': 1, 'connect_timeout': LONG},
    'one use': {'max_uses': 1},
    'one waiter': {'max_waiting': 1},
    'checks': {'check_interval': LONG, 'max_connecting_total': 1},
    'limits': {'limits': {'a': EndpointLimits(min_idle=0)}, 'admission': 'deadline'},
}
MEETINGS = [
    ('acquire', 'acquire', 'acquire'),
    ('acquire', 'acquire', 'grow'),
    ('acquire', 'release', 'shrink'),
    ('acquire', 'release', 'retire'),
    ('acquire', 'time_out', 'retire'),
    ('acquire', 'warm_up', 'close'),
    ('acquire', 'warm_up', 'retire'),
    ('release', 'release', 'shrink'),
    ('time_out', 'release', 'grow'),
    ('interrupt', 'acquire', 'retire'),
    ('no_wait', 'release', 'retire'),
    ('time_out', 'warm_up', 'grow'),
    ('drop', 'acquire', 'retire'),
]


@pytest.mark.sample(12)
@pytest.mark.parametrize('settings', SETTINGS)
@pytest.mark.parametrize('names', MEETINGS, ids='+'.join)
def test_operations(names: tuple[str, ...], settings: str) -> None:
    """Limits change, endpoints are retired and warmed up, and connections are made in the background, while others
    acquire and release."""
    alone = settings not in ('a worker', 'two workers')
    scenario = meeting(*names, shared=True, alone=alone, **SETTINGS[settings])
    assert explore(scenario, preemptions=PREEMPTIONS - 1, most=MOST).total >= 4


@pytest.mark.parametrize(
    'settings', [{'reserve': 1, 'max_size': 2}, {'reserve': 1, 'max_size': 2, 'connect_workers': 1}]
)
@pytest.mark.parametrize(
    'names',
    [
        ('urgent', 'acquire', 'acquire'),
        ('urgent', 'urgent', 'acquire'),
        ('urgent', 'time_out', 'acquire'),
        ('urgent', 'interrupt', 'acquire'),
        ('urgent', 'acquire', 'release'),
        ('urgent', 'acquire', 'discard'),
        ('acquire', 'acquire', 'drop'),
        ('urgent', 'acquire', 'retire'),
        ('urgent', 'acquire', 'close'),
    ],
    ids='+'.join,
)
def test_a_reserve(names: tuple[str, ...], settings: dict[str, Any]) -> None:
    """One of two places is only for acquires with a priority: no acquire waits for ever, and no place is lost."""
    scenario = meeting(*names, shared=True, alone=True, total_max_size=2, reserve_timeout=None, **settings)
    assert explore(scenario, preemptions=PREEMPTIONS - 1, most=MOST).total >= 4


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    'names', [('acquire', 'acquire'), ('acquire', 'time_out'), ('no_wait', 'acquire')], ids='+'.join
)
def test_a_breaker(names: tuple[str, ...], workers: int) -> None:
    """The first connect fails and opens the breaker: the others fail at once, or come when it is closed again."""
    settings = {'connect_retry': None, 'breaker_threshold': 1, 'connect_workers': workers}
    scenario = meeting(*names, shared=True, alone=True, failures=1, **settings)
    assert explore(scenario, preemptions=PREEMPTIONS - 1, most=MOST).total >= 4


def test_all_that_was_tried() -> None:
    """Should the boundaries get lost, the tests above would try next to nothing, and pass."""
    if Tally.scenarios < 2 * (2 * len(PAIRS) + len(TRIPLES)) or PREEMPTIONS < 2:
        pytest.skip('not all were run')
    assert Tally.schedules > 20_000
    assert Tally.longest > 30


# --- and the explorer itself ---


def counting(increments: int, *, careful: bool = False) -> tuple[Scenario, list[list[int]]]:
    """Make a scenario: two threads count, each reads and writes in two steps. Also returns what they counted."""
    outcomes: list[list[int]] = []

    def scenario(scheduler: Scheduler) -> Callable[[], None]:
        count = [0]
        outcomes.append(count)
        unlocked = Event(scheduler)
        unlocked.set()

        def work() -> None:
            for _ in range(increments):
                if careful:
                    unlocked.wait()
                seen = count[0]
                scheduler.pause('read')
                count[0] = seen + 1
                if careful:
                    unlocked.set()

        scheduler.spawn('one', work)
        scheduler.spawn('two', work)
        return lambda: None

    return scenario, outcomes


def test_the_explorer_finds_what_a_preemption_breaks() -> None:
    scenario, outcomes = counting(1)
    assert explore(scenario, preemptions=0).schedules == [2]  # one after the other, in both orders
    assert outcomes == [[2], [2]]
    outcomes.clear()
    report = explore(scenario, preemptions=1)
    assert report.schedules == [2, 2]
    assert outcomes == [[2], [2], [1], [1]]


def test_the_explorer_runs_each_schedule_once() -> None:
    """Two threads of n boundaries each have (2n)! / (n!)^2 interleavings of their n + 1 pieces, as C(2n + 2, n + 1)."""
    for boundaries in range(1, 4):
        scenario, _ = counting(boundaries)
        assert explore(scenario, preemptions=99).total == math.comb(2 * boundaries + 2, boundaries + 1)


def test_the_explorer_tries_the_same_each_time() -> None:
    scenario = meeting('time_out', 'release', shared=False)
    stories: list[str] = []

    def telling(scheduler: Scheduler) -> Callable[[], None]:
        verify = scenario(scheduler)

        def tell() -> None:
            stories.append(scheduler.story())
            verify()

        return tell

    explore(telling, preemptions=1, most=100)
    explore(telling, preemptions=1, most=100)
    assert stories[:100] == stories[100:]
    assert len(set(stories)) == 100


def test_an_event_that_serves_as_a_lock_keeps_counts_right() -> None:
    scenario, outcomes = counting(2, careful=True)
    assert explore(scenario, preemptions=99).total > 2
    assert {tuple(count) for count in outcomes} == {(4,)}


def test_the_explorer_finds_a_deadlock() -> None:
    def scenario(scheduler: Scheduler) -> Callable[[], None]:
        events = [Event(scheduler), Event(scheduler)]
        for event in events:
            event.set()

        def work(first: Event, second: Event) -> None:
            first.wait()
            scheduler.pause('between')
            second.wait()
            second.set()
            first.set()

        scheduler.spawn('one', lambda: work(*events))
        scheduler.spawn('two', lambda: work(*reversed(events)))
        return lambda: None

    assert explore(scenario, preemptions=0).total == 2
    with pytest.raises(Broken, match='all wait for ever: 0-one, 1-two'):
        explore(scenario, preemptions=1)


def test_the_explorer_lets_time_pass_only_when_all_wait() -> None:
    elapsed = []

    def scenario(scheduler: Scheduler) -> Callable[[], None]:
        event = Event(scheduler)

        def sleeper() -> None:
            assert not event.wait(5.0)

        def worker() -> None:
            for _ in range(3):
                scheduler.pause('work')
                assert scheduler.now == 0.0

        scheduler.spawn('sleeper', sleeper)
        scheduler.spawn('worker', worker)
        return lambda: elapsed.append((scheduler.now, scheduler.slept))

    explore(scenario)
    assert set(elapsed) == {(5.0, 5.0)}


def test_the_impatient_may_give_up_at_any_time() -> None:
    outcomes: Counter[bool] = Counter()

    def scenario(scheduler: Scheduler) -> Callable[[], None]:
        event = Event(scheduler)

        def worker() -> None:
            scheduler.pause('work')
            event.set()

        scheduler.spawn('hasty', lambda: outcomes.update([event.wait(5.0)]), impatience=TimeoutError)
        scheduler.spawn('worker', worker)
        return lambda: None

    explore(scenario)
    assert outcomes[True] and outcomes[False]


def test_an_error_in_a_thread_is_told_with_the_schedule() -> None:
    def scenario(scheduler: Scheduler) -> Callable[[], None]:
        def fail() -> None:
            scheduler.pause('about to fail')
            raise Fault

        scheduler.spawn('one', fail)
        return lambda: None

    with pytest.raises(Broken, match=r'0-one raised Fault\(\)\n    0-one:\n    0-one: about to fail'):
        explore(scenario)
