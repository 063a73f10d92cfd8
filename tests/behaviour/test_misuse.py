"""Guarantee 12 (docs/guarantees.md): misuse raises a clear error, and changes nothing."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from typing import Any

import pytest
from fronts import Front

from gcp.exceptions import BaseError, ConnectionNotAcquiredError
from gcp.testing import AsyncFakeManager, FakeManager, calling, error, ok


def untouched(pool: Any) -> tuple[Any, ...]:
    """Return the statistics that misuse must not change."""
    stats = pool.stats()
    return (
        stats.idle,
        stats.used,
        stats.created,
        dict(stats.closed),
        dict(stats.releases),
        [(endpoint, each.idle, each.used) for endpoint, each in stats.endpoints.items()],
    )


bare = pytest.mark.parametrize('bare', [True, False], ids=['bare', 'hooks'])


class TestRelease:
    """Releases that the pool has to refuse."""

    @bare
    async def test_of_an_unknown_object(self, front: Front, bare: bool) -> None:
        pool = front.pool(front.manager(bare=bare))
        connection = await pool.acquire('db')
        before = untouched(pool)
        for endpoint in ('db', 'never seen'):
            with pytest.raises(ConnectionNotAcquiredError) as caught:
                await pool.release(object(), endpoint)
            assert endpoint in str(caught.value)
        assert untouched(pool) == before
        await pool.release(connection, 'db')

    @bare
    async def test_twice(self, front: Front, bare: bool) -> None:
        pool = front.pool(manager := front.manager(bare=bare))
        connection = await pool.acquire('db')
        await pool.release(connection, 'db')
        before = untouched(pool)
        with pytest.raises(ConnectionNotAcquiredError):
            await pool.release(connection, 'db')
        assert untouched(pool) == before
        assert len(manager.story('on_release')) == (0 if bare else 1)

    @bare
    async def test_to_the_wrong_endpoint(self, front: Front, bare: bool) -> None:
        pool = front.pool(front.manager(bare=bare))
        a, b = await pool.acquire('a'), await pool.acquire('b')
        before = untouched(pool)
        for endpoint in ('b', 'never seen'):
            with pytest.raises(ConnectionNotAcquiredError):
                await pool.release(a, endpoint)
        assert untouched(pool) == before
        await front.give_back(pool, [a, b])

    @bare
    async def test_with_the_arguments_swapped(self, front: Front, bare: bool) -> None:
        pool = front.pool(front.manager(bare=bare))
        connection = await pool.acquire('db')
        with pytest.raises(ConnectionNotAcquiredError):
            await pool.release('db', connection)
        assert pool.stats().used == 1
        await pool.release(connection, 'db')

    @bare
    async def test_of_another_pool_s_connection(self, front: Front, bare: bool) -> None:
        one, other = front.pool(front.manager(bare=bare)), front.pool(front.manager(bare=bare))
        mine, theirs = await one.acquire('db'), await other.acquire('db')
        with pytest.raises(ConnectionNotAcquiredError):
            await one.release(theirs, 'db')
        assert one.stats().used == other.stats().used == 1
        await one.release(mine, 'db')
        await other.release(theirs, 'db')

    @bare
    async def test_of_one_that_was_disposed_of(self, front: Front, bare: bool) -> None:
        pool = front.pool(manager := front.manager(bare=bare), max_lifetime=0.01)
        connection = await pool.acquire('db')
        await front.sleep(0.02)
        await pool.release(connection, 'db')
        await front.until(lambda: manager.disposed)
        with pytest.raises(ConnectionNotAcquiredError):
            await pool.release(connection, 'db')
        assert len(manager.disposed) == 1

    async def test_of_an_unhashable_endpoint(self, front: Front) -> None:
        pool = front.pool(front.manager())
        connection = await pool.acquire('db')
        with pytest.raises((TypeError, ConnectionNotAcquiredError), match='endpoint'):
            await pool.release(connection, ['db'])
        assert pool.stats().used == 1
        await pool.release(connection, 'db')

    async def test_before_any_acquire(self, front: Front) -> None:
        pool = front.pool(front.manager())
        with pytest.raises(ConnectionNotAcquiredError):
            await pool.release(object(), 'db')
        with pytest.raises(ConnectionNotAcquiredError):
            await pool.release(None, 'db')

    def test_the_error_is_one_of_ours_and_a_runtime_error(self) -> None:
        assert issubclass(ConnectionNotAcquiredError, BaseError)
        assert issubclass(ConnectionNotAcquiredError, RuntimeError)


class TestLease:
    """Leases that are used in a wrong way."""

    @bare
    async def test_released_inside_its_own_block(self, front: Front, bare: bool) -> None:
        pool = front.pool(front.manager(bare=bare))
        with pytest.raises(ConnectionNotAcquiredError):
            async with pool.connection('db') as connection:
                await pool.release(connection, 'db')
        assert pool.stats().idle == 1 and pool.stats().releases['idle'] == 1

    @bare
    async def test_its_exit_does_not_free_what_another_holder_got(self, front: Front, bare: bool) -> None:
        pool = front.pool(manager := front.manager(bare=bare), max_size=1)
        with pytest.raises(ConnectionNotAcquiredError):
            async with pool.connection('db') as connection:
                await pool.release(connection, 'db')
                assert await pool.acquire('db') is connection  # now another caller holds it
        assert pool.stats().used == 1 and pool.stats().idle == 0
        assert len(manager.story('on_release')) == (0 if bare else 1)
        with pytest.raises(TimeoutError):
            await pool.acquire('db', timeout=0)
        await pool.release(connection, 'db')

    @bare
    async def test_its_body_s_error_is_not_hidden(self, front: Front, bare: bool) -> None:
        pool = front.pool(front.manager(bare=bare))
        with pytest.raises(LookupError):
            async with pool.connection('db') as connection:
                await pool.release(connection, 'db')
                raise LookupError
        assert pool.stats().idle == 1

    async def test_entered_twice(self, front: Front) -> None:
        pool = front.pool(front.manager())
        lease = pool.connection('db')
        async with lease:
            with pytest.raises(RuntimeError):
                await lease.__aenter__()
            assert pool.stats().used == 1
        with pytest.raises(RuntimeError):
            await lease.__aenter__()
        assert pool.stats().used == 0

    async def test_left_before_it_was_entered(self, front: Front) -> None:
        pool = front.pool(front.manager())
        with pytest.raises(RuntimeError):
            await pool.connection('db').__aexit__(None, None, None)
        assert pool.get_size() == 0

    async def test_left_twice(self, front: Front) -> None:
        pool = front.pool(front.manager())
        lease = pool.connection('db')
        async with lease:
            pass
        with pytest.raises(RuntimeError):
            await lease.__aexit__(None, None, None)
        assert pool.stats().idle == 1

    async def test_one_that_failed_to_enter_holds_nothing(self, front: Front) -> None:
        pool = front.pool(manager := front.manager())
        manager.create.does(error(OSError()), ok())
        lease = pool.connection('db')
        with pytest.raises(OSError):
            await lease.__aenter__()
        assert pool.get_size() == 0


class TestEndpoint:
    """Endpoints that cannot be keys, and unusual ones that can."""

    @pytest.mark.parametrize('endpoint', [['db'], {'host': 'db'}, {'db'}, ('db', [1])], ids=repr)
    async def test_that_cannot_be_hashed(self, front: Front, endpoint: Any) -> None:
        pool = front.pool(front.manager())
        with pytest.raises(TypeError, match='endpoint'):
            await pool.acquire(endpoint)
        with pytest.raises(TypeError, match='endpoint'):
            async with pool.connection(endpoint):
                pass
        with pytest.raises(TypeError):
            await pool.get_endpoint_pool_size(endpoint)
        assert pool.get_size() == 0

    @pytest.mark.parametrize('endpoint', [None, 0, '', (), 1.5, frozenset(), b'x', float('nan')], ids=repr)
    async def test_unusual_ones_are_accepted(self, front: Front, endpoint: Any) -> None:
        pool = front.pool(front.manager())
        async with pool.connection(endpoint) as connection:
            assert await pool.get_endpoint_pool_size(endpoint) == 1
        assert await pool.acquire(endpoint, timeout=0) is connection
        await pool.release(connection, endpoint)

    async def test_credentials_do_not_show(self, front: Front) -> None:
        pool = front.pool(front.manager(), max_size=1)
        endpoint = 'postgresql://admin:s3cret@db/prod'
        connection = await pool.acquire(endpoint)
        with pytest.raises(TimeoutError) as caught:
            await pool.acquire(endpoint, timeout=0)
        assert 's3cret' not in str(caught.value)
        with pytest.raises(ConnectionNotAcquiredError) as refused:
            await pool.release(object(), endpoint)
        assert 's3cret' not in str(refused.value)
        await pool.release(connection, endpoint)


class TestManager:
    """Managers that the pool has to refuse."""

    def test_async_in_the_threading_pool(self, threads_front: Front) -> None:
        with pytest.raises(TypeError, match='asyncio'):
            threads_front.pool_class(AsyncFakeManager())

    def test_sync_in_the_asyncio_pool(self, asyncio_front: Front) -> None:
        with pytest.raises(TypeError, match='threading'):
            asyncio_front.pool_class(FakeManager())

    @pytest.mark.parametrize('manager', [FakeManager, AsyncFakeManager])
    def test_a_class_instead_of_an_instance(self, front: Front, manager: type[Any]) -> None:
        with pytest.raises(TypeError, match='instance'):
            front.pool_class(manager)

    @pytest.mark.parametrize(
        'manager',
        [None, 'manager', object(), 42, lambda endpoint: None],
        ids=['None', 'str', 'object', 'int', 'function'],
    )
    def test_no_manager_at_all(self, front: Front, manager: Any) -> None:
        with pytest.raises(TypeError, match='connection_manager'):
            front.pool_class(manager)

    def test_no_argument_at_all(self, front: Front) -> None:
        with pytest.raises(TypeError, match='connection_manager'):
            front.pool_class()

    async def test_a_sync_create_that_returns_an_awaitable(self, threads_front: Front) -> None:
        async def connect() -> object:
            return object()

        class Mixed:
            def create(self, endpoint: Any, timeout: float | None = None) -> Any:
                return connect()

            def dispose(self, endpoint: Any, conn: Any, timeout: float | None = None) -> None:
                pass

        pool = threads_front.pool(Mixed())
        with pytest.raises(TypeError, match='asyncio'):
            await pool.acquire('db')
        assert pool.get_size() == 0

    async def test_an_async_create_that_returns_no_awaitable(self, asyncio_front: Front) -> None:
        class Mixed:
            def create(self, endpoint: Any) -> Any:
                return object()

            async def dispose(self, endpoint: Any, conn: Any) -> None:
                pass

        try:
            pool = asyncio_front.pool(Mixed())
        except TypeError:
            return
        with pytest.raises(TypeError):
            await pool.acquire('db')
        assert pool.get_size() == 0

    async def test_a_create_that_returns_an_acquired_connection(self, front: Front) -> None:
        """The same connection in two slots would have two holders."""
        manager = front.manager(bare=True)
        only = object()
        manager.create.does(calling(lambda endpoint, _: only))
        pool = front.pool(manager, max_size=2)
        front.managers.clear()  # the log of the manager cannot distinguish the two
        connection = await pool.acquire('db')
        try:
            second = await pool.acquire('db')
        except (RuntimeError, ValueError, TypeError):
            pass
        else:
            await pool.release(second, 'db')
        await pool.release(connection, 'db')
        assert pool.stats().used == 0


class TestPlace:
    """Pools that are used in the wrong place: pickled, in another event loop, without super().__init__()."""

    @pytest.mark.parametrize('act', [pickle.dumps, copy.copy, copy.deepcopy])
    def test_pickled_or_copied(self, front: Front, act: Any) -> None:
        pool = front.pool_class(front.manager())
        with pytest.raises(TypeError, match='ConnectionPool'):
            act(pool)

    def test_used_from_a_second_loop(self, asyncio_front: Front) -> None:
        pool: Any = None

        async def use() -> None:
            nonlocal pool
            if pool is None:
                pool = asyncio_front.pool_class(asyncio_front.manager(), max_size=1)
            async with pool.connection('db'):
                pass

        async def main() -> None:
            await use()
            before = untouched(pool)
            errors: list[BaseException] = []

            def elsewhere(doing: Any) -> None:
                async def act() -> None:
                    await doing()

                try:
                    asyncio.run(act())
                except RuntimeError as e:
                    errors.append(e)

            for doing in (
                use,
                lambda: pool.acquire('db'),
                lambda: pool.acquire('db', timeout=1),
                lambda: pool.acquire('x'),
            ):
                thread = threading.Thread(target=elsewhere, args=(doing,))
                thread.start()
                await asyncio.to_thread(thread.join)
            assert len(errors) == 4 and all('loop' in str(e) for e in errors), errors
            assert untouched(pool) == before
            await pool.close()

        asyncio.run(main())

    def test_released_or_closed_in_a_second_loop(self, asyncio_front: Front) -> None:
        async def main() -> None:
            pool = asyncio_front.pool_class(asyncio_front.manager(), max_size=1)
            connection = await pool.acquire('db')
            before = untouched(pool)
            errors: list[BaseException] = []

            def elsewhere(doing: Any) -> None:
                async def act() -> None:
                    await doing()

                try:
                    asyncio.run(act())
                except RuntimeError as e:
                    errors.append(e)

            for doing in (lambda: pool.release(connection, 'db'), lambda: pool.close(timeout=0)):
                thread = threading.Thread(target=elsewhere, args=(doing,))
                thread.start()
                await asyncio.to_thread(thread.join)
            assert len(errors) == 2 and all('loop' in str(e) for e in errors), errors
            assert untouched(pool) == before and not pool.closed
            await pool.release(connection, 'db')
            await pool.close()

        asyncio.run(main())

    @pytest.mark.parametrize('background_collector', [False, True])
    def test_built_outside_a_loop(self, asyncio_front: Front, background_collector: bool) -> None:
        manager = asyncio_front.manager()
        pool = asyncio_front.pool_class(
            manager, background_collector=background_collector, min_idle=0, idle_timeout=0.01
        )
        assert pool.get_size() == 0 and not pool.closed

        async def use() -> None:
            async with pool.connection('db'):
                pass
            if background_collector:
                await asyncio_front.until(lambda: pool.get_size() == 0)
            await pool.close()

        asyncio.run(use())
        assert manager.disposed == manager.created

    async def test_released_by_another_thread(self, threads_front: Front) -> None:
        pool = threads_front.pool(threads_front.manager())
        connection = await pool.acquire('db')
        await threads_front.spawn(pool.release(connection, 'db'))
        assert pool.stats().idle == 1

    def test_subclassed_without_super(self, front: Front) -> None:
        class Lazy(front.pool_class):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                pass

        pool = Lazy()
        for act in (lambda: pool.acquire('db'), lambda: pool.get_size(), lambda: pool.stats(), lambda: repr(pool)):
            try:  # any exception or result is accepted, but no crash
                result = act()
                if hasattr(result, 'close'):
                    result.close()
            except Exception:
                pass
