"""Guarantees 1, 4, 18, 19, 20, 21, 26, 27, 28 and 30 (docs/guarantees.md): whatever callers, workers, a collector and
operators do, in any order and with all limits at random, the counts of the core agree, its limits hold, and no acquire
waits in vain. Nothing is handed out that was expired, or is suspended; a reserve is for acquires with a priority.

``GCP_HYPOTHESIS=long`` tries many more sequences, new ones each time."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.helpers import CREATE, WAIT, Conn
from core.test_background import BackgroundBench
from gcp import EndpointLimits, ErrorClass, Retry
from gcp._core import (
    Acquire,
    Job,
    Watch,
    begin_readiness,
    begin_retirement,
    begin_suspension,
    expire_connections,
    list_waiters,
    rest,
    resume_endpoints,
)
from gcp.exceptions import (
    AcquireTimeoutError,
    ConnectionPoolNotFound,
    EndpointRetiredError,
    EndpointUnavailableError,
    PoolNotReadyError,
    PoolSuspendedError,
    TooManyWaitersError,
)

REFUSALS = (
    AcquireTimeoutError,
    EndpointRetiredError,
    EndpointUnavailableError,
    PoolSuspendedError,
    TooManyWaitersError,
)
SOME = st.integers(0, 7)
INTERVAL = 10.0


class Refused(Exception):
    """The error of a connect.

    :param kind: what it means
    """

    def __init__(self, kind: ErrorClass) -> None:
        self.kind = kind


def classify(endpoint: object, error: BaseException) -> ErrorClass:
    return error.kind if isinstance(error, Refused) else ErrorClass.TRANSIENT


OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    'max_size': st.sampled_from([1, 2, 4]),
    'total_max_size': st.sampled_from([4, 5, 8]),
    'min_idle': st.sampled_from([0, 1]),
    'idle_timeout': st.sampled_from([5.0, 1000.0]),
    'max_lifetime': st.sampled_from([40.0, 10000.0]),
    'max_uses': st.sampled_from([None, 1, 3]),
    'keepalive_interval': st.sampled_from([float('inf'), INTERVAL]),
    'check_interval': st.sampled_from([0.0, 3.0]),
    'refill': st.booleans(),
    'connect_workers': st.sampled_from([0, 1, 2]),
    'max_connecting': st.sampled_from([None, 1, 2]),
    'max_connecting_total': st.sampled_from([None, 1, 3]),
    'connect_retry': st.sampled_from([None, Retry(1.0, 4.0, 2.0, 0.0), Retry(0.5, 0.5, 1.0, 0.2)]),
    'breaker_threshold': st.sampled_from([None, 1, 3]),
    'max_waiting': st.sampled_from([None, 0, 2]),
    'admission': st.sampled_from([None, 'deadline']),
    'limits': st.sampled_from(
        [
            None,
            {'a': EndpointLimits(max_size=1, min_idle=1, max_waiting=1)},
            {'a': EndpointLimits(weight=3.0), 'b': EndpointLimits(floor=1), 'c': EndpointLimits(reserve=2, weight=0.5)},
            {'a': EndpointLimits(floor=2, reserve=1), 'b': EndpointLimits(weight=2.0, reserve=0)},
        ]
    ),
    'reserve': st.sampled_from([0, 1, 3]),
    'reserve_timeout': st.sampled_from([float('inf'), 4.0]),
}
TARGETS = st.sampled_from(['a', 'b', 'c', None])


class OperationsMachine(RuleBasedStateMachine):
    """Callers, workers in the background, a disposer, a collector and an operator."""

    @initialize(options=st.fixed_dictionaries(OPTIONS))
    def build(self, options: dict[str, Any]) -> None:
        self.options = options
        self.bench = BackgroundBench(classify=classify, **options)
        self.core = self.bench.core
        self.lowered = False  # whether a cap was lowered, so that there may be more for a while
        self.acquires: list[Acquire] = []
        self.holders: list[tuple[Acquire, Any]] = []  # with their connections, which users hold themselves
        self.jobs: list[Job] = []
        self.watches: list[Watch] = []
        self.retired: list[Watch] = []
        self.made = 0
        self.suspended: set[str | None] = set()
        self.expired: set[Conn] = set()  # those that lived when they were
        self.priorities: dict[Acquire, int] = {}
        self.older: set[Acquire] = set()  # that may have been served before
        self.alive: dict[str, set[Conn]] = {endpoint: set() for endpoint in 'abc'}

    # --- callers ---

    def conn(self, endpoint: Any) -> Conn:
        self.made += 1
        conn = Conn(endpoint, self.made)
        self.alive[endpoint].add(conn)
        return conn

    def tell(self, acquire: Acquire, how: Any) -> None:
        """Let an acquire go on; put it where it belongs then."""
        if acquire in self.acquires:
            self.acquires.remove(acquire)
        try:
            self.bench.tell(acquire, how)
            if acquire.todo == 'done':
                acquire.next()
                self.holders.append((acquire, acquire.conn))
                assert acquire in self.older or acquire.conn not in self.expired, 'it was expired'
                return
        except (*REFUSALS, Refused) as error:
            acquire.abandon(error)
            return
        self.acquires.append(acquire)

    @rule(
        endpoint=st.sampled_from('abc'),
        timeout=st.sampled_from([None, 0, 5.0]),
        priority=st.sampled_from([0, 0, 0, 1, 2, -1]),
    )
    def acquire(self, endpoint: str, timeout: float | None, priority: int) -> None:
        acquire = self.bench.acquire(endpoint, timeout, priority)
        self.priorities[acquire] = priority
        self.tell(acquire, lambda: None)
        if {endpoint, None} & self.suspended:
            assert acquire.todo != CREATE and not acquire.is_current, 'it is suspended'

    @precondition(lambda self: self.acquires)
    @rule(number=SOME, kind=st.sampled_from(['ok', 'ok', 'ok', 'fail', 'permanent', 'stale', 'cancel']))
    def go_on(self, number: int, kind: str) -> None:
        acquire = self.acquires[number % len(self.acquires)]
        if kind == 'cancel':
            self.acquires.remove(acquire)
            acquire.abandon(KeyboardInterrupt())
        elif acquire.todo == WAIT:
            self.tell(acquire, lambda: acquire.completed(kind == 'ok'))
        elif acquire.todo == CREATE:
            self.end_create(acquire, kind)
        else:
            self.tell(acquire, lambda: acquire.completed(kind == 'ok'))

    def end_create(self, acquire: Acquire, kind: str) -> None:
        if kind == 'ok':
            self.tell(acquire, lambda: acquire.completed(self.conn(acquire.endpoint)))
            return
        found = {'permanent': ErrorClass.PERMANENT, 'stale': ErrorClass.STALE}.get(kind, ErrorClass.TRANSIENT)
        self.tell(acquire, lambda: acquire.failed(Refused(found)))

    @precondition(lambda self: self.holders)
    @rule(number=SOME, discards=st.booleans())
    def release(self, number: int, discards: bool) -> None:
        _, conn = self.holders.pop(number % len(self.holders))
        release = self.bench.begin_release(conn, conn.endpoint)
        if release is None:  # it was taken by force
            return
        if discards:
            release.discard('discarded')
        else:
            self.bench.end_release(release)

    # --- the background ---

    @rule()
    def begin_job(self) -> None:
        job = self.bench.job()
        if job is not None:
            self.jobs.append(job)

    @precondition(lambda self: self.jobs)
    @rule(number=SOME, kind=st.sampled_from(['ok', 'ok', 'ok', 'fail', 'permanent', 'abandon']))
    def end_job(self, number: int, kind: str) -> None:
        job = self.jobs.pop(number % len(self.jobs))
        found = ErrorClass.PERMANENT if kind == 'permanent' else ErrorClass.TRANSIENT
        if kind == 'abandon':
            job.abandon(KeyboardInterrupt())
        elif kind != 'ok':
            job.failed(Refused(found)) if not job.is_check or kind == 'fail' else job.completed(False)
        else:
            job.completed(True if job.is_check else self.conn(job.key))

    @rule()
    def work(self) -> None:
        """What workers do when nothing goes wrong."""
        while (job := self.bench.job()) is not None:
            job.completed(True if job.is_check else self.conn(job.key))

    @rule()
    def rest(self) -> None:
        rest(self.core, 1.0)

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 9.5, 30.0, 100.0]))
    def pass_time(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)

    @rule()
    def collect(self) -> None:
        self.core.collect(3)

    @rule()
    def dispose(self) -> None:
        self.bench.dispose_all()

    # --- the operator ---

    @rule(endpoints=st.lists(st.sampled_from('abc'), max_size=2, unique=True), size=st.sampled_from([None, 1]))
    def warm_up(self, endpoints: list[str], size: int | None) -> None:
        try:
            self.watches.append(self.bench.warm_up(*endpoints, size=size, timeout=5.0))
        except EndpointRetiredError:
            pass

    @rule()
    def wait_ready(self) -> None:
        self.watches.append(begin_readiness(self.bench.pool, 1.0, None))

    @precondition(lambda self: self.watches)
    @rule(number=SOME)
    def end_watch(self, number: int) -> None:
        watch = self.watches.pop(number % len(self.watches))
        watch.done()
        watch.close()
        try:
            watch.conclude()
        except PoolNotReadyError as error:
            assert all(count > 0 for count in error.missing.values())

    @rule(endpoint=st.sampled_from('abc'))
    def retire(self, endpoint: str) -> None:
        try:
            self.retired.append(begin_retirement(self.bench.pool, endpoint, 1.0, None))
        except ConnectionPoolNotFound:
            pass

    @precondition(lambda self: self.retired)
    @rule(number=SOME)
    def end_retirement(self, number: int) -> None:
        watch = self.retired.pop(number % len(self.retired))
        if not watch.done():
            watch.force()
        watch.close()

    @rule(whom=TARGETS)
    def expire(self, whom: str | None) -> None:
        for endpoint in self.alive if whom is None else [whom]:
            self.expired |= self.alive[endpoint]
        self.older |= set(self.acquires)
        expire_connections(self.bench.pool, whom)

    @rule(whom=TARGETS, mode=st.sampled_from(['wait', 'wait', 'raise']), drains=st.booleans())
    def suspend(self, whom: str | None, mode: str, drains: bool) -> None:
        self.suspended.add(whom)
        watch = begin_suspension(self.bench.pool, whom, mode, drains, 1.0, None)
        if watch is not None:
            assert not watch.done() or not [acquire for acquire, conn in self.holders if self.is_held(acquire, conn) and
                                            whom in (conn.endpoint, None)]  # fmt: skip
            watch.close()

    @precondition(lambda self: self.suspended)
    @rule(whom=TARGETS)
    def resume(self, whom: str | None) -> None:
        self.suspended = set() if whom is None else self.suspended - {whom}
        resume_endpoints(self.bench.pool, whom)

    @rule(data=st.data())
    def reconfigure(self, data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from(sorted(OPTIONS)), min_size=1, max_size=3, unique=True))
        changes = {name: data.draw(OPTIONS[name]) for name in names}
        self.lowered = True
        self.bench.pool.reconfigure(**changes)
        self.options = self.options | changes

    # --- what always holds ---

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, 'bench'):
            return
        self.core.drain()
        total, endpoints = self.core.snapshot()
        assert self.core.size == total['idle'] + total['used'] + total['creating'] + total['disposing']
        for name in ('idle', 'used', 'creating', 'disposing', 'waiting'):
            assert total[name] == sum(counts[name] for _, counts in endpoints), name
            assert all(counts[name] >= 0 for _, counts in endpoints)
        assert total['created'] - sum(total['closed'].values()) == total['idle'] + total['used']
        assert total['created'] == self.made
        connects = sum(acquire.todo == CREATE for acquire in self.acquires)
        begun = sum(not job.is_check for job in self.jobs)
        assert connects + begun <= total['creating']
        assert total['waiting'] <= sum(acquire.todo == WAIT for acquire in self.acquires)

    @invariant()
    def limits_hold(self) -> None:
        if not hasattr(self, 'bench') or self.lowered:
            return
        total, endpoints = self.core.snapshot()
        assert self.core.size <= self.options['total_max_size']
        for _, counts in endpoints:
            taken = counts['idle'] + counts['used'] + counts['creating'] + counts['disposing']
            assert taken <= counts['limits'][0]
            assert counts['creating'] <= (self.options['max_connecting'] or 100)
        assert total['creating'] <= (self.options['max_connecting_total'] or 100)
        checks = sum(job.is_check for job in self.jobs)
        assert checks <= min(self.options['max_connecting'] or 8, self.options['max_connecting_total'] or 8)

    @staticmethod
    def is_held(acquire: Acquire, conn: Any) -> bool:
        """Whether a connection is still held: a retirement may have taken it."""
        return acquire.is_current and acquire.conn is conn

    def ordinary(self, endpoint: str, counts: dict[str, Any]) -> int:
        """Count the places that are taken for acquires without a priority: what is idle takes none."""
        preferred = sum(
            self.priorities[acquire] > 0 and conn.endpoint == endpoint and self.is_held(acquire, conn)
            for acquire, conn in self.holders
        )
        preferred += sum(
            self.priorities[acquire] > 0
            and acquire.endpoint == endpoint
            and (acquire.todo == CREATE or acquire.is_current)
            for acquire in self.acquires
        )
        checked = sum(job.is_check and job.key == endpoint for job in self.jobs)
        return counts['used'] + checked + counts['creating'] + counts['disposing'] - preferred

    @invariant()
    def no_acquire_waits_in_vain(self) -> None:
        """No acquire waits beside an idle connection of its endpoint, except one that is being checked, that is
        suspended, or that is reserved for acquires with a priority."""
        if not hasattr(self, 'bench'):
            return
        checked: dict[Any, int] = {}
        for job in self.jobs:
            checked[job.key] = checked.get(job.key, 0) + job.is_check
        for endpoint, counts in self.core.snapshot()[1]:
            if counts['waiting'] and not counts['suspended'] and counts['idle'] > checked.get(endpoint, 0):
                max_size, reserve = counts['limits'][0], counts['limits'][-1] or 0
                assert reserve, endpoint
                if self.options['reserve_timeout'] < 100:
                    continue  # one may borrow by now, and has not looked yet
                assert {waiter[4] for waiter in list_waiters(self.core, (endpoint,), -1)} == {'reserve'}
                if (
                    self.core.snapshot()[0]['closed']['evicted'] == 0
                ):  # else a place of another endpoint may be reserved
                    assert self.ordinary(endpoint, counts) >= max_size - reserve, endpoint

    @invariant()
    def the_reserve_is_kept(self) -> None:
        """Acquires without a priority take no place that is reserved, unless they have waited for it."""
        if not hasattr(self, 'bench') or self.lowered or self.options['reserve_timeout'] < 100:
            return
        for endpoint, counts in self.core.snapshot()[1]:
            max_size, reserve = counts['limits'][0], counts['limits'][-1] or 0
            without = sum(
                conn.endpoint == endpoint and self.priorities[acquire] <= 0 and self.is_held(acquire, conn)
                for acquire, conn in self.holders
            )
            assert not reserve or without <= max_size - reserve, endpoint

    def teardown(self) -> None:
        """Let all end well: no place is lost."""
        if not hasattr(self, 'bench'):
            return
        for acquire in self.acquires:
            acquire.abandon(KeyboardInterrupt())
        for job in self.jobs:
            job.abandon(KeyboardInterrupt())
        for watch in [*self.watches, *self.retired]:
            watch.close()
        while self.holders:
            self.release(0, False)
        self.core.close()
        self.bench.dispose_all()
        self.core.drain()
        assert self.core.size == 0
        assert self.core.snapshot()[0]['waiting'] == 0


LONG = os.environ.get('GCP_HYPOTHESIS') == 'long'

TestOperations = OperationsMachine.TestCase
TestOperations.settings = settings(
    max_examples=2000 if LONG else 60,
    stateful_step_count=60,
    deadline=None,
    derandomize=not LONG,
    suppress_health_check=list(HealthCheck),
)
