"""What code for generic-connection-pool 0.8 relies on: names, signatures, defaults, hooks and their arguments."""

from __future__ import annotations

import asyncio
import inspect
import math
from typing import Any

import pytest
from fronts import Front

import gcp
import gcp.asyncio
import gcp.exceptions
import gcp.threading
from gcp.exceptions import (
    BaseError,
    ConnectionNotAcquiredError,
    ConnectionPoolClosedError,
    ConnectionPoolIsFull,
    ConnectionPoolNotFound,
)
from gcp.testing import dead, error, ok

OPTIONS = {
    'acquire_timeout': None,
    'background_collector': False,
    'dispose_batch_size': 0,
    'dispose_timeout': None,
    'min_idle': 1,
    'max_size': 10,
    'idle_timeout': 60.0,
    'max_lifetime': 3600.0,
    'total_max_size': 100,
}


def module(front: Front) -> Any:
    return gcp.threading if front.name == 'threads' else gcp.asyncio


class TestNames:
    def test_of_the_fronts(self, front: Front) -> None:
        for name in ('BaseConnectionManager', 'ConnectionPool', 'ConnectionT', 'EndpointT'):
            assert hasattr(module(front), name)
            assert name in module(front).__all__

    def test_of_the_package(self, front: Front) -> None:
        assert gcp.ConnectionPoolClosedError is ConnectionPoolClosedError and gcp.BaseError is BaseError
        assert issubclass(module(front).ConnectionPool, gcp.BaseConnectionPool)

    def test_of_the_errors(self) -> None:
        for kind in (ConnectionPoolClosedError, ConnectionPoolIsFull, ConnectionPoolNotFound):
            assert issubclass(kind, BaseError) and issubclass(kind, Exception)
        assert issubclass(ConnectionNotAcquiredError, RuntimeError)  # what the predecessor raised


class TestConstructor:
    def test_its_defaults(self, front: Front) -> None:
        parameters = inspect.signature(front.pool_class).parameters
        for name, default in OPTIONS.items():
            assert parameters[name].default == default, name
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert next(iter(parameters)) == 'connection_manager'

    def test_all_options(self, front: Front) -> None:
        pool = front.pool_class(
            front.manager(),
            acquire_timeout=2.0,
            background_collector=False,
            dispose_batch_size=3,
            dispose_timeout=1.0,
            min_idle=2,
            max_size=5,
            idle_timeout=10.0,
            max_lifetime=20.0,
            total_max_size=50,
        )
        assert (pool.min_idle, pool.max_size, pool.total_max_size) == (2, 5, 50)
        assert (pool.idle_timeout, pool.max_lifetime) == (10, 20)
        assert pool.is_full is False and pool.get_size() == 0

    def test_subscripted(self, front: Front) -> None:
        pool = front.pool_class[tuple[str, int], object](front.manager(), max_size=2)
        assert isinstance(pool, front.pool_class)

    def test_subclassed_and_subscripted(self, front: Front) -> None:
        base: Any = front.pool_class[str, object]

        class Mine(base):  # type: ignore[misc]
            def __init__(self, manager: Any, extra: str) -> None:
                super().__init__(manager, max_size=3)
                self.extra = extra

        mine = Mine(front.manager(), 'kept')
        assert (mine.max_size, mine.extra) == (3, 'kept')
        assert repr(mine).startswith('<Mine ')


class TestManagers:
    def test_are_abstract(self, front: Front) -> None:
        with pytest.raises(TypeError):
            module(front).BaseConnectionManager()
        assert module(front).BaseConnectionManager.__abstractmethods__ == {'create', 'dispose'}

    def test_are_generic(self, front: Front) -> None:
        assert module(front).BaseConnectionManager[str, object]

    def test_their_signatures(self, front: Front) -> None:
        manager = module(front).BaseConnectionManager
        timeout = ['timeout'] if front.name == 'threads' else []
        for hook, expected in {
            'create': ['self', 'endpoint', *timeout],
            'dispose': ['self', 'endpoint', 'conn', *timeout],
            'check_aliveness': ['self', 'endpoint', 'conn', *timeout],
            'on_acquire': ['self', 'endpoint', 'conn'],
            'on_release': ['self', 'endpoint', 'conn'],
            'on_connection_dead': ['self', 'endpoint', 'conn'],
        }.items():
            assert list(inspect.signature(getattr(manager, hook)).parameters) == expected
            assert inspect.iscoroutinefunction(getattr(manager, hook)) is (front.name == 'asyncio')

    async def test_a_minimal_one(self, front: Front) -> None:
        created: list[object] = []
        disposed: list[tuple[str, object]] = []

        class Sync(gcp.threading.BaseConnectionManager[str, object]):
            def create(self, endpoint: str, timeout: float | None = None) -> object:
                created.append(connection := object())
                return connection

            def dispose(self, endpoint: str, conn: object, timeout: float | None = None) -> None:
                disposed.append((endpoint, conn))

        class Async(gcp.asyncio.BaseConnectionManager[str, object]):
            async def create(self, endpoint: str) -> object:
                created.append(connection := object())
                return connection

            async def dispose(self, endpoint: str, conn: object) -> None:
                disposed.append((endpoint, conn))

        pool = front.pool(Sync() if front.name == 'threads' else Async())
        async with pool.connection('db') as connection:
            assert connection is created[0]
        async with pool.connection('db') as again:
            assert again is connection
        await pool.close()
        assert disposed == [('db', connection)]

    async def test_hooks_are_called_in_order_with_endpoint_and_connection(self, front: Front) -> None:
        manager = front.manager()
        pool = front.pool(manager)
        for _ in range(2):
            async with pool.connection(('db', 5432)):
                pass
        await pool.close()
        hooks = 'create on_acquire on_release check_aliveness on_acquire on_release dispose'
        assert manager.story() == [f"{hook} ('db', 5432)#1" for hook in hooks.split()]
        assert all(call.endpoint == ('db', 5432) for call in manager.calls)

    async def test_sync_hooks_get_their_timeouts_by_name(self, threads_front: Front) -> None:
        seen: list[tuple[str, float | None]] = []

        class Manager(gcp.threading.BaseConnectionManager[str, object]):
            def create(self, endpoint: str, *, timeout: float | None = None) -> object:  # type: ignore[override]
                seen.append(('create', timeout))
                return object()

            def dispose(  # type: ignore[override]
                self,
                endpoint: str,
                conn: object,
                *,
                timeout: float | None = None,
            ) -> None:
                seen.append(('dispose', timeout))

            def check_aliveness(self, endpoint: str, conn: object, timeout: float | None = None) -> bool:
                seen.append(('check_aliveness', timeout))
                return True

        pool = threads_front.pool(Manager(), dispose_timeout=7.0)
        for timeout in (None, 5.0):
            async with pool.connection('db', timeout=timeout):
                pass
        await pool.close()
        assert seen[0] == ('create', None)
        assert seen[1][0] == 'check_aliveness' and seen[1][1] is not None and 4 < seen[1][1] <= 5
        assert seen[2][0] == 'dispose' and (seen[2][1] is None or 0 < seen[2][1] <= 7)

    async def test_on_connection_dead_comes_before_the_replacement(self, front: Front) -> None:
        manager = front.manager()
        pool = front.pool(manager)
        async with pool.connection('db'):
            pass
        manager.check_aliveness.does(dead())
        async with pool.connection('db'):
            pass
        story = manager.story('on_connection_dead', 'create')
        assert story == ['create db#1', 'on_connection_dead db#1', 'create db#2']

    async def test_errors_of_hooks_reach_the_caller_as_they_are(self, front: Front) -> None:
        manager = front.manager()
        pool = front.pool(manager)
        for hook in ('create', 'on_acquire', 'check_aliveness', 'on_release'):
            if hook == 'check_aliveness':
                async with pool.connection('db'):
                    pass
            sentinel = KeyError(hook)
            getattr(manager, hook).does(error(sentinel), ok())
            with pytest.raises(KeyError) as caught:
                async with pool.connection('db'):
                    pass
            assert caught.value is sentinel


class TestUse:
    async def test_acquire_and_release_by_hand(self, front: Front) -> None:
        pool = front.pool(front.manager())
        connection = await pool.acquire('db', timeout=5.0)
        try:
            assert await pool.get_endpoint_pool_size('db', acquired=True) == 1
        finally:
            await pool.release(connection, 'db')
        assert await pool.get_endpoint_pool_size('db', acquired=False) == 1

    async def test_a_full_pool_times_out_with_a_timeout_error(self, front: Front) -> None:
        pool = front.pool(front.manager(), max_size=1)
        kind = asyncio.TimeoutError if front.name == 'asyncio' else TimeoutError
        async with pool.connection('db'):
            with pytest.raises(kind):
                await pool.acquire('db', timeout=0.01)
            with pytest.raises(kind):
                async with pool.connection('db', timeout=0.01):
                    pass

    async def test_releasing_twice_is_a_runtime_error(self, front: Front) -> None:
        pool = front.pool(front.manager())
        connection = await pool.acquire('db')
        await pool.release(connection, 'db')
        with pytest.raises(RuntimeError):
            await pool.release(connection, 'db')

    async def test_is_full_at_the_total_cap(self, front: Front) -> None:
        pool = front.pool(front.manager(), max_size=1, total_max_size=2)
        async with pool.connection('a'):
            assert not pool.is_full
            async with pool.connection('b'):
                assert pool.is_full
        assert pool.is_full  # idle ones hold their places

    async def test_a_full_pool_makes_room_for_a_new_endpoint(self, front: Front) -> None:
        manager = front.manager()
        pool = front.pool(manager, max_size=1, total_max_size=2)
        for endpoint in 'abc':
            async with pool.connection(endpoint):
                pass
        assert manager.story('dispose') == ['dispose a#1']
        assert await pool.get_endpoint_pool_size('a') == 0

    async def test_connections_are_reused_until_their_lifetime_ends(self, front: Front) -> None:
        manager = front.manager()
        pool = front.pool(manager, max_lifetime=0.05)
        seen = set()
        for _ in range(3):
            async with pool.connection('db') as connection:
                seen.add(connection)
        assert len(seen) == 1
        await front.sleep(0.06)
        async with pool.connection('db') as connection:
            assert connection not in seen

    async def test_close_and_then_no_more(self, front: Front) -> None:
        pool = front.pool(front.manager())
        async with pool.connection('db'):
            pass
        await pool.close(timeout=1.0)
        with pytest.raises(ConnectionPoolClosedError):
            async with pool.connection('db'):
                pass
        assert pool.get_size() == 0

    async def test_the_body_s_error_passes_and_the_connection_comes_back(self, front: Front) -> None:
        manager = front.manager()
        pool = front.pool(manager)
        with pytest.raises(ZeroDivisionError):
            async with pool.connection('db'):
                raise ZeroDivisionError
        assert manager.story('on_release', 'dispose') == ['on_release db#1']
        assert await pool.get_endpoint_pool_size('db', acquired=False) == 1

    async def test_get_size_counts_all(self, front: Front) -> None:
        pool = front.pool(front.manager())
        held = [*await front.fill(pool, 'a', 2), *await front.fill(pool, 'b', 1)]
        assert pool.get_size() == 3
        await front.give_back(pool, held)
        assert pool.get_size() == 3

    def test_get_endpoint_pool_size_is_a_coroutine_on_asyncio_only(self, front: Front) -> None:
        assert inspect.iscoroutinefunction(front.pool_class.get_endpoint_pool_size) is (front.name == 'asyncio')

    async def test_infinite_lives(self, front: Front) -> None:
        pool = front.pool(front.manager(), idle_timeout=math.inf, max_lifetime=math.inf)
        async with pool.connection('db'):
            pass
