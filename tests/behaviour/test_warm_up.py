"""Guarantee 20 (docs/guarantees.md): endpoints that are warmed up, and kept so."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
from fronts import Front

from gcp.exceptions import ConnectionPoolClosedError, ErrorClass, PoolNotReadyError
from gcp.limits import EndpointLimits, Retry
from gcp.testing import error, never, ok


async def test_it_opens_min_idle_connections_of_each_in_parallel(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never())
    pool = front.pool(manager, min_idle=3)
    warming = front.spawn(pool.warm_up('a', 'b'))
    await front.until(lambda: manager.create.running == 6)
    manager.create.unblock()
    await warming
    stats = pool.stats()
    assert {endpoint: each.idle for endpoint, each in stats.endpoints.items()} == {'a': 3, 'b': 3}
    assert manager.story('on_acquire', 'check_aliveness') == []


async def test_up_to_size_with_those_that_are_there(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    held = await pool.acquire('a')
    await pool.release(await pool.acquire('a'), 'a')
    await pool.warm_up('a', size=4)
    assert len(manager.created) == 4
    await pool.release(held, 'a')


async def test_it_takes_the_min_idle_of_the_endpoint(front: Front) -> None:
    pool = front.pool(front.manager(), limits={'a': EndpointLimits(min_idle=3)})
    await pool.warm_up('a', 'b')
    assert {endpoint: each.idle for endpoint, each in pool.stats().endpoints.items()} == {'a': 3, 'b': 1}


async def test_above_a_cap_is_an_error_that_changes_nothing(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=3, total_max_size=5, limits={'a': EndpointLimits(max_size=2)})
    for endpoints, size in ((('a',), 3), (('b',), 4), (('b', 'c'), 3)):
        with pytest.raises(ValueError, match='max_size'):
            await pool.warm_up(*endpoints, size=size)
    with pytest.raises(TypeError, match='size'):
        await pool.warm_up('a', size='3')  # type: ignore[arg-type]
    assert manager.calls == []
    await pool.wait_ready(0)


async def test_the_error_of_one_endpoint_is_raised_itself(front: Front) -> None:
    manager = front.manager()
    manager.create.does(error(ConnectionRefusedError()), endpoint='b')
    pool = front.pool(manager)
    with pytest.raises(ConnectionRefusedError):
        await pool.warm_up('a', 'b')
    assert pool.stats().idle == 1


async def test_those_of_several_are_a_group(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    manager = front.manager()
    manager.create.does(error(ConnectionRefusedError('a')), endpoint='a')
    manager.create.does(error(TimeoutError('b')), endpoint='b')
    pool = front.pool(manager)
    with caplog.at_level(logging.ERROR), pytest.raises(Exception) as caught:
        await pool.warm_up('a', 'b', 'c')
    if sys.version_info >= (3, 11):
        assert isinstance(caught.value, ExceptionGroup)  # noqa: F821
        assert {type(each) for each in caught.value.exceptions} == {ConnectionRefusedError, TimeoutError}
    else:
        assert isinstance(caught.value, (ConnectionRefusedError, TimeoutError))  # the first that came
        assert ('TimeoutError' in caplog.text) is isinstance(caught.value, ConnectionRefusedError)
    assert pool.stats().idle == 1


async def test_a_connect_that_is_tried_again_is_no_error(front: Front) -> None:
    manager = front.manager()
    manager.create.does(error(ConnectionRefusedError()), error(ConnectionRefusedError()), ok())
    pool = front.pool(manager, connect_retry=Retry(initial=0.01, maximum=0.02))
    await pool.warm_up('a', timeout=10)
    assert pool.stats().idle == 1


async def test_a_permanent_error_is_raised_at_once(front: Front) -> None:
    manager = front.manager()
    manager.create.does(error(ConnectionRefusedError('password')))
    manager.classify.does(ok(ErrorClass.PERMANENT))
    pool = front.pool(manager, connect_retry=Retry())
    with pytest.raises(ConnectionRefusedError, match='password'):
        await pool.warm_up('a', timeout=10)
    assert len(manager.create.calls) == 1


async def test_its_time_limit(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never())
    pool = front.pool(manager)
    with pytest.raises(PoolNotReadyError) as caught:
        await pool.warm_up('a', timeout=0.02)
    assert caught.value.missing == {'a': 1}
    await front.until(lambda: manager.create.running)
    manager.create.unblock()
    await front.until(lambda: pool.stats().idle == 1)  # what was begun goes on


async def test_a_closed_pool(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never())
    pool = front.pool(manager)
    warming = front.spawn(pool.warm_up('a'))
    await front.until(lambda: manager.create.running)
    closing = front.spawn(pool.close(timeout=5))
    with pytest.raises(ConnectionPoolClosedError):
        await warming
    manager.create.unblock()
    await closing
    for wrong in (pool.warm_up, pool.wait_ready):
        with pytest.raises(ConnectionPoolClosedError):
            await wrong()
    assert manager.live == []


async def test_warming_nothing_returns_at_once(front: Front) -> None:
    pool = front.pool(front.manager(), min_idle=0)
    await pool.warm_up()
    await pool.warm_up('a')
    await pool.wait_ready(0)


# --- refill ---


async def test_a_kept_endpoint_is_brought_back(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, refill=True, min_idle=2)
    await pool.warm_up('a')
    await pool.discard(await pool.acquire('a'), 'a')
    await front.until(lambda: pool.stats().idle == 2 and not pool.stats().disposing)
    assert len(manager.created) == 3


async def test_so_it_is_when_its_connections_expire(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, refill=True, max_lifetime=0.05, idle_timeout=0.05)
    await pool.warm_up('a')
    await front.until(lambda: len(manager.created) >= 4)


async def test_without_refill_it_is_not(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    await pool.warm_up('a')
    await pool.discard(await pool.acquire('a'), 'a')
    await front.until(lambda: not pool.stats().disposing)
    await front.sleep(0.02)
    assert len(manager.created) == 1


async def test_refill_and_min_idle_can_be_changed(front: Front) -> None:
    manager = front.manager()
    pool: Any = front.pool(manager)
    await pool.warm_up('a')
    pool.reconfigure(refill=True, min_idle=3)
    await pool.wait_ready(10)
    assert len(manager.created) == 3


async def test_until_it_is_retired(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, refill=True)
    await pool.warm_up('a')
    await pool.retire('a')
    await front.sleep(0.02)
    assert (len(manager.created), pool.get_size()) == (1, 0)


async def test_a_refill_that_fails_is_tried_again_but_not_all_the_time(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, refill=True)
    await pool.warm_up('a')
    manager.create.does(error(ConnectionRefusedError()))
    await pool.discard(await pool.acquire('a'), 'a')
    await front.sleep(0.4)
    assert 2 <= len(manager.create.calls) <= 5
    manager.create.does(ok())
    await pool.wait_ready(5)


async def test_a_refill_evicts_nothing(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, refill=True, total_max_size=2, max_size=2)
    await pool.warm_up('a')
    first, second = [await pool.acquire('b'), await pool.acquire('b')]  # the second evicts that of a
    await pool.release(first, 'b')
    await front.sleep(0.02)
    assert manager.peak('a') == 1
    assert pool.stats().endpoints['b'].idle == 1
    await pool.discard(second, 'b')
    await front.until(lambda: pool.stats().endpoints['a'].idle == 1)


# --- wait_ready ---


async def test_wait_ready_says_what_is_missing_and_why(front: Front) -> None:
    manager = front.manager()
    manager.create.does(error(ConnectionRefusedError('down')), endpoint='b')
    pool = front.pool(manager, refill=True, min_idle=2)
    with pytest.raises(ConnectionRefusedError):
        await pool.warm_up('a', 'b')
    with pytest.raises(PoolNotReadyError, match="'b': 2 missing") as caught:
        await pool.wait_ready(timeout=0.05)
    assert caught.value.missing == {'b': 2}
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    manager.create.does(ok())
    await pool.wait_ready(10)


async def test_used_connections_count(front: Front) -> None:
    pool = front.pool(front.manager())
    await pool.warm_up('a')
    async with pool.connection('a'):
        await pool.wait_ready(0)


@pytest.mark.parametrize('wrong', [float('nan'), 'soon', True])
async def test_a_wrong_time_limit(front: Front, wrong: Any) -> None:
    pool = front.pool(front.manager())
    with pytest.raises((TypeError, ValueError), match='timeout'):
        await pool.wait_ready(wrong)
    with pytest.raises((TypeError, ValueError), match='timeout'):
        await pool.warm_up('a', timeout=wrong)
    with pytest.raises(TypeError, match='hashable'):
        await pool.warm_up([])
