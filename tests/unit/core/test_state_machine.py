"""Guarantees 1, 2, 3 and 4 (docs/guarantees.md): the core under any sequence of transitions agrees with a model.

``GCP_HYPOTHESIS=long`` tries many more sequences, new ones each time."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core import model as rules
from core.helpers import CREATE, SHUT, USE, WAIT, Clock, Conn
from core.model import Model
from gcp._core import Checkout, Core, Ticket, Victim
from gcp.exceptions import AcquireTimeoutError, ConnectionNotAcquiredError, ConnectionPoolClosedError

T = TypeVar('T')

VERDICTS = {WAIT: rules.WAIT, CREATE: rules.CREATE, USE: rules.USE, SHUT: rules.SHUT}
IDLE_TIMEOUT = 10.0 + 2**-12  # never on the same tick as the end of a life
MAX_LIFETIME = 60.0
ERRORS = {'timeout': AcquireTimeoutError, 'error': ValueError, 'cancelled': KeyboardInterrupt}

SOME = st.integers(0, 7)
"""Which of those there are: counted round and round."""


class Acquire:
    """An acquire, and the same in the model."""

    def __init__(self, ticket: Ticket, twin: rules.Ticket) -> None:
        self.ticket = ticket
        self.twin = twin
        self.conn: Any = None  # once it is the caller's

    @property
    def state(self) -> str:
        return self.twin.state


def is_new(acquire: Acquire) -> bool:
    return acquire.state == 'new'


def is_open(acquire: Acquire) -> bool:
    return acquire.conn is None


def has_verdict(acquire: Acquire) -> bool:
    return is_open(acquire) and acquire.state in VERDICTS.values()


def waits(acquire: Acquire) -> bool:
    return acquire.state == 'wait'


def may_create(acquire: Acquire) -> bool:
    return acquire.state == 'create'


def may_use(acquire: Acquire) -> bool:
    return is_open(acquire) and acquire.state == 'use'


def was_served(acquire: Acquire) -> bool:
    return may_create(acquire) or may_use(acquire)


def is_lent(acquire: Acquire) -> bool:
    return acquire.conn is not None


def where(which: Callable[[Acquire], bool]) -> Callable[[T], T]:
    """Have a rule apply only while there is such an acquire."""
    return precondition(lambda self: any(map(which, self.acquires)))


class PoolMachine(RuleBasedStateMachine):
    """Callers, finalizers, a reaper, a collector and a closer, in any order."""

    @initialize(
        max_size=st.integers(1, 4),
        total_max_size=st.integers(1, 6),
        min_idle=st.integers(0, 3),
        names=st.integers(1, 4),
    )
    def build(self, max_size: int, total_max_size: int, min_idle: int, names: int) -> None:
        self.clock = Clock()
        limits: dict[str, Any] = {
            'max_size': min(max_size, total_max_size), 'total_max_size': total_max_size, 'min_idle': min_idle,
            'idle_timeout': IDLE_TIMEOUT, 'max_lifetime': MAX_LIFETIME,
        }  # fmt: skip
        self.core = Core(clock=self.clock, **limits)
        self.model = Model(**limits)
        self.names = 'abcd'[:names]
        self.numbers = 0
        self.acquires: list[Acquire] = []
        self.releases: list[tuple[Checkout, rules.Slot, Acquire]] = []
        self.victims: list[tuple[Victim, rules.Slot]] = []
        self.seen: dict[str, int] = {}
        self.in_line: dict[int, str] = {}  # at the last look: endpoints, by the age of the waiter
        self.armed: list[rules.Ticket] = []
        self.woken: list[rules.Ticket] = []

    # --- help ---

    def pick(self, number: int, which: Callable[[Acquire], bool]) -> Acquire:
        """Choose an acquire."""
        some = [acquire for acquire in self.acquires if which(acquire)]
        return some[number % len(some)]

    def tick(self) -> None:
        """Begin a verb: no two happen at the same time, so that nothing is left to chance."""
        self.clock.advance(2**-10)
        self.model.begin(self.clock.now)

    def check(self, verdict: int, expected: str) -> None:
        """End a verb that gives a verdict."""
        assert VERDICTS[verdict] == expected
        self.model.end()

    # --- acquire, step by step ---

    @rule(name=SOME)
    def open(self, name: int) -> None:
        self.begin_acquire(name)

    def begin_acquire(self, name: int) -> Acquire:
        endpoint = self.names[name % len(self.names)]
        self.acquires.append(Acquire(self.core.ticket(endpoint), self.model.open(endpoint)))
        return self.acquires[-1]

    @where(is_new)
    @rule(number=SOME)
    def request(self, number: int) -> None:
        self.ask(self.pick(number, is_new))

    def ask(self, acquire: Acquire) -> None:
        self.tick()
        self.check(self.core.request(acquire.ticket), self.model.request(acquire.twin))

    @where(has_verdict)
    @rule(number=SOME)
    def arm(self, number: int) -> None:
        acquire = self.pick(number, has_verdict)
        self.tick()
        self.check(self.core.arm(acquire.ticket, self.waker(acquire.twin)), self.model.poll(acquire.twin))
        if acquire.state == 'wait':
            self.armed.append(acquire.twin)

    def waker(self, twin: rules.Ticket) -> Callable[[], None]:
        # not of the acquire: a ticket that was dropped must be gone
        return lambda: self.woken.append(twin)

    @where(has_verdict)
    @rule(number=SOME)
    def poll(self, number: int) -> None:
        self.look(self.pick(number, has_verdict))

    def look(self, acquire: Acquire) -> None:
        self.tick()
        self.check(self.core.poll(acquire.ticket), self.model.poll(acquire.twin))

    @where(waits)
    @rule(number=SOME)
    def expire(self, number: int) -> None:
        acquire = self.pick(number, waits)
        self.tick()
        self.check(self.core.expire(acquire.ticket), self.model.expire(acquire.twin))

    @where(was_served)
    @rule(number=SOME)
    def expire_too_late(self, number: int) -> None:
        acquire = self.pick(number, was_served)
        self.tick()
        self.check(self.core.expire(acquire.ticket), self.model.expire(acquire.twin))

    @where(may_create)
    @rule(number=SOME)
    def create(self, number: int) -> None:
        self.end_creation(self.pick(number, may_create))

    def end_creation(self, acquire: Acquire) -> None:
        self.look(acquire)
        self.tick()
        self.numbers += 1
        conn = Conn(acquire.twin.endpoint, self.numbers)
        self.check(self.core.created(acquire.ticket, conn), self.model.created(acquire.twin, repr(conn)))

    @where(may_create)
    @rule(number=SOME)
    def fail(self, number: int) -> None:
        acquire = self.pick(number, may_create)
        self.tick()
        self.core.failed(acquire.ticket, ValueError())
        self.model.failed(acquire.twin)
        self.model.end()

    @where(may_use)
    @rule(number=SOME)
    def finish(self, number: int) -> None:
        self.end_acquire(self.pick(number, may_use))

    def end_acquire(self, acquire: Acquire) -> None:
        self.look(acquire)
        self.tick()
        if not self.model.finish(acquire.twin):
            with pytest.raises(ConnectionPoolClosedError):
                self.core.finish(acquire.ticket)
            return
        assert acquire.twin.slot is not None
        acquire.conn = self.core.finish(acquire.ticket)
        assert repr(acquire.conn) == acquire.twin.slot.name
        assert all(each is acquire or each.conn is not acquire.conn for each in self.acquires), 'two holders'
        assert acquire.conn.number not in self.gone, 'it was disposed of'

    @where(may_use)
    @rule(number=SOME)
    def find_it_dead(self, number: int) -> None:
        acquire = self.pick(number, may_use)
        self.look(acquire)
        self.tick()
        self.check(self.core.retry(acquire.ticket), self.model.retry(acquire.twin))

    @where(is_open)
    @rule(number=SOME, result=st.sampled_from(sorted(ERRORS)), in_hook=st.booleans())
    def abandon(self, number: int, result: str, in_hook: bool) -> None:
        acquire = self.pick(number, is_open)
        if may_use(acquire) and in_hook:
            self.look(acquire)
            acquire.ticket.hook = 'on_acquire'
            acquire.twin.hook = True
        self.tick()
        self.core.abandon(acquire.ticket, ERRORS[result]())
        self.model.abandon(acquire.twin, result)
        self.model.end()
        self.acquires.remove(acquire)

    @where(is_open)
    @rule(number=SOME)
    def drop_a_ticket(self, number: int) -> None:
        """A ticket in line stays there; what comes for it later is lost and found again."""
        acquire = self.pick(number, is_open)
        self.acquires.remove(acquire)
        acquire.twin.dropped = True
        if acquire.state != 'wait' and not acquire.twin.ended:
            self.model.lose(acquire.twin)

    # --- acquire, all at once ---

    @rule(name=SOME, takes=st.sampled_from([0.0, 0.125, 0.5]))
    def acquire(self, name: int, takes: float) -> None:
        """What a caller does most of the time."""
        acquire = self.begin_acquire(name)
        self.ask(acquire)
        self.carry_on(acquire, takes)

    @where(was_served)
    @rule(number=SOME, takes=st.sampled_from([0.0, 0.125, 0.5]))
    def go_on(self, number: int, takes: float) -> None:
        """... and when its turn has come."""
        self.carry_on(self.pick(number, was_served), takes)

    def carry_on(self, acquire: Acquire, takes: float) -> None:
        if acquire.state == 'create':
            self.look(acquire)
            self.clock.advance(takes)
            self.end_creation(acquire)
        if acquire.state == 'use':
            self.end_acquire(acquire)

    @rule(name=SOME, count=st.integers(2, 4))
    def line_up(self, name: int, count: int) -> None:
        """Many callers, one endpoint."""
        for _ in range(count):
            self.acquire(name, 0.0)

    # --- release ---

    @where(is_lent)
    @rule(number=SOME)
    def checkin(self, number: int) -> None:
        self.take_back(self.pick(number, is_lent))

    def take_back(self, acquire: Acquire) -> None:
        self.tick()
        slot = acquire.twin.slot
        assert slot is not None
        self.acquires.remove(acquire)
        checkout = self.core.checkin(acquire.conn, acquire.twin.endpoint)
        if slot.holder is not acquire.twin:  # it was taken by force
            assert self.model.closed and checkout is None
            return
        assert checkout is not None and checkout.conn is acquire.conn
        self.model.checkin(slot)
        self.releases.append((checkout, slot, acquire))

    @where(is_lent)
    @rule(number=SOME)
    def release(self, number: int) -> None:
        self.take_back(self.pick(number, is_lent))
        if self.releases:
            self.give_back(len(self.releases) - 1)

    @where(is_lent)
    @rule()
    def release_all(self) -> None:
        while any(map(is_lent, self.acquires)):
            self.release(0)

    @precondition(lambda self: self.releases)
    @rule(number=SOME)
    def give_back(self, number: int) -> None:
        checkout, slot, _ = self.releases.pop(number % len(self.releases))
        self.tick()
        self.core.give_back(checkout)
        self.model.give_back(slot)
        self.model.end()

    @precondition(lambda self: self.releases)
    @rule(number=SOME)
    def discard(self, number: int) -> None:
        checkout, slot, _ = self.releases.pop(number % len(self.releases))
        self.tick()
        self.core.discard(checkout, 'error')
        self.model.discard(slot, 'error')
        self.model.end()

    @where(is_lent)
    @rule(number=SOME)
    def keep_a_stale_checkout(self, number: int) -> None:
        """Releases by name, while its own handle stays: a second release by that one finds nothing."""
        acquire = self.pick(number, is_lent)
        self.take_back(acquire)
        if self.releases:
            self.give_back(len(self.releases) - 1)
        self.tick()
        self.core.give_back(acquire.ticket)
        self.model.end()

    @precondition(lambda self: self.releases)
    @rule(number=SOME)
    def drop_a_release(self, number: int) -> None:
        checkout, slot, acquire = self.releases.pop(number % len(self.releases))
        self.model.orphans.append((slot, acquire.twin))
        del checkout, acquire

    @where(is_lent)
    @rule(number=SOME)
    def drop_a_lease(self, number: int) -> None:
        acquire = self.pick(number, is_lent)
        self.acquires.remove(acquire)
        self.model.lose(acquire.twin)

    @rule(number=SOME)
    def release_what_is_not_held(self, number: int) -> None:
        self.tick()
        if self.model.closed:
            assert self.core.checkin(object(), self.names[0]) is None
            return
        with pytest.raises(ConnectionNotAcquiredError):
            self.core.checkin(object(), self.names[number % len(self.names)])
        if self.releases:  # one that is being released already
            checkout, slot, _ = self.releases[number % len(self.releases)]
            with pytest.raises(ConnectionNotAcquiredError):
                self.core.checkin(checkout.conn, slot.endpoint)

    # --- disposal and expiry ---

    @rule()
    def take_a_victim(self) -> None:
        self.tick()
        victim = self.core.victim()
        if self.model.closed and victim is not None:  # then nobody cares in which order
            self.model.victims.sort(key=lambda slot: slot.name != repr(victim.conn))
        slot = self.model.victim()
        assert (victim is None) == (slot is None)
        if victim is not None and slot is not None:
            assert (repr(victim.conn), victim.reason, victim.endpoint) == (slot.name, slot.reason, slot.endpoint)
            self.victims.append((victim, slot))

    @precondition(lambda self: self.victims)
    @rule(number=SOME, twice=st.booleans())
    def dispose(self, number: int, twice: bool) -> None:
        victim, slot = self.victims.pop(number % len(self.victims))
        for _ in range(1 + twice):
            self.tick()
            self.core.disposed(victim)
            self.model.disposed(slot)
            self.model.end()

    @rule()
    def reap(self) -> None:
        self.tick()  # drains: there may be more after it
        self.core.drain()
        while self.model.victims:
            self.take_a_victim()
            self.dispose(len(self.victims) - 1, False)

    @precondition(lambda self: self.victims)
    @rule(number=SOME)
    def overdue(self, number: int) -> None:
        victim, slot = self.victims[number % len(self.victims)]
        self.tick()
        self.core.overdue(victim)
        self.model.overdue(slot)
        self.model.end()

    @precondition(lambda self: self.victims)
    @rule(number=SOME, started=st.booleans())
    def drop_a_victim(self, number: int, started: bool) -> None:
        victim, slot = self.victims.pop(number % len(self.victims))
        victim.started = slot.started = started
        self.model.orphans.append((slot, None))

    @precondition(lambda self: self.core.idle)
    @rule(limit=st.integers(0, 3))
    def collect(self, limit: int) -> None:
        self.tick()
        assert self.core.collect(limit) == self.model.collect(limit)
        self.model.end()

    @rule(seconds=st.sampled_from([0.125, 1.0, 5.0, 11.0, 45.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def drain(self) -> None:
        self.tick()
        self.core.drain()

    # --- closing ---

    @precondition(lambda self: self.numbers > 5)
    @rule(sure=st.integers(0, 5))
    def close(self, sure: int) -> None:
        if sure:  # a closed pool has little to tell
            return
        self.tick()
        self.core.close()
        self.model.close()
        self.model.end()

    @precondition(lambda self: self.model.closed)
    @rule()
    def force(self) -> None:
        self.tick()
        self.core.force()
        self.model.force()
        self.model.end()

    # --- what must hold ---

    @property
    def gone(self) -> set[int]:
        """The numbers of connections that no longer count."""
        return set(range(1, self.numbers + 1)) - {int(slot.name[1:]) for slot in self.model.slots}

    @invariant()
    def holds(self) -> None:
        self.agrees_with_the_model()
        self.keeps_the_caps()
        self.balances_the_books()
        self.serves_whom_it_can()
        self.keeps_lines_in_order()
        self.wakes_whom_it_serves()

    def agrees_with_the_model(self) -> None:
        model = self.model
        total, endpoints = self.core.snapshot()
        by_name = dict(endpoints)
        assert set(by_name) == set(model.endpoints)
        for name, counts in by_name.items():
            assert counts['idle'] == model.count(name, 'idle')
            assert counts['used'] == model.count(name, 'used', 'returning')
            assert counts['creating'] == model.at(name).creating
            assert counts['disposing'] == model.count(name, 'disposing')
            assert counts['waiting'] == len(model.at(name).line)
        assert self.core.size == model.size
        assert total['created'] == model.created_total
        assert {reason: count for reason, count in total['closed'].items() if count} == +model.closed_by
        served = sum(total['acquires'][result] for result in ('hit', 'created', 'waited'))
        assert served == model.results['served']
        assert all(total['acquires'][result] == model.results[result] for result in ERRORS)
        assert {outcome: count for outcome, count in total['releases'].items() if count} == +model.releases
        for acquire in self.acquires:
            if acquire.ticket.verdict in VERDICTS:
                assert VERDICTS[acquire.ticket.verdict] == acquire.state

    def keeps_the_caps(self) -> None:
        assert self.core.size <= self.model.total_max_size
        for _, counts in self.core.snapshot()[1]:
            taken = counts['idle'] + counts['used'] + counts['creating'] + counts['disposing']
            assert taken <= self.model.max_size

    def balances_the_books(self) -> None:
        total, _ = self.core.snapshot()
        assert total['created'] - sum(total['closed'].values()) == total['idle'] + total['used']
        served = sum(total['acquires'][result] for result in ('hit', 'created', 'waited'))
        lent = sum(slot.lent for slot in self.model.slots)
        assert served - sum(total['releases'].values()) == lent
        for path, value in flat(total):
            if path.startswith(('created', 'closed', 'acquires', 'releases')):
                assert value >= self.seen.get(path, 0), f'{path} went back'
                self.seen[path] = value

    def serves_whom_it_can(self) -> None:
        counts = dict(self.core.snapshot()[1])
        full = self.core.size >= self.model.total_max_size
        idle = self.core.idle
        for name, each in counts.items():
            taken = each['idle'] + each['used'] + each['creating'] + each['disposing']
            if each['waiting']:
                assert not each['idle'], f'{name} waits beside an idle connection'
                assert full or taken >= self.model.max_size, f'{name} waits beside a free place'
                promised = self.model.promised(name)
                assert not idle or each['waiting'] <= promised or taken + promised >= self.model.max_size, (
                    f'{name} waits while another endpoint has an idle connection'
                )

    def keeps_lines_in_order(self) -> None:
        """Nobody is served before one who is older and still in the same line."""
        before, self.in_line = self.in_line, {}
        for acquire in self.acquires:
            if acquire.ticket.verdict == WAIT:
                self.in_line[acquire.twin.age] = acquire.twin.endpoint
        for acquire in self.acquires:
            if acquire.twin.age in before and acquire.ticket.verdict in (CREATE, USE):
                older = [age for age in self.in_line if age in before and age < acquire.twin.age]
                assert acquire.twin.endpoint not in [self.in_line[age] for age in older]

    def wakes_whom_it_serves(self) -> None:
        for twin in self.armed:
            assert twin in self.woken or twin.state not in ('create', 'use', 'shut'), 'served, and left asleep'

    def teardown(self) -> None:
        """Whatever happened: when all is let go, all is gone."""
        if not hasattr(self, 'core'):
            return
        core = self.core
        self.acquires.clear()
        self.releases.clear()
        self.victims.clear()
        core.on_transition = None
        core.close()
        core.force()
        for _ in range(100):  # whoever was dropped in line gets its turn, and loses it
            while (victim := core.victim()) is not None:
                core.disposed(victim)
            core.drain()
        assert core.size == core.waiting == 0, core.snapshot()
        assert core.snapshot()[1] == []


def flat(counts: dict[str, Any], prefix: str = '') -> list[tuple[str, int]]:
    """Write nested counts as paths."""
    paths: list[tuple[str, int]] = []
    for name, value in counts.items():
        paths += flat(value, f'{prefix}{name}.') if isinstance(value, dict) else [(prefix + name, value)]
    return paths


SHARED: dict[str, Any] = {
    'deadline': None, 'database': None, 'print_blob': False,
    'suppress_health_check': [HealthCheck.too_slow, HealthCheck.filter_too_much],
}  # fmt: skip
PROFILES = {
    'ci': settings(max_examples=200, stateful_step_count=60, derandomize=True, **SHARED),
    'long': settings(max_examples=5000, stateful_step_count=200, **SHARED),
}

TestPool = PoolMachine.TestCase
TestPool.settings = PROFILES[os.environ.get('GCP_HYPOTHESIS', 'ci')]
