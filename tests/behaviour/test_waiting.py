"""Guarantee 13 (docs/guarantees.md): the end of a program whose threads wait for connections."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from stage import wait_until

from gcp import waiting
from gcp._core import Event

PRELUDE = """
import sys, threading, time
from gcp.testing import BareFakeManager
from gcp.threading import ConnectionPool

pool = ConnectionPool(BareFakeManager(), max_size=1)

def wait():
    with pool.connection('db'):
        pass
"""


def run(story: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-c', PRELUDE + story], capture_output=True, text=True, timeout=20)


def test_threads_that_wait_for_what_the_main_thread_held_end_with_it() -> None:
    done = run("""
connection = pool.acquire('db')
for _ in range(3):
    threading.Thread(target=wait).start()
sys.exit(3)
""")
    assert (done.returncode, done.stdout, done.stderr) == (3, '', '')


def test_so_does_a_close() -> None:
    done = run("""
connection = pool.acquire('db')
threading.Thread(target=pool.close).start()
while not pool.closed:
    time.sleep(0.001)
sys.exit(3)
""")
    assert (done.returncode, done.stdout, done.stderr) == (3, '', '')


def test_a_thread_that_others_wait_for_goes_on_without_the_main_thread() -> None:
    done = run("""
def work():
    with pool.connection('db'):
        while not pool.stats().waiting:
            time.sleep(0.001)
        time.sleep(0.3)
    print('released', flush=True)

def wait_and_tell():
    wait()
    worker.join()
    print('served')

worker = threading.Thread(target=work)
worker.start()
while not pool.stats().used:
    time.sleep(0.001)
threading.Thread(target=wait_and_tell).start()
""")
    assert (done.returncode, sorted(done.stdout.split()), done.stderr) == (0, ['released', 'served'], '')


def test_threads_that_end_while_another_looks_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee 13: threads come and go while one of them looks whether all are stuck."""

    class Leaving(threading.Thread):
        """A thread that stops waiting once it has been looked at."""

        @property
        def ident(self) -> int:
            waiting.waiting.pop(-1, None)
            return -1

    me = threading.get_ident()
    mine, its = waiting.Wait(Event()), waiting.Wait(Event())
    monkeypatch.setattr(waiting, 'waiting', {me: mine, -1: its})
    monkeypatch.setattr(threading, 'main_thread', threading.Thread)
    monkeypatch.setattr(threading, 'enumerate', lambda: [threading.current_thread(), Leaving()])
    waiting.end_stuck_threads(me)
    assert waiting.waiting == {me: mine}
    assert not mine.ended  # the other has just received its event: it will go on, and may serve this thread
    assert not its.ended


def test_a_thread_that_was_just_woken_is_not_stuck() -> None:
    event = Event()
    assert not event.awaited
    thread = threading.Thread(target=event.wait)
    thread.start()
    wait_until(lambda: event.awaited)
    event.set()
    assert not event.awaited  # set, and not yet received
    thread.join()
    assert not event.awaited
    assert not event.wait(0)  # received: the wait has cleared it
