"""What several threads do at the same time to the Python half of a pool happens once, and nothing of it is lost. Where
there is a gate, it stops one thread in the middle; where there is none, many threads begin at the same moment: without
the GIL they meet."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from fronts import PATIENCE

import gcp
import gcp.disposal.threads
import gcp.holders.monitor
import gcp.listener_thread
from gcp import waiting
from gcp._core import Core
from gcp.contrib._database import ClientSettings
from gcp.debug.events import LEAKS, Events
from gcp.holders.messages import Messages
from gcp.listener_thread import ListenerThread

ROUNDS = 30_000


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    """Call functions in threads that begin together. Returns their results, and raises the first error."""
    barrier = threading.Barrier(len(functions))
    results: dict[int, Any] = {}
    errors: list[BaseException] = []

    def work(number: int) -> None:
        barrier.wait(PATIENCE)
        try:
            results[number] = functions[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), 'in vain'
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(functions))]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, 'in vain'
        time.sleep(0.001)


# --- waiting ---


def test_an_event_that_several_threads_set_at_the_same_time() -> None:
    event = waiting.PatchedEvent()

    def set_often() -> None:
        for _ in range(ROUNDS):
            event.set()

    def receive() -> None:
        for _ in range(ROUNDS):
            event.wait(0)

    at_once(set_often, set_often, receive)
    event.set()
    assert event.wait(0)
    assert not event.wait(0)


def test_a_wait_within_a_wait_of_the_same_thread() -> None:
    """As in a signal handler."""

    class Outer(waiting.PatchedEvent):
        def wait(self, seconds: float = 0.0) -> bool:
            inner = waiting.PatchedEvent()
            inner.set()
            return waiting.wait_for(inner, float('inf'))

    assert waiting.wait_for(Outer(), float('inf'))
    assert threading.get_ident() not in waiting.waiting


# --- the declaration ---


@pytest.mark.skipif(not sysconfig.get_config_var('Py_GIL_DISABLED'), reason='this Python always has the GIL')
def test_the_gil_stays_off_when_gcp_is_imported() -> None:
    code = 'import sys, gcp.asyncio, gcp.threading; sys.exit(sys._is_gil_enabled())'
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHON_GIL'}
    subprocess.run([sys.executable, '-W', 'error', '-c', code], env=environment, check=True, timeout=PATIENCE)


# --- threads of which one is enough ---


class Due(dict[Any, float]):
    """What the monitor is to look at. After the first look it lets another thread do something in the middle."""

    def __init__(self) -> None:
        self.meanwhile: list[Callable[[], object]] = []

    def get(self, key: Any, default: Any = None) -> Any:
        found = super().get(key, default)
        self.step()
        return found

    def setdefault(self, key: Any, default: Any = None) -> Any:
        self.step()
        return super().setdefault(key, default)

    def step(self) -> None:
        try:
            act = self.meanwhile.pop()
        except IndexError:  # there is nothing to do, or another thread does it
            return
        act()


@pytest.mark.parametrize('again', [None, 3600.0])
def test_a_pool_that_is_added_while_the_monitor_has_looked_at_it_is_looked_at_again(again: float | None) -> None:
    class Looked:
        has_ended = False
        looks = 0
        twice = threading.Event()

        def look(self) -> float | None:
            if self.looks:
                self.looks += 1
                self.has_ended = True
                self.twice.set()
                return None
            due.meanwhile.append(lambda: monitor.add(pool))
            self.looks += 1  # now, the test may do that
            return again

    monitor = gcp.holders.monitor.Monitor()
    monitor._due = due = Due()
    pool: Any = Looked()
    monitor.add(pool)
    until(lambda: pool.looks)
    until(lambda: not due or pool.looks > 1 or not due.meanwhile)
    due.step()  # if nothing was done in the middle
    assert pool.twice.wait(PATIENCE)


def test_a_pool_that_ends_while_it_is_looked_at_is_forgotten() -> None:
    class Looked:
        has_ended = False

        def look(self) -> float:
            self.has_ended = True
            monitor.forget(pool)
            return 3600.0

    monitor = gcp.holders.monitor.Monitor()
    pool: Any = Looked()
    monitor.add(pool)
    until(lambda: monitor._may_start and not monitor._due)


def test_one_watchdog_is_enough() -> None:
    """Callers that find none each start one. The first that begins watches, the others end at once."""

    class Disposer(gcp.disposal.threads.Disposer):
        watching = 0
        goes_on = threading.Event()

        def _needs_watching(self) -> bool:
            self.watching += 1
            self.goes_on.wait(PATIENCE)
            return False

    disposer = Disposer('pool', Core(), lambda *_: None, None)
    first = threading.Thread(target=disposer._run_watchdog)
    first.start()
    until(lambda: disposer.watching)
    second = threading.Thread(target=disposer._run_watchdog)
    second.start()
    until(lambda: not second.is_alive() or disposer.watching > 1)
    disposer.goes_on.set()
    first.join(PATIENCE)
    second.join(PATIENCE)
    assert disposer.watching == 2  # at the beginning and at the end of one
    assert disposer._may_watch


# --- listeners ---


class NamedPool:
    name = 'pool'

    def __init__(self) -> None:
        self._core = Core()


def test_no_listener_is_lost_that_is_added_while_another_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread has read which listeners there are; before it goes on, another one adds its own."""

    class First(gcp.PoolListener):
        def on_created(self, endpoint: Any) -> None:
            pass

        def __getattribute__(self, name: str) -> Any:
            if name == 'on_created' and not added:
                added.append(True)
                thread.add(second)
            return super().__getattribute__(name)

    class Second(gcp.PoolListener):
        def on_timeout(self, endpoint: Any) -> None:
            pass

    added: list[bool] = []
    first, second = First(), Second()
    pool: Any = NamedPool()
    thread = ListenerThread(pool)
    queued: list[set[str]] = []
    monkeypatch.setattr(gcp.listener_thread, 'listen', lambda _, names: queued.append(names))
    monkeypatch.setattr(gcp.listener_thread, 'check_listener', lambda _: None)
    thread.add(first)
    assert queued[-1] == {'on_created', 'on_timeout'}


def test_all_listeners_are_told_that_threads_add_at_the_same_time() -> None:
    pool: Any = NamedPool()
    thread = ListenerThread(pool)
    many = [[gcp.PoolListener() for _ in range(200)] for _ in range(4)]
    at_once(*[partial(lambda own: [thread.add(one) for one in own], own) for own in many])
    assert set(thread._listeners.values()) == {one for own in many for one in own}


def test_of_threads_that_would_warn_at_the_same_time_one_does() -> None:
    for _ in range(200):
        messages = Messages(logging.getLogger('gcp'), 'pool')
        assert sum(at_once(*[partial(messages._is_time_to, 'nested')] * 4)) == 1
        assert not messages._is_time_to('nested')


# --- the debug page ---


def test_events_are_read_while_others_are_recorded() -> None:
    events = Events(keep=50)

    def record() -> None:
        for number in range(2000):
            events.record('pool', str(number))

    def read() -> None:
        for _ in range(200):
            events.latest(50)

    at_once(record, record, read)
    assert len(events.latest(1000)) == 50


def test_a_look_that_comes_late_tells_nothing_twice() -> None:
    """Two pages are read at the same time: the counts that the first has taken are compared last."""
    events = Events()
    before, after = ({**Core().snapshot()[0], 'leaks': leaks} for leaks in (0, 1))
    events.compare(1, 'pool', before)
    events.compare(1, 'pool', after)
    events.compare(1, 'pool', before)
    events.compare(1, 'pool', after)
    assert [event['what'] for event in events.latest(9)] == [f'1 {LEAKS[0]}']


# --- managers ---


def test_the_settings_of_one_first_connection_are_kept() -> None:
    """Two threads record the first one each: the second is not restored to the settings of the first, nor the other way
    round."""

    class Conn:
        def __init__(self, autocommit: bool) -> None:
            self.autocommit, self.isolation_level = autocommit, None

    for _ in range(300):
        settings: Any = ClientSettings('autocommit', 'isolation_level', reported=lambda _: ())
        conns = [Conn(False), Conn(True)]
        at_once(*[partial(settings.record, conn) for conn in conns])
        assert [settings.original(conn) for conn in conns] == [(False, None), (True, None)]
