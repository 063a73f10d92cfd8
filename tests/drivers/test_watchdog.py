"""A watchdog aborts its own connection at the time limit, and no other."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from starvation import SOON

from gcp.contrib import _watchdog
from gcp.contrib._watchdog import Watchdog, run_with_watchdog


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == 'gcp-watchdog']


def test_work_that_takes_too_long_is_ended(pair: tuple[socket.socket, socket.socket]) -> None:
    started = time.monotonic()
    expected = pytest.raises(TimeoutError, match=r'nap: not done within 0.05 s')
    with expected, Watchdog(pair[0].fileno(), 0.05, what='nap'):
        assert pair[0].recv(1) == b''
    assert 0.05 <= time.monotonic() - started < SOON


def test_an_error_of_work_that_was_ended_is_the_cause(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(TimeoutError) as caught, Watchdog(pair[0].fileno(), 0.05, what='nap'):
        pair[0].recv(1)
        raise ConnectionError
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_work_in_time_is_left_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    for _ in range(100):
        with Watchdog(pair[0].fileno(), 2, what='nap'):
            pass
    with pytest.raises(KeyError), Watchdog(pair[0].fileno(), 30, what='nap'):
        raise KeyError
    for thread in watchers():
        thread.join(60)
    pair[1].sendall(b'x')
    assert pair[0].recv(1) == b'x'


def test_the_nearest_of_many_limits_comes_first(pair: tuple[socket.socket, socket.socket]) -> None:
    with Watchdog(pair[1].fileno(), 30, what='long'):
        started = time.monotonic()
        with pytest.raises(TimeoutError), Watchdog(pair[0].fileno(), 0.05, what='short'):
            pair[0].recv(1)
        assert time.monotonic() - started < SOON


def test_one_thread_watches_all_and_ends_when_there_is_nothing_to_watch(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    with Watchdog(pair[0].fileno(), 2, what='nap'), Watchdog(pair[1].fileno(), 2, what='nap'):
        assert len(watchers()) == 1
    for thread in watchers():
        thread.join(60)
    assert not watchers()


def test_a_descriptor_that_has_become_anothers_is_left_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    watchdog = Watchdog(pair[0].fileno(), 0.02, what='nap')
    watchdog.__enter__()
    others, theirs = socket.socketpair()
    with others, theirs:
        os.dup2(others.fileno(), pair[0].fileno())
        while not watchdog.expired:
            pass
        theirs.sendall(b'x')
        assert others.recv(1) == b'x'


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_forked_child_has_a_watch_of_its_own(pair: tuple[socket.socket, socket.socket]) -> None:
    with Watchdog(pair[1].fileno(), 30, what='nap'), _watchdog._watchdog_thread._changed:
        child = os.fork()
        if not child:
            try:
                with Watchdog(pair[0].fileno(), 0.05, what='nap'):
                    pair[0].recv(1)
            except TimeoutError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


# ---- asyncio


class Work:
    """Waits for its connection to be broken off, or does not even notice that."""

    def __init__(self, deaf: bool = False) -> None:
        self.broken = asyncio.Event()
        self.deaf = deaf
        self.cancelled = False

    async def run(self) -> None:
        try:
            if self.deaf:
                await asyncio.Event().wait()
            await self.broken.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        raise ConnectionError


@pytest.mark.parametrize('deaf', [False, True])
def test_a_coroutine_that_takes_too_long_is_broken_off(deaf: bool) -> None:
    async def body() -> None:
        work = Work(deaf)
        with pytest.raises(TimeoutError, match=r'nap: not done within 0.05 s'):
            await run_with_watchdog(work.run(), work.broken.set, 0.05, what='nap')
        await asyncio.sleep(0)
        assert work.cancelled is deaf

    asyncio.run(body())


@pytest.mark.parametrize('deaf', [False, True])
def test_a_cancelled_caller_does_not_wait_for_the_work(deaf: bool) -> None:
    async def body() -> None:
        work = Work(deaf)
        task = asyncio.ensure_future(run_with_watchdog(work.run(), work.broken.set, 30, what='nap'))
        await asyncio.sleep(0)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - started < SOON
        await asyncio.sleep(0)
        assert work.cancelled is deaf

    asyncio.run(body())


def test_results_and_errors_of_work_in_time_pass() -> None:
    async def give() -> int:
        return 1

    async def fail() -> None:
        raise KeyError

    async def body() -> None:
        assert await run_with_watchdog(give(), pytest.fail, 1, what='nap') == 1
        with pytest.raises(KeyError):
            await run_with_watchdog(fail(), pytest.fail, 1, what='nap')

    asyncio.run(body())
