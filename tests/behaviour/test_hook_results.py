"""Guarantee 9: what a manager returns that makes no sense is told at once, and errors of hooks say where they belong.

A hook that returns nonsense costs its connection, as one that raises does."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fronts import Front
from gil import collect

import gcp
import gcp.asyncio
import gcp.threading

PACKAGE = Path(gcp.__file__).parent


async def coroutine(*_: Any, **__: Any) -> None: ...


@pytest.fixture(autouse=True)
def no_warning_of_a_coroutine() -> Iterator[None]:
    """A coroutine that the pool refuses is closed: nothing warns that it was never awaited."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield
        collect()


class Made:
    """A connection."""


class Plain(gcp.threading.BaseConnectionManager[str, Any]):
    """A manager whose hooks do one after the other what they are told; then they return what is expected of them.

    :param hooks: functions by the name of a hook
    """

    def __init__(self, **hooks: list[Callable[[], Any]]) -> None:
        self.told = hooks
        self.disposed: list[Any] = []

    def play(self, hook: str, expected: Any) -> Any:
        acts = self.told.get(hook)
        return acts.pop(0)() if acts else expected

    def create(self, endpoint: str, timeout: float | None = None) -> Any:
        return self.play('create', Made())

    def dispose(self, endpoint: str, conn: Any, timeout: float | None = None) -> Any:
        self.disposed.append(conn)
        return self.play('dispose', None)

    def check_aliveness(self, endpoint: str, conn: Any, timeout: float | None = None) -> Any:
        return self.play('check_aliveness', True)

    def on_acquire(self, endpoint: str, conn: Any) -> Any:
        return self.play('on_acquire', None)

    def on_release(self, endpoint: str, conn: Any) -> Any:
        return self.play('on_release', None)

    def on_connection_dead(self, endpoint: str, conn: Any) -> Any:
        return self.play('on_connection_dead', None)


class AsyncPlain(gcp.asyncio.BaseConnectionManager[str, Any]):
    """The same for tasks."""

    def __init__(self, **hooks: list[Callable[[], Any]]) -> None:
        self.sync = Plain(**hooks)
        self.told, self.disposed = self.sync.told, self.sync.disposed

    async def create(self, endpoint: str) -> Any:
        return self.sync.create(endpoint)

    async def dispose(self, endpoint: str, conn: Any) -> Any:
        return self.sync.dispose(endpoint, conn)

    async def check_aliveness(self, endpoint: str, conn: Any) -> Any:
        return self.sync.check_aliveness(endpoint, conn)

    async def on_acquire(self, endpoint: str, conn: Any) -> Any:
        return self.sync.on_acquire(endpoint, conn)

    async def on_release(self, endpoint: str, conn: Any) -> Any:
        return self.sync.on_release(endpoint, conn)

    async def on_connection_dead(self, endpoint: str, conn: Any) -> Any:
        return self.sync.on_connection_dead(endpoint, conn)


def plain(front: Front, **hooks: list[Callable[[], Any]]) -> Any:
    return (Plain if front.name == 'threads' else AsyncPlain)(**hooks)


def raising(error: BaseException) -> Callable[[], Any]:
    def act() -> None:
        raise error

    return act


def hidden(pool: Any) -> tuple[int, int, int, int]:
    stats = pool.stats()
    return stats.used, stats.creating, stats.waiting, stats.disposing


def frames(error: BaseException) -> list[str]:
    """Return which functions of gcp a traceback shows."""
    return [
        entry.name
        for entry in traceback.extract_tb(error.__traceback__)
        if entry.filename.startswith(('gcp/', str(PACKAGE)))
    ]


def is_told(told: pytest.ExceptionInfo[Exception], manager: Any, hook: str, pool: Any) -> None:
    assert f'{type(manager).__name__}.{hook} returned' in str(told.value)
    assert len(frames(told.value)) <= 2
    if sys.version_info >= (3, 11):
        assert told.value.__notes__ == [f"gcp: {hook} failed in pool {pool.name!r}, endpoint 'db'"]


class TestCreate:
    async def test_none(self, front: Front) -> None:
        manager = plain(front, create=[lambda: None])
        pool = front.pool(manager, max_size=1)
        with pytest.raises(TypeError, match='returned None; it must return a connection') as told:
            await pool.acquire('db')
        is_told(told, manager, 'create', pool)
        assert (hidden(pool), pool.get_size()) == ((0, 0, 0, 0), 0)
        async with pool.connection('db', timeout=5):
            pass

    async def test_an_awaitable(self, front: Front) -> None:
        manager = plain(front, create=[coroutine])
        pool = front.pool(manager, max_size=1)
        with pytest.raises(TypeError, match=r'returned an awaitable \(coroutine\).*must return a connection') as told:
            await pool.acquire('db')
        is_told(told, manager, 'create', pool)
        assert (hidden(pool), pool.get_size()) == ((0, 0, 0, 0), 0)
        async with pool.connection('db', timeout=5):
            pass

    @pytest.mark.parametrize('endpoint', ['db', 'other'])
    async def test_what_is_held_already(self, front: Front, endpoint: str) -> None:
        only = Made()
        manager = plain(front, create=[lambda: only] * 2)
        pool = front.pool(manager)
        async with pool.connection('db'):
            with pytest.raises(RuntimeError, match='in the pool already, held or idle; it must return a new') as told:
                await pool.acquire(endpoint)
            assert f'{type(manager).__name__}.create' in str(told.value)
            assert hidden(pool) == (1, 0, 0, 0)
        assert hidden(pool) == (0, 0, 0, 0)
        assert pool.stats().idle == 1
        assert not manager.disposed, 'it is closed under its holder'

    async def test_what_was_disposed_of_may_come_again(self, front: Front) -> None:
        """A manager may open the same object anew."""
        only = Made()
        manager = plain(front, create=[lambda: only] * 2, check_aliveness=[lambda: False])
        pool = front.pool(manager)
        for _ in range(3):
            async with pool.connection('db') as conn:
                assert conn is only


class TestCheck:
    @pytest.mark.parametrize(
        'result',
        [None, 1, 0, 'yes', NotImplemented, coroutine],
        ids=lambda result: getattr(result, '__name__', repr(result)),
    )
    async def test_no_bool(self, front: Front, result: Any) -> None:
        manager = plain(front, check_aliveness=[coroutine if result is coroutine else lambda: result])
        pool = front.pool(manager, max_size=1)
        async with pool.connection('db'):
            pass
        with pytest.raises(TypeError, match='must return True or False') as told:
            await pool.acquire('db')
        is_told(told, manager, 'check_aliveness', pool)
        await front.until(lambda: pool.get_size() == 0)
        assert hidden(pool) == (0, 0, 0, 0)
        assert len(manager.disposed) == 1
        async with pool.connection('db', timeout=5):
            pass


class TestOthers:
    async def test_on_acquire(self, front: Front) -> None:
        manager = plain(front)
        pool = front.pool(manager, max_size=1)
        for turn in range(2):  # a new connection, then an idle one
            manager.told['on_acquire'] = [lambda: None] * turn + [coroutine]
            for _ in range(turn):
                async with pool.connection('db', timeout=5):
                    pass
            with pytest.raises(TypeError, match='must return None') as told:
                await pool.acquire('db')
            is_told(told, manager, 'on_acquire', pool)
            await front.until(lambda: pool.get_size() == 0)

    async def test_on_release(self, front: Front) -> None:
        manager = plain(front, on_release=[coroutine])
        pool = front.pool(manager, max_size=1)
        conn = await pool.acquire('db')
        with pytest.raises(TypeError, match='must return None') as told:
            await pool.release(conn, 'db')
        is_told(told, manager, 'on_release', pool)
        await front.until(lambda: pool.get_size() == 0)

    async def test_on_connection_dead(self, front: Front, caplog: pytest.LogCaptureFixture) -> None:
        manager = plain(front, check_aliveness=[lambda: False], on_connection_dead=[coroutine])
        pool = front.pool(manager, max_size=1)
        for _ in range(2):
            async with pool.connection('db', timeout=5):
                pass
        assert 'on_connection_dead returned an awaitable' in caplog.text

    async def test_dispose(self, front: Front, caplog: pytest.LogCaptureFixture) -> None:
        manager = plain(front, check_aliveness=[lambda: False], dispose=[coroutine])
        pool = front.pool(manager, max_size=1)
        for _ in range(2):
            async with pool.connection('db', timeout=5):
                pass
        await front.until(lambda: 'dispose returned an awaitable' in caplog.text)


class AsToldAsync(gcp.asyncio.BaseConnectionManager[str, object]):
    """A manager whose hooks are as told."""

    def __init__(self, **hooks: Any) -> None:
        vars(self).update(hooks)

    async def create(self, endpoint: str) -> object:
        return object()

    async def dispose(self, endpoint: str, conn: object) -> None: ...
    async def check_aliveness(self, endpoint: str, conn: object) -> bool:
        return True

    async def on_acquire(self, endpoint: str, conn: object) -> None: ...
    async def on_release(self, endpoint: str, conn: object) -> None: ...


@pytest.mark.parametrize('hook', ['create', 'check_aliveness', 'on_acquire', 'on_release'])
async def test_a_hook_that_is_no_coroutine_function(asyncio_front: Front, hook: str) -> None:
    pool = asyncio_front.pool(AsToldAsync(**{hook: lambda *_: True}), max_size=1)
    with pytest.raises(TypeError, match=rf'AsToldAsync\.{hook} returned bool, not an awaitable; it must be async def'):
        for _ in range(2):
            async with pool.connection('db', timeout=5):
                pass
    await asyncio_front.until(lambda: pool.get_size() == 0)


@pytest.mark.parametrize('hook', ['create', 'dispose', 'check_aliveness', 'on_acquire', 'on_release'])
def test_a_coroutine_function_in_a_plain_manager(hook: str) -> None:
    class Mixed(gcp.threading.BaseConnectionManager[str, object]):
        def create(self, endpoint: str, timeout: float | None = None) -> object:
            return object()

        def dispose(self, endpoint: str, conn: object, timeout: float | None = None) -> None: ...

    setattr(Mixed, hook, coroutine)
    with pytest.raises(TypeError, match=rf'Mixed(\.{hook}| cannot serve)'):
        gcp.threading.ConnectionPool(Mixed())


class TestErrors:
    @pytest.mark.parametrize('hook', ['create', 'check_aliveness', 'on_acquire', 'on_release'])
    async def test_an_error_of_a_hook_says_where_it_belongs(self, front: Front, hook: str) -> None:
        failure = OSError('refused')
        manager = plain(front, **{hook: [raising(failure)] * 2})
        pool = front.pool(manager, max_size=1, name='orders')
        for _ in range(2):  # the same object twice: one note
            with pytest.raises(OSError, match='refused') as told:
                for _ in range(2):
                    conn = await pool.acquire('db')
                    await pool.release(conn, 'db')
            assert told.value is failure
            assert len(frames(failure)) <= 2
            failure.__traceback__ = None
            if sys.version_info >= (3, 11):
                assert failure.__notes__ == [f"gcp: {hook} failed in pool 'orders', endpoint 'db'"]

    async def test_a_note_shows_no_credentials(self, front: Front) -> None:
        manager = plain(front, create=[raising(OSError('refused'))])
        pool = front.pool(manager)
        with pytest.raises(OSError, match='refused') as told:
            await pool.acquire('postgres://me:secret@db/orders')
        assert 'secret' not in ''.join(getattr(told.value, '__notes__', []))

    async def test_an_error_that_accepts_no_note(self, front: Front) -> None:
        class Closed(Exception):
            def add_note(self, note: str) -> None:
                raise AttributeError('frozen')

        manager = plain(front, create=[raising(Closed('refused'))])
        pool = front.pool(manager)
        with pytest.raises(Closed, match='refused'):
            await pool.acquire('db')
        assert pool.get_size() == 0

    async def test_the_cap_is_named_as_its_argument(self, front: Front) -> None:
        for name, others in ('max_size', 'db'), ('total_max_size', 'other'):
            pool = front.pool(front.manager(), **{name: 2})
            async with pool.connection(others), pool.connection(others):
                for timeout, told in ((0, 'at once'), (-1, 'at once'), (0.01, 'within 0.01 s')):
                    with pytest.raises(gcp.AcquireTimeoutError, match=rf"'db' {told}: .*blocked by {name}=2 ") as late:
                        await pool.acquire('db', timeout=timeout)
                    assert 'within 0 s' not in str(late.value)
                    assert len(frames(late.value)) <= 2
