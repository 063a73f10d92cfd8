"""Guarantees 5 and 13 (docs/guarantees.md): garbage-collected leases and pools, reference cycles, and re-entrant
calls.

Finalizers, weak references' callbacks, `__eq__`, `__hash__` and hooks are user code: all of them may call the
pool."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from fronts import AsyncioFront, Front, audit
from gil import collect
from starvation import SOON

from gcp.testing import BareFakeManager, calling, dead, error, never, ok


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    collect()
    yield
    collect()


class Connection:
    """A connection that can be watched."""


class SyncManager:
    """A duck-typed manager that keeps nothing alive."""

    def __init__(self) -> None:
        self.disposed = 0

    def create(self, endpoint: Any, timeout: float | None = None) -> Connection:
        return Connection()

    def dispose(self, endpoint: Any, conn: Connection, timeout: float | None = None) -> None:
        self.disposed += 1


class AsyncManager:
    """The same in the other colour."""

    def __init__(self) -> None:
        self.disposed = 0

    async def create(self, endpoint: Any) -> Connection:
        return Connection()

    async def dispose(self, endpoint: Any, conn: Connection) -> None:
        self.disposed += 1


def keepers_of_nothing(front: Front) -> Any:
    return SyncManager() if front.name == 'threads' else AsyncManager()


def raw(lease: Any) -> Any:
    return getattr(lease, 'raw', lease)


# -- leases


async def test_a_dropped_lease_frees_its_place(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=1, total_max_size=1)
    lease = pool.connection('db')
    await lease.__aenter__()
    del lease
    collect()
    async with pool.connection('db', timeout=5) as connection:
        assert connection is manager.created[1]
    await front.until(lambda: manager.disposed == manager.created[:1])
    assert pool.stats().closed['discarded'] == 1
    assert manager.story('on_release') == ['on_release db#2']


async def test_the_collector_disposes_of_a_dropped_lease_s_connection(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=1, background_collector=True)
    lease = pool.connection('db')
    await lease.__aenter__()
    del lease
    collect()
    await front.until(lambda: manager.disposed == manager.created and pool.get_size() == 0)


async def test_a_dropped_lease_serves_who_waits(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=1)
    lease = pool.connection('db')
    await lease.__aenter__()
    [waiter] = await front.line_up(pool, 'db', 1)
    del lease
    collect()
    pool.stats()
    await pool.release(await waiter, 'db')


async def test_a_lease_dropped_in_a_cycle(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=1)
    ring: list[Any] = [pool.connection('db')]
    await ring[0].__aenter__()
    ring.append(ring)
    del ring
    collect()
    async with pool.connection('db', timeout=5):
        pass


async def test_leases_never_entered_take_nothing(front: Front) -> None:
    pool = front.pool(front.manager())
    for _ in range(10):
        pool.connection('db')
    collect()
    assert pool.get_size() == 0


async def test_many_leases_dropped_while_others_work(front: Front) -> None:
    pool = front.pool(keepers_of_nothing(front), max_size=3, total_max_size=4)

    async def work(endpoint: str) -> None:
        for round_ in range(100):
            lease = pool.connection(endpoint, timeout=5)
            await lease.__aenter__()
            if round_ % 3:
                await lease.__aexit__(None, None, None)
            lease = None  # type: ignore[assignment]

    for actor in [front.spawn(work(endpoint)) for endpoint in 'aabbcc']:
        await actor
    collect()
    async with pool.connection('z', timeout=5):
        pass
    assert pool.stats().used == 0


async def test_a_dropped_lease_after_a_close(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    lease = pool.connection('db')
    await lease.__aenter__()
    await pool.close(timeout=0)
    del lease
    collect()
    assert len(manager.disposed) == 1


async def test_a_close_does_not_wait_for_a_dropped_lease(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    lease = pool.connection('db')
    await lease.__aenter__()
    del lease
    collect()
    await pool.close(timeout=5)
    assert manager.disposed == manager.created


async def test_a_close_sees_a_lease_that_is_dropped_meanwhile(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)
    leases = [pool.connection('db')]
    await leases[0].__aenter__()
    closer = front.spawn(pool.close())
    await front.until(lambda: pool.closed)
    leases.clear()
    collect()
    pool.stats()
    await closer
    assert manager.disposed == manager.created


# -- pools


@pytest.mark.parametrize('background_collector', [False, True])
async def test_a_dropped_pool_is_freed_with_its_connections(front: Front, background_collector: bool) -> None:
    manager = keepers_of_nothing(front)
    pool = front.face(front.pool_class(manager, background_collector=background_collector))
    connection = await pool.acquire('db')
    await pool.release(connection, 'db')
    watched = [weakref.ref(raw(pool)), weakref.ref(connection), weakref.ref(manager)]
    del pool, connection, manager

    def all_gone() -> bool:
        collect()
        return not any(ref() for ref in watched)

    await front.until(all_gone, patience=5)


async def test_a_pool_that_its_manager_knows_is_collected(front: Front) -> None:
    manager = keepers_of_nothing(front)
    pool = manager.pool = front.face(front.pool_class(manager))
    connection = await pool.acquire(manager)  # and the endpoint and the connection know them, too
    connection.pool = pool
    await pool.release(connection, manager)
    watched = [weakref.ref(raw(pool)), weakref.ref(connection), weakref.ref(manager)]
    del pool, connection, manager
    collect()
    await front.sleep(0.001)
    assert collect(*watched) == [None] * 3


async def test_a_pool_is_kept_alive_by_a_lease(front: Front) -> None:
    pool = front.face(front.pool_class(keepers_of_nothing(front), max_size=1))
    async with pool.connection('db'):
        gone = weakref.ref(raw(pool))
        del pool
        collect()
        assert gone() is not None
    collect()


async def test_waiting_keeps_a_pool_alive(front: Front) -> None:
    pool = front.pool_class(front.manager(), max_size=1)
    face = front.face(pool)
    connection = await face.acquire('db')
    [waiter] = await front.line_up(face, 'db', 1)
    gone = weakref.ref(pool)
    del pool, face
    collect()
    assert gone() is not None
    survivor = gone()
    await front.face(survivor).release(connection, 'db')
    await front.face(survivor).release(await waiter, 'db')


async def test_failed_acquires_keep_no_frames_alive(front: Front) -> None:
    class Local:
        pass

    manager = keepers_of_nothing(front)
    pool = front.pool(manager, max_size=1)

    async def fail() -> weakref.ref[Any]:
        local = Local()
        with pytest.raises(TimeoutError):
            await pool.acquire('db', timeout=0.001)
        return weakref.ref(local)

    connection = await pool.acquire('db')
    gone = await fail()
    assert collect(gone) == [None]
    await pool.release(connection, 'db')


async def test_a_connect_error_keeps_no_frames_alive(front: Front) -> None:
    class Local:
        pass

    watched: list[weakref.ref[Any]] = []

    def refuse(endpoint: Any, connection: Any) -> None:
        local = Local()
        watched.append(weakref.ref(local))
        raise ConnectionRefusedError(local.__class__.__name__)

    manager = front.manager(bare=True)
    pool = front.pool(manager, max_size=2)
    connection = await pool.acquire('db')  # keeps the endpoint
    manager.create.does(calling(refuse))
    with pytest.raises(ConnectionRefusedError):
        await pool.acquire('db')
    assert collect(watched[0]) == [None]
    await pool.release(connection, 'db')


# -- re-entrance


class Nosy:
    """An endpoint whose `__eq__` and `__hash__` call the pool."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pool: Any = None
        self.calls = 0

    def _look(self) -> None:
        self.calls += 1
        if self.pool is not None and self.calls % 7 == 0:
            pool, self.pool = self.pool, None
            try:
                pool.stats(), repr(pool), pool.get_size()
                if isinstance(pool, sync_pool_class()):
                    with pool.connection('inner', timeout=0):
                        pass
            except TimeoutError:
                pass
            finally:
                self.pool = pool

    def __eq__(self, other: object) -> bool:
        self._look()
        return isinstance(other, Nosy) and other.name == self.name

    def __hash__(self) -> int:
        self._look()
        return 42


def sync_pool_class() -> Any:
    from gcp.threading import ConnectionPool

    return ConnectionPool


async def test_endpoints_whose_eq_and_hash_call_the_pool(front: Front) -> None:
    pool = front.pool(keepers_of_nothing(front), max_size=2, total_max_size=3)
    endpoints = []
    for round_ in range(60):
        endpoints.append(endpoint := Nosy('abc'[round_ % 3]))
        endpoint.pool = front.pools[0]
        async with pool.connection(endpoint, timeout=5):
            connection = await pool.acquire(endpoint, timeout=5)
            endpoints.append(same := Nosy(endpoint.name))
            same.pool = front.pools[0]
            await pool.release(connection, same)
        await pool.get_endpoint_pool_size(endpoint)
    assert sum(endpoint.calls for endpoint in endpoints) > 100
    for endpoint in endpoints:
        endpoint.pool = None


class Sour:
    """An endpoint whose `__eq__` raises."""

    def __init__(self) -> None:
        self.sour = False

    def __eq__(self, other: object) -> bool:
        if self.sour or getattr(other, 'sour', False):
            raise ArithmeticError('eq')
        return self is other

    def __hash__(self) -> int:
        return 7


async def test_an_endpoint_whose_eq_raises_changes_nothing(front: Front) -> None:
    pool = front.pool(keepers_of_nothing(front))
    good, bad = Sour(), Sour()
    connection = await pool.acquire(good)
    bad.sour = True
    with pytest.raises(ArithmeticError):
        await pool.acquire(bad)
    with pytest.raises(ArithmeticError):
        await pool.release(connection, bad)
    with pytest.raises(ArithmeticError):
        await pool.get_endpoint_pool_size(bad)
    assert (pool.stats().used, pool.stats().size) == (1, 1)
    await pool.release(connection, good)


class Chatty:
    """A connection whose finalizer and weak reference's callback call the pool."""

    pool: Any = None
    finals = 0

    def __del__(self) -> None:
        Chatty.finals += 1
        pool = Chatty.pool
        if pool is not None:
            pool.stats(), repr(pool), pool.get_size()
            if isinstance(pool, sync_pool_class()):
                try:
                    with pool.connection('final', timeout=0):
                        pass
                except TimeoutError:
                    pass


async def test_connections_whose_finalizers_call_the_pool(front: Front) -> None:
    manager = keepers_of_nothing(front)
    called: list[int] = []

    def create(*args: Any, **kwargs: Any) -> Any:
        connection = Chatty()
        ring = [connection]
        ring.append(ring)  # type: ignore[arg-type]
        connection.ring = ring  # type: ignore[attr-defined]
        weakref.finalize(connection, called.append, 1)
        return connection

    async def acreate(*args: Any, **kwargs: Any) -> Any:
        return create()

    manager.create = create if front.name == 'threads' else acreate
    pool = front.pool(manager, max_size=2, total_max_size=2, min_idle=0)
    Chatty.pool, Chatty.finals = front.pools[0], 0
    threshold = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        for round_ in range(100):
            async with pool.connection('abc'[round_ % 3], timeout=5):
                pass
            if round_ % 10 == 0:
                collect()
    finally:
        gc.set_threshold(*threshold)
        Chatty.pool = None
    assert Chatty.finals > 20


async def test_hooks_may_use_the_pool(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=3, total_max_size=6, min_idle=0, idle_timeout=0.001)
    depth = 0

    @front.hook
    async def reenter(endpoint: Any, connection: Any) -> None:
        nonlocal depth
        depth += 1
        try:
            if depth <= 2:
                pool.stats(), repr(pool)
                try:
                    async with pool.connection('inner', timeout=0):
                        pass
                except TimeoutError:
                    pass
        finally:
            depth -= 1

    for hook in ('create', 'dispose', 'on_acquire', 'on_release', 'on_connection_dead'):
        getattr(manager, hook).does(calling(reenter))
    manager.check_aliveness.does(*[ok(), dead()] * 20, ok())
    for round_ in range(30):
        async with pool.connection('ab'[round_ % 2], timeout=5):
            await front.sleep(0.0005)
    manager.check(max_size=3, total_max_size=6)


async def test_a_hook_may_release_another_connection(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager, max_size=2)
    other = await pool.acquire('other')

    @front.hook
    async def release_other(endpoint: Any, connection: Any) -> None:
        if connection is not other:
            await pool.release(other, 'other')

    manager.on_acquire.does(calling(release_other), ok())
    async with pool.connection('db'):
        assert pool.stats().used == 1


async def test_a_hook_may_close_the_pool(front: Front) -> None:
    manager = front.manager()
    pool = front.pool(manager)

    @front.hook
    async def close(endpoint: Any, connection: Any) -> None:
        await pool.close(timeout=0)

    connection = await pool.acquire('db')
    manager.on_release.does(calling(close), ok())
    await pool.release(connection, 'db')
    assert pool.closed
    await front.until(lambda: manager.disposed == [connection])


def test_a_finalizer_in_another_thread_s_line() -> None:
    """Leases dropped by whichever thread happens to collect garbage, while others are in the middle of a step."""
    pool = sync_pool_class()(SyncManager(), max_size=2, total_max_size=4, idle_timeout=0.0005)
    threshold = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    end = time.monotonic() + 1.0

    def work(endpoint: str) -> None:
        while time.monotonic() < end:
            lease = pool.connection(endpoint, timeout=5)
            lease.__enter__()
            ring: list[Any] = [lease]
            ring.append(ring)
            del lease, ring
            with pool.connection(endpoint, timeout=5):
                pass

    try:
        threads = [threading.Thread(target=work, args=(endpoint,), daemon=True) for endpoint in 'aabbcc']
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            collect()  # when all of them wait, nobody else makes garbage enough to have it collected
            time.sleep(0.001)
            assert time.monotonic() < end + 10, pool
    finally:
        gc.set_threshold(*threshold)
    collect()
    with pool.connection('z', timeout=5):
        pass
    assert pool.stats().used == 0
    pool.close(timeout=5)
    audit(pool.stats())


async def test_an_error_does_not_tie_a_knot_with_its_pool(front: Front) -> None:
    manager = front.manager()
    manager.on_acquire.does(error(OSError))
    pool = front.face(front.pool_class(manager))
    with pytest.raises(OSError):
        await pool.acquire('db')
    gone = weakref.ref(raw(pool))
    del pool
    collect()
    await front.sleep(0.001)
    assert collect(gone) == [None]


def test_a_loop_that_ends_while_its_pool_has_waiters() -> None:
    from gcp.asyncio import ConnectionPool

    async def main() -> tuple[Any, Any]:
        manager: Any = AsyncManager()
        pool = ConnectionPool[str, Connection](manager, max_size=1, background_collector=True)
        connection = await pool.acquire('db')
        waiter = asyncio.ensure_future(pool.acquire('db'))
        await asyncio.sleep(0)
        assert not waiter.done()
        return weakref.ref(pool), weakref.ref(connection)

    refs = asyncio.run(main())
    assert collect(*refs) == [None, None]


async def test_a_cancelled_acquire_that_is_dropped(asyncio_front: AsyncioFront) -> None:
    pool = asyncio_front.pool(asyncio_front.manager(), max_size=1)
    connection = await pool.acquire('db')
    tasks: list[Any] = await asyncio_front.line_up(pool, 'db', 3)
    for task in tasks:
        task.cancel()
    for task in tasks:
        with pytest.raises(asyncio.CancelledError):
            await task
    tasks.clear()
    collect()
    await pool.release(connection, 'db')
    assert pool.stats().idle == 1


def test_nothing_grows_with_use(threads_front: Front) -> None:
    pool = sync_pool_class()(SyncManager(), max_size=2)

    def use() -> None:
        for _ in range(1000):
            with pool.connection('db'):
                pass
            pool.release(pool.acquire('db'), 'db')

    use()
    collect()
    before = len(gc.get_objects())
    use()
    collect()
    assert len(gc.get_objects()) - before < 20
    pool.close()


def test_a_manager_that_blocks_in_dispose_does_not_block_the_garbage_collector(threads_front: Front) -> None:
    manager = BareFakeManager()
    manager.dispose.does(never())
    pool = sync_pool_class()(manager, max_size=2)
    lease = pool.connection('db')
    lease.__enter__()
    began = time.monotonic()
    del lease
    collect()
    assert time.monotonic() - began < SOON
    with pool.connection('other', timeout=1):
        pass
    manager.unblock()
    pool.close(timeout=5)
