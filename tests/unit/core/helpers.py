"""A bench for the core: a clock that stands still, connections with names, and the few moves of a front."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from gcp._core import VERDICT_CREATE, VERDICT_SHUT, VERDICT_USE, VERDICT_WAIT, Core, Ticket, Victim

WAIT, CREATE, USE, SHUT = VERDICT_WAIT, VERDICT_CREATE, VERDICT_USE, VERDICT_SHUT


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


class Bench:
    """A core on an injected clock, and what a front does with it, without hooks and without waiting.

    :param limits: the core's
    """

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.core = Core(clock=self.clock, **limits)
        self._numbers = itertools.count(1)
        self._kept: list[Ticket] = []

    # --- acquire ---

    def ask(self, endpoint: Hashable, timeout: float | None = None) -> Ticket:
        """Open a ticket and ask once; its verdict says what came of it."""
        ticket = self.core.ticket(endpoint, timeout)
        self.core.request(ticket)
        return ticket

    def take(self, ticket: Ticket) -> Ticket:
        """End an acquire that may create or use. The ticket holds the connection from here on."""
        if self.core.poll(ticket) == CREATE:
            self.core.created(ticket, Conn(ticket.endpoint, next(self._numbers)))
        assert ticket.verdict == USE, ticket.verdict
        self.core.finish(ticket)
        return ticket

    def get(self, endpoint: Hashable) -> Ticket:
        """Acquire, at once."""
        return self.take(self.ask(endpoint))

    def keep(self, ticket: Ticket) -> Ticket:
        """Hold a connection for good: a ticket that is dropped costs its connection."""
        self._kept.append(ticket)
        return ticket

    def hold(self, endpoint: Hashable) -> Ticket:
        """Acquire, at once and for good."""
        return self.keep(self.get(endpoint))

    def wait(self, endpoint: Hashable, wake: Callable[[], object] | None = None) -> Ticket:
        """Acquire, and find oneself in line."""
        ticket = self.ask(endpoint)
        assert ticket.verdict == WAIT, ticket.verdict
        if wake is not None:
            self.core.arm(ticket, wake)
        return ticket

    # --- release ---

    def put(self, *held: Ticket) -> None:
        """Release by name, in order."""
        for ticket in held:
            checkout = self.core.checkin(ticket.conn, ticket.endpoint)
            assert checkout is not None
            self.core.give_back(checkout)

    def fill(self, endpoint: Hashable, count: int) -> list[Any]:
        """Leave so many connections idle: they come back in the order of the result, that of their creation."""
        held = [self.get(endpoint) for _ in range(count)]
        conns = [ticket.conn for ticket in held]
        self.put(*held)
        return conns

    # --- disposal ---

    def victims(self) -> list[Victim]:
        """Take all victims, as a reaper does."""
        return list(iter(self.core.victim, None))

    def bury(self) -> list[tuple[str, str]]:
        """Dispose of all victims; give their names and the reasons."""
        gone: list[tuple[str, str]] = []
        while (victim := self.core.victim()) is not None:
            gone.append((repr(victim.conn), victim.reason))
            self.core.disposed(victim)
        return gone

    # --- looking ---

    @property
    def shape(self) -> Shape:
        core = self.core
        assert core.size == core.idle + core.used + core.creating + core.disposing
        return Shape(core.idle, core.used, core.creating, core.disposing, core.waiting)

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
