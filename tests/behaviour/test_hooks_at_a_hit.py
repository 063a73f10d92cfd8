"""Guarantees 8 and 9 (docs/guarantees.md): the hooks of an asyncio manager at an idle hit and at a release.

They run compiled until they wait. Each hook returns at once, or waits and then returns, or raises, or never ends;
it returns a coroutine, or another awaitable, or none. In every case it runs as if it were awaited plainly, its
call is counted and timed once, and the connection is handed out, kept or disposed of accordingly."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fronts import AsyncioFront, Front, audit

from gcp.exceptions import AcquireTimeoutError
from gcp.testing import FakeConnection, calling, ok

HOOKS = ['check_aliveness', 'on_acquire', 'on_release']


class HookError(Exception):
    """A hook's own."""


# --- what a hook may return ---


class Awaitable:
    """An awaitable that is no coroutine."""

    def __init__(self, coro: Any) -> None:
        self.coro = coro

    def __await__(self) -> Any:
        return self.coro.__await__()


class Iterating(Awaitable):
    """One whose iterator can do nothing but go on: no send, no throw, no close."""

    def __await__(self) -> Any:
        return Steps(self.coro.__await__())


class Steps:
    def __init__(self, steps: Iterator[Any]) -> None:
        self.steps = steps

    def __iter__(self) -> Steps:
        return self

    def __next__(self) -> Any:
        return next(self.steps)


class Generating(Awaitable):
    """One whose __await__ is a generator."""

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self.coro.__await__())


def plain(coro: Any) -> Any:
    return coro


FORMS: list[Callable[[Any], Any]] = [plain, Awaitable, Generating, Iterating, asyncio.ensure_future]


# --- what a hook may do ---


async def at_once(*_: Any) -> bool:
    return True


async def after_one_turn(*_: Any) -> bool:
    await asyncio.sleep(0)
    return True


async def after_a_future(*_: Any) -> bool:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 7)
    assert await future == 7
    return True


async def after_three(*_: Any) -> bool:
    for pause in 0, 0.0001, 0:
        await asyncio.sleep(pause)
    return True


async def after_an_error_of_its_own(*_: Any) -> bool:
    try:
        await asyncio.sleep(0)
        raise HookError
    except HookError:
        await asyncio.sleep(0)
    return True


async def with_others(*_: Any) -> bool:
    assert await asyncio.gather(at_once(), after_one_turn()) == [True, True]
    return True


GOOD = [at_once, after_one_turn, after_a_future, after_three, after_an_error_of_its_own, with_others]


async def raises(*_: Any) -> bool:
    raise HookError


async def raises_later(*_: Any) -> bool:
    await asyncio.sleep(0)
    raise HookError


async def raises_much_later(*_: Any) -> bool:
    for _ in range(3):
        await asyncio.sleep(0)
    raise HookError


BAD = [raises, raises_later, raises_much_later]


async def never(*_: Any) -> bool:
    await asyncio.get_running_loop().create_future()
    return True


class Scene:
    """A pool of one connection, idle, whose hook does from now on as it is told.

    :ivar pool: the pool
    :ivar before: what it had counted until then
    :ivar quiet: whether the double does not see what the hook does: one that cannot be told to stop, say, goes on while
                 its connection is disposed of
    """

    def __init__(self, front: Front, hook: str, *, quiet: bool, **arguments: Any) -> None:
        self.hook = hook
        self.quiet = quiet
        self.manager = front.manager()
        self.pool: Any = front.pool(self.manager, max_size=1, **arguments)

    async def begin(self, behaviour: Callable[..., Any], form: Callable[[Any], Any] = plain) -> Any:
        """Let the hook do something from the next call on. Returns the connection."""
        conn = await self.pool.acquire('db')
        await self.pool.release(conn, 'db')
        self.before = self.pool.stats()
        # the double's hooks are coroutines: this one's is put past it, and written down
        self.calls = 0
        double = self.manager.hooks[self.hook]
        inner = double._body

        def body(endpoint: Any, connection: FakeConnection) -> Any:
            self.calls += 1
            return form((behaviour if self.quiet else told)(endpoint, connection))

        async def told(endpoint: Any, connection: FakeConnection) -> Any:
            double.does(calling(behaviour))
            return await inner(endpoint, connection)

        double._body = body
        return conn

    async def round_trip(self) -> Any:
        """Acquire and release in a block; return the connection."""
        async with self.pool.connection('db') as conn:
            assert self.pool.stats().used == 1
        return conn

    def counted(self) -> dict[str, int]:
        """Return how the hook's steps have ended since."""
        now = self.pool.stats()
        steps = {
            outcome: count - self.before.hook_calls[self.hook][outcome]
            for outcome, count in now.hook_calls[self.hook].items()
        }
        assert now.hook_time[self.hook].count - self.before.hook_time[self.hook].count == sum(steps.values())
        return {outcome: count for outcome, count in steps.items() if count}

    def end(self) -> None:
        """Let the hook be good again, and see what it has left."""
        self.manager.hooks[self.hook].does(ok())
        assert self.pool.stats().used == self.pool.stats().waiting == self.pool.stats().creating == 0


@asynccontextmanager
async def acting(
    front: Front,
    hook: str,
    behaviour: Callable[..., Any],
    form: Callable[[Any], Any] = plain,
    *,
    quiet: bool = False,
    **arguments: Any,
) -> AsyncIterator[Scene]:
    scene = Scene(front, hook, quiet=quiet, **arguments)
    await scene.begin(behaviour, form)
    yield scene
    scene.end()
    await front.until(lambda: not scene.pool.stats().disposing)
    audit(scene.pool.stats())


LIMITS = [None, 5.0]


@pytest.mark.parametrize('hook', HOOKS)
@pytest.mark.parametrize('does', GOOD)
async def test_a_hook_that_ends_well(asyncio_front: Front, hook: str, does: Callable[..., Any]) -> None:
    for form, limit in itertools.product(FORMS, LIMITS):
        async with acting(asyncio_front, hook, does, form, acquire_timeout=limit) as scene:
            for number in range(1, 4):
                conn = await scene.round_trip()
                assert conn is scene.manager.created[0]
                assert scene.counted() == {'ok': number}
                assert scene.calls == number
            assert scene.pool.stats().idle == 1
            assert scene.pool.stats().acquires['hit'] == 3


@pytest.mark.parametrize('hook', HOOKS)
@pytest.mark.parametrize('does', BAD)
async def test_a_hook_that_raises_costs_the_connection(
    asyncio_front: Front,
    hook: str,
    does: Callable[..., Any],
) -> None:
    for form, limit in itertools.product(FORMS, LIMITS):
        async with acting(asyncio_front, hook, does, form, acquire_timeout=limit) as scene:
            with pytest.raises(HookError):
                await scene.round_trip()
            assert scene.counted() == {'error': 1}
            assert scene.calls == 1
            assert scene.pool.stats().closed['error'] == 1
            assert scene.pool.stats().acquires['error'] == (hook != 'on_release')


@pytest.mark.parametrize('wait', [0, 1, 3])
async def test_a_connection_that_is_found_dead_is_replaced(asyncio_front: Front, wait: int) -> None:
    for form in FORMS:

        async def finds_it_dead(endpoint: Any, conn: FakeConnection) -> bool:
            for _ in range(wait):
                await asyncio.sleep(0)
            return False

        async with acting(asyncio_front, 'check_aliveness', finds_it_dead, form, acquire_timeout=5) as scene:
            assert (await scene.round_trip()) is scene.manager.created[1]
            assert scene.counted() == {'dead': 1}
            assert scene.pool.stats().closed['dead'] == 1
            assert scene.manager.story('on_connection_dead') == ['on_connection_dead db#1']


@pytest.mark.parametrize('hook', HOOKS[:2])
async def test_a_hook_that_never_ends_is_ended_at_the_deadline(asyncio_front: Front, hook: str) -> None:
    for form in FORMS:
        async with acting(asyncio_front, hook, never, form, quiet=form is Iterating) as scene:
            with pytest.raises(AcquireTimeoutError) as caught:
                await scene.pool.acquire('db', timeout=0.01)
            assert caught.value.phase == hook
            assert scene.counted() == {'timeout': 1}
            assert scene.pool.stats().closed['error'] == 1
            assert scene.pool.stats().acquires['timeout'] == 1
            await asyncio.sleep(0)


@pytest.mark.parametrize('hook', HOOKS[:2])
async def test_a_hook_that_takes_too_long_without_waiting(asyncio_front: Front, hook: str) -> None:
    import time

    async def blocks(*_: Any) -> bool:
        time.sleep(0.02)
        return True

    async with acting(asyncio_front, hook, blocks) as scene:
        with pytest.raises(AcquireTimeoutError) as caught:
            await scene.pool.acquire('db', timeout=0.01)
        assert caught.value.phase == hook
        assert sum(scene.counted().values()) == 1
        assert scene.pool.stats().acquires['timeout'] == 1


@pytest.mark.parametrize('hook', HOOKS)
@pytest.mark.parametrize('turns', [1, 2, 4])
async def test_a_hook_that_is_cancelled_while_it_waits(asyncio_front: Front, hook: str, turns: int) -> None:
    for form, limit in itertools.product(FORMS, LIMITS):
        ended: list[str] = []

        async def watched(*_: Any, ended: list[str] = ended) -> bool:
            try:
                for _ in range(turns - 1):
                    await asyncio.sleep(0)
                return await never()
            except asyncio.CancelledError:
                ended.append('cancelled')
                raise

        async with acting(asyncio_front, hook, watched, form, quiet=form is Iterating, acquire_timeout=limit) as scene:
            task = asyncio.create_task(scene.round_trip())
            for _ in range(turns + 3):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            assert scene.counted() == {'cancelled': 1}
            assert scene.pool.stats().closed['error'] == 1
            await asyncio.sleep(0)
            if form is not Iterating:  # which cannot be told
                assert ended == ['cancelled']


@pytest.mark.parametrize('hook', HOOKS)
@pytest.mark.parametrize('limit', LIMITS)
async def test_a_hook_may_refuse_to_be_cancelled(asyncio_front: Front, hook: str, limit: float | None) -> None:
    """As a coroutine may that is awaited plainly."""

    async def stubborn(*_: Any) -> bool:
        for _ in range(3):
            try:
                await never()
            except asyncio.CancelledError:
                pass
        return True

    async with acting(asyncio_front, hook, stubborn, acquire_timeout=limit) as scene:
        task = asyncio.create_task(scene.round_trip())
        for _ in range(3):
            for _ in range(3):
                await asyncio.sleep(0)
            assert not task.done()
            task.cancel()
        assert (await task) is scene.manager.created[0]
        assert scene.counted() == {'ok': 1}
        assert scene.pool.stats().idle == 1


@pytest.mark.parametrize('hook', HOOKS)
@pytest.mark.parametrize('returned', [None, True, 7, object()])
async def test_a_hook_that_returns_no_awaitable(asyncio_front: Front, hook: str, returned: Any) -> None:
    async with acting(asyncio_front, hook, at_once, lambda coro: (coro.close(), returned)[1]) as scene:
        with pytest.raises(TypeError, match='awaitable'):
            await scene.round_trip()
        assert scene.counted() == {'error': 1}
        assert scene.pool.stats().closed['error'] == 1


@pytest.mark.parametrize('hook', HOOKS)
@pytest.mark.parametrize('error', [HookError, StopIteration])
async def test_a_hook_that_raises_where_it_is_called(asyncio_front: Front, hook: str, error: type[Exception]) -> None:
    def form(coro: Any) -> Any:
        coro.close()
        raise error

    async with acting(asyncio_front, hook, at_once, form) as scene:
        with pytest.raises(RuntimeError if error is StopIteration else error):
            await scene.round_trip()
        assert scene.counted() == {'error': 1}
        assert scene.pool.stats().closed['error'] == 1


@pytest.mark.parametrize('hook', HOOKS)
@pytest.mark.parametrize('error', [KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration, asyncio.CancelledError])
@pytest.mark.parametrize('waits', [True, False])
async def test_errors_that_are_no_exceptions(
    asyncio_front: Front, hook: str, error: type[BaseException], waits: bool
) -> None:
    """Whoever drives the acquire by hand sees them: an event loop would end."""

    async def interrupted(*_: Any) -> bool:
        if waits:
            await asyncio.sleep(0)
        raise error

    async with acting(asyncio_front, hook, interrupted) as scene:
        trip = scene.round_trip()
        with pytest.raises(RuntimeError if error is StopIteration else error):
            while True:
                trip.send(None)
        assert sum(scene.counted().values()) == 1
        assert scene.pool.stats().closed['error'] == 1


@pytest.mark.parametrize('hook', HOOKS)
async def test_a_coroutine_that_is_closed_while_its_hook_waits(asyncio_front: Front, hook: str) -> None:
    ended = []

    async def watched(*_: Any) -> bool:
        try:
            return await never()
        except GeneratorExit:
            ended.append('closed')
            raise

    async with acting(asyncio_front, hook, watched) as scene:
        trip = scene.round_trip()
        trip.send(None)
        trip.close()
        assert ended == ['closed']
        assert scene.counted() == {'cancelled': 1}
        assert scene.pool.stats().closed['error'] == 1


@pytest.mark.parametrize('hook', HOOKS[:2])
@pytest.mark.parametrize('waits', [True, False])
async def test_a_pool_that_is_closed_by_force_meanwhile(asyncio_front: Front, hook: str, waits: bool) -> None:
    async def closes(*_: Any) -> bool:
        if waits:
            await asyncio.sleep(0)
        await scene.pool.close(timeout=0)
        return True

    async with acting(asyncio_front, hook, closes) as scene:
        with pytest.raises(Exception, match='closed'):
            await scene.round_trip()
        assert scene.counted() == {'ok': 1}


# --- as if it were awaited plainly ---

variable: contextvars.ContextVar[str] = contextvars.ContextVar('variable', default='nothing')


@pytest.mark.parametrize('waits', [True, False])
@pytest.mark.parametrize('hook', HOOKS)
async def test_it_runs_in_its_caller_s_task_and_context(asyncio_front: Front, hook: str, waits: bool) -> None:
    seen: list[Any] = []

    async def look(*_: Any) -> bool:
        seen.append((asyncio.current_task(), variable.get()))
        if waits:
            await asyncio.sleep(0)
        variable.set('of the hook')
        seen.append((asyncio.current_task(), variable.get()))
        return True

    async with acting(asyncio_front, hook, look) as scene:

        async def caller() -> str:
            variable.set('of the caller')
            await scene.round_trip()
            return variable.get()

        task = asyncio.create_task(caller())
        assert await task == 'of the hook'
        assert seen == [(task, 'of the caller'), (task, 'of the hook')]
        assert variable.get() == 'nothing'


@pytest.mark.skipif(sys.version_info < (3, 11), reason='asyncio.timeout came with Python 3.11')
@pytest.mark.parametrize('limit', LIMITS)
@pytest.mark.parametrize('hook', HOOKS)
async def test_time_outs_inside_of_a_hook(asyncio_front: Front, hook: str, limit: float | None) -> None:
    seen = []

    async def impatient(*_: Any) -> bool:
        try:
            async with asyncio.timeout(0.005):  # type: ignore[attr-defined]
                await never()
        except TimeoutError:
            seen.append('timed out')
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(never(), 0.001)
        return True

    async with acting(asyncio_front, hook, impatient, acquire_timeout=limit) as scene:
        await scene.round_trip()
        assert seen == ['timed out']
        assert scene.counted() == {'ok': 1}
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


@pytest.mark.skipif(sys.version_info < (3, 11), reason='asyncio.timeout came with Python 3.11')
@pytest.mark.parametrize('hook', HOOKS)
async def test_a_time_out_around_an_acquire_whose_hook_waits(asyncio_front: Front, hook: str) -> None:
    async with acting(asyncio_front, hook, never, acquire_timeout=5) as scene:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):  # type: ignore[attr-defined]
                await scene.round_trip()
        assert scene.counted() == {'cancelled': 1}
        assert scene.pool.stats().closed['error'] == 1


async def test_each_hook_waits_in_turn(asyncio_front: Front) -> None:
    """The first is begun compiled, the second by the Python half."""
    manager = asyncio_front.manager()
    pool: Any = asyncio_front.pool(manager, max_size=1)
    async with pool.connection('db'):
        pass
    for hook in HOOKS:
        manager.hooks[hook].does(calling(after_three))
    for number in range(1, 4):
        async with pool.connection('db'):
            pass
        stats = pool.stats()
        assert [stats.hook_calls[hook]['ok'] for hook in HOOKS] == [number, number + 1, number + 1]
    assert stats.acquires['hit'] == 3
    assert stats.created == 1


async def test_an_acquire_in_a_hook(asyncio_front: Front) -> None:
    """What `acquire` returns is an awaitable like others: a hook may hand it on."""
    inner: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    lent: list[Any] = []

    async def takes(*_: Any) -> bool:
        lent.append(await inner.acquire('inner'))
        return True

    async with acting(asyncio_front, 'on_acquire', takes) as scene:
        other = await inner.acquire('inner')
        task = asyncio.create_task(scene.round_trip())
        await asyncio_front.waiting(inner, 1)
        await inner.release(other, 'inner')
        await task
        assert lent == [other]
        await inner.release(other, 'inner')


@pytest.mark.parametrize('hook', HOOKS)
async def test_a_hook_that_goes_on_with_the_acquire_in_which_it_runs(asyncio_front: Front, hook: str) -> None:
    """A coroutine that is running cannot be sent to; neither can a lease."""
    said: list[Any] = []

    async def meddles(*_: Any) -> bool:
        try:
            said.append(lease.send(None))
        except (RuntimeError, ValueError) as error:
            said.append(error)
        except StopIteration as stop:
            said.append(stop.value)
        return True

    manager = asyncio_front.manager()
    pool: Any = asyncio_front.pool(manager, max_size=3, min_idle=3)
    await asyncio_front.give_back(pool, await asyncio_front.fill(pool, 'db', 3))
    lease = pool.connection('db')
    manager.hooks[hook].does(calling(meddles), ok())
    async with lease:
        assert pool.stats().used == 1
    assert [type(each) for each in said] in ([RuntimeError], [ValueError])
    assert (pool.stats().idle, pool.stats().used) == (3, 0)


async def test_waiting_hooks_of_many_tasks(asyncio_front: AsyncioFront) -> None:
    manager = asyncio_front.manager()
    pool: Any = asyncio_front.pool(manager, max_size=5, min_idle=5)
    for number, hook in enumerate(HOOKS):
        manager.hooks[hook].does(*[calling((GOOD + BAD)[(number + turn) % 9]) for turn in range(300)])

    async def use(number: int) -> None:
        try:
            async with asyncio_timeout(None if number % 3 else 0.0005 * (number % 7)):
                async with pool.connection('db'):
                    await asyncio.sleep(0)
        except (HookError, asyncio.TimeoutError):
            pass

    await asyncio.gather(*[use(number) for number in range(150)])
    for hook in HOOKS:
        manager.hooks[hook].does(ok())
    assert pool.stats().used == pool.stats().waiting == 0
    await asyncio_front.until(lambda: not pool.stats().disposing)
    audit(pool.stats())


@asynccontextmanager
async def asyncio_timeout(seconds: float | None) -> AsyncIterator[None]:
    """`asyncio.timeout`, for older Pythons, too."""
    task = asyncio.current_task()
    assert task is not None
    fired = []

    def end() -> None:
        fired.append(True)
        task.cancel()

    timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, end)
    try:
        yield
    except asyncio.CancelledError:
        if not fired:
            raise
        if hasattr(task, 'uncancel'):
            task.uncancel()
        raise asyncio.TimeoutError from None
    finally:
        if timer is not None:
            timer.cancel()
