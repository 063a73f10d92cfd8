"""A pool with an idle connection, and a thousand hits on it, on both fronts: the code that several chapters time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable, Sequence
from typing import Any

import gcp.asyncio
import gcp.threading

from . import effort, managers

TIMES = 1000


class OnThreads(effort.Timed):
    """A pool of `gcp.threading`, made by `open`."""

    pool: gcp.threading.ConnectionPool[Any, Any]
    keys: Sequence[Hashable]

    def open(self, keys: Sequence[Hashable] = ('db',) * TIMES, hooks: Sequence[str] = (), **options: Any) -> None:
        """Make the pool, and one idle connection of each endpoint.

        :param keys: the endpoints to go through
        :param hooks: the hooks that the manager overrides
        :param options: the pool's
        """
        self.keys = keys
        self.pool = gcp.threading.ConnectionPool(managers.blocking(gcp.threading, hooks=hooks), **options)
        self.acquire_release()

    def teardown(self, *params: object) -> None:
        self.pool.close()

    def acquire_release(self) -> None:
        pool = self.pool
        for key in self.keys:
            conn = pool.acquire(key)
            pool.release(conn, key)

    def connection(self) -> None:
        pool = self.pool
        for key in self.keys:
            with pool.connection(key):
                pass


class OnTasks(effort.Timed):
    """The same for `gcp.asyncio`, in an event loop of its own."""

    pool: gcp.asyncio.ConnectionPool[Any, Any]
    keys: Sequence[Hashable]

    def open(self, keys: Sequence[Hashable] = ('db',) * TIMES, hooks: Sequence[str] = (), **options: Any) -> None:
        """As `OnThreads.open`."""
        self.keys = keys
        self.loop = asyncio.new_event_loop()
        self.pool = gcp.asyncio.ConnectionPool(managers.asynchronous(gcp.asyncio, hooks=hooks), **options)
        self.acquire_release()

    def teardown(self, *params: object) -> None:
        self.run(self.pool.close())
        self.loop.close()

    def run(self, body: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(body)

    def acquire_release(self) -> None:
        self.run(self.await_acquire_release())

    def connection(self) -> None:
        self.run(self.async_with_connection())

    async def await_acquire_release(self) -> None:
        pool = self.pool
        for key in self.keys:
            conn = await pool.acquire(key)
            await pool.release(conn, key)

    async def async_with_connection(self) -> None:
        pool = self.pool
        for key in self.keys:
            async with pool.connection(key):
                pass
