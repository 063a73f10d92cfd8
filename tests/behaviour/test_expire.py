"""Guarantee 26 (docs/guarantees.md): connections that `expire` lets be handed out no more."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from fronts import Front

from gcp.managers import AsyncConnectionManager, SyncConnectionManager
from gcp.testing import AsyncFakeManager, error, never, ok


async def test_idle_connections_go_now_and_used_ones_when_they_are_released(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=5)
    held = await front.fill(pool, 'a', 3)
    await pool.release(held.pop(), 'a')
    other = await front.fill(pool, 'b', 1)
    await front.give_back(pool, other)
    pool.expire('a')
    await front.until(lambda: pool.stats().closed['expired'] == 1 and not pool.stats().disposing)
    async with pool.connection('a') as conn:
        assert conn is manager.created[-1]
    await front.give_back(pool, held)
    await front.until(lambda: pool.stats().size == 2)
    assert pool.stats().closed['expired'] == 3
    assert (pool.stats().endpoints['a'].idle, pool.stats().endpoints['b'].idle) == (1, 1)


async def test_all_endpoints(front: Front) -> None:
    pool = front.pool(front.manager())
    for endpoint in 'abc':
        async with pool.connection(endpoint):
            pass
    pool.expire()
    await pool.wait_expired(30)
    assert (pool.stats().size, pool.stats().closed['expired']) == (0, 3)


async def test_wait_expired_is_right_to_the_last(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=5)
    held = await front.fill(pool, 'a', 2)
    await pool.wait_expired(30)  # nothing was expired
    pool.expire('a')
    assert (pool.stats().stale, pool.stats().endpoints['a'].stale) == (2, 2)
    waiting = front.spawn(pool.wait_expired())
    await pool.release(held.pop(), 'a')
    await front.until(lambda: pool.stats().stale == 1)
    fresh = await front.fill(pool, 'a', 3)
    assert not waiting.done()
    manager.dispose.does(never(), ok())
    releasing = front.spawn(pool.release(held.pop(), 'a'))
    await front.until(lambda: manager.dispose.running)
    await front.sleep(0.01)
    assert not waiting.done()
    manager.dispose.unblock()
    await waiting
    await releasing
    assert pool.stats().stale == 0
    await front.give_back(pool, fresh)


async def test_it_may_run_out_of_time(front: Front) -> None:
    pool = front.pool(front.manager())
    async with pool.connection('a'):
        pool.expire('a')
        for timeout in (0, 0.02):
            with pytest.raises(TimeoutError, match='1 connections that were opened before'):
                await pool.wait_expired(timeout)
    await pool.wait_expired(timeout=30)


async def test_a_connect_that_began_before_is_waited_for(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never(), ok())
    pool = front.pool(manager, max_size=2)
    creating = front.spawn(pool.acquire('a'))
    await front.until(lambda: manager.create.running)
    pool.expire('a')
    assert pool.stats().stale == 1
    waiting = front.spawn(pool.wait_expired())
    async with pool.connection('a'):
        pass
    assert not waiting.done()
    manager.create.unblock()
    conn = await creating
    assert not waiting.done()
    await pool.release(conn, 'a')
    await waiting
    assert (pool.stats().closed['expired'], pool.stats().idle) == (1, 1)


async def test_a_connect_that_began_before_and_fails(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=2)
    manager.create.does(never(then=error(OSError('no'))))
    creating = front.spawn(pool.acquire('a'))
    await front.until(lambda: manager.create.running)
    pool.expire()
    waiting = front.spawn(pool.wait_expired(30))
    manager.create.unblock()
    with pytest.raises(OSError, match='no'):
        await creating
    await waiting


async def test_a_connect_in_the_background_that_began_before_serves_no_acquire(front: Front) -> None:
    manager = front.manager()
    manager.create.does(never(), ok())
    pool = front.pool(manager, connect_workers=1, max_size=3)
    [first] = await front.line_up(pool, 'a', 1)
    await front.until(lambda: manager.create.running)
    pool.expire('a')
    manager.create.unblock()
    conn = await first
    assert conn is manager.created[1]
    await pool.wait_expired(30)
    assert manager.disposed == [manager.created[0]]
    await pool.release(conn, 'a')


async def test_kept_endpoints_are_refilled(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, min_idle=2, max_size=5, refill=True)
    await pool.warm_up('a')
    manager.dispose.does(never())
    pool.expire('a')
    await front.until(lambda: len(manager.created) == 4)  # though the old ones are not gone
    manager.dispose.does(ok())
    manager.unblock()
    await pool.wait_expired(30)
    assert pool.stats().endpoints['a'].idle == 2


async def test_waiters_are_served_by_new_connections(front: Front) -> None:
    pool = front.pool(front.manager(), max_size=1)
    held = await pool.acquire('a')
    [waiter] = await front.line_up(pool, 'a', 1)
    pool.expire('a')
    await pool.release(held, 'a')
    conn = await waiter
    assert conn is not held
    await pool.release(conn, 'a')


async def test_unknown_endpoints_and_bad_arguments(front: Front) -> None:
    pool = front.pool(front.manager())
    pool.expire('unknown')
    with pytest.raises(TypeError, match='hashable'):
        pool.expire([])
    with pytest.raises(TypeError, match='timeout'):
        await pool.wait_expired('soon')  # type: ignore[arg-type]
    assert pool.stats().endpoints == {}


async def test_a_close_meanwhile(front: Front) -> None:
    pool = front.pool(front.manager())
    held = await pool.acquire('a')
    pool.expire('a')
    waiting = front.spawn(pool.wait_expired())
    closing = front.spawn(pool.close())
    await front.until(lambda: pool.closed)
    assert not waiting.done()
    await pool.release(held, 'a')
    await closing
    await waiting
    pool.expire('a')
    pool.expire()
    await pool.wait_expired()


class Watched:
    """Notes when each connection's connect began, and how many there are at a time."""

    def __init__(self) -> None:
        self.began: dict[Any, float] = {}
        self.live: set[Any] = set()
        self.connecting = 0
        self.most = 0
        self._lock = threading.Lock()

    def begin(self) -> float:
        with self._lock:
            self.connecting += 1
            self.most = max(self.most, self.connecting)
        return time.monotonic()

    def end(self, began: float) -> Any:
        conn = object()
        with self._lock:
            self.connecting -= 1
            self.began[conn] = began
            self.live.add(conn)
        return conn


def test_under_load_of_32_threads() -> None:
    from gcp.threading import ConnectionPool

    watched = Watched()

    class Manager(SyncConnectionManager[str, Any]):
        def create(self, endpoint: str, timeout: float | None = None) -> Any:
            began = watched.begin()
            time.sleep(0.002)
            return watched.end(began)

        def dispose(self, endpoint: str, conn: Any, timeout: float | None = None) -> None:
            watched.live.discard(conn)

    expired = [0.0]
    wrong: list[Any] = []
    errors: list[BaseException] = []
    stop = threading.Event()
    pool = ConnectionPool(Manager(), max_size=10, max_connecting=2, acquire_timeout=60)

    def use() -> None:
        try:
            while not stop.is_set():
                before = expired[0]
                with pool.connection('db') as conn:
                    if watched.began[conn] < before:
                        wrong.append(conn)
                    time.sleep(0.0005)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(32)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        uses = pool.stats().acquires
        while sum(pool.stats().acquires.values()) < sum(uses.values()) + 100:
            time.sleep(0.001)
        at = time.monotonic()
        pool.expire('db')
        expired[0] = at
        pool.wait_expired(60)
        assert not any(watched.began[conn] < at for conn in list(watched.live))
    stop.set()
    for thread in threads:
        thread.join(60)
    assert (errors, wrong) == ([], [])
    assert watched.most <= 2
    pool.close()


def test_under_load_of_200_tasks() -> None:
    from gcp.asyncio import ConnectionPool

    watched = Watched()

    class Manager(AsyncConnectionManager[str, Any]):
        async def create(self, endpoint: str) -> Any:
            began = watched.begin()
            await asyncio.sleep(0.002)
            return watched.end(began)

        async def dispose(self, endpoint: str, conn: Any) -> None:
            watched.live.discard(conn)

    async def main() -> None:
        expired = [0.0]
        wrong: list[Any] = []
        stop = asyncio.Event()
        pool = ConnectionPool(Manager(), max_size=10, max_connecting=2, acquire_timeout=60)

        async def use() -> None:
            while not stop.is_set():
                before = expired[0]
                async with pool.connection('db') as conn:
                    if watched.began[conn] < before:
                        wrong.append(conn)
                    await asyncio.sleep(0)

        tasks = [asyncio.create_task(use()) for _ in range(200)]
        for _ in range(8):
            uses = sum(pool.stats().acquires.values())
            while sum(pool.stats().acquires.values()) < uses + 500:
                await asyncio.sleep(0.001)
            at = time.monotonic()
            pool.expire('db')
            expired[0] = at
            await pool.wait_expired(60)
            assert not any(watched.began[conn] < at for conn in list(watched.live))
        stop.set()
        await asyncio.gather(*tasks)
        assert wrong == []
        assert watched.most <= 2
        await pool.close()

    asyncio.run(main())


def test_from_another_thread_than_that_of_the_event_loop() -> None:
    from gcp.asyncio import ConnectionPool

    async def main() -> None:
        async with ConnectionPool(AsyncFakeManager()) as pool:
            async with pool.connection('a'):
                pass
            await asyncio.to_thread(pool.expire, 'a')
            await pool.wait_expired(30)
            assert pool.stats().closed['expired'] == 1

    asyncio.run(main())
