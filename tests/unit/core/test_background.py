"""Guarantees 19, 20, 21 and 22 (docs/guarantees.md): what is done in the background, on an injected clock and without
threads: which connects and checks there are to be made, and what becomes of them."""

from __future__ import annotations

import contextvars
from collections.abc import Hashable
from math import inf
from typing import Any

import pytest
from gil import is_same

from core.helpers import CREATE, USE, WAIT, Bench, Conn, Shape
from gcp._core import Job, Watch, begin_readiness, begin_retirement, begin_warm_up, end_rest, next_job, rest
from gcp.exceptions import ConnectionPoolClosedError, ConnectionPoolNotFound, EndpointRetiredError, PoolNotReadyError


class BackgroundBench(Bench):
    """A bench that does the jobs of the background one at a time."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.reported = self.pool.reported
        self.wakes = 0
        self.core.wake_background = self.woken

    def woken(self) -> None:
        self.wakes += 1

    def job(self) -> Job | None:
        return next_job(self.pool)

    def begin(self, kind: str = 'create') -> Job:
        job = self.job()
        assert job is not None and job.kind == kind, job
        return job

    def connect(self, job: Job | None = None) -> Conn:
        """Let a connect succeed."""
        job = job or self.begin()
        conn = Conn(job.key, next(self._numbers))
        job.completed(conn)
        return conn

    def warm_up(self, *endpoints: Hashable, size: int | None = None, timeout: float | None = None) -> Watch:
        return begin_warm_up(self.pool, endpoints, size, timeout, None)


def workers(n: int = 3, **options: Any) -> BackgroundBench:
    return BackgroundBench(connect_workers=n, **options)


# --- connects for waiters ---


def test_an_acquire_without_an_idle_connection_waits_for_a_connect_in_the_background() -> None:
    bench = workers()
    acquire = bench.wait('a')
    assert bench.wakes == 1
    bench.connect()
    assert bench.poll(acquire) == USE
    bench.finish(acquire)
    assert bench.shape == Shape(used=1)
    assert bench.total['acquires']['created'] == 1


def test_without_workers_it_creates_its_connection_itself() -> None:
    bench = BackgroundBench()
    assert bench.verdict(bench.ask('a')) == CREATE
    assert bench.job() is None


def test_an_acquire_that_must_not_wait_creates_its_connection_itself() -> None:
    bench = workers()
    assert bench.verdict(bench.ask('a', timeout=0)) == CREATE


def test_no_more_connects_than_workers() -> None:
    bench = workers(2)
    waiting = [bench.wait('a') for _ in range(5)]
    jobs = [bench.begin(), bench.begin()]
    assert bench.job() is None
    bench.connect(jobs[0])
    assert bench.verdict(waiting[0]) == USE
    third = bench.begin()
    assert bench.job() is None
    assert third.key == 'a'


def test_no_more_connects_than_waiters_or_than_the_caps_allow() -> None:
    bench = workers(5, max_size=3, total_max_size=4)
    waiting = [bench.wait('a') for _ in range(4)] + [bench.wait('b') for _ in range(2)]
    jobs = []
    while (job := bench.job()) is not None:
        jobs.append(job)
    assert sorted(job.key for job in jobs) == ['a', 'a', 'a', 'b']
    assert bench.shape == Shape(creating=4, waiting=6)
    assert len(waiting) == 6


def test_the_oldest_waiter_of_all_endpoints_is_connected_for_first() -> None:
    bench = workers(1)
    waiting = [bench.wait(endpoint) for endpoint in 'cab']
    served = []
    while (job := bench.job()) is not None:
        served.append(job.key)
        bench.connect(job)
    assert served == ['c', 'a', 'b']
    assert [bench.verdict(acquire) for acquire in waiting] == [USE] * 3


def test_a_released_connection_serves_the_waiter_if_it_comes_first() -> None:
    bench = workers()
    held = take_new(bench, 'a')
    acquire = bench.wait('a')
    job = bench.begin()
    bench.put(held)
    assert bench.verdict(acquire) == USE
    bench.finish(bench.keep(acquire))
    assert acquire.conn is not None
    bench.connect(job)  # no acquire waits for it any more: it is idle
    assert bench.shape == Shape(idle=1, used=1)


def take_new(bench: BackgroundBench, endpoint: Hashable) -> Any:
    """Acquire by way of a connect in the background, for good."""
    acquire = bench.keep(bench.wait(endpoint))
    bench.connect()
    assert bench.poll(acquire) == USE
    bench.finish(acquire)
    return acquire


def test_a_connect_that_has_not_begun_is_dropped_with_its_waiter() -> None:
    bench = workers()
    acquire = bench.wait('a')
    acquire.abandon(KeyboardInterrupt())
    assert bench.job() is None
    assert bench.shape == Shape()
    assert bench.endpoints == {}


def test_a_connect_that_has_not_begun_is_dropped_when_a_release_serves_its_waiter() -> None:
    bench = workers()
    held = take_new(bench, 'a')
    acquire = bench.wait('a')
    bench.put(held)
    assert bench.job() is None
    assert bench.verdict(acquire) == USE
    assert bench.shape == Shape(used=1)


def test_a_connect_that_has_begun_serves_the_next_waiter_when_its_own_is_gone() -> None:
    bench = workers(1)
    first, second = bench.wait('a'), bench.wait('a')
    job = bench.begin()
    first.abandon(KeyboardInterrupt())
    bench.connect(job)
    assert bench.verdict(second) == USE
    assert bench.job() is None


def test_a_connect_that_has_begun_goes_idle_when_all_waiters_are_gone() -> None:
    bench = workers()
    acquire = bench.wait('a')
    job = bench.begin()
    acquire.abandon(KeyboardInterrupt())
    bench.connect(job)
    assert bench.shape == Shape(idle=1)


def test_an_error_goes_to_the_oldest_waiter() -> None:
    bench = workers(1)
    first, second = bench.wait('a'), bench.wait('a')
    error = ConnectionRefusedError()
    bench.begin().failed(error)
    with pytest.raises(ConnectionRefusedError) as caught:
        bench.poll(first)
    assert is_same(caught.value, error)
    first.abandon(error)
    assert bench.verdict(second) == WAIT
    bench.connect()
    assert bench.verdict(second) == USE
    assert bench.total['acquires']['error'] == 1
    assert bench.total['hook_calls']['create'] == {'ok': 1, 'error': 1, 'timeout': 0, 'cancelled': 0}
    assert bench.reported == []


def test_an_error_that_no_waiter_hears_of_is_reported() -> None:
    bench = workers()
    acquire = bench.wait('a')
    job = bench.begin()
    acquire.abandon(KeyboardInterrupt())
    job.failed(ConnectionRefusedError())
    assert len(bench.reported) == 1
    assert bench.shape == Shape()


def test_a_result_that_makes_no_sense_is_an_error() -> None:
    bench = workers()
    acquire = bench.wait('a')
    bench.begin().completed(None)
    with pytest.raises(TypeError, match='returned None'):
        bench.poll(acquire)


def test_a_connection_that_the_pool_has_already_is_an_error() -> None:
    bench = workers()
    held = take_new(bench, 'a')
    acquire = bench.wait('a')
    bench.begin().completed(held.conn)
    with pytest.raises(RuntimeError, match='in the pool already'):
        bench.poll(acquire)
    assert bench.shape == Shape(used=1)


def test_the_context_variables_of_the_acquire_travel_along() -> None:
    bench = workers()
    variable: contextvars.ContextVar[str] = contextvars.ContextVar('variable')
    acquires = []
    for value in ('first', 'second'):
        context = contextvars.copy_context()
        context.run(variable.set, value)
        acquires.append(context.run(bench.wait, 'a'))
    jobs = [bench.begin() for _ in acquires]
    assert [job.context.run(variable.get) for job in jobs] == ['first', 'second']


def test_a_connect_in_the_background_evicts_where_the_total_cap_is_reached() -> None:
    bench = workers(total_max_size=1)
    bench.put(take_new(bench, 'b'))
    acquire = bench.wait('a')
    assert bench.job() is None
    assert [reason for _, reason in bench.dispose_all()] == ['evicted']
    bench.connect()
    assert bench.verdict(acquire) == USE


def test_no_more_evictions_than_workers() -> None:
    bench = workers(2, total_max_size=4)
    held = [take_new(bench, 'b') for _ in range(4)]
    bench.put(*held)
    waiting = [bench.wait('a') for _ in range(4)]
    assert len(bench.dispose_all()) == 2
    assert len(waiting) == 4


def test_a_connect_that_is_dropped_gives_its_place_back() -> None:
    bench = workers(1)
    acquire = bench.wait('a')
    job: Job | None = bench.begin()
    del job
    bench.core.drain()
    bench.connect()
    assert bench.verdict(acquire) == USE
    assert bench.shape == Shape(used=1)


def test_a_connect_whose_driver_was_stopped_is_made_again() -> None:
    bench = workers(1)
    acquire = bench.wait('a')
    bench.begin().abandon(GeneratorExit())
    bench.clock.advance(1)
    bench.connect()
    assert bench.verdict(acquire) == USE


def test_a_close_drops_what_has_not_begun_and_disposes_of_what_has() -> None:
    bench = workers()
    waiting = [bench.wait('a'), bench.wait('b')]
    job = bench.begin()
    bench.core.close()
    assert bench.shape == Shape(creating=1)
    assert bench.job() is None
    bench.connect(job)
    assert [reason for _, reason in bench.dispose_all()] == ['pool_closed']
    for acquire in waiting:
        with pytest.raises(ConnectionPoolClosedError):
            acquire.completed(True)


# --- warming up, and keeping warm ---


def test_warming_up_opens_min_idle_connections_of_each() -> None:
    bench = BackgroundBench(min_idle=2)
    watch = bench.warm_up('a', 'b')
    for _ in range(4):
        assert not watch.done()
        bench.connect()
    assert bench.job() is None
    assert watch.done()
    watch.close()
    watch.conclude()
    assert bench.shape == Shape(idle=4)


def test_existing_connections_count() -> None:
    bench = BackgroundBench()
    bench.fill('a', 2)
    bench.hold('a')
    watch = bench.warm_up('a', size=4)
    bench.connect()
    bench.connect()
    assert bench.job() is None
    assert watch.done()


@pytest.mark.parametrize(
    ('size', 'wrong'),
    [(11, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError), ('2', TypeError)],
)
def test_a_size_that_is_wrong_changes_nothing(size: Any, wrong: type[Exception]) -> None:
    bench = BackgroundBench(max_size=10, refill=True)
    with pytest.raises(wrong, match='size'):
        bench.warm_up('a', size=size)
    assert bench.job() is None
    assert bench.endpoints == {}


def test_more_than_the_total_cap_is_refused() -> None:
    bench = BackgroundBench(max_size=10, total_max_size=12)
    with pytest.raises(ValueError, match='total_max_size=12'):
        bench.warm_up('a', 'b', size=7)
    assert bench.endpoints == {}


def test_an_error_ends_the_warm_up_of_its_endpoint_only() -> None:
    bench = BackgroundBench(min_idle=2)
    watch = bench.warm_up('a', 'b')
    error = OSError()
    bench.begin().failed(error)
    while (job := bench.job()) is not None:
        assert job.key == 'b'
        bench.connect(job)
    assert watch.done()
    (found,) = watch.raised()
    assert is_same(found, error)
    assert bench.reported == []


def test_warming_up_ends_at_its_time_limit() -> None:
    bench = BackgroundBench(min_idle=2)
    watch = bench.warm_up('a', timeout=5)
    bench.connect()
    bench.clock.advance(5)
    assert not watch.time_to_wait()
    watch.close()
    with pytest.raises(PoolNotReadyError, match="'a': 1 missing") as caught:
        watch.conclude()
    assert caught.value.missing == {'a': 1}
    assert bench.job() is None  # without refill, nothing goes on


@pytest.mark.parametrize('how', ['expires', 'dies', 'is discarded', 'is evicted'])
def test_a_kept_endpoint_is_refilled_when_a_connection(how: str) -> None:
    bench = BackgroundBench(refill=True, max_lifetime=100, total_max_size=2)
    watch = bench.warm_up('a')
    bench.connect()
    watch.close()
    assert bench.job() is None
    if how == 'expires':
        bench.clock.advance(100)
        bench.core.collect(10)
    elif how == 'dies':
        dying = bench.ask('a')
        bench.retry(dying)  # creates another one by itself
    elif how == 'is discarded':
        bench.discard(bench.get('a'), 'discarded')
    else:
        bench.hold('b')
        waiting = bench.ask('b')
        bench.dispose_all()
        bench.take(waiting)
        assert bench.job() is None  # there is no room: refilling evicts nothing
        bench.discard(waiting, 'discarded')
    bench.dispose_all()
    if how != 'dies':
        bench.connect()
    assert bench.of('a').idle + bench.of('a').used + bench.of('a').creating == 1


def test_without_refill_it_is_not() -> None:
    bench = BackgroundBench()
    watch = bench.warm_up('a')
    bench.connect()
    watch.close()
    bench.discard(bench.get('a'), 'discarded')
    bench.dispose_all()
    assert bench.job() is None


def test_used_connections_count_as_well() -> None:
    bench = BackgroundBench(refill=True)
    bench.warm_up('a')
    bench.connect()
    bench.hold('a')
    assert bench.job() is None


def test_refills_that_fail_follow_a_schedule_one_at_a_time() -> None:
    bench = BackgroundBench(refill=True, min_idle=3)
    bench.warm_up('a').close()
    for job in [bench.begin(), bench.begin(), bench.begin()]:
        job.failed(OSError())
    assert bench.job() is None
    pauses = []
    for _ in range(8):
        before = bench.clock.now
        bench.clock.now = bench.core.next_expiry()
        pauses.append(bench.clock.now - before)
        bench.core.collect(10)
        job = bench.begin()
        assert bench.job() is None
        job.failed(OSError())
    assert all(pause > 0.07 for pause in pauses), pauses
    assert max(pauses) <= 5.0
    bench.clock.now = bench.core.next_expiry()
    bench.connect()
    bench.connect()
    bench.connect()
    assert bench.shape == Shape(idle=3)


def test_waiters_come_before_refills() -> None:
    bench = workers(1, refill=True)
    bench.warm_up('a')
    waiting = bench.wait('b')
    assert [bench.begin().key] == ['b']
    assert waiting is not None


def test_the_pool_is_ready_when_each_kept_endpoint_has_min_idle() -> None:
    bench = BackgroundBench(min_idle=2)
    assert begin_readiness(bench.pool, None, None).done()
    bench.warm_up('a', 'b', size=1)
    watch = begin_readiness(bench.pool, 3, None)
    for _ in range(2):
        bench.connect()
    assert not watch.done()
    assert watch.missing() == {'a': 1, 'b': 1}
    bench.take(bench.ask('a'))
    bench.hold('a')
    bench.hold('a')
    assert watch.missing() == {'b': 1}
    bench.clock.advance(3)
    with pytest.raises(PoolNotReadyError) as caught:
        watch.conclude()
    assert caught.value.missing == {'b': 1}


def test_the_last_error_is_the_cause_of_what_is_not_ready() -> None:
    bench = BackgroundBench(refill=True)
    bench.warm_up('a').close()
    error = OSError()
    bench.begin().failed(error)
    watch = begin_readiness(bench.pool, 0, None)
    assert not watch.done()
    with pytest.raises(PoolNotReadyError) as caught:
        watch.conclude()
    assert is_same(caught.value.__cause__, error)


def test_a_close_ends_a_warm_up() -> None:
    bench = BackgroundBench()
    watch = bench.warm_up('a')
    bench.core.close()
    assert watch.done()
    with pytest.raises(ConnectionPoolClosedError):
        watch.conclude()
    with pytest.raises(ConnectionPoolClosedError):
        bench.warm_up('a')


def test_the_record_of_a_kept_endpoint_stays() -> None:
    bench = BackgroundBench(refill=True)
    bench.warm_up('a').close()
    bench.begin().failed(OSError())
    bench.core.drain()
    assert 'a' in bench.endpoints


# --- checks ---


def kept_alive(n: int = 3, **options: Any) -> BackgroundBench:
    bench = BackgroundBench(**{'keepalive_interval': 10.0, 'idle_timeout': 1000.0, 'min_idle': 0} | options)
    bench.fill('a', n)
    return bench


def test_an_idle_connection_is_checked_after_the_interval() -> None:
    bench = kept_alive(1)
    bench.clock.advance(8.9)
    assert bench.job() is None
    bench.clock.advance(1.1)
    job = bench.begin('check_aliveness')
    assert bench.shape == Shape(idle=1)
    assert bench.core.endpoint_size('a', False) == 1
    assert bench.total['oldest_checkout'] == 0
    assert bench.job() is None
    job.completed(True)
    assert bench.shape == Shape(idle=1)
    bench.clock.advance(8.9)
    assert bench.job() is None
    bench.clock.advance(1.1)
    bench.begin('check_aliveness').completed(True)


def check_all(bench: BackgroundBench, seconds: float, takes: float) -> list[tuple[float, float]]:
    """Let one worker make the checks that are due. Returns when each began, and how long its connection was idle then.

    :param seconds: for how long
    :param takes: how long a check takes, seconds
    """
    seen = []
    end = bench.clock.now + seconds
    checked: dict[Any, float] = {}
    began = bench.clock.now
    while bench.clock.now < end:
        job = bench.job()
        if job is None:
            bench.clock.now = max(bench.core.next_expiry(), bench.clock.now + 0.001)
            continue
        seen.append((bench.clock.now, bench.clock.now - checked.get(id(job.conn), began)))
        bench.clock.advance(takes)
        checked[id(job.conn)] = bench.clock.now
        job.completed(True)
    return seen


@pytest.mark.parametrize('count', [1, 2, 10])
def test_few_connections_are_checked_in_the_last_tenth_of_the_interval(count: int) -> None:
    bench = kept_alive(count, keepalive_interval=100.0)
    seen = check_all(bench, 950.0, 0.001)
    assert len(seen) >= count * 9
    assert all(90 <= idle <= 100 for _, idle in seen)


@pytest.mark.parametrize('takes', [0.0001, 0.02, 0.03])
def test_many_connections_that_were_released_at_once_are_checked_in_time(takes: float) -> None:
    """Of 1,000 connections with checks of 30 ms and an interval of 100 s, the first is checked after about 60 s, so
    that the last is checked in time. The first round tells how long a check takes."""
    bench = kept_alive(1000, keepalive_interval=100.0, max_size=1000, total_max_size=1000, max_connecting=1)
    check_all(bench, 101.0, takes)
    bench.put(*[bench.get('a') for _ in range(1000)])
    seen = check_all(bench, 950.0, takes)
    assert len(seen) >= 9000
    assert max(idle for _, idle in seen) <= 100
    assert min(idle for _, idle in seen) >= 90 - 1000 * takes * 1.5


def test_quick_checks_are_made_by_one_worker() -> None:
    bench = kept_alive(5)
    check_all(bench, 11.0, 0.0001)
    bench.clock.advance(10.0)
    bench.wakes = 0
    while (job := bench.job()) is not None:
        bench.clock.advance(0.0001)
        job.completed(True)
    assert bench.wakes == 0


def test_slow_checks_are_made_by_several_workers() -> None:
    bench = kept_alive(5)
    check_all(bench, 11.0, 0.01)
    bench.clock.advance(10.0)
    bench.wakes = 0
    jobs = [bench.job() for _ in range(5)]
    assert all(jobs)
    assert bench.wakes == 4


def test_a_quick_check_that_hangs_does_not_hold_the_others_up() -> None:
    bench = kept_alive(5)
    check_all(bench, 11.0, 0.0001)
    bench.clock.advance(10.0)
    hanging = bench.job()
    assert hanging is not None
    assert bench.core.next_expiry() == pytest.approx(bench.clock.now + 0.2)  # another worker looks then
    bench.clock.now = bench.core.next_expiry()
    bench.core.collect(10)
    assert bench.wakes
    assert len(check_all(bench, 0.5, 0.0001)) == 4


def test_a_worker_that_rests_keeps_the_time() -> None:
    bench = kept_alive(3)
    bench.core.workers_rest = True
    woken: list[float] = []
    bench.core.wake_collector = lambda: woken.append(bench.clock.now)
    assert bench.job() is None
    when = rest(bench.core, 1000.0)
    assert 9.2 <= when - bench.clock.now <= 10
    assert rest(bench.core, 1000.0) == inf  # one is enough
    assert bench.core.next_expiry() == pytest.approx(when + 0.2)  # the collector looks after it
    end_rest(bench.core)
    assert bench.core.next_expiry() == pytest.approx(when)
    assert rest(bench.core, 1.0) == inf  # it rests no longer than that


def test_a_use_counts_as_a_check() -> None:
    bench = kept_alive(1)
    bench.clock.advance(8)
    bench.put(bench.get('a'))
    bench.clock.advance(8)
    assert bench.job() is None
    bench.clock.advance(2)
    bench.begin('check_aliveness')


def test_the_collector_is_told_when_the_next_check_is_due() -> None:
    bench = kept_alive(1)
    assert bench.clock.now + 9 <= bench.core.next_expiry() <= bench.clock.now + 10
    bench.clock.advance(10)
    wakes = bench.wakes
    bench.core.collect(10)
    assert bench.wakes > wakes


def test_a_dead_connection_is_disposed_of() -> None:
    bench = kept_alive(1)
    bench.clock.advance(10)
    bench.begin('check_aliveness').completed(False)
    assert [reason for _, reason in bench.dispose_all()] == ['dead']
    assert bench.total['hook_calls']['check_aliveness']['dead'] == 0  # a test that calls no hook
    assert bench.shape == Shape()


def test_a_check_that_raises_costs_the_connection() -> None:
    bench = kept_alive(1)
    bench.clock.advance(10)
    bench.begin('check_aliveness').failed(OSError())
    assert [reason for _, reason in bench.dispose_all()] == ['error']
    assert len(bench.reported) == 1


def test_an_acquire_that_waits_for_nothing_else_gets_it_when_the_check_ends() -> None:
    bench = kept_alive(1, max_size=1)
    bench.clock.advance(10)
    job = bench.begin('check_aliveness')
    acquire = bench.wait('a')
    job.completed(True)
    assert bench.verdict(acquire) == USE


def test_a_waiter_creates_its_connection_if_the_check_finds_it_dead() -> None:
    bench = kept_alive(1, max_size=1)
    bench.clock.advance(10)
    job = bench.begin('check_aliveness')
    acquire = bench.wait('a')
    job.completed(False)
    bench.dispose_all()
    assert bench.verdict(acquire) == CREATE


def test_no_more_checks_than_max_connecting_at_once() -> None:
    bench = kept_alive(5, max_connecting=2)
    bench.clock.advance(10)
    first, second = bench.begin('check_aliveness'), bench.begin('check_aliveness')
    assert bench.job() is None
    assert bench.core.next_expiry() > bench.clock.now  # the collector does not spin meanwhile
    first.completed(True)
    second.completed(True)
    bench.begin('check_aliveness')


def test_a_check_does_not_prolong_the_life_of_an_extra() -> None:
    bench = kept_alive(3, idle_timeout=25.0)
    for _ in range(2):
        bench.clock.advance(10)
        while (job := bench.job()) is not None:
            job.completed(True)
    assert bench.core.collect(10) == 0
    bench.clock.advance(5)
    assert bench.core.collect(10) == 3


def test_extras_keep_their_order_when_they_were_checked() -> None:
    bench = kept_alive(0, keepalive_interval=10.0)
    held = [bench.get('a') for _ in range(4)]
    for acquire in held:
        bench.put(acquire)
        bench.clock.advance(0.5)
    bench.clock.advance(10)
    jobs = []
    while (job := bench.job()) is not None:
        jobs.append(job)
    assert len(jobs) == 4
    for job in (jobs[2], jobs[0], jobs[3], jobs[1]):
        job.completed(True)
    assert [bench.hold('a').conn for _ in range(4)] == [acquire.conn for acquire in reversed(held)]
    assert bench.shape == Shape(used=4)


def test_a_base_is_checked_too() -> None:
    bench = kept_alive(1, min_idle=1)
    bench.clock.advance(10)
    bench.begin('check_aliveness').completed(True)
    assert bench.shape == Shape(idle=1)


def test_a_check_that_is_dropped_costs_the_connection() -> None:
    bench = kept_alive(1)
    bench.clock.advance(10)
    job: Job | None = bench.begin('check_aliveness')
    del job
    bench.core.drain()
    bench.dispose_all()
    assert bench.shape == Shape()
    bench.fill('a', 1)
    bench.clock.advance(10)
    bench.begin('check_aliveness')


def test_a_dead_connection_of_a_kept_endpoint_is_replaced() -> None:
    bench = BackgroundBench(keepalive_interval=10.0, refill=True)
    bench.warm_up('a').close()
    bench.connect()
    bench.clock.advance(10)
    bench.begin('check_aliveness').completed(False)
    bench.dispose_all()
    bench.connect()
    assert bench.shape == Shape(idle=1)


def test_a_close_during_a_check_disposes_of_the_connection_when_it_ends() -> None:
    bench = kept_alive(1)
    bench.clock.advance(10)
    job = bench.begin('check_aliveness')
    bench.core.close()
    job.completed(True)
    assert [reason for _, reason in bench.dispose_all()] == ['pool_closed']


# --- retiring ---


def retire(bench: BackgroundBench, endpoint: Hashable, timeout: float | None = None) -> Watch:
    return begin_retirement(bench.pool, endpoint, timeout, None)


def test_idle_connections_go_at_once_used_ones_on_return() -> None:
    bench = BackgroundBench()
    held = bench.get('a')
    bench.fill('a', 2)
    watch = retire(bench, 'a')
    assert [reason for _, reason in bench.dispose_all()] == ['retired', 'retired']
    assert not watch.done()
    bench.put(held)
    assert [reason for _, reason in bench.dispose_all()] == ['retired']
    assert watch.done()
    watch.close()
    assert bench.endpoints == {}


def test_newcomers_and_waiters_are_refused() -> None:
    bench = BackgroundBench(max_size=1)
    bench.hold('a')
    acquire = bench.wait('a')
    retire(bench, 'a')
    with pytest.raises(EndpointRetiredError) as caught:
        bench.poll(acquire)
    assert caught.value.endpoint == 'a'
    with pytest.raises(EndpointRetiredError):
        bench.ask('a')
    bench.hold('b')


def test_it_may_be_used_again_afterwards() -> None:
    bench = BackgroundBench()
    held = bench.get('a')
    watch = retire(bench, 'a')
    bench.put(held)
    bench.dispose_all()
    watch.close()
    bench.put(bench.get('a'))
    assert bench.shape == Shape(idle=1)


def test_what_is_still_held_is_taken_by_force() -> None:
    bench = BackgroundBench()
    bench.hold('a')
    watch = retire(bench, 'a', timeout=5)
    bench.clock.advance(5)
    assert not watch.done()
    assert not watch.time_to_wait()
    watch.force()
    assert [reason for _, reason in bench.dispose_all()] == ['retired']
    watch.close()
    assert bench.endpoints == {}


def test_a_creation_in_progress_is_refused_too() -> None:
    bench = BackgroundBench()
    acquire = bench.ask('a')
    watch = retire(bench, 'a')
    assert not watch.done()
    with pytest.raises(EndpointRetiredError):
        bench.created(acquire, Conn('a', 1))
    assert [reason for _, reason in bench.dispose_all()] == ['retired']
    assert watch.done()


def test_a_retired_endpoint_is_not_kept_any_more() -> None:
    bench = BackgroundBench(refill=True)
    bench.warm_up('a').close()
    bench.connect()
    watch = retire(bench, 'a')
    bench.dispose_all()
    watch.close()
    assert bench.job() is None
    assert bench.endpoints == {}
    assert begin_readiness(bench.pool, None, None).done()


def test_an_endpoint_that_is_not_there_cannot_be_retired() -> None:
    bench = BackgroundBench()
    with pytest.raises(ConnectionPoolNotFound, match="no endpoint 'a'"):
        retire(bench, 'a')


def test_its_places_serve_other_endpoints() -> None:
    bench = BackgroundBench(total_max_size=1)
    held = bench.get('a')
    acquire = bench.wait('b')
    retire(bench, 'a')
    bench.put(held)
    bench.dispose_all()
    assert bench.verdict(acquire) == CREATE
