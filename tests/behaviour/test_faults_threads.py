"""Guarantees 5 and 13 (docs/guarantees.md): errors, KeyboardInterrupt from hooks, and real signals at random moments
lose no slot.

A signal can also interrupt the test's own code: a connection is only taken by what Python guarantees (the `with`
statement starts and ends between two signals), and the counts of the pool decide, not those of the test."""

from __future__ import annotations

import _weakrefset
import contextlib
import gc
import itertools
import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from fronts import audit
from starvation import SOON

import gcp.background.threads
import gcp.disposal.threads
import gcp.holders.monitor
import gcp.listener_thread
from gcp import PoolListener
from gcp.exceptions import AcquireTimeoutError
from gcp.testing import BareFakeManager, Behaviour, FakeManager, dead, error, never, ok, slow
from gcp.threading import ConnectionPool

HOOKS = ['create', 'check_aliveness', 'on_acquire', 'on_release', 'on_connection_dead', 'dispose']
MOODS = ['ok', 'error', 'interrupt', 'slow']


class Fault(Exception):
    """What a faulty hook raises."""


class Struck(BaseException):
    """What the signal handler raises."""


def behaviour(mood: str) -> Behaviour:
    return {
        'ok': ok(),
        'error': error(Fault),
        'interrupt': error(KeyboardInterrupt),
        'slow': slow(0.0002),
        'dead': dead(),
    }[mood]


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Thousands of logged errors are what is wanted here, and nobody wants to read them."""
    logger = logging.getLogger('gcp')
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


def use(pool: Any, endpoint: str) -> None:
    try:
        with pool.connection(endpoint, timeout=5):
            pass
    except (Fault, KeyboardInterrupt):
        pass


def use_two_at_a_time(pool: Any) -> None:
    """Take and give back many pairs of connections, of several endpoints in turn."""
    for endpoint in 'aabac' * 12:
        with pool.connection(endpoint, timeout=5), pool.connection(endpoint, timeout=5):
            pass


def check_that_all_places_are_free(pool: Any, endpoint: str = 'z') -> None:
    """See that as many connections as the caps allow can be acquired, without waiting for anybody."""
    held = [pool.acquire(endpoint, timeout=5) for _ in range(pool.max_size)]
    assert pool.stats().used == len(held)
    for connection in held:
        pool.release(connection, endpoint)


def settle(pool: Any) -> None:
    """Wait until nothing is under way. What a signal left undone is done by the collector, or by the next call."""
    deadline = time.monotonic() + 60
    while (stats := pool.stats()).disposing or stats.used or stats.creating or stats.waiting:
        assert time.monotonic() < deadline, stats
        time.sleep(0.0002)
    audit(stats)


@pytest.mark.parametrize('create', MOODS)
def test_all_combinations(create: str) -> None:
    choices = [[create], [*MOODS, 'dead'], *[MOODS] * 4]
    seen: set[tuple[str, ...]] = set()
    for combination in itertools.product(*choices):
        if any(all(mood == known for mood, known in zip(combination, knowns, strict=True) if known) for knowns in seen):
            continue
        moods = dict(zip(HOOKS, combination, strict=True))
        manager = FakeManager()
        for hook, mood in moods.items():
            getattr(manager, hook).does(behaviour(mood))
        pool = ConnectionPool[str, Any](manager, max_size=2, total_max_size=2)
        try:
            for endpoint in 'aabca':
                use(pool, endpoint)
            settle(pool)
            seen.add(tuple(mood if getattr(manager, hook).calls else '' for hook, mood in moods.items()))
            for hook in HOOKS:
                getattr(manager, hook).does(ok())
            check_that_all_places_are_free(pool)
            pool.close(timeout=5)
            settle(pool)
            assert pool.get_size() == 0 and not manager.live
            manager.check(max_size=2, total_max_size=2)
        except BaseException:
            print(moods, *manager.story(), pool, pool.stats(), sep='\n')
            raise


@pytest.mark.parametrize('hook', HOOKS)
def test_a_hook_that_never_ends_costs_its_own_caller_only(hook: str) -> None:
    manager = FakeManager()
    pool = ConnectionPool[str, Any](manager, max_size=2, total_max_size=4)
    if hook == 'on_connection_dead':
        manager.check_aliveness.does(dead(), endpoint='a')
    if hook == 'dispose':
        manager.on_release.does(error(Fault), endpoint='a')
    getattr(manager, hook).does(never(), endpoint='a')

    def twice() -> None:
        use(pool, 'a')
        use(pool, 'a')

    stuck = threading.Thread(target=twice, daemon=True)
    stuck.start()
    while not getattr(manager, hook).running:
        time.sleep(0.0005)
    for endpoint in 'bcbc':
        with pool.connection(endpoint, timeout=1):
            pass
    manager.unblock()
    stuck.join(60)
    settle(pool)
    check_that_all_places_are_free(pool, 'b')
    pool.close()


# -- signals

NOT_STRUCK = {
    threading.__file__,
    logging.__file__,
    _weakrefset.__file__,
    '<frozen importlib._bootstrap>',
    '<frozen importlib._bootstrap_external>',
}


def is_in_stdlib(frame: Any) -> bool:
    """Whether a function of the standard library is being executed. If it has just taken a lock of its module, an error
    in a handler of signals leaves that locked (`threading` on 3.14, `logging` before 3.13), and other threads wait. In
    the callback of a weak reference (`_weakrefset`), an error is only shown."""
    while frame is not None and frame.f_code.co_filename != __file__:
        if frame.f_code.co_filename in NOT_STRUCK:
            return True
        frame = frame.f_back
    return False


@contextmanager
def thunderstorm(*, longest: float) -> Iterator[Callable[[Callable[[], object]], bool]]:
    """Give a function that runs a body, in which a signal strikes once within so many seconds; tells whether it did."""
    armed = False

    def strike(signum: int, frame: Any) -> None:
        nonlocal armed
        if armed and not is_in_stdlib(frame):
            armed = False
            raise Struck

    def bolt(body: Callable[[], object]) -> bool:
        nonlocal armed
        try:
            armed = True
            # CPython sees a signal that comes just before it waits for a lock with the next signal only: so again.
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, longest), 0.01)
            body()
            armed = False
            return False
        except Struck:
            return True

    before = signal.signal(signal.SIGALRM, strike)
    gc.disable()  # a callback of the collector (hypothesis has one) would swallow what strikes in it
    try:
        yield bolt
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()


class Plain:
    """A manager without a log: a log could itself be struck between two entries."""

    def create(self, endpoint: str, timeout: float | None = None) -> object:
        return object()

    def dispose(self, endpoint: str, conn: object, timeout: float | None = None) -> None:
        pass


class Hooked(Plain):
    def check_aliveness(self, endpoint: str, conn: object, timeout: float | None = None) -> bool:
        return random.random() < 0.9

    def on_acquire(self, endpoint: str, conn: object) -> None:
        pass

    def on_release(self, endpoint: str, conn: object) -> None:
        pass


PLAIN: Any = Plain  # duck-typed: no relatives of the base class
HOOKED: Any = Hooked


@pytest.mark.parametrize('background_collector', [False, True])
@pytest.mark.parametrize('manager', [Plain, Hooked])
def test_hundreds_of_signals_cost_no_slot(manager: Any, background_collector: bool) -> None:
    pool = ConnectionPool[str, object](
        manager(),
        max_size=2,
        total_max_size=3,
        min_idle=1,
        idle_timeout=0.0005,
        background_collector=background_collector,
    )

    with thunderstorm(longest=0.0004) as bolt:
        assert sum(bolt(partial(use_two_at_a_time, pool)) for _ in range(500)) > 100
    if not background_collector:
        use(pool, 'next')
    settle(pool)
    check_that_all_places_are_free(pool)
    pool.close(timeout=5)
    settle(pool)
    assert pool.get_size() == 0


@pytest.mark.parametrize('manager', [Plain, Hooked])
def test_what_a_signal_leaves_behind_is_the_collector_s(manager: Any) -> None:
    pool = ConnectionPool[str, object](
        manager(), max_size=2, total_max_size=3, min_idle=1, idle_timeout=0.0005, background_collector=True
    )

    struck = 0
    while struck < 200:
        with thunderstorm(longest=0.0004) as bolt:
            struck += bolt(partial(use_two_at_a_time, pool))
        settle(pool)  # without another call
    pool.close(timeout=5)


def test_signals_while_others_use_the_pool() -> None:
    pool = ConnectionPool[str, object](HOOKED(), max_size=2, total_max_size=3, idle_timeout=0.001)
    runs, trouble = True, []

    def work(number: int) -> None:
        try:
            while runs:
                with pool.connection('abc'[number % 3], timeout=5):
                    time.sleep(0.0001)
        except BaseException as e:
            trouble.append(e)

    def one_round() -> None:
        for endpoint in 'abcabc':
            with pool.connection(endpoint, timeout=5):
                pass

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    with thunderstorm(longest=0.005) as bolt:
        for _ in range(400):
            bolt(one_round)
    runs = False
    for thread in threads:
        thread.join(60)
    assert not trouble
    settle(pool)
    check_that_all_places_are_free(pool)
    pool.close(timeout=5)
    settle(pool)


def test_signals_while_it_waits_in_line() -> None:
    pool = ConnectionPool[str, Any](BareFakeManager(), max_size=1)
    connection = pool.acquire('db')

    def wait(timeout: float | None) -> None:
        with pool.connection('db', timeout=timeout):
            raise AssertionError('nobody released it')

    with thunderstorm(longest=0.002) as bolt:
        for number in range(300):
            assert bolt(partial(wait, None if number % 2 else 60))
    assert pool.stats().waiting == 0
    assert 200 <= pool.stats().acquires['cancelled'] + pool.stats().acquires['error'] <= 300
    pool.release(connection, 'db')
    check_that_all_places_are_free(pool)
    pool.close()


def test_signals_at_hand_offs() -> None:
    """Signals that race with releases: the connection reaches the waiter, or the next, or the idle."""
    pool = ConnectionPool[str, Any](BareFakeManager(), max_size=1)
    runs = True

    def pass_around() -> None:
        while runs:
            with pool.connection('db'):
                time.sleep(0.0002)

    threads = [threading.Thread(target=pass_around, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()

    def for_ever() -> None:
        while True:
            with pool.connection('db'):
                pass

    with thunderstorm(longest=0.002) as bolt:
        assert all(bolt(for_ever) for _ in range(500))
    runs = False
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    settle(pool)
    check_that_all_places_are_free(pool)
    pool.close()


def test_signals_while_it_closes() -> None:
    for _ in range(100):
        pool = ConnectionPool[str, Any](PLAIN(), max_size=3, min_idle=3)
        for connection in [pool.acquire('db') for _ in range(3)]:
            pool.release(connection, 'db')
        with thunderstorm(longest=0.0002) as bolt:
            bolt(pool.close)
        pool.close(timeout=5)
        settle(pool)
        assert pool.closed and pool.get_size() == 0


def test_pthread_kill_at_random() -> None:
    pool = ConnectionPool[str, Any](HOOKED(), max_size=2, total_max_size=2)
    runs, me, strikes = True, threading.get_ident(), 0
    ready = threading.Event()

    def strike(signum: int, frame: Any) -> None:
        if runs and is_in_stdlib(frame):
            ready.set()  # another one
        elif runs:
            raise Struck

    def shoot() -> None:
        while runs:
            time.sleep(random.uniform(0, 0.001))
            if ready.is_set():
                ready.clear()
                signal.pthread_kill(me, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, strike)
    gun = threading.Thread(target=shoot, daemon=True)
    gun.start()
    try:
        while strikes < 300:
            try:
                ready.set()
                while True:
                    for endpoint in 'ab':
                        with pool.connection(endpoint, timeout=5):
                            pass
            except Struck:
                strikes += 1
    finally:
        runs = False
        gun.join(60)
        signal.signal(signal.SIGUSR1, before)
    settle(pool)
    check_that_all_places_are_free(pool)
    pool.close()


@pytest.mark.parametrize('timeout', [None, 60])
def test_a_blocked_acquire_answers_ctrl_c_at_once(timeout: float | None) -> None:
    pool = ConnectionPool[str, Any](BareFakeManager(), max_size=1)
    connection = pool.acquire('db')
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    began = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            pool.acquire('db', timeout=timeout)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < SOON
    assert pool.stats().waiting == 0
    pool.release(connection, 'db')
    check_that_all_places_are_free(pool)
    pool.close()


def test_a_blocked_close_answers_ctrl_c_at_once() -> None:
    pool = ConnectionPool[str, Any](BareFakeManager())
    connection = pool.acquire('db')
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            pool.close()
        assert time.monotonic() - began < SOON
    finally:
        signal.signal(signal.SIGALRM, before)
    pool.release(connection, 'db')
    pool.close()
    assert pool.get_size() == 0


@pytest.mark.parametrize('background_collector', [False, True])
def test_a_signal_handler_may_use_the_pool(background_collector: bool) -> None:
    pool = ConnectionPool[str, Any](
        HOOKED(), max_size=2, total_max_size=4, idle_timeout=0.001, background_collector=background_collector
    )
    handled = 0

    def handle(signum: int, frame: Any) -> None:
        nonlocal handled
        handled += 1
        try:
            with pool.connection('handler', timeout=0):
                pool.stats()
        except AcquireTimeoutError:
            pass
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 0.0005))  # the next one, not before this one is over

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0001)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            for endpoint in 'ab':
                with pool.connection(endpoint, timeout=5):
                    pass
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled > 50
    settle(pool)
    check_that_all_places_are_free(pool)
    pool.close()


# --- a signal while a thread of the pool's is being started ---


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Give a function that has a module's next start of a thread interrupted."""

    def once(module: Any) -> None:
        start, left = module.start_daemon, [True]

        def start_daemon(target: Callable[[], object], name: str) -> bool:
            if left and left.pop():
                raise Struck
            started: bool = start(target, name)
            return started

        monkeypatch.setattr(module, 'start_daemon', start_daemon)

    return once


def test_the_monitor_starts_with_the_next_wait(interrupted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave() -> None:
        lease = pool.connection('db')
        lease.__enter__()
        cycle: list[Any] = [lease]
        cycle.append(cycle)

    monkeypatch.setattr(gcp.holders.monitor, 'monitor', gcp.holders.monitor.Monitor())
    interrupted(gcp.holders.monitor)
    gc.disable()
    try:
        pool = ConnectionPool[str, object](PLAIN(), max_size=1, reclaim_abandoned=True)
        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        with pytest.raises(Struck):
            pool.acquire('db', timeout=60)
        with pool.connection('db', timeout=60):
            assert pool.stats().reclaim_runs == 1
    finally:
        gc.enable()
    pool.close(timeout=5)


def test_a_worker_that_connects_starts_with_the_next_acquire(interrupted: Any) -> None:
    interrupted(gcp.background.threads)
    pool = ConnectionPool[str, object](PLAIN(), max_size=1, connect_workers=1)
    with pytest.raises(Struck):
        pool.acquire('db', timeout=60)
    with pool.connection('db', timeout=60):
        pass
    pool.close(timeout=5)
    settle(pool)


def test_a_listener_is_told_with_the_next_event(interrupted: Any) -> None:
    heard: list[str] = []
    told = threading.Event()

    class Listener(PoolListener):
        def on_created(self, *args: Any) -> None:
            heard.append('created')
            told.set()

    interrupted(gcp.listener_thread)
    pool = ConnectionPool[str, object](PLAIN(), max_size=1)
    pool.add_listener(Listener())
    with contextlib.suppress(Struck):
        use(pool, 'db')
    use(pool, 'other')
    assert told.wait(60)
    pool.close(timeout=5)


def test_the_watchdog_starts_with_the_next_wait(interrupted: Any) -> None:
    pool: Any = ConnectionPool[str, object](PLAIN(), max_size=1)
    interrupted(gcp.disposal.threads)
    with pytest.raises(Struck):
        pool._disposer._watch()
    assert pool._disposer._may_watch
    pool.close(timeout=5)


def test_the_collector_starts_with_the_next_creation(interrupted: Any) -> None:
    interrupted(gcp.disposal.threads)
    with pytest.raises(Struck):
        ConnectionPool[str, object](PLAIN(), max_size=1, background_collector=True)
    pool = ConnectionPool[str, object](PLAIN(), min_idle=0, idle_timeout=0.001, background_collector=True)
    with pool.connection('db', timeout=60):
        pass
    deadline = time.monotonic() + 60
    while pool.get_size():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    pool.close(timeout=5)
