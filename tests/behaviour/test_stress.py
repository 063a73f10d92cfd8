"""Guarantees 1, 2 and 5 (docs/guarantees.md): random faults under contention, with frequent thread switches; the
counts must agree.

``GCP_STRESS_SECONDS`` (default 5) is how long each front is stressed; ``GCP_STRESS_SEED`` repeats a seed."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fronts import audit
from gil import collect

from gcp.exceptions import AcquireTimeoutError
from gcp.testing import AsyncBareFakeManager, AsyncFakeManager, BareFakeManager, FakeManager, calling

SECONDS = float(os.environ.get('GCP_STRESS_SECONDS', '5'))
SEED = int(os.environ.get('GCP_STRESS_SEED', random.randrange(1 << 30)))
ENDPOINTS = 'abcdef'
CAPS: dict[str, Any] = {
    'min_idle': 1,
    'max_size': 3,
    'total_max_size': 8,
    'idle_timeout': 0.003,
    'max_lifetime': 0.1,
    'lifetime_jitter': 0.5,
    'dispose_timeout': 0.2,
}


class Fault(Exception):
    """What a faulty hook raises."""


class Abort(BaseException):
    """What a faulty hook raises, not an `Exception`."""


TOLERATED = (Fault, Abort, AcquireTimeoutError, asyncio.CancelledError)


@pytest.fixture(autouse=True)
def thin_air() -> Iterator[None]:
    """Switch threads all the time; keep the log silent."""
    interval, logger = sys.getswitchinterval(), logging.getLogger('gcp')
    level = logger.level
    sys.setswitchinterval(1e-6)
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)
    sys.setswitchinterval(interval)


def misfortune(chance: random.Random, *, aborts: bool, async_: bool) -> Any:
    """Make a behaviour that mostly succeeds, and sometimes raises or takes its time."""

    def act(endpoint: Any, connection: Any) -> Any:
        fate = chance.random()
        if fate < 0.02:
            raise Fault
        if aborts and fate < 0.025:
            raise Abort
        if fate < 0.05:
            return asyncio.sleep(0.001) if async_ else time.sleep(0.001)
        if fate < 0.1:
            return asyncio.sleep(0) if async_ else time.sleep(0)
        return None

    return calling(act)


def frail(chance: random.Random) -> Any:
    """Make a check that finds one in thirty dead."""
    return calling(lambda endpoint, connection: chance.random() > 0.03)


def make(manager: Any, *, async_: bool) -> Any:
    chance = random.Random(SEED)
    for hook in ('create', 'dispose', 'on_acquire', 'on_release', 'on_connection_dead'):
        if hasattr(type(manager), hook) and (hook in ('create', 'dispose') or not is_bare(manager)):
            getattr(manager, hook).does(misfortune(chance, aborts=hook != 'dispose', async_=async_))
    if not is_bare(manager):
        manager.check_aliveness.does(frail(chance))
    return manager


def is_bare(manager: Any) -> bool:
    return not isinstance(manager, (FakeManager, AsyncFakeManager))


def verify(pool: Any, manager: Any, ended: int) -> None:
    """Balance the books of a pool that nobody uses any more."""
    stats = pool.stats()
    audit(stats)
    assert stats.used == 0
    assert sum(stats.acquires.values()) == ended, (stats.acquires, ended)
    end = time.monotonic() + 10  # on a busy machine a disposal may have been given up on, and be still under way
    while len(manager.live) != stats.idle and stats.hook_calls['dispose']['timeout'] and time.monotonic() < end:
        time.sleep(0.01)
    assert len(manager.live) == stats.idle
    assert stats.created == len(manager.created)
    assert sum(stats.closed.values()) == len(manager.disposed)
    given_up = stats.hook_calls['dispose']['timeout']  # their places are free, though they may not be gone yet
    manager.check(max_size=3 + given_up, total_max_size=8 + given_up)
    assert ended > 20 * SECONDS  # more than 100 where the machine is not busy


@pytest.mark.parametrize('background_collector', [False, True])
@pytest.mark.parametrize('manager_class', [BareFakeManager, FakeManager])
def test_32_threads(manager_class: type[Any], background_collector: bool) -> None:
    from gcp.threading import ConnectionPool

    manager = make(manager_class(), async_=False)
    pool = ConnectionPool[str, Any](manager, background_collector=background_collector, **CAPS)
    end = time.monotonic() + SECONDS / 4
    ended, trouble = [0] * 32, []

    def work(number: int) -> None:
        chance = random.Random(SEED + number)
        try:
            while time.monotonic() < end:
                ended[number] += 1
                try:
                    act(chance)
                except TOLERATED:
                    pass
        except BaseException as e:
            trouble.append(e)

    def act(chance: random.Random) -> None:
        endpoint, timeout = chance.choice(ENDPOINTS), chance.choice([None, None, 1, 0.002, 0])
        way = chance.random()
        if way < 0.7:
            with pool.connection(endpoint, timeout=timeout) as connection, manager.hold(connection):
                if way < 0.1:
                    time.sleep(0.0005)
                elif way < 0.15:
                    raise Fault
        else:
            connection = pool.acquire(endpoint, timeout=timeout)
            with manager.hold(connection):
                pass
            pool.release(connection, endpoint)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 20)
        assert not thread.is_alive(), (SEED, pool)
    assert not trouble, (SEED, trouble)
    deadline = time.monotonic() + 60
    while pool.stats().size if background_collector else pool.stats().disposing:  # a collector goes on to the end
        assert time.monotonic() < deadline, (SEED, pool.stats())
        time.sleep(0.001)
    verify(pool, manager, sum(ended))
    pool.close(timeout=5)
    assert pool.get_size() == 0


@pytest.mark.filterwarnings('ignore:.* was never awaited:RuntimeWarning')  # some acquires are not, on purpose
@pytest.mark.parametrize('background_collector', [False, True])
@pytest.mark.parametrize('manager_class', [AsyncBareFakeManager, AsyncFakeManager])
def test_64_tasks(manager_class: type[Any], background_collector: bool) -> None:
    from gcp.asyncio import ConnectionPool

    manager = make(manager_class(), async_=True)
    chance = random.Random(SEED)

    async def main() -> None:
        pool = ConnectionPool[str, Any](manager, background_collector=background_collector, **CAPS)
        end = time.monotonic() + SECONDS / 4
        ended = never_driven = 0

        async def act() -> None:
            endpoint, timeout = chance.choice(ENDPOINTS), chance.choice([None, None, 1, 0.002, 0])
            way = chance.random()
            if way < 0.7:
                async with pool.connection(endpoint, timeout=timeout) as connection:
                    with manager.hold(connection):
                        if way < 0.3:
                            await asyncio.sleep(0 if way < 0.25 else 0.0005)
                        elif way < 0.35:
                            raise Fault
            else:
                connection = await pool.acquire(endpoint, timeout=timeout)
                with manager.hold(connection):
                    pass
                await pool.release(connection, endpoint)

        async def work() -> None:
            nonlocal ended, never_driven
            while time.monotonic() < end:
                if chance.random() < 0.03:
                    pool.acquire('a')  # never awaited
                task = asyncio.ensure_future(act())
                if chance.random() < 0.2:
                    await asyncio.sleep(chance.choice([0, 0, 0.001]))
                    task.cancel()
                try:
                    await task
                except TOLERATED:
                    pass

        actors = [asyncio.ensure_future(work()) for _ in range(64)]
        done, pending = await asyncio.wait(actors, timeout=SECONDS + 20)
        assert not pending, (SEED, pool)
        for actor in done:
            actor.result()
        collect()
        for _ in range(5000):
            stats = pool.stats()
            if not (stats.size if background_collector else stats.disposing or stats.used):
                break
            await asyncio.sleep(0.001)
        verify(pool, manager, sum(pool.stats().acquires.values()))
        await pool.close(timeout=5)
        assert pool.get_size() == 0

    asyncio.run(main())
