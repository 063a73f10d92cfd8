"""The idle hit: acquire and release a connection that is there, on both fronts, beside a bare deque."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import gcp.asyncio
import gcp.threading

from . import managers

TIMES = 1000


class Threads:
    """Times for a thousand."""

    def setup(self) -> None:
        self.pool = gcp.threading.ConnectionPool(managers.blocking(gcp.threading))
        self.pool.release(self.pool.acquire('db'), 'db')
        self.deque = deque([object()])

    def time_deque_pop_append(self) -> None:
        bare = self.deque
        for _ in range(TIMES):
            conn = bare.pop()
            bare.append(conn)

    def time_acquire_release(self) -> None:
        pool = self.pool
        for _ in range(TIMES):
            conn = pool.acquire('db')
            pool.release(conn, 'db')

    def time_with_connection(self) -> None:
        pool = self.pool
        for _ in range(TIMES):
            with pool.connection('db'):
                pass


class Tasks:
    """Times for a thousand."""

    def setup(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.pool = gcp.asyncio.ConnectionPool(managers.asynchronous(gcp.asyncio))
        self.loop.run_until_complete(self.acquire_release(1))

    def teardown(self) -> None:
        self.loop.run_until_complete(self.pool.close())
        self.loop.close()

    async def acquire_release(self, times: int) -> None:
        pool = self.pool
        for _ in range(times):
            conn = await pool.acquire('db')
            await pool.release(conn, 'db')

    async def with_connection(self, times: int) -> None:
        pool = self.pool
        for _ in range(times):
            async with pool.connection('db'):
                pass

    def run(self, body: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        self.loop.run_until_complete(body(TIMES))

    def time_acquire_release(self) -> None:
        self.run(self.acquire_release)

    def time_async_with_connection(self) -> None:
        self.run(self.with_connection)
