"""Guarantee 30 (docs/guarantees.md): what is counted of a reserve, on an injected clock."""

from __future__ import annotations

import pytest

from core.helpers import CREATE, USE, WAIT, Bench, Conn, Shape
from core.test_background import BackgroundBench
from gcp._core import Acquire, expire_connections
from gcp.exceptions import AcquireTimeoutError


def reserving(**options: object) -> Bench:
    return Bench(**{'max_size': 2, 'reserve': 1, 'reserve_timeout': 5.0, **options})


def ask(bench: Bench, priority: int = 0, endpoint: str = 'a') -> Acquire:
    acquire = bench.keep(bench.acquire(endpoint, None, priority))
    bench.request(acquire)
    return acquire


@pytest.mark.parametrize('how', ['drop', 'abandon', 'fail', 'cancel'])
def test_a_permit_that_comes_to_nothing_is_returned_to_the_reserve(how: str) -> None:
    bench = reserving()
    acquire = bench.acquire('a', None, 1)
    assert bench.request(acquire) == CREATE
    if how == 'drop':
        del acquire
        bench.core.drain()
    elif how == 'fail':
        bench.failed(acquire)
        acquire.abandon(ValueError())
    else:
        acquire.abandon(KeyboardInterrupt() if how == 'cancel' else AcquireTimeoutError())
    first = ask(bench)
    assert bench.verdict(first) == CREATE
    assert bench.verdict(ask(bench)) == WAIT
    assert bench.verdict(ask(bench, 1)) == CREATE


def test_it_looks_when_it_may_borrow_and_not_before() -> None:
    bench = reserving()
    bench.hold('a')
    bench.clock.advance(1.0)
    acquire = ask(bench)
    assert acquire.todo == WAIT and acquire.time_to_wait() == 5.0
    bench.clock.advance(4.5)
    assert bench.poll(acquire) == WAIT and acquire.time_to_wait() == 0.5
    bench.clock.advance(0.5)
    assert bench.poll(acquire) == CREATE
    later = ask(bench)
    bench.clock.advance(6.0)
    assert bench.poll(later) == WAIT and later.time_to_wait() > 1e6  # there is no place: the next release serves it
    urgent = ask(bench, 1)
    bench.put(bench.take(acquire))
    assert [bench.verdict(each) for each in (urgent, later)] == [USE, WAIT]


def test_what_dies_on_the_way_is_no_place_for_others() -> None:
    """A connection that is disposed of takes its place until it is gone."""
    bench = reserving(max_size=3)
    held = [bench.take(ask(bench)), bench.take(ask(bench, 1))]
    bench.discard(held[1], 'discarded')
    acquire = ask(bench)
    assert bench.verdict(acquire) == WAIT
    bench.dispose_all()
    assert bench.verdict(acquire) == CREATE


def test_a_waiter_that_leaves_lets_no_other_have_its_place() -> None:
    """The place of another endpoint's connection was reserved for an acquire with a priority, which has left."""
    bench = reserving(total_max_size=2)
    other = bench.hold('b')
    bench.hold('a')
    waiting = ask(bench)
    urgent = ask(bench, 1)
    bench.put(other)
    assert bench.shape == Shape(used=1, disposing=1, waiting=2)
    urgent.abandon(KeyboardInterrupt())
    bench.dispose_all()
    assert (bench.verdict(waiting), bench.shape) == (WAIT, Shape(used=1, waiting=1))


def test_a_connect_in_the_background_for_one_that_has_left_serves_no_other() -> None:
    bench = BackgroundBench(max_size=2, reserve=1, connect_workers=2)
    first = ask(bench)
    bench.connect()
    bench.take(first)
    urgent = ask(bench, 1)
    waiting = ask(bench)
    job = bench.begin()
    assert bench.job() is None  # one connect, for the one with the priority
    urgent.abandon(KeyboardInterrupt())
    job.completed(Conn('a', 9))
    assert (bench.verdict(waiting), bench.shape) == (WAIT, Shape(idle=1, used=1, waiting=1))
    bench.put(first)
    assert bench.verdict(waiting) == USE


@pytest.mark.parametrize('how', ['expire', 'reconfigure'])
def test_a_connection_that_was_never_used_is_no_part_of_the_reserve(how: str) -> None:
    """It was opened in advance, and closed or counted anew before its first use."""
    bench = BackgroundBench(max_size=2, reserve=1)
    watch = bench.warm_up('a', size=1)
    job = bench.begin()
    if how == 'expire':
        expire_connections(bench.pool, 'a')  # what is being opened counts as opened before
        bench.connect(job)
        bench.dispose_all()
        bench.connect()
    else:
        bench.connect(job)
        bench.pool.reconfigure(reserve=0)
        bench.pool.reconfigure(reserve=1)
    watch.close()
    acquire = ask(bench)
    assert (bench.verdict(acquire), bench.shape) == (USE, Shape(used=1))
    assert bench.verdict(ask(bench)) == WAIT
    assert bench.verdict(ask(bench, 1)) == CREATE


@pytest.mark.parametrize(('timeout', 'admitted'), [(7.9, False), (8.1, True)])
def test_admission_counts_the_places_that_an_acquire_may_have(timeout: float, admitted: bool) -> None:
    bench = reserving(admission='deadline', reserve_timeout=float('inf'), max_size=3)
    first, second = bench.take(ask(bench)), bench.take(ask(bench))
    third = bench.take(ask(bench, 1))
    bench.clock.advance(8.0)
    bench.put(first, second, third)
    for _ in range(2):
        bench.hold('a')
    waiting = ask(bench)  # the first of two
    acquire = bench.keep(bench.acquire('a', timeout))
    if admitted:
        assert bench.request(acquire) == WAIT
    else:
        with pytest.raises(AcquireTimeoutError, match='refused on arrival') as refusal:
            bench.request(acquire)
        assert (refusal.value.phase, refusal.value.blocked_by) == ('admission', 'reserve')
        refusal.value.__traceback__ = None
        acquire.abandon(refusal.value)
    assert bench.verdict(waiting) == WAIT
