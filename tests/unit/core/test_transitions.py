"""Guarantees 1, 2, 3, 4 and 7 (docs/guarantees.md): the core's transitions, one rule at a time, with an injected clock,
without threads and sleeps."""

from __future__ import annotations

import gc
import itertools
import random
import weakref
from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from gil import collect, is_same

from core.helpers import CREATE, SHUT, USE, WAIT, Bench, Conn, Shape
from core.simulation import Simulation
from gcp._core import OUTCOMES, REASONS, RESULTS, Acquire, Core, gather
from gcp.exceptions import AcquireTimeoutError, ConnectionNotAcquiredError, ConnectionPoolClosedError

Script = Callable[..., Any]


class Fault(Exception):
    """What a hook raised."""


# --- base and extras ---


def test_an_idle_base_is_acquired_first_in_first_out() -> None:
    bench = Bench(min_idle=3)
    conns = bench.fill('a', 3)
    assert [bench.get('a').conn for _ in range(3)] == conns


def test_idle_extras_are_acquired_last_in_first_out() -> None:
    bench = Bench(min_idle=0)
    conns = bench.fill('a', 3)
    assert [bench.get('a').conn for _ in range(3)] == conns[::-1]


def test_the_base_is_acquired_before_the_extras() -> None:
    bench = Bench(min_idle=1)
    first, second, third = bench.fill('a', 3)  # the last to come back is the base
    assert [bench.get('a').conn for _ in range(3)] == [third, second, first]


def test_the_first_to_come_back_is_the_extra() -> None:
    """While other connections are in use, the places of the base are kept for them."""
    bench = Bench(min_idle=1, idle_timeout=10.0)
    early, late = bench.get('a'), bench.get('a')
    bench.put(early, late)
    bench.clock.advance(11.0)
    assert bench.core.collect(9) == 1
    assert bench.dispose_all() == [('a1', 'idle_timeout')]
    assert bench.get('a').conn is late.conn


def test_one_that_comes_back_while_the_base_is_full_is_an_extra() -> None:
    bench = Bench(min_idle=2, idle_timeout=10.0)
    held = [bench.get('a') for _ in range(4)]
    bench.put(*held)
    bench.clock.advance(11.0)
    assert bench.core.collect(9) == 2
    assert bench.dispose_all() == [('a1', 'idle_timeout'), ('a2', 'idle_timeout')]


# --- expiry ---


def test_extras_expire_in_the_order_of_release_and_at_most_as_many_as_asked() -> None:
    bench = Bench(min_idle=0, idle_timeout=10.0)
    a1, b2, a3 = bench.get('a'), bench.get('b'), bench.get('a')
    for held in (a3, a1, b2):
        bench.put(held)
        bench.clock.advance(1.0)
    bench.clock.advance(9.0)
    assert bench.core.collect(2) == 2
    assert bench.dispose_all() == [('a3', 'idle_timeout'), ('a1', 'idle_timeout')]
    assert bench.core.collect(2) == 1
    assert bench.dispose_all() == [('b2', 'idle_timeout')]
    assert bench.core.collect(2) == 0


def test_an_extra_expires_at_its_idle_timeout_and_not_before() -> None:
    bench = Bench(min_idle=0, idle_timeout=10.0)
    bench.fill('a', 1)
    bench.clock.advance(9.999)
    assert bench.core.collect(9) == 0
    assert bench.core.next_expiry() == 1010.0
    bench.clock.advance(0.001)
    assert bench.core.collect(9) == 1


def test_a_base_does_not_expire_but_for_its_age() -> None:
    bench = Bench(min_idle=1, idle_timeout=10.0, max_lifetime=100.0)
    bench.fill('a', 1)
    bench.clock.advance(99.0)
    assert bench.core.collect(9) == 0
    assert bench.core.next_expiry() == 1100.0
    bench.clock.advance(1.0)
    assert bench.core.collect(9) == 1
    assert [reason for _, reason in bench.dispose_all()] == ['max_lifetime']


def test_idle_timeouts_and_lifetimes_are_collected_in_one_order() -> None:
    bench = Bench(min_idle=1, idle_timeout=50.0, max_lifetime=100.0)
    bench.fill('a', 1)
    bench.clock.advance(20.0)  # 1020
    young = [bench.get('b') for _ in range(2)]
    bench.clock.advance(40.0)  # 1060
    bench.put(*young)  # an extra until 1110, a base until 1120; a's base until 1100
    bench.clock.advance(60.0)
    assert bench.core.collect(9) == 3
    assert bench.dispose_all() == [('a1', 'max_lifetime'), ('b2', 'idle_timeout'), ('b3', 'max_lifetime')]


def test_an_expired_connection_is_not_handed_out() -> None:
    bench = Bench(min_idle=0, idle_timeout=10.0)
    old = bench.fill('a', 1)
    bench.clock.advance(10.0)
    held = bench.get('a')
    assert held.conn is not old[0]
    assert bench.dispose_all() == [('a1', 'idle_timeout')]


def test_an_expired_base_does_not_hide_a_fresh_extra() -> None:
    bench = Bench(min_idle=1, max_lifetime=100.0)
    old = bench.get('a')
    bench.clock.advance(60.0)
    young = bench.get('a')
    bench.put(young, old)  # the extra is young, the base is old
    bench.clock.advance(45.0)
    assert bench.hold('a').conn is young.conn
    assert bench.dispose_all() == [('a1', 'max_lifetime')]


def test_a_connection_that_outlived_its_life_in_use_is_disposed_of_at_its_release() -> None:
    bench = Bench(max_lifetime=100.0)
    held = bench.get('a')
    bench.clock.advance(100.0)
    assert bench.core.next_expiry() == inf  # it is in use: there is nothing to collect
    bench.put(held)
    assert bench.dispose_all() == [('a1', 'max_lifetime')]


def test_a_connection_that_outlived_its_life_in_use_is_not_handed_off() -> None:
    bench = Bench(max_size=1, max_lifetime=100.0)
    held = bench.get('a')
    waiter = bench.wait('a')
    bench.clock.advance(100.0)
    bench.put(held)
    assert bench.verdict(waiter) == WAIT
    bench.dispose_all()
    assert bench.verdict(waiter) == CREATE


def test_endless_lives_are_never_due() -> None:
    bench = Bench(min_idle=0, idle_timeout=inf, max_lifetime=inf)
    bench.fill('a', 3)
    bench.clock.advance(1e12)
    assert bench.core.next_expiry() == inf
    assert bench.core.collect(9) == 0
    assert bench.verdict(bench.ask('a')) == USE


def test_lifetimes_are_jittered_once_at_birth() -> None:
    bench = Bench(max_size=200, total_max_size=200, min_idle=200, max_lifetime=100.0, lifetime_jitter=0.5)
    bench.fill('a', 200)
    deaths: list[float] = []
    while bench.shape.idle:
        due = bench.core.next_expiry()
        assert due == bench.core.next_expiry()  # it stays what it was
        bench.clock.now = due
        collected = bench.core.collect(200)
        assert collected == 1, 'they die one by one, in order'
        deaths.append(due - 1000.0)
    assert all(50.0 <= death <= 100.0 for death in deaths)
    assert min(deaths) < 60.0 and max(deaths) > 90.0


def test_lifetimes_end_in_order_whatever_dies_before_its_time() -> None:
    chance = random.Random(1)
    bench = Bench(max_size=300, total_max_size=300, min_idle=300, max_lifetime=100.0, lifetime_jitter=0.9)
    held = [bench.get('a') for _ in range(300)]
    chance.shuffle(held)
    for acquire in held[:150]:
        bench.discard(acquire, 'dead')
    bench.dispose_all()
    bench.put(*held[150:])
    deaths = []
    while bench.shape.idle:
        bench.clock.now = bench.core.next_expiry()
        deaths.append(bench.clock.now)
        assert bench.core.collect(300) == 1
    assert deaths == sorted(deaths) and len(deaths) == 150


def test_without_jitter_all_live_as_long() -> None:
    bench = Bench(min_idle=5, max_lifetime=100.0)
    bench.fill('a', 5)
    bench.clock.advance(100.0)
    assert bench.core.collect(9) == 5


def test_the_collector_is_woken_by_what_expires_before_it_would_look() -> None:
    bench = Bench(min_idle=0, idle_timeout=10.0, max_lifetime=100.0)
    calls: list[float] = []
    bench.core.wake_collector = lambda: calls.append(bench.clock.now)
    held = bench.get('a')
    assert not calls  # there is no collector that sleeps
    assert bench.core.next_expiry() == 1100.0
    bench.put(held)  # expires at 1010
    assert calls == [1000.0]
    assert bench.core.next_expiry() == 1010.0
    second = bench.get('b')
    bench.put(second)  # does not expire before the one that the collector knows of
    assert calls == [1000.0]


# --- caps ---


def test_a_cap_of_an_endpoint_counts_creating_used_idle_and_disposing() -> None:
    bench = Bench(max_size=3)
    creating, used, dying = bench.ask('a'), bench.get('a'), bench.get('a')
    bench.discard(dying, 'dead')
    (victim,) = bench.victims()
    waiter = bench.wait('a')
    assert bench.of('a') == Shape(used=1, creating=1, disposing=1, waiting=1)
    bench.hold('b')  # another endpoint's connections do not count
    bench.disposed(victim)
    assert bench.verdict(waiter) == CREATE
    creating.abandon(Fault())
    waiter.abandon(Fault())
    bench.put(used)
    assert bench.of('a') == Shape(idle=1)


def test_the_total_cap_counts_creating_used_and_disposing() -> None:
    bench = Bench(total_max_size=3)
    creating, dying = bench.ask('a'), bench.get('b')
    bench.hold('c')
    bench.discard(dying, 'dead')
    (victim,) = bench.victims()
    waiter = bench.wait('d')
    assert bench.shape == Shape(used=1, creating=1, disposing=1, waiting=1)
    bench.disposed(victim)
    assert bench.verdict(waiter) == CREATE
    creating.abandon(Fault())
    assert bench.verdict(bench.ask('e')) == CREATE


def test_endpoint_size_counts_states() -> None:
    bench = Bench(max_size=9)
    bench.fill('a', 5)
    bench.discard(bench.get('a'), 'dead')
    bench.hold('a')
    creating = [bench.ask('a') for _ in range(5)]
    assert bench.of('a') == Shape(used=4, creating=2, disposing=1)
    bench.put(bench.take(creating[0]))
    assert bench.core.endpoint_size('a') == 7
    assert bench.core.endpoint_size('a', acquired=True) == 3
    assert bench.core.endpoint_size('a', acquired=False) == 1
    for acquired in (None, True, False):
        assert bench.core.endpoint_size('unknown', acquired) == 0


# --- eviction ---


def test_eviction_takes_the_longest_idle_extra_then_the_longest_idle_base() -> None:
    bench = Bench(total_max_size=4, min_idle=1)
    a1, a2, b3, b4 = (bench.get(endpoint) for endpoint in 'aabb')
    for held in (a1, b3, b4, a2):  # extras a1, b3; bases b4, a2
        bench.put(held)
        bench.clock.advance(1.0)
    held_for_good = []
    for endpoint, expected in zip('cdef', ('a1', 'b3', 'b4', 'a2'), strict=True):
        waiter = bench.wait(endpoint)
        assert bench.dispose_all() == [(expected, 'evicted')]
        held_for_good.append(bench.take(waiter))


def test_an_idle_connection_is_evicted_at_once_however_young() -> None:
    bench = Bench(total_max_size=1)
    bench.fill('a', 1)
    waiter = bench.wait('b')
    assert bench.shape == Shape(disposing=1, waiting=1)
    assert bench.dispose_all() == [('a1', 'evicted')]
    assert bench.verdict(waiter) == CREATE


def test_one_waiter_evicts_one() -> None:
    bench = Bench(total_max_size=3, min_idle=3)
    bench.fill('a', 3)
    waiters = [bench.wait('b'), bench.wait('b')]
    assert bench.shape == Shape(idle=1, disposing=2, waiting=2)
    bench.dispose_all()
    assert [bench.verdict(waiter) for waiter in waiters] == [CREATE, CREATE]


def test_a_place_that_is_reserved_counts_against_the_cap() -> None:
    bench = Bench(total_max_size=2, max_size=1)
    bench.fill('a', 1)
    bench.fill('b', 1)
    first, second = bench.wait('c'), bench.wait('c')  # the second is blocked by its endpoint's cap
    assert bench.shape == Shape(idle=1, disposing=1, waiting=2)
    bench.dispose_all()
    assert (bench.verdict(first), bench.verdict(second)) == (CREATE, WAIT)
    assert bench.of('c') == Shape(creating=1, waiting=1)


def test_a_released_connection_without_waiters_of_its_own_is_evicted_for_a_blocked_endpoint() -> None:
    """Total cap 2, both held by one endpoint, a waiter on another: it is served when one is released."""
    bench = Bench(total_max_size=2)
    one, _two = bench.get('a'), bench.get('a')
    waiter = bench.wait('b')
    bench.put(one)
    assert bench.dispose_all() == [('a1', 'evicted')]
    assert bench.verdict(waiter) == CREATE


# --- whom a released connection serves ---

CREATE_TIME = 0.5
"""What a connection costs to create in the tests of sharing, seconds; its price is 8 times that."""


def sharing(hold: int, other: int) -> tuple[Bench, Acquire]:
    """Fill a pool: endpoint `a` holds so many, endpoint `b` so many, and each creation has taken `CREATE_TIME`.

    :return: the bench, and a's youngest release, born just now
    """
    bench = Bench(total_max_size=hold + other)
    held = []
    for endpoint in 'b' * other + 'a' * hold:
        acquire = bench.ask(endpoint)
        bench.clock.advance(CREATE_TIME)
        held.append(bench.keep(bench.take(acquire)))
    return bench, held[-1]


def test_a_released_connection_goes_to_its_own_waiters_where_holdings_are_even() -> None:
    bench, held = sharing(2, 1)
    b, a = bench.wait('b'), bench.wait('a')
    bench.clock.advance(100.0)
    bench.put(held)
    assert (bench.verdict(a), bench.verdict(b)) == (USE, WAIT)


def test_it_goes_to_the_blocked_endpoint_that_holds_less_by_more_than_one() -> None:
    bench, held = sharing(3, 1)
    a, b = bench.wait('a'), bench.wait('b')
    bench.clock.advance(8 * CREATE_TIME)
    bench.put(held)
    assert (bench.verdict(a), bench.verdict(b)) == (WAIT, WAIT)
    assert [reason for _, reason in bench.dispose_all()] == ['evicted']
    assert (bench.verdict(a), bench.verdict(b)) == (WAIT, CREATE)


def test_but_only_once_it_has_lived_eight_times_what_the_others_creation_costs() -> None:
    bench, held = sharing(3, 1)
    a, b = bench.wait('a'), bench.wait('b')
    bench.clock.advance(8 * CREATE_TIME - 0.001)
    bench.put(held)
    assert (bench.verdict(a), bench.verdict(b)) == (USE, WAIT)


def test_it_ends_anothers_having_none_when_that_waiter_is_the_older() -> None:
    bench, held = sharing(1, 0)
    b, a = bench.wait('b'), bench.wait('a')
    bench.clock.advance(8 * CREATE_TIME)
    bench.put(held)
    assert [reason for _, reason in bench.dispose_all()] == ['evicted']
    assert (bench.verdict(a), bench.verdict(b)) == (WAIT, CREATE)


def test_it_does_not_end_anothers_having_none_when_that_waiter_is_the_younger() -> None:
    bench, held = sharing(1, 0)
    a, b = bench.wait('a'), bench.wait('b')
    bench.clock.advance(100.0)
    bench.put(held)
    assert (bench.verdict(a), bench.verdict(b)) == (USE, WAIT)


def test_it_does_not_end_anothers_having_none_before_it_has_lived() -> None:
    bench, held = sharing(1, 0)
    b, a = bench.wait('b'), bench.wait('a')
    bench.clock.advance(8 * CREATE_TIME - 0.001)
    bench.put(held)
    assert (bench.verdict(a), bench.verdict(b)) == (USE, WAIT)


def test_the_neediest_is_the_one_that_holds_least_and_then_the_oldest_waiter() -> None:
    bench = Bench(total_max_size=4)
    a = [bench.get('a'), bench.get('a')]
    bench.hold('b')
    bench.hold('c')
    of_b, of_d, of_e, of_c = (bench.wait(endpoint) for endpoint in 'bdec')
    order = []
    bench.clock.advance(100.0)
    waiting = {'b': of_b, 'c': of_c, 'd': of_d, 'e': of_e}
    for held in a:
        bench.put(held)
        bench.dispose_all()
        (served,) = (name for name, acquire in waiting.items() if bench.verdict(acquire) == CREATE)
        del waiting[served]
        order.append(served)
    assert order == ['d', 'e']  # these hold none, d's waiter is the older


def test_a_reserved_place_counts_as_held() -> None:
    bench = Bench(total_max_size=2)
    a = [bench.get('a'), bench.get('a')]
    of_b, _again, of_c = bench.wait('b'), bench.wait('b'), bench.wait('c')
    bench.put(a[0])  # reserved for b, which holds none and whose waiter is the older
    bench.put(a[1])  # b will have one, so this is for c
    bench.dispose_all()
    assert (bench.verdict(of_b), bench.verdict(of_c)) == (CREATE, CREATE)


def test_one_that_has_yielded_is_as_needy_as_what_it_still_holds() -> None:
    bench = Bench(total_max_size=6)
    a = [bench.get('a') for _ in range(3)]
    for endpoint in 'cc':
        bench.hold(endpoint)
    other = bench.get('e')
    of_a, of_b, of_c = (bench.wait(endpoint) for endpoint in 'abc')
    bench.put(a[0])  # to b, which has none; a holds as many as c now, and its waiter is the older
    bench.put(other)
    bench.dispose_all()
    assert (bench.verdict(of_a), bench.verdict(of_b), bench.verdict(of_c)) == (CREATE, CREATE, WAIT)


def test_create_times_are_smoothed() -> None:
    """A fifth of each new sample: one slow creation does not make an endpoint expensive."""
    bench = Bench(total_max_size=3)
    for seconds in (1.0, 0.5):  # smoothed: 0.9
        acquire = bench.ask('b')
        bench.clock.advance(seconds)
        bench.take(acquire)
        bench.discard(acquire, 'dead')
    victims = bench.victims()
    bench.disposed(victims.pop())  # the other one keeps the endpoint known, and counts against the cap
    held = [bench.get('a'), bench.get('a')]
    assert bench.core.size == 3
    b, a = bench.wait('b'), bench.wait('a')
    bench.clock.advance(8 * 0.9 - 0.001)
    bench.put(held[0])
    assert (bench.verdict(a), bench.verdict(b)) == (USE, WAIT)
    bench.keep(bench.take(a))
    a = bench.wait('a')
    bench.clock.advance(0.002)
    bench.put(held[1])
    assert (bench.verdict(a), bench.verdict(b)) == (WAIT, WAIT)
    assert bench.of('a') == Shape(used=1, disposing=1, waiting=1)


def test_an_endpoint_that_was_never_created_for_is_taken_to_cost_what_others_do() -> None:
    bench = Bench(total_max_size=1)
    acquire = bench.ask('a')
    bench.clock.advance(1.0)
    held = bench.take(acquire)
    b, a = bench.wait('b'), bench.wait('a')
    bench.clock.advance(8.0 - 0.001)
    bench.put(held)
    assert (bench.verdict(a), bench.verdict(b)) == (USE, WAIT)
    bench.take(a)
    later = bench.wait('a')
    bench.clock.advance(0.002)
    bench.put(a)
    bench.dispose_all()
    assert (bench.verdict(later), bench.verdict(b)) == (WAIT, CREATE)


@pytest.mark.parametrize('dispose', [0.0, 0.005])
@pytest.mark.parametrize('clients', [3, 10])
def test_evenly_overloaded_endpoints_share_evenly_and_do_not_thrash(clients: int, dispose: float) -> None:
    """5 endpoints under a total cap of 10, 20 ms to create, 2 ms of use, steady overload."""
    outcome = Simulation(5, clients, 10, dispose=dispose).run(5.0)
    assert 0.98 <= outcome.shares[0] <= outcome.shares[-1] <= 1.02, str(outcome)
    assert outcome.evicted < 0.01 * outcome.served.total(), str(outcome)
    assert outcome.rate > 0.98 * 10 / 0.002, str(outcome)


@pytest.mark.parametrize('dispose', [0.0, 0.005])
@pytest.mark.parametrize('clients', [3, 10])
def test_more_endpoints_than_places_share_them_in_time(clients: int, dispose: float) -> None:
    """20 endpoints under a total cap of 5, 20 ms to create, 2 ms of use, steady overload: no endpoint starves, and
    most of the time is use."""
    outcome = Simulation(20, clients, 5, dispose=dispose).run(5.0)
    assert outcome.shares[0] >= 0.85, str(outcome)
    assert outcome.shares[-1] <= 1.15, str(outcome)
    assert outcome.creating <= 0.13 * outcome.capacity, str(outcome)
    assert outcome.rate > 0.8 * 5 / 0.002, str(outcome)


def test_slow_creation_costs_fewer_evictions() -> None:
    """The longer a creation takes, the longer a connection stays: sharing costs a part of the capacity, not a rate."""
    outcomes = [Simulation(20, 5, 5, create=create).run(5.0, warm_up=5.0) for create in (0.005, 0.02, 0.08)]
    assert outcomes[0].evicted > 2 * outcomes[1].evicted > 4 * outcomes[2].evicted
    assert all(outcome.creating <= 0.13 * outcome.capacity for outcome in outcomes), [str(each) for each in outcomes]


# --- the wait queue and hand-off ---


def test_waiters_are_served_first_come_first_served_by_hand_off() -> None:
    bench = Bench(max_size=1)
    held = bench.get('a')
    order: list[int] = []
    waiters = [bench.wait('a', lambda number=number: order.append(number)) for number in range(4)]  # type: ignore[misc]
    conn = held.conn
    for number, waiter in enumerate(waiters):
        bench.put(held)
        assert order == list(range(number + 1))
        assert bench.poll(waiter) == USE
        assert bench.finish(waiter) is conn
        held = waiter
    assert bench.total['releases'] == {'idle': 0, 'handoff': 4, 'discarded': 0}
    assert bench.total['acquires']['waited'] == 4


def test_a_newcomer_does_not_overtake() -> None:
    bench = Bench(max_size=1)
    held = bench.get('a')
    waiter = bench.wait('a')
    bench.put(held)  # handed off; the waiter has not looked yet
    newcomer = bench.wait('a', None)
    assert bench.poll(waiter) == USE
    assert bench.poll(newcomer) == WAIT


def test_a_newcomer_does_not_overtake_at_a_freed_place() -> None:
    bench = Bench(max_size=2)
    first, second = bench.ask('a'), bench.ask('a')
    waiter = bench.wait('a')
    bench.failed(first, Fault())
    assert bench.verdict(waiter) == CREATE
    assert bench.verdict(bench.wait('a')) == WAIT
    assert bench.verdict(second) == CREATE


def test_a_hand_off_to_one_that_was_cancelled_goes_to_the_next() -> None:
    bench = Bench(max_size=1)
    held = bench.get('a')
    woken: list[str] = []
    leaver = bench.wait('a', lambda: woken.append('leaver'))
    patient = bench.wait('a', lambda: woken.append('patient'))
    bench.put(held)
    assert woken == ['leaver']
    leaver.abandon(KeyboardInterrupt())  # before it looked
    assert woken == ['leaver', 'patient']
    assert bench.poll(patient) == USE
    assert bench.total['acquires']['cancelled'] == 1


def test_a_permit_for_one_that_was_cancelled_goes_to_the_next() -> None:
    bench = Bench(max_size=1)
    creator = bench.ask('a')
    leaver, patient = bench.wait('a'), bench.wait('a')
    bench.failed(creator, Fault())
    assert bench.verdict(leaver) == CREATE
    leaver.abandon(KeyboardInterrupt())
    assert bench.verdict(patient) == CREATE
    assert bench.of('a') == Shape(creating=1)


def test_one_that_leaves_the_queue_lets_the_next_move_up() -> None:
    bench = Bench(max_size=1)
    held = bench.get('a')
    leaver, patient = bench.wait('a'), bench.wait('a')
    assert bench.expire(leaver) == WAIT
    bench.put(held)
    assert bench.poll(patient) == USE
    assert bench.shape == Shape(used=1)


def test_a_verdict_that_came_before_the_deadline_counts() -> None:
    bench = Bench(max_size=1)
    held = bench.get('a')
    waiter = bench.wait('a')
    bench.put(held)
    assert bench.expire(waiter) == USE
    assert bench.take(waiter).conn is held.conn


def test_a_verdict_that_comes_before_the_event_is_known_is_seen() -> None:
    bench = Bench(max_size=1)
    held = bench.get('a')

    def release_now(transition: str) -> None:
        if transition == 'arm':
            bench.put(held)

    bench.core.on_transition = release_now
    acquire = bench.ask('a')
    bench.core.on_transition = None
    assert acquire.todo == 'check_aliveness'
    assert bench.take(acquire).conn is held.conn


def test_one_whose_connection_was_dead_keeps_its_place() -> None:
    """It came first; those that came while it checked stay behind it."""
    bench = Bench(max_size=1)
    bench.fill('a', 1)
    first = bench.ask('a')
    assert bench.verdict(first) == USE
    second = bench.wait('a')
    assert bench.retry(first) == WAIT
    assert bench.dispose_all() == [('a1', 'dead')]
    assert (bench.verdict(first), bench.verdict(second)) == (CREATE, WAIT)


def test_one_whose_connections_are_dead_takes_the_next_idle_one() -> None:
    bench = Bench(min_idle=3)
    conns = bench.fill('a', 3)
    acquire = bench.ask('a')
    assert acquire.conn is conns[0]
    assert bench.retry(acquire) == USE
    assert acquire.conn is conns[1]
    assert bench.retry(acquire) == USE
    assert bench.retry(acquire) == CREATE
    assert [reason for _, reason in bench.dispose_all()] == ['dead'] * 3
    bench.take(acquire)
    assert bench.total['acquires'] == dict.fromkeys(RESULTS, 0) | {'created': 4}


def test_waiters_are_not_woken_twice_for_one_place() -> None:
    bench = Bench(max_size=1)
    held = bench.get('a')
    woken: list[int] = []
    waiters = [bench.wait('a', lambda number=number: woken.append(number)) for number in range(3)]  # type: ignore[misc]
    bench.discard(held, 'dead')
    bench.dispose_all()
    assert woken == [0]
    assert [bench.verdict(waiter) for waiter in waiters] == [CREATE, WAIT, WAIT]


def test_an_event_that_raises_leaves_no_other_waiter_asleep() -> None:
    bench = Bench(max_size=1)
    woken: list[str] = []
    waiters = []

    def gone() -> None:
        woken.append('gone')
        raise RuntimeError('the event loop is closed')

    def interrupted() -> None:
        woken.append('interrupted')
        raise KeyboardInterrupt

    for endpoint in 'abc':
        bench.hold(endpoint)
    for endpoint, wake in zip('abc', (gone, interrupted, lambda: woken.append('well')), strict=True):
        waiters.append(bench.wait(endpoint, wake))
    with pytest.raises(KeyboardInterrupt):
        bench.core.close()
    assert woken == ['gone', 'interrupted', 'well']
    assert [bench.verdict(waiter) for waiter in waiters] == [SHUT] * 3


def test_a_waiter_that_is_woken_while_others_are_being_woken_hides_none() -> None:
    """An event may call the pool: in the first one's, the second waiter looks at its verdict before its event is set,
    fails, waits again and is served again. Its event is set for the second time only."""
    bench = Bench(max_size=1)
    held = [bench.get(endpoint) for endpoint in 'abc']
    woken: list[str] = []

    def wait(endpoint: str) -> Acquire:
        return bench.wait(endpoint, lambda: woken.append(endpoint))

    def meddle() -> None:
        woken.append('a')
        assert bench.poll(waiters[1]) == CREATE
        bench.failed(waiters[1])
        waiters[1].abandon(ValueError())
        other = bench.ask('b')
        waiters[1] = wait('b')
        bench.failed(other)

    waiters = [bench.wait('a', meddle), wait('b'), wait('c')]
    for each in held:
        bench.discard(each, 'dead')
    bench.core.on_abandoned = lambda: None  # else each victim that is dropped would wake a waiter
    victims = bench.victims()
    for number in range(3):
        bench.begin_disposal(victims[number])
    while victims:
        del victims[-1]  # so that a is the first of three that are reclaimed at once
    assert woken == []
    bench.core.drain()
    assert sorted(woken) == ['a', 'b', 'c']
    assert [bench.verdict(waiter) for waiter in waiters] == [CREATE] * 3


# --- creation that fails ---


def test_a_permit_returns_from_a_failed_creation() -> None:
    bench = Bench(max_size=1)
    acquire = bench.ask('a')
    bench.failed(acquire, Fault())
    acquire.abandon(Fault())
    assert bench.shape == Shape()
    assert bench.verdict(bench.ask('a')) == CREATE


def test_every_failed_creation_lets_the_next_waiter_try() -> None:
    bench = Bench(max_size=1)
    acquires = [bench.ask('a') for _ in range(4)]
    for acquire, following in itertools.pairwise(acquires):
        assert (bench.verdict(acquire), bench.verdict(following)) == (CREATE, WAIT)
        error = Fault()
        bench.failed(acquire, error)
        acquire.abandon(error)
        assert bench.verdict(following) == CREATE
        assert is_same(following.last_error, error)


def test_a_place_freed_by_a_failed_creation_serves_another_endpoint() -> None:
    bench = Bench(total_max_size=1)
    acquire, waiter = bench.ask('a'), bench.wait('b')
    bench.failed(acquire, Fault())
    assert bench.verdict(waiter) == CREATE


def test_the_last_error_is_forgotten_with_success_and_with_the_last_waiter() -> None:
    bench = Bench(max_size=1)
    creator, next_one, last = bench.ask('a'), bench.wait('a'), bench.wait('a')
    error = Fault()
    bench.failed(creator, error)
    gone = weakref.ref(last.last_error)
    assert is_same(gone(), error)
    assert bench.expire(last) == WAIT
    assert last.last_error is gone()  # it is this one's cause now
    bench.take(next_one)
    assert bench.wait('a').last_error is None
    del error, last, next_one
    assert gone() is None


def test_a_connection_is_created_and_booked_in_one_call() -> None:
    bench = Bench()
    conn, asked = Conn('a', 1), []
    acquire = bench.ask('a', 3.0)

    def create(endpoint: str, timeout: float | None) -> Conn:
        asked.append((endpoint, timeout))
        return conn

    bench.pool.manager.create = create  # type: ignore[method-assign]
    acquire.make_call()
    assert asked == [('a', 3.0)]
    assert bench.finish(acquire) is conn
    failing = bench.ask('a')
    bench.pool.manager.create = raiser(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        failing.make_call()
    assert bench.shape == Shape(used=1)


GRACE = 0.05
"""How long a caller waits for a disposal that leaves it a place, seconds."""


def raiser(error: type[BaseException]) -> Callable[..., Any]:
    def raise_(*args: Any, **kwargs: Any) -> Any:
        raise error

    return raise_


# --- a place that becomes free ---


def test_a_free_place_serves_one_that_counts_on_a_slow_disposal() -> None:
    """An acquire does not wait for the place that is reserved for it while another one is free."""
    bench = Bench(total_max_size=2)
    bench.fill('a', 1)
    held = bench.get('b')
    waiter = bench.wait('c')  # a's connection is evicted; its disposal takes long
    (slow,) = bench.victims()
    bench.discard(held, 'dead')
    assert bench.dispose_all() == [('b2', 'dead')]
    assert bench.verdict(waiter) == CREATE
    assert bench.shape == Shape(creating=1, disposing=1)
    bench.disposed(slow)
    assert bench.shape == Shape(creating=1)


def test_a_place_reserved_for_one_that_left_serves_another() -> None:
    bench = Bench(total_max_size=1)
    bench.fill('a', 1)
    leaver = bench.wait('b')
    (victim,) = bench.victims()
    patient = bench.wait('c')
    assert bench.expire(leaver) == WAIT
    bench.disposed(victim)
    assert bench.verdict(patient) == CREATE
    assert set(bench.endpoints) == {'c'}


def test_a_reservation_for_one_that_left_does_not_count_against_its_endpoints_cap() -> None:
    bench = Bench(total_max_size=2, max_size=1)
    bench.fill('a', 1)
    held = bench.get('d')
    leaver = bench.wait('b')
    (slow,) = bench.victims()
    assert bench.expire(leaver) == WAIT
    bench.discard(held, 'dead')
    bench.dispose_all()
    newcomer = bench.ask('b')
    assert bench.verdict(newcomer) == CREATE
    bench.disposed(slow)
    assert bench.shape == Shape(creating=1)


def test_an_overdue_disposal_frees_its_waiter_to_be_served_otherwise() -> None:
    bench = Bench(total_max_size=2)
    bench.fill('a', 1)
    held = bench.get('b')
    waiter = bench.wait('c')
    (hanging,) = bench.victims()
    hanging.mark_overdue()
    bench.put(held)
    assert bench.dispose_all() == [('b2', 'evicted')]
    assert bench.verdict(waiter) == CREATE
    hanging.mark_overdue()  # a second call does nothing
    bench.disposed(hanging)
    hanging.mark_overdue()
    assert bench.shape == Shape(creating=1)


def test_an_overdue_disposal_has_another_one_evicted() -> None:
    bench = Bench(total_max_size=2, min_idle=2)
    bench.fill('a', 2)
    waiter = bench.wait('c')
    (hanging,) = bench.victims()
    hanging.mark_overdue()
    assert bench.dispose_all() == [('a2', 'evicted')]
    assert bench.verdict(waiter) == CREATE


def test_a_place_that_was_overdue_serves_the_waiters_of_its_time() -> None:
    bench = Bench(total_max_size=1)
    bench.fill('a', 1)
    first = bench.wait('b')
    (hanging,) = bench.victims()
    hanging.mark_overdue()
    bench.disposed(hanging)
    assert bench.verdict(first) == CREATE


def test_a_disposal_that_is_told_twice_counts_once() -> None:
    bench = Bench()
    held = bench.get('a')
    bench.hold('a')
    bench.discard(held, 'dead')
    (victim,) = bench.victims()
    bench.disposed(victim)
    bench.disposed(victim)
    assert bench.shape == Shape(used=1)
    assert bench.total['closed']['dead'] == 1


def test_a_victim_says_what_it_is() -> None:
    bench = Bench(total_max_size=1)
    (conn,) = bench.fill('a', 1)
    bench.keep(bench.wait('b'))
    (victim,) = bench.victims()
    assert (victim.endpoint, victim.conn, victim.reason, victim.core) == ('a', conn, 'evicted', bench.core)
    bench.disposed(victim)


def test_victims_belong_to_their_endpoint_unless_their_place_is_reserved_for_another() -> None:
    bench = Bench(total_max_size=1)
    bench.fill('a', 1)
    waiter = bench.wait('b')
    evicted = gather(bench.core)
    assert evicted is not None and not evicted.belongs_to('a')
    bench.disposed(next(iter(evicted.take, None)))
    bench.discard(bench.take(waiter), 'error')
    own = gather(bench.core)
    assert own is not None and own.belongs_to('b')
    assert not own.belongs_to('a') and not own.belongs_to(waiter.own)
    assert not own.is_gone


def test_one_that_waited_only_for_what_it_had_evicted_counts_as_having_created() -> None:
    bench = Bench(total_max_size=1)
    bench.fill('a', 1)
    first, second = bench.wait('b'), bench.wait('b')
    bench.dispose_all()
    bench.discard(bench.take(first), 'dead')
    bench.dispose_all()
    bench.keep(bench.take(second))
    assert bench.total['acquires'] == dict.fromkeys(RESULTS, 0) | {'created': 2, 'waited': 1}


# --- releases ---


def test_a_connection_is_known_by_identity() -> None:
    bench = Bench()
    twins: list[list[object]] = [[], []]
    held = []
    for twin in twins:
        acquire = bench.ask('a')
        bench.created(acquire, twin)
        bench.finish(acquire)
        held.append(acquire)
    release = bench.begin_release(twins[1], 'a')
    assert release is not None and release.conn is twins[1]
    bench.end_release(release)
    assert bench.of('a') == Shape(idle=1, used=1)
    del held


def test_a_connection_that_was_rebuilt_is_found_by_equality() -> None:
    bench = Bench()
    acquire = bench.ask('a')
    bench.created(acquire, (['reader'], ['writer']))
    conn = bench.finish(acquire)
    release = bench.begin_release((['reader'], ['writer']), 'a')
    assert release is not None and release.conn is conn
    bench.end_release(release)
    with pytest.raises(ConnectionNotAcquiredError):
        bench.begin_release((['reader'], ['writer']), 'a')


def test_connections_are_found_among_many_whatever_was_released_before() -> None:
    """By identity: these are not even equal to themselves."""
    chance = random.Random(2)
    bench = Bench(max_size=2000, total_max_size=2000)
    held = []
    for _ in range(1500):
        held.append(bench.ask('a'))
        bench.created(held[-1], Awkward(lambda: False))
        bench.finish(held[-1])
    for _ in range(5):
        chance.shuffle(held)
        bench.put(*held[:1000])
        held[:1000] = [bench.get('a') for _ in range(1000)]
        assert bench.of('a').used == 1500
    bench.put(*held)
    assert bench.of('a').used == 0


def test_a_connection_that_the_pool_has_already_is_refused() -> None:
    """A manager may not return one object for two holders, of one endpoint or of two, nor one that is idle."""
    bench = Bench()
    conn = object()
    for endpoint in 'ab':
        bench.hold(endpoint)
        bench.created(again := bench.ask(endpoint), conn)
        bench.finish(again)
        for other in 'ab':
            refused = bench.ask(other)
            with pytest.raises(RuntimeError, match=r'create returned an object of type object that is in the pool'):
                bench.created(refused, conn)
        bench.put(again)
        with pytest.raises(RuntimeError, match='held or idle'):
            bench.created(bench.ask('c'), conn)
        assert bench.core.counts() == (1, 1, 0, 0, 0)
        bench = Bench()


def test_misuse_is_told_and_changes_nothing() -> None:
    bench = Bench()
    held = bench.get('a')
    bench.hold('b')
    before = bench.core.snapshot()
    for conn, endpoint in ((held.conn, 'b'), (object(), 'a'), (object(), 'nowhere')):
        with pytest.raises(ConnectionNotAcquiredError, match=f'not acquired for endpoint {endpoint!r}'):
            bench.begin_release(conn, endpoint)
    with pytest.raises(TypeError):
        bench.begin_release(object(), [])  # type: ignore[arg-type]
    assert bench.core.snapshot() == before


def test_in_a_closed_pool_a_release_of_what_is_not_held_does_nothing() -> None:
    """What it names may have been taken by force."""
    bench = Bench()
    held = bench.get('a')
    bench.core.close()
    before = bench.core.snapshot()
    assert bench.begin_release(object(), 'a') is None
    assert bench.begin_release(object(), 'nowhere') is None
    assert bench.core.snapshot() == before
    bench.put(held)
    assert bench.shape == Shape(disposing=1)


def test_a_second_release_finds_nothing() -> None:
    bench = Bench()
    held = bench.get('a')
    bench.put(held)
    with pytest.raises(ConnectionNotAcquiredError):
        bench.begin_release(held.conn, 'a')
    assert bench.of('a') == Shape(idle=1)


def test_a_release_in_progress_cannot_be_begun_again() -> None:
    bench = Bench()
    held = bench.get('a')
    release = bench.begin_release(held.conn, 'a')
    assert release is not None
    with pytest.raises(ConnectionNotAcquiredError):
        bench.begin_release(held.conn, 'a')
    assert bench.of('a') == Shape(used=1)
    bench.end_release(release)
    bench.end_release(release)  # it has ended: this does nothing
    assert bench.of('a') == Shape(idle=1)


def test_a_stale_release_changes_nothing() -> None:
    """Its connection is another caller's now."""
    bench = Bench(max_size=1)
    old = bench.get('a')
    release = bench.begin_release(old.conn, 'a')
    assert release is not None
    bench.end_release(release)
    new = bench.get('a')
    assert new.conn is old.conn
    bench.end_release(release)
    release.discard('error')
    old.abandon(Fault())
    bench.core.drain()
    assert bench.of('a') == Shape(used=1)
    assert bench.finish(new) is old.conn  # it has ended: this does nothing
    assert bench.total['acquires'] == dict.fromkeys(RESULTS, 0) | {'created': 1, 'hit': 1}


def test_a_stale_acquire_that_is_dropped_changes_nothing() -> None:
    bench = Bench(max_size=1)
    old = bench.get('a')
    bench.put(old)
    new = bench.get('a')
    del old
    bench.core.drain()
    assert bench.of('a') == Shape(used=1)
    assert new.conn is not None


def test_a_reason_must_be_known() -> None:
    bench = Bench()
    held = bench.get('a')
    with pytest.raises(ValueError):
        bench.discard(held, 'boredom')  # type: ignore[arg-type]
    assert bench.of('a') == Shape(used=1)


def test_a_connection_that_was_created_too_late_is_kept_for_others() -> None:
    bench = Bench(max_size=1)
    acquire = bench.ask('a', 5.0)
    waiter = bench.wait('a')
    bench.clock.advance(5.0)
    with pytest.raises(AcquireTimeoutError, match='time ran out in creation') as raised:
        bench.created(acquire, Conn('a', 1))
    acquire.abandon(raised.value)
    assert bench.poll(waiter) == USE
    assert bench.total['acquires']['timeout'] == 1
    assert bench.total['releases'] == dict.fromkeys(OUTCOMES, 0)  # it was never acquired


def test_a_check_that_took_too_long_costs_its_connection() -> None:
    bench = Bench()
    bench.fill('a', 1)
    acquire = bench.ask('a', 5.0)
    acquire.begin_call()
    bench.clock.advance(5.0)
    acquire.completed(True)
    with pytest.raises(AcquireTimeoutError, match='time ran out in check_aliveness') as raised:
        acquire.next()
    acquire.abandon(raised.value)
    assert [reason for _, reason in bench.dispose_all()] == ['error']


def test_an_acquire_that_ends_in_a_hook_costs_its_connection() -> None:
    bench = Bench()
    bench.fill('a', 1)
    acquire = bench.ask('a')
    acquire.begin_call()
    bench.failed(acquire, Fault())
    acquire.abandon(Fault())
    assert [reason for _, reason in bench.dispose_all()] == ['error']
    assert bench.total['acquires']['error'] == 1


def test_an_acquire_ends_once() -> None:
    bench = Bench()
    acquire = bench.get('a')
    acquire.abandon(Fault())
    assert bench.of('a') == Shape(used=1)
    assert bench.total['acquires'] == dict.fromkeys(RESULTS, 0) | {'created': 1}


# --- what finalizers leave ---


def test_a_release_that_read_the_clock_before_the_collector_looked_ends_a_life() -> None:
    """Without the GIL another thread may look between the two steps of a release."""
    bench = Bench(max_lifetime=10)
    held = bench.get('a')
    bench.clock.advance(10)
    assert bench.core.collect(1) == 0
    bench.clock.advance(-0.001)
    bench.put(held)
    assert bench.dispose_all() == [('a1', 'max_lifetime')]


def test_a_dropped_lease_is_disposed_of_by_the_next_call() -> None:
    bench = Bench(max_size=1)
    held = bench.get('a')
    waiter = bench.wait('a')
    del held
    assert bench.of('a') == Shape(used=1, waiting=1)  # a finalizer changes no counts
    assert bench.poll(waiter) == WAIT
    assert bench.dispose_all() == [('a1', 'discarded')]
    assert bench.verdict(waiter) == CREATE
    assert bench.total['releases']['discarded'] == 1


def test_a_dropped_release_is_disposed_of() -> None:
    """A release was begun, and dropped before its end."""
    bench = Bench()
    held = bench.hold('a')
    release = bench.begin_release(held.conn, 'a')
    del release
    bench.core.drain()
    assert bench.dispose_all() == [('a1', 'discarded')]


def test_an_acquire_and_a_release_of_one_lease_that_are_dropped_count_once() -> None:
    bench = Bench()
    held = bench.get('a')
    other = bench.get('a')
    release = bench.begin_release(held.conn, 'a')
    del release, held, other  # with no call to the core in between
    bench.core.drain()
    assert bench.of('a') == Shape(disposing=2)
    assert [reason for _, reason in bench.dispose_all()] == ['discarded', 'discarded']


def test_a_dropped_lease_wakes_one_who_can_use_it() -> None:
    bench = Bench(total_max_size=1)
    woken: list[str] = []
    held = bench.get('a')
    waiter = bench.wait('b', lambda: woken.append('b'))
    del held
    assert woken == ['b']
    assert bench.poll(waiter) == WAIT
    bench.dispose_all()
    assert bench.verdict(waiter) == CREATE


def test_what_is_garbage_together_with_its_core_is_not_called() -> None:
    """The collector may have cleared it already. A cleared function or partial is not safe to call."""
    called: list[str] = []
    garbage: list[Any] = []  # the oldest of all, so that it is cleared first
    bench = Bench(max_size=1)
    garbage += [bench.get('a'), bench, garbage]
    bench.pool.garbage = garbage
    garbage.append(bench.wait('a', lambda: called.append('event')))
    bench.core.on_abandoned = lambda: called.append('on_abandoned')
    del bench, garbage
    assert gc.collect() > 0
    assert not called


def test_a_front_may_be_told_of_what_finalizers_leave() -> None:
    bench = Bench()
    told: list[str] = []
    bench.core.on_abandoned = lambda: told.append('abandoned')
    held = bench.get('a')
    del held
    assert told == ['abandoned']
    bench.core.on_abandoned = raiser(Fault)
    held = bench.get('a')
    del held  # an error in there is ignored
    bench.core.drain()
    assert bench.shape == Shape(disposing=2)


def test_a_closer_is_told_of_a_dropped_lease() -> None:
    bench = Bench()
    held = bench.get('a')
    bench.core.close()
    told: list[str] = []
    bench.core.on_drained = lambda: told.append('drained')
    del held
    assert told == ['drained']
    bench.core.drain()
    assert bench.shape == Shape(disposing=1)


def test_a_dropped_victim_is_offered_again() -> None:
    bench = Bench()
    held = bench.get('a')
    bench.discard(held, 'dead')
    (victim,) = bench.victims()
    del victim
    assert bench.dispose_all() == [('a1', 'dead')]
    assert bench.shape == Shape()


@pytest.mark.parametrize('how', ['dropped', 'returned'])
def test_a_victim_that_comes_back_wakes_the_waiter_that_its_place_is_reserved_for(how: str) -> None:
    """A signal came before its disposal was begun, and ended the caller that was to see to it."""
    bench = Bench(total_max_size=1)
    bench.fill('a', 1)
    woken: list[str] = []
    waiter = bench.wait('b', lambda: woken.append('b'))
    (victim,) = bench.victims()
    if how == 'returned':
        victim.take_back()
    del victim
    assert woken == ['b']
    assert bench.poll(waiter) == WAIT
    assert bench.dispose_all() == [('a1', 'evicted')]
    assert bench.verdict(waiter) == CREATE


def test_a_dropped_victim_whose_disposal_had_begun_is_not_disposed_of_again() -> None:
    bench = Bench(max_size=1)
    held = bench.get('a')
    bench.discard(held, 'dead')
    waiter = bench.wait('a')
    (victim,) = bench.victims()
    bench.begin_disposal(victim)
    del victim
    assert bench.victims() == []
    assert bench.verdict(waiter) == CREATE


def test_an_acquire_dropped_with_a_permit_serves_the_next() -> None:
    bench = Bench(max_size=1)
    acquire = bench.ask('a')
    waiter = bench.wait('a')
    del acquire
    bench.core.drain()
    assert bench.verdict(waiter) == CREATE
    assert bench.of('a') == Shape(creating=1)


def test_an_acquire_dropped_with_a_permit_leaves_no_record() -> None:
    bench = Bench(max_size=1)
    acquire = bench.ask('a')
    del acquire
    bench.core.drain()
    assert bench.endpoints == {}


def test_an_acquire_dropped_in_the_queue_serves_the_next_when_its_turn_comes() -> None:
    bench = Bench(max_size=1)
    held = bench.get('a')
    dropped, waiter = bench.wait('a'), bench.wait('a')
    del dropped
    bench.put(held)
    bench.core.drain()
    bench.dispose_all()
    assert bench.verdict(waiter) in (USE, CREATE)
    assert bench.of('a') in (Shape(used=1), Shape(creating=1))


def test_an_acquire_dropped_with_a_connection_gives_it_up() -> None:
    bench = Bench()
    bench.fill('a', 1)
    acquire = bench.ask('a')
    assert bench.verdict(acquire) == USE
    del acquire
    bench.core.drain()
    assert [reason for _, reason in bench.dispose_all()] == ['discarded']


def test_a_core_that_is_dropped_lets_go_of_its_connections() -> None:
    bench = Bench()
    conns = bench.fill('a', 2)
    held = bench.get('b')
    refs = [weakref.ref(conn) for conn in [*conns, held.conn]]
    del conns, held, bench
    assert collect(*refs) == [None] * 3


def test_a_connection_that_knows_its_pool_is_collected_with_it() -> None:
    bench = Bench()
    (conn,) = bench.fill('a', 1)
    conn.bench = bench
    ref = weakref.ref(conn)
    del conn, bench
    assert collect(ref) == [None]


def test_a_core_with_a_waiter_is_collected() -> None:
    bench = Bench(max_size=1)
    conn = bench.get('a').conn
    ref = weakref.ref(conn)
    held = bench.get('b')
    waiter = bench.wait('b', lambda held=held: held)  # type: ignore[misc]
    del bench, held, waiter, conn
    assert collect(ref) == [None]


def test_an_acquire_that_was_served_and_never_looked_is_collected_with_its_core() -> None:
    """It was handed a connection that belongs to the core."""
    for _ in range(3):
        bench = Bench(max_size=1)
        held = bench.get('a')
        waiter = bench.wait('a')
        bench.put(held)
        cycle: list[object] = [bench, held, waiter]
        bench.core.wake_collector = lambda cycle=cycle: cycle
        ref = weakref.ref(waiter.conn or held.conn)
        del bench, held, waiter, cycle
        assert collect(ref) == [None]


# --- closing ---


def test_a_close_turns_waiters_away_and_takes_what_is_idle() -> None:
    bench = Bench(max_size=2)
    bench.fill('a', 1)
    held, creating = bench.get('b'), bench.ask('b')
    woken: list[str] = []
    waiter = bench.wait('b', lambda: woken.append('b'))
    bench.core.close()
    assert woken == ['b']
    assert bench.verdict(waiter) == SHUT
    assert bench.verdict(bench.ask('a')) == SHUT
    assert [reason for _, reason in bench.dispose_all()] == ['pool_closed']
    assert bench.created(creating, Conn('b', 9)) == SHUT
    bench.put(held)
    assert [reason for _, reason in bench.dispose_all()] == ['pool_closed', 'pool_closed']
    assert bench.core.closed and bench.shape == Shape()


def test_a_closed_core_says_when_it_has_become_empty() -> None:
    bench = Bench()
    told: list[int] = []
    bench.core.on_drained = lambda: told.append(bench.core.size)
    bench.fill('a', 1)
    held = bench.get('b')
    bench.core.close()
    bench.dispose_all()
    assert told == []
    bench.put(held)
    assert told == []
    bench.dispose_all()
    assert told and set(told) == {0}


def test_one_whose_connection_was_dead_when_the_pool_closed_leaves_nothing() -> None:
    bench = Bench()
    bench.fill('a', 1)
    acquire = bench.ask('a')
    acquire.begin_call()
    bench.core.close()
    assert bench.retry(acquire) == SHUT
    acquire.abandon(ConnectionPoolClosedError())
    assert len(bench.dispose_all()) == 1
    assert bench.shape == Shape()


def test_force_takes_what_is_held_and_its_release_does_nothing() -> None:
    bench = Bench()
    held = bench.get('a')
    conn = held.conn
    bench.core.close()
    bench.core.force()
    assert bench.dispose_all() == [('a1', 'pool_closed')]
    assert bench.begin_release(conn, 'a') is None
    bench.end_release(held)
    del held
    bench.core.drain()
    assert bench.shape == Shape()
    assert bench.total['releases']['discarded'] == 1


def test_force_leaves_one_whose_hook_is_running_to_that_hook() -> None:
    bench = Bench()
    bench.fill('a', 1)
    acquiring = bench.ask('a')
    held = bench.get('a')
    releasing = bench.begin_release(held.conn, 'a')
    assert releasing is not None
    bench.core.close()
    bench.core.force()
    assert bench.shape == Shape(used=2)
    bench.end_release(releasing)
    with pytest.raises(ConnectionPoolClosedError):
        bench.finish(acquiring)
    acquiring.abandon(ConnectionPoolClosedError())
    assert [reason for _, reason in bench.dispose_all()] == ['pool_closed', 'pool_closed']
    assert bench.shape == Shape()


def test_closing_again_changes_nothing() -> None:
    bench = Bench()
    bench.fill('a', 2)
    bench.core.close()
    bench.core.close()
    bench.core.force()
    assert len(bench.dispose_all()) == 2
    bench.core.close()
    assert bench.shape == Shape()


# --- endpoints ---


def test_an_endpoint_is_forgotten_with_its_last_connection_but_not_what_it_counted() -> None:
    bench = Bench()
    for number in range(100):
        held = bench.get(('endpoint', number))
        bench.discard(held, 'dead')
        bench.dispose_all()
    assert bench.endpoints == {}
    assert bench.total['created'] == bench.total['closed']['dead'] == bench.total['acquires']['created'] == 100


def test_an_endpoint_is_forgotten_after_a_failed_creation() -> None:
    bench = Bench()
    acquire = bench.ask('a')
    bench.failed(acquire, Fault())
    acquire.abandon(Fault())
    assert bench.endpoints == {}
    assert bench.total['acquires']['error'] == 1


def test_an_endpoint_is_forgotten_with_its_last_waiter() -> None:
    bench = Bench(total_max_size=1)
    bench.hold('a')
    waiter = bench.wait('b')
    assert set(bench.endpoints) == {'a', 'b'}
    bench.expire(waiter)
    waiter.abandon(AcquireTimeoutError())
    assert set(bench.endpoints) == {'a'}
    assert bench.total['acquires']['timeout'] == 1


def test_an_acquire_that_a_closed_pool_refuses_leaves_no_record() -> None:
    bench = Bench()
    bench.core.close()
    for number in range(10):
        acquire = bench.ask(number)
        assert bench.verdict(acquire) == SHUT
        acquire.abandon(ConnectionPoolClosedError())
    assert bench.endpoints == {}
    assert bench.total['acquires']['error'] == 10


def test_an_acquire_that_ends_before_it_asked_leaves_no_record() -> None:
    bench = Bench()
    acquire = bench.acquire('a')
    acquire.abandon(KeyboardInterrupt())
    dropped = bench.acquire('b')
    del acquire, dropped
    bench.core.drain()
    assert bench.endpoints == {}


def test_a_forgotten_endpoint_may_come_back() -> None:
    bench = Bench()
    acquire = bench.acquire('a')
    held = bench.get('a')
    bench.discard(held, 'dead')
    bench.dispose_all()
    assert bench.endpoints == {}
    assert bench.request(acquire) == CREATE
    bench.take(acquire)
    assert bench.of('a') == Shape(used=1)
    assert bench.total['created'] == 2


def test_keys_are_not_kept_alive() -> None:
    bench = Bench()
    key = Conn('key', 1)
    ref = weakref.ref(key)
    held = bench.get(key)
    bench.discard(held, 'dead')
    bench.dispose_all()
    del held, key
    assert collect(ref) == [None]


# --- hostile keys and connections ---


class Key:
    """A key that is equal by its value; its hash and its comparisons run what they are told, once each."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.script: list[Callable[[], object] | None] = []

    def _run(self) -> None:
        action = self.script.pop(0) if self.script else None
        if action is not None:
            action()

    def __hash__(self) -> int:
        self._run()
        return self.value

    def __eq__(self, other: object) -> bool:
        self._run()
        return isinstance(other, Key) and self.value == other.value


def test_a_key_that_is_equal_is_the_same_endpoint() -> None:
    bench = Bench(max_size=1)
    held = bench.get(Key(1))
    waiter = bench.wait(Key(1))
    release = bench.begin_release(held.conn, Key(1))
    assert release is not None
    bench.end_release(release)
    assert bench.poll(waiter) == USE


def test_keys_that_are_not_hashable_are_refused() -> None:
    bench = Bench()
    for method in (bench.ask, bench.core.endpoint_size):
        with pytest.raises(TypeError):
            method([])  # type: ignore[arg-type]
    assert bench.endpoints == {}


@pytest.mark.parametrize('position', range(3))
@pytest.mark.parametrize('error', [Fault, KeyboardInterrupt])
def test_a_key_that_raises_changes_nothing(error: type[BaseException], position: int) -> None:
    bench = Bench()
    key = Key(1)
    held = bench.get(key)
    before = bench.core.snapshot()
    for method in (bench.ask, bench.core.endpoint_size, lambda bad: bench.begin_release(held.conn, bad)):
        bad = Key(1)
        bad.script = [None] * position + [raiser(error)]
        kept: list[object] = []
        try:
            kept.append(method(bad))
        except error:
            assert bench.core.snapshot() == before
        else:
            assert bad.script  # found before it could raise
            break


@pytest.mark.parametrize('position', range(4))
@pytest.mark.parametrize('method', ['acquire', 'endpoint_size', 'release'])
def test_a_key_that_calls_the_core_while_it_is_looked_up_does_no_harm(method: str, position: int) -> None:
    bench = Bench(max_size=2)
    keys = [Key(1), Key(1)]
    held = bench.get(keys[0])

    def meddle() -> None:
        bench.put(bench.get('other'))
        bench.discard(bench.get('other'), 'dead')
        bench.dispose_all()
        bench.core.drain()
        bench.core.snapshot()

    keys[1].script = [None] * position + [meddle]
    if method == 'release':
        release = bench.begin_release(held.conn, keys[1])
        assert release is not None
        bench.end_release(release)
        assert bench.of(keys[0]) == Shape(idle=1)
    elif method == 'acquire':
        assert bench.get(keys[1]).conn is not held.conn
    else:
        assert bench.core.endpoint_size(keys[1]) == 1


@pytest.mark.parametrize('first', range(4))
@pytest.mark.parametrize('second', range(4))
def test_an_endpoint_that_comes_back_while_it_is_forgotten_has_one_record(first: int, second: int) -> None:
    """Forgetting looks the key up; its hash is user code, in which other threads (or, here, it itself) may acquire."""
    bench = Bench(max_size=1)
    key = Key(1)
    acquires = []
    held = bench.get(key)
    bench.discard(held, 'dead')
    (victim,) = bench.victims()
    del held

    def come_back() -> None:
        acquires.append(bench.ask(Key(1)))

    key.script = [*[None] * first, come_back, *[None] * second, come_back]
    bench.disposed(victim)
    key.script = []
    acquires.append(bench.ask(Key(1)))
    assert [bench.verdict(acquire) for acquire in acquires] == [CREATE] + [WAIT] * (len(acquires) - 1)
    assert bench.shape == Shape(creating=1, waiting=len(acquires) - 1)
    for acquire in acquires:
        acquire.abandon(Fault())
    assert bench.shape == Shape()
    assert bench.endpoints == {}


def test_a_key_whose_hash_fails_while_it_is_forgotten_can_come_back() -> None:
    bench = Bench(max_size=1)
    key = Key(1)
    held = bench.get(key)
    bench.discard(held, 'dead')
    (victim,) = bench.victims()
    key.script = [raiser(Fault)]
    bench.disposed(victim)
    key.script = []
    assert bench.shape == Shape()
    acquires = [bench.ask(Key(1)) for _ in range(2)]
    assert [bench.verdict(acquire) for acquire in acquires] == [CREATE, WAIT]


class Awkward:
    """A connection that cannot be hashed, and whose comparisons run what they are told."""

    def __init__(self, compare: Callable[[], bool]) -> None:
        self.compare = compare

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self.compare()


def test_a_connection_need_not_be_hashable_nor_equal_to_itself() -> None:
    bench = Bench()
    acquire = bench.ask('a')
    conn = Awkward(lambda: False)
    bench.created(acquire, conn)
    assert bench.finish(acquire) is conn
    release = bench.begin_release(conn, 'a')
    assert release is not None
    bench.end_release(release)
    assert bench.of('a') == Shape(idle=1)


def test_a_comparison_of_connections_that_raises_changes_nothing() -> None:
    bench = Bench()
    acquire = bench.ask('a')
    bench.created(acquire, Awkward(raiser(Fault)))
    bench.finish(acquire)
    with pytest.raises(Fault):
        bench.begin_release(object(), 'a')
    assert bench.of('a') == Shape(used=1)


def test_a_comparison_of_connections_that_releases_them_ends_in_an_error() -> None:
    bench = Bench()
    acquire = bench.ask('a')

    def release_it() -> bool:
        bench.put(acquire)
        return True

    bench.created(acquire, Awkward(release_it))
    bench.finish(acquire)
    with pytest.raises(ConnectionNotAcquiredError):
        bench.begin_release(object(), 'a')
    assert bench.of('a') == Shape(idle=1)


class Loud:
    """A connection whose finalizer calls the pool."""

    def __init__(self, say: Callable[[], object]) -> None:
        self.say = say

    def __del__(self) -> None:
        self.say()


def test_a_finalizer_may_call_the_core() -> None:
    bench = Bench(max_size=1)
    heard: list[Shape] = []

    def say() -> None:
        heard.append(bench.shape)
        bench.core.collect(9)
        bench.core.drain()
        bench.put(bench.get('b'))

    acquire = bench.ask('a')
    bench.created(acquire, Loud(say))
    bench.finish(acquire)
    bench.discard(acquire, 'dead')
    waiter = bench.wait('a')
    bench.dispose_all()
    assert len(heard) == 1
    assert bench.verdict(waiter) == CREATE


# --- looking ---


def test_a_snapshot_is_consistent() -> None:
    bench = Bench(max_size=2, total_max_size=5)
    bench.fill('a', 2)
    for acquire in (bench.get('b'), bench.get('b'), bench.ask('c'), bench.wait('b'), bench.wait('d')):
        bench.keep(acquire)
    total, endpoints = bench.core.snapshot()
    by_name = dict(endpoints)
    assert len(by_name) == len(endpoints)
    for field in (*Shape._fields, 'created'):
        assert total[field] == sum(counts[field] for counts in by_name.values()), field
    assert set(total['closed']) == set(REASONS)
    assert set(total['acquires']) == set(RESULTS)
    assert set(total['releases']) == set(OUTCOMES)


def test_an_acquire_that_timed_out_says_what_stood_in_the_way() -> None:
    bench = Bench(max_size=2, total_max_size=3)
    bench.hold('a')
    bench.clock.advance(1.0)
    bench.hold('a')
    waiter = bench.wait('a')
    assert bench.expire(waiter) == WAIT
    assert waiter.blocked_by == 'endpoint cap'
    assert waiter.block == (0, 2, 0, 0, 2, 1000.0)
    bench.keep(bench.ask('b'))
    waiter = bench.wait('c')
    assert bench.expire(waiter) == WAIT
    assert waiter.blocked_by == 'total cap'
    assert waiter.block == (0, 2, 1, 0, 3, 1000.0)


def test_an_acquire_that_only_creations_stood_in_the_way_of_says_so() -> None:
    bench = Bench(max_size=1, total_max_size=2)
    for endpoint in 'ab':
        bench.keep(bench.ask(endpoint))
    for endpoint in 'ac':
        waiter = bench.wait(endpoint)
        assert bench.expire(waiter) == WAIT
        assert waiter.blocked_by == 'creation'


def test_an_acquire_knows_its_time() -> None:
    bench = Bench(max_size=1)
    bench.hold('a')
    acquire = bench.ask('a', 5.0)
    assert (acquire.timeout, acquire.nowait, acquire.remaining(), acquire.time_to_wait()) == (5.0, False, 5.0, 5.0)
    bench.clock.advance(5.0)
    assert (acquire.remaining(), acquire.time_to_wait()) == (0.0, 0.0)
    for timeout in (None, inf):
        endless = bench.ask('a', timeout)
        assert (endless.nowait, endless.remaining(), endless.time_to_wait()) == (False, None, inf)
    for timeout in (0, -1):
        hurried = bench.ask('a', timeout)
        assert (hurried.nowait, hurried.remaining(), hurried.time_to_wait()) == (True, None, 0.0)


def test_an_acquire_has_the_time_of_its_pool() -> None:
    bench = Bench(max_size=1, acquire_timeout=30.0)
    bench.hold('a')
    acquire = bench.ask('a')
    assert (acquire.timeout, acquire.nowait, acquire.remaining(), acquire.time_to_wait()) == (30.0, False, 30.0, 30.0)
    hurried = bench.ask('a', 0)  # it does not wait, but its hooks have time
    assert (hurried.nowait, hurried.remaining(), hurried.time_to_wait()) == (True, 30.0, 0.0)


def test_one_that_does_not_wait_is_patient_with_a_disposal_for_its_sake() -> None:
    bench = Bench(total_max_size=1)
    bench.fill('a', 1)
    acquire = bench.ask('b', timeout=0)
    assert bench.verdict(acquire) == WAIT
    assert acquire.time_to_wait() == GRACE
    bench.dispose_all()
    assert bench.poll(acquire) == CREATE


def test_each_transition_is_announced_before_it_happens() -> None:
    bench = Bench(max_size=1)
    announced: list[str] = []
    before: list[Shape] = []

    def announce(transition: str) -> None:
        announced.append(transition)
        before.append(bench.shape)

    bench.core.on_transition = announce
    held = bench.get('a')
    assert announced == ['request', 'created', 'finish']
    assert before == [Shape(), Shape(creating=1), Shape(used=1)]
    announced.clear()
    waiter = bench.wait('a')
    bench.put(held)
    bench.take(waiter)
    assert announced == ['request', 'arm', 'checkin', 'give_back', 'poll', 'finish']
    announced.clear()
    bench.discard(waiter, 'dead')
    bench.dispose_all()
    assert announced == ['checkin', 'discard', 'victim', 'victim', 'disposed', 'victim']
    announced.clear()
    bench.core.collect(1)
    bench.core.close()
    bench.core.force()
    assert announced == ['collect', 'close', 'force']


# --- fork ---


def test_a_forked_child_begins_empty_and_works(script: Script) -> None:
    assert (
        script("""
        import gc, os, sys
        from core.helpers import Bench, Shape, CREATE, USE
        from gcp.exceptions import AcquireTimeoutError

        class Conn:
            def __del__(self):
                if os.getpid() != parent:
                    print('finalized, and the parent still uses it', flush=True)

        parent = os.getpid()
        bench = Bench(max_size=3, total_max_size=4)
        core = bench.core
        acquires = [bench.ask('a') for _ in range(3)]
        for acquire in acquires[:2]:
            bench.created(acquire, Conn())
            bench.finish(acquire)
        bench.put(acquires[0])
        creating = acquires.pop()
        other = bench.ask('b')
        waiter = bench.wait('c')
        forked = []
        core.on_fork = lambda: forked.append(bench.shape)
        child = os.fork()
        if not child:
            assert forked == [Shape()], forked
            assert acquires[1].inherited
            assert bench.begin_release(acquires[1].conn, 'a') is None   # a release of the parent's does nothing
            assert bench.poll(waiter) == CREATE                     # here no other acquire stands in the way
            other.abandon(AcquireTimeoutError())
            assert bench.created(creating, object()) == USE         # was in progress: it goes on
            bench.finish(creating)
            assert bench.shape == Shape(used=1, creating=1), bench.shape
            bench.put(creating)
            waiter.abandon(AcquireTimeoutError())
            assert bench.get('a').conn is not None
            acquires.clear()
            del acquire, other, waiter
            gc.collect()
            core.drain()
            assert bench.shape.disposing == 1, bench.shape          # the one that was acquired just now, and dropped
            bench.dispose_all()
            core.close()
            assert not bench.dispose_all() and bench.shape == Shape()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert forked == []
        assert bench.shape == Shape(used=1, creating=2, disposing=1, waiting=1), bench.shape
        print(os.waitstatus_to_exitcode(status))
    """)
        .quietly()
        .strip()
        == '0'
    )


def test_a_creation_that_fails_in_a_forked_child_leaves_the_counts_alone(script: Script) -> None:
    assert (
        script("""
        import os
        from core.helpers import Bench, Shape, CREATE

        for limits in ({'max_size': 1}, {'total_max_size': 1}, {'max_size': 2, 'total_max_size': 2}):
            bench = Bench(**limits)
            creating, others = bench.ask('a'), [bench.ask(endpoint) for endpoint in 'aaabbb']
            child = os.fork()
            if not child:
                bench.failed(creating, OSError())
                creating.abandon(OSError())
                assert bench.shape == Shape(), bench.shape
                assert bench.get('a') and bench.shape.used == 1
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, limits
        print('fine')
    """)
        .quietly()
        .strip()
        == 'fine'
    )


def test_the_children_of_children_work(script: Script) -> None:
    assert script("""
        import os
        from core.helpers import Bench, Shape

        bench = Bench()
        generations = [bench.get('a')]
        for generation in range(3):
            child = os.fork()
            if child:
                os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            assert bench.shape == Shape(), bench.shape
            assert bench.begin_release(generations[-1].conn, 'a') is None
            generations.append(bench.get('a'))
            bench.fill('b', 2)
        bench.put(generations[-1])
        print(bench.shape)
    """).quietly().strip() == repr(Shape(idle=3))


# --- by default ---


def test_a_core_reads_the_monotonic_clock() -> None:
    import time

    core = Core()
    before = time.monotonic()
    assert before <= core.time() <= time.monotonic()
