"""`connection` for pools whose class overrides `acquire` or `release`: written in terms of these."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from gcp._core import chain


@contextmanager
def connection_of(self: Any, endpoint: Any, timeout: float | None = None) -> Iterator[Any]:
    """Acquire a connection, and release it at the end. An error of the release never hides that of the block."""
    conn = self.acquire(endpoint, timeout=timeout)
    try:
        yield conn
    except BaseException as body:
        try:
            self.release(conn, endpoint)
        except Exception as error:
            chain(body, error)
        raise
    else:
        self.release(conn, endpoint)


@asynccontextmanager
async def async_connection_of(self: Any, endpoint: Any, timeout: float | None = None) -> AsyncIterator[Any]:
    """Acquire a connection, and release it at the end. An error of the release never hides that of the block."""
    conn = await self.acquire(endpoint, timeout=timeout)
    try:
        yield conn
    except BaseException as body:
        try:
            await self.release(conn, endpoint)
        except Exception as error:
            chain(body, error)
        raise
    else:
        await self.release(conn, endpoint)
