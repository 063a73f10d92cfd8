"""Guarantee 14 (docs/guarantees.md): endpoints leave no memory behind, and what was counted stays in the totals."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref
from typing import Any

import pytest
from fronts import Front, drive
from gil import collect

from gcp import AcquireTimeoutError, EndpointLimits
from gcp.testing import error


class Endpoint:
    """An endpoint that can be watched."""

    def __init__(self, number: int) -> None:
        self.number = number


async def test_an_endpoint_is_forgotten_with_its_last_connection(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=2, total_max_size=2)
    for endpoint in 'abc':
        await front.give_back(pool, await front.fill(pool, endpoint, 2))
    assert set(pool.stats().endpoints) == {'c'}
    assert pool.stats().created == 6
    assert pool.stats().closed['evicted'] == 4
    assert sum(pool.stats().acquires.values()) == 6
    assert pool.stats().releases['idle'] == 6


async def test_one_that_only_waited_is_forgotten(front: Front) -> None:
    pool = front.pool(front.manager(bare=True), max_size=1, total_max_size=1)
    async with pool.connection('held'):
        for number in range(5):
            with pytest.raises(TimeoutError):
                await pool.acquire(number, timeout=0)
            with pytest.raises(TimeoutError):
                await pool.acquire(number, timeout=0.002)
        assert set(pool.stats().endpoints) == {'held'}
        assert pool.stats().acquires['timeout'] == 10


async def test_one_whose_creation_failed_is_forgotten(front: Front) -> None:
    manager = front.manager(bare=True)
    manager.create.does(error(OSError()))
    pool = front.pool(manager)
    with pytest.raises(OSError):
        await pool.acquire('db')
    assert not pool.stats().endpoints
    assert pool.stats().acquires['error'] == 1


async def test_asking_for_sizes_makes_no_endpoint(front: Front) -> None:
    pool = front.pool(front.manager(bare=True))
    assert await pool.get_endpoint_pool_size('db') == 0
    assert not pool.stats().endpoints


async def test_endpoints_and_connections_are_not_kept_alive(front: Front) -> None:
    made: list[weakref.ref[Any]] = []
    pool = front.pool(minimal_manager(front, made), max_size=1, total_max_size=1)

    async def visit(endpoint: Endpoint) -> None:
        made.append(weakref.ref(endpoint))
        async with pool.connection(endpoint):
            pass

    for number in range(3):
        await visit(Endpoint(number))
    async with pool.connection('last'):
        pass
    collect()
    assert [ref() for ref in made[:-1]] == [None] * 6


class Connection:
    """A connection that can be watched."""


def minimal_manager(front: Front, made: list[weakref.ref[Any]]) -> Any:
    """A duck-typed manager that keeps nothing alive."""

    def create() -> Connection:
        connection = Connection()
        made.append(weakref.ref(connection))
        return connection

    class Sync:
        def create(self, endpoint: Any, timeout: float | None = None) -> Connection:
            return create()

        def dispose(self, endpoint: Any, conn: Connection, timeout: float | None = None) -> None:
            pass

    class Async:
        async def create(self, endpoint: Any) -> Connection:
            return create()

        async def dispose(self, endpoint: Any, conn: Connection) -> None:
            pass

    return Sync() if front.name == 'threads' else Async()


async def test_endpoints_by_the_thousand_leave_no_memory_behind(front: Front, thorough: bool) -> None:
    total = 100_000 if thorough else 20_000
    made: list[weakref.ref[Any]] = []
    pool = front.pool(minimal_manager(front, made), max_size=1, total_max_size=10)

    async def visit(first: int, last: int) -> None:
        for number in range(first, last):
            async with pool.connection(f'endpoint {number}'):
                pass
        made.clear()

    await visit(0, 2_000)
    collect()
    tracemalloc.start()
    await visit(2_000, 4_000)
    collect()
    before, _ = tracemalloc.get_traced_memory()
    objects = len(gc.get_objects())
    await visit(4_000, 6_000)
    collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 50_000
    assert len(gc.get_objects()) - objects < 200
    await visit(6_000, total)
    collect()
    assert len(gc.get_objects()) - objects < 500
    assert len(pool.stats().endpoints) == pool.get_size() == 10
    assert pool.stats().created == total


async def test_an_endpoint_that_goes_while_its_limits_are_asked_for_is_one_all_the_same(threads_front: Front) -> None:
    """A slow function of limits: meanwhile another thread uses the endpoint, and it is forgotten."""
    asked, gate = threads_front.gate(), threads_front.gate()
    first = threading.Lock()

    def limits(endpoint: str) -> EndpointLimits:
        if first.acquire(blocking=False):
            asked.open()
            drive(gate.passed())
        return EndpointLimits(max_size=1)

    manager = threads_front.manager()
    pool: Any = threads_front.pool(manager, limits=limits, max_uses=1)
    slow = threads_front.spawn(pool.acquire('a'))
    await asked.passed()
    async with pool.connection('a'):
        pass
    await threads_front.until(lambda: not pool.stats().endpoints)
    gate.open()
    conn = await slow
    with pytest.raises(AcquireTimeoutError):
        await pool.acquire('a', timeout=0)
    pool.reconfigure(max_size=1)
    await pool.release(conn, 'a')
    manager.check(max_size=1)


async def test_an_endpoint_that_goes_while_it_is_warmed_up_with_others_is_kept(threads_front: Front) -> None:
    asked, gate = threads_front.gate(), threads_front.gate()

    def limits(endpoint: str) -> EndpointLimits:
        if endpoint == 'b':
            asked.open()
            drive(gate.passed())
        return EndpointLimits(max_size=1)

    pool: Any = threads_front.pool(threads_front.manager(), limits=limits, min_idle=1, max_uses=1)
    warming = threads_front.spawn(pool.warm_up('a', 'b'))
    await asked.passed()
    async with pool.connection('a'):
        pass
    await threads_front.until(lambda: not pool.stats().endpoints)
    gate.open()
    await warming
    assert {name: each.idle for name, each in pool.stats().endpoints.items()} == {'a': 1, 'b': 1}
    await pool.wait_ready(timeout=0)
    await pool.retire('a')
    await pool.retire('b')
    assert pool.get_size() == 0
