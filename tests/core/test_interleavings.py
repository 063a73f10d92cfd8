"""All interleavings, with up to two preemptions, of what two callers of a threading pool may do at the same time.

``GCP_PREEMPTIONS`` (default 2) is the bound; see `core.explorer` for how they are found."""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from core.explorer import Broken, Lock, Report, Scheduler, explore
from fronts import audit

from gcp.disposal import BATCH, COURTESY
from gcp.exceptions import AcquireTimeoutError, ConnectionPoolClosedError
from gcp.threading import BaseConnectionManager, ConnectionPool

PREEMPTIONS = int(os.environ.get('GCP_PREEMPTIONS', '2'))
LONG = 1000.0
"""A time-out that passes only for the impatient, seconds."""


class Fault(Exception):
    """What a hook raises."""


class Conn:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


class Manager(BaseConnectionManager[str, Conn]):
    """Creates and disposes, with a boundary in each, and keeps the books.

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


class HookedManager(Manager):
    """One whose other hooks do something, too: what is doomed does not survive them."""

    def __init__(self, scheduler: Scheduler, max_size: int, total_max_size: int) -> None:
        super().__init__(scheduler, max_size, total_max_size)
        self.doomed: set[Conn] = set()

    def check_aliveness(self, endpoint: str, conn: Conn, timeout: float | None = None) -> bool:
        self.scheduler.pause(f'check {conn}')
        return conn not in self.doomed

    def on_release(self, endpoint: str, conn: Conn) -> None:
        self.scheduler.pause(f'on_release {conn}')
        if conn in self.doomed:
            raise Fault


@dataclass
class World:
    """A pool in which two callers (or three) meet."""

    scheduler: Scheduler
    manager: Manager
    pool: ConnectionPool[str, Conn]
    held: list[Conn] = field(default_factory=list)
    is_closing: bool = False

    def hold(self, conn: Conn) -> None:
        assert conn not in self.held, f'{conn} has two holders'
        assert conn not in self.manager.disposed, f'{conn} was disposed of'
        self.held.append(conn)

    def use_and_release(self, conn: Conn, endpoint: str) -> None:
        self.hold(conn)
        self.scheduler.pause(f'hold {conn}')
        self.release(conn, endpoint)

    def release(self, conn: Conn, endpoint: str) -> None:
        self.held.remove(conn)
        self.pool.release(conn, endpoint)

    def park(self, endpoint: str) -> Conn:
        """Leave a connection idle, as a release does that has nothing to tidy up."""
        conn = self.pool.acquire(endpoint)
        checkout = self.pool._core.checkin(conn, endpoint)
        assert checkout is not None
        self.pool._core.give_back(checkout)
        return conn

    def doom(self, conn: Conn) -> None:
        """See to it that the next hook finds fault with a connection."""
        assert isinstance(self.manager, HookedManager)
        self.manager.doomed.add(conn)

    def verify(self) -> None:
        """See that all is well when all is over."""
        pool, manager = self.pool, self.manager
        pool._core.on_step = None
        pool._core.drain()
        pool._reaper.reap_all()
        assert not self.held
        stats = pool.stats()
        audit(stats)
        assert (stats.used, stats.disposing) == (0, 0), stats
        assert stats.idle == len(manager.created) - len(manager.disposed)
        assert self.scheduler.slept == 0.0, f'somebody waited for the clock: {self.scheduler.slept} s'
        pool.close()
        assert pool.get_size() == 0
        assert sorted(manager.disposed, key=repr) == sorted(manager.created, key=repr)


# --- what callers do ---


class Action:
    """What one caller does. Before, `prepare` puts the world in the state that it needs."""

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

    def act(self) -> None:
        raise NotImplementedError

    def __call__(self) -> None:
        try:
            self.act()
        except ConnectionPoolClosedError:
            assert self.world.is_closing


class Acquire(Action):
    """Acquires, uses, releases."""

    def act(self) -> None:
        conn = self.pool.acquire(self.endpoint)
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
        self.world.doom(self.conn)

    def act(self) -> None:
        with pytest.raises(Fault):
            self.world.release(self.conn, self.endpoint)


class Expire(Action):
    """Collects an idle connection that has expired, as a collector does."""

    brings = 1
    expires = True

    def prepare(self) -> None:
        self.world.park(self.endpoint)

    def act(self) -> None:
        self.pool._core.collect(BATCH)
        if self.pool._core.has_victims:
            self.pool._reaper.reap_aside(COURTESY)


class Close(Action):
    def act(self) -> None:
        self.world.is_closing = True
        self.pool.close()
        assert self.pool.get_size() == 0


class Cancel(Acquire):
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


class Hurry(Acquire):
    """An acquire that does not wait in line."""

    def act(self) -> None:
        try:
            conn = self.pool.acquire(self.endpoint, 0)
        except AcquireTimeoutError:
            return
        self.world.use_and_release(conn, self.endpoint)


class Drop(Action):
    """Lets the garbage collector have a lease."""

    brings = 1

    def prepare(self) -> None:
        self.lease = self.pool.connection(self.endpoint)
        self.lease.__enter__()

    def act(self) -> None:
        del self.lease


class Bury(Acquire):
    """Acquires, and finds the idle connection dead."""

    brings = 1
    hooked = True

    def prepare(self) -> None:
        self.world.doom(self.world.park(self.endpoint))


ACTIONS: dict[str, type[Action]] = {
    'acquire': Acquire,
    'release': Release,
    'discard': Discard,
    'expire': Expire,
    'close': Close,
    'cancel': Cancel,
    'interrupt': Interrupt,
    'hurry': Hurry,
    'drop': Drop,
    'bury': Bury,
}


def meeting(*names: str, shared: bool, warm: bool = False, alone: bool = False) -> Callable[[Scheduler], Callable[[], None]]:
    """Make a scenario: callers that do these things at the same time.

    :param shared: on one endpoint, under its cap; otherwise each on an endpoint of its own, under the total cap
    :param warm: with an idle connection to begin with
    :param alone: dispose of victims in the callers' threads, always, so that there are no others
    """
    actions = [ACTIONS[name] for name in names]
    endpoints = 'a' * len(names) if shared else 'abc'[: len(names)]
    places = max(1, sum(action.brings for action in actions))
    expires = any(action.expires for action in actions)

    def scenario(scheduler: Scheduler) -> Callable[[], None]:
        manager_class = HookedManager if any(action.hooked for action in actions) else Manager
        manager = manager_class(scheduler, places, places)
        pool = ConnectionPool[str, Conn](
            manager, max_size=places, total_max_size=places + shared, min_idle=0 if expires else 1,
            idle_timeout=0.0 if expires else None,
        )  # fmt: skip
        if alone:
            reap_all = pool._reaper.reap_all
            pool._reaper.reap_aside = lambda wait: reap_all()  # type: ignore[method-assign]
            pool._reaper.reap = lambda own, wait: reap_all()  # type: ignore[method-assign]
        world = World(scheduler, manager, pool)
        callers = [action(world, endpoint) for action, endpoint in zip(actions, endpoints, strict=True)]
        for caller in callers:
            caller.prepare()
        if warm:
            world.park('a')
        pool._core.on_step = scheduler.pause
        for number, (name, caller) in enumerate(zip(names, callers, strict=True)):
            scheduler.spawn(f'{number}-{name}', caller, impatience=caller.impatience)
        return world.verify

    return scenario


# --- the tests ---


class Tally:
    """What all the explorations of this module have run."""

    reports: ClassVar[list[Report]] = []


@pytest.fixture(scope='module', autouse=True)
def tally(request: pytest.FixtureRequest) -> Iterator[None]:
    """Say at the end how much was tried."""
    Tally.reports.clear()
    yield
    reporter = request.config.pluginmanager.get_plugin('terminalreporter')
    if reporter is not None and Tally.reports:
        schedules = sum(report.total for report in Tally.reports)
        longest = max(report.longest for report in Tally.reports)
        reporter.write_line(f'\n{schedules} schedules of {len(Tally.reports)} scenarios, of up to {longest} choices each')


def explore_all(*names: str, preemptions: int = PREEMPTIONS) -> list[Report]:
    """Explore a meeting under the cap of an endpoint, under the total cap, and with an idle connection there."""
    reports = [explore(meeting(*names, shared=shared), preemptions=preemptions) for shared in (True, False)]
    if not any(ACTIONS[name].brings for name in names):
        reports.append(explore(meeting(*names, shared=True, warm=True), preemptions=preemptions))
    Tally.reports += reports
    return reports


@pytest.mark.parametrize('pair', itertools.combinations_with_replacement(ACTIONS, 2), ids='+'.join)
def test_two_callers(pair: tuple[str, str]) -> None:
    for report in explore_all(*pair):
        assert report.total > 1
