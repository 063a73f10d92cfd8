"""Guarantee 23 (docs/guarantees.md): the pool knows who holds each connection: where it was acquired, by which thread
or task, and where that is now; and it tells of leaks, of long waits, and of callers that wait for themselves."""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fronts import PATIENCE, AsyncioFront, Front, ThreadsFront
from gil import HAS_GIL, collect

import gcp.asyncio
import gcp.threading
from gcp._core import find_holders, know_frames
from gcp.exceptions import AcquireTimeoutError
from gcp.holders import HolderInfo
from gcp.testing import AsyncBareFakeManager, BareFakeManager


def line_of(marker: str) -> int:
    """Return the number of the line of this file that ends with a marker."""
    with open(__file__, encoding='utf-8') as source:
        return next(number for number, line in enumerate(source, 1) if line.rstrip().endswith(f'# {marker}'))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, 'in vain'
        time.sleep(0.001)


@pytest.fixture
def pool() -> Iterator[Any]:
    with gcp.threading.ConnectionPool(BareFakeManager(), max_size=5) as made:
        yield made
        for holder in made.holders():
            made._core.force()
            assert holder


# -- where it was acquired


def test_frames_are_as_they_are_known_to_be() -> None:
    """So that no function of the interpreter is called at each acquire."""
    assert know_frames(True)


@pytest.mark.skipif(sys.version_info < (3, 12), reason='before 3.12 there are no functions for it')
def test_frames_that_are_not_known(pool: Any) -> None:
    """The interpreter's functions are called instead."""
    assert not know_frames(False)
    try:
        conn = pool.acquire('db')  # by functions
        asked = pool.holders()[0]
        pool.release(conn, 'db')
    finally:
        assert know_frames(True)
    assert (asked.file, asked.line) == (__file__, line_of('by functions'))
    assert asked.function == 'test_frames_that_are_not_known'


# -- threads


def test_a_thread_in_a_call(pool: Any) -> None:
    holds, done = threading.Event(), threading.Event()

    def work() -> None:
        with pool.connection('db', tag='report'):  # acquired
            holds.set()
            done.wait(PATIENCE)  # now

    thread = threading.Thread(target=work, name='worker-1')
    thread.start()
    assert holds.wait(PATIENCE)
    [holder] = pool.holders('db')
    assert (holder.endpoint, holder.tag, holder.alive) == ('db', 'report', True)
    assert (holder.thread_name, holder.thread_ident, holder.task_name) == ('worker-1', thread.ident, None)
    assert (holder.file, holder.line) == (__file__, line_of('acquired'))
    assert holder.function.split('.')[-1] == 'work'
    now = f'line {line_of("now")}, in work' if HAS_GIL else 'without the GIL'
    assert now in holder.stack()
    assert 0 <= holder.age < PATIENCE
    assert pool.holders('other') == pool.holders(('never', 'seen')) == []
    done.set()
    thread.join()
    assert pool.holders() == []


def test_no_frames_of_another_thread_are_looked_at_without_the_gil(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on meanwhile, and the interpreter would crash."""

    def work() -> None:
        with pool.connection('db'):
            holds.set()
            done.wait(PATIENCE)

    holds, done = threading.Event(), threading.Event()
    monkeypatch.setattr(sys, '_is_gil_enabled', lambda: False, raising=False)
    thread = threading.Thread(target=work)
    thread.start()
    assert holds.wait(PATIENCE)
    with pool.connection('mine'):
        [other] = pool.holders('db')
        [mine] = pool.holders('mine')
        assert 'without the GIL' in other.stack() and 'without the GIL' in other.where()
        assert f'in {test_no_frames_of_another_thread_are_looked_at_without_the_gil.__name__}' in mine.stack()
    done.set()
    thread.join()


@pytest.mark.skipif(sys.version_info < (3, 12), reason='before 3.12 a task does not tell its context')
def test_no_trace_of_a_task_of_another_thread_is_looked_up_without_the_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sets its variables meanwhile, and the interpreter would crash."""
    trace = pytest.importorskip('opentelemetry.trace')
    tracer = pytest.importorskip('opentelemetry.sdk.trace').TracerProvider().get_tracer('test')
    pools: list[Any] = []
    holds, done = threading.Event(), threading.Event()

    async def hold() -> None:
        async with gcp.asyncio.ConnectionPool(AsyncBareFakeManager()) as pool:
            pools.append(pool)
            with tracer.start_as_current_span('request'):
                async with pool.connection('db'):
                    holds.set()
                    assert done.wait(PATIENCE)

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    assert holds.wait(PATIENCE)
    found = []
    for has_gil in (True, False):
        monkeypatch.setattr(sys, '_is_gil_enabled', lambda has_gil=has_gil: has_gil, raising=False)
        found += pools[0].holders()
    done.set()
    thread.join()
    assert found[0].task_name == found[1].task_name and found[0].task_name is not None
    assert found[0].trace_id is not None and len(found[0].trace_id) == len(trace.format_trace_id(1))
    assert found[1].trace_id is None


def test_a_thread_that_has_ended(pool: Any) -> None:
    thread = threading.Thread(target=lambda: pool.acquire('db'))  # dies
    thread.start()
    thread.join()
    until(lambda: not pool.holders()[0].alive)  # its state is removed after the join
    [holder] = pool.holders()
    assert holder.line == line_of('dies')
    assert 'ended' in holder.stack()
    assert 'ended' in str(holder)
    # another thread may get the same number: that is not the holder
    busy, done = threading.Event(), threading.Event()
    others = [threading.Thread(target=lambda: (busy.set(), done.wait(PATIENCE))) for _ in range(5)]
    for other in others:
        other.start()
    assert busy.wait(PATIENCE)
    assert not pool.holders()[0].alive
    done.set()
    for other in others:
        other.join()


def test_by_name_and_by_lease_and_after_a_wait(pool: Any) -> None:
    conns = [pool.acquire('db') for _ in range(5)]  # five
    waiter = threading.Thread(target=lambda: pool.release(pool.acquire('db', timeout=PATIENCE), 'db'), name='waiter')
    waiter.start()
    until(lambda: pool.stats().waiting)
    assert {holder.line for holder in pool.holders()} == {line_of('five')}
    ages = [holder.age for holder in pool.holders()]
    assert ages == sorted(ages, reverse=True)
    for conn in conns:
        pool.release(conn, 'db')
    waiter.join()
    conn = pool.acquire('db')  # again
    assert [holder.line for holder in pool.holders()] == [line_of('again')]
    assert pool.holders()[0].tag is None
    pool.release(conn, 'db')


def test_an_acquire_that_has_waited_is_shown_at_its_own_place(pool: Any) -> None:
    conns = [pool.acquire('db') for _ in range(5)]
    holds, done = threading.Event(), threading.Event()

    def work() -> None:
        with pool.connection('db', timeout=PATIENCE):  # waited
            holds.set()
            done.wait(PATIENCE)

    thread = threading.Thread(target=work, name='late')
    thread.start()
    until(lambda: pool.stats().waiting)
    pool.release(conns.pop(), 'db')
    assert holds.wait(PATIENCE)
    assert [(h.line, h.thread_name) for h in pool.holders()][-1] == (line_of('waited'), 'late')
    done.set()
    thread.join()
    for conn in conns:
        pool.release(conn, 'db')


def test_without_tracking_only_tagged_holders_are_known() -> None:
    with gcp.threading.ConnectionPool(BareFakeManager(), track_holders=False) as pool:
        plain, tagged = pool.acquire('db'), pool.acquire('db', tag='report')  # tagged
        unknown, known = pool.holders()
        assert (unknown.file, unknown.line, unknown.thread_ident, unknown.alive) == (None, None, None, True)
        assert 'track_holders' in unknown.stack()
        assert (known.tag, known.line) == ('report', line_of('tagged'))
        pool.release(plain, 'db')
        pool.release(tagged, 'db')


def test_the_longest_held_of_many_endpoints() -> None:
    with gcp.threading.ConnectionPool(BareFakeManager(), total_max_size=400) as pool:
        numbers = [number * 7 % 400 for number in range(400)]  # in another order than that of the endpoints
        for number in range(400):
            pool.release(pool.acquire(number), number)
        conns = {number: pool.acquire(number) for number in numbers}
        assert [holder.endpoint for holder in pool.holders()] == numbers
        for most in (0, 1, 3, 70, 500):
            assert [holder.endpoint for holder in find_holders(pool, None, most)] == numbers[:most]
        for number, conn in conns.items():
            pool.release(conn, number)


def test_they_are_described_without_the_lock_of_threading(pool: Any) -> None:
    """A signal whose handler raises may leave it locked, and a finalizer may describe the holder of a lost lease."""
    with ThreadPoolExecutor(1) as others, pool.connection('db'):
        others.submit(int).result()
        with threading._active_limbo_lock:
            [holder] = others.submit(pool.holders).result(PATIENCE)
        assert holder.thread_name == threading.current_thread().name


@pytest.mark.parametrize('tag', [7, b'x', 'x' * 65, ['x']])
def test_a_tag_is_a_short_string(pool: Any, tag: Any) -> None:
    for acquire in (pool.acquire, pool.connection):
        with pytest.raises(TypeError, match='tag must be a str of at most 64 characters'):
            acquire('db', tag=tag)
    assert pool.get_size() == 0
    with pool.connection('db', tag='x' * 64):
        pass


# -- tasks


async def hold(pool: Any, holds: asyncio.Event) -> None:
    async with pool.connection('db'):  # in a task
        holds.set()
        await asyncio.sleep(PATIENCE)  # awaits


async def stream(pool: Any) -> AsyncIterator[int]:
    async with pool.connection('db'):
        yield 1
        await asyncio.sleep(PATIENCE)  # in a generator


async def read(pool: Any, holds: asyncio.Event) -> None:
    async for _ in stream(pool):
        holds.set()


@pytest.mark.parametrize('name', ['hold', 'read'])
def test_a_task_that_awaits(name: str) -> None:
    async def main() -> None:
        async with gcp.asyncio.ConnectionPool(AsyncBareFakeManager()) as pool:
            holds = asyncio.Event()
            body = {'hold': hold, 'read': read}[name]
            task = asyncio.create_task(body(pool, holds), name='T')
            await holds.wait()
            await asyncio.sleep(0)
            [holder] = pool.holders()
            assert (holder.task_name, holder.alive) == ('T', True)
            expected = 'awaits' if name == 'hold' else 'in a generator'
            assert f'line {line_of(expected)}' in holder.stack()
            if name == 'hold':
                assert holder.line == line_of('in a task')
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(main())


def test_tasks_that_are_gone_and_the_one_that_asks() -> None:
    async def leak(pool: Any) -> Any:
        return await pool.acquire('db')  # leaks

    async def main() -> None:
        async with gcp.asyncio.ConnectionPool(AsyncBareFakeManager()) as pool:
            kept = asyncio.create_task(leak(pool))
            conns = [await kept, await asyncio.create_task(leak(pool)), await pool.acquire('db')]  # asks
            done, gone, me = pool.holders()
            assert [done.alive, gone.alive, me.alive] == [False, False, True]
            assert [done.line, gone.line, me.line] == [line_of('leaks')] * 2 + [line_of('asks')]
            assert done.stack() == gone.stack() == 'the task is done'
            assert 'in main' in me.stack()
            for conn in conns:
                await pool.release(conn, 'db')

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason='before 3.12 a task does not tell its context')
def test_the_trace_of_a_holder() -> None:
    trace = pytest.importorskip('opentelemetry.trace')
    sdk = pytest.importorskip('opentelemetry.sdk.trace')
    tracer = sdk.TracerProvider().get_tracer('test')

    async def main() -> None:
        async with gcp.asyncio.ConnectionPool(AsyncBareFakeManager()) as pool:
            with tracer.start_as_current_span('request') as span:
                conn = await pool.acquire('db')
                [holder] = pool.holders()
                assert holder.trace_id == trace.format_trace_id(span.get_span_context().trace_id)
                await pool.release(conn, 'db')

    asyncio.run(main())
    with gcp.threading.ConnectionPool(BareFakeManager()) as pool, tracer.start_as_current_span('request') as span:
        with pool.connection('db'):
            assert pool.holders()[0].trace_id == trace.format_trace_id(span.get_span_context().trace_id)


# -- the error


async def test_a_timeout_names_the_holders(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=4)
    conns = await front.fill(pool, 'db', 4)
    with pytest.raises(AcquireTimeoutError) as caught:
        await pool.acquire('db', timeout=0.001)
    error = caught.value
    assert len(error.holders) == 3
    assert all(isinstance(holder, HolderInfo) and holder.alive for holder in error.holders)
    assert str(error).count('held for') == 4  # the longest, and the three
    assert str(error) == str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.phase, copy.used, copy.holders) == (str(error), 'waiting', 4, ())
    await front.give_back(pool, conns)


# -- what is logged


def messages(caplog: pytest.LogCaptureFixture, level: int, words: str) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.levelno == level and words in record.getMessage()
    ]


async def test_a_leak_is_told_once_and_so_is_its_return(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pool = front.pool(front.manager(), leak_threshold=0.01, name='orders')
    conn = await pool.acquire('db')
    await front.until(lambda: messages(caplog, logging.WARNING, 'leak_threshold'))
    assert pool.stats().leaks == 1
    [message] = messages(caplog, logging.WARNING, 'leak_threshold')
    assert message.startswith("orders: a connection to endpoint 'db' is held for longer than leak_threshold=0.01 s")
    assert 'acquired at' in message
    await pool.release(conn, 'db')
    await front.until(lambda: messages(caplog, logging.INFO, 'came back'))
    assert len(messages(caplog, logging.WARNING, 'leak_threshold')) == 1
    assert {record.name for record in caplog.records if 'orders' in record.getMessage()} <= {
        'gcp.threading',
        'gcp.asyncio',
    }


def test_no_thread_before_a_connection() -> None:
    """A process that makes its pools before it forks its workers must not have threads then."""
    before = set(threading.enumerate())
    with gcp.threading.ConnectionPool(BareFakeManager(), leak_threshold=60) as pool:
        assert set(threading.enumerate()) <= before
        pool.release(pool.acquire('db'), 'db')
        assert {thread.name for thread in set(threading.enumerate()) - before} <= {'gcp-monitor'}


async def test_a_leak_after_limits_have_changed(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    pool = front.pool(front.manager())
    conn = await pool.acquire('db')
    front.pools[0].reconfigure(leak_threshold=0.01)
    await front.until(lambda: messages(caplog, logging.WARNING, 'leak_threshold'))
    await pool.release(conn, 'db')


async def test_a_lease_that_was_garbage_collected_is_told(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    pool = front.pool(front.manager(), max_size=1)
    lease = pool.connection('db')
    await lease.__aenter__()
    del lease
    collect()
    async with pool.connection('db', timeout=PATIENCE):
        pass
    [message] = messages(caplog, logging.WARNING, 'garbage-collected')
    assert "'db'" in message
    assert 'acquired by' in message
    assert pool.stats().abandoned_leases == 1


async def test_a_caller_that_waits_for_itself_is_told_at_once(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    pool = front.pool(front.manager(), max_size=1)

    async def nested() -> None:
        async with pool.connection('db'):
            with pytest.raises(AcquireTimeoutError):
                await pool.acquire('db', timeout=0.001)
            with pytest.raises(AcquireTimeoutError):
                await pool.acquire('db', timeout=0.001)

    await front.spawn(nested())
    [message] = messages(caplog, logging.WARNING, 'holds one')
    assert 'held for' in message


async def test_another_caller_that_waits_is_not_nested(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    pool = front.pool(front.manager(), max_size=1)
    conn = await pool.acquire('db')
    [waiter] = await front.line_up(pool, 'db', 1)
    await pool.release(conn, 'db')
    await pool.release(await waiter, 'db')
    assert not messages(caplog, logging.WARNING, 'holds one')


async def test_a_long_wait_without_a_time_limit_is_told_once(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    pool = front.pool(front.manager(), max_size=1, warn_after=0.01)
    conn = await pool.acquire('db')
    waiters = await front.line_up(pool, 'db', 2)
    await front.until(lambda: messages(caplog, logging.WARNING, 'has no time limit'))
    [message] = messages(caplog, logging.WARNING, 'has no time limit')
    assert "max_size=1 of endpoint 'db'" in message
    assert 'held for' in message
    await pool.release(conn, 'db')
    for waiter in waiters:
        await pool.release(await waiter, 'db')


async def test_waits_with_a_time_limit_are_not_told(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    pool = front.pool(front.manager(), max_size=1, warn_after=0.001)
    conn = await pool.acquire('db')
    waiter = front.spawn(pool.acquire('db', timeout=PATIENCE))
    await front.waiting(pool, 1)
    await front.sleep(0.05)
    await pool.release(conn, 'db')
    await pool.release(await waiter, 'db')
    assert not messages(caplog, logging.WARNING, 'time limit')


def keep_in_a_cycle(lease: Any) -> None:
    ring: list[Any] = [lease]
    ring.append(ring)


def test_what_an_ended_thread_left_in_a_cycle_is_reclaimed(caplog: pytest.LogCaptureFixture) -> None:
    def leave() -> None:
        lease = pool.connection('db')
        lease.__enter__()
        keep_in_a_cycle(lease)

    gc.disable()
    try:
        with gcp.threading.ConnectionPool(BareFakeManager(), max_size=1, reclaim_abandoned=True) as pool:
            thread = threading.Thread(target=leave)
            thread.start()
            thread.join()
            with pool.connection('db', timeout=PATIENCE):
                assert pool.stats().reclaim_runs == 1
    finally:
        gc.enable()
    until(lambda: messages(caplog, logging.WARNING, 'reclaim_abandoned'))


def test_what_a_done_task_left_in_a_cycle_is_reclaimed(caplog: pytest.LogCaptureFixture) -> None:
    async def leave(pool: Any) -> None:
        lease = pool.connection('db')
        await lease.__aenter__()
        keep_in_a_cycle(lease)

    async def main() -> None:
        async with gcp.asyncio.ConnectionPool(AsyncBareFakeManager(), max_size=1, reclaim_abandoned=True) as pool:
            await asyncio.create_task(leave(pool))
            async with pool.connection('db', timeout=PATIENCE):
                pass

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()
    until(lambda: messages(caplog, logging.WARNING, 'reclaim_abandoned'))


# -- arguments


@pytest.mark.parametrize('front', [AsyncioFront, ThreadsFront])
def test_bad_options(front: Any) -> None:
    made = front()
    for name, value, words in [
        ('track_holders', 'yes', 'track_holders must be'),
        ('reclaim_abandoned', 1.5, 'reclaim_abandoned must be'),
        ('warn_after', 0, 'warn_after must be'),
        ('warn_after', 'x', 'warn_after must be'),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            made.pool_class(made._make_manager(True), **{name: value})


def test_holders_are_looked_up_only_for_what_is_told(monkeypatch: pytest.MonkeyPatch, pool: Any) -> None:
    """A program may wait for itself each time, where another thread releases what it holds."""
    found = []
    monkeypatch.setattr('gcp.holders.monitor.find_holders', lambda *asked: found.append(asked) or [])
    conns = [pool.acquire('db') for _ in range(5)]
    for _ in range(10):
        with pytest.raises(AcquireTimeoutError):
            pool.acquire('db', timeout=0.001)
    assert len(found) == 1
    for conn in conns:
        pool.release(conn, 'db')
