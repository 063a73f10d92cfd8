"""PostgreSQL under load while backends are killed at random, and while the whole server is restarted: all managers on
their pools."""

from __future__ import annotations

import asyncio
import collections
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peers import driver, missing
from pg_drivers import Driver, done, each_driver

from gcp.demo.server import Server, ServerError, serve

WORKERS = 4
ACQUIRES = 500
PATIENCE = 30.0


class Load:
    """Workers that acquire, ask and release on one pool, each in a thread or a task, until told to stop.

    :ivar errors: how often each backend failed one of its users, by process id
    :ivar trouble: errors of an acquire, where there is no backend to blame
    :ivar served: when each worker was last served
    """

    def __init__(self, pg: Driver, pool: Any) -> None:
        self.errors: collections.Counter[int] = collections.Counter()
        self.trouble: list[BaseException] = []
        self.served = [0.0] * WORKERS
        self.acquires = 0
        self._pg = pg
        self._pool = pool
        self._stopped = threading.Event()
        self._loads = [self._in_loop] if pg.is_async else [self._in_thread(number) for number in range(WORKERS)]
        self._threads = [threading.Thread(target=load, name='load') for load in self._loads]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        if not self._pg.is_async:
            self._pool.close()

    def until(self, happened: Callable[[], bool], within: float = PATIENCE) -> None:
        deadline = time.monotonic() + within
        while not happened():
            assert time.monotonic() < deadline, (self.trouble[-1:], self.errors)
            self._stopped.wait(0.002)

    def _in_thread(self, number: int) -> Callable[[], None]:
        return lambda: asyncio.run(self._work(number))

    def _in_loop(self) -> None:
        async def work() -> None:
            await asyncio.gather(*map(self._work, range(WORKERS)))
            await self._pool.close()

        asyncio.run(work())

    async def _work(self, number: int) -> None:
        while not self._stopped.is_set():
            if await self._use():
                self.served[number] = time.monotonic()
            else:
                await asyncio.sleep(0.001)

    async def _use(self) -> bool:
        try:
            conn = await done(self._pool.acquire('orders', 10))
        except Exception as error:
            self.trouble.append(error)
            return False
        self.acquires += 1
        backend = self._pg.backend(conn)
        try:
            try:
                await self._pg.ask(conn, 'SELECT 1')
            finally:
                await done(self._pool.release(conn, 'orders'))
        except Exception:
            self.errors[backend] += 1
            return False
        return True


@pytest.fixture
def admin(postgres: Server) -> Iterator[Any]:
    conn = driver('psycopg2').connect(**postgres.parameters)
    conn.autocommit = True
    yield conn.cursor()
    conn.close()


@pytest.fixture(scope='module')
def restarted() -> Iterator[Server]:
    """A server that no other test uses."""
    try:
        with serve(max_connections=20) as server:
            yield server
    except ServerError as error:
        missing(str(error))


def pooled(pg: Driver, parameters: dict[str, Any], **options: Any) -> Any:
    return pg.pools.ConnectionPool(pg.manager(parameters, **options), max_size=WORKERS, min_idle=WORKERS)


@each_driver
def test_each_kill_is_met_by_one_user_at_most(make: type[Driver], postgres: Server, admin: Any) -> None:
    pg, chance, killed = make(), random.Random(7), set[int]()
    pool = pooled(pg, postgres.parameters)
    with Load(pg, pool) as load:
        while load.acquires < ACQUIRES or len(killed) < 20:
            admin.execute('SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state IS NOT NULL')
            if backends := [pid for (pid,) in admin.fetchall() if pid not in killed]:
                backend = chance.choice(backends)
                killed.add(backend)
                admin.execute('SELECT pg_terminate_backend(%s)', [backend])
            before = load.acquires
            load.until(lambda before=before: load.acquires > before + 4)  # type: ignore[misc]
    assert set(load.errors.values()) <= {1}
    assert set(load.errors) <= killed
    assert len(load.errors) + len(load.trouble) <= len(killed)  # a kill may meet one that is just being created


@each_driver
@pytest.mark.parametrize('kindly', [True, False], ids=['fast', 'immediate'])
def test_after_a_restart_the_pool_is_back_within_a_second(make: type[Driver], restarted: Server, kindly: bool) -> None:
    pg = make()
    pool = pooled(pg, restarted.parameters)
    with Load(pg, pool) as load:
        load.until(lambda: min(load.served) > 0)
        restarted.restart(kindly=kindly)
        ready = time.monotonic()
        load.until(lambda: min(load.served) > ready, within=1)
        old = set(load.errors)
        trouble = len(load.trouble)
        more = load.acquires + 50
        load.until(lambda: load.acquires > more)
    assert set(load.errors) == old
    assert len(load.trouble) == trouble
    assert set(load.errors.values()) <= {1}
