"""The four PostgreSQL managers behind one face, so that one body tests all of them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any

import pytest
from peers import driver

import gcp.asyncio
import gcp.threading


class Driver:
    """A manager's face: the hooks' and the connections' sync methods look like the async ones."""

    name: str
    is_async: bool
    pools: Any

    def __init__(self) -> None:
        self.module = driver(self.name)  # skips without it

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        return (self.module.Error, OSError)

    def make(self, parameters: Any, **options: Any) -> Any:
        raise NotImplementedError

    def keywords(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Connect parameters in the driver's words, from libpq's."""
        return dict(parameters)

    def manager(self, parameters: Mapping[str, Any], **options: Any) -> Any:
        """A manager of one endpoint, `orders`; parameters are libpq's."""
        return self.make({'orders': self.keywords(parameters)}, **options)

    async def create(self, manager: Any, timeout: float = 10.0) -> Any:
        """Create a connection, within a time-out, as its pool would."""
        if self.is_async:
            return await asyncio.wait_for(manager.create('orders'), timeout)
        return manager.create('orders', timeout)

    async def check(self, manager: Any, conn: Any) -> bool:
        alive: bool = await done(manager.check_aliveness('orders', conn))
        return alive

    async def release(self, manager: Any, conn: Any) -> None:
        await done(manager.on_release('orders', conn))

    async def pass_on(self, manager: Any, conn: Any) -> None:
        """Release a connection and acquire it again, as its pool would."""
        await self.release(manager, conn)
        assert await self.check(manager, conn)

    async def dispose(self, manager: Any, conn: Any) -> None:
        await done(manager.dispose('orders', conn))

    @contextlib.asynccontextmanager
    async def connected(self, parameters: Mapping[str, Any], **options: Any) -> AsyncIterator[tuple[Any, Any]]:
        """A manager and a connection of its own."""
        manager = self.manager(parameters, **options)
        conn = await self.create(manager)
        try:
            yield manager, conn
        finally:
            await self.dispose(manager, conn)

    async def ask(self, conn: Any, question: str) -> Any:
        """Execute one statement; return the first value of its first row, if it has any."""
        raise NotImplementedError

    def is_closed(self, conn: Any) -> bool:
        return bool(conn.closed)

    def backend(self, conn: Any) -> int:
        pid: int = conn.info.backend_pid
        return pid

    def descriptor(self, conn: Any) -> int:
        fd: int = conn.fileno()
        return fd

    async def settle(self) -> None:
        """Let what was closed go: transports close their sockets in the loop's next turn, threads end."""
        for _ in range(3):
            await asyncio.sleep(0)
        for thread in threading.enumerate():
            if thread.name == 'gcp-deadline':
                thread.join(60)


async def done(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


def run(body: Coroutine[Any, Any, None], timeout: float = 120) -> None:
    asyncio.run(asyncio.wait_for(body, timeout))


class Psycopg2(Driver):
    name, is_async, pools = 'psycopg2', False, gcp.threading

    def make(self, parameters: Any, **options: Any) -> Any:
        from gcp.contrib.psycopg2 import DbConnectionManager

        return DbConnectionManager(parameters, **options)

    async def ask(self, conn: Any, question: str) -> Any:
        with conn.cursor() as cursor:
            cursor.execute(question)
            row = cursor.fetchone() if cursor.description else None
            return row and row[0]


class Psycopg(Driver):
    name, is_async, pools = 'psycopg', False, gcp.threading

    def make(self, parameters: Any, **options: Any) -> Any:
        from gcp.contrib.psycopg import DbConnectionManager

        return DbConnectionManager(parameters, **options)

    async def ask(self, conn: Any, question: str) -> Any:
        cursor = conn.execute(question)
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


class AsyncPsycopg(Psycopg):
    is_async, pools = True, gcp.asyncio

    def make(self, parameters: Any, **options: Any) -> Any:
        from gcp.contrib.psycopg import AsyncDbConnectionManager

        return AsyncDbConnectionManager(parameters, **options)

    async def ask(self, conn: Any, question: str) -> Any:
        cursor = await conn.execute(question)
        row = await cursor.fetchone() if cursor.description else None
        return row and row[0]


class Asyncpg(Driver):
    name, is_async, pools = 'asyncpg', True, gcp.asyncio

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        return (self.module.PostgresError, self.module.InterfaceError, self.module.InternalClientError, OSError)

    def make(self, parameters: Any, **options: Any) -> Any:
        from gcp.contrib.asyncpg import DbConnectionManager

        return DbConnectionManager[Any](parameters, **options)

    def keywords(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        known = {'dbname': 'database', 'sslmode': 'ssl'}
        return {known.get(name, name): value for name, value in parameters.items()}

    async def ask(self, conn: Any, question: str) -> Any:
        return await conn.fetchval(question)

    def is_closed(self, conn: Any) -> bool:
        return bool(conn.is_closed())

    def backend(self, conn: Any) -> int:
        pid: int = conn.get_server_pid()
        return pid

    def descriptor(self, conn: Any) -> int:
        fd: int = conn._transport.get_extra_info('socket').fileno()
        return fd


DRIVERS = (Psycopg2, Psycopg, AsyncPsycopg, Asyncpg)

each_driver = pytest.mark.parametrize('make', DRIVERS, ids=lambda made: made.__name__)
