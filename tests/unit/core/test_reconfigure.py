"""Limits that change while a pool is in use, on a clock that stands still."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest

from core.helpers import CREATE, USE, WAIT, Bench, Shape
from core.test_background import BackgroundBench
from gcp import EndpointLimits, ErrorClass, Retry
from gcp.exceptions import AcquireTimeoutError, EndpointUnavailableError


def idle(made: Bench, endpoint: str) -> int:
    return made.of(endpoint).idle


# --- grown ---


@pytest.mark.parametrize('cap', ['max_size', 'total_max_size'])
def test_waiters_are_served_at_once_where_a_cap_has_grown(cap: str) -> None:
    made = Bench(**{cap: 1})
    made.hold('a')
    woken: list[int] = []
    waiters = [made.wait('a', lambda number=number: woken.append(number)) for number in range(3)]  # type: ignore[misc]
    made.pool.reconfigure(**{cap: 3})
    assert woken == [0, 1]
    assert [made.verdict(waiter) for waiter in waiters] == [CREATE, CREATE, WAIT]
    assert made.shape == Shape(used=1, creating=2, waiting=1)
    made.pool.reconfigure(**{cap: 4})
    assert made.verdict(waiters[2]) == CREATE


def test_an_endpoint_that_is_given_more_is_served_with_what_another_has_idle() -> None:
    made = Bench(total_max_size=2, max_size=1)
    made.fill('a', 1)
    made.hold('b')
    waiter = made.wait('b')
    made.pool.reconfigure(limits={'b': EndpointLimits(max_size=2)})
    assert made.dispose_all() == [('a1', 'evicted')]
    assert made.verdict(waiter) == CREATE


# --- shrunk ---


def test_idle_connections_beyond_a_lower_cap_go_first_extras_before_base() -> None:
    made = Bench(max_size=5, min_idle=2)
    made.fill('a', 5)
    made.fill('b', 1)
    made.pool.reconfigure(max_size=3)
    assert made.dispose_all() == [('a1', 'evicted'), ('a2', 'evicted')]
    made.pool.reconfigure(max_size=1)
    assert made.dispose_all() == [('a3', 'evicted'), ('a4', 'evicted')]
    assert (idle(made, 'a'), idle(made, 'b')) == (1, 1)


def test_used_connections_beyond_a_lower_cap_go_when_they_are_released_and_no_more_than_that() -> None:
    made = Bench(max_size=4)
    held = [made.get('a') for _ in range(4)]
    made.pool.reconfigure(max_size=2)
    assert made.shape == Shape(used=4)
    made.put(*held)
    assert made.dispose_all() == [('a1', 'evicted'), ('a2', 'evicted')]
    assert made.shape == Shape(idle=2)


def test_waiters_wait_until_fewer_are_held_than_allowed() -> None:
    made = Bench(max_size=3)
    held = [made.get('a') for _ in range(3)]
    waiter = made.wait('a')
    made.pool.reconfigure(max_size=1)
    made.put(*held[:2])
    assert made.verdict(waiter) == WAIT
    made.dispose_all()
    assert made.verdict(waiter) == WAIT
    made.put(held[2])
    assert made.verdict(waiter) == USE


def test_a_lower_total_cap_evicts_what_has_been_idle_longest() -> None:
    made = Bench(total_max_size=4, min_idle=0)
    for endpoint in 'abcd':
        made.fill(endpoint, 1)
        made.clock.advance(1)
    made.pool.reconfigure(total_max_size=2)
    assert made.dispose_all() == [('a1', 'evicted'), ('b2', 'evicted')]
    held = [made.get('c'), made.get('d')]
    made.pool.reconfigure(total_max_size=1)
    made.put(*held)
    assert made.dispose_all() == [('c3', 'evicted')]
    assert made.shape == Shape(idle=1)


def test_what_is_being_disposed_of_needs_no_other_victim() -> None:
    made = Bench(max_size=4, total_max_size=4)
    held = [made.get('a') for _ in range(4)]
    made.discard(held[0], 'discarded')
    made.discard(held[1], 'discarded')
    made.pool.reconfigure(max_size=2, total_max_size=2)
    made.put(*held[2:])
    assert made.shape == Shape(idle=2, disposing=2)
    assert {reason for _, reason in made.dispose_all()} == {'discarded'}


def test_a_reservation_grants_no_place_beyond_a_lower_cap() -> None:
    made = Bench(max_size=2, total_max_size=3)
    made.fill('a', 2)
    made.hold('b')
    waiter = made.wait('b')
    [victim] = made.victims()
    made.pool.reconfigure(limits={'b': EndpointLimits(max_size=1)})
    made.disposed(victim)
    assert (made.verdict(waiter), victim.reason) == (WAIT, 'evicted')
    assert made.shape == Shape(idle=1, used=1, waiting=1)
    assert made.verdict(made.keep(made.ask('c'))) == CREATE


def test_reservations_beyond_a_lower_cap_hold_no_waiter_up() -> None:
    made = Bench(max_size=3, total_max_size=3)
    made.fill('a', 2)
    made.hold('b')
    waiters = [made.keep(made.wait('b')) for _ in range(2)]
    made.victims()
    made.pool.reconfigure(max_size=2, total_max_size=9)
    assert [made.verdict(waiter) for waiter in waiters] == [CREATE, WAIT]


def test_raising_a_cap_again_ends_the_shrinking() -> None:
    made = Bench(max_size=4)
    held = [made.get('a') for _ in range(4)]
    made.pool.reconfigure(max_size=1)
    made.pool.reconfigure(max_size=4)
    made.put(*held)
    assert made.shape == Shape(idle=4)


# --- base and extras ---


def test_extras_become_base_and_base_becomes_extras() -> None:
    made = Bench(min_idle=1, idle_timeout=10)
    made.fill('a', 4)
    made.clock.advance(5)
    made.pool.reconfigure(min_idle=3)
    made.clock.advance(5)
    assert made.core.collect(9) == 1
    assert made.dispose_all() == [('a3', 'idle_timeout')]
    made.pool.reconfigure(min_idle=1)  # the longest idle ones have been so for too long
    assert made.dispose_all() == [('a1', 'idle_timeout'), ('a2', 'idle_timeout')]
    assert idle(made, 'a') == 1


def test_connections_keep_their_order() -> None:
    made = Bench(min_idle=0)
    made.fill('a', 3)
    made.pool.reconfigure(min_idle=3)
    assert [repr(made.hold('a').conn) for _ in range(3)] == ['a1', 'a2', 'a3']  # as base: first in, first out
    made = Bench(min_idle=3)
    made.fill('a', 3)
    made.pool.reconfigure(min_idle=0)
    assert [repr(made.hold('a').conn) for _ in range(3)] == ['a3', 'a2', 'a1']  # as extras: last in, first out


# --- times ---


def test_a_shorter_lifetime_ends_connections_now_and_a_longer_one_saves_them() -> None:
    made = Bench(max_lifetime=100.0)
    made.fill('a', 1)
    held = made.get('b')
    made.clock.advance(60)
    made.fill('c', 1)
    made.pool.reconfigure(max_lifetime=50.0)
    assert made.dispose_all() == [('a1', 'max_lifetime')]
    assert made.core.next_expiry() <= made.clock.now + 50
    made.pool.reconfigure(max_lifetime=200.0)
    made.put(held)
    assert made.shape == Shape(idle=2)
    assert made.core.next_expiry() == made.clock.now + 140


def test_the_jitter_of_a_connection_stays_in_proportion() -> None:
    made = Bench(max_lifetime=100.0, lifetime_jitter=0.5)
    made.fill('a', 1)
    first = made.core.next_expiry() - made.clock.now
    assert 50 <= first <= 100
    made.pool.reconfigure(max_lifetime=200.0)
    assert made.core.next_expiry() - made.clock.now == pytest.approx(2 * first)
    made.pool.reconfigure(lifetime_jitter=0.0)
    assert made.core.next_expiry() - made.clock.now == 200


def test_a_shorter_idle_timeout_ends_extras_now() -> None:
    made = Bench(min_idle=0, idle_timeout=60.0)
    made.fill('a', 2)
    made.clock.advance(10)
    made.put(made.get('a'))
    made.pool.reconfigure(idle_timeout=5.0)
    assert made.dispose_all() == [('a1', 'idle_timeout')]
    assert made.core.next_expiry() == made.clock.now + 5


def test_the_collector_is_woken() -> None:
    woken: list[int] = []
    made = Bench(min_idle=0, idle_timeout=60.0)
    made.core.wake_collector = lambda: woken.append(1)
    made.fill('a', 1)
    made.core.next_expiry()
    woken.clear()
    made.pool.reconfigure(idle_timeout=30.0)
    assert woken


def test_idle_connections_that_were_used_too_often_go() -> None:
    made = Bench()
    for _ in range(3):
        made.put(made.get('a'))
    made.fill('b', 1)
    made.pool.reconfigure(max_uses=3)
    assert made.dispose_all() == [('a1', 'max_uses')]


def test_leaks_are_counted_by_the_new_threshold() -> None:
    made = Bench()
    made.hold('a')
    made.clock.advance(10)
    assert made.total['leaks'] == 0
    made.pool.reconfigure(leak_threshold=5.0)
    assert made.total['leaks'] == 1


# --- what is done in the background ---


def test_checks_are_due_by_the_new_interval() -> None:
    made = BackgroundBench()
    made.fill('a', 2)
    made.clock.advance(20)
    assert made.job() is None
    made.pool.reconfigure(keepalive_interval=30.0)
    assert made.job() is None
    made.clock.advance(10)
    assert made.core.next_expiry() <= made.clock.now
    for _ in range(2):
        made.begin('check_aliveness').completed(True)
    made.clock.advance(5)
    made.pool.reconfigure(keepalive_interval=5.0)
    made.begin('check_aliveness').completed(True)
    made.pool.reconfigure(keepalive_interval=float('inf'))
    made.clock.advance(1000)
    assert made.job() is None


def test_kept_endpoints_are_filled_up_to_a_larger_base() -> None:
    made = BackgroundBench(refill=True, max_size=5)
    made.warm_up('a').close()
    made.connect()
    assert made.job() is None
    wakes = made.wakes
    made.pool.reconfigure(min_idle=3)
    assert made.wakes > wakes
    made.connect()
    made.connect()
    assert made.job() is None
    assert made.shape == Shape(idle=3)
    made.pool.reconfigure(refill=False, min_idle=5)
    assert made.job() is None


def test_a_warm_up_ends_at_a_lower_cap() -> None:
    made = BackgroundBench(max_size=4)
    watch = made.warm_up('a', size=4)
    made.connect()
    made.pool.reconfigure(max_size=2)
    made.connect()
    assert made.job() is None
    assert watch.done()
    watch.close()


def test_acquires_that_wait_are_served_with_fewer_and_with_more_workers() -> None:
    made = BackgroundBench(connect_workers=1)
    waiters = [made.wait('a') for _ in range(4)]
    first = made.begin()
    assert made.job() is None
    made.pool.reconfigure(connect_workers=2)
    second = made.begin()
    assert made.job() is None
    made.pool.reconfigure(connect_workers=0)
    others = made.begin(), made.begin()
    for job in first, second, *others:
        made.connect(job)
    assert [made.verdict(waiter) for waiter in waiters] == [USE] * 4
    assert made.verdict(made.ask('b')) == CREATE


def test_more_connects_may_be_made_at_once() -> None:
    made = Bench(max_connecting=1)
    acquires = [made.keep(made.ask('a')) for _ in range(3)]
    assert [made.verdict(acquire) for acquire in acquires] == [CREATE, WAIT, WAIT]
    made.pool.reconfigure(max_connecting=2)
    assert [made.verdict(acquire) for acquire in acquires] == [CREATE, CREATE, WAIT]
    made.pool.reconfigure(max_connecting=None)
    assert made.verdict(acquires[2]) == CREATE


def test_what_has_expired_for_good_does_not_live_on() -> None:
    made = Bench(classify=lambda endpoint, error: ErrorClass.STALE)
    held = made.get('a')
    made.failed(made.ask('a'), OSError())  # it says that what was opened before is stale
    made.pool.reconfigure(max_lifetime=1e6)
    made.put(held)
    assert made.dispose_all() == [('a1', 'expired')]


# --- limits of endpoints ---


def test_endpoints_are_asked_again() -> None:
    limits = {'a': EndpointLimits(max_size=2)}
    made = Bench(max_size=5, limits=lambda endpoint: limits.get(endpoint))
    held = [made.get('a') for _ in range(2)]
    limits['a'] = EndpointLimits(max_size=1, min_idle=0, idle_timeout=7, max_lifetime=70, max_waiting=3)
    made.pool.reconfigure(max_size=4)
    assert made.endpoints['a']['limits'] == (1, 0, 7.0, 70.0, 3, 1.0, 0, None)
    made.put(*held)
    assert made.dispose_all() == [('a1', 'evicted')]
    made.pool.reconfigure(limits=None)
    assert made.endpoints['a']['limits'] == (4, 1, 60.0, 3600.0, None, 1.0, 0, None)


def test_an_endpoint_that_is_gone_leaves_no_trace() -> None:
    made = Bench(max_size=3)
    held = [made.get('a') for _ in range(3)]
    made.pool.reconfigure(max_size=1)
    for each in held:
        made.discard(each, 'discarded')
    made.dispose_all()
    assert made.endpoints == {}
    made.fill('a', 1)
    assert made.shape == Shape(idle=1)


# --- at random ---


@pytest.mark.parametrize('seed', range(20))
def test_up_and_down_at_random(seed: int) -> None:
    """Caps are exact, no acquire waits while there is room, and nothing is closed that need not be."""
    random_ = random.Random(seed)
    made = Bench(max_size=3, total_max_size=6, min_idle=1)
    caps = {'max_size': 3, 'total_max_size': 6}
    held: list[Any] = []
    waiting: list[Any] = []
    closed_before = 0
    for _ in range(600):
        allowed = 0  # connections that may be closed by what happens now
        kind = random_.random()
        if kind < 0.4:
            acquire = made.ask(random_.choice('abc'))
            (waiting if made.verdict(acquire) == WAIT else held).append(acquire)
            allowed = 1  # an eviction
        elif kind < 0.75 and held:
            one = held.pop(random_.randrange(len(held)))
            made.put(made.take(one) if one.todo != 'done' else one)
            allowed = 1
        elif kind < 0.95:
            live = sum(made.shape[:3])
            sizes = {name: each['idle'] + each['used'] + each['creating'] for name, each in made.endpoints.items()}
            caps = {'max_size': random_.randint(1, 5), 'total_max_size': random_.randint(1, 9)}
            made.pool.reconfigure(**caps, min_idle=random_.randint(0, 3))
            within = sum(min(size, caps['max_size']) for size in sizes.values())
            allowed = max(live - within, live - caps['total_max_size'], live - min(within, caps['total_max_size']), 0)
            allowed += made.shape.waiting + len(waiting)  # evictions for those that wait
        if random_.random() < 0.7:
            made.dispose_all()
        served = [one for one in waiting if made.verdict(one) != WAIT]
        waiting = [one for one in waiting if one not in served]
        held += served
        closed = sum(made.total['closed'].values())
        assert closed - closed_before <= max(allowed, len(served) + 2)
        closed_before = closed
        check(made, caps)
    made.pool.reconfigure(max_size=100, total_max_size=1000)
    made.dispose_all()
    assert made.shape.waiting == 0


def check(made: Bench, caps: dict[str, int]) -> None:
    """Check that no connection is idle beyond a cap, and that none waits while there is room."""
    shape = made.shape
    live = shape.idle + shape.used + shape.creating
    assert live <= caps['total_max_size'] or not shape.idle
    for name, each in made.endpoints.items():
        taken = each['idle'] + each['used'] + each['creating'] + each['disposing']
        assert taken - each['disposing'] <= caps['max_size'] or not each['idle']
        if each['waiting']:
            assert not each['idle'], name
            assert taken >= caps['max_size'] or made.core.size >= caps['total_max_size'], name


# --- endpoints whose connects fail ---


def failing(failures: int, **options: Any) -> Bench:
    """Make a bench with an endpoint of which so many connects have failed, the last one now."""
    bench = Bench(**options)
    for _ in range(failures):
        if bench.endpoints:
            bench.clock.advance(bench.endpoints['a']['retry_delay'])
        acquire = bench.ask('a')
        assert acquire.todo == CREATE
        with contextlib.suppress(Refused, EndpointUnavailableError):
            acquire.failed(Refused('down'))
        acquire.abandon(AcquireTimeoutError())
    return bench


def breaker(bench: Bench) -> tuple[str, float]:
    found = bench.endpoints.get('a', {})  # without failures it is forgotten
    return found.get('breaker', 'closed'), found.get('retry_delay', 0.0)


RETRY = Retry(initial=4.0, maximum=64.0, factor=2.0, jitter=0.0)


@pytest.mark.parametrize('threshold', [4, None])
def test_a_breaker_closes_at_once_when_its_threshold_is_raised_or_removed(threshold: int | None) -> None:
    bench = failing(3, breaker_threshold=3)
    assert breaker(bench)[0] == 'open'
    bench.pool.reconfigure(breaker_threshold=threshold)
    assert breaker(bench) == ('closed', 0.0)
    assert bench.verdict(bench.ask('a')) == CREATE


def test_with_retries_the_delay_goes_on_when_the_breaker_closes() -> None:
    bench = failing(3, breaker_threshold=3, connect_retry=RETRY)
    assert breaker(bench) == ('open', 16.0)
    bench.pool.reconfigure(breaker_threshold=9)
    assert breaker(bench) == ('closed', 16.0)
    waiter = bench.wait('a')
    bench.pool.reconfigure(connect_retry=None)
    assert bench.verdict(waiter) == CREATE


def test_a_breaker_opens_at_once_when_its_threshold_is_lowered() -> None:
    bench = failing(2, breaker_threshold=3, connect_retry=RETRY)
    woken: list[int] = []
    waiter = bench.wait('a', lambda: woken.append(1))
    bench.pool.reconfigure(breaker_threshold=2)
    assert breaker(bench) == ('open', 8.0)
    assert woken == [1]
    with pytest.raises(EndpointUnavailableError) as caught:
        bench.poll(waiter)
    assert str(caught.value.__cause__) == 'down'
    waiter.abandon(caught.value)


def test_one_that_a_permanent_error_has_opened_stays_open() -> None:
    bench = Bench(breaker_threshold=2, classify=lambda endpoint, error: ErrorClass.PERMANENT)
    acquire = bench.ask('a')
    with contextlib.suppress(Refused):
        acquire.failed(Refused())
    acquire.abandon(Refused())
    bench.pool.reconfigure(breaker_threshold=None)
    assert breaker(bench)[0] == 'open'


@pytest.mark.parametrize('retry', [Retry(1.0, 64.0, 2.0, 0.0), Retry(4.0, 4.0, 2.0, 0.0), Retry(4.0, 64.0, 1.0, 0.0)])
def test_a_shorter_retry_delay_holds_from_the_last_failure_on(retry: Retry) -> None:
    bench = failing(3, connect_retry=RETRY)
    woken: list[int] = []
    waiter = bench.wait('a', lambda: woken.append(1))
    bench.clock.advance(1.0)
    bench.pool.reconfigure(connect_retry=retry)
    assert breaker(bench) == ('closed', 3.0)
    assert woken == [1]  # it looks how long it has to wait now
    assert bench.poll(waiter) == WAIT
    assert waiter.time_to_wait() == 3.0
    bench.clock.advance(3.0)
    assert bench.expire(waiter) == CREATE


def test_a_delay_that_is_over_by_the_new_settings_ends_at_once() -> None:
    bench = failing(3, connect_retry=RETRY)
    waiter = bench.wait('a')
    bench.clock.advance(2.0)
    bench.pool.reconfigure(connect_retry=Retry(0.5, 2.0, 2.0, 0.0))
    assert bench.verdict(waiter) == CREATE


def test_a_longer_delay_holds_from_the_last_failure_on() -> None:
    bench = failing(2, connect_retry=RETRY)
    bench.pool.reconfigure(connect_retry=Retry(10.0, 64.0, 2.0, 0.0))
    assert breaker(bench) == ('closed', 20.0)


def test_the_delay_of_a_refill_follows_too() -> None:
    bench = BackgroundBench(refill=True, min_idle=1, connect_retry=RETRY)
    bench.warm_up('a')
    for _ in range(3):
        bench.clock.advance(100.0)
        bench.begin().failed(Refused())
    assert bench.core.next_expiry() == bench.clock.now + 16.0
    bench.pool.reconfigure(connect_retry=Retry(1.0, 2.0, 2.0, 0.0))
    assert bench.core.next_expiry() == bench.clock.now + 2.0


def test_more_connects_at_a_time_serve_those_that_waited_for_the_limit() -> None:
    bench = Bench(max_connecting=1)
    acquires = [bench.ask('a') for _ in range(3)]
    assert [acquire.todo for acquire in acquires] == [CREATE, WAIT, WAIT]
    bench.pool.reconfigure(max_connecting=2)
    assert [bench.verdict(acquire) for acquire in acquires] == [CREATE, CREATE, WAIT]
    bench.pool.reconfigure(max_connecting=None)
    assert bench.verdict(acquires[2]) == CREATE


class Refused(Exception):
    """A connect that may be tried again."""
