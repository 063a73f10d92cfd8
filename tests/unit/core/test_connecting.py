"""Guarantees 4 and 18 (docs/guarantees.md): connects that wait for others, that fail, that are tried again: one rule at
a time, with an injected clock, without threads and sleeps."""

from __future__ import annotations

import os
import weakref
from typing import Any

import pytest
from gil import collect, is_same

from core.helpers import CREATE, SHUT, USE, WAIT, Bench, Conn, Shape
from gcp import Retry
from gcp._core import Acquire
from gcp.exceptions import AcquireTimeoutError, EndpointUnavailableError, ErrorClass

RETRY = Retry(initial=1.0, maximum=5.0, factor=2.0, jitter=0.0)


class Refused(Exception):
    """A connect that may be tried again."""


class WrongPassword(Exception):
    """A connect that may not."""


def classify(endpoint: object, error: BaseException) -> ErrorClass:
    """Tell the errors of these tests apart."""
    return ErrorClass.PERMANENT if isinstance(error, WrongPassword) else ErrorClass.TRANSIENT


def fail(bench: Bench, acquire: Acquire, error: BaseException) -> str:
    """Let the connect of an acquire fail, which is to be tried again. Returns its verdict."""
    assert acquire.todo == CREATE
    return bench.tell(acquire, lambda: acquire.failed(error))


def end(bench: Bench, acquire: Acquire, error: BaseException) -> None:
    """End an acquire that has failed, as a driver does."""
    acquire.abandon(error)


def refused(bench: Bench, endpoint: str = 'a') -> EndpointUnavailableError:
    """Acquire, and be refused at once."""
    acquire = bench.acquire(endpoint)
    with pytest.raises(EndpointUnavailableError) as caught:
        bench.request(acquire)
    end(bench, acquire, caught.value)
    return caught.value


def told(bench: Bench, acquire: Acquire) -> BaseException:
    """Return the error that a waiter is told."""
    with pytest.raises(Exception) as caught:  # which one, the test says
        bench.poll(acquire)
    end(bench, acquire, caught.value)
    return caught.value


def of(bench: Bench, endpoint: str = 'a') -> dict[str, Any]:
    return bench.endpoints[endpoint]


# --- how many connects at a time ---


def test_an_endpoint_makes_so_many_connects_at_a_time() -> None:
    bench = Bench(max_connecting=2)
    acquires = [bench.ask('a') for _ in range(4)]
    assert [acquire.todo for acquire in acquires] == [CREATE, CREATE, WAIT, WAIT]
    assert bench.of('a') == Shape(creating=2, waiting=2)
    assert bench.ask('b').todo == CREATE  # another endpoint has its own limit


def test_the_end_of_a_connect_serves_the_next_waiter() -> None:
    bench = Bench(max_connecting=1)
    first, second, third = (bench.ask('a') for _ in range(3))
    bench.take(first)
    assert bench.poll(second) == CREATE
    assert bench.poll(third) == WAIT


@pytest.mark.parametrize('how', ['failed', 'cancelled', 'dropped'])
def test_a_connect_that_ends_badly_serves_the_next_waiter(how: str) -> None:
    bench = Bench(max_connecting=1)
    first, second = bench.ask('a'), bench.ask('a')
    if how == 'failed':
        bench.failed(first)
    elif how == 'cancelled':
        first.abandon(KeyboardInterrupt())
    else:
        del first
        bench.core.drain()
    assert bench.poll(second) == CREATE


def test_a_waiter_for_a_connect_is_served_by_a_release() -> None:
    bench = Bench(max_connecting=1)
    held = bench.get('a')
    connecting, waiting = bench.ask('a'), bench.ask('a')
    bench.put(held)
    assert bench.poll(waiting) == USE
    assert connecting.todo == CREATE


def test_all_endpoints_make_so_many_connects_at_a_time() -> None:
    bench = Bench(max_connecting_total=2)
    a, b, c, d = (bench.ask(endpoint) for endpoint in 'abcd')
    assert [acquire.todo for acquire in (a, b, c, d)] == [CREATE, CREATE, WAIT, WAIT]
    bench.take(b)
    assert (bench.poll(c), bench.poll(d)) == (CREATE, WAIT)
    bench.failed(a)
    assert bench.poll(d) == CREATE


def test_an_eviction_counts_as_a_connect() -> None:
    """A place that is reserved is taken by a connect: no more are reserved than may connect."""
    bench = Bench(max_connecting=1, total_max_size=2)
    bench.fill('b', 2)
    waiters = [bench.ask('a'), bench.ask('a')]
    assert bench.shape == Shape(idle=1, disposing=1, waiting=2)
    bench.dispose_all()
    assert [bench.poll(waiter) for waiter in waiters] == [CREATE, WAIT]
    assert bench.shape == Shape(idle=1, creating=1, waiting=1)


def test_nothing_is_evicted_while_all_connects_are_taken() -> None:
    bench = Bench(max_connecting_total=1, total_max_size=2)
    held = bench.get('b')
    first = bench.ask('c')
    waiter = bench.ask('a')
    bench.put(held)
    assert bench.shape == Shape(idle=1, creating=1, waiting=1)
    bench.failed(first)
    assert bench.poll(waiter) == CREATE
    assert bench.shape == Shape(idle=1, creating=1)


def test_an_error_says_that_the_limit_of_connects_was_in_the_way() -> None:
    bench = Bench(max_connecting=1)
    kept = bench.ask('db')
    waiting = bench.ask('db', 5.0)
    bench.clock.advance(5.0)
    with pytest.raises(AcquireTimeoutError, match="max_connecting=1 of endpoint 'db'") as caught:
        waiting.completed(False)
    assert caught.value.blocked_by == 'connect limit'
    assert kept.todo == CREATE


def test_an_error_says_that_the_limit_of_all_connects_was_in_the_way() -> None:
    bench = Bench(max_connecting_total=1)
    kept = bench.ask('other')
    waiting = bench.ask('db', 5.0)
    bench.clock.advance(5.0)
    with pytest.raises(AcquireTimeoutError, match='max_connecting_total=1') as caught:
        waiting.completed(False)
    assert caught.value.blocked_by == 'total connect limit'
    assert kept.todo == CREATE


# --- how long a connect may take ---


def test_a_connect_has_its_own_limit_beside_the_deadline() -> None:
    bench = Bench(connect_timeout=2.0)
    assert bench.ask('a').remaining() == 2.0
    assert bench.ask('a', 1.5).remaining() == 1.5
    assert bench.ask('a', 7.0).remaining() == 2.0
    bench.fill('b', 1)
    assert bench.ask('b', 7.0).remaining() == 7.0  # a check


# --- trying again ---


def test_without_retries_a_failed_connect_is_the_error_of_its_acquire() -> None:
    bench = Bench()
    acquire = bench.ask('a')
    with pytest.raises(Refused):
        acquire.failed(Refused())
    assert bench.ask('a').todo == CREATE


def test_a_failed_connect_is_tried_again_after_a_delay() -> None:
    bench = Bench(connect_retry=RETRY)
    acquire = bench.ask('a', 60.0)
    assert fail(bench, acquire, Refused()) == WAIT
    assert acquire.time_to_wait() == 1.0
    bench.clock.advance(1.0)
    assert bench.expire(acquire) == CREATE
    bench.take(acquire)
    assert bench.total['acquires']['waited'] == 1


def test_delays_grow_up_to_a_maximum() -> None:
    bench = Bench(connect_retry=RETRY)
    acquire = bench.ask('a', 60.0)
    delays = []
    for _ in range(5):
        assert fail(bench, acquire, Refused()) == WAIT
        delays.append(acquire.time_to_wait())
        bench.clock.advance(delays[-1])
        assert bench.expire(acquire) == CREATE
    assert delays == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_jitter_takes_a_part_off() -> None:
    delays = []
    for _ in range(50):
        bench = Bench(connect_retry=Retry(1.0, 5.0, 2.0, 0.5))
        acquire = bench.ask('a', 60.0)
        fail(bench, acquire, Refused())
        delays.append(acquire.time_to_wait())
        end(bench, acquire, KeyboardInterrupt())
    assert 0.5 <= min(delays) < 0.7 < 0.8 < max(delays) <= 1.0


def test_one_delay_and_one_attempt_serve_all_waiters_of_an_endpoint() -> None:
    bench = Bench(connect_retry=RETRY, max_connecting=2)
    acquires = [bench.ask('a', 60.0) for _ in range(4)]
    assert [fail(bench, acquire, Refused()) for acquire in acquires[:2]] == [WAIT, WAIT]
    assert [bench.poll(acquire) for acquire in acquires] == [WAIT] * 4
    assert of(bench)['failures'] == 2
    assert min(acquire.time_to_wait() for acquire in acquires) == 1.0
    bench.clock.advance(1.0)
    assert bench.expire(acquires[0]) == CREATE
    assert [bench.poll(acquire) for acquire in acquires[1:]] == [WAIT] * 3


def test_no_connect_begins_before_it_is_due() -> None:
    bench = Bench(connect_retry=RETRY)
    acquire = bench.ask('a', 60.0)
    fail(bench, acquire, Refused())
    late = bench.ask('a', 60.0)
    assert late.todo == WAIT
    bench.clock.advance(1.0)
    later = bench.ask('a', 60.0)  # the oldest goes first
    assert bench.poll(acquire) == CREATE
    assert (bench.poll(late), bench.poll(later)) == (WAIT, WAIT)


def test_one_that_failed_keeps_its_place() -> None:
    bench = Bench(connect_retry=RETRY, max_connecting=1)
    first, second = bench.ask('a', 60.0), bench.ask('a', 60.0)
    fail(bench, first, Refused())
    assert first.ahead == 0
    bench.clock.advance(1.0)
    assert bench.expire(first) == CREATE
    assert bench.poll(second) == WAIT


def test_the_first_success_lets_all_connect() -> None:
    bench = Bench(connect_retry=RETRY, max_connecting=2)
    acquires = [bench.ask('a', 60.0) for _ in range(4)]
    fail(bench, acquires[0], Refused())
    fail(bench, acquires[1], Refused())
    assert bench.poll(acquires[0]) == WAIT
    bench.clock.advance(1.0)
    assert bench.expire(acquires[0]) == CREATE
    bench.take(acquires[0])
    assert [bench.poll(acquire) for acquire in acquires[1:]] == [CREATE, CREATE, WAIT]
    fail(bench, acquires[1], Refused())
    fail(bench, acquires[2], Refused())
    assert bench.poll(acquires[1]) == WAIT
    assert acquires[1].time_to_wait() == 1.0  # a new schedule


def test_a_release_serves_one_that_waits_for_its_next_connect() -> None:
    bench = Bench(connect_retry=RETRY)
    held = bench.get('a')
    acquire = bench.ask('a', 60.0)
    fail(bench, acquire, Refused())
    bench.put(held)
    assert bench.poll(acquire) == USE


def test_other_endpoints_are_untouched() -> None:
    bench = Bench(connect_retry=RETRY)
    acquire = bench.ask('a', 60.0)
    fail(bench, acquire, Refused())
    assert bench.ask('b').todo == CREATE


def test_at_the_deadline_the_last_error_is_the_cause() -> None:
    bench = Bench(connect_retry=RETRY)
    acquire = bench.ask('db', 1.5)
    fail(bench, acquire, Refused('first'))
    bench.clock.advance(1.0)
    assert bench.expire(acquire) == CREATE
    fail(bench, acquire, Refused('last'))
    assert acquire.time_to_wait() == 0.5
    bench.clock.advance(0.5)
    with pytest.raises(AcquireTimeoutError, match="retry delay of endpoint 'db'.*2 connects.*last") as caught:
        acquire.completed(False)
    assert str(caught.value.__cause__) == 'last'
    assert caught.value.blocked_by == 'retry delay'
    end(bench, acquire, caught.value)
    assert bench.shape == Shape()


def test_a_connect_that_fails_after_the_deadline_is_not_tried_again() -> None:
    bench = Bench(connect_retry=RETRY)
    acquire = bench.ask('a', 1.0)
    bench.clock.advance(1.0)
    with pytest.raises(AcquireTimeoutError) as caught:
        acquire.failed(Refused())
    assert isinstance(caught.value.__cause__, Refused)
    assert bench.shape == Shape()


def test_an_acquire_that_is_not_to_wait_does_not_try_again() -> None:
    bench = Bench(connect_retry=RETRY)
    acquire = bench.ask('a', 0.0)
    with pytest.raises(Refused):
        acquire.failed(Refused())


def test_without_a_deadline_it_is_tried_for_ever() -> None:
    bench = Bench(connect_retry=RETRY)
    acquire = bench.ask('a')
    for _ in range(50):
        assert fail(bench, acquire, Refused()) == WAIT
        bench.clock.advance(acquire.time_to_wait())
        assert bench.expire(acquire) == CREATE
    bench.take(acquire)


def test_what_makes_no_sense_is_not_tried_again() -> None:
    bench = Bench(connect_retry=RETRY)
    acquire = bench.ask('a')
    with pytest.raises(TypeError, match='returned None'):
        acquire.completed(None)
    assert bench.ask('a').todo == CREATE


def test_a_connect_that_was_cancelled_is_no_failure() -> None:
    bench = Bench(connect_retry=RETRY)
    acquire = bench.ask('a')
    with pytest.raises(KeyboardInterrupt):
        acquire.failed(KeyboardInterrupt())
    assert bench.ask('a').todo == CREATE


# --- who keeps the time ---


def test_a_waiter_that_slept_without_a_limit_learns_of_the_delay() -> None:
    """The one whose connect failed is cancelled: another one must look when the next connect is due."""
    bench = Bench(connect_retry=RETRY, max_connecting=1)
    woken: list[str] = []
    first = bench.ask('a')
    second = bench.wait('a', lambda: woken.append('second'))
    third = bench.wait('a', lambda: woken.append('third'))
    fail(bench, first, Refused())
    assert first.time_to_wait() == 1.0
    end(bench, first, KeyboardInterrupt())
    assert woken == ['second']
    assert bench.poll(second) == WAIT
    assert second.time_to_wait() == 1.0
    assert third.todo == WAIT
    end(bench, second, KeyboardInterrupt())
    assert woken == ['second', 'third']
    assert bench.poll(third) == WAIT
    bench.clock.advance(1.0)
    assert bench.expire(third) == CREATE


def test_a_delay_that_passed_before_the_wait_began_serves_at_once() -> None:
    bench = Bench(connect_retry=RETRY, max_connecting=1)
    first = bench.ask('a')
    second = bench.wait('a', lambda: None)
    fail(bench, first, Refused())
    end(bench, first, KeyboardInterrupt())
    bench.clock.advance(2.0)
    assert bench.poll(second) == CREATE


def test_a_permit_that_was_dropped_is_found_by_the_next_waiter() -> None:
    bench = Bench(connect_retry=RETRY, max_connecting=1)
    woken: list[str] = []
    first = bench.ask('a')
    second = bench.wait('a', lambda: woken.append('second'))
    fail(bench, first, Refused())
    bench.clock.advance(1.0)
    assert bench.expire(first) == CREATE
    del first
    bench.core.drain()
    assert bench.poll(second) == CREATE


# --- the breaker ---


def broken(bench: Bench, count: int = 3) -> None:
    """Let so many connects of endpoint a fail, one after the other."""
    for _ in range(count):
        acquire = bench.ask('a')
        with pytest.raises(Refused):
            acquire.failed(Refused('down'))
        end(bench, acquire, Refused())


def test_after_so_many_failures_newcomers_are_refused() -> None:
    bench = Bench(breaker_threshold=3)
    broken(bench, 2)
    assert of(bench)['breaker'] == 'closed'
    broken(bench, 1)
    assert of(bench)['breaker'] == 'open'
    error = refused(bench)
    assert isinstance(error.__cause__, Refused)
    assert (error.endpoint, error.phase) == ('a', 'admission')
    assert 1000.0 < error.retry_at <= 1000.1  # as Retry() says
    assert 'down' in str(error)
    assert bench.total['acquires']['rejected'] == 1
    assert bench.ask('b').todo == CREATE


def test_failures_must_come_in_a_row() -> None:
    bench = Bench(breaker_threshold=3)
    broken(bench, 2)
    bench.hold('a')
    broken(bench, 2)
    assert bench.ask('a').todo == CREATE


def test_waiters_are_refused_when_the_breaker_opens() -> None:
    bench = Bench(breaker_threshold=1, max_connecting=1)
    woken: list[int] = []
    first = bench.ask('a')
    waiters = [bench.wait('a', lambda number=number: woken.append(number)) for number in range(3)]
    error = Refused()
    with pytest.raises(Refused):
        first.failed(error)
    assert woken == [0, 1, 2]
    for waiter in waiters:
        unavailable = told(bench, waiter)
        assert isinstance(unavailable, EndpointUnavailableError)
        assert is_same(unavailable.__cause__, error)
        assert unavailable.phase == 'waiting'
    assert bench.shape == Shape()


def test_with_retries_the_one_that_failed_is_refused_as_well() -> None:
    bench = Bench(breaker_threshold=2, connect_retry=RETRY)
    acquire = bench.ask('a')
    assert fail(bench, acquire, Refused()) == WAIT
    bench.clock.advance(1.0)
    assert bench.expire(acquire) == CREATE
    error = Refused()
    with pytest.raises(EndpointUnavailableError) as caught:
        acquire.failed(error)
    assert is_same(caught.value.__cause__, error)
    assert (caught.value.phase, caught.value.retry_at) == ('waiting', 1003.0)


def test_one_probe_per_delay() -> None:
    bench = Bench(breaker_threshold=1, connect_retry=RETRY)
    first = bench.ask('a')
    with pytest.raises(EndpointUnavailableError):
        first.failed(Refused())
    bench.clock.advance(0.9)
    refused(bench)
    bench.clock.advance(0.1)
    probe = bench.ask('a')
    assert probe.todo == CREATE
    assert of(bench)['breaker'] == 'half_open'
    refused(bench)
    with pytest.raises(EndpointUnavailableError):
        probe.failed(Refused())
    assert of(bench)['breaker'] == 'open'
    bench.clock.advance(1.9)
    refused(bench)
    bench.clock.advance(0.1)
    assert bench.ask('a').todo == CREATE


def test_the_first_success_closes_the_breaker() -> None:
    bench = Bench(breaker_threshold=1)
    broken(bench, 1)
    bench.clock.advance(1.0)
    bench.hold('a')
    assert of(bench)['breaker'] == 'closed'
    assert [bench.ask('a').todo for _ in range(3)] == [CREATE] * 3


def test_a_probe_that_was_cancelled_is_followed_by_another() -> None:
    bench = Bench(breaker_threshold=1)
    broken(bench, 1)
    bench.clock.advance(1.0)
    probe = bench.ask('a')
    end(bench, probe, KeyboardInterrupt())
    assert of(bench)['breaker'] == 'open'
    assert bench.ask('a').todo == CREATE


def test_idle_connections_are_handed_out_while_the_breaker_is_open() -> None:
    bench = Bench(breaker_threshold=1)
    held = [bench.get('a') for _ in range(2)]
    connecting = bench.ask('a')
    with pytest.raises(Refused):
        connecting.failed(Refused())
    conns = {acquire.conn for acquire in held}
    bench.put(*held)
    again = [bench.get('a') for _ in range(2)]
    assert {acquire.conn for acquire in again} == conns
    refused(bench)


def test_a_probe_may_wait_for_a_place() -> None:
    bench = Bench(breaker_threshold=1, total_max_size=1)
    broken(bench, 1)
    held = bench.get('b')
    bench.clock.advance(1.0)
    probe = bench.ask('a')
    assert probe.todo == WAIT
    refused(bench)
    bench.put(held)
    bench.dispose_all()
    assert bench.poll(probe) == CREATE


def test_failures_are_forgotten_after_a_while() -> None:
    bench = Bench(breaker_threshold=1)
    for endpoint in range(100):
        acquire = bench.ask(endpoint)
        with pytest.raises(Refused):
            acquire.failed(Refused())
        end(bench, acquire, Refused())
    assert len(bench.endpoints) == 100
    bench.clock.advance(61.0)
    bench.core.collect(1)
    assert not bench.endpoints


# --- errors that stay ---


def test_a_permanent_error_reaches_all_that_wait_for_it() -> None:
    bench = Bench(classify=classify, connect_retry=RETRY, max_connecting=1)
    first = bench.ask('a')
    waiters = [bench.ask('a') for _ in range(3)]
    error = WrongPassword()
    with pytest.raises(WrongPassword):
        first.failed(error)
    end(bench, first, error)
    assert all(is_same(told(bench, waiter), error) for waiter in waiters)
    unavailable = refused(bench)
    assert is_same(unavailable.__cause__, error)
    assert bench.total['acquires']['error'] == 4
    assert of(bench)['connect_failures'] == {'transient': 0, 'permanent': 1}


def test_connects_in_progress_end_by_themselves() -> None:
    bench = Bench(classify=classify, connect_retry=RETRY)
    first, second, third = (bench.ask('a') for _ in range(3))
    with pytest.raises(WrongPassword):
        first.failed(WrongPassword())
    with pytest.raises(EndpointUnavailableError):
        third.failed(Refused())
    bench.take(second)
    assert of(bench)['breaker'] == 'closed'


def test_a_probe_may_find_a_permanent_error_mended() -> None:
    bench = Bench(classify=classify)
    first = bench.ask('a')
    with pytest.raises(WrongPassword):
        first.failed(WrongPassword())
    refused(bench)
    bench.clock.advance(1.0)
    bench.hold('a')
    assert bench.ask('a').todo == CREATE


@pytest.mark.parametrize('answer', [ErrorClass.BROKEN, ErrorClass.HARMLESS, ErrorClass.STALE, ErrorClass.TRANSIENT])
def test_other_classes_of_a_connect_count_as_transient(answer: ErrorClass) -> None:
    bench = Bench(classify=lambda endpoint, error: answer, connect_retry=RETRY)
    assert fail(bench, bench.ask('a'), Refused()) == WAIT
    assert of(bench)['connect_failures'] == {'transient': 1, 'permanent': 0}


def test_a_classify_that_fails_is_reported_and_counts_as_transient() -> None:
    def confused(endpoint: object, error: BaseException) -> Any:
        raise LookupError('no table')

    bench = Bench(classify=confused, connect_retry=RETRY)
    assert fail(bench, bench.ask('a'), Refused()) == WAIT
    ((message, endpoint, error),) = bench.pool.reported
    assert (message, endpoint, str(error)) == ('classify failed for', 'a', 'no table')


def test_a_classify_that_returns_no_class_is_reported_and_counts_as_transient() -> None:
    bench = Bench(classify=lambda endpoint, error: 'permanent', connect_retry=RETRY)
    assert fail(bench, bench.ask('a'), Refused()) == WAIT
    ((_, _, error),) = bench.pool.reported
    assert isinstance(error, TypeError)
    assert str(error) == "BenchManager.classify must return an ErrorClass, not str: 'permanent'"


def test_a_stale_error_of_a_connect_expires_what_was_opened_before() -> None:
    bench = Bench(classify=lambda endpoint, error: ErrorClass.STALE)
    kept, other = bench.hold('a'), bench.hold('a')
    begun, failing = bench.ask('a'), bench.ask('a')
    bench.put(other)
    bench.clock.advance(1.0)
    failing = bench.ask('a') if failing.todo != CREATE else failing
    with pytest.raises(Refused):
        failing.failed(Refused())
    bench.put(kept)
    assert [reason for _, reason in bench.dispose_all()] == ['expired', 'expired']
    bench.put(bench.take(begun))  # its connect began before
    assert [reason for _, reason in bench.dispose_all()] == ['expired']
    bench.put(bench.get('a'))
    assert bench.shape == Shape(idle=1)


# --- what is shown ---


def test_a_snapshot_shows_how_connecting_goes() -> None:
    bench = Bench(connect_retry=RETRY, breaker_threshold=3)
    acquire = bench.ask('a')
    assert of(bench)['creating'] == 1
    assert (of(bench)['breaker'], of(bench)['failures'], of(bench)['retry_delay']) == ('closed', 0, 0.0)
    fail(bench, acquire, Refused())
    bench.clock.advance(0.25)
    assert (of(bench)['breaker'], of(bench)['failures'], of(bench)['retry_delay']) == ('closed', 1, 0.75)
    assert of(bench)['connect_failures'] == {'transient': 1, 'permanent': 0}
    assert bench.total['connect_failures'] == {'transient': 1, 'permanent': 0}


def test_what_the_pool_shows_says_what_holds_acquires_up() -> None:
    bench = Bench(connect_retry=RETRY, max_connecting=1, breaker_threshold=2)
    acquires = [bench.ask('db') for _ in range(2)]
    assert "'db': 1 waiting, max_connecting=1" in repr(bench.pool)
    fail(bench, acquires[0], Refused('gone'))
    assert (
        "'db': 2 waiting, retry delay: the last connect has failed (Refused: gone), the next one is due in 1 s"
        in repr(bench.pool)
    )
    bench.clock.advance(1.0)
    assert bench.poll(acquires[0]) == CREATE
    with pytest.raises(EndpointUnavailableError):
        acquires[0].failed(Refused('gone'))
    assert "'db': breaker open: the last 2 connects have failed (Refused: gone), the next one is due in 2 s" in repr(
        bench.pool
    )


def test_a_created_connection_is_used() -> None:
    bench = Bench(connect_retry=RETRY)
    acquire = bench.ask('a')
    assert bench.created(acquire, Conn('a', 1)) == USE


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_a_forked_child_starts_without_failures() -> None:
    bench = Bench(breaker_threshold=1, connect_retry=RETRY, max_connecting=1)
    waiting = Bench(connect_retry=RETRY, max_connecting=1)
    with pytest.raises(EndpointUnavailableError):
        bench.ask('a').failed(Refused())
    acquires = [waiting.ask('a') for _ in range(3)]
    assert fail(waiting, acquires[0], Refused()) == WAIT
    child = os.fork()
    if child == 0:
        good = bench.ask('a').todo == CREATE
        good = good and waiting.poll(acquires[1]) == CREATE and waiting.of('a') == Shape(creating=1)
        waiting.take(acquires[1])
        good = good and waiting.poll(acquires[0]) == CREATE
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    refused(bench)
    assert waiting.of('a') == Shape(waiting=3)


def test_a_connect_that_fails_in_a_forked_child_is_tried_again_there() -> None:
    bench = Bench(connect_retry=RETRY)
    acquire = bench.ask('a')
    child = os.fork()
    if child == 0:
        good = fail(bench, acquire, Refused()) == CREATE
        bench.take(acquire)
        os._exit(0 if good and bench.shape == Shape(used=1) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_pool_that_is_dropped_while_its_endpoint_fails_is_freed() -> None:
    bench = Bench(breaker_threshold=2, connect_retry=RETRY)
    acquire = bench.ask('a')
    fail(bench, acquire, Refused())
    pool = weakref.ref(bench.pool)
    del acquire, bench
    assert collect(pool) == [None]


def test_closing_ends_those_that_wait_for_the_next_connect() -> None:
    bench = Bench(connect_retry=RETRY)
    acquire = bench.ask('a')
    fail(bench, acquire, Refused())
    bench.core.close()
    assert bench.poll(acquire) == SHUT
    end(bench, acquire, Refused())
    connecting = Bench(connect_retry=RETRY)
    acquire = connecting.ask('a')
    connecting.core.close()
    assert fail(connecting, acquire, Refused()) == SHUT
