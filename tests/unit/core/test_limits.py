"""The limits of the core, each by itself, on a clock that stands still."""

from __future__ import annotations

import pytest

from core.helpers import CREATE, USE, WAIT, Bench, Shape
from gcp import AcquireTimeoutError, EndpointLimits, TooManyWaitersError

# --- of single endpoints ---


def test_an_endpoint_with_a_cap_of_its_own_is_blocked_by_it_alone() -> None:
    made = Bench(total_max_size=6, limits={'a': EndpointLimits(max_size=1), 'b': EndpointLimits(max_size=3)})
    made.hold('a')
    made.wait('a')
    assert [made.verdict(made.keep(made.ask('b'))) for _ in range(4)] == [CREATE] * 3 + [WAIT]
    assert [made.verdict(made.keep(made.ask('c'))) for _ in range(2)] == [CREATE] * 2
    assert made.shape == Shape(0, 1, 5, 0, 2)


def test_extras_expire_by_the_limit_of_their_endpoint() -> None:
    limits = {'a': EndpointLimits(idle_timeout=30, min_idle=0), 'b': EndpointLimits(idle_timeout=10, min_idle=0)}
    made = Bench(min_idle=0, idle_timeout=20, limits=limits)
    for endpoint in 'a', 'b', 'c':
        made.fill(endpoint, 2)
    begun = made.clock.now
    assert made.core.next_expiry() == begun + 10
    for seconds, gone in (10, 'b'), (20, 'c'), (30, 'a'):
        made.clock.now = begun + seconds
        assert made.core.collect(10) == 2
        assert {name[0] for name, reason in made.dispose_all()} == {gone}
    assert made.core.next_expiry() == float('inf')


def test_an_extra_that_was_used_again_expires_later() -> None:
    made = Bench(min_idle=0, idle_timeout=20, limits={'a': EndpointLimits(idle_timeout=10)})
    held = made.get('a')
    made.put(held)
    for _ in range(3):
        made.clock.advance(8)
        made.put(made.get('a'))
    assert made.core.next_expiry() == made.clock.now + 10
    assert made.core.collect(1) == 0
    made.clock.advance(10)
    assert made.core.collect(1) == 1


def test_lifetimes_are_those_of_the_endpoint() -> None:
    made = Bench(max_lifetime=100.0, limits={'a': EndpointLimits(max_lifetime=10, idle_timeout=10)})
    made.fill('a', 1)
    made.fill('b', 1)
    assert made.core.next_expiry() == made.clock.now + 10
    made.clock.advance(10)
    assert made.core.collect(5) == 1
    assert made.dispose_all() == [('a1', 'max_lifetime')]
    assert made.core.next_expiry() == made.clock.now + 90


# --- max_uses ---


def test_a_connection_is_disposed_of_after_so_many_uses() -> None:
    made = Bench(max_uses=3)
    for _ in range(2):
        made.put(made.get('a'))
        assert made.shape == Shape(idle=1)
    made.put(made.get('a'))
    assert made.dispose_all() == [('a1', 'max_uses')]
    assert made.total['closed']['max_uses'] == 1


def test_a_waiter_gets_a_new_connection_instead_of_one_that_is_used_up() -> None:
    made = Bench(max_uses=1, max_size=1)
    held = made.get('a')
    waiter = made.wait('a')
    made.put(held)
    assert made.verdict(waiter) == WAIT
    assert made.dispose_all() == [('a1', 'max_uses')]
    assert made.verdict(waiter) == CREATE
    made.take(waiter)


def test_an_acquire_that_ends_badly_is_no_use() -> None:
    made = Bench(max_uses=2, max_size=1)
    held = made.get('a')
    waiter = made.wait('a')
    made.put(held)
    waiter.abandon(KeyboardInterrupt())  # served, and ended before it had asked
    made.put(made.get('a'))
    assert made.dispose_all() == [('a1', 'max_uses')]


# --- max_waiting ---


def refused(made: Bench, endpoint: str) -> TooManyWaitersError:
    """Ask, and be refused."""
    acquire = made.acquire(endpoint)
    with pytest.raises(TooManyWaitersError) as refusal:
        made.request(acquire)
    acquire.abandon(refusal.value)
    refusal.value.__traceback__ = None
    return refusal.value


@pytest.mark.parametrize('most', [0, 1, 3])
def test_so_many_may_wait_and_no_more(most: int) -> None:
    made = Bench(max_size=1, max_waiting=most)
    held = made.get('a')
    waiters = [made.keep(made.wait('a')) for _ in range(most)]
    error = refused(made, 'a')
    assert (error.endpoint, error.limit) == ('a', most)
    assert f"max_waiting={most} of endpoint 'a'" in str(error) and "max_size=1 of endpoint 'a'" in str(error)
    assert made.shape == Shape(used=1, waiting=most)
    assert made.total['acquires']['rejected'] == 1
    assert made.get('b').conn is not None, 'another endpoint'
    made.put(held)
    if waiters:
        assert made.verdict(waiters[0]) == USE
        made.keep(made.wait('a'))


def test_a_refused_acquire_leaves_no_record_behind() -> None:
    made = Bench(max_size=1, total_max_size=1, max_waiting=0)
    made.hold('a')
    assert 'total_max_size=1' in str(refused(made, 'b'))
    assert list(made.endpoints) == ['a']


def test_an_acquire_that_makes_room_by_an_eviction_is_not_refused() -> None:
    made = Bench(max_size=1, total_max_size=1, max_waiting=0)
    made.fill('a', 1)
    acquire = made.ask('b')
    assert made.verdict(acquire) == WAIT
    assert made.dispose_all() == [('a1', 'evicted')]
    assert made.verdict(acquire) == CREATE
    made.take(acquire)
    refused(made, 'b')


def test_an_acquire_whose_connection_is_dead_is_not_refused() -> None:
    made = Bench(max_size=1, max_waiting=0)
    made.fill('a', 1)
    acquire = made.ask('a')
    assert made.retry(acquire) == WAIT  # for the disposal
    made.dispose_all()
    assert made.verdict(acquire) == CREATE
    made.take(acquire)


def test_an_acquire_that_does_not_wait_times_out() -> None:
    made = Bench(max_size=1, max_waiting=0)
    made.hold('a')
    acquire = made.ask('a', 0)
    assert made.expire(acquire) == WAIT


def test_an_endpoint_may_have_its_own_number_of_waiters() -> None:
    made = Bench(max_size=1, max_waiting=2, limits={'a': EndpointLimits(max_waiting=0)})
    made.hold('a')
    made.hold('b')
    refused(made, 'a')
    made.keep(made.wait('b'))
    made.keep(made.wait('b'))
    assert refused(made, 'b').limit == 2


# --- admission ---


def use(made: Bench, endpoint: str, seconds: float, times: int = 1) -> None:
    """Use a connection for so long."""
    for _ in range(times):
        held = made.get(endpoint)
        made.clock.advance(seconds)
        made.put(held)


@pytest.mark.parametrize('size', [1, 4])
def test_a_wait_that_cannot_end_in_time_is_refused(size: int) -> None:
    made = Bench(max_size=size, admission='deadline', check_interval=1000.0)
    use(made, 'a', 8.0)
    for _ in range(size):
        made.hold('a')
    for ahead in range(3):
        expected = (ahead + 1) * 8.0 / size
        hopeless = made.acquire('a', expected * 0.99)
        with pytest.raises(AcquireTimeoutError) as refusal:
            made.request(hopeless)
        hopeless.abandon(refusal.value)
        assert refusal.value.phase == 'admission' and refusal.value.blocked_by == 'endpoint cap'
        assert refusal.value.waiting == ahead and refusal.value.limit == size
        assert 'refused on arrival' in str(refusal.value) and f'max_size={size}' in str(refusal.value)
        refusal.value.__traceback__ = None
        assert made.request(made.keep(made.acquire('a', expected * 1.01))) == WAIT
    assert made.total['acquires']['timeout'] == 3
    assert made.shape.waiting == 3


def test_without_a_measured_use_or_a_deadline_all_are_admitted() -> None:
    made = Bench(max_size=1, admission='deadline')
    made.hold('a')
    assert made.request(made.keep(made.acquire('a', 1e-9))) == WAIT
    use(made, 'b', 8.0)
    made.hold('b')
    assert made.request(made.keep(made.acquire('b'))) == WAIT


def test_admission_is_off_by_default() -> None:
    made = Bench(max_size=1)
    use(made, 'a', 8.0)
    made.hold('a')
    assert made.request(made.keep(made.acquire('a', 0.001))) == WAIT


# --- check_interval ---


def test_a_connection_that_was_used_lately_is_not_checked() -> None:
    made = Bench(check_interval=5.0)
    made.put(made.get('a'))
    made.clock.advance(4.9)
    acquire = made.ask('a')
    assert acquire.todo == 'done'
    made.put(acquire)
    made.clock.advance(5.0)
    acquire = made.ask('a')
    assert acquire.todo == 'check_aliveness'
    made.put(made.take(acquire))
    assert made.ask('a').todo == 'done'


def test_extras_are_judged_by_themselves() -> None:
    made = Bench(check_interval=5.0, min_idle=0)
    first, second = made.get('a'), made.get('a')
    made.put(first)
    made.clock.advance(4.0)
    made.put(second)
    made.clock.advance(3.0)
    acquires = made.ask('a'), made.ask('a')  # the most recent first
    assert [acquire.todo for acquire in acquires] == ['done', 'check_aliveness']


def test_a_connection_that_is_handed_off_was_just_used() -> None:
    for interval, todo in (5.0, 'done'), (0.0, 'check_aliveness'):
        made = Bench(check_interval=interval, max_size=1)
        held = made.get('a')
        waiter = made.wait('a')
        made.put(held)
        made.poll(waiter)
        assert waiter.todo == todo
