"""Guarantees 1, 2, 3 and 4 (docs/guarantees.md): the core under any sequence of transitions agrees with a model.

``GCP_HYPOTHESIS=long`` tries many more sequences, new ones each time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core import model as rules
from core.helpers import CREATE, SHUT, USE, WAIT, Bench, Conn, Shape
from core.model import Model
from gcp._core import Acquire, Release, Victim
from gcp.exceptions import AcquireTimeoutError, ConnectionNotAcquiredError, ConnectionPoolClosedError

T = TypeVar('T')

IDLE_TIMEOUT = 10.0 + 2**-12  # never on the same tick as the end of a life
MAX_LIFETIME = 60.0
ERRORS = {'timeout': AcquireTimeoutError, 'error': ValueError, 'cancelled': KeyboardInterrupt}

SOME = st.integers(0, 7)
"""Which of the objects in question, modulo their number."""


class Caller:
    """An acquire, and its twin in the model."""

    def __init__(self, acquire: Acquire, twin: rules.Acquire) -> None:
        self.acquire = acquire
        self.twin = twin
        self.conn: Any = None  # once it is the caller's

    @property
    def state(self) -> str:
        return self.twin.state

    @property
    def todo(self) -> str:
        return self.acquire.todo


def is_new(caller: Caller) -> bool:
    return caller.state == 'new'


def is_open(caller: Caller) -> bool:
    return caller.conn is None


def looks_for_a_verdict(caller: Caller) -> bool:
    return is_open(caller) and caller.todo == WAIT and caller.state in (WAIT, CREATE, USE, SHUT)


def waits(caller: Caller) -> bool:
    return caller.state == WAIT


def was_served_meanwhile(caller: Caller) -> bool:
    return looks_for_a_verdict(caller) and caller.state in (CREATE, USE)


def may_create(caller: Caller) -> bool:
    return caller.state == CREATE


def may_use(caller: Caller) -> bool:
    return is_open(caller) and caller.state == USE


def may_check(caller: Caller) -> bool:
    return may_use(caller) and caller.todo != 'done'


def was_served(caller: Caller) -> bool:
    return may_create(caller) or may_use(caller)


def is_holder(caller: Caller) -> bool:
    return caller.conn is not None


def where(which: Callable[[Caller], bool]) -> Callable[[T], T]:
    """Have a rule apply only while there is such a caller."""
    return precondition(lambda self: any(map(which, self.callers)))


class PoolMachine(RuleBasedStateMachine):
    """Callers, finalizers, a disposer, a collector and a closer, in any order."""

    @initialize(
        max_size=st.sampled_from([1, 2, 2, 4]),
        total_max_size=st.sampled_from([1, 2, 2, 3, 3, 4, 6]),
        min_idle=st.sampled_from([0, 0, 1, 3]),
        max_connecting=st.sampled_from([None, None, 1, 2]),
        max_connecting_total=st.sampled_from([None, None, 1, 2]),
        names=st.integers(1, 4),
        told=st.booleans(),
    )
    def build(
        self,
        max_size: int,
        total_max_size: int,
        min_idle: int,
        max_connecting: int | None,
        max_connecting_total: int | None,
        names: int,
        told: bool,
    ) -> None:
        """:param told: whether the pool is told of what finalizers leave; if not, a waiter may be woken for it"""
        limits: dict[str, Any] = {
            'max_size': min(max_size, total_max_size), 'total_max_size': total_max_size, 'min_idle': min_idle,
            'idle_timeout': IDLE_TIMEOUT, 'max_lifetime': MAX_LIFETIME, 'max_connecting': max_connecting,
            'max_connecting_total': max_connecting_total,
        }  # fmt: skip
        self.bench = Bench(**limits)
        self.core = self.bench.core
        self.model = Model(**limits)
        self.names = 'abcd'[:names]
        self.told = told
        self.numbers = 0
        self.callers: list[Caller] = []
        self.releases: list[tuple[Release, rules.Slot, Caller]] = []
        self.stale: list[Acquire] = []
        self.victims: list[tuple[Victim, rules.Slot]] = []
        self.seen: dict[str, int] = {}
        self.queued: dict[int, str] = {}  # at the last look: endpoints, by the age of the waiter
        self.woken: set[rules.Acquire] = set()
        self.twins: dict[str, Callable[[], object]] = {}
        self.happened: list[str] = []
        self.core.on_transition = self.happens
        if told:
            self.core.on_abandoned = lambda: None

    # --- help ---

    def pick(self, number: int, which: Callable[[Caller], bool]) -> Caller:
        """Choose a caller."""
        some = [caller for caller in self.callers if which(caller)]
        return some[number % len(some)]

    def tick(self) -> None:
        """Let a moment pass, so that no order is left to chance."""
        self.bench.clock.advance(2**-10)

    @contextmanager
    def expecting(self, twin: rules.Acquire | None = None, **twins: Callable[[], object]) -> Iterator[None]:
        """Let transitions happen in the model when they happen in the core.

        :param twin: of an acquire that may look for its verdict in between
        :param twins: the transitions that must happen, and the model's
        """
        self.tick()
        self.twins = dict(twins)
        if twin is not None:
            self.twins['arm'] = self.twins['poll'] = lambda: self.model.poll(twin)
        self.happened = []
        yield
        assert set(twins) <= set(self.happened) <= set(self.twins), self.happened

    def happens(self, transition: str) -> None:
        """A transition of the core is about to happen."""
        self.happened.append(transition)
        self.model.begin(self.bench.clock.now)
        self.twins[transition]()
        self.model.end()

    # --- acquire, piece by piece ---

    @rule(name=SOME)
    def open(self, name: int) -> None:
        self.open_acquire(name)

    def open_acquire(self, name: int) -> Caller:
        endpoint = self.names[name % len(self.names)]
        self.callers.append(Caller(self.bench.acquire(endpoint), self.model.open(endpoint)))
        return self.callers[-1]

    @where(is_new)
    @rule(number=SOME)
    def request(self, number: int) -> None:
        self.ask(self.pick(number, is_new))

    def ask(self, caller: Caller) -> None:
        twin = caller.twin
        with self.expecting(twin, request=lambda: self.model.request(twin)):
            assert self.bench.request(caller.acquire, self.waker(twin)) == twin.state

    def waker(self, twin: rules.Acquire) -> Callable[[], None]:
        # not of the caller: an acquire that was dropped must be gone
        self.woken.discard(twin)
        return lambda: self.woken.add(twin)

    @where(looks_for_a_verdict)
    @rule(number=SOME)
    def poll(self, number: int) -> None:
        self.look(self.pick(number, looks_for_a_verdict))

    def look(self, caller: Caller) -> None:
        """See what has come for an acquire that waits."""
        if caller.todo == WAIT:
            twin = caller.twin
            with self.expecting(twin, poll=lambda: self.model.poll(twin)):
                assert self.bench.poll(caller.acquire) == twin.state

    @where(waits)
    @rule(number=SOME)
    def expire(self, number: int) -> None:
        self.time_out(self.pick(number, waits))

    @where(was_served_meanwhile)
    @rule(number=SOME)
    def expire_too_late(self, number: int) -> None:
        self.time_out(self.pick(number, was_served_meanwhile))

    def time_out(self, caller: Caller) -> None:
        twin = caller.twin
        verdicts: list[str] = []
        with self.expecting(twin, expire=lambda: verdicts.append(self.model.expire(twin))):
            verdict = self.bench.expire(caller.acquire)
        assert [verdict] == verdicts

    @where(may_create)
    @rule(number=SOME)
    def create(self, number: int) -> None:
        self.end_creation(self.pick(number, may_create))

    def end_creation(self, caller: Caller) -> None:
        self.look(caller)
        twin = caller.twin
        self.numbers += 1
        conn = Conn(twin.endpoint, self.numbers)
        with self.expecting(created=lambda: self.model.created(twin, repr(conn))):
            assert self.bench.created(caller.acquire, conn) == twin.state

    @where(may_create)
    @rule(number=SOME)
    def fail(self, number: int) -> None:
        caller = self.pick(number, may_create)
        self.look(caller)
        twin = caller.twin
        with self.expecting(failed=lambda: self.model.failed(twin)):
            self.bench.failed(caller.acquire)

    @where(may_use)
    @rule(number=SOME)
    def finish(self, number: int) -> None:
        self.end_acquire(self.pick(number, may_use))

    def end_acquire(self, caller: Caller) -> None:
        self.look(caller)
        twin = caller.twin
        ended: list[bool] = []
        if caller.todo == 'check_aliveness':
            caller.acquire.begin_call()
            self.model.hook_calls['check_aliveness', 'ok'] += 1
        with self.expecting(finish=lambda: ended.append(self.model.finish(twin))):
            try:
                caller.conn = self.bench.finish(caller.acquire)
            except ConnectionPoolClosedError:
                assert ended == [False]
                return
        assert ended == [True] and twin.slot is not None
        assert repr(caller.conn) == twin.slot.name
        assert all(each is caller or each.conn is not caller.conn for each in self.callers), 'two holders'
        assert caller.conn.number not in self.gone, 'it was disposed of'

    @where(may_check)
    @rule(number=SOME)
    def find_it_dead(self, number: int) -> None:
        caller = self.pick(number, may_check)
        self.look(caller)
        twin = caller.twin
        caller.acquire.begin_call()
        self.model.hook_calls['check_aliveness', 'dead'] += 1
        with self.expecting(twin, retry=lambda: self.model.retry(twin)):
            assert self.bench.retry(caller.acquire, self.waker(twin)) == twin.state

    @where(is_open)
    @rule(number=SOME, result=st.sampled_from(sorted(ERRORS)), hook=st.sampled_from(['', 'error', 'dead']))
    def abandon(self, number: int, result: str, hook: str) -> None:
        """:param hook: how it ends in its hook: by the hook's error, or after the connection was found dead"""
        caller = self.pick(number, is_open)
        error = ERRORS[result]()
        twin = caller.twin
        if may_check(caller) and hook:
            self.look(caller)
            self.end_in_hook(caller, error if hook == 'error' else None)
            self.model.hook_calls['check_aliveness', result if hook == 'error' else 'dead'] += 1
            twin.hook = hook
        with self.expecting(abandon=lambda: self.model.abandon(twin, result)):
            caller.acquire.abandon(error)
        self.callers.remove(caller)

    def end_in_hook(self, caller: Caller, error: BaseException | None) -> None:
        caller.acquire.begin_call()
        if error is None:
            caller.acquire.completed(False)
        else:
            self.bench.failed(caller.acquire, error)

    @where(is_open)
    @rule(number=SOME)
    def drop_an_acquire(self, number: int) -> None:
        """One that waits stays in the queue; what comes for it later is abandoned, and reclaimed."""
        caller = self.pick(number, is_open)
        self.callers.remove(caller)
        caller.twin.dropped = True
        if caller.state != WAIT and not caller.twin.ended:
            self.model.drop(caller.twin)

    # --- acquire, all at once ---

    @rule(name=SOME, count=st.integers(1, 4), takes=st.sampled_from([0.0, 0.125, 0.5]))
    def acquire(self, name: int, count: int, takes: float) -> None:
        """What callers do most of the time."""
        for _ in range(count):
            caller = self.open_acquire(name)
            self.ask(caller)
            self.carry_on(caller, takes)

    @where(was_served)
    @rule(number=SOME, takes=st.sampled_from([0.0, 0.125, 0.5]))
    def go_on(self, number: int, takes: float) -> None:
        """What it does when it was served."""
        self.carry_on(self.pick(number, was_served), takes)

    def carry_on(self, caller: Caller, takes: float) -> None:
        if caller.state == CREATE:
            self.look(caller)
            self.bench.clock.advance(takes)
            self.end_creation(caller)
        if caller.state == USE:
            self.end_acquire(caller)

    @rule(number=SOME)
    def acquire_for_each(self, number: int) -> None:
        """Some callers of each endpoint."""
        for name in range(len(self.names)):
            self.acquire(name, 1 + (number + name) % 3, 0.0)

    # --- release ---

    @where(is_holder)
    @rule(number=SOME)
    def begin_release(self, number: int) -> None:
        self.take_back(self.pick(number, is_holder))

    def take_back(self, caller: Caller) -> None:
        twin, slot = caller.twin, caller.twin.slot
        assert slot is not None
        begun: list[bool] = []

        def begin() -> None:
            begun.append(slot.holder is twin)  # else it was taken by force
            if begun[0]:
                self.model.begin_release(slot)

        with self.expecting(checkin=begin):
            release = self.bench.begin_release(caller.conn, twin.endpoint)
        self.callers.remove(caller)
        if release is None:
            assert self.model.closed and begun == [False]
            return
        assert begun == [True] and release.conn is caller.conn
        self.releases.append((release, slot, caller))

    @where(is_holder)
    @rule(number=SOME)
    def release(self, number: int) -> None:
        self.take_back(self.pick(number, is_holder))
        if self.releases:
            self.end_release(len(self.releases) - 1)

    @where(is_holder)
    @rule()
    def release_all(self) -> None:
        while any(map(is_holder, self.callers)):
            self.release(0)

    @precondition(lambda self: self.releases)
    @rule(number=SOME)
    def end_release(self, number: int) -> None:
        release, slot, caller = self.releases.pop(number % len(self.releases))
        self.stale.append(caller.acquire)
        with self.expecting(give_back=lambda: self.model.end_release(slot)):
            self.bench.end_release(release)
        self.bench.end_release(release)  # it has ended: this does nothing

    @precondition(lambda self: self.releases)
    @rule(number=SOME)
    def discard(self, number: int) -> None:
        """`on_release` fails."""
        release, slot, _ = self.releases.pop(number % len(self.releases))
        with self.expecting(discard=lambda: self.model.discard(slot, 'error')):
            self.bench.fail_release(release, ValueError())

    @precondition(lambda self: self.stale)
    @rule()
    def drop_what_is_stale(self) -> None:
        """Drop acquires whose connections were released by name: these may have other holders by now."""
        self.stale.clear()

    @precondition(lambda self: self.releases)
    @rule(number=SOME)
    def drop_a_release(self, number: int) -> None:
        release, slot, caller = self.releases.pop(number % len(self.releases))
        self.model.abandoned.append((slot, caller.twin))
        del release, caller

    @where(is_holder)
    @rule(number=SOME)
    def drop_a_lease(self, number: int) -> None:
        caller = self.pick(number, is_holder)
        self.callers.remove(caller)
        self.model.drop(caller.twin)

    @rule(number=SOME)
    def release_what_is_not_held(self, number: int) -> None:
        with self.expecting(checkin=lambda: None):
            if self.model.closed:
                assert self.bench.begin_release(object(), self.names[0]) is None
                return
            with pytest.raises(ConnectionNotAcquiredError):
                self.bench.begin_release(object(), self.names[number % len(self.names)])
            if self.releases:  # one that is being released already
                release, slot, _ = self.releases[number % len(self.releases)]
                with pytest.raises(ConnectionNotAcquiredError):
                    self.bench.begin_release(release.conn, slot.endpoint)

    # --- disposal and expiry ---

    @rule()
    def take_the_victims(self) -> None:
        slots: list[rules.Slot | None] = []
        with self.expecting(victim=lambda: slots.append(self.model.victim())):
            victims = self.bench.victims()
        assert slots.pop() is None
        taken = {slot.name: slot for slot in slots if slot is not None}
        if not self.model.closed:  # a close makes victims in an order that is not defined
            assert [repr(victim.conn) for victim in victims] == list(taken)
        for victim in victims:
            slot = taken.pop(repr(victim.conn))
            assert (victim.reason, victim.endpoint) == (slot.reason, slot.endpoint)
            self.victims.append((victim, slot))
        assert not taken

    @precondition(lambda self: self.victims)
    @rule(number=SOME, twice=st.booleans())
    def dispose(self, number: int, twice: bool) -> None:
        victim, slot = self.victims.pop(number % len(self.victims))
        with self.expecting(disposed=lambda: self.model.disposed(slot)):
            self.bench.disposed(victim)
        self.model.hook_calls['dispose', 'ok'] += 1
        if twice:
            with self.expecting(disposed=lambda: None):
                victim.end(None)

    @rule()
    def dispose_all(self) -> None:
        self.drain()  # there may be more victims after it
        if self.model.victims:
            self.take_the_victims()
        while self.victims:
            self.dispose(0, False)

    @precondition(lambda self: self.victims)
    @rule(number=SOME)
    def mark_overdue(self, number: int) -> None:
        victim, slot = self.victims[number % len(self.victims)]
        with self.expecting(overdue=lambda: self.model.overdue(slot)):
            victim.mark_overdue()

    @precondition(lambda self: self.victims)
    @rule(number=SOME)
    def return_a_victim(self, number: int) -> None:
        """A signal came before its disposal was begun."""
        victim, slot = self.victims.pop(number % len(self.victims))
        with self.expecting(spare=lambda: self.model.victims.append(slot)):
            victim.take_back()

    @precondition(lambda self: self.victims)
    @rule(number=SOME, started=st.booleans())
    def drop_a_victim(self, number: int, started: bool) -> None:
        victim, slot = self.victims.pop(number % len(self.victims))
        if started:
            self.bench.begin_disposal(victim)
        slot.started = started
        self.model.abandoned.append((slot, None))

    @precondition(lambda self: self.bench.shape.idle)
    @rule(limit=st.integers(0, 3))
    def collect(self, limit: int) -> None:
        collected: list[int] = []
        with self.expecting(collect=lambda: collected.append(self.model.collect(limit))):
            assert self.core.collect(limit) == collected[0]

    @precondition(lambda self: self.bench.shape.idle)
    @rule()
    def sleep_and_collect(self) -> None:
        """What a collector does."""
        self.drain()
        expiries = [self.model.expires_at(slot) for slot in self.model.idle_order]
        when = self.core.next_expiry()
        assert when <= min(expiries, default=when), 'the collector would sleep for too long'
        self.bench.clock.now = max(self.bench.clock.now, min(expiries, default=when))
        self.collect(3)

    @rule(seconds=st.sampled_from([0.125, 1.0, 5.0, 11.0, 45.0]))
    def pass_time(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)

    @rule()
    def drain(self) -> None:
        self.tick()
        self.model.begin(self.bench.clock.now)
        self.core.drain()

    # --- closing ---

    @precondition(lambda self: self.numbers > 5)
    @rule(sure=st.integers(0, 5))
    def close(self, sure: int) -> None:
        if sure:  # seldom: in a closed pool little happens
            return
        with self.expecting(close=self.model.close):
            self.core.close()

    @precondition(lambda self: self.model.closed)
    @rule()
    def force(self) -> None:
        with self.expecting(force=self.model.force):
            self.core.force()

    # --- what must hold ---

    @property
    def gone(self) -> set[int]:
        """The numbers of connections that no longer count."""
        return set(range(1, self.numbers + 1)) - {int(slot.name[1:]) for slot in self.model.slots}

    @invariant()
    def holds(self) -> None:
        self.agrees_with_the_model()
        self.keeps_the_caps()
        self.counts_agree_with_each_other()
        self.serves_where_it_can()
        self.keeps_queues_in_order()
        self.wakes_what_it_serves()

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
            assert counts['waiting'] == len(model.at(name).queue)
        assert self.core.size == model.size
        assert total['created'] == model.created_total
        assert {reason: count for reason, count in total['closed'].items() if count} == +model.closed_by
        served = sum(total['acquires'][result] for result in ('hit', 'created', 'waited'))
        assert served == model.results['served']
        assert all(total['acquires'][result] == model.results[result] for result in ERRORS)
        assert {outcome: count for outcome, count in total['releases'].items() if count} == +model.releases
        calls = {(hook, how): n for hook, outcomes in total['hook_calls'].items() for how, n in outcomes.items() if n}
        assert calls == +model.hook_calls

    def keeps_the_caps(self) -> None:
        assert self.core.size <= self.model.total_max_size
        for _, counts in self.core.snapshot()[1]:
            taken = counts['idle'] + counts['used'] + counts['creating'] + counts['disposing']
            assert taken <= self.model.max_size

    def counts_agree_with_each_other(self) -> None:
        total, _ = self.core.snapshot()
        assert total['created'] - sum(total['closed'].values()) == total['idle'] + total['used']
        served = sum(total['acquires'][result] for result in ('hit', 'created', 'waited'))
        acquired = sum(slot.acquired for slot in self.model.slots)
        assert served - sum(total['releases'].values()) == acquired
        for path, value in flat(total):
            if path.startswith(('created', 'closed', 'acquires', 'releases')):
                assert value >= self.seen.get(path, 0), f'{path} went back'
                self.seen[path] = value

    def serves_where_it_can(self) -> None:
        counts = dict(self.core.snapshot()[1])
        full = self.core.size >= self.model.total_max_size
        idle = self.bench.shape.idle
        assert self.bench.shape.creating <= self.model.max_connecting_total
        for name, each in counts.items():
            taken = each['idle'] + each['used'] + each['creating'] + each['disposing']
            assert each['creating'] <= self.model.max_connecting
            if each['waiting']:
                assert not each['idle'], f'{name} waits beside an idle connection'
                if not (self.model.endpoint_may_connect(name) and self.model.pool_may_connect()):
                    continue
                assert full or taken >= self.model.max_size, f'{name} waits beside a free place'
                reserved = self.model.reserved(name)
                assert not idle or each['waiting'] <= reserved or taken + reserved >= self.model.max_size, (
                    f'{name} waits while another endpoint has an idle connection'
                )

    def keeps_queues_in_order(self) -> None:
        """No acquire is served before one that is older and still in the same queue."""
        before, self.queued = self.queued, {}
        for caller in self.callers:
            if waits(caller):
                self.queued[caller.twin.age] = caller.twin.endpoint
        for caller in self.callers:
            if caller.twin.age in before and caller.state in (CREATE, USE):
                older = [age for age in self.queued if age in before and age < caller.twin.age]
                assert caller.twin.endpoint not in [self.queued[age] for age in older]

    def wakes_what_it_serves(self) -> None:
        for caller in filter(looks_for_a_verdict, self.callers):
            assert waits(caller) or caller.twin in self.woken, 'served, and left asleep'
            assert not waits(caller) or not self.told or caller.twin not in self.woken, 'woken for nothing'

    def teardown(self) -> None:
        """Whatever happened: when everything is dropped, nothing is left."""
        if not hasattr(self, 'core'):
            return
        core = self.core
        core.on_transition = None
        self.callers.clear()
        self.releases.clear()
        self.stale.clear()
        self.victims.clear()
        core.close()
        core.force()
        for _ in range(100):  # acquires that were dropped in the queue are served, and that is reclaimed
            self.bench.dispose_all()
            core.drain()
        assert self.bench.shape == Shape(), core.snapshot()
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
