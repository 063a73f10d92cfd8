"""A discrete-event simulation of overloaded endpoints over a real core: clients acquire, use and release as fast as
they can, in simulated time. What is measured is the sharing rule, not the machine."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from core.helpers import CREATE, SHUT, WAIT, Clock, Conn
from gcp._core import Core, Victim

Process = Generator[float | None, None, None]
"""Yields for how many seconds to sleep; ``None``: until woken."""


@dataclass
class Outcome:
    """What came of a simulation, its first second not counted.

    :ivar served: acquires, by endpoint
    :ivar seconds: how long it ran
    :ivar evicted: connections disposed of to make place for others'
    :ivar creating: connection-seconds spent on creation
    :ivar capacity: connection-seconds there were
    """

    served: Counter[int] = field(default_factory=Counter)
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
    :param clients: of each endpoint
    :param cap: of the whole pool
    :param create: what a creation takes, seconds
    :param use: for how long each client holds a connection, seconds
    :param dispose: what a disposal takes, seconds
    """

    def __init__(
        self, endpoints: int, clients: int, cap: int, *, create: float = 0.02, use: float = 0.002, dispose: float = 0.0
    ) -> None:
        self.clock = Clock(0.0)
        self.core = Core(max_size=cap, total_max_size=cap, clock=self.clock)
        self.create, self.use, self.dispose, self.cap = create, use, dispose, cap
        self.outcome = Outcome()
        self._order = itertools.count()
        self._events: list[tuple[float, int, Process]] = []
        self._asleep: set[Process] = set()
        for number in range(clients):
            for endpoint in range(endpoints):
                self.outcome.served[endpoint] = 0
                # they come in turn, not all at once: nobody's first acquire is a matter of the order here
                self._start(self._client(endpoint), (number * endpoints + endpoint) * 1e-4)

    def run(self, seconds: float, warm_up: float = 1.0) -> Outcome:
        """Run for so many seconds of simulated time, after a warm-up."""
        self._until(warm_up)
        outcome, served = self.outcome, Counter(self.outcome.served)
        evicted, creating = self._evictions(), outcome.creating
        self._until(warm_up + seconds)
        outcome.served.subtract(served)
        outcome.evicted = self._evictions() - evicted
        outcome.creating -= creating
        outcome.seconds, outcome.capacity = seconds, seconds * self.cap
        return outcome

    def _evictions(self) -> int:
        evictions: int = self.core.snapshot()[0]['closed']['evicted']
        return evictions

    # --- the machine ---

    def _until(self, end: float) -> None:
        while self._events[0][0] <= end:
            self.clock.now, _, process = heapq.heappop(self._events)
            self._step(process)

    def _start(self, process: Process, delay: float = 0.0) -> None:
        heapq.heappush(self._events, (self.clock.now + delay, next(self._order), process))

    def _step(self, process: Process) -> None:
        delay = next(process, None)
        if delay is not None:
            self._start(process, delay)
        else:
            self._asleep.add(process)

    def _wake(self, process: Process) -> None:
        if process in self._asleep:
            self._asleep.remove(process)
            self._start(process)

    # --- the processes ---

    def _client(self, endpoint: int) -> Process:
        me: list[Process] = []
        me.append(self._acquire_for_ever(endpoint, lambda: self._wake(me[0])))
        return me[0]

    def _acquire_for_ever(self, endpoint: int, wake: Callable[[], None]) -> Process:
        core = self.core
        while True:
            ticket = core.ticket(endpoint)
            verdict = core.request(ticket)
            self._dispose_victims()
            if verdict == WAIT and core.arm(ticket, wake) == WAIT:
                yield None
            verdict = core.poll(ticket)
            assert verdict not in (WAIT, SHUT)
            if verdict == CREATE:
                yield self.create
                self.outcome.creating += self.create
                core.created(ticket, Conn(endpoint, 0))
            core.finish(ticket)
            self.outcome.served[endpoint] += 1
            yield self.use
            core.give_back(ticket)
            self._dispose_victims()

    def _dispose_victims(self) -> None:
        while (victim := self.core.victim()) is not None:
            if self.dispose:
                self._start(self._disposal(victim))
            else:
                self.core.disposed(victim)

    def _disposal(self, victim: Victim) -> Process:
        yield self.dispose
        self.core.disposed(victim)
