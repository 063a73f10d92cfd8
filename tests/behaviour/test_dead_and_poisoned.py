"""Guarantees 8 and 9 (docs/guarantees.md): a dead connection is disposed of, and so is one whose hook raised;
exactly once."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from fronts import Front

from gcp.exceptions import AcquireTimeoutError
from gcp.testing import dead, error, never, ok, slow


class Broken(Exception):
    """The hook's error."""


class Meteor(BaseException):
    """The hook's error, not an `Exception`."""


def chain(e: BaseException | None) -> list[BaseException]:
    """An error and all that it hides."""
    found = []
    while e is not None and e not in found:
        found.append(e)
        e = e.__cause__ or e.__context__
    return found


# -- dead


async def test_a_dead_connection_is_replaced(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    await pool.release(old := await pool.acquire('db'), 'db')
    manager.check_aliveness.does(dead())
    new = await pool.acquire('db')
    assert new is not old
    await front.until(lambda: manager.disposed == [old])
    assert [call for call in manager.story() if call.endswith(old.name)] == [
        'create db#1',
        'on_acquire db#1',
        'on_release db#1',
        'check_aliveness db#1',
        'on_connection_dead db#1',
        'dispose db#1',
    ]
    assert pool.stats().closed['dead'] == 1
    await pool.release(new, 'db')


async def test_only_reused_connections_are_checked(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    async with pool.connection('db'):
        pass
    assert not manager.check_aliveness.calls
    async with pool.connection('db'):
        pass
    assert len(manager.check_aliveness.calls) == 1


async def test_all_dead_ones_are_passed_over(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=5, min_idle=2)
    await front.give_back(pool, held := await front.fill(pool, 'db', 5))
    manager.check_aliveness.does(*[dead()] * 5, ok())
    new = await pool.acquire('db', timeout=5)
    await front.until(lambda: len(manager.disposed) == 5)
    assert sorted(manager.disposed) == held
    assert new not in held
    await pool.release(new, 'db')


async def test_whoever_found_it_dead_keeps_his_place_in_the_line(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=1)
    await pool.release(await pool.acquire('db'), 'db')
    manager.check_aliveness.does(never(dead()), ok())
    older = front.spawn(pool.acquire('db'))
    await front.until(lambda: manager.check_aliveness.running)
    younger = front.spawn(pool.acquire('db'))
    await front.waiting(pool, 1)
    manager.check_aliveness.unblock()
    new = await older
    assert not younger.done()
    await pool.release(new, 'db')
    assert await younger is new
    await pool.release(new, 'db')


async def test_the_search_goes_on_to_a_living_one(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, min_idle=3, max_size=3)
    await front.give_back(pool, held := await front.fill(pool, 'db', 3))
    manager.check_aliveness.does(dead(), dead(), ok())
    assert await pool.acquire('db') is held[2]
    await pool.release(held[2], 'db')
    assert pool.stats().created == 3


async def test_the_search_keeps_the_deadline(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, min_idle=8, max_size=8)
    await front.give_back(pool, await front.fill(pool, 'db', 8))
    manager.check_aliveness.does(slow(0.03, then=dead()))
    manager.create.does(slow(1, honours_timeout=True))
    with pytest.raises(TimeoutError if front.name == 'threads' else AcquireTimeoutError):
        await pool.acquire('db', timeout=0.1)
    assert 2 <= len(manager.check_aliveness.calls) <= 5


async def test_a_dead_connection_handed_to_a_waiter_is_checked(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=1)
    old = await pool.acquire('db')
    [waiter] = await front.line_up(pool, 'db', 1)
    manager.check_aliveness.does(dead())
    await pool.release(old, 'db')
    new = await waiter
    assert new is not old
    assert pool.stats().closed['dead'] == 1
    await pool.release(new, 'db')


async def test_a_failed_obituary_is_only_logged(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    await pool.release(await pool.acquire('db'), 'db')
    manager.check_aliveness.does(dead())
    manager.on_connection_dead.does(error(Broken('obituary')))
    async with pool.connection('db'):
        pass
    await front.until(lambda: len(manager.disposed) == 1)
    assert 'obituary' in caplog.text
    assert caplog.records[0].name.startswith('gcp')


# -- poisoned


@pytest.mark.parametrize('exception', [Broken, Meteor, KeyboardInterrupt])
@pytest.mark.parametrize('hook', ['check_aliveness', 'on_acquire', 'on_acquire of a new one', 'on_release'])
async def test_a_hook_that_raises_costs_its_connection(front: Front, hook: str, exception: type[BaseException]) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=1)
    if hook != 'on_acquire of a new one':
        await pool.release(await pool.acquire('db'), 'db')
    getattr(manager, hook.partition(' ')[0]).does(error(exception('poison')), ok())
    with pytest.raises(exception, match='poison'):
        async with pool.connection('db', timeout=5):
            pass
    [old] = manager.created
    await front.until(lambda: manager.disposed == [old])
    async with pool.connection('db', timeout=5) as new:
        assert new is not old
    assert manager.disposed == [old]
    assert pool.stats().closed['error'] + pool.stats().closed['discarded'] == 1


async def test_on_release_is_not_called_for_one_whose_on_acquire_raised(front: Front) -> None:
    manager = front.manager()
    manager.on_acquire.does(error(Broken()))
    pool = front.pool(manager)
    with pytest.raises(Broken):
        await pool.acquire('db')
    await front.until(lambda: manager.disposed)
    assert manager.story() == ['create db#1', 'on_acquire db#1', 'dispose db#1']


async def test_a_release_reports_the_error_of_its_hook(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    manager.on_release.does(error(Broken('poison')))
    connection = await pool.acquire('db')
    with pytest.raises(Broken):
        await pool.release(connection, 'db')
    assert pool.stats().used == 0
    assert pool.stats().releases['discarded'] == 1


async def test_the_error_of_the_body_is_not_hidden_by_that_of_on_release(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    manager.on_release.does(error(Broken('hook')))
    with pytest.raises(LookupError, match='body') as caught:
        async with pool.connection('db'):
            raise LookupError('body')
    assert any(isinstance(e, Broken) for e in chain(caught.value)), chain(caught.value)
    await front.until(lambda: len(manager.disposed) == 1)


async def test_the_body_s_own_context_survives(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    manager.on_release.does(error(Broken('hook')))
    with pytest.raises(LookupError) as caught:
        async with pool.connection('db'):
            try:
                raise ZeroDivisionError
            except ZeroDivisionError as cause:
                raise LookupError('body') from cause
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_the_body_s_error_passes_unchanged(front: Front) -> None:
    pool = front.pool(front.manager())
    error_ = LookupError('body')
    with pytest.raises(LookupError) as caught:
        async with pool.connection('db'):
            raise error_
    assert caught.value is error_ and chain(caught.value) == [error_]
    assert pool.stats().idle == 1


@pytest.mark.parametrize('hook', ['check_aliveness', 'on_acquire'])
async def test_a_time_out_inside_a_hook_is_an_error_of_that_hook(asyncio_front: Front, hook: str) -> None:
    manager = asyncio_front.manager()
    pool = asyncio_front.pool(manager, max_size=1)
    await pool.release(await pool.acquire('db'), 'db')
    getattr(manager, hook).does(never(), ok())
    with pytest.raises(AcquireTimeoutError) as caught:
        await pool.acquire('db', timeout=0.02)
    assert caught.value.phase == hook
    await asyncio_front.until(lambda: manager.disposed == manager.created[:1])


@pytest.mark.parametrize('hook', ['check_aliveness', 'on_acquire', 'on_release'])
async def test_a_cancellation_inside_a_hook_is_an_error_of_that_hook(asyncio_front: Front, hook: str) -> None:
    manager = asyncio_front.manager()
    pool = asyncio_front.pool(manager, max_size=1)
    await pool.release(await pool.acquire('db'), 'db')
    getattr(manager, hook).does(never(), ok())

    async def use() -> None:
        async with pool.connection('db'):
            pass

    actor: Any = asyncio_front.spawn(use())
    await asyncio_front.until(lambda: getattr(manager, hook).running)
    actor.cancel()
    with pytest.raises(asyncio.CancelledError):
        await actor
    await asyncio_front.until(lambda: manager.disposed == manager.created[:1])
    async with pool.connection('db', timeout=5):
        pass


async def test_a_sync_hook_that_came_too_late(threads_front: Front) -> None:
    manager = threads_front.manager()
    pool = threads_front.pool(manager, max_size=1)
    await pool.release(await pool.acquire('db'), 'db')
    manager.check_aliveness.does(slow(0.1), ok())
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('db', timeout=0.02)
    assert pool.stats().used == 0
    async with pool.connection('db', timeout=5):
        pass


async def test_the_log_tells_of_a_poisoned_connection_only_once(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    manager = front.manager()
    manager.on_release.does(error(Broken('hook')))
    manager.dispose.does(error(Broken('goodbye')))
    pool = front.pool(manager)
    with pytest.raises(Broken, match='hook'):
        async with pool.connection('db'):
            pass
    await front.until(lambda: pool.stats().size == 0)
    assert sum('goodbye' in record.getMessage() + str(record.exc_info) for record in caplog.records) == 1
