"""Guarantee 29 (docs/guarantees.md): listeners are told what happens in a pool, in order, in a thread of its own; what
they do delays no caller and no event loop. A pool that is dropped without a close says so."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fronts import PATIENCE
from gil import HAS_GIL, collect

import gcp.asyncio
import gcp.threading
from gcp import PoolListener
from gcp.testing import AsyncBareFakeManager, AsyncFakeManager, BareFakeManager, FakeManager
from gcp.testing.fakes import error

MANY = 5000


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, 'in vain'
        time.sleep(0.001)


class Recorder(PoolListener):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.threads: set[threading.Thread] = set()

    def _note(self, *event: Any) -> None:
        self.threads.add(threading.current_thread())
        self.events.append(event)

    def on_created(self, endpoint: Any) -> None:
        self._note('created', endpoint)

    def on_closed(self, endpoint: Any, reason: str) -> None:
        self._note('closed', endpoint, reason)

    def on_acquired(self, endpoint: Any) -> None:
        self._note('acquired', endpoint)

    def on_released(self, endpoint: Any) -> None:
        self._note('released', endpoint)

    def on_timeout(self, endpoint: Any) -> None:
        self._note('timeout', endpoint)

    def on_breaker(self, endpoint: Any, open: bool) -> None:
        self._note('breaker', endpoint, open)

    def on_leak(self, holder: Any) -> None:
        self._note('leak', holder)


class Quiet(PoolListener):
    """Is told of creations only."""

    def __init__(self, act: Callable[[Any], object]) -> None:
        self._act = act

    def on_created(self, endpoint: Any) -> None:
        self._act(endpoint)


STORY = [
    ('created', 'db'),
    ('acquired', 'db'),
    ('timeout', 'db'),
    ('released', 'db'),
    ('acquired', 'db'),
    ('released', 'db'),
    ('acquired', 'db'),
    ('released', 'db'),
    ('closed', 'db', 'pool_closed'),
]


@pytest.mark.parametrize('manager', [BareFakeManager, FakeManager])
def test_threads_tell_a_story(manager: Any) -> None:
    recorder = Recorder()
    with gcp.threading.ConnectionPool(manager(), max_size=1) as pool:
        pool.add_listener(recorder)
        pool.add_listener(recorder)
        conn = pool.acquire('db')
        with pytest.raises(gcp.AcquireTimeoutError):
            pool.acquire('db', timeout=0)
        pool.release(conn, 'db')
        for _ in range(2):
            with pool.connection('db'):
                pass
        assert pool.stats().acquires['hit'] == 2
    until(lambda: len(recorder.events) >= len(STORY))
    assert recorder.events == STORY
    assert {(thread.name, thread.daemon) for thread in recorder.threads} == {('gcp-listener', True)}
    assert len(recorder.threads) == 1 or not HAS_GIL
    for thread in recorder.threads:  # after the close, another may tell the rest
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.parametrize('manager', [AsyncBareFakeManager, AsyncFakeManager])
def test_tasks_tell_the_same_story(manager: Any) -> None:
    recorder = Recorder()

    async def main() -> None:
        async with gcp.asyncio.ConnectionPool(manager(), max_size=1) as pool:
            pool.add_listener(recorder)
            conn = await pool.acquire('db')
            with pytest.raises(gcp.AcquireTimeoutError):
                await pool.acquire('db', timeout=0)
            await pool.release(conn, 'db')
            for _ in range(2):
                async with pool.connection('db'):
                    pass

    asyncio.run(main())
    until(lambda: len(recorder.events) >= len(STORY))
    assert recorder.events == STORY
    assert threading.main_thread() not in recorder.threads


def test_a_breaker_and_a_leak() -> None:
    recorder, manager = Recorder(), BareFakeManager()
    with gcp.threading.ConnectionPool(manager, breaker_threshold=2, leak_threshold=0.01, max_lifetime=600) as pool:
        pool.add_listener(recorder)
        manager.create.does(error(OSError), endpoint='down')
        for _ in range(2):
            with pytest.raises(OSError):
                pool.acquire('down')
        until(lambda: ('breaker', 'down', True) in recorder.events)
        with pool.connection('db', tag='slow'):
            until(lambda: any(event[0] == 'leak' for event in recorder.events))
        [holder] = [event[1] for event in recorder.events if event[0] == 'leak']
        assert (holder.endpoint, holder.tag) == ('db', 'slow')
        pool.reconfigure(breaker_threshold=None)
        until(lambda: ('breaker', 'down', False) in recorder.events)


def test_what_is_closed_has_its_reason() -> None:
    recorder = Recorder()
    with gcp.threading.ConnectionPool(BareFakeManager(), max_uses=1) as pool:
        pool.add_listener(recorder)
        with pool.connection('db'):
            pass
        pool.discard(pool.acquire('db'), 'db')
        until(lambda: len(recorder.events) == 8)
    assert [event[0] for event in recorder.events] == ['created', 'acquired', 'released', 'closed'] * 2
    assert [event[2] for event in recorder.events if event[0] == 'closed'] == ['max_uses', 'discarded']


def test_one_that_raises_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()

    def fail(_: object) -> None:
        raise SystemExit('no listener ends the thread')

    with gcp.threading.ConnectionPool(BareFakeManager(), max_size=9, name='p') as pool, caplog.at_level(logging.ERROR):
        pool.add_listener(Quiet(fail))
        pool.add_listener(recorder)
        conns = [pool.acquire('db') for _ in range(5)]
        until(lambda: pool.stats().listener_errors == 5 and len(recorder.events) == 10)
        for conn in conns:
            pool.release(conn, 'db')
    [record] = caplog.records
    assert record.getMessage().startswith('p: Quiet.on_created failed: SystemExit')


def test_one_that_blocks_stops_no_caller_and_what_is_too_much_is_counted() -> None:
    gate, entered, recorder = threading.Event(), threading.Event(), Recorder()
    with gcp.threading.ConnectionPool(BareFakeManager()) as pool:
        pool.add_listener(Quiet(lambda _: (entered.set(), gate.wait(PATIENCE))))
        pool.add_listener(recorder)
        for _ in range(MANY):
            with pool.connection('db'):
                pass
        assert entered.wait(PATIENCE)
        dropped = pool.stats().listener_events_dropped
        assert 0 < dropped < 2 * MANY
        gate.set()
        until(lambda: len(recorder.events) == 2 * MANY + 1 - dropped)
        pool.remove_listener(recorder)
        with pool.connection('db'):
            pass
        assert pool.stats().listener_events_dropped == dropped
    assert len(recorder.events) == 2 * MANY + 1 - dropped


def test_one_that_blocks_stops_no_event_loop() -> None:
    gate = threading.Event()

    async def main() -> None:
        async with gcp.asyncio.ConnectionPool(AsyncBareFakeManager()) as pool:
            pool.add_listener(Quiet(lambda _: gate.wait(PATIENCE)))
            for _ in range(100):
                async with pool.connection('db'):
                    pass

    asyncio.run(main())
    assert not gate.is_set()
    gate.set()


def test_one_that_uses_the_pool() -> None:
    done = threading.Event()
    with gcp.threading.ConnectionPool(BareFakeManager()) as pool:

        def use(endpoint: Any) -> None:
            if endpoint == 'db':
                with pool.connection('other'):
                    pool.stats()
                done.set()

        pool.add_listener(Quiet(use))
        with pool.connection('db'):
            assert done.wait(PATIENCE)
        assert pool.stats().listener_errors == 0


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here')
def test_one_that_forks_and_a_child_that_is_told_in_its_own_thread() -> None:
    children: list[int] = []
    told = threading.Event()

    def fork(_: object) -> None:
        child = os.fork()
        if child == 0:
            pool.remove_listener(forking)
            recorder = Recorder()
            pool.add_listener(recorder)
            with pool.connection('db'):
                pass
            deadline = time.monotonic() + PATIENCE
            while len(recorder.events) < 3 and time.monotonic() < deadline:
                time.sleep(0.001)
            os._exit(0 if [event[0] for event in recorder.events] == ['created', 'acquired', 'released'] else 3)
        children.append(child)
        told.set()

    with gcp.threading.ConnectionPool(BareFakeManager()) as pool:
        forking = Quiet(fork)
        pool.add_listener(forking)
        with pool.connection('db'):
            assert told.wait(PATIENCE)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


def test_a_removed_one_is_told_no_more_and_removing_it_again_does_nothing() -> None:
    recorder = Recorder()
    with gcp.threading.ConnectionPool(BareFakeManager()) as pool:
        pool.remove_listener(recorder)
        pool.add_listener(recorder)
        pool.remove_listener(recorder)
        pool.remove_listener(recorder)
        with pool.connection('db'):
            pass
    assert recorder.events == []


class Coroutines(PoolListener):
    async def on_created(self, endpoint: Any) -> None:  # type: ignore[override]
        """It is never awaited."""


@pytest.mark.parametrize('listener', [object(), None, Recorder, print, Coroutines()])
def test_what_is_no_listener_is_refused(listener: Any) -> None:
    with (
        gcp.threading.ConnectionPool(BareFakeManager()) as pool,
        pytest.raises(TypeError, match='PoolListener|plain function'),
    ):
        pool.add_listener(listener)


# -- dropped without a close


@pytest.fixture
def shown() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        yield caught


def test_a_dropped_pool_is_named(shown: list[warnings.WarningMessage]) -> None:
    pool = gcp.threading.ConnectionPool(BareFakeManager(), name='forgotten')
    with pool.connection('db'):
        pass
    del pool
    collect()
    [warning] = shown
    assert warning.category is ResourceWarning
    assert str(warning.message) == 'pool forgotten was dropped without close(): 1 connections are left'
    assert type(warning.source) is gcp.threading.ConnectionPool


def test_nothing_is_said_of_one_that_outlives_the_modules(script: Callable[..., Any]) -> None:
    """The interpreter takes its own modules apart last."""
    ended = script(
        """
        import sys
        import gcp.threading
        from gcp.testing import BareFakeManager

        sys.pool = gcp.threading.ConnectionPool(BareFakeManager())
        sys.pool.release(sys.pool.acquire('db'), 'db')
        """
    )
    assert ended.quietly() == ''


def test_a_dropped_pool_of_asyncio_is_named(shown: list[warnings.WarningMessage]) -> None:
    async def main() -> None:
        pool = gcp.asyncio.ConnectionPool(AsyncBareFakeManager(), name='forgotten')
        async with pool.connection('db'):
            pass

    asyncio.run(main())
    collect()
    assert ['pool forgotten was dropped' in str(warning.message) for warning in shown] == [True]


def test_nothing_is_said_of_one_that_is_closed_or_holds_nothing(shown: list[warnings.WarningMessage]) -> None:
    gcp.threading.ConnectionPool(BareFakeManager())
    with gcp.threading.ConnectionPool(BareFakeManager()) as pool:
        pool.release(pool.acquire('db'), 'db')
    with pytest.raises(TypeError):
        gcp.threading.ConnectionPool(None)  # type: ignore[type-var]
    del pool
    collect()
    assert shown == []


def test_a_forked_child_says_nothing_of_what_its_parent_holds() -> None:
    code = (
        'import gc, os, gcp.threading\n'
        'from gcp.testing import BareFakeManager\n'
        'pool = gcp.threading.ConnectionPool(BareFakeManager())\n'
        'pool.release(pool.acquire("db"), "db")\n'
        'child = os.fork()\n'
        'if child == 0:\n'
        '    del pool\n'
        '    gc.collect()\n'
        '    os._exit(0)\n'
        'os.waitpid(child, 0)\n'
        'pool.close()\n'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'error::ResourceWarning', '-c', code], capture_output=True, text=True, check=True
    )
    assert done.stderr == ''
