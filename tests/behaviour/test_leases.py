"""Guarantees 5 and 12 (docs/guarantees.md): leases leave nothing behind, in all the ways in which Python uses
context managers.

A lease is its own bound method, and its memory is reused: neither may be noticeable."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from fronts import AsyncioFront, Front, ThreadsFront, drive
from gil import collect
from test_garbage import keepers_of_nothing, raw

from gcp import asyncio as aio
from gcp import threading as blocking
from gcp._core import AsyncLease, Lease
from gcp.exceptions import AcquireTimeoutError, ConnectionNotAcquiredError
from gcp.testing import AsyncBareFakeManager, BareFakeManager

MANY = 10_000


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    collect()
    yield
    collect()


@pytest.fixture
def pool(threads_front: Front) -> Iterator[Any]:
    """A threading pool, bare, with one place."""
    made = blocking.ConnectionPool(BareFakeManager(), max_size=1)
    yield made
    assert made.stats().used == 0
    made.close()


# --- ways to use one ---


def with_statement(lease: Any) -> Iterator[Any]:
    with lease as conn:
        yield conn


def exit_stack(lease: Any) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(lease)


def pushed(lease: Any) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        conn = lease.__enter__()
        stack.push(lease)
        yield conn


def called_back(lease: Any) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        conn = lease.__enter__()
        stack.callback(lease.__exit__, None, None, None)
        yield conn


def called_by_hand(lease: Any) -> Iterator[Any]:
    conn = lease.__enter__()
    yield conn
    assert lease.__exit__(None, None, None) is False


def of_the_type(lease: Any) -> Iterator[Any]:
    conn = type(lease).__enter__(lease)
    yield conn
    assert type(lease).__exit__(lease, None, None, None) is False


def kept_methods(lease: Any) -> Iterator[Any]:
    enter, leave = lease.__enter__, lease.__exit__
    yield enter()
    leave(None, None, None)


def partial(lease: Any) -> Iterator[Any]:
    yield functools.partial(lease.__enter__)()
    functools.partial(lease.__exit__, None, None)(None)


def with_empty_keywords(lease: Any) -> Iterator[Any]:
    nothing: dict[str, Any] = {}
    yield lease.__enter__(**nothing)
    lease.__exit__(None, None, None, **nothing)


def nested_manager(lease: Any) -> Iterator[Any]:
    @contextlib.contextmanager
    def outer() -> Iterator[Any]:
        with lease as conn:
            yield conn

    with outer() as conn:
        yield conn


WAYS: list[Callable[[Any], Iterator[Any]]] = [
    with_statement,
    exit_stack,
    pushed,
    called_back,
    called_by_hand,
    of_the_type,
    kept_methods,
    partial,
    with_empty_keywords,
    nested_manager,
]


@pytest.mark.parametrize('way', WAYS)
def test_ways_to_use_a_lease(pool: Any, way: Callable[[Any], Iterator[Any]]) -> None:
    for _ in range(3):  # the first creates, the others are hits
        for conn in way(pool.connection('db')):
            assert conn.name == 'db#1'
            assert pool.stats().used == 1
        assert (pool.stats().used, pool.stats().idle) == (0, 1)
    assert sum(pool.stats().releases.values()) == 3


@pytest.mark.parametrize('way', [with_statement, exit_stack, pushed, nested_manager])
@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_errors_in_the_block_go_on_their_way(
    pool: Any, way: Callable[[Any], Iterator[Any]], error: type[BaseException]
) -> None:
    raised = error('x')
    block: Any = way(pool.connection('db'))
    next(block)
    with pytest.raises(RuntimeError if error is StopIteration else error) as caught:
        block.throw(raised)
    assert raised in (caught.value, caught.value.__cause__)
    assert (pool.stats().used, pool.stats().idle) == (0, 1)


async def enter_async(lease: Any, stack: contextlib.AsyncExitStack) -> Any:
    return await stack.enter_async_context(lease)


async def push_async(lease: Any, stack: contextlib.AsyncExitStack) -> Any:
    conn = await lease.__aenter__()
    stack.push_async_exit(lease)
    return conn


async def by_hand_async(lease: Any, stack: contextlib.AsyncExitStack) -> Any:
    stack.push_async_callback(lease.__aexit__, None, None, None)
    return await lease.__aenter__()


async def of_the_type_async(lease: Any, stack: contextlib.AsyncExitStack) -> Any:
    stack.push_async_callback(type(lease).__aexit__, lease, None, None, None)
    return await type(lease).__aenter__(lease)


async def in_a_task(lease: Any, stack: contextlib.AsyncExitStack) -> Any:
    conn = await asyncio.create_task(lease.__aenter__())
    stack.push_async_callback(lambda: asyncio.create_task(lease.__aexit__(None, None, None)))
    return conn


@pytest.mark.parametrize('bare', [True, False])
@pytest.mark.parametrize('verb', ['connection', 'acquire'])
@pytest.mark.parametrize('way', [enter_async, push_async, by_hand_async, of_the_type_async, in_a_task])
async def test_ways_to_use_an_async_lease(
    asyncio_front: Front, way: Callable[..., Awaitable[Any]], verb: str, bare: bool
) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=bare), max_size=1)
    for number in range(3):
        async with contextlib.AsyncExitStack() as stack:
            conn = await way(getattr(pool, verb)('db'), stack)
            assert conn.name == 'db#1'
            assert pool.stats().used == 1
        assert (pool.stats().used, pool.stats().idle) == (0, 1)
        assert sum(pool.stats().releases.values()) == number + 1


def test_it_is_what_python_takes_for_one(pool: Any) -> None:
    lease = pool.connection('db')
    assert isinstance(lease, contextlib.AbstractContextManager)
    assert not isinstance(lease, contextlib.AbstractAsyncContextManager)
    assert list(inspect.signature(type(lease).__enter__).parameters) == ['self']
    assert len(inspect.signature(type(lease).__exit__).parameters) == 4
    assert type(lease).__enter__.__name__ == '__enter__'
    assert type(lease).__exit__.__qualname__ == 'Lease.__exit__'


async def test_so_is_an_async_one(asyncio_front: Front) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager())
    lease = pool.connection('db')
    assert isinstance(lease, contextlib.AbstractAsyncContextManager)
    assert not isinstance(lease, contextlib.AbstractContextManager)
    assert asyncio.iscoroutine(lease)
    assert inspect.isawaitable(lease)
    assert list(inspect.signature(type(lease).__aenter__).parameters) == ['self']
    assert len(inspect.signature(type(lease).__aexit__).parameters) == 4
    lease.close()


# --- ways to misuse one ---

WRONG: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((None,), {}),
    ((None, None), {}),
    ((None,) * 4, {}),
    ((), {'timeout': 1}),
    ((None, None, None), {'timeout': 1}),
    ((None, None), {'traceback': None}),
]


@pytest.mark.parametrize('args, kwargs', WRONG)
@pytest.mark.parametrize('entered', [True, False])
async def test_a_lease_is_no_function(
    front: Front, args: tuple[Any, ...], kwargs: dict[str, Any], entered: bool
) -> None:
    pool: Any = front.pool(front.manager(bare=True), max_size=1)
    lease = pool.connection('db')
    if entered:
        await lease.__aenter__()
    with pytest.raises(TypeError, match='with'):
        raw(lease)(*args, **kwargs)
    assert pool.stats().used == entered
    if not entered:
        await lease.__aenter__()
    await lease.__aexit__(None, None, None)
    assert pool.stats().idle == 1


async def test_it_is_entered_once(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=2)
    lease = pool.connection('db')
    async with lease:
        with pytest.raises(RuntimeError, match='only once'):
            await lease.__aenter__()
        assert pool.stats().used == 1
    with pytest.raises(RuntimeError, match='only once'):
        await lease.__aenter__()
    with pytest.raises(RuntimeError, match='left already'):
        await lease.__aexit__(None, None, None)
    assert sum(pool.stats().releases.values()) == 1


async def test_it_is_not_left_before_it_is_entered(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=1)
    lease = pool.connection('db')
    with pytest.raises(RuntimeError, match='not entered'):
        await lease.__aexit__(None, None, None)
    async with lease:
        assert pool.stats().used == 1


async def test_it_is_left_once_though_it_is_left_meanwhile(front: Front) -> None:
    """By another thread, say, or by a finalizer."""
    pool: Any = front.pool(front.manager(bare=True), max_size=1)
    lease = pool.connection('db')
    await lease.__aenter__()
    mine = raw(lease)
    leave = getattr(mine, '__exit__' if front.name == 'threads' else '__aexit__')
    verbs: list[str] = []

    def meddle(verb: str) -> None:
        verbs.append(verb)
        if verbs.count('release') == 1 and verb == 'release':
            leave(None, None, None)

    pool._core.on_transition = meddle
    try:
        with pytest.raises((RuntimeError, ConnectionNotAcquiredError), match='already'):
            if (leaving := leave(None, None, None)) is not False:
                await leaving
    finally:
        pool._core.on_transition = None
    assert verbs.count('release') == 2
    assert (pool.stats().idle, pool.stats().used) == (1, 0)
    assert sum(pool.stats().releases.values()) == 1


async def test_one_whose_acquire_failed_is_not_left(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=1)
    async with pool.connection('db'):
        lease = pool.connection('db', timeout=0)
        with pytest.raises(AcquireTimeoutError):
            await lease.__aenter__()
        with pytest.raises(RuntimeError):
            await lease.__aexit__(None, None, None)
        assert pool.stats().used == 1


@pytest.mark.parametrize('hit', [True, False])
async def test_two_tasks_do_not_get_one_connection(asyncio_front: Front, hit: bool) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    conn = await pool.acquire('db')
    acquire = pool.acquire('db')
    if hit:
        await pool.release(conn, 'db')

    async def wait() -> Any:
        return await acquire

    tasks = [asyncio.create_task(wait()) for _ in range(2)]
    await asyncio.sleep(0.001)
    if not hit:
        await pool.release(conn, 'db')
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, RuntimeError) for result in results) == 1
    assert conn in results
    assert pool.stats().used == 1
    await pool.release(conn, 'db')


# --- what is dropped ---


@pytest.mark.parametrize('state', ['fresh', 'entered', 'left'])
async def test_dropped_in_each_state(front: Front, state: str) -> None:
    manager = front.manager(bare=True)
    pool = front.pool(manager, max_size=1)
    async with pool.connection('db'):
        pass
    for _ in range(100):
        lease = pool.connection('db')
        if state != 'fresh':
            await lease.__aenter__()
        if state == 'left':
            await lease.__aexit__(None, None, None)
        del lease
        await front.sleep(0)
    async with pool.connection('db', timeout=5):
        assert pool.stats().used == 1
    assert pool.stats().closed['discarded'] == (100 if state == 'entered' else 0)


async def test_a_lease_in_a_cycle_with_its_pool(front: Front) -> None:
    class Own(front.pool_class):  # type: ignore[misc, name-defined]
        """A pool with attributes."""

    manager = keepers_of_nothing(front)
    own = Own(manager, max_size=1)
    own.lease = own.connection('db')
    pool = front.face(own)
    entered = own.lease.__enter__() if front.name == 'threads' else await own.lease.__aenter__()
    conn = weakref.ref(entered)
    del entered
    gone = weakref.ref(own)
    assert pool.stats().used == 1
    del own, pool
    collect()
    assert collect(gone) == [None]
    assert conn() is None


async def test_a_lease_in_a_cycle_of_its_own(front: Front) -> None:
    """The lease is its connection's attribute; so the pool disposes of both."""
    manager = keepers_of_nothing(front)
    pool = front.pool(manager, max_size=1)
    lease = pool.connection('db')
    conn = await lease.__aenter__()
    conn.mine = [raw(lease)]
    del lease, conn
    async with pool.connection('db2'):
        pass
    await pool.close(timeout=0)
    assert manager.disposed == 2
    collect()
    assert pool.stats().size == 0


# --- what is left ---


def leases() -> int:
    """Return how many leases the garbage collector knows."""
    return sum(type(each) in (Lease, AsyncLease) for each in gc.get_objects())


async def test_leases_that_are_gone_are_seen_by_nobody(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=1)
    before = leases()
    held = [pool.connection('db') for _ in range(100)]
    assert leases() == before + 100
    del held
    assert leases() == before
    async with pool.connection('db') as conn:
        assert leases() == before + 1
        held_by = gc.get_referrers(conn)
    assert leases() == before
    assert not any(type(each) in (Lease, AsyncLease) for each in held_by), 'the record holds it'
    assert not any(type(each) in (Lease, AsyncLease) for each in gc.get_referrers(getattr(pool, 'raw', pool)))


async def test_used_memory_comes_back_empty(front: Front) -> None:
    """What a lease knew must not be seen in one that is made in its place."""
    one = front.pool(front.manager(bare=True), max_size=1)
    other = front.pool(front.manager(bare=True), max_size=1)
    async with one.connection('db', timeout=5):
        assert one.stats().used == 1
    for _ in range(40):
        lease = raw(other.connection('db2'))
        assert (lease.conn, lease.endpoint) == (None, None)
        del lease
    async with other.connection('db2') as conn:
        assert conn.endpoint == 'db2'
        assert (one.stats().used, other.stats().used) == (0, 1)


async def test_memory_does_not_grow(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=2)
    for count in 2000, 100_000:
        blocks = sys.getallocatedblocks()
        objects = len(gc.get_objects())
        for _ in range(count):
            async with pool.connection('db'):
                pass
        for _ in range(count // 10):
            held = [raw(pool.connection('db')) for _ in range(20)]  # more than are kept
            del held
        blocks, objects = sys.getallocatedblocks() - blocks, len(gc.get_objects()) - objects
    assert blocks < 200
    assert objects < 50


async def test_leases_are_used_by_many_threads_at_once(threads_front: ThreadsFront) -> None:
    """The memory of one thread's lease is the next one's of another."""
    pool: Any = threads_front.pool_class(BareFakeManager(), max_size=3)
    wrong: list[Any] = []

    def use(endpoint: str) -> None:
        for number in range(3000):
            with pool.connection(endpoint) as conn:
                if conn.endpoint != endpoint:
                    wrong.append(conn)
            if number % 7 == 0:
                spares = [pool.connection(endpoint) for _ in range(number % 40)]
                del spares

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=use, args=(f'db{number % 3}',)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong
    assert pool.stats().used == 0
    assert sum(pool.stats().releases.values()) == 18_000
    pool.close()


class Key:
    """A key that counts its references."""


def counts(*things: Any) -> list[int]:
    return [sys.getrefcount(thing) for thing in things]


class BlockError(Exception):
    """Raised in a block."""


@pytest.mark.parametrize('ending', ['well', 'error', 'exit'])
@pytest.mark.parametrize('bare', [True, False])
async def test_references_are_given_back(front: Front, bare: bool, ending: str) -> None:
    if ending == 'exit':
        errors: tuple[type[BaseException], ...] = (GeneratorExit,)
    else:
        errors = (BlockError,)
    manager = keepers_of_nothing(front) if bare else Hooked(front)
    pool: Any = front.pool(manager, max_size=1)
    key, error = Key(), None if ending == 'well' else errors[0]()
    async with pool.connection(key) as conn:
        pass
    mine = getattr(pool, 'raw', pool)
    steady = (mine, key, conn, manager, mine._core, error or Key())
    before = counts(*steady)
    for _ in range(MANY):
        try:
            async with pool.connection(key):
                if error is not None:
                    raise error
        except errors:
            pass
        if error is not None:
            error.__traceback__ = error.__context__ = None
    assert counts(*steady) == before
    for _ in range(MANY):
        await pool.release(await pool.acquire(key), key)
    assert counts(*steady) == before


class Hooked:
    """Hooks that keep nothing."""

    def __new__(cls, front: Front) -> Any:
        kind = keepers_of_nothing(front)

        async def look(endpoint: Any, conn: Any) -> bool:
            return True

        for name in 'check_aliveness', 'on_acquire', 'on_release':
            hook = look if front.name == 'asyncio' else (lambda *_: True)
            setattr(kind, name, hook)
        return kind


async def test_none_and_booleans_are_not_used_up(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=1)
    async with pool.connection('db'):
        pass
    before = counts(None, True, False)
    for _ in range(MANY):
        async with pool.connection('db'):
            pass
    for one, other in zip(counts(None, True, False), before, strict=True):
        assert abs(one - other) < MANY // 10


async def test_references_are_given_back_by_the_cancelled(asyncio_front: AsyncioFront) -> None:
    manager = keepers_of_nothing(asyncio_front)
    pool: Any = asyncio_front.pool(manager, max_size=1)
    key = Key()
    async with pool.connection(key) as conn:
        pass

    async def hold() -> None:
        async with pool.connection(key):
            await asyncio.sleep(10)

    async def wait() -> None:
        async with pool.connection(key):
            raise AssertionError('it was served')

    async def story() -> None:
        tasks = [asyncio.create_task(hold()), asyncio.create_task(wait())]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    for _ in range(3):
        await story()
    collect()
    steady = (pool, key, conn, manager)
    before = counts(*steady)
    for _ in range(500):
        await story()
    collect()
    assert counts(*steady) == before
    assert pool.stats().used == pool.stats().waiting == 0


# --- asyncio: driven by everything that drives a coroutine ---


async def test_gather_of_many(asyncio_front: Front) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=3)

    async def use() -> None:
        async with pool.connection('db'):
            await asyncio.sleep(0)

    await asyncio.gather(*[use() for _ in range(200)])
    assert pool.stats().created == 3
    assert sum(pool.stats().releases.values()) == 200


async def test_shield(asyncio_front: Front) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=1)
    conn = await pool.acquire('db')
    inner = asyncio.ensure_future(pool.acquire('db'))

    async def outer() -> Any:
        return await asyncio.shield(inner)

    task = asyncio.create_task(outer())
    await asyncio_front.waiting(pool, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.stats().waiting == 1
    await pool.release(conn, 'db')
    assert await inner is conn
    await pool.release(conn, 'db')


@pytest.mark.skipif(sys.version_info < (3, 11), reason='TaskGroup came with Python 3.11')
async def test_a_task_group_that_fails(asyncio_front: Front) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager(bare=True), max_size=2)

    async def use(fails: bool) -> None:
        async with pool.connection('db'):
            await asyncio.sleep(0.001)
            if fails:
                raise BlockError

    with pytest.raises(BaseException, match='unhandled errors') as caught:
        async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined]
            for number in range(6):
                group.create_task(use(number == 1))
            group.create_task(pool.acquire('other'))
    assert type(caught.value).__name__ == 'ExceptionGroup'
    assert pool.stats().used == 1  # 'other': its task had ended well
    assert pool.stats().waiting == 0
    conn = (
        pool._manager.created[-1]
        if pool._manager.created[-1].endpoint == 'other'
        else next(each for each in pool._manager.created if each.endpoint == 'other')
    )
    await pool.release(conn, 'other')


@pytest.mark.parametrize('how', ['throw', 'close', 'drop'])
@pytest.mark.parametrize('bare', [True, False])
@pytest.mark.parametrize('phase', ['fresh', 'waiting', 'creating', 'held', 'left', 'over'])
async def test_driven_by_hand(asyncio_front: Front, phase: str, how: str, bare: bool) -> None:
    manager = asyncio_front.manager(bare=bare)
    pool: Any = asyncio_front.pool(manager, max_size=1)
    other = None
    if phase in ('fresh', 'held', 'left', 'over'):
        await pool.release(await pool.acquire('db'), 'db')
    if phase == 'waiting':
        other = await pool.acquire('db')
    lease: Any = pool.connection('db')
    lease.__aenter__()
    if phase == 'waiting':
        lease.send(None)
    elif phase == 'creating':
        from gcp.testing import never

        manager.create.does(never())
        lease.send(None)
        assert pool.stats().creating == 1
    elif phase != 'fresh':
        with pytest.raises(StopIteration) as stop:
            lease.send(None)
        assert stop.value.value is manager.created[0]
    if phase in ('left', 'over'):
        lease.__aexit__(None, None, None)
    if phase == 'over':
        with contextlib.suppress(StopIteration, RuntimeError):  # a bare one is over already
            lease.send(None)
    if how == 'throw':
        with pytest.raises(BlockError):
            lease.throw(BlockError())
    elif how == 'close':
        lease.close()
        lease.close()
    if phase == 'held' and how != 'drop':
        assert pool.stats().used == 1
        await lease.__aexit__(None, None, None)
        assert pool.stats().idle == 1
    del lease
    if other is not None:
        await pool.release(other, 'db')
    manager.unblock()
    async with pool.connection('db', timeout=5):
        assert pool.stats().used == 1
    assert pool.stats().waiting == 0


async def test_the_end_of_an_await_is_kept_by_who_catches_it(asyncio_front: Front) -> None:
    pool: Any = asyncio_front.pool(asyncio_front.manager())
    ends: list[StopIteration] = []
    for _ in range(3):
        with pytest.raises(StopIteration) as caught:
            next(pool.acquire('db').__await__())
        ends.append(caught.value)
        assert caught.value.args in ((), (caught.value.value,))
        caught.value.args = ('changed',)
        await pool.release(caught.value.value, 'db')
    assert len({id(end) for end in ends}) == 3
    assert [end.value for end in ends] == pool._manager.created * 3
    ends.clear()
    del caught
    with pytest.raises(StopIteration) as caught:
        next(pool.acquire('db').__await__())
    assert 'changed' not in caught.value.args
    await pool.release(caught.value.value, 'db')


@pytest.mark.parametrize('cyclic', [False, True])
async def test_the_end_of_an_await_keeps_no_connection(asyncio_front: Front, cyclic: bool) -> None:
    pool: Any = asyncio_front.pool(keepers_of_nothing(asyncio_front))
    await pool.release(await pool.acquire('db'), 'db')
    if cyclic:
        with pytest.raises(StopIteration) as caught:
            next(pool.acquire('db').__await__())
        caught.value.itself = caught.value  # type: ignore[attr-defined]
        conn = caught.value.value
        del caught
    else:
        conn = await pool.acquire('db')
    gone = weakref.ref(conn)
    await pool.discard(conn, 'db')
    del conn
    assert collect(gone) == [None]


async def test_a_release_awaited_twice(asyncio_front: Front) -> None:
    for bare in True, False:
        pool: Any = asyncio_front.pool(asyncio_front.manager(bare=bare), max_size=1)
        conn = await pool.acquire('db')
        release = pool.release(conn, 'db')
        await release
        with contextlib.suppress(RuntimeError):  # one that was over when it was made may be awaited again
            await release
        assert sum(pool.stats().releases.values()) == 1
        assert (pool.stats().idle, pool.stats().used) == (1, 0)
        async with pool.connection('db'):
            with contextlib.suppress(RuntimeError):
                await release
            assert pool.stats().used == 1


@pytest.mark.parametrize('how', ['await', 'task', 'gather', 'wait_for', 'shield'])
@pytest.mark.parametrize('suspends', [True, False])
async def test_ways_to_await_a_release(asyncio_front: Front, how: str, suspends: bool) -> None:
    from gcp.testing import slow

    manager = asyncio_front.manager()
    if suspends:
        manager.on_release.does(slow(0.001))
    pool: Any = asyncio_front.pool(manager, max_size=1)
    for _ in range(3):
        release = pool.release(await pool.acquire('db'), 'db')
        if how == 'await':
            await release
        elif how == 'task':
            await asyncio.create_task(release)
        elif how == 'gather':
            await asyncio.gather(release)
        elif how == 'wait_for':
            await asyncio.wait_for(release, 60)
        else:
            await asyncio.shield(release)
    assert pool.stats().hook_calls['on_release']['ok'] == 3
    assert (pool.stats().idle, pool.stats().created) == (1, 1)


async def test_a_release_that_nobody_awaits(asyncio_front: Front) -> None:
    """Its hook has not seen the connection: it is not lent again."""
    manager = asyncio_front.manager()
    pool: Any = asyncio_front.pool(manager, max_size=1)
    with pytest.warns(RuntimeWarning, match='never awaited'):
        pool.release(await pool.acquire('db'), 'db')
    collect()
    async with pool.connection('db', timeout=5) as conn:
        assert conn is manager.created[1]
    assert pool.stats().hook_calls['on_release']['ok'] == 1


def test_a_lease_that_outlives_its_loop() -> None:
    """Without a hook, a release has nothing to wait for."""
    pool: Any = aio.ConnectionPool(AsyncBareFakeManager(), max_size=1)

    async def enter() -> Any:
        lease = pool.connection('db')
        await lease.__aenter__()
        return lease

    lease = asyncio.run(enter())
    drive(lease.__aexit__(None, None, None))
    assert (pool.stats().idle, pool.stats().used) == (1, 0)
