"""A discrete-event simulation of overloaded endpoints over a real core: clients acquire, use and release as fast as
they can, in simulated time. What is measured is the sharing rule, not the computer."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf

from core.helpers import CREATE, BenchPool, Clock, Conn
from gcp._core import TODO_DISPOSE, TODO_DONE, TODO_WAIT, Victim, dispose_of, gather
from gcp.limits import EndpointLimits

Process = Generator[float | None, None, None]
"""Yields for how many seconds to sleep; ``None``: until woken."""


@dataclass
class Outcome:
    """What came of a simulation, its first second not counted.

    :ivar served: acquires, by endpoint
    :ivar longest: the longest wait, seconds, by endpoint
    :ivar seconds: how long it ran
    :ivar evicted: connections disposed of to make room for other endpoints
    :ivar creating: connection-seconds spent on creation
    :ivar capacity: connection-seconds that were available
    """

    served: Counter[int] = field(default_factory=Counter)
    longest: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    seconds: float = 0.0
    evicted: int = 0
    creating: float = 0.0
    capacity: float = 0.0

    @property
    def rate(self) -> float:
        """Acquires per second."""
        return self.served.total() / self.seconds

    @property
    def shares(self) -> list[float]:
        """What each endpoint got, relative to an equal share, the least first."""
        equal = self.served.total() / len(self.served)
        return sorted(count / equal for count in self.served.values())

    def __str__(self) -> str:
        shares = self.shares
        return (
            f'{self.rate:.0f}/s, shares {shares[0]:.3f} to {shares[-1]:.3f} of equal, {self.evicted} evictions, '
            f'{1 - self.creating / self.capacity:.1%} of the time used'
        )


class Simulation:
    """Clients of several endpoints on one core.

    :param endpoints: how many
    :param clients: of each endpoint; or of each one, in order
    :param cap: of the whole pool
    :param create: what a creation takes, seconds
    :param use: for how long each client holds a connection, seconds
    :param dispose: what a disposal takes, seconds
    :param limits: of single endpoints
    """

    def __init__(
        self,
        endpoints: int,
        clients: int | Sequence[int],
        cap: int,
        *,
        create: float = 0.02,
        use: float = 0.002,
        dispose: float = 0.0,
        limits: Callable[[int], EndpointLimits] | None = None,
    ) -> None:
        self.clock = Clock(0.0)
        self.pool = BenchPool(self.clock, max_size=cap, total_max_size=cap, limits=limits)
        self.pool._make_event = lambda: partial(self._wake, self._running)
        self.create, self.use, self.dispose, self.cap = create, use, dispose, cap
        self.outcome = Outcome()
        self._order = itertools.count()
        self._events: list[tuple[float, int, Process]] = []
        self._asleep: set[Process] = set()
        self._wakes: Counter[Process] = Counter()
        self._running: Process
        counts = [clients] * endpoints if isinstance(clients, int) else clients
        for number in range(max(counts)):
            for endpoint in range(endpoints):
                self.outcome.served[endpoint] = 0
                if number < counts[endpoint]:
                    # one after the other: else the order in this loop would decide who is served first
                    self._start(self._client(endpoint), (number * endpoints + endpoint) * 1e-4)

    def run(self, seconds: float, warm_up: float = 1.0) -> Outcome:
        """Run for so many seconds of simulated time, after a warm-up."""
        self._until(warm_up)
        outcome, served = self.outcome, Counter(self.outcome.served)
        outcome.longest.clear()
        evicted, creating = self._evictions(), outcome.creating
        self._until(warm_up + seconds)
        outcome.served.subtract(served)
        outcome.evicted = self._evictions() - evicted
        outcome.creating -= creating
        outcome.seconds, outcome.capacity = seconds, seconds * self.cap
        return outcome

    def _evictions(self) -> int:
        evictions: int = self.pool._core.snapshot()[0]['closed']['evicted']
        return evictions

    # --- events in time ---

    def _until(self, end: float) -> None:
        while self._events[0][0] <= end:
            self.clock.now, _, process = heapq.heappop(self._events)
            self._step(process)

    def _start(self, process: Process, delay: float = 0.0) -> None:
        heapq.heappush(self._events, (self.clock.now + delay, next(self._order), process))

    def _step(self, process: Process) -> None:
        self._running = process
        delay = next(process, None)
        if delay is not None:
            self._start(process, delay)
        else:
            self._asleep.add(process)

    def _wake(self, process: Process) -> None:
        if process in self._asleep:
            self._wakes[process] += 1
            self._asleep.remove(process)
            self._start(process)

    def _set_alarm(self, seconds: float) -> None:
        """Wake the running process when it is to look again, unless it was woken before."""
        if seconds < inf:
            number = self._wakes[self._running]
            self._start(self._alarm(self._running, number), seconds)

    def _alarm(self, process: Process, number: int) -> Process:
        if self._wakes[process] == number:
            self._wake(process)
        yield None

    # --- the processes ---

    def _client(self, endpoint: int) -> Process:
        pool = self.pool
        while True:
            began = self.clock.now
            acquire = pool.open_acquire(endpoint, None)
            while (todo := acquire.next()) != TODO_DONE:
                if todo == TODO_DISPOSE:
                    self._dispose_victims()
                    acquire.completed()
                elif todo == TODO_WAIT:
                    self._set_alarm(acquire.time_to_wait())
                    yield None
                    acquire.completed(True)
                elif acquire.todo == CREATE:
                    yield self.create
                    self.outcome.creating += self.create
                    acquire.completed(Conn(endpoint, 0))
                else:
                    acquire.completed(True)
            self.outcome.served[endpoint] += 1
            self.outcome.longest[endpoint] = max(self.outcome.longest[endpoint], self.clock.now - began)
            yield self.use
            release = pool.open_release(acquire.conn, endpoint)
            assert release is not None
            while release.next() != TODO_DONE:
                self._dispose_victims()
                release.completed()

    def _dispose_victims(self) -> None:
        batch = gather(self.pool._core)
        for victim in [] if batch is None else iter(batch.take, None):
            if self.dispose:
                self._start(self._disposal(victim))
            else:
                dispose_of(victim, do_nothing)

    def _disposal(self, victim: Victim) -> Process:
        yield self.dispose
        dispose_of(victim, do_nothing)


def do_nothing(endpoint: int, conn: Conn, timeout: float | None) -> None:
    """Dispose of a connection."""
