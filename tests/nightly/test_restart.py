"""PostgreSQL away for two seconds under load, with retries: no caller of `acquire` gets an error, few connects are
tried meanwhile, and callers are served again soon."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from peers import missing
from pg_drivers import Asyncpg, AsyncPsycopg, Driver, Psycopg, Psycopg2, done

from gcp.demo.server import Server, ServerError, serve
from gcp.limits import Retry

AWAY = 2.0
PATIENCE = 30.0


class Load:
    """Callers that acquire, ask and release until told to stop.

    :ivar failed: errors of connects
    :ivar refused: errors of `acquire`
    :ivar served: when a caller was served last
    """

    def __init__(self, pg: Driver, parameters: dict[str, Any], callers: int) -> None:
        self.failed: list[BaseException] = []
        self.refused: list[BaseException] = []
        self.served = 0.0
        self.uses = 0
        self._pg = pg
        self._callers = callers
        self._stopped = threading.Event()
        manager = pg.manager(parameters)
        create = manager.create

        def counted(*args: Any, **kwargs: Any) -> Any:
            if pg.is_async:
                return self._awaited(create(*args, **kwargs))
            try:
                return create(*args, **kwargs)
            except Exception as error:
                self.failed.append(error)
                raise

        manager.create = counted
        self._make = lambda: pg.pools.ConnectionPool(
            manager, max_size=4, min_idle=4, acquire_timeout=5, max_connecting=2, connect_retry=Retry(maximum=0.4)
        )
        self._pool: Any = None if pg.is_async else self._make()
        count = 1 if pg.is_async else callers
        self._threads = [threading.Thread(target=self._run, name='load') for _ in range(count)]

    async def _awaited(self, connecting: Any) -> Any:
        try:
            return await connecting
        except Exception as error:
            self.failed.append(error)
            raise

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

    def until_served(self, after: float, within: float) -> None:
        deadline = time.monotonic() + within
        while self.served <= after:
            assert time.monotonic() < deadline, (self.refused[-1:], self._pool)
            self._stopped.wait(0.002)

    def _run(self) -> None:
        asyncio.run(self._work_in_loop() if self._pg.is_async else self._work())

    async def _work_in_loop(self) -> None:
        self._pool = self._make()
        await asyncio.gather(*(self._work() for _ in range(self._callers)))
        await self._pool.close()

    async def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                conn = await done(self._pool.acquire('orders'))
            except Exception as error:
                self.refused.append(error)
                await asyncio.sleep(0.01)
                continue
            error = None
            try:
                await self._pg.ask(conn, 'SELECT 1')
                self.served = time.monotonic()
            except Exception as trouble:  # in mid-query: not the pool's
                error = trouble
            try:
                await done(self._pool.release(conn, 'orders', error=error))
            except Exception:
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)


@pytest.fixture(scope='module')
def restarted() -> Iterator[Server]:
    """A server that no other test uses."""
    try:
        with serve(max_connections=20) as server:
            yield server
    except ServerError as error:
        missing(str(error))


@pytest.mark.parametrize(
    ('make', 'callers'),
    [(Psycopg2, 8), (Psycopg, 8), (AsyncPsycopg, 100), (Asyncpg, 100)],
    ids=['psycopg2-8-threads', 'psycopg-8-threads', 'psycopg-100-tasks', 'asyncpg-100-tasks'],
)
def test_no_caller_notices_a_restart(make: type[Driver], callers: int, restarted: Server) -> None:
    with Load(make(), restarted.parameters, callers) as load:
        load.until_served(0.0, PATIENCE)
        restarted.stop()
        threading.Event().wait(AWAY)
        attempts = len(load.failed)
        restarted.start()
        back = time.monotonic()
        load.until_served(back, PATIENCE)
        delay = load.served - back
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            load.until_served(load.served, PATIENCE)
    assert load.refused == []
    assert attempts <= 10
    assert delay < 0.5
