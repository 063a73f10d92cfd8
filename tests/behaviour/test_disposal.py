"""Guarantee 10 (docs/guarantees.md): a disposal that raises or hangs does not affect other callers."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import types
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
from fronts import PATIENCE, Front, elapsed
from gil import collect
from task_factories import begins_at_once, wrapping_task_factory

import gcp.threading
from gcp.asyncio import BaseConnectionManager, ConnectionPool
from gcp.exceptions import AcquireTimeoutError
from gcp.testing import BareFakeManager, error, never, ok, slow


async def test_a_disposal_that_raises_is_counted_and_logged(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    manager = front.manager()
    manager.dispose.does(error(OSError('reset by peer')))
    pool = front.pool(manager, max_size=1, max_lifetime=1)
    connection = await pool.acquire('db')
    await front.sleep(1.05)
    await pool.release(connection, 'db')
    await front.until(lambda: pool.get_size() == 0)
    assert pool.stats().closed['max_lifetime'] == 1
    [record] = [record for record in caplog.records if 'reset by peer' in record.getMessage() + str(record.exc_info)]
    assert record.name.startswith('gcp')


async def test_a_failed_disposal_frees_its_place(front: Front) -> None:
    manager = front.manager()
    manager.dispose.does(error(OSError('reset by peer')))
    pool = front.pool(manager, max_size=1, total_max_size=1)
    for endpoint in 'abcabc':
        async with pool.connection(endpoint, timeout=5):
            pass
    assert pool.stats().closed['evicted'] == 5


async def test_a_release_does_not_raise_what_a_disposal_of_others_raises(front: Front) -> None:
    manager = front.manager()
    manager.dispose.does(error(OSError('reset by peer')))
    pool = front.pool(manager, min_idle=0, idle_timeout=1, dispose_batch_size=10)
    await front.give_back(pool, await front.fill(pool, 'a', 3))
    connection = await pool.acquire('b')
    await front.sleep(1.05)
    await pool.release(connection, 'b')
    await front.until(lambda: pool.get_size() == 1)


async def test_a_hanging_disposal_does_not_hold_up_a_release_of_another_endpoint(front: Front) -> None:
    manager = front.manager()
    manager.dispose.does(never(), endpoint='a')
    pool = front.pool(manager, min_idle=0, idle_timeout=1, dispose_batch_size=10)
    await front.give_back(pool, await front.fill(pool, 'a', 2))
    connection = await pool.acquire('b')
    await front.sleep(1.05)
    async with elapsed():
        await pool.release(connection, 'b')
        for _ in range(5):
            async with pool.connection('b'):
                pass
    await front.until(lambda: manager.dispose.running == 2)
    manager.unblock()
    await front.until(lambda: pool.stats().disposing == 0)


async def test_a_disposal_is_over_when_the_release_returns(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, min_idle=0, idle_timeout=1)
    held = await front.fill(pool, 'a', 2)
    await front.give_back(pool, held)
    connection = await pool.acquire('b')
    await front.sleep(1.05)
    await pool.release(connection, 'b')
    assert [call.outcome for call in manager.dispose.calls] == ['ok', 'ok']
    assert pool.stats().disposing == 0


async def test_the_dispose_timeout_bounds_what_a_caller_waits(front: Front) -> None:
    manager = front.manager()
    manager.dispose.does(slow(60))
    manager.on_release.does(error(OSError('broken')), ok())
    pool = front.pool(manager, max_size=2, dispose_timeout=0.05)
    connection = await pool.acquire('db')
    async with elapsed():
        with pytest.raises(OSError):
            await pool.release(connection, 'db')
    async with elapsed():
        async with pool.connection('db', timeout=5):
            pass
    manager.unblock()


async def test_a_disposal_that_runs_out_of_time_is_logged(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    manager = front.manager()
    manager.dispose.does(slow(0.1, honours_timeout=True))
    pool = front.pool(manager, min_idle=0, idle_timeout=1, dispose_timeout=0.02)
    await pool.release(await pool.acquire('a'), 'a')
    await front.sleep(1.05)
    async with pool.connection('b'):
        pass
    await front.until(lambda: any(record.name.startswith('gcp') for record in caplog.records))


class SlowTracer:
    """Its first span begins when it is let go: until then, a worker has a victim whose dispose it has not called."""

    def __init__(self) -> None:
        self.asked, self.gate = threading.Event(), threading.Event()

    def current(self) -> None: ...

    def start(self, hook: str, endpoint: object, origin: object) -> object:
        self.asked.set()
        assert self.gate.wait(PATIENCE)
        return self

    def end(self, *args: object) -> None: ...

    def detach(self, span: object) -> None: ...


def test_a_worker_that_comes_late_disposes_of_the_connection_all_the_same() -> None:
    """It was given up, and `dispose` was called with None: seen where a thread got no processor for that long."""
    manager = BareFakeManager()
    pool = gcp.threading.ConnectionPool(manager, dispose_timeout=0.01, registry=None)
    connection = pool.acquire('db')
    tracer = pool._core.tracer = SlowTracer()
    discarding = threading.Thread(target=pool.discard, args=(connection, 'db'))
    discarding.start()
    assert tracer.asked.wait(PATIENCE)
    discarding.join(PATIENCE)  # it waits for no more than the time-out
    assert not discarding.is_alive()
    time.sleep(0.3)  # longer than the watchdog takes to look
    given_up = pool.stats().hook_calls['dispose']['timeout']
    tracer.gate.set()
    deadline = time.monotonic() + PATIENCE
    while not manager.disposed or pool.stats().size:
        assert time.monotonic() < deadline, (manager.disposed, pool)
        time.sleep(0.001)
    assert (manager.disposed, given_up) == ([connection], 0)
    pool._core.tracer = None
    pool.close()


async def test_async_disposals_are_cancelled_at_the_dispose_timeout(asyncio_front: Front) -> None:
    manager = asyncio_front.manager()
    manager.dispose.does(never())
    pool = asyncio_front.pool(manager, max_size=1, total_max_size=1, dispose_timeout=0.05)
    await pool.release(await pool.acquire('a'), 'a')
    async with elapsed(least=0.05):
        async with pool.connection('b', timeout=5):
            pass
    assert 'Cancelled' in manager.dispose.calls[0].outcome


async def test_a_cancelled_caller_does_not_cancel_a_disposal(asyncio_front: Front) -> None:
    manager = asyncio_front.manager()
    manager.dispose.does(slow(0.1))
    pool = asyncio_front.pool(manager, max_size=1, total_max_size=1)
    await pool.release(await pool.acquire('a'), 'a')
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('b', timeout=0.02)
    await asyncio_front.until(lambda: pool.stats().disposing == 0)
    assert manager.dispose.calls[0].outcome == 'ok'


async def test_a_hanging_victim_serves_its_waiter_when_it_is_gone(front: Front) -> None:
    manager = front.manager()
    manager.dispose.does(never())
    pool = front.pool(manager, max_size=1, total_max_size=1)
    await pool.release(await pool.acquire('a'), 'a')
    waiter = front.spawn(pool.acquire('b'))
    await front.until(lambda: manager.dispose.running)
    manager.unblock()
    await pool.release(await waiter, 'b')


async def test_a_waiter_does_not_depend_on_a_victim_that_hangs(front: Front) -> None:
    manager = front.manager()
    manager.dispose.does(never(), endpoint='a')
    pool = front.pool(manager, max_size=2, total_max_size=4, min_idle=2)
    for endpoint in 'ab':
        await front.give_back(pool, await front.fill(pool, endpoint, 2))
    async with elapsed():
        connection = await pool.acquire('c', timeout=30)
    await pool.release(connection, 'c')
    await front.until(lambda: manager.dispose.running)
    manager.unblock()
    await front.until(lambda: pool.stats().disposing == 0)
    manager.check(total_max_size=4)


async def test_a_victim_that_hangs_for_a_while_is_not_lost(front: Front) -> None:
    manager = front.manager()
    manager.dispose.does(slow(0.2), ok())
    pool = front.pool(manager, max_size=2, total_max_size=4, min_idle=2)
    for endpoint in 'ab':
        await front.give_back(pool, await front.fill(pool, endpoint, 2))
    waiters = [front.spawn(pool.acquire('c', timeout=5)) for _ in range(2)]
    for waiter in waiters:
        await pool.release(await waiter, 'c')
    await front.until(lambda: pool.stats().disposing == 0)
    assert pool.stats().waiting == 0
    manager.check(total_max_size=4)


async def test_a_victim_that_hangs_in_the_middle_of_a_batch_holds_up_none_of_the_others(front: Front) -> None:
    manager = front.manager()
    manager.dispose.does(ok(), ok(), never(), ok())
    pool = front.pool(manager, min_idle=0, max_size=8, idle_timeout=1, dispose_batch_size=10)
    await front.give_back(pool, await front.fill(pool, 'a', 6))
    connection = await pool.acquire('b')
    await front.sleep(1.05)
    async with elapsed():
        await pool.release(connection, 'b')
    await front.until(lambda: len(manager.dispose.calls) >= 6)
    await front.until(lambda: pool.stats().endpoints['a'].disposing == 1)
    assert [call.outcome for call in manager.dispose.calls[:6]] == ['ok', 'ok', 'running', 'ok', 'ok', 'ok']
    manager.unblock()
    await front.until(lambda: pool.stats().disposing == 0)
    counted = pool.stats()
    assert counted.closed['idle_timeout'] == len(manager.disposed) == len(set(manager.disposed))
    assert counted.hook_calls['dispose']['ok'] == len(manager.disposed)


async def test_the_time_out_of_one_in_the_middle_of_a_batch_is_counted_and_told_once(
    front: Front,
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = front.manager()
    manager.dispose.does(ok(), never(), ok())
    pool = front.pool(manager, min_idle=0, max_size=8, idle_timeout=1, dispose_batch_size=10, dispose_timeout=0.06)
    await front.give_back(pool, await front.fill(pool, 'a', 4))
    connection = await pool.acquire('b')
    await front.sleep(1.05)
    await pool.release(connection, 'b')
    await front.until(lambda: pool.stats().disposing == 0)
    manager.unblock()
    await front.until(lambda: all(call.outcome != 'running' for call in manager.dispose.calls))
    outcomes = pool.stats().hook_calls['dispose']
    assert (outcomes['timeout'], outcomes['ok']) == (1, len(manager.dispose.calls) - 1)
    assert len([record for record in caplog.records if 'timed out' in record.getMessage()]) == 1


async def test_a_worker_that_is_cancelled_leaves_its_batch_to_another(asyncio_front: Front) -> None:
    manager = asyncio_front.manager()
    manager.dispose.does(ok(), never(), ok())
    pool = asyncio_front.pool(manager, min_idle=0, max_size=8, idle_timeout=1, dispose_batch_size=10)
    await asyncio_front.give_back(pool, await asyncio_front.fill(pool, 'a', 5))
    connection = await pool.acquire('b')
    await asyncio_front.sleep(1.05)
    release = asyncio_front.spawn(pool.release(connection, 'b'))
    await asyncio_front.until(lambda: manager.dispose.running)
    [worker] = [task for task in asyncio.all_tasks() if task.get_name() == 'gcp-disposer']
    worker.cancel()
    await release
    await asyncio_front.until(lambda: pool.stats().disposing == 0)
    assert [call.outcome[:9] for call in manager.dispose.calls[:5]] == ['ok', 'Cancelled', 'ok', 'ok', 'ok']
    assert len(manager.dispose.calls) == pool.stats().closed['idle_timeout']


@pytest.mark.skipif(begins_at_once, reason='it begins at once')
async def test_a_worker_that_is_cancelled_before_it_begins_leaves_its_batch_to_another(asyncio_front: Front) -> None:
    manager = asyncio_front.manager()
    pool = asyncio_front.pool(manager, min_idle=0, max_size=8, idle_timeout=1, dispose_batch_size=10)
    await asyncio_front.give_back(pool, await asyncio_front.fill(pool, 'a', 3))
    connection = await pool.acquire('b')
    await asyncio_front.sleep(1.05)
    release = pool.release(connection, 'b').__await__()
    next(release)  # the batch is handed over, and the worker has not had its turn
    [worker] = [task for task in asyncio.all_tasks() if task.get_name() == 'gcp-disposer']
    worker.cancel()
    await asyncio_front.until(lambda: pool.stats().endpoints.get('a') is None)
    assert len(manager.dispose.calls) == 3 + (pool.get_size() == 0)
    release.close()  # type: ignore[attr-defined]


async def test_an_interrupt_in_the_middle_of_a_batch_loses_none_of_it(threads_front: Front) -> None:
    manager = threads_front.manager()
    manager.dispose.does(ok(), error(KeyboardInterrupt), ok())
    pool = threads_front.pool(manager, min_idle=0, max_size=8, idle_timeout=1, dispose_batch_size=10)
    *idle, connection = await threads_front.fill(pool, 'a', 6)
    await threads_front.give_back(pool, idle)
    await threads_front.sleep(1.05)
    with pytest.raises(KeyboardInterrupt):
        await pool.release(connection, 'a')  # all are its own business: they are disposed of here
    assert len(manager.dispose.calls) == 2
    async with pool.connection('b'):
        pass
    await threads_front.until(lambda: len(manager.dispose.calls) >= 5)
    await threads_front.until(lambda: pool.stats().disposing == 0)
    disposed = [call.connection for call in manager.dispose.calls]
    assert set(idle) <= set(disposed) and len(disposed) == len(set(disposed))
    assert pool.stats().hook_calls['dispose']['cancelled'] == 1


@pytest.mark.parametrize('cost, expected', [(0.0, [15]), (0.001, range(10, 12))])
def test_a_release_disposes_of_more_at_once_where_the_pool_is_large_and_that_takes_no_time(
    cost: float,
    expected: Sequence[int],
) -> None:
    class Manager(gcp.threading.BaseConnectionManager[str, object]):
        disposed = 0

        def create(self, endpoint: str, timeout: float | None = None) -> object:
            return object()

        def dispose(self, endpoint: str, conn: object, timeout: float | None = None) -> None:
            self.disposed += 1
            time.sleep(cost) if cost else None

    manager = Manager()
    pool = gcp.threading.ConnectionPool(manager, min_idle=0, max_size=999, total_max_size=999, idle_timeout=1)

    def expire(count: int) -> int:
        """Let idle connections expire, and tell how many a release disposes of then."""
        for conn in [pool.acquire('a') for _ in range(count)]:
            pool.release(conn, 'a')
        conn = pool.acquire('b')
        time.sleep(1.05)
        before = manager.disposed
        pool.release(conn, 'b')
        return manager.disposed - before

    disposed = []
    while len(disposed) < 10 and not set(disposed) & set(expected):  # on a busy machine they take longer for a while
        for _ in range(3):  # so that it is known what they take
            pool.release(pool.acquire('c'), 'c')
            expire(4)
        disposed.append(expire(980))
    assert disposed[-1] in expected, disposed
    pool.close()


def failing(loop: asyncio.AbstractEventLoop, coro: Any, **given: Any) -> Any:
    raise OSError('no tasks today')


def dropping(loop: asyncio.AbstractEventLoop, coro: Any, **given: Any) -> Any:
    """Make a task that never begins, and never ends."""
    return DetachedTask(loop=loop)


class DetachedTask(asyncio.Future[Any]):
    def set_name(self, name: str) -> None:
        pass


def idle(loop: asyncio.AbstractEventLoop, coro: Any, **given: Any) -> Any:
    """The same, but it keeps its coroutine."""
    task = DetachedTask(loop=loop)
    task.coro = coro  # type: ignore[attr-defined]
    kept.append(task)
    return task


def stepping(loop: asyncio.AbstractEventLoop, coro: Any, **given: Any) -> Any:
    """Have a generator iterate over the coroutine."""

    @types.coroutine
    def steps() -> Any:
        return (yield from coro)

    async def around() -> Any:
        return await steps()

    return asyncio.Task(around(), loop=loop)


kept: list[Any] = []
HOSTILE = [wrapping_task_factory, stepping, failing, dropping, idle]


@pytest.mark.parametrize(
    'factory',
    [getattr(asyncio, 'eager_task_factory', None), *HOSTILE],
    ids=['eager', *(each.__name__ for each in HOSTILE)],
)
@pytest.mark.parametrize('waits', [False, True])
async def test_disposals_end_under_any_task_factory(asyncio_front: Front, factory: Any, waits: bool) -> None:
    if factory is None:
        pytest.skip('tasks are eager from Python 3.12 on')
    manager = asyncio_front.manager()
    manager.dispose.does(*[slow(0.001) if waits else ok(), error(OSError)] * 4)
    pool = asyncio_front.pool(manager, min_idle=0, max_size=2, idle_timeout=1)
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(factory)
    try:
        for _ in range(2):
            await asyncio_front.give_back(pool, await asyncio_front.fill(pool, 'a', 2))
            await asyncio.sleep(1.05)
        await pool.close()
        assert pool.get_size() == 0
        assert len(manager.dispose.calls) == pool.stats().created == 4
    finally:
        loop.set_task_factory(before)
        kept.clear()


async def test_tasks_that_dispose_are_kept_alive_by_the_pool(asyncio_front: Front) -> None:
    class Forgetful(BaseConnectionManager[str, object]):
        """Its disposal waits for something that only its own task refers to."""

        async def create(self, endpoint: str) -> object:
            return object()

        async def dispose(self, endpoint: str, conn: object) -> None:
            future = asyncio.get_running_loop().create_future()
            futures.append(weakref.ref(future))
            await future

    futures: list[weakref.ref[asyncio.Future[None]]] = []
    pool: Any = ConnectionPool(Forgetful(), min_idle=0)
    await pool.release(await pool.acquire('a'), 'a')
    await pool.close(timeout=0)
    await asyncio_front.until(lambda: futures)
    collect()
    future = futures[0]()
    assert future is not None
    future.set_result(None)
    await asyncio_front.until(lambda: pool.get_size() == 0)


@pytest.mark.skipif(sys.version_info < (3, 12), reason='tasks are eager from Python 3.12 on')
async def test_many_disposals_that_raise_a_cancellation_under_an_eager_task_factory(asyncio_front: Front) -> None:
    """Each one ends its worker: if the next worker began within the end of the one before, the stack would overflow."""
    manager = asyncio_front.manager()
    manager.dispose.does(*[error(asyncio.CancelledError)] * 500)
    pool = asyncio_front.pool(manager, min_idle=0, max_size=500, total_max_size=500)
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    await asyncio_front.give_back(pool, await asyncio_front.fill(pool, 'a', 500))
    await pool.close()
    assert len(manager.dispose.calls) == 500
