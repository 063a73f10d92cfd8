"""Guarantee 24 (docs/guarantees.md): what a pool says about an acquire that would wait, and about those that do."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fronts import Front
from gil import is_same

from gcp import Explanation, Retry
from gcp.testing import error as raises
from gcp.testing import never, ok


def explain(front: Front, endpoint: Any) -> Explanation[Any]:
    """Ask the only pool."""
    found: Explanation[Any] = front.pools[0].explain(endpoint)
    return found


async def test_an_unknown_endpoint_has_an_empty_answer(front: Front) -> None:
    front.pool(front.manager())
    found = explain(front, ('nowhere', 1))
    assert found == Explanation(('nowhere', 1))
    assert not found.known and not found.waits
    assert str(found) == "('nowhere', 1): the pool has no connection and no waiter"
    assert front.pools[0].stats().endpoints == {}
    assert front.pools[0].waiters() == front.pools[0].waiters('nowhere') == []


async def test_what_cannot_be_an_endpoint_is_refused(front: Front) -> None:
    front.pool(front.manager())
    for ask in (front.pools[0].explain, front.pools[0].waiters):
        with pytest.raises(TypeError, match='endpoint must be hashable, not list'):
            ask([])


async def test_an_idle_connection_and_a_free_place(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=2)
    held = await pool.acquire('db')
    found = explain(front, 'db')
    assert (found.blocked_by, found.cap, found.expected_wait, found.used) == (None, None, 0.0, 1)
    assert str(found) == "'db': an acquire would connect (0 idle, 1 used, 0 connecting, 0 waiting)"
    await pool.release(held, 'db')
    found = explain(front, 'db')
    assert (found.waits, found.idle) == (False, 1)
    assert str(found).startswith("'db': an acquire would get an idle connection")


async def test_the_endpoint_s_cap_is_named_with_its_value(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=2, acquire_timeout=20)
    held = await front.fill(pool, 'db', 2)
    waiters = await front.line_up(pool, 'db', 3)
    found = explain(front, 'db')
    assert (found.blocked_by, found.cap, found.max_size) == ('endpoint cap', 'max_size=2', 2)
    assert (found.idle, found.used, found.waiting) == (0, 2, 3)
    assert 0 < found.oldest_waiter <= found.oldest_checkout
    assert 'would wait' in str(found) and 'max_size=2 (endpoint cap) (0 idle, 2 used, 0 connecting, 3 w' in str(found)
    assert explain(front, 'other').blocked_by is None
    for _ in range(3):
        await pool.release(held.pop(0), 'db')
        held.append(await waiters.pop(0))
    await front.give_back(pool, held)


async def test_the_total_cap_is_named_with_its_value(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=2, total_max_size=3)
    held = [(await pool.acquire('a'), 'a'), (await pool.acquire('a'), 'a'), (await pool.acquire('b'), 'b')]
    found = explain(front, 'b')
    assert (found.blocked_by, found.cap) == ('total cap', 'total_max_size=3')
    assert 'total_max_size=3' in str(found)
    await pool.release(*held.pop(0))
    found = explain(front, 'b')
    assert (found.blocked_by, found.expected_wait) == (None, 0.0), 'the idle connection would be evicted'
    for one in held:
        await pool.release(*one)


async def test_it_expects_what_was_measured(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1, acquire_timeout=20)
    held = await pool.acquire('db')
    assert explain(front, 'db').expected_wait is None, 'no connection was ever released'
    [first] = await front.line_up(pool, 'db', 1)
    await pool.release(held, 'db')
    held = await first
    expected = explain(front, 'db').expected_wait
    mean = pool.stats().use_time.sum
    assert expected == pytest.approx(mean)
    assert 'about' in str(explain(front, 'db'))
    await pool.release(held, 'db')


async def test_a_connect_in_progress(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=1, acquire_timeout=20)
    manager.create.does(never(ok()))
    first = front.spawn(pool.acquire('db'))
    await front.until(lambda: manager.create.running == 1)
    found = explain(front, 'db')
    assert (found.blocked_by, found.cap, found.creating, found.connecting) == ('creation', None, 1, 1)
    assert 'a connection is being created' in str(found)
    manager.unblock()
    await pool.release(await first, 'db')


async def test_the_limit_of_connects(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=5, max_connecting=1, acquire_timeout=20)
    manager.create.does(never(ok()))
    first = front.spawn(pool.acquire('db'))
    await front.until(lambda: manager.create.running == 1)
    assert explain(front, 'db').cap == 'max_connecting=1'
    manager.unblock()
    await pool.release(await first, 'db')


async def test_the_breaker_with_its_last_error(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, breaker_threshold=1, connect_retry=Retry(60, 60, jitter=0), acquire_timeout=20)
    boom = ConnectionRefusedError('connection refused')
    manager.create.does(raises(boom))
    with pytest.raises(ConnectionRefusedError):
        await pool.acquire('db', timeout=0)
    found = explain(front, 'db')
    assert (found.blocked_by, found.breaker, found.failures) == ('breaker', 'open', 1)
    assert is_same(found.last_error, boom)
    assert found.retry_at is not None and 50 < found.retry_at - time.monotonic() <= 60
    assert 50 < found.retry_delay <= 60 and found.expected_wait == pytest.approx(found.retry_delay, abs=5)
    assert str(found).startswith(
        "'db': an acquire would be refused: breaker open: the last connect has failed "
        '(ConnectionRefusedError: connection refused), the next one is due in '
    )


async def test_the_retry_delay(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, connect_retry=Retry(60, 60, jitter=0), acquire_timeout=20)
    manager.create.does(raises(OSError('down')))
    waiter = front.spawn(pool.acquire('db'))
    await front.until(lambda: pool.stats().waiting == 1)
    found = explain(front, 'db')
    assert (found.blocked_by, found.waiting, found.breaker) == ('retry delay', 1, 'closed')
    assert 'retry delay: the last connect has failed (OSError: down), the next one is due in ' in str(found)
    [one] = front.pools[0].waiters()
    assert one.blocked_by == 'retry delay'
    await pool.close(timeout=0)
    with pytest.raises(Exception, match='closed'):
        await waiter


async def test_an_endpoint_that_is_being_retired_and_a_closed_pool(front: Front) -> None:
    pool = front.pool(front.manager())
    held = await pool.acquire('db')
    retiring = front.spawn(pool.retire('db'))
    await front.until(lambda: explain(front, 'db').retiring)
    found = explain(front, 'db')
    assert (found.blocked_by, found.used) == ('retiring', 1)
    assert 'would be refused: the endpoint is being retired' in str(found)
    await pool.release(held, 'db')
    await retiring

    held = await pool.acquire('db')
    closing = front.spawn(pool.close())
    await front.until(lambda: pool.closed)
    assert explain(front, 'db').blocked_by == 'closed'
    await pool.release(held, 'db')
    await closing


async def test_a_suspended_endpoint(front: Front) -> None:
    pool = front.pool(front.manager())
    async with pool.connection('db'):
        pass
    await pool.suspend('db')
    found = explain(front, 'db')
    assert (found.blocked_by, found.suspended, found.idle) == ('suspended', True, 1)
    assert 'would wait: the endpoint is suspended' in str(found)
    front.pools[0].resume('db')
    assert not explain(front, 'db').waits and not explain(front, 'db').suspended


async def test_an_endpoint_that_may_carry_credentials_is_not_shown(front: Front) -> None:
    pool = front.pool(front.manager())
    async with pool.connection('redis://user:secret@host'):
        assert 'secret' not in str(explain(front, 'redis://user:secret@host'))


async def test_asking_changes_nothing(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1, acquire_timeout=20)
    held = await pool.acquire('db')
    waiters = await front.line_up(pool, 'db', 2)
    before = pool.stats()
    for _ in range(3):
        explain(front, 'db'), front.pools[0].waiters()
    after = pool.stats()
    assert (before.waiting, before.used, before.acquires) == (after.waiting, after.used, after.acquires)
    for waiter in waiters:
        await pool.release(held, 'db')
        held = await waiter
    await pool.release(held, 'db')


# --- the wait queues ---


async def test_waiters_are_listed_oldest_first(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1, acquire_timeout=300)
    a, b = await pool.acquire('a'), await pool.acquire('b')
    [one] = await front.line_up(pool, 'a', 1)
    [two] = await front.line_up(pool, 'b', 1)
    three = front.spawn(pool.acquire('a', timeout=float('inf')))
    await front.until(lambda: pool.stats().waiting == 3)

    found = front.pools[0].waiters()
    assert [(waiter.endpoint, waiter.position) for waiter in found] == [('a', 1), ('b', 1), ('a', 2)]
    assert found[0].age >= found[1].age >= found[2].age > 0
    assert 0 < found[0].remaining <= 300 and found[2].remaining is None
    assert {(waiter.blocked_by, waiter.cap) for waiter in found} == {('endpoint cap', 'max_size=1')}
    assert [waiter.position for waiter in front.pools[0].waiters('a')] == [1, 2]
    assert front.pools[0].waiters('c') == []

    await pool.release(a, 'a')
    await pool.release(await one, 'a')
    await pool.release(await three, 'a')
    await pool.release(b, 'b')
    await pool.release(await two, 'b')
