"""Guarantees 3, 5, 6 and 13 (docs/guarantees.md): waiting in the wait queue, which enters no Python frame.

A thread waits on an event, a task on a future. Signals, time-outs, forks, cancellations and closes come at any
moment."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fronts import AsyncioFront, Front, elapsed
from gil import collect
from starvation import SOON

from gcp import asyncio as aio
from gcp._core import Event
from gcp.exceptions import AcquireTimeoutError, ConnectionPoolClosedError
from gcp.testing import AsyncBareFakeManager, BareFakeManager
from gcp.threading import ConnectionPool

# --- events ---


def test_an_event_that_is_set() -> None:
    event = Event()
    event()
    event.set()  # twice is the same as once
    assert event.wait(0)
    assert not event.wait(0)
    assert not event.wait(0.001)
    event()
    assert event.wait()


@pytest.mark.parametrize('seconds', [0, 1e-9, 1e-6, 1e-4, 0.001, 0.01, 0.05])
async def test_an_event_that_is_not_set(threads_front: Front, seconds: float) -> None:
    event = Event()
    for _ in range(3):
        async with elapsed(least=seconds, most=SOON):
            assert not event.wait(seconds)


@pytest.mark.parametrize('seconds', [3600, 1e9, 1e300, float('inf')])
def test_an_event_that_is_set_in_time(seconds: float) -> None:
    event = Event()
    timer = threading.Timer(0.01, event)
    timer.start()
    assert event.wait(seconds)
    timer.join()


def test_events_that_are_dropped() -> None:
    for number in range(1000):
        event = Event()
        if number % 2:
            event()
        if number % 3:
            event.wait(0)
        del event


def test_events_between_two_threads() -> None:
    there, back = Event(), Event()

    def answer() -> None:
        for _ in range(2000):
            assert there.wait(SOON)
            back()

    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(2000):
        there()
        assert back.wait(SOON)
    thread.join()


# --- threads: signals ---


@pytest.fixture
def full() -> Iterator[tuple[Any, Any]]:
    """A pool of one connection, and that connection, held."""
    pool: Any = ConnectionPool(BareFakeManager(), max_size=1)
    conn = pool.acquire('db')
    yield pool, conn
    assert pool.stats().waiting == 0
    assert pool.stats().used == 0
    pool.close()


@contextmanager
def alarms(handler: Callable[..., Any], first: float, then: float = 0.0) -> Iterator[None]:
    """Have SIGALRM come to the main thread."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, first, then)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


has_alarms = pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason='needs SIGALRM')


class SignalError(Exception):
    """Raised by a signal handler."""


@has_alarms
@pytest.mark.parametrize('limit', [SOON, None])
def test_a_signal_handler_that_raises_ends_the_wait(full: Any, limit: float | None) -> None:
    pool, conn = full

    def handler(*_: Any) -> None:
        raise SignalError

    began = time.monotonic()
    with alarms(handler, 0.5), pytest.raises(SignalError):
        pool.acquire('db', timeout=limit)
    assert time.monotonic() - began < SOON
    assert pool.stats().waiting == 0
    assert pool.stats().acquires['error'] + pool.stats().acquires['cancelled'] == 1
    pool.release(conn, 'db')
    with pool.connection('db', timeout=0) as again:
        assert again is conn


@has_alarms
def test_signals_do_not_lengthen_the_wait(full: Any) -> None:
    pool, conn = full
    rung: list[float] = []
    began = time.monotonic()
    with alarms(lambda *_: rung.append(time.monotonic()), 0.005, 0.005), pytest.raises(AcquireTimeoutError):
        pool.acquire('db', timeout=1)
    assert 1 <= time.monotonic() - began < SOON
    assert len(rung) > 3, 'the handler waited for the end of the wait'
    pool.release(conn, 'db')


@has_alarms
@pytest.mark.parametrize('limit', [SOON, None])
def test_a_signal_handler_that_releases_what_is_waited_for(full: Any, limit: float | None) -> None:
    pool, conn = full
    with alarms(lambda *_: pool.release(conn, 'db'), 0.2):
        assert pool.acquire('db', timeout=limit) is conn
    pool.release(conn, 'db')
    assert pool.stats().acquires['waited'] == 1


@has_alarms
@pytest.mark.parametrize('limit', [60, None])
def test_a_signal_that_does_not_interrupt_the_wait_is_handled_nevertheless(full: Any, limit: float | None) -> None:
    """As one does not that comes just before the wait begins. Here another thread gets it."""
    pool, conn = full

    def send() -> None:
        while not pool.stats().waiting:
            time.sleep(0.001)
        signal.pthread_kill(threading.get_ident(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, lambda *_: pool.release(conn, 'db'))
    try:
        thread = threading.Thread(target=send)
        thread.start()
        began = time.monotonic()
        assert pool.acquire('db', timeout=limit) is conn
        assert time.monotonic() - began < SOON
        thread.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    pool.release(conn, 'db')
    assert pool.stats().acquires['waited'] == 1


@has_alarms
def test_a_signal_handler_that_waits_in_line_itself(full: Any) -> None:
    pool, conn = full
    seen = []

    def handler(*_: Any) -> None:
        try:
            pool.acquire('db', timeout=0.02)
        except AcquireTimeoutError:
            seen.append(pool.stats().waiting)
        pool.release(conn, 'db')

    with alarms(handler, 0.2):
        assert pool.acquire('db', timeout=SOON) is conn
    assert seen == [1]
    pool.release(conn, 'db')


@pytest.mark.skipif(not hasattr(signal, 'pthread_kill'), reason='needs pthread_kill')
def test_ctrl_c_ends_the_wait_of_the_main_thread(full: Any) -> None:
    pool, conn = full
    main = threading.get_ident()

    def interrupt() -> None:
        while not pool.stats().waiting:
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        with pool.connection('db', timeout=SOON):
            raise AssertionError('it was served')
    thread.join()
    assert pool.stats().acquires['cancelled'] == 1
    pool.release(conn, 'db')


@pytest.mark.skipif(not hasattr(signal, 'pthread_kill'), reason='needs pthread_kill')
def test_a_signal_to_another_thread_does_not_end_its_wait(full: Any) -> None:
    pool, conn = full
    handled: list[Any] = []
    got: list[Any] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(threading.current_thread()))
    thread = threading.Thread(target=lambda: got.append(pool.acquire('db', timeout=SOON)))
    thread.start()
    try:
        while not pool.stats().waiting:
            time.sleep(0.001)
        for _ in range(20):
            signal.pthread_kill(thread.ident or 0, signal.SIGUSR1)
            time.sleep(0.0005)
        assert thread.is_alive()
        assert not got
        pool.release(conn, 'db')
        thread.join(SOON)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert got == [conn]
    assert set(handled) == {threading.main_thread()}
    pool.release(conn, 'db')


# --- threads and tasks: time-outs, many, hand-overs ---


@pytest.mark.parametrize('seconds', [1e-6, 1e-4, 0.001, 0.01, 0.05])
async def test_a_time_out_comes_neither_early_nor_late(front: Front, seconds: float) -> None:
    pool = front.pool(front.manager(bare=True), max_size=1)
    async with pool.connection('db'):
        for number in range(5):
            async with elapsed(least=seconds):
                with pytest.raises(AcquireTimeoutError) as caught:
                    await pool.acquire('db', timeout=seconds)
            assert caught.value.phase == 'waiting'
            assert pool.stats().acquires['timeout'] == number + 1
            assert pool.stats().waiting == 0


async def test_many_wait_and_are_served_in_order(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=1)
    conn = await pool.acquire('db')
    served: list[int] = []

    async def use(number: int) -> None:
        async with pool.connection('db', timeout=None if number % 2 else 30):
            served.append(number)

    actors = []
    for number in range(60):
        actors.append(front.spawn(use(number)))
        await front.waiting(pool, number + 1)
    await pool.release(conn, 'db')
    for actor in actors:
        await actor
    assert served == list(range(60))
    assert pool.stats().acquires['waited'] == 60
    assert pool.stats().created == 1


async def test_who_runs_out_of_time_lets_the_next_one_pass(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=1)
    conn = await pool.acquire('db')
    hasty = [front.spawn(pool.acquire('db', timeout=3)) for _ in range(5)]
    await front.waiting(pool, 5)
    patient = front.spawn(pool.acquire('db', timeout=60))
    await front.waiting(pool, 6)
    for actor in hasty:
        with pytest.raises(AcquireTimeoutError):
            await actor
    await front.waiting(pool, 1)
    await pool.release(conn, 'db')
    assert (await patient) is conn
    await pool.release(conn, 'db')


async def test_a_release_at_the_deadline(front: Front) -> None:
    """Whoever waits gets it or does not; it is never lost."""
    pool = front.pool(front.manager(bare=True), max_size=1)
    outcomes = [0, 0]
    for number in range(120):
        conn = await pool.acquire('db', timeout=5)
        waiter = front.spawn(pool.acquire('db', timeout=0.002))
        await front.sleep(0.0018 + 0.00001 * (number % 40))
        await pool.release(conn, 'db')
        try:
            await pool.release(await waiter, 'db')
            outcomes[0] += 1
        except AcquireTimeoutError:
            outcomes[1] += 1
        assert (pool.stats().idle, pool.stats().used, pool.stats().waiting) == (1, 0, 0)
    assert sum(outcomes) == 120
    assert pool.stats().created == 1


async def test_a_close_wakes_all_who_wait(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=1)
    conn = await pool.acquire('db')
    actors = [front.spawn(pool.acquire('db', timeout=None if number % 2 else 30)) for number in range(20)]
    await front.waiting(pool, 20)
    closing = front.spawn(pool.close())
    for actor in actors:
        with pytest.raises(ConnectionPoolClosedError):
            await actor
    assert pool.stats().waiting == 0
    await pool.release(conn, 'db')
    await closing


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_fork_while_others_wait(script: Callable[..., Any]) -> None:
    script(
        """
        import os, threading, time
        from gcp.testing import BareFakeManager
        from gcp.threading import ConnectionPool

        pool = ConnectionPool(BareFakeManager(), max_size=1)
        conn = pool.acquire('db')
        got = []
        def use(limit):
            with pool.connection('db', timeout=limit) as each:
                got.append(each)
        failed = []
        def wait():
            try:
                pool.acquire('db', timeout=0.01)
            except TimeoutError as error:
                failed.append(error)
        threads = [threading.Thread(target=use, args=(limit,)) for limit in (None, 30, 30, None)]
        for thread in threads:
            thread.start()
        while pool.stats().waiting < 4:
            time.sleep(0.001)
        child = os.fork()
        if child == 0:
            assert pool.stats().waiting == 0
            with pool.connection('db', timeout=5) as mine:
                assert mine is not conn
                late = threading.Thread(target=wait)  # in the holder's own thread it would be warned of
                late.start()
                late.join()
            os._exit(0 if failed else 1)
        assert os.waitpid(child, 0)[1] == 0
        pool.release(conn, 'db')
        for thread in threads:
            thread.join(60)
        assert got == [conn] * 4, got
        pool.close()
    """,
        '-W',
        'ignore::DeprecationWarning',
    ).quietly()  # of 3.12, that this is dangerous


@pytest.mark.parametrize('daemon', [True, False])
def test_the_interpreter_ends_while_a_thread_waits_for_a_while(script: Callable[..., Any], daemon: bool) -> None:
    began = time.monotonic()
    out = script(f"""
        import threading, time
        from gcp.testing import BareFakeManager
        from gcp.threading import ConnectionPool

        pool = ConnectionPool(BareFakeManager(), max_size=1)
        conn = pool.acquire('db')
        def wait():
            try:
                pool.acquire('db', timeout={30 if daemon else 0.2})
            except TimeoutError:
                print('timed out')
        threading.Thread(target=wait, daemon={daemon}).start()
        while not pool.stats().waiting:
            time.sleep(0.001)
    """).quietly()
    assert out == ('' if daemon else 'timed out\n')
    assert time.monotonic() - began < 15


# --- tasks ---


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize('cancel_first', [True, False])
@pytest.mark.parametrize('between', [0, 1, 2, 3])
@pytest.mark.parametrize('bare', [True, False])
async def test_a_cancellation_beside_the_hand_over(
    asyncio_front: Front, cancel_first: bool, between: int, bare: bool
) -> None:
    """The next in line gets what the cancelled one does not take."""
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=bare), max_size=1)
    conn = await pool.acquire('db')
    first = asyncio.create_task(pool.acquire('db', timeout=10))
    await asyncio_front.waiting(pool, 1)
    second = asyncio.create_task(pool.acquire('db', timeout=10))
    await asyncio_front.waiting(pool, 2)
    if cancel_first:
        first.cancel()
        await turns(between)
        await pool.release(conn, 'db')
    else:
        await pool.release(conn, 'db')
        await turns(between)
        first.cancel()
    try:
        await pool.release(await first, 'db')
    except asyncio.CancelledError:
        assert pool.stats().acquires['cancelled'] == 1
    got = await asyncio.wait_for(second, 60)
    assert pool.stats().used == 1
    await pool.release(got, 'db')
    assert (pool.stats().idle, pool.stats().waiting) == (1, 0)


@pytest.mark.parametrize('late', ['the release', 'the deadline'])
async def test_the_deadline_in_the_turn_of_the_hand_over(asyncio_front: Front, late: str) -> None:
    """The loop has been busy: both are due when it looks again. What was handed over is taken."""
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    loop = asyncio.get_running_loop()
    for _ in range(4):
        conn = await pool.acquire('db')
        waiter = asyncio.create_task(pool.acquire('db', timeout=1))
        await asyncio_front.waiting(pool, 1)
        loop.call_later(1.01 if late == 'the release' else 0.001, lambda: pool.release(conn, 'db').close())  # noqa: B023
        time.sleep(1.1)
        assert (await waiter) is conn
        await pool.release(conn, 'db')
    assert pool.stats().acquires['waited'] == 4


async def test_the_last_who_waits_is_cancelled_after_the_hand_over(asyncio_front: Front) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    conn = await pool.acquire('db')
    tasks = [asyncio.create_task(pool.acquire('db')) for _ in range(10)]
    await asyncio_front.waiting(pool, 10)
    await pool.release(conn, 'db')
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert (pool.stats().idle, pool.stats().used, pool.stats().waiting) == (1, 0, 0)
    assert pool.stats().acquires['cancelled'] == 10


async def test_each_is_cancelled_as_it_is_handed_over(asyncio_front: Front) -> None:
    """It wanders through the line to the one who stays."""
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    conn = await pool.acquire('db')
    tasks = [asyncio.create_task(pool.acquire('db', timeout=None if number % 2 else 10)) for number in range(30)]
    await asyncio_front.waiting(pool, 30)
    await pool.release(conn, 'db')
    for task in tasks[:-1]:
        task.cancel()
        await turns(1)
    assert (await asyncio.wait_for(tasks[-1], 60)) is conn
    await asyncio.gather(*tasks, return_exceptions=True)
    assert pool.stats().used == 1
    await pool.release(conn, 'db')


def timers() -> int:
    """Return how many timers the loop has."""
    loop: Any = asyncio.get_running_loop()
    return sum(not handle.cancelled() for handle in loop._scheduled)


@pytest.mark.parametrize('ending', ['served', 'cancelled', 'closed'])
async def test_no_timer_is_left(asyncio_front: Front, ending: str) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    conn = await pool.acquire('db')
    before = timers()
    acquire = pool.acquire('db', timeout=1000)
    acquire.send(None)
    assert pool.stats().waiting == 1
    assert timers() == before + 1
    if ending == 'cancelled':
        with pytest.raises(asyncio.CancelledError):
            acquire.throw(asyncio.CancelledError())
    elif ending == 'closed':
        acquire.close()
    await pool.release(conn, 'db')
    if ending == 'served':
        with pytest.raises(StopIteration) as stop:
            acquire.send(None)
        await pool.release(stop.value.value, 'db')
    assert timers() == before
    assert (pool.stats().idle, pool.stats().waiting) == (1, 0)


async def test_a_wait_that_is_dropped_leaves_no_timer(asyncio_front: Front) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    conn = await pool.acquire('db')
    before = timers()
    acquire = pool.acquire('db', timeout=1000)
    acquire.send(None)
    del acquire
    collect()
    await asyncio_front.until(lambda: pool.stats().waiting == 0)
    assert timers() == before
    await pool.release(conn, 'db')


@pytest.mark.parametrize('ending', ['served', 'cancelled', 'timed out'])
async def test_waiting_leaves_no_memory(asyncio_front: AsyncioFront, ending: str) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    for count in 100, 1000:
        collect()
        before, objects = sys.getallocatedblocks(), len(gc.get_objects())
        async with pool.connection('other'):
            for _ in range(count // 20):
                conn = await pool.acquire('db')
                limit = 0.0005 if ending == 'timed out' else 60
                tasks = [asyncio.create_task(pool.acquire('db', timeout=limit)) for _ in range(20)]
                await turns(2)
                for task in tasks if ending == 'cancelled' else []:
                    task.cancel()
                if ending == 'served':
                    await pool.release(conn, 'db')
                    for task in tasks:
                        await pool.release(await task, 'db')
                else:
                    await asyncio.wait(tasks)
                    for task in tasks:
                        task.cancelled() or task.exception()
                    await pool.release(conn, 'db')
                del tasks, task
        collect()
        before, objects = sys.getallocatedblocks() - before, len(gc.get_objects()) - objects
    assert objects < 150
    assert before < 3000  # timers that are cancelled stay in the loop's heap for a while


@pytest.mark.parametrize('limit', [None, 60])
def test_a_loop_that_is_closed_while_tasks_wait(limit: float | None) -> None:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    pool: Any = aio.ConnectionPool(AsyncBareFakeManager(), max_size=1)
    tasks: list[Any] = []

    async def begin(pool: Any) -> Any:
        conn = await pool.acquire('db')
        tasks.extend(loop.create_task(pool.acquire('db', timeout=limit)) for _ in range(3))
        await turns(2)
        assert pool.stats().waiting == 3
        return conn

    conn = loop.run_until_complete(begin(pool))
    for task in tasks:
        task._log_destroy_pending = False
    loop.close()
    seen = [weakref.ref(each) for each in (pool, conn, *tasks)]
    with pytest.raises(RuntimeError):
        pool.release(conn, 'db').send(None)
    with pytest.raises(RuntimeError, match='closed'):
        asyncio.run(use(pool))
    del pool, conn, task
    tasks.clear()
    began = time.monotonic()
    while any(ref() for ref in seen) and time.monotonic() < began + 60:  # the monitor may be looking at the pool
        assert collect(*seen) == [None] * 5


async def use(pool: Any) -> None:
    async with pool.connection('db', timeout=1):
        pass
