"""Guarantee 5 (docs/guarantees.md): every combination of {ok, error, slow, never} over the hooks, cancelled at every
await.

The idea is deadpool's. One workload calls every hook. It is run once to count its awaits (or to see where it
hangs), and then once more for each await, to be cancelled there. After each run, every permit and every slot must
be accounted for, and the pool must be able to hand out all of its connections at once. Combinations that differ
only in hooks that the workload did not reach count as one, so far fewer runs than combinations cover the full
product."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from fronts import AsyncioFront, audit

from gcp.asyncio import ConnectionPool
from gcp.exceptions import AcquireTimeoutError, ConnectionPoolClosedError
from gcp.testing import AsyncFakeManager, Behaviour, calling, dead, error, never, ok

HOOKS = ['create', 'check_aliveness', 'on_acquire', 'on_release', 'on_connection_dead', 'dispose']
MOODS = ['ok', 'error', 'slow', 'never']
LIMIT = 60  # loop iterations without an end: the workload hangs


class Fault(Exception):
    """What a faulty hook raises."""


async def a_few_steps(endpoint: Any, connection: Any) -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def behaviour(hook: str, mood: str) -> Behaviour:
    """What a hook does in a mood. A check also comes in a dead mood."""
    if mood == 'dead':
        return dead()
    return {'ok': ok(), 'error': error(Fault), 'slow': calling(a_few_steps), 'never': never()}[mood]


def all_moods(first: str | None = None) -> Iterator[dict[str, str]]:
    """The full product, with `dead` as one more mood of the check."""
    choices = [[*MOODS, 'dead'] if hook == 'check_aliveness' else MOODS for hook in HOOKS]
    for moods in itertools.product(*choices):
        if first in (None, moods[0]):
            yield dict(zip(HOOKS, moods, strict=True))


def told(moods: dict[str, str]) -> AsyncFakeManager:
    manager = AsyncFakeManager()
    for hook, mood in moods.items():
        getattr(manager, hook).does(behaviour(hook, mood))
    return manager


async def tolerant(act: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    try:
        return await act(*args)
    except (Fault, AcquireTimeoutError, ConnectionPoolClosedError):
        return None


async def use(pool: Any, endpoint: str) -> None:
    async with pool.connection(endpoint):
        await asyncio.sleep(0)


async def one_after_the_other(pool: Any) -> None:
    """Create, release, reuse, evict, close."""
    if connection := await tolerant(pool.acquire, 'a'):
        await tolerant(pool.release, connection, 'a')
    for endpoint in ('a', 'b', 'c'):
        await tolerant(use, pool, endpoint)
    await tolerant(pool.close)


async def in_line(pool: Any) -> None:
    """Two that stand in line behind one; all are cancelled together, wherever they are."""
    await asyncio.gather(*[tolerant(use, pool, endpoint) for endpoint in ('a', 'a', 'b', 'a')])


async def step(task: asyncio.Task[None], steps: int) -> int:
    """Let the loop turn until the task is done, at most so many times; tell how often."""
    for turn in range(steps):
        if task.done():
            return turn
        await asyncio.sleep(0)
    return steps


async def run(
    moods: dict[str, str],
    workload: Callable[[Any], Any],
    steps: int,
    **arguments: Any,
) -> tuple[int, set[str]]:
    """Run a workload, cancel it after so many steps, and see that nothing is missing.

    :return: the steps it took, and the hooks that it reached
    """
    manager = told(moods)
    pool: Any = ConnectionPool(manager, **arguments)
    task = asyncio.ensure_future(workload(pool))
    took = await step(task, steps)
    task.cancel()
    try:
        for _ in range(20):  # what is cancelled while it waits for a disposal may take a few turns
            if task.done():
                break
            await asyncio.sleep(0)
        assert task.done(), f'the cancelled task hangs: {task}'
        assert task.cancelled() or task.exception() is None, task
        reached = {call.hook for call in manager.calls}
        for hook in HOOKS:
            getattr(manager, hook).does(ok())
        manager.unblock()
        await settled(pool)
        if not pool.closed:
            audit(pool.stats())
            held = [await asyncio.wait_for(pool.acquire('z', timeout=5), 60) for _ in range(pool.max_size)]
            assert pool.stats().used == len(held)
            for connection in held:
                await pool.release(connection, 'z')
        await asyncio.wait_for(pool.close(timeout=5), 60)
        await settled(pool)
        audit(pool.stats())
        assert pool.get_size() == 0 and pool.stats().size == 0
        assert not manager.live
        manager.check(max_size=pool.max_size, total_max_size=pool.total_max_size)
    except BaseException:
        print(moods, workload.__name__, f'cancelled after {steps} steps:', sep='\n')
        print(*manager.story(), pool, pool.stats(), sep='\n')
        raise
    return took, reached


async def settled(pool: Any) -> None:
    stats = pool.stats()
    for _ in range(100):
        stats = pool.stats()
        if not (stats.used or stats.creating or stats.disposing or stats.waiting):
            return
        await asyncio.sleep(0)
    raise AssertionError(f'{pool} does not settle: {stats}')


async def product(first: str, workload: Callable[[Any], Any], every: int) -> None:
    """Run all combinations with a first mood of `create`, each cancelled at every step, or at each n-th."""
    seen: set[tuple[str, ...]] = set()
    arguments = {'min_idle': 1, 'max_size': 2, 'total_max_size': 2}
    for moods in all_moods(first):
        if any(all(moods[hook] == mood for hook, mood in zip(HOOKS, known, strict=True) if mood) for known in seen):
            continue
        took, reached = await run(moods, workload, LIMIT, **arguments)
        last = took if took < LIMIT else await hangs_at(moods, workload, arguments)
        for steps in range(len(seen) % every, last, every):  # each step has its turn in one of the combinations
            reached |= (await run(moods, workload, steps, **arguments))[1]
        seen.add(tuple(moods[hook] if hook in reached else '' for hook in HOOKS))


async def hangs_at(moods: dict[str, str], workload: Callable[[Any], Any], arguments: dict[str, Any]) -> int:
    """Find the step after which a hanging workload makes no more calls."""
    manager = told(moods)
    pool: Any = ConnectionPool(manager, **arguments)
    task = asyncio.ensure_future(workload(pool))
    last, calls = 0, 0
    for turn in range(LIMIT):
        await asyncio.sleep(0)
        if len(manager.calls) != calls:
            last, calls = turn, len(manager.calls)
    task.cancel()
    manager.unblock()
    await asyncio.wait({task})
    await pool.close(timeout=0)
    return last + 4


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Thousands of logged errors are what is wanted here, and nobody wants to read them."""
    logger = logging.getLogger('gcp')
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


@pytest.mark.parametrize('create', MOODS)
async def test_all_combinations_cancelled_at_every_step(
    asyncio_front: AsyncioFront,
    create: str,
    thorough: bool,
) -> None:
    await product(create, one_after_the_other, every=1 if thorough else 5)


@pytest.mark.parametrize('create', MOODS)
async def test_all_combinations_in_line_cancelled_at_every_step(
    asyncio_front: AsyncioFront,
    create: str,
    thorough: bool,
) -> None:
    await product(create, in_line, every=1 if thorough else 5)


@pytest.mark.parametrize('hook', HOOKS)
@pytest.mark.parametrize('mood', ['slow', 'never'])
@pytest.mark.parametrize('workload', [one_after_the_other, in_line])
async def test_the_pool_s_own_deadlines(
    asyncio_front: AsyncioFront,
    hook: str,
    mood: str,
    workload: Callable[[Any], Any],
) -> None:
    moods = dict.fromkeys(HOOKS, 'ok') | {hook: mood}
    if hook in ('on_connection_dead',):
        moods['check_aliveness'] = 'dead'
    for timeout in (0.0, 0.001, 0.005):
        await run(moods, workload, 1000, max_size=2, total_max_size=2, acquire_timeout=timeout, dispose_timeout=0.002)


async def test_each_of_several_waiters_cancelled_at_every_step(asyncio_front: AsyncioFront) -> None:
    """Those who are not cancelled must be served."""
    for victim, steps in itertools.product(range(4), range(40)):
        manager = AsyncFakeManager()
        for hook in HOOKS:
            getattr(manager, hook).does(behaviour(hook, 'slow'))
        pool: Any = ConnectionPool(manager, max_size=1, total_max_size=1)
        tasks = [asyncio.ensure_future(use(pool, endpoint)) for endpoint in ('a', 'a', 'b', 'a')]
        for _ in range(steps):
            await asyncio.sleep(0)
        tasks[victim].cancel()
        done, pending = await asyncio.wait(tasks, timeout=60)
        assert not pending, (victim, steps, pool)
        assert not any(task.exception() for number, task in enumerate(tasks) if number != victim)
        await settled(pool)
        audit(pool.stats())
        await pool.close()
        manager.check(total_max_size=1)


async def test_every_second_waiter_cancelled_in_the_step_of_its_hand_off(asyncio_front: AsyncioFront) -> None:
    for turns in range(4):
        pool: Any = ConnectionPool(AsyncFakeManager(), max_size=1)
        connection = await pool.acquire('db')
        tasks = [asyncio.ensure_future(use(pool, 'db')) for _ in range(8)]
        await asyncio_front.waiting(pool, 8)
        await pool.release(connection, 'db')
        for task in tasks[::2]:
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait(tasks, timeout=60)
        assert all(task.done() for task in tasks)
        assert not any(task.cancelled() for task in tasks[1::2])
        await settled(pool)
        audit(pool.stats())
        await pool.close()
