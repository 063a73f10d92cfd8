"""Pools that acquire and release in a way of their own: what a user of generic-connection-pool may have written."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
from fronts import Front
from gil import collect

from gcp.testing import error, ok


def subclass(front: Front, calls: list[str]) -> Any:
    """A pool class that notes each acquire and each release."""
    if front.name == 'threads':

        class Noting(front.pool_class):  # type: ignore[misc, name-defined]
            def acquire(self, endpoint: Any, timeout: float | None = None) -> Any:
                calls.append('acquire')
                return super().acquire(endpoint, timeout)

            def release(self, conn: Any, endpoint: Any) -> None:
                calls.append('release')
                super().release(conn, endpoint)

        return Noting

    class AsyncNoting(front.pool_class):  # type: ignore[misc, name-defined]
        async def acquire(self, endpoint: Any, timeout: float | None = None) -> Any:
            calls.append('acquire')
            return await super().acquire(endpoint, timeout)

        async def release(self, conn: Any, endpoint: Any) -> None:
            calls.append('release')
            await super().release(conn, endpoint)

    return AsyncNoting


async def test_connection_goes_by_what_a_subclass_overrides(front: Front) -> None:
    calls: list[str] = []
    pool = front.face(subclass(front, calls)(front.manager()))
    async with pool.connection('db', timeout=5) as conn:
        assert calls == ['acquire']
        assert pool.stats().used == 1
    assert calls == ['acquire', 'release']
    assert pool.stats().idle == 1
    async with pool.connection('db') as again:
        assert again is conn
    await pool.close()


async def test_also_a_subclass_of_the_subclass(front: Front) -> None:
    calls: list[str] = []
    noting = subclass(front, calls)
    pool = front.face(type('Heir', (noting,), {})(front.manager()))
    async with pool.connection('db'):
        pass
    assert calls == ['acquire', 'release']
    await pool.close()


async def test_a_subclass_that_overrides_neither_keeps_the_compiled_one(front: Front) -> None:
    heir = type('Heir', (front.pool_class,), {})
    assert heir.connection is front.pool_class.connection


async def test_the_error_of_the_body_comes_through(front: Front) -> None:
    calls: list[str] = []
    manager = front.manager()
    manager.on_release.does(error(OSError('reset failed')), ok())
    pool = front.face(subclass(front, calls)(manager))
    with pytest.raises(KeyError) as caught:
        async with pool.connection('db'):
            raise KeyError('body')
    assert isinstance(caught.value.__context__, OSError)
    assert calls == ['acquire', 'release']
    assert pool.stats().used == 0
    await pool.close()


async def test_users_may_set_attributes_on_a_pool_as_on_any_object(front: Front) -> None:
    pool: Any = front.pool_class(front.manager())
    pool.owner = 'orders'
    assert vars(pool) == {'owner': 'orders'}
    acquire, pool.acquire = pool.acquire, None  # as a test's double does
    assert pool.acquire is None
    del pool.acquire, pool.owner
    assert pool.acquire == acquire
    assert vars(pool) == {}
    pool.itself = pool
    gone = weakref.ref(pool)
    await front.face(pool).close()
    del pool, acquire
    assert collect(gone) == [None]
