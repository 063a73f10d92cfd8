"""Guarantees 1, 2, 5, 18, 19, 20 and 22 (docs/guarantees.md): random faults while all limits change at random, and
endpoints are warmed up and retired; the counts must agree.

``GCP_STRESS_SECONDS`` (default 5) is for how long all cases stress each front; ``GCP_STRESS_SEED`` repeats a seed.
Above 600, pytest has to be as patient: ``-o faulthandler_timeout=0``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from fronts import PATIENCE, AsyncioFront, Front, audit

from gcp import (
    AcquireTimeoutError,
    ConnectionPoolNotFound,
    EndpointLimits,
    EndpointRetiredError,
    EndpointUnavailableError,
    ErrorClass,
    HookTimeoutError,
    PoolNotReadyError,
    Retry,
    TooManyWaitersError,
)
from gcp.testing import calling

SECONDS = float(os.environ.get('GCP_STRESS_SECONDS', '5'))
SEED = int(os.environ.get('GCP_STRESS_SEED', random.randrange(1 << 30)))
ENDPOINTS = 'abcd'
MOST, MOST_IN_ALL = 4, 10
"""No limit is ever above these."""
MOST_CONNECTS = 2


class Fault(Exception):
    """What a faulty hook raises."""


class Abort(BaseException):
    """What a faulty hook raises, not an `Exception`."""


REFUSALS = (AcquireTimeoutError, EndpointRetiredError, EndpointUnavailableError, TooManyWaitersError)
OWN = (Fault, Abort, HookTimeoutError, asyncio.CancelledError)
TOLERATED = (*OWN, ConnectionPoolNotFound, PoolNotReadyError, *REFUSALS)


pytestmark = pytest.mark.timeout(240 + SECONDS / 4)


@pytest.fixture(autouse=True)
def thin_air(front: Front) -> Iterator[None]:
    """Switch threads all the time; keep the log silent; have time."""
    interval, logger = sys.getswitchinterval(), logging.getLogger('gcp')
    level = logger.level
    front.patience += SECONDS / 4
    sys.setswitchinterval(1e-6)
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)
    sys.setswitchinterval(interval)


class Connects:
    """The connects in progress, and how many there have been at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: Counter[Any] = Counter()
        self.most: Counter[Any] = Counter()

    def begin(self, endpoint: Any) -> None:
        with self._lock:
            for key in (endpoint, ...):
                self._now[key] += 1
                self.most[key] = max(self.most[key], self._now[key])

    def end(self, endpoint: Any) -> None:
        with self._lock:
            self._now.subtract((endpoint, ...))


def break_hooks(manager: Any, front: Front, connects: Connects) -> None:
    """Have all hooks fail, tell of dead connections, or take their time, now and then."""
    chance = random.Random(SEED)

    async def pause(seconds: float) -> None:
        await front.sleep(seconds)

    def misfortune(hook: str) -> Any:
        async def act(endpoint: Any, connection: Any) -> Any:
            if hook == 'create':
                connects.begin(endpoint)
            try:
                fate = chance.random()
                if fate < 0.1:
                    await pause(0.001 if fate < 0.05 else 0)
                if hook in ('check_aliveness', 'keepalive'):
                    return fate > 0.03
                if fate > (0.8 if hook == 'create' else 0.98):
                    raise Abort if hook != 'dispose' and fate > 0.995 else Fault
            finally:
                if hook == 'create':
                    connects.end(endpoint)
            return None

        return calling(front.hook(act))

    for hook in ('create', 'dispose', 'on_acquire', 'on_release', 'on_connection_dead', 'check_aliveness', 'keepalive'):
        getattr(manager, hook).does(misfortune(hook))
    kinds = [ErrorClass.TRANSIENT] * 8 + [*ErrorClass]
    manager.classify.does(calling(lambda endpoint, error: chance.choice(kinds)))


def some_limits(chance: random.Random) -> dict[str, Any]:
    """Choose a value of each argument that can change. No cap of connects is None: they are verified."""
    max_size, max_lifetime = chance.randint(1, MOST), chance.choice([0.05, None])
    own = EndpointLimits(max_size=chance.randint(1, max_size), min_idle=0, max_waiting=chance.choice([None, 1, 4]))
    return {
        'max_size': max_size,
        'total_max_size': chance.randint(max_size, MOST_IN_ALL),
        'min_idle': chance.randint(0, max_size),
        'idle_timeout': chance.choice([0, 0.002]) if max_lifetime else chance.choice([0.002, None]),
        'max_lifetime': max_lifetime,
        'lifetime_jitter': chance.random(),
        'max_uses': chance.choice([None, 1, 7]),
        'keepalive_interval': chance.choice([None, 0.001, 0.01]),
        'check_interval': chance.choice([None, 0.001, 10]),
        'max_waiting': chance.choice([None, 2, 16]),
        'limits': chance.choice([None, {'a': own}, {'b': own}.get]),
        'refill': chance.random() < 0.5,
        'connect_workers': chance.choice([0, 0, 1, 3]),
        'connect_timeout': chance.choice([None, 0.005]),
        'max_connecting': chance.randint(1, MOST_CONNECTS),
        'max_connecting_total': chance.choice([None, 2, 3]),
        'connect_retry': chance.choice([None, Retry(0.0005, 0.002), Retry(0.001, 0.001, 1.0, 0.0)]),
        'breaker_threshold': chance.choice([None, 1, 3]),
        'admission': chance.choice([None, 'deadline']),
        'leak_threshold': chance.choice([None, 1]),
        'dispose_batch_size': chance.choice([0, 3]),
    }


@pytest.mark.parametrize('number', range(2))
async def test_all_features_at_random_settings(front: Front, number: int) -> None:
    connects = Connects()
    manager = front.manager()
    break_hooks(manager, front, connects)
    chance = random.Random(SEED + 100 * number)
    pool: Any = front.pool(manager, dispose_timeout=PATIENCE, **some_limits(chance))
    end = time.monotonic() + SECONDS / 4
    ended = [0] * 16

    async def act(chance: random.Random) -> None:
        endpoint, timeout = chance.choice(ENDPOINTS), chance.choice([1, 1, 0.002, 0])
        way = chance.random()
        if way < 0.7:
            async with pool.connection(endpoint, timeout=timeout) as connection:
                with manager.hold(connection):
                    if way < 0.3:
                        await front.sleep(0 if way < 0.2 else 0.0005)
                    elif way < 0.4:
                        raise Fault
        else:
            connection = await pool.acquire(endpoint, timeout=timeout)
            with manager.hold(connection):
                pass
            error = Fault() if way < 0.8 else None
            await (
                pool.discard(connection, endpoint) if way > 0.95 else pool.release(connection, endpoint, error=error)
            )

    async def work(number: int) -> None:
        chance = random.Random(SEED + number)
        while time.monotonic() < end:
            ended[number] += 1
            try:
                await act(chance)
            except TOLERATED:
                pass

    async def steer() -> None:
        while time.monotonic() < end:
            endpoints = chance.sample(ENDPOINTS, chance.randint(1, 2))
            way = chance.random()
            try:
                if way < 0.5:
                    pool.reconfigure(**some_limits(chance))
                elif way < 0.7:
                    with contextlib.suppress(ValueError):  # no room for that many in all
                        await pool.warm_up(*endpoints, timeout=0.01)
                elif way < 0.8:
                    await pool.wait_ready(timeout=0.005)
                elif way < 0.9:
                    await pool.retire(endpoints[0], timeout=PATIENCE)
            except BaseException as error:
                assert all(isinstance(one, TOLERATED) for one in getattr(error, 'exceptions', [error])), (SEED, error)
            await front.sleep(0.0005)

    async def cancel_some() -> None:
        while time.monotonic() < end:
            task = asyncio.ensure_future(act(chance))
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
            task.cancel()
            try:
                await task
            except TOLERATED:
                pass

    actors = [front.spawn(work(number)) for number in range(len(ended))]
    if isinstance(front, AsyncioFront):
        actors.append(front.spawn(cancel_some()))
    actors.append(front.spawn(steer()))
    await front.sleep(SECONDS / 4)  # they are patient for less, if that is long
    for actor in actors:
        await actor

    quiet = dict.fromkeys(('keepalive_interval', 'idle_timeout', 'max_lifetime', 'connect_retry', 'breaker_threshold'))
    pool.reconfigure(refill=False, **quiet)
    stats = pool.stats()

    def at_rest() -> bool:
        """A connection that is being checked in the background is shown as idle, and may turn out to be dead."""
        nonlocal stats
        stats = pool.stats()
        return (
            stats.creating == stats.disposing == stats.used == stats.waiting == 0
            and sum(stats.closed.values()) == len(manager.disposed)
            and stats.idle == len(manager.live)
        )

    await front.until(at_rest)
    audit(stats)
    assert sum(stats.acquires.values()) >= sum(ended), (SEED, stats)
    assert isinstance(front, AsyncioFront) or sum(stats.acquires.values()) == sum(ended), (SEED, stats)
    assert stats.created == len(manager.created)
    assert all(each.missing == each.connect_queue == 0 for each in stats.endpoints.values()), (SEED, stats)
    manager.check(max_size=MOST, total_max_size=MOST_IN_ALL)
    assert max(connects.most[endpoint] for endpoint in ENDPOINTS) <= MOST_CONNECTS, (SEED, connects.most)
